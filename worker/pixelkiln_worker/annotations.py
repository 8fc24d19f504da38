"""A segmentation as COCO instances JSON, with run-length masks (lossless, holes included).

The run-length code is COCO's own: runs down the columns, the first of them background, differences to the
run two before, five bits a character (maskApi.c of cocoapi). Here one pass over the id map finds the runs of
all segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelkiln_worker.families.contract import Segmentation

Counts = NDArray[np.int64]
_LONGEST_CODE = 13  # characters of five bits that a 64-bit difference may need


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Where a segment is. `counts` are COCO's run lengths, `bbox` is x, y, width, height in pixels."""

    counts: Counts
    bbox: tuple[int, int, int, int]
    area_px: int


def regions(ids: NDArray[np.integer]) -> dict[int, Region]:
    """Return the region of every number above 0 in an HW map, by number."""
    height, width = ids.shape
    flat = ids.T.ravel()  # column after column
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")  # the runs of each number together, still in place order
    first = np.flatnonzero(np.diff(values[order], prepend=-1))
    return {
        int(values[runs[0]]): _region(starts[runs], ends[runs], height, width)
        for runs in np.split(order, first[1:])
        if values[runs[0]] > 0
    }


def _region(starts: Counts, ends: Counts, height: int, width: int) -> Region:
    counts = np.empty(2 * len(starts), np.int64)
    counts[0::2] = starts - np.concatenate(([0], ends[:-1]))
    counts[1::2] = ends - starts
    rest = height * width - int(ends[-1])
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height
    top, bottom = starts % height, (ends - 1) % height
    crossing = (
        starts // height != (ends - 1) // height
    )  # such a run reaches the last row and begins at the first
    upper = 0 if crossing.any() else int(top.min())
    lower = height - 1 if crossing.any() else int(bottom.max())
    return Region(
        counts=np.append(counts, rest) if rest else counts,
        bbox=(left, upper, right - left + 1, lower - upper + 1),
        area_px=int((ends - starts).sum()),
    )


def compressed(counts: Counts) -> str:
    """Return run lengths as the string that pycocotools reads as `counts`."""
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    codes = np.zeros((len(counts), _LONGEST_CODE), np.uint8)
    used = np.zeros_like(codes, dtype=bool)
    active = np.ones(len(counts), bool)
    for place in range(_LONGEST_CODE):
        low = rest & 0x1F
        rest = rest >> 5
        more = active & np.where(low & 0x10, rest != -1, rest != 0)
        codes[:, place] = low + 48 + np.where(more, 0x20, 0)
        used[:, place] = active
        active = more
        if not active.any():
            break
    text: bytes = codes[used].tobytes()
    return text.decode("ascii")


def coco(found: Segmentation, places: dict[int, Region], *, file_name: str, version: str) -> dict[str, Any]:
    """Return the COCO instances document of one picture.

    Args:
        found: the segments; one without a pixel is left out.
        places: `regions` of its id map.
        file_name: what `images[0]` is called.
        version: of the software, for `info`.
    """
    height, width = found.ids.shape
    names: dict[int, str] = {}
    for segment in found.segments:
        names.setdefault(segment.category, segment.label)
    return {
        "info": {"description": "Segmented by Pixelkiln", "version": version},
        "licenses": [],
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [
            {"id": category, "name": name, "supercategory": ""} for category, name in sorted(names.items())
        ],
        "annotations": _annotations(found, places, [height, width]),
    }


def _annotations(found: Segmentation, places: dict[int, Region], size: Sequence[int]) -> list[dict[str, Any]]:
    annotations = []
    for segment in found.segments:
        region = places.get(segment.id)
        if region is None:
            continue
        annotation: dict[str, Any] = {
            "id": segment.id,
            "image_id": 1,
            "category_id": segment.category,
            "segmentation": {"size": list(size), "counts": compressed(region.counts)},
            "bbox": list(region.bbox),
            "area": region.area_px,
            "iscrowd": 0,
        }
        if segment.score is not None:
            annotation["score"] = round(segment.score, 6)
        annotations.append(annotation)
    return annotations
