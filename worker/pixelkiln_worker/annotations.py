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

from pixelkiln_shared.rle import CODE_BITS, CODE_MASK, FIRST_CODE, MORE_BIT, SIGN_BIT
from pixelkiln_worker.families.contract import Segmentation

Counts = NDArray[np.int_]


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
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts: Counts = np.concatenate(([0], changes)).astype(_narrowest(flat.size))
    ends = np.append(starts[1:], starts.dtype.type(flat.size))
    values = flat[starts]
    order = np.argsort(values, kind="stable")  # the runs of each number together, still in place order
    starts, ends, values = starts[order], ends[order], values[order]
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return {
        int(values[begin]): _region(starts[begin:end], ends[begin:end], height, width)
        for begin, end in zip(first, [*first[1:], len(values)], strict=True)
        if values[begin] > 0
    }


def _region(starts: Counts, ends: Counts, height: int, width: int) -> Region:
    counts = np.empty(2 * len(starts), starts.dtype)
    counts[0] = starts[0]
    np.subtract(starts[1:], ends[:-1], out=counts[2::2])
    np.subtract(ends, starts, out=counts[1::2])
    rest = height * width - int(ends[-1])
    left, right = starts // height, (ends - 1) // height  # the columns a run begins and ends in
    if (left != right).any():  # such a run reaches the last row and begins at the first
        upper, lower = 0, height - 1
    else:
        upper = int((starts - left * height).min())
        lower = int((ends - 1 - right * height).max())
    return Region(
        counts=np.append(counts, counts.dtype.type(rest)) if rest else counts,
        bbox=(int(left[0]), upper, int(right[-1] - left[0]) + 1, lower - upper + 1),
        area_px=int(counts[1::2].sum()),
    )


def compressed(counts: Counts) -> str:
    """Return run lengths as the string that pycocotools reads as `counts`."""
    rest: Counts = counts.astype(_narrowest(int(counts.max(initial=0))))
    rest[3:] -= rest[1:-2].copy()
    reach = np.where(rest < 0, ~rest, rest)  # a character may be the last once 0 or -1 is left, sign bit seen
    longest = int(reach.max(initial=0)).bit_length() // CODE_BITS + 1
    codes = np.empty((len(counts), longest), np.uint8)
    used = np.ones((len(counts), longest), bool)
    for place in range(longest):
        shift = CODE_BITS * place
        more = reach >> shift >= SIGN_BIT
        codes[:, place] = (rest >> shift & CODE_MASK) + FIRST_CODE + more * MORE_BIT
        used[:, place + 1 :] = more[:, None]
    text: bytes = codes[used].tobytes()
    return text.decode("ascii")


def _narrowest(most: int) -> type[np.int_]:
    """Return a type for numbers up to `most`; nearly always the one with half the memory to go through."""
    return np.int32 if most <= np.iinfo(np.int32).max else np.int64  # type: ignore[return-value]


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
