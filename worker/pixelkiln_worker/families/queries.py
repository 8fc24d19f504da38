"""From a network's queries to a label map: panoptic, instances, or classes.

Universal networks (MaskFormer, Cheng et al., NeurIPS 2021, and its heirs) answer with a fixed number of
queries, each a class and a mask. Here is how masks that overlap become one map, whatever the network.
The libraries' own versions work at a fixed 384 x 384 pixels and let the last of two overlapping masks win;
here masks are compared at the picture's working size, and the better one wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pixelkiln_worker.families.segments import Part

Found = tuple[NDArray[np.int32], dict[int, Part]]
"""A label map, HW, 0 where there is nothing; and what each of its values is."""

_MASK_LEVEL = 0.5
VISIBLE = 0.8
"""Share of a panoptic mask that must be left where others are more certain (MaskFormer's own figure)."""
_SAME_THING = 0.5
"""IoU above which two masks of one class of things are two findings of the same."""
_VISIBLE_INSTANCE = 0.5
"""The same for instances: a mask that shows less of itself is a second finding of the same thing."""
_LEAST_PX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """What a network found in one picture.

    Attributes:
        scores: (q,) in [0, 1], the probability of each query's class.
        labels: (q,) class indices.
        masks: (q, h, w) in [0, 1], the probability that a pixel belongs to the query.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """How classes are called in results: name and number of each class index."""

    names: tuple[str, ...]
    categories: tuple[int, ...]

    def part(self, index: int, score: float) -> Part:
        """Return what a segment of this class is."""
        return Part(label=self.names[index], category=self.categories[index], score=round(score, 4))


def panoptic(queries: Queries, naming: Naming, fused: frozenset[int], visible: float = VISIBLE) -> Found:
    """Give each pixel to the query that is most certain of it.

    Of two queries that found the same thing only the better counts: they would tear its mask apart.

    Args:
        queries: those to be considered.
        naming: of the classes.
        fused: class indices of stuff, whose queries become one segment with the best of their scores.
        visible: share of a mask that must be left to it.
    """
    ids = np.zeros(tuple(queries.masks.shape[1:]), np.int32)
    parts: dict[int, Part] = {}
    queries = _single(queries, fused)
    if not len(queries.scores):
        return ids, parts
    winner = (queries.scores[:, None, None] * queries.masks).argmax(0)  # (h, w)
    stuff: dict[int, int] = {}
    for query in queries.scores.argsort(descending=True).tolist():
        whole = queries.masks[query] >= _MASK_LEVEL
        shown = whole & (winner == query)
        if int(shown.sum()) < max(_LEAST_PX, visible * int(whole.sum())):
            continue
        index = int(queries.labels[query])
        number = stuff.get(index, len(parts) + 1)
        if index in fused:
            stuff[index] = number
        ids[shown.cpu().numpy()] = number
        parts.setdefault(number, naming.part(index, float(queries.scores[query])))
    return ids, parts


def _single(queries: Queries, fused: frozenset[int]) -> Queries:
    """Leave out queries of things that a more certain query of the same class has found already."""
    inside = (queries.masks >= _MASK_LEVEL).flatten(1).float()
    shared = inside @ inside.T
    areas = inside.sum(1)
    iou = shared / (areas[:, None] + areas[None] - shared).clamp(min=1)
    kept: list[int] = []
    for query in queries.scores.argsort(descending=True, stable=True).tolist():
        index = int(queries.labels[query])
        alike = [other for other in kept if int(queries.labels[other]) == index]
        if index in fused or not any(float(iou[query, other]) > _SAME_THING for other in alike):
            kept.append(query)
    return Queries(scores=queries.scores[kept], labels=queries.labels[kept], masks=queries.masks[kept])


def instances(queries: Queries, naming: Naming, threshold: float) -> Found:
    """Lay the masks over each other, the best on top; a mask that hardly shows is a double and left out.

    A mask's score is its class's probability times its mean probability inside, as Mask2Former's.
    """
    ids = np.zeros(tuple(queries.masks.shape[1:]), np.int32)
    parts: dict[int, Part] = {}
    inside = queries.masks >= _MASK_LEVEL  # (q, h, w)
    areas = inside.flatten(1).sum(1)
    certain = (queries.masks * inside).flatten(1).sum(1) / areas.clamp(min=1)
    scores = queries.scores * certain
    for query in scores.argsort(descending=True, stable=True).tolist():
        if float(scores[query]) < threshold:
            break
        shown = inside[query].cpu().numpy() & (ids == 0)
        if shown.sum() < max(_LEAST_PX, _VISIBLE_INSTANCE * int(areas[query])):
            continue
        number = len(parts) + 1
        ids[shown] = number
        parts[number] = naming.part(int(queries.labels[query]), float(scores[query]))
    return ids, parts


def classes(chances: torch.Tensor, naming: Naming, nothing: frozenset[int]) -> Found:
    """Give each pixel its likeliest class: one segment a class.

    Args:
        chances: (classes, h, w), how much speaks for each class, 0 or more.
        naming: of the classes.
        nothing: class indices that mean "nothing here".
    """
    best, winner = (chances / chances.sum(0).clamp(min=1e-6)).max(0)
    ids = winner.cpu().numpy().astype(np.int32) + 1
    certain = best.cpu().numpy()
    parts = {}
    for value in np.unique(ids).tolist():
        region = ids == value
        if value - 1 in nothing:
            ids[region] = 0
        else:
            parts[value] = naming.part(value - 1, float(certain[region].mean()))
    return ids, parts
