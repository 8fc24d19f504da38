"""From what a model made to the files of an attempt. Pure: no I/O, so it runs on the firing's own thread."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelkiln_shared import __version__
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.manifest import MANIFEST_NAME
from pixelkiln_worker import imaging, masks, metadata
from pixelkiln_worker.annotations import Region, coco, regions
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Segmentation

_ENDINGS = {"png": "png", "webp": "webp", "jpeg": "jpg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFile:
    """A file to store. `index` counts within its role, `name` is its name in the attempt's folder."""

    role: Role
    index: int
    name: str
    data: bytes
    media_type: str
    width: int | None = None
    height: int | None = None
    label: str | None = None
    score: float | None = None


def encode(
    job: JobSpec, outcome: Outcome, *, image: Pixels | None = None, facts: Mapping[str, Any]
) -> list[EncodedFile]:
    """Return the files of an attempt, the manifest last; none when nothing came of it but the record.

    A picture gives `0.png` (or .webp, .jpeg, as the job asked), a depth map `0.depth.png` (16-bit grey, white
    nearest) and `0.preview.webp` (the same in colours). A segmentation gives `0.mask.png` (a palette
    PNG of segment ids), `0.classes.png` where several segments share a class, `0.overlay.webp`,
    `0.cutout.png` and `annotations.json` (COCO). The same outcome gives the same bytes, but for `facts` in
    the manifest.

    Args:
        job: what was asked.
        outcome: what came of it.
        image: the picture the job worked on, HWC RGB uint8.
        facts: for the manifest, JSON: `model` (the model's identity), attempt, device, batch, timings.

    Raises:
        ValueError: a segmentation without its picture, or of another size.
    """
    if outcome.bare:
        return []
    files = _pictures(job, outcome.pictures, facts.get("model", {}))
    if outcome.depth is not None:
        files += _depth(outcome.depth)
    if outcome.segmentation is not None:
        if image is None or image.shape[:2] != outcome.segmentation.ids.shape:
            raise ValueError("a segmentation is encoded with its own picture")
        files += _segmentation(job, outcome.segmentation, image)
    return [*files, _manifest(job, outcome, facts, files)]


def _pictures(job: JobSpec, pictures: Sequence[Picture], model: Mapping[str, Any]) -> list[EncodedFile]:
    """Encode pictures; each role counts from 0."""
    counted: Counter[Role] = Counter()
    files = []
    for picture in pictures:
        files.append(_picture(job, picture, counted[picture.role], model))
        counted[picture.role] += 1
    return files


def _picture(job: JobSpec, picture: Picture, index: int, model: Mapping[str, Any]) -> EncodedFile:
    height, width = picture.pixels.shape[:2]
    infix = "" if picture.role is Role.IMAGE else f".{picture.role}"
    if picture.pixels.ndim == 2:
        return EncodedFile(
            role=picture.role,
            index=index,
            name=f"{index}{infix}.png",
            data=imaging.png_of_grey(picture.pixels),
            media_type="image/png",
            width=width,
            height=height,
        )
    pixels = np.ascontiguousarray(picture.pixels)
    text = metadata.parameters(job, seed=picture.seed, width=width, height=height, model=model)
    form = str(job.input.get("format", "png"))
    if form == "png":
        data = imaging.png_of(pixels, chunks=metadata.png_chunks(text))
    else:
        write = imaging.webp_of if form == "webp" else imaging.jpeg_of
        data = write(pixels, exif=metadata.exif(text), xmp=metadata.xmp())
    return EncodedFile(
        role=picture.role,
        index=index,
        name=f"{index}{infix}.{_ENDINGS[form]}",
        data=data,
        media_type=f"image/{form}",
        width=width,
        height=height,
    )


def _depth(depth: NDArray[np.float32]) -> Iterator[EncodedFile]:
    size = {"width": depth.shape[1], "height": depth.shape[0]}
    yield EncodedFile(
        role=Role.DEPTH,
        index=0,
        name="0.depth.png",
        data=imaging.png_of_grey((depth.clip(0, 1) * 65_535).round().astype(np.uint16)),
        media_type="image/png",
        **size,
    )
    yield EncodedFile(
        role=Role.PREVIEW,
        index=0,
        name="0.preview.webp",
        data=imaging.webp_of(masks.depth_colours(depth)),
        media_type="image/webp",
        **size,
    )


def _segmentation(job: JobSpec, found: Segmentation, image: Pixels) -> Iterator[EncodedFile]:
    height, width = found.ids.shape
    size = {"width": width, "height": height}
    yield EncodedFile(
        role=Role.MASK,
        index=0,
        name="0.mask.png",
        data=imaging.png_of_ids(found.ids),
        media_type="image/png",
        label="segments",
        **size,
    )
    if len({segment.category for segment in found.segments}) < len(found.segments):
        yield EncodedFile(
            role=Role.MASK,
            index=1,
            name="0.classes.png",
            data=imaging.png_of_ids(_classes(found)),
            media_type="image/png",
            label="classes",
            **size,
        )
    yield _overlay(image, found)
    places = regions(found.ids)
    yield from _cutouts(job, found, places, image)
    document = coco(found, places, file_name=f"{job.id}.png", version=__version__)
    yield EncodedFile(
        role=Role.ANNOTATIONS,
        index=0,
        name="annotations.json",
        data=_json(document),
        media_type="application/json",
    )


def _classes(found: Segmentation) -> NDArray[np.uint16]:
    """Return the HW map of class numbers; 0 where nothing was found."""
    table = np.zeros(int(found.ids.max(initial=0)) + 1, np.uint16)
    for segment in found.segments:
        if segment.id < len(table):
            table[segment.id] = segment.category
    return table[found.ids]


def _overlay(image: Pixels, found: Segmentation) -> EncodedFile:
    pixels = masks.overlay(image, found.ids)
    return EncodedFile(
        role=Role.OVERLAY,
        index=0,
        name="0.overlay.webp",
        data=imaging.webp_of(pixels),
        media_type="image/webp",
        width=pixels.shape[1],
        height=pixels.shape[0],
    )


def _cutouts(
    job: JobSpec, found: Segmentation, places: dict[int, Region], image: Pixels
) -> Iterator[EncodedFile]:
    asked = any(job.input.get(name) for name in ("labels", "points", "boxes"))
    for index, segments in enumerate(masks.selected(found, places, asked=asked)):
        alone = segments[0] if len(segments) == 1 else None
        yield EncodedFile(
            role=Role.CUTOUT,
            index=index,
            name=f"{index}.cutout.png",
            data=imaging.png_of(masks.cutout(image, found.ids, segments)),
            media_type="image/png",
            width=image.shape[1],
            height=image.shape[0],
            label=alone.label if alone else "foreground",
            score=alone.score if alone else None,
        )


def _manifest(
    job: JobSpec, outcome: Outcome, facts: Mapping[str, Any], files: list[EncodedFile]
) -> EncodedFile:
    listed = [
        {
            "role": file.role,
            "index": file.index,
            "name": file.name,
            "media_type": file.media_type,
            "size_bytes": len(file.data),
            "sha256": hashlib.sha256(file.data).hexdigest(),
            "width": file.width,
            "height": file.height,
            "label": file.label,
            "score": file.score,
        }
        for file in files
    ]
    for picture, line in zip(outcome.pictures, listed, strict=False):
        line["seed"] = picture.seed
    document = metadata.manifest(job, outcome, facts=facts, files=listed)
    return EncodedFile(
        role=Role.MANIFEST,
        index=0,
        name=MANIFEST_NAME,
        data=_json(document),
        media_type="application/json",
    )


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
