"""A canvas that paints anti-aliased shapes and keeps the exact class, instance and depth of every pixel."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.world.grammar import CLASSES

cv2.setNumThreads(1)  # one process draws per core; OpenCV's own threads only fight over them

Floats = NDArray[np.float32]
_SUBPIXEL_BITS = 4


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a painted pixel is: a class name, an instance id (0 for none) and a depth in [0, 1], 1 nearest."""

    name: str
    instance: int = 0
    depth: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How a shape is filled: RGB in [0, 255], `shade` its fall from lit to dark side, `light` a tint."""

    colour: ArrayLike
    shade: float = 0.25
    light: ArrayLike = (1.0, 1.0, 1.0)
    alpha: float = 1.0
    vertical: bool = False

    def fill(self, height: int, width: int) -> Floats:
        """The colour of a height x width box, broadcastable to HWC float32."""
        colour = np.asarray(self.colour, np.float32) * np.asarray(self.light, np.float32)
        steps = height if self.vertical else width
        ramp = np.linspace(1 + 0.6 * self.shade, 1 - self.shade, steps, dtype=np.float32)
        return colour * (ramp[:, None, None] if self.vertical else ramp[None, :, None])


class Canvas:
    """Square picture in unit coordinates, (0, 0) top left and (1, 1) bottom right.

    `image` is HWC float32 RGB in [0, 255]; `classes` and `instances` are HW uint8; `depth` is HW float32 in
    [0, 1].
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.image: Floats = np.zeros((size_px, size_px, 3), np.float32)
        self.classes = np.zeros((size_px, size_px), np.uint8)
        self.instances = np.zeros((size_px, size_px), np.uint8)
        self.depth: Floats = np.zeros((size_px, size_px), np.float32)

    def polygon(self, points: ArrayLike, paint: Paint, mark: Mark | None = None) -> None:
        """Fill the polygon of (n, 2) unit-coordinate `points`; without a `mark` only the colours change."""
        corners = np.asarray(points, np.float32) * self.size_px
        left, top = np.maximum(np.floor(corners.min(0)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, self.size_px)
        if right <= left or bottom <= top:
            return
        cover = np.zeros((bottom - top, right - left), np.uint8)
        fixed = np.round((corners - (left + 0.5, top + 0.5)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(cover, [fixed], (255,), cv2.LINE_AA, _SUBPIXEL_BITS)
        box = np.s_[top:bottom, left:right]
        weight = (cover.astype(np.float32) * (paint.alpha / 255.0))[..., None]
        self.image[box] += (paint.fill(bottom - top, right - left) - self.image[box]) * weight
        if mark is not None:
            self.stamp(box, cover > 127, mark)

    def stamp(self, box: tuple[slice, slice], inside: NDArray[np.bool_], mark: Mark) -> None:
        """Label the `inside` pixels of `box` with `mark`."""
        self.classes[box][inside] = CLASSES.index(mark.name)
        self.instances[box][inside] = mark.instance
        self.depth[box][inside] = mark.depth

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], paint: Paint, mark: Mark | None = None
    ) -> None:
        """Fill an axis-aligned ellipse."""
        self.polygon(arc(centre, radii), paint, mark)

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, paint: Paint, mark: Mark | None = None
    ) -> None:
        """Fill an axis-aligned rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], paint, mark)


def arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float = 0.0, stop: float = 2 * np.pi
) -> Floats:
    """Points, (n, 2), along an ellipse from angle `start` to `stop` (radians, clockwise from the right)."""
    angles = np.linspace(start, stop, 48, dtype=np.float32)
    return np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1)
