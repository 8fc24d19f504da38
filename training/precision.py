"""How well found objects match true ones: average precision as COCO has it, and panoptic quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.matching import Segment

THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object a model reports: its class, its score in [0, 1] and its (H, W) mask."""

    name: int
    score: float
    mask: NDArray[np.bool_]


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, 0 where both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0


def _hits(found: list[Found], true: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which reports of one class in one picture are right, (reports, thresholds); best score first."""
    overlap = np.array([[mask_iou(report.mask, mask) for mask in true] for report in found])
    right = np.zeros((len(found), len(THRESHOLDS)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(true), bool)
        for r in range(len(found)):
            candidates = np.where(free, overlap[r], -1) if len(true) else np.array([-1.0])
            best = int(candidates.argmax())
            if candidates[best] >= threshold:
                right[r, t], free[best] = True, False
    return right


def _area(right: NDArray[np.bool_], total: int) -> float:
    """Area under the precision-recall curve, read at 101 recalls as COCO reads it."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / total, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[np.minimum(places, len(right))].mean())


def average_precision(
    found: Sequence[list[Found]], true: Sequence[list[Segment]]
) -> dict[int, NDArray[np.float64]]:
    """AP at each of `THRESHOLDS` for every class that occurs, from the reports and the truth of each picture.

    After Lin et al., "Microsoft COCO" (2014): reports of all pictures are ranked by score, and each true
    object may be found once.
    """
    table = {}
    for name in sorted({part[0] for parts in true for part in parts}):
        scores, rights, total = [], [], 0
        for reports, parts in zip(found, true, strict=True):
            ranked = sorted((r for r in reports if r.name == name), key=lambda report: -report.score)
            masks = [mask for k, mask in parts if k == name]
            total += len(masks)
            scores += [report.score for report in ranked]
            rights.append(_hits(ranked, masks))
        right = np.concatenate(rights)[np.argsort(-np.array(scores), kind="stable")]
        table[name] = np.array([_area(right[:, t], total) for t in range(len(THRESHOLDS))])
    return table


def panoptic_quality(found: Sequence[list[Segment]], true: Sequence[list[Segment]]) -> dict[int, float]:
    """Panoptic quality of each class that occurs, after Kirillov et al. (2019)."""
    names = {part[0] for parts in true for part in parts}
    return {name: _quality(name, found, true) for name in sorted(names)}


def _quality(name: int, found: Sequence[list[Segment]], true: Sequence[list[Segment]]) -> float:
    overlap, segments = 0.0, 0
    for reports, parts in zip(found, true, strict=True):
        ours = [mask for k, mask in reports if k == name]
        theirs = [mask for k, mask in parts if k == name]
        segments += len(ours) + len(theirs)
        # two segments that share more than half cannot be matched otherwise
        overlap += sum(iou for a in ours for b in theirs if (iou := mask_iou(a, b)) > 0.5)
    return 2 * overlap / segments if segments else 0.0
