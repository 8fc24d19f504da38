"""Clicks and boxes as a person would give them: what the promptable model is trained and measured with."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.matching import Segment
from training.world.grammar import FIRST_OBJECT_CLASS

Mask = NDArray[np.bool_]
Point = tuple[int, int]

_OBJECTS_SHARE = 0.75
_ROUND_FIRST_CLICK = 0.3
_NEAR_PX = 9


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts for n pictures, p to each, and the masks they mean.

    `points` is (n, p, k, 2) float32, (x, y) pixels, with `labels` (n, p, k) int64, 1 on the thing and 0 off
    it; or none. `boxes` is (n, p, 4) float32, XYXY pixels; or none. `masks` is (n, p, H, W) bool.
    """

    points: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    masks: NDArray[np.bool_]


def central_pixel(mask: Mask) -> Point:
    """The (x, y) in a mask that is farthest from its edge."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(x), int(y)


def random_pixel(mask: Mask, rng: np.random.Generator) -> Point:
    """Any (x, y) in a mask."""
    rows, columns = np.nonzero(mask)
    index = rng.integers(len(rows))
    return int(columns[index]), int(rows[index])


def bounding_box(mask: Mask) -> NDArray[np.float32]:
    """(left, top, right, bottom) of a mask, right and bottom exclusive."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def drawn_box(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """A box around a mask as a hand draws it: off by up to a tenth of its sides and a pixel."""
    box = bounding_box(mask)
    slack = np.tile(1 + 0.1 * (box[2:] - box[:2]), 2)
    return np.clip(box + rng.uniform(-slack, slack), 0, mask.shape[0]).astype(np.float32)


def _further_click(mask: Mask, rng: np.random.Generator) -> tuple[Point, int]:
    """One more click on the thing, or one beside it that says what it is not."""
    if rng.random() < 0.5:
        return random_pixel(mask, rng), 1
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _NEAR_PX + 1,) * 2, np.uint8)).astype(bool) & ~mask
    return (random_pixel(near, rng), 0) if near.any() else (random_pixel(mask, rng), 1)


def clicks(mask: Mask, count: int, rng: np.random.Generator) -> tuple[list[Point], list[int]]:
    """`count` clicks that mean `mask`, the first of them on it, with their labels."""
    first = central_pixel(mask) if rng.random() < _ROUND_FIRST_CLICK else random_pixel(mask, rng)
    points, labels = [first], [1]
    for _ in range(count - 1):
        point, label = _further_click(mask, rng)
        points.append(point)
        labels.append(label)
    return points, labels


def choose(segments: list[Segment], count: int, rng: np.random.Generator) -> list[Mask]:
    """`count` masks of a scene, the objects more often than the backdrop."""
    objects = [mask for name, mask in segments if name >= FIRST_OBJECT_CLASS]
    backdrop = [mask for name, mask in segments if name < FIRST_OBJECT_CLASS]
    chosen = []
    for _ in range(count):
        pool = objects if objects and rng.random() < _OBJECTS_SHARE else backdrop
        chosen.append(pool[rng.integers(len(pool))])
    return chosen


def prompt(masks: list[list[Mask]], rng: np.random.Generator) -> Prompts:
    """Prompts of one random form (clicks, boxes, or both) for every mask of every picture."""
    count, boxed = ((1, False), (2, False), (3, False), (0, True), (1, True))[
        rng.choice(5, p=[0.4, 0.1, 0.1, 0.3, 0.1])
    ]
    given = [[clicks(mask, count, rng) for mask in row] for row in masks] if count else []
    points = np.array([[points for points, _ in row] for row in given], np.float32)
    labels = np.array([[labels for _, labels in row] for row in given], np.int64)
    boxes = np.array([[drawn_box(mask, rng) for mask in row] for row in masks])
    return Prompts(
        points=torch.from_numpy(points) if count else None,
        labels=torch.from_numpy(labels) if count else None,
        boxes=torch.from_numpy(boxes) if boxed else None,
        masks=np.array(masks),
    )
