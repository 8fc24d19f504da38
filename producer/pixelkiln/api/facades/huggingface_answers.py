"""What Hugging Face's clients are answered, task by task."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

from fastapi.responses import JSONResponse, Response
from PIL import Image

from pixelkiln.api.errors import RunFailed
from pixelkiln.api.facades.running import files_of
from pixelkiln.records import result_of
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.rle import lengths
from pixelkiln_shared.storage.contract import Storage

_INSIDE, _OUTSIDE = b"\xff", b"\0"


def picture(record: Record, storage: Storage) -> Response:
    """Return the picture itself, the first if there are several."""
    for artifact, data in files_of(record, Role.IMAGE, storage):
        return Response(data, media_type=artifact.media_type)
    raise RunFailed(f"{record.id} made no picture")


def segments(record: Record, storage: Storage) -> Response:
    """Return label, score and mask (a grey PNG, 255 inside, of the picture's size) of each segment."""
    return JSONResponse(
        [
            {"label": label, "score": one.get("score"), "mask": _mask(one["segmentation"])}
            for label, one in _found(record, storage)
        ]
    )


def boxes(record: Record, storage: Storage) -> Response:
    """Return label, score and box of each segment; corners in pixels, right and lower ones exclusive."""
    return JSONResponse(
        [
            {"label": label, "score": one.get("score"), "box": _box(*one["bbox"])}
            for label, one in _found(record, storage)
        ]
    )


def classes(record: Record, storage: Storage) -> Response:
    """Return label and score of each class, best first."""
    return JSONResponse(result_of(record).detail.get("classes", []))


def _found(record: Record, storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    document = json.loads(files_of(record, Role.ANNOTATIONS, storage)[0][1])
    names = {category["id"]: category["name"] for category in document["categories"]}
    for annotation in document["annotations"]:
        yield names[annotation["category_id"]], annotation


def _box(x: float, y: float, width: float, height: float) -> dict[str, int]:
    return {"xmin": int(x), "ymin": int(y), "xmax": int(x + width), "ymax": int(y + height)}


def _mask(segmentation: dict[str, Any]) -> str:
    height, width = segmentation["size"]
    runs = lengths(segmentation["counts"])
    columns = b"".join((_INSIDE if number % 2 else _OUTSIDE) * run for number, run in enumerate(runs))
    mask = Image.frombytes("L", (height, width), columns).transpose(Image.Transpose.TRANSPOSE)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
