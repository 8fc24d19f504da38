"""The set loss of the instance model: which query answers for which segment, and how well it does.

After DETR (Carion et al., 2020) and MaskFormer (Cheng et al., 2021), with two short cuts that a small model
and a small budget need: the first queries own one backdrop class each, and each of the others has a place
in the picture near which it prefers its object. Without the places 2,400 presentations taught it to find no
object at all; with them 3,000 taught it to find two of three.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

NO_OBJECT = len(CLASSES)
MOST_SEGMENTS = 12
TARGET_PX = 64
SMALLEST_PX = 8
"""Segments of fewer pixels are specks at an edge: neither taught nor scored."""
PLACES = np.array([(x, y) for y in (0.3, 0.55, 0.8) for x in (0.125, 0.375, 0.625, 0.875)], np.float32)
"""Where each object query looks first, (x, y) with (0, 0) top left and (1, 1) bottom right."""
QUERIES = FIRST_OBJECT_CLASS + len(PLACES)
_PLACE_WEIGHT = 5.0
_CLASS_WEIGHT, _MASK_WEIGHT, _DICE_WEIGHT = 2.0, 5.0, 5.0
_NO_OBJECT_WEIGHT = 0.3


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What scenes hold, n scenes of at most k segments.

    `masks` is (n, k, 64, 64) float32, the share of each cell that the segment covers; `classes` (n, k) int64,
    -1 in unused places; `centres` (n, k, 2) the mean (x, y) in [0, 1].
    """

    masks: Tensor
    classes: Tensor
    centres: NDArray[np.float32]


Segment = tuple[int, NDArray[np.bool_]]


def visible_segments(classes: NDArray[np.uint8], instances: NDArray[np.uint8]) -> list[Segment]:
    """(class, mask) of each backdrop class and then of each object in sight."""
    parts = [(k, classes == k) for k in range(FIRST_OBJECT_CLASS)]
    parts += visible_objects(classes, instances)
    return [(k, mask) for k, mask in parts if mask.sum() >= SMALLEST_PX]


def visible_objects(classes: NDArray[np.uint8], instances: NDArray[np.uint8]) -> list[Segment]:
    """(class, mask) of each object in sight."""
    masks = [instances == number for number in range(1, int(instances.max()) + 1)]
    return [(int(classes[mask][0]), mask) for mask in masks if mask.sum() >= SMALLEST_PX]


def collect(scenes: list[list[Segment]]) -> Targets:
    """The segments of several scenes in one batch; masks are (128, 128)."""
    masks = np.zeros((len(scenes), MOST_SEGMENTS, TARGET_PX, TARGET_PX), np.float32)
    classes = np.full((len(scenes), MOST_SEGMENTS), -1)
    centres = np.zeros((len(scenes), MOST_SEGMENTS, 2), np.float32)
    for n, parts in enumerate(scenes):
        for k, (name, mask) in enumerate(parts[:MOST_SEGMENTS]):
            cell = mask.shape[0] // TARGET_PX
            masks[n, k] = mask.reshape(TARGET_PX, cell, TARGET_PX, cell).mean((1, 3))
            rows, columns = np.nonzero(mask)
            centres[n, k] = columns.mean() / mask.shape[1], rows.mean() / mask.shape[0]
            classes[n, k] = name
    return Targets(masks=torch.from_numpy(masks), classes=torch.from_numpy(classes), centres=centres)


@torch.no_grad()
def match(class_logits: Tensor, mask_logits: Tensor, targets: Targets) -> Tensor:
    """The query of each segment, (n, k) int64, -1 where there is none.

    `class_logits` is (n, queries, classes + 1), `mask_logits` (n, queries, 64, 64).
    """
    probability = class_logits.float().softmax(-1)
    logits, target = mask_logits.float().flatten(2), targets.masks.flatten(2)
    inside, overlap = logits.sigmoid(), target.transpose(1, 2)
    wrong = functional.softplus(logits).mean(-1)[:, :, None] - logits @ overlap / logits.shape[-1]
    areas = inside.sum(-1)[:, :, None] + target.sum(-1)[:, None]
    dice = 1 - (2 * inside @ overlap + 1) / (areas + 1)
    cost = (_MASK_WEIGHT * wrong + _DICE_WEIGHT * dice).numpy()
    chosen = np.full(targets.classes.shape, -1)
    for n, classes in enumerate(targets.classes.numpy()):
        backdrop = (classes >= 0) & (classes < FIRST_OBJECT_CLASS)
        chosen[n, backdrop] = classes[backdrop]
        objects = np.nonzero(classes >= FIRST_OBJECT_CLASS)[0]
        away = np.linalg.norm(PLACES[:, None] - targets.centres[n][None, objects], axis=-1)
        seen = probability[n, FIRST_OBJECT_CLASS:][:, classes[objects]].numpy()
        prices = cost[n, FIRST_OBJECT_CLASS:][:, objects] - _CLASS_WEIGHT * seen + _PLACE_WEIGHT * away
        query, index = linear_sum_assignment(prices)
        chosen[n, objects[index]] = query + FIRST_OBJECT_CLASS
    return torch.from_numpy(chosen)


def set_loss(class_logits: Tensor, mask_logits: Tensor, targets: Targets, chosen: Tensor) -> Tensor:
    """Cross-entropy of every query's class, and of the matched ones' masks with their Dice loss."""
    scene, index = torch.nonzero(chosen >= 0, as_tuple=True)
    query = chosen[scene, index]
    wanted = torch.full(class_logits.shape[:2], NO_OBJECT)
    wanted[scene, query] = targets.classes[scene, index]
    weight = torch.ones(NO_OBJECT + 1)
    weight[NO_OBJECT] = _NO_OBJECT_WEIGHT
    named = functional.cross_entropy(class_logits.float().flatten(0, 1), wanted.flatten(), weight)
    logits = mask_logits[scene, query].float().flatten(1)
    target = targets.masks[scene, index].flatten(1)
    covered = functional.binary_cross_entropy_with_logits(logits, target)
    return _CLASS_WEIGHT * named + _MASK_WEIGHT * covered + _DICE_WEIGHT * dice_loss(logits, target)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One less the overlap of (n, cells) logits with (n, cells) targets in [0, 1], averaged."""
    inside = logits.sigmoid()
    return (1 - (2 * (inside * target).sum(1) + 1) / (inside.sum(1) + target.sum(1) + 1)).mean()
