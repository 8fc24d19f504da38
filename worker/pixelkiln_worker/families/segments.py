"""From label maps to a `Segmentation`: what every segmenting family does after its own method has spoken.

A *label map* is HW, integer, 0 where nothing was found. Areas are pixels of the map they are counted in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from pixelkiln_worker.families.contract import Pixels, Segment, Segmentation

MAX_SEGMENTS = 255
"""Masks are stored as 8-bit palette pictures, and 0 means "nothing"."""

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What is known of one value of a label map. `category` is the class number (>= 1)."""

    label: str
    category: int
    score: float | None = None


def shrink(image: Pixels, longest_px: int) -> Pixels:
    """Return `image` (HWC) with no side above `longest_px`; the same array when it is small enough."""
    height, width = image.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def enlarge(labels: Labels, height: int, width: int) -> Labels:
    """Return the label map at another size by nearest neighbour, pixel centres aligned."""
    if labels.shape == (height, width):
        return labels
    rows = ((np.arange(height) + 0.5) * (labels.shape[0] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (labels.shape[1] / width)).astype(np.intp)
    return np.asarray(labels[rows[:, None], columns])


def absorb_specks(labels: Labels, min_area_px: int) -> Labels:
    """Give every connected piece smaller than `min_area_px` the value of its nearest larger neighbour.

    Fills small holes and removes small islands alike. A map of nothing but specks comes back unchanged.
    """
    pieces = connected_components(labels, background=-1, connectivity=1)
    small = (np.bincount(pieces.ravel()) < min_area_px)[pieces]
    if not small.any() or small.all():
        return labels
    _, nearest = cv2.distanceTransformWithLabels(
        small.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros(int(nearest.max()) + 1, labels.dtype)
    value_of[nearest[~small]] = labels[~small]
    return np.where(small, value_of[nearest], labels)


def assemble(labels: Labels, describe: Callable[[int, int], Part] | Mapping[int, Part]) -> Segmentation:
    """Number the values of a label map 1, 2, ... by falling area and describe each.

    Args:
        labels: HW label map.
        describe: value -> its part, or a function of (value, id).

    The smallest of more than `MAX_SEGMENTS` values become 0. Ties keep the order of the values.
    """
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    order = np.argsort(-areas, kind="stable")
    order = order[areas[order] > 0][:MAX_SEGMENTS]
    new_id = np.zeros(len(areas), np.uint16)
    new_id[order] = np.arange(1, len(order) + 1)
    segments = []
    for number, value in enumerate(order.tolist(), start=1):
        part = describe[value] if isinstance(describe, Mapping) else describe(value, number)
        segments.append(Segment(id=number, label=part.label, category=part.category, score=part.score))
    return Segmentation(ids=new_id[labels], segments=tuple(segments))


def keep(
    found: Segmentation, wanted: Sequence[str], known: Sequence[str]
) -> tuple[Segmentation, tuple[dict[str, str], ...]]:
    """Keep only the segments whose label is wanted (all when none is named), renumbered from 1.

    Labels compare without regard to case. A wanted label outside `known` gives an `unknown_label` warning.
    """
    if not wanted:
        return found, ()
    folded = {label.strip().casefold() for label in wanted}
    kept = [segment for segment in found.segments if segment.label.casefold() in folded]
    new_id = np.zeros(len(found.segments) + 1, np.uint16)
    for number, segment in enumerate(kept, start=1):
        new_id[segment.id] = number
    segments = tuple(replace(segment, id=number) for number, segment in enumerate(kept, start=1))
    unknown = sorted(folded - {label.casefold() for label in known})
    warnings = tuple(
        {"code": "unknown_label", "message": f"the model has no class {label!r}; it knows {_listed(known)}"}
        for label in unknown
    )
    return Segmentation(ids=new_id[found.ids], segments=segments), warnings


def _listed(names: Sequence[str], limit: int = 24) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
