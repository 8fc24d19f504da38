"""Every object of a picture, by a network that takes points: ask on a grid, keep what is sure and stable.

After the automatic mask generator of Segment Anything (Kirillov et al. 2023, section 4 and appendix B). Here
the masks themselves are compared, not their boxes, so that long, slanted things do not hide each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from pixelkiln_shared.kinds import Point
from pixelkiln_worker.families.marks import Marks
from pixelkiln_worker.families.sam import OBJECTS_PER_PASS, Encoded, Sam

STABILITY_OFFSET = 1.0
"""How far the cut through the logits is moved up and down to see whether the mask stays."""
FINE_PX = 256
"""Longest side, at least, of what stability is measured on; SAM's own masks have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What is asked and kept. `threshold`, `stability` and `overlap` are in [0, 1].

    Attributes:
        points_per_side: of the grid.
        threshold: lowest predicted IoU.
        stability: lowest IoU of the masks at two cuts.
        overlap: highest IoU of two masks; of those that share more, the one of lower predicted IoU goes.
        most: how many masks are kept.
    """

    points_per_side: int = 16
    threshold: float = 0.88
    stability: float = 0.95
    overlap: float = 0.7
    most: int = 255


def find_all(sam: Sam, encoded: Encoded, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits over the input (n, h, w) and predicted IoU (n) of all objects, the surest first."""
    grid = grid_marks(encoded.frame.picture, rules.points_per_side)
    logits, scores = [], []
    for first in range(0, len(grid), OBJECTS_PER_PASS):
        proposals = sam.propose(encoded, grid[first : first + OBJECTS_PER_PASS])
        guesses, sure = proposals.logits.flatten(0, 1), proposals.scores.flatten()
        guesses, sure = guesses[sure >= rules.threshold], sure[sure >= rules.threshold]
        kept = stability(fine(encoded.frame.crop(guesses))) >= rules.stability
        logits.append(guesses[kept])
        scores.append(sure[kept])
    found, sure = torch.cat(logits), torch.cat(scores)
    chosen = apart(encoded.frame.crop(found) > 0, sure, rules.overlap, rules.most)
    return found[chosen], sure[chosen]


def grid_marks(size: tuple[int, int], points_per_side: int) -> list[Marks]:
    """Return one point for each cell of a grid over a picture of `size` (height, width), row by row."""
    height, width = size
    steps = [(index + 0.5) / points_per_side for index in range(points_per_side)]
    return [Marks(points=(Point(x=x * width, y=y * height),)) for y in steps for x in steps]


def fine(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (n, h, w) on at least `FINE_PX`: else a pixel decides over a small object."""
    factor = math.ceil(FINE_PX / max(logits.shape[1:]))
    if factor == 1 or not len(logits):
        return logits
    return F.interpolate(logits[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]


def stability(logits: torch.Tensor) -> torch.Tensor:
    """Return for logits (n, h, w) the IoU of the masks cut above and below 0; 0 where nothing is above."""
    inner = (logits > STABILITY_OFFSET).flatten(1).sum(1)
    outer = (logits > -STABILITY_OFFSET).flatten(1).sum(1)
    return inner / outer.clamp(min=1)


def apart(masks: torch.Tensor, scores: torch.Tensor, overlap: float, most: int) -> torch.Tensor:
    """Return the indices of at most `most` masks, by falling score, that do not repeat each other.

    Args:
        masks: (n, h, w), bool.
        scores: (n).
        overlap: highest IoU of two that both stay.
        most: how many may stay.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    flat = masks.flatten(1)[order].float()
    areas = flat.sum(1)
    left = areas > 0
    chosen: list[int] = []
    for place in range(len(order)):
        if not left[place]:
            continue
        if len(chosen) == most:
            break
        chosen.append(place)
        shared = flat @ flat[place]
        left &= shared / (areas + areas[place] - shared) <= overlap
    return order[chosen]
