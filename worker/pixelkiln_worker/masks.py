"""Results to look at: the coloured overlay of a segmentation, its cut-outs, a depth map in colours."""

from __future__ import annotations

import colorsys
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelkiln_worker.annotations import Region
from pixelkiln_worker.families.contract import Pixels, Segment, Segmentation

OVERLAY_PX = 2_048
"""Longest side of an overlay: it is for the eye, the mask is the result."""
MAX_CUTOUTS = 5

_FILL = 0.5
_DIM = 0.55  # of the brightness of what no segment covers
_GOLDEN = 0.61803398875
_FEATHER = 0.8  # standard deviation in pixels of a cut-out's edge
_SPECK_SHARE = 0.002
_CLEAR_SHARE = 0.02  # of the frame's pixels: a thing may graze the frame
_FRAME_SHARE = 0.3


def overlay(image: Pixels, ids: NDArray[np.uint16]) -> Pixels:
    """Return the picture with each segment tinted and outlined, and the rest dimmed; HWC RGB uint8.

    Neighbouring numbers get colours far apart. Larger pictures are shrunk to `OVERLAY_PX`.
    """
    image, ids = _shrunk(image, ids)
    colours = segment_colours()[(ids - 1) % len(segment_colours())]
    tinted = cv2.addWeighted(image, 1 - _FILL, colours, _FILL, 0)
    dimmed = cv2.convertScaleAbs(image, alpha=_DIM)
    covered = (ids > 0)[..., None]
    shown = np.where(covered, tinted, dimmed)
    line = _outlines(ids, thick=max(image.shape) >= 512)
    bright = cv2.addWeighted(colours, 0.55, np.full_like(colours, 255), 0.45, 0)
    drawn: Pixels = np.where((line & (ids > 0))[..., None], bright, shown)
    return drawn


def _shrunk(image: Pixels, ids: NDArray[np.uint16]) -> tuple[Pixels, NDArray[np.uint16]]:
    height, width = ids.shape
    scale = OVERLAY_PX / max(height, width)
    if scale >= 1:
        return image, ids
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.asarray(cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST))


def _outlines(ids: NDArray[np.uint16], *, thick: bool) -> NDArray[np.bool_]:
    """Return where a pixel's right or lower neighbour is of another segment; two pixels wide if thick."""
    line = np.zeros(ids.shape, bool)
    line[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    line[:-1] |= ids[:-1] != ids[1:]
    if thick:
        line[:, 1:] |= ids[:, :-1] != ids[:, 1:]
        line[1:] |= ids[:-1] != ids[1:]
    return line


@cache
def segment_colours() -> Pixels:
    """Return 256 vivid RGB colours, (256, 3): hues a golden section apart, in three tones."""
    tones = ((0.75, 1.0), (0.9, 0.82), (0.55, 1.0))
    vivid = [colorsys.hsv_to_rgb((0.58 + n * _GOLDEN) % 1, *tones[n % len(tones)]) for n in range(256)]
    return (np.array(vivid) * 255).round().astype(np.uint8)


def selected(
    found: Segmentation, places: dict[int, Region], *, asked: bool
) -> tuple[tuple[Segment, ...], ...]:
    """Return which segments are cut out together, a tuple a picture.

    Args:
        found: the segmentation.
        places: the region of each segment.
        asked: whether the job named what it wants (labels, boxes, points): then each segment is a picture of
            its own, the largest `MAX_CUTOUTS`. Otherwise one picture shows the foreground: all segments that
            at most graze the picture's frame and are no specks; with none such, the largest segment that
            holds only a small part of the frame.
    """
    there = sorted((s for s in found.segments if s.id in places), key=lambda s: -places[s.id].area_px)
    if asked:
        return tuple((segment,) for segment in there[:MAX_CUTOUTS])
    held = _frame_share(found.ids)
    least_px = _SPECK_SHARE * found.ids.size
    clear = (s for s in there if held.get(s.id, 0.0) <= _CLEAR_SHARE)
    whole = tuple(s for s in clear if places[s.id].area_px >= least_px)
    if whole:
        return (whole,)
    partly = (s for s in there if held.get(s.id, 0.0) <= _FRAME_SHARE)
    return tuple((segment,) for segment in partly)[:1]


def _frame_share(ids: NDArray[np.uint16]) -> dict[int, float]:
    """Return which part of the outermost pixels each segment holds, 0 to 1; one that holds none is absent."""
    frame = np.concatenate((ids[0], ids[-1], ids[:, 0], ids[:, -1]))
    numbers, counts = np.unique(frame, return_counts=True)
    return dict(zip(numbers.tolist(), (counts / frame.size).tolist(), strict=True))


def cutout(image: Pixels, ids: NDArray[np.uint16], segments: tuple[Segment, ...]) -> Pixels:
    """Return the picture with only those segments, HWC RGBA uint8; edges fade over a pixel, the rest is 0."""
    mask = np.isin(ids, [segment.id for segment in segments]).astype(np.uint8) * 255
    alpha = np.minimum(mask, cv2.GaussianBlur(mask, (0, 0), _FEATHER, borderType=cv2.BORDER_REPLICATE))
    cut = np.empty((*ids.shape, 4), np.uint8)
    cut[..., :3] = np.where(alpha[..., None] > 0, image, 0)
    cut[..., 3] = alpha
    return cut


def depth_colours(depth: NDArray[np.float32]) -> Pixels:
    """Return a HW depth map in [0, 1] in the Inferno colours, near bright and far dark; HWC RGB uint8.

    The map's own range is stretched over the colours.
    """
    low, high = float(depth.min()), float(depth.max())
    stretched = (depth - low) / max(high - low, 1e-6)
    coloured = cv2.applyColorMap((stretched * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(coloured[..., ::-1], np.uint8)
