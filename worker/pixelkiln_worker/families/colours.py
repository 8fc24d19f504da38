"""Names for colours and a palette of a picture: what the k-means method speaks.

Names follow lightness, chroma and hue angle of CIELAB (CIE 1976); the borders were set by eye on photographs.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelkiln_worker.families.regions import Lab
from pixelkiln_worker.families.segments import Labels

_GREY_CHROMA = 9.0
_GREYS = ((18, "black"), (40, "dark grey"), (66, "grey"), (88, "light grey"), (101, "white"))
_HUES = (  # upper end of the hue angle in degrees; red wraps round
    (18, "pink"),
    (46, "red"),
    (78, "orange"),
    (108, "yellow"),
    (168, "green"),
    (225, "teal"),
    (308, "blue"),
    (328, "purple"),
    (361, "pink"),
)
_SHADES = ("dark ", "", "light ")
_BROWN_BELOW_L = 62

NAMES: tuple[str, ...] = (
    *(name for _, name in _GREYS),
    *(shade + hue for hue in dict.fromkeys([*(name for _, name in _HUES), "brown"]) for shade in _SHADES),
)
"""Every name `name` can give; a name's place here, from 1, is its category."""


def name(lab: NDArray[np.floating]) -> str:
    """Return an everyday English name for one CIELAB colour (L in [0, 100])."""
    lightness, a, b = (float(value) for value in lab)
    chroma = math.hypot(a, b)
    if chroma < _GREY_CHROMA or lightness < 8:
        return next(grey for limit, grey in _GREYS if lightness < limit)
    angle = math.degrees(math.atan2(b, a)) % 360
    hue = next(hue for limit, hue in _HUES if angle < limit)
    if hue in {"orange", "yellow", "red"} and chroma < 52 and lightness < _BROWN_BELOW_L and angle > 32:
        hue = "brown"
    if hue == "brown":
        return ("dark " if lightness < 28 else "light " if lightness > 50 else "") + hue
    return ("dark " if lightness < 36 else "light " if lightness > 74 else "") + hue


def palette(lab: Lab, colours: int, *, thumbnail_px: int = 256) -> NDArray[np.float32]:
    """Return at most `colours` CIELAB colours (K, 3) of the picture, by k-means on a thumbnail.

    A picture of fewer different colours gives fewer. Deterministic.
    """
    scale = min(1.0, thumbnail_px / max(lab.shape[:2]))
    size = (max(1, round(lab.shape[1] * scale)), max(1, round(lab.shape[0] * scale)))
    samples = np.asarray(cv2.resize(lab, size, interpolation=cv2.INTER_AREA), np.float32).reshape(-1, 3)
    different = len(np.unique(samples.round(), axis=0))
    cv2.setRNGSeed(1)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 0.2)
    count = min(colours, different)
    if count == 1:
        return np.asarray(samples.mean(0, keepdims=True), np.float32)
    _, _, centres = cv2.kmeans(samples, count, None, criteria, 3, cv2.KMEANS_PP_CENTERS)
    return np.asarray(centres, np.float32)


def nearest(lab: Lab, colours: NDArray[np.float32]) -> Labels:
    """Return the index (HW) of the palette colour nearest to each pixel."""
    return np.stack([_nearest_row(row, colours) for row in lab])


def _nearest_row(row: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.intp]:
    # |p - c|^2 without |p|^2, which is the same for every colour
    return np.asarray(np.argmin(np.square(colours).sum(-1) - 2 * row @ colours.T, axis=-1))
