"""The seven kinds of object, each a few shapes standing on (x, y) with height h, in unit coordinates."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.world.drawing import Canvas, Mark, Paint, arc

RGB = {
    "red": (218, 48, 46),
    "orange": (242, 140, 36),
    "yellow": (250, 208, 52),
    "green": (58, 166, 76),
    "blue": (48, 106, 224),
    "purple": (144, 76, 198),
    "pink": (246, 128, 184),
    "white": (244, 244, 244),
}
HEIGHT = {
    "house": 0.40,
    "tree": 0.44,
    "cactus": 0.40,
    "flower": 0.42,
    "car": 0.22,
    "boat": 0.42,
    "balloon": 0.40,
}
"""Height of a single object in picture heights."""
HALF_WIDTH = {
    "house": 0.60,
    "tree": 0.42,
    "cactus": 0.38,
    "flower": 0.34,
    "car": 1.06,
    "boat": 0.56,
    "balloon": 0.37,
}
"""Half the width of each kind, in its own heights."""

_NIGHT_WINDOW = (255, 226, 120)


@dataclass(frozen=True, kw_only=True)
class Brush:
    """Where and how one object is drawn."""

    canvas: Canvas
    x: float
    y: float
    h: float
    colour: tuple[int, int, int]
    light: tuple[float, float, float]
    mark: Mark
    night: bool

    def paint(
        self, colour: ArrayLike, shade: float = 0.25, *, lit: bool = True, vertical: bool = False
    ) -> Paint:
        return Paint(colour=colour, shade=shade, light=self.light if lit else (1, 1, 1), vertical=vertical)

    def at(self, right: float, up: float) -> tuple[float, float]:
        """The canvas point `right` and `up` object heights away from the foot."""
        return self.x + right * self.h, self.y - up * self.h

    def shape(self, points: list[tuple[float, float]], paint: Paint) -> None:
        self.canvas.polygon([self.at(*point) for point in points], paint, self.mark)

    def box(self, left: float, top: float, right: float, bottom: float, paint: Paint) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], paint)

    def disc(self, right: float, up: float, radius: float, paint: Paint, flat: float = 1.0) -> None:
        radii = (radius * self.h, radius * self.h * flat)
        self.canvas.ellipse(self.at(right, up), radii, paint, self.mark)

    def shadow(self, width: float) -> None:
        """A soft ground shadow, `width` object heights wide; it stays ground in the class map."""
        radii = (width * self.h * 0.6, width * self.h * 0.12)
        paint = Paint(colour=(18, 24, 34), shade=0, alpha=0.26)
        self.canvas.ellipse((self.x + width * self.h * 0.1, self.y), radii, paint)


def _house(b: Brush) -> None:
    b.shadow(0.95)
    warm_wall = b.colour[0] > b.colour[2] + 40
    roof = (92, 72, 92) if warm_wall else (132, 62, 48)
    b.box(0.16, 0.92, 0.29, 0.6, b.paint((120, 84, 70)))
    b.box(-0.475, 0.58, 0.475, 0.0, b.paint(b.colour))
    b.shape([(-0.6, 0.55), (0, 1.0), (0.6, 0.55)], b.paint(roof))
    b.box(-0.09, 0.31, 0.09, 0.0, b.paint((84, 52, 36)))
    window = b.paint(_NIGHT_WINDOW if b.night else (200, 228, 246), 0, lit=not b.night)
    for side in (-0.3, 0.3):
        b.box(side - 0.1, 0.45, side + 0.1, 0.23, window)


def _tree(b: Brush) -> None:
    b.shadow(0.55)
    b.shape([(-0.07, 0), (-0.045, 0.5), (0.045, 0.5), (0.07, 0)], b.paint((112, 76, 48)))
    colour = np.asarray(b.colour)
    for right, up, radius, tone in (
        (-0.2, 0.5, 0.2, 0.9),
        (0.2, 0.52, 0.2, 0.86),
        (0, 0.72, 0.28, 1),
        (0, 0.5, 0.22, 0.95),
    ):
        b.disc(right, up, radius, b.paint(colour * tone, 0.3))


def _cactus(b: Brush) -> None:
    b.shadow(0.4)
    green = b.paint((52, 146, 82), 0.35)
    for side, low, high in ((-1, 0.36, 0.62), (1, 0.46, 0.74)):
        b.box(min(0, side * 0.27), low + 0.07, max(0, side * 0.27), low - 0.07, green)
        b.disc(side * 0.27, low, 0.075, green)
        b.box(side * 0.27 - 0.075, high, side * 0.27 + 0.075, low, green)
        b.disc(side * 0.27, high, 0.075, green)
    b.box(-0.115, 0.885, 0.115, 0.0, green)
    b.disc(0, 0.885, 0.115, green)


def _flower(b: Brush) -> None:
    b.box(-0.035, 0.6, 0.035, 0, b.paint((50, 132, 52)))
    for side, up in ((-0.15, 0.18), (0.15, 0.24)):
        b.disc(side, up, 0.15, b.paint((60, 152, 62)), flat=0.45)
    for petal in range(5):
        angle = 2 * np.pi * petal / 5 + 0.3
        b.disc(0.19 * np.sin(angle), 0.67 + 0.19 * np.cos(angle), 0.155, b.paint(b.colour, 0.12))
    heart = (150, 84, 30) if b.colour == RGB["yellow"] else (252, 196, 48)
    b.disc(0, 0.67, 0.12, b.paint(heart))


def _car(b: Brush) -> None:
    b.shadow(1.9)
    glass = b.paint((196, 226, 242))
    b.shape([(-0.62, 0.5), (-0.38, 1), (0.36, 1), (0.64, 0.5)], b.paint(b.colour))
    b.shape([(-0.48, 0.54), (-0.31, 0.88), (-0.04, 0.88), (-0.04, 0.54)], glass)
    b.shape([(0.06, 0.54), (0.06, 0.88), (0.31, 0.88), (0.49, 0.54)], glass)
    b.shape([(-1.05, 0.18), (-1.02, 0.52), (0.86, 0.55), (1.05, 0.42), (1.05, 0.18)], b.paint(b.colour))
    for side in (-0.57, 0.57):
        b.disc(side, 0.2, 0.23, b.paint((38, 38, 44)))
        b.disc(side, 0.2, 0.1, b.paint((198, 198, 204)))
    if b.night:
        b.disc(0.98, 0.38, 0.1, b.paint((255, 240, 160), 0, lit=False))


def _boat(b: Brush) -> None:
    b.canvas.ellipse((b.x, b.y), (b.h * 0.58, b.h * 0.05), Paint(colour=(235, 245, 255), shade=0, alpha=0.4))
    b.box(-0.025, 1.0, 0.025, 0.15, b.paint((110, 76, 50)))
    b.shape([(0.04, 0.97), (0.46, 0.26), (0.04, 0.26)], b.paint(b.colour))
    b.shape([(-0.04, 0.88), (-0.36, 0.26), (-0.04, 0.26)], b.paint(np.asarray(b.colour) * 0.9))
    b.shape([(-0.5, 0.23), (0.54, 0.23), (0.35, -0.02), (-0.35, -0.02)], b.paint((126, 78, 48)))


def _envelope(b: Brush, width: float, foot: float) -> list[tuple[float, float]]:
    """Outline of a balloon's bag, `width` of its full radius, narrowing to `foot` below."""
    radius, middle = 0.36, 0.62
    rim = arc((0, 0), (radius * width, radius), np.pi * 0.88, np.pi * 2.12)
    outline = [(float(right), middle - float(down)) for right, down in rim]
    return [*outline, (foot, middle - radius * 1.2), (-foot, middle - radius * 1.2)]


def _balloon(b: Brush) -> None:
    b.box(-0.09, 0.2, 0.09, 0, b.paint((148, 98, 56)))
    b.shape(_envelope(b, 1.0, 0.1), b.paint(b.colour, 0.3))
    pale = np.asarray(b.colour) * 0.6 + 255 * 0.4
    b.shape(_envelope(b, 0.36, 0.03), b.paint(pale, 0.15))


SPRITES: dict[str, Callable[[Brush], None]] = {
    "house": _house,
    "tree": _tree,
    "cactus": _cactus,
    "flower": _flower,
    "car": _car,
    "boat": _boat,
    "balloon": _balloon,
}
