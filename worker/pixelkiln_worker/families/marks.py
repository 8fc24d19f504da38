"""Points and boxes: what a job marks on its picture, and which of the marks show the same object.

Boxes are XYXY and points XY, in pixels of the upright picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pixelkiln_shared.errors import InvalidInput
from pixelkiln_shared.kinds import Box, Point


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What shows one object: a box, points, or both."""

    box: Box | None = None
    points: tuple[Point, ...] = ()


def inside(boxes: Sequence[Box], points: Sequence[Point], width: int, height: int) -> list[Box]:
    """Return the boxes, cut off where the picture of `width` x `height` pixels ends.

    Raises:
        InvalidInput: a mark lies outside the picture.
    """
    if any(box.x0 >= width or box.y0 >= height for box in boxes):
        raise _wrong(f"a box lies outside the picture of {width} x {height}", "/input/boxes")
    if any(point.x >= width or point.y >= height for point in points):
        raise _wrong(f"a point lies outside the picture of {width} x {height}", "/input/points")
    return [Box(x0=b.x0, y0=b.y0, x1=min(b.x1, width), y1=min(b.y1, height)) for b in boxes]


def group_marks(boxes: Sequence[Box], points: Sequence[Point], margin: float) -> list[Marks]:
    """Make one object of each box, with the points in it; points in no box make one object together.

    Args:
        boxes: one for each object.
        points: of any object.
        margin: how far around a box its points may lie, as a share of its size.

    Raises:
        InvalidInput: no box, and no point on an object.
    """
    marks = [Marks(box=box, points=tuple(p for p in points if _near(p, box, margin))) for box in boxes]
    free = tuple(p for p in points if not any(_near(p, box, margin) for box in boxes))
    if any(point.positive for point in free):
        marks.append(Marks(points=free))
    if not marks:
        raise _wrong("mark the object: a box around it, or a point on it", "/input")
    return marks


def _near(point: Point, box: Box, margin: float) -> bool:
    across, down = (box.x1 - box.x0) * margin, (box.y1 - box.y0) * margin
    return box.x0 - across <= point.x < box.x1 + across and box.y0 - down <= point.y < box.y1 + down


def _wrong(message: str, pointer: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_region", pointer=pointer)
