"""What a mask means to a picture: which cells of the latents are drawn anew, and how the new joins the old.

Pixels outside the mask are never touched. Inside, three things make the seam disappear. Whole cells are
redrawn. While the noise is strong the outermost cells stay, so that the layout keeps clear of the edge (a
change map of two levels, in the words of Levin and Fried, Differential Diffusion, arXiv 2306.00950). At the
end the new pixels are shifted, smoothly, to the tone of the old ones at the edge (the membrane of Perez et
al., Poisson Image Editing, 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixelkiln_worker.families.contract import Pixels

_DARKEST = 32  # of 255: what is lighter, in any channel, is drawn anew
_RIM_PX = 3  # width of the strip outside the mask by which the tone is matched
_FEATHER_PX = 3.0
_MOST_SHIFT = 40.0  # of 255: a larger difference is no tone but a thing that reaches over the edge
_LEAST_CELLS = 4

Mask = NDArray[np.bool_]


def mask_of(picture: Pixels, width: int, height: int) -> Mask:
    """Return what is drawn anew, HW at the given size in pixels, from a mask picture of any size."""
    flat = picture.max(axis=2) if picture.ndim == 3 else picture
    marked = (flat >= _DARKEST).astype(np.float32)
    if marked.shape != (height, width):
        shrinks = marked.size > width * height
        marked = cv2.resize(
            marked, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        )
    return np.asarray(marked > 0)  # a pixel that the mask only touches is drawn anew too


def fitted(picture: Pixels, width: int, height: int) -> Pixels:
    """Return an RGB picture at the given size in pixels."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = picture.shape[0] * picture.shape[1] > width * height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


class Cells:
    """The masks of a pass in the latents of a pipeline: (rows, 1, H / factor, W / factor)."""

    def __init__(self, masks: Sequence[Mask], factor: int) -> None:
        stack = torch.from_numpy(np.stack(masks)).float().unsqueeze(1)
        self._factor = factor
        self.all = torch.nn.functional.max_pool2d(stack, factor, ceil_mode=True)
        self.inner = torch.stack([_inner(cells) for cells in self.all])

    def pictures(self, cells: torch.Tensor) -> list[Image.Image]:
        """Return masks at the size of the pictures, as pipelines take them: white is drawn anew."""
        large = cells.repeat_interleave(self._factor, 2).repeat_interleave(self._factor, 3)
        return [Image.fromarray((one[0] * 255).byte().numpy()) for one in large]

    def like(self, mask: torch.Tensor) -> torch.Tensor:
        """Return all cells, in the pipeline's own form: doubled where guidance doubles the rows."""
        cells = self.all.repeat(mask.shape[0] // len(self.all), 1, 1, 1)
        return cells.to(mask)


def _inner(cells: torch.Tensor) -> torch.Tensor:
    """Return the cells (1, h, w) without their outermost, or all where too few would be left."""
    outside = torch.nn.functional.pad(1 - cells, (1, 1, 1, 1))  # beyond the picture there is nothing to keep
    inner = 1 - torch.nn.functional.max_pool2d(outside, 3, 1)
    return inner if inner.sum() >= _LEAST_CELLS else cells


def joined(drawn: NDArray[Any], picture: Pixels, mask: Mask) -> NDArray[np.floating]:
    """Put the newly drawn pixels into the picture; those outside the mask stay bit by bit.

    Args:
        drawn: HWC in [0, 1], all of the picture drawn anew.
        picture: HWC uint8, the old one.
        mask: HW, true where the new counts.
    """
    old = picture.astype(np.float32)
    new = cv2.resize(np.asarray(drawn, np.float32) * 255, old.shape[1::-1])  # as it is, where sizes agree
    if not mask.all() and mask.any():
        new += _tone_shift(old - new, mask)
    # beyond the picture's edge there is nothing to blend with
    distance = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 3)[
        1:-1, 1:-1
    ]
    share = np.clip(distance / _FEATHER_PX, 0, 1)[..., None]
    return np.where(mask[..., None], share * new + (1 - share) * old, old) / 255


def _tone_shift(difference: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Return, for all pixels, the difference found on the rim outside the mask, spread smoothly inwards."""
    width = 2 * _RIM_PX + 1
    rim = (cv2.dilate(mask.astype(np.uint8), np.ones((width, width), np.uint8)) > 0) & ~mask
    weight = rim.astype(np.float32)
    value = np.clip(difference, -_MOST_SHIFT, _MOST_SHIFT) * weight[..., None]
    return _spread(value, weight)


def _spread(value: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill what has no weight from what has, by means over ever larger squares (pull and push).

    Gortler et al., The Lumigraph, 1996, section 3.4.
    """
    height, width = weight.shape
    if height <= 2 or width <= 2:
        total = max(float(weight.sum()), 1e-6)
        return np.broadcast_to(value.sum((0, 1)) / total, value.shape).astype(np.float32)
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse = _spread(
        cv2.resize(value, half, interpolation=cv2.INTER_AREA),
        cv2.resize(weight, half, interpolation=cv2.INTER_AREA),
    )
    below = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    own = np.clip(weight * 4, 0, 1)[..., None]  # a few known pixels are as good as all
    known = value / np.maximum(weight, 1e-6)[..., None]
    return np.asarray(own * known + (1 - own) * below, np.float32)
