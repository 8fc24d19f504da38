"""A picture for two eyes from one picture and its depth: forward warping, both views, and an anaglyph.

Each view moves a pixel by half its disparity; the far plane stays where it is, what is near stands before it.
Pictures are HWC RGB uint8; depth is HW float32 in [0, 1], 0 the farthest. Pure numpy and OpenCV.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelkiln_worker.families.contract import Pixels

_MEDIAN_PX = 5
_EDGE = 0.06
"""Depth steps above this within a few pixels are the outline of something, not a slope."""
_OUTLINE_PX = 3
_LEVELS = 65_535
_LINEAR_LEVELS = 4_095

# E. Dubois, "A projection method to generate anaglyph stereo images", ICASSP 2001: red-cyan filters, least
# squares in linear light; rows are the red, green and blue that are shown, columns those of the view.
_LEFT_EYE = ((0.456, 0.500, 0.176), (-0.040, -0.038, -0.016), (-0.015, -0.021, -0.005))
_RIGHT_EYE = ((-0.043, -0.088, -0.002), (0.378, 0.734, -0.018), (-0.072, -0.113, 1.226))

Map = NDArray[np.float32]


def views(image: Pixels, depth: Map, disparity_px: float) -> tuple[Pixels, Pixels]:
    """Return what the left and the right eye see.

    Args:
        image: the picture, seen from between the eyes.
        depth: its depth, of the same size.
        disparity_px: how far apart the two views show what is nearest (depth 1).
    """
    nearness = clean(depth)
    half = nearness * np.float32(disparity_px / 2)
    left = _view(image, half)
    right = _view(image[:, ::-1], half[:, ::-1])[:, ::-1]
    return left, np.ascontiguousarray(right)


def clean(depth: Map) -> Map:
    """Return the depth with noise taken out and outlines made hard, so that edges neither fray nor stretch.

    Networks draw an outline as a ramp of some pixels; each pixel of a ramp goes to the nearer or the farther
    side, whichever it resembles (the morphological toggle of Kramer and Bruckner, 1975). Things grow by a
    pixel, so that the mixed colours of their edge go with them.
    """
    calm = np.asarray(cv2.medianBlur(np.ascontiguousarray(depth, np.float32), _MEDIAN_PX))
    around = np.ones((2 * _OUTLINE_PX + 1,) * 2, np.uint8)
    near, far = cv2.dilate(calm, around), cv2.erode(calm, around)
    sides = np.where(near - calm <= calm - far, near, far)
    hard = np.where(near - far > _EDGE, sides, calm)
    return np.asarray(np.maximum(hard, cv2.dilate(hard, np.ones((3, 3), np.uint8)) * (near - far > _EDGE)))


def _view(image: Pixels, shift: Map) -> Pixels:
    """Return the picture with each pixel moved to the right by `shift` pixels, the nearest on top."""
    moved, known = _warped(shift)
    filled, edge = _far_side(moved, known)
    columns = np.arange(shift.shape[1], dtype=np.float32)
    source = np.where(known, columns - filled, 2 * edge - columns - filled)  # holes mirror what lies beside
    source = _unless_nearer(source, shift, filled, edge - filled, ~known)
    rows = np.broadcast_to(np.arange(shift.shape[0], dtype=np.float32)[:, None], shift.shape)
    drawn = cv2.remap(
        np.ascontiguousarray(image),
        np.ascontiguousarray(source, np.float32),
        np.ascontiguousarray(rows),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(drawn, np.uint8)


def _warped(shift: Map) -> tuple[Map, NDArray[np.bool_]]:
    """Return the shift of what is seen at each pixel of the view, and where anything is seen at all."""
    height, width = shift.shape
    scale = _LEVELS / max(float(shift.max()), 1e-6)
    order = np.argsort((shift * scale).astype(np.uint16), axis=None, kind="stable")  # the far first
    target = np.arange(width) + np.rint(shift).astype(np.intp)
    inside = target < width
    place = (target + np.arange(height)[:, None] * width).ravel()[order]
    seen = order[inside.ravel()[order]]
    moved = np.full(height * width, -1, np.float32)
    moved[place[inside.ravel()[order]]] = shift.ravel()[seen]  # of equal places the last one stays
    moved = moved.reshape(height, width)
    return moved, moved >= 0


def _far_side(moved: Map, known: NDArray[np.bool_]) -> tuple[Map, Map]:
    """Return the shifts, holes filled from their farther side, and the column where that side ends."""
    width = moved.shape[1]
    columns = np.arange(width)
    before = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1]
    left = np.take_along_axis(moved, before.clip(0), axis=1)
    right = np.take_along_axis(moved, after.clip(max=width - 1), axis=1)
    none = np.float32(np.inf)
    left, right = np.where(before < 0, none, left), np.where(after >= width, none, right)
    from_left = left <= right
    filled = np.where(from_left, left, right)
    edge = np.where(from_left, before, after).astype(np.float32)
    return np.where(np.isfinite(filled), filled, 0).astype(np.float32), edge


def _unless_nearer(source: Map, shift: Map, filled: Map, edge: Map, holes: NDArray[np.bool_]) -> Map:
    """Where a mirrored column lies on something nearer than the hole's side, take the side's last pixel."""
    width = shift.shape[1]
    rows, columns = np.nonzero(holes)
    there = shift[rows, np.rint(source[rows, columns]).astype(np.intp).clip(0, width - 1)]
    nearer = np.abs(there - filled[rows, columns]) > 1
    source[rows[nearer], columns[nearer]] = edge[rows[nearer], columns[nearer]]
    return source


def side_by_side(left: Pixels, right: Pixels) -> Pixels:
    """Return both views beside each other, for parallel viewing: the left one on the left."""
    return np.ascontiguousarray(np.hstack([left, right]))


def anaglyph(left: Pixels, right: Pixels) -> Pixels:
    """Return one picture for red-cyan glasses, the red filter before the left eye (Dubois, 2001)."""
    linear, shown = _to_linear(), _to_shown()
    mixed = cv2.transform(cv2.LUT(left, linear), np.array(_LEFT_EYE, np.float32))
    mixed += cv2.transform(cv2.LUT(right, linear), np.array(_RIGHT_EYE, np.float32))
    return np.asarray(shown[(mixed.clip(0, 1) * _LINEAR_LEVELS + 0.5).astype(np.uint16)])


@cache
def _to_linear() -> Map:
    """Linear light of the 256 values of sRGB (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(light, np.float32)


@cache
def _to_shown() -> Pixels:
    """The sRGB value of each level of linear light."""
    light = np.arange(_LINEAR_LEVELS + 1) / _LINEAR_LEVELS
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(value * 255), np.uint8)
