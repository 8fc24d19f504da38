"""From a rough foreground to a cut-out worth using: its edge brought to the picture's, its colours cleaned.

Alpha is HW float32 in [0, 1], 1 the foreground. Pictures are HWC RGB uint8.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelkiln_shared.kinds import Role
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels
from pixelkiln_worker.families.regions import to_lab
from pixelkiln_worker.families.segments import shrink

REFINE_PX = 1024
"""Longest side at which the edge follows the picture."""
_EPSILON = 1e-4
_FLAT = 2e-3
"""Variance of an alpha below which there is no edge to place."""
_SURE = 0.06
"""Alpha this close to 0 or 1 is taken for it: a faint veil is a fault of the filter, never a thing."""
_NEAR_PX = 12
"""How far, at `REFINE_PX`, the colours of an edge are looked for on either side of it."""
_BINS = 8
_NOTHING_SHARE = 1e-4

Alpha = NDArray[np.float32]


def refined(image: Pixels, rough: Alpha) -> Alpha:
    """Return the alpha at the picture's size, its edge where the picture's is.

    Args:
        image: the picture.
        rough: its alpha at any size, from a mask or a network's chances.
    """
    small = shrink(image, REFINE_PX)
    size = small.shape[1], small.shape[0]
    soft = np.asarray(cv2.resize(rough, size, interpolation=cv2.INTER_LINEAR), np.float32)
    radius = max(2, round(1.5 * size[0] / rough.shape[1]))
    guided = _guided_by_colour(small, soft, radius)
    full = cv2.resize(firm(guided), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(full, np.float32)


def _guided_by_colour(image: Pixels, soft: Alpha, radius_px: int) -> Alpha:
    """Filter by L, a and b, each where it tells the edge; where none does, leave the alpha as it is.

    The guided filter of He, Sun and Tang (ECCV 2010) for each channel, weighed by how much it explains.
    """
    side = (2 * radius_px + 1, 2 * radius_px + 1)
    lab = to_lab(image) / np.float32(100)
    mean_soft = cv2.blur(soft, side)
    spread = cv2.blur(soft * soft, side) - mean_soft * mean_soft
    total, weights = np.zeros_like(soft), np.full_like(soft, 1e-6)
    told = np.zeros_like(soft)
    for channel in range(3):
        guide = np.ascontiguousarray(lab[..., channel])
        mean = cv2.blur(guide, side)
        variance = cv2.blur(guide * guide, side) - mean * mean
        covariance = cv2.blur(guide * soft, side) - mean * mean_soft
        slope = covariance / (variance + np.float32(_EPSILON))
        share = (slope * covariance / (spread + np.float32(_FLAT))).clip(0, 1)  # of the edge, that it tells
        line = cv2.blur(slope, side) * guide + cv2.blur(mean_soft - slope * mean, side)
        total += share**4 * line
        weights += share**4
        told = np.maximum(told, np.sqrt(share))
    return np.asarray(told * (total / weights) + (1 - told) * soft, np.float32)


def firm(alpha: Alpha) -> Alpha:
    """Stretch an alpha a little, so that what is nearly 0 or 1 becomes it."""
    return np.asarray(((alpha - _SURE) / (1 - 2 * _SURE)).clip(0, 1), np.float32)


def cleaned(image: Pixels, alpha: Alpha) -> Pixels:
    """Return the picture with the background's colour taken out of its half-transparent pixels.

    Foreground and background beside the edge are estimated by blurring each by its own alpha, then what the
    mixture leaves over is given to the foreground (Forte, "Approximate fast foreground colour estimation",
    ICIP 2021). Pixels of alpha 0 become black.
    """
    height, width = alpha.shape
    small = shrink(image, REFINE_PX)
    size = small.shape[1], small.shape[0]
    weight = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA), np.float32)
    near, behind = _blurred(small, weight), _blurred(small, 1 - weight)
    rows, columns = np.nonzero((alpha > 0) & (alpha < 1))
    at = (rows * size[1] // height, columns * size[0] // width)
    share = alpha[rows, columns][:, None]
    mixed = share * near[at] + (1 - share) * behind[at]
    colours = near[at] + share * (image[rows, columns] - mixed)
    cut = np.where(alpha[..., None] > 0, image, 0).astype(np.uint8)
    cut[rows, columns] = np.rint(colours.clip(0, 255)).astype(np.uint8)
    return cut


def _blurred(image: Pixels, weight: Alpha) -> NDArray[np.float32]:
    """Return each pixel's surroundings in colour, weighted: HWC float32 in [0, 255]."""
    side = (2 * _NEAR_PX + 1, 2 * _NEAR_PX + 1)
    strong = weight**3  # hardly mixed pixels say more of the colour
    total = cv2.blur(image.astype(np.float32) * strong[..., None], side)
    colours: NDArray[np.float32] = total / (cv2.blur(strong, side)[..., None] + np.float32(1e-4))
    return colours


def outcome(image: Pixels, alpha: Alpha, detail: dict[str, Any]) -> Outcome:
    """Return the result of a cut-out job: the RGBA cut-out and its grey alpha; a warning when it is empty."""
    levels = np.rint(alpha * 255).astype(np.uint8)
    cut = np.dstack([cleaned(image, np.asarray(levels / np.float32(255), np.float32)), levels])
    share = float(alpha.mean())
    warnings: tuple[dict[str, str], ...] = ()
    if share < _NOTHING_SHARE or share > 1 - _NOTHING_SHARE:
        what = "no foreground" if share < 0.5 else "no background"
        warnings = ({"code": "nothing_found", "message": f"{what} was found in the picture"},)
    return Outcome(
        pictures=(Picture(pixels=cut, role=Role.CUTOUT), Picture(pixels=levels, role=Role.MASK)),
        detail={"foreground_share": round(share, 4)} | detail,
        warnings=warnings,
    )
