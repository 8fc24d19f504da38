"""Holes in scenes and what a person would ask for in them: what the inpainting model is trained with.

A hole is an (H, W) bool array, true where the picture is to be drawn anew. People draw boxes, ovals and brush
strokes, most of them around a thing, with room to spare; and they name what they want in the hole, not what
is elsewhere in the picture.
"""

from collections import Counter

import cv2
import numpy as np
from numpy.typing import NDArray

from training.matching import Segment
from training.world.grammar import FIRST_OBJECT_CLASS, KINDS, Group, Spec, say

Hole = NDArray[np.bool_]

_SHAPES, _SHAPE_SHARES = ("around", "box", "oval", "strokes", "all"), (0.5, 0.18, 0.12, 0.16, 0.04)
_LEAST_AREA, _MOST_AREA = 0.1, 0.7
_MARGIN_PX = (3.0, 26.0)
_INSIDE = 0.6
"""Least part of a thing in the hole for the hole to be about it."""
_BARE = 0.4
"""Share of requests that name the thing and not where it is."""


def draw_hole(objects: list[Segment], side_px: int, rng: np.random.Generator) -> Hole:
    """A hole in a picture of `side_px` squared that holds `objects`, of a tenth to seven tenths or of all."""
    shape = str(rng.choice(_SHAPES, p=_SHAPE_SHARES))
    if shape == "all":
        return np.ones((side_px, side_px), np.bool_)
    if shape == "strokes":
        return _strokes(side_px, rng)
    around = shape == "around" and len(objects) > 0
    box = _around(objects, side_px, rng) if around else _anywhere(side_px, rng)
    return (
        _oval(box, side_px) if shape == "oval" or (around and rng.random() < 0.3) else _filled(box, side_px)
    )


def _anywhere(side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(left, top, right, bottom) of a box that may reach over the edges of the picture."""
    area = rng.uniform(_LEAST_AREA, _MOST_AREA)
    aspect = np.exp(rng.uniform(-0.6, 0.6))
    size = np.minimum(side_px * np.sqrt([area * aspect, area / aspect]), side_px)
    corner = rng.uniform(-0.1, 1.1, 2) * (side_px - size)
    return np.concatenate([corner, corner + size])


def _around(objects: list[Segment], side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A box around one of the objects, with a margin on each side and at least the least area."""
    box = _box(objects[rng.integers(len(objects))][1], rng.uniform(*_MARGIN_PX, 4))
    lacking = max(0.0, np.sqrt(_LEAST_AREA) * side_px - np.sqrt(np.prod(box[2:] - box[:2])))
    slide = rng.random(2) * lacking
    around: NDArray[np.float64] = box + np.concatenate([-slide, lacking - slide])
    return around


def _filled(box: NDArray[np.float64], side_px: int) -> Hole:
    left, top, right, bottom = np.clip(np.round(box), 0, side_px).astype(int)
    hole = np.zeros((side_px, side_px), np.bool_)
    hole[top:bottom, left:right] = True
    return hole


def _oval(box: NDArray[np.float64], side_px: int) -> Hole:
    """An ellipse a little larger than the one in the box, so that a thing keeps most of its corners."""
    centre, radii = (box[:2] + box[2:]) / 2, 0.58 * (box[2:] - box[:2])
    rows, columns = np.mgrid[:side_px, :side_px] + 0.5
    hole: Hole = ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1
    return hole


def _strokes(side_px: int, rng: np.random.Generator) -> Hole:
    """Thick strokes of a brush that wanders, until they cover enough."""
    hole = np.zeros((side_px, side_px), np.uint8)
    wanted = rng.uniform(_LEAST_AREA, 0.5)
    while hole.mean() < wanted:
        place, heading = rng.uniform(0, side_px, 2), rng.uniform(0, 2 * np.pi)
        width = int(rng.integers(6, 28))
        for _ in range(int(rng.integers(2, 7))):
            heading += rng.normal(0, 0.7)
            after = place + rng.uniform(8, 36) * np.array([np.cos(heading), np.sin(heading)])
            cv2.line(hole, place.astype(int).tolist(), after.astype(int).tolist(), 1, width)
            place = np.clip(after, 0, side_px)
    return hole.astype(np.bool_)


def around(mask: NDArray[np.bool_], margin_px: float) -> Hole:
    """A hole of the box around a mask with a margin on all sides."""
    return _filled(_box(mask, np.full(4, margin_px)), mask.shape[0])


def _box(mask: NDArray[np.bool_], margins_px: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
    return box + margins_px * [-1, -1, 1, 1]


def inside(hole: Hole, objects: list[Segment]) -> Counter[str]:
    """How many things of each kind lie in the hole for the most part."""
    return Counter(
        KINDS[name - FIRST_OBJECT_CLASS] for name, mask in objects if mask[hole].sum() >= _INSIDE * mask.sum()
    )


def request(spec: Spec, counts: Counter[str], rng: np.random.Generator) -> str:
    """What to draw in a hole that holds `counts` of the scene's things: them, or else the place alone."""
    groups = tuple(
        Group(
            kind=group.kind,
            count=counts[group.kind],
            colour=group.colour,
            size=group.size,
            position=group.position if counts[group.kind] == 1 else "",
        )
        for group in spec.groups
        if counts[group.kind]
    )
    asked = Spec(terrain=spec.terrain, time=spec.time, mountains=spec.mountains, groups=groups)
    return say(asked, rng, place=not groups or rng.random() >= _BARE)
