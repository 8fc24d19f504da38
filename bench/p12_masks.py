"""P12: what a segmentation of twenty instances at 1024 x 1024 costs to write down, and how long it becomes.

Both sides encode the same id maps into COCO's run-length code, and what they write is compared character by
character. pycocotools, which is C, gets its planes ready made for the first rows; the second rows begin at
the id map, as a model gives it, and end with the JSON document. Then our document is set beside the same one
with its masks in other forms.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import p12_peer
from bench.mask_scenes import REALISTIC, SIDE_PX, Ids, scenes
from bench.peers import environments
from bench.results import Result, compared, unable
from pixelkiln_worker.annotations import coco, compressed, regions
from pixelkiln_worker.families.contract import Segment, Segmentation

GOAL = 0.5  # at most twice the peer's time
REPEATS, FULL_REPEATS = 5, 15
PEER = environments.REQUIREMENTS["pycocotools"][0]
_FORMS = ("PNG in base64", "plain JSON arrays", "run lengths as JSON numbers")


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; the ratios are medians over the rounds."""
    repeats, maps = FULL_REPEATS if full else REPEATS, scenes()
    try:
        python = environments.python("pycocotools")
    except environments.CannotInstall as error:
        return [unable("p12", "masks as JSON", peer_name=PEER, goal=GOAL, why=str(error))]
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        folder = Path(name)
        for scene, ids in maps.items():
            np.save(folder / f"{scene}.npy", ids)
        pairs = [against_the_peer(python, folder, maps, repeats) for _ in range(rounds)]
    return [
        *(_speed_row(scene, "encode_ms", pairs) for scene in maps),
        *(_speed_row(scene, "document_ms", pairs) for scene in maps),
        *(
            _length_row("three scenes of things", [maps[scene] for scene in REALISTIC], form)
            for form in _FORMS
        ),
        *(_length_row("noise", [maps["noise"]], form) for form in _FORMS),
    ]


# -------------------------------------------------------------------------------------------------- speed


def against_the_peer(
    python: Path, folder: Path, maps: Mapping[str, Ids], repeats: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure us, then the peer, and see that both wrote the same; returns our figures and the peer's."""
    ours = {scene: measure(ids, repeats) for scene, ids in maps.items()}
    line = [str(python), p12_peer.__file__, str(folder), str(repeats)]
    peer = json.loads(subprocess.check_output(line, text=True))["scenes"]
    for scene in maps:
        if ours[scene]["digest"] != peer[scene]["digest"]:
            raise RuntimeError(f"our masks of {scene!r} are not those of pycocotools")
    return ours, peer


def measure(ids: Ids, repeats: int) -> dict[str, Any]:
    """Return our figures of one map, by the same names as the peer's."""
    found = segmentation(ids)
    annotations = json.loads(document(ids, found))["annotations"]
    facts = [[one["segmentation"]["counts"], one["bbox"], one["area"]] for one in annotations]
    return {
        "encode_ms": p12_peer.median_ms(lambda: encoded(ids), repeats),
        "document_ms": p12_peer.median_ms(lambda: document(ids, found), repeats),
        "digest": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
    }


def encoded(ids: Ids) -> list[str]:
    """Return the run-length codes of a map."""
    return [compressed(region.counts) for region in regions(ids).values()]


def document(ids: Ids, found: Segmentation) -> str:
    """Return `annotations.json` as a worker writes it."""
    made = coco(found, regions(ids), file_name="picture.png", version="0")
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"))


def segmentation(ids: Ids) -> Segmentation:
    """Return what a model would have said: every number of the map is a thing of one class."""
    numbers = [number for number in np.unique(ids).tolist() if number > 0]
    return Segmentation(ids=ids, segments=tuple(Segment(id=n, label="thing", category=1) for n in numbers))


def _speed_row(scene: str, name: str, pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Result:
    from_map = name == "document_ms"
    what, peer, caveat = (
        "milliseconds from the id map to the JSON document",
        "planes, encode, toBbox, area, json",
        "the peer wants a plane an instance, which numpy makes from the map: most of its time",
    )
    if not from_map:
        what, peer = "milliseconds for the codes, boxes and areas of 20 masks", "encode alone"
        caveat = "we begin at the id map; the peer's planes are ready in its own order, and it makes no boxes"
    return compared(
        "p12-document" if from_map else "p12",
        f"{what}, {SIDE_PX} px",
        [(ours[scene][name], other[scene][name]) for ours, other in pairs],
        peer_name=f"pycocotools ({peer}), {scene}",
        goal=GOAL,
        caveat=f"{caveat}; the same characters on both sides",
        versions={"pycocotools": PEER.partition("==")[2], "numpy": np.__version__},
        less_is_better=True,
    )


# ------------------------------------------------------------------------------------------------- length


def _length_row(name: str, maps: Sequence[Ids], form: str) -> Result:
    ours, theirs = _texts(maps, form)
    zipped = [sum(len(gzip.compress(text, 6)) for text in texts) for texts in (ours, theirs)]
    return compared(
        "p12-bytes",
        f"bytes of the JSON document, 20 masks a picture, {SIDE_PX} px",
        [(sum(map(len, ours)), sum(map(len, theirs)))],
        peer_name=f"{form}, {name}",
        goal=0.0,
        caveat=f"shown, without a goal; compressed by gzip besides: ours {zipped[0]}, theirs {zipped[1]}",
        less_is_better=True,
    )


def _texts(maps: Sequence[Ids], form: str) -> tuple[list[bytes], list[bytes]]:
    ours = [document(ids, segmentation(ids)).encode() for ids in maps]
    return ours, [other_document(text, ids, form) for text, ids in zip(ours, maps, strict=True)]


def other_document(ours: bytes, ids: Ids, form: str) -> bytes:
    """Return our document with its masks written in one of the other forms."""
    made = json.loads(ours)
    places = regions(ids)
    for annotation in made["annotations"]:
        number = annotation["id"]
        if form == "PNG in base64":
            annotation["segmentation"] = base64.b64encode(_png(ids == number)).decode("ascii")
        elif form == "plain JSON arrays":
            annotation["segmentation"] = (ids == number).astype(int).tolist()
        else:
            annotation["segmentation"]["counts"] = places[number].counts.tolist()
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def _png(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    """Return a PNG of one bit a pixel, compressed as Pillow does by default."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
