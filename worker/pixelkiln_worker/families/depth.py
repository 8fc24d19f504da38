"""Depth by any directory that transformers' `AutoModelForDepthEstimation` opens, and stereo pairs from it.

Networks answer in three ways, which the catalogue's `method` tells apart: `metric` (a distance, in metres as
a rule), `inverse` (the larger the nearer, without a unit), `nearness` (inverse, and already from 0 to 1).
Results are always 0 (farthest) to 1 (nearest) by inverse distance, which is what the eye's disparity follows.
Importing this module imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from transformers import AutoModelForDepthEstimation

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import stereo
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Task
from pixelkiln_worker.families.networks import Network, PictureModel, open_network, probe
from pixelkiln_worker.families.segments import shrink

WORK_PX = 1024
"""Longest side at which depth is estimated; larger pictures get it enlarged."""
METHODS = ("inverse", "metric", "nearness")
_METRIC_TYPES = ("glpn", "zoedepth", "depth_pro")
_DISPARITY = 0.03
_OUTLIERS = 0.005
"""Share of pixels at each end whose depth may lie outside the range that becomes 0 to 1."""
_FLAT = 1e-4
"""Below this range, as a share of the numbers themselves, a picture has no depth, only noise."""
_LEAST_DISTANCE = 1e-3

Map = NDArray[np.float32]


class DepthEstimator(PictureModel):
    """A depth network, loaded."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        network.see_whole_pictures()
        self.method = entry.method or _method_of(network.net.config)
        self._disparity = float(entry.defaults.get("disparity", _DISPARITY))
        self._padded = bool(getattr(network.processor, "do_pad", False))
        if self._padded and network.processor.do_resize:
            network.processor.do_pad = self._padded = (
                False  # ZoeDepth's mirrored rim; without it all fits too
            )

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Estimate the depth of the pictures in one pass; warp those that are wanted for two eyes."""
        small = [shrink(image, WORK_PX) for image in images]
        return [self._outcome(*one) for one in zip(tasks, images, self._raw(small), strict=True)]

    @torch.inference_mode()
    def _raw(self, images: Sequence[Pixels]) -> list[Map]:
        """Return the network's own numbers for each picture, at its size."""
        found: list[Map] = [np.empty(0, np.float32)] * len(images)
        for places, pixels in self.network.pixel_values(images):
            rows = self.network.net(pixel_values=pixels).predicted_depth.float()[:, None]  # (n, 1, h, w)
            for place, row in zip(places, rows, strict=True):
                found[place] = self._fitted(row[None], pixels.shape[2:], images[place].shape[:2])
        return found

    def _fitted(self, row: torch.Tensor, seen: Sequence[int], size: tuple[int, ...]) -> Map:
        """Return an answer, (1, 1, h, w), at the picture's size; the network saw it at size `seen`."""
        if self._padded:
            row = F.interpolate(row, tuple(seen), mode="bicubic", align_corners=False)
            top, left = (seen[0] - size[0]) // 2, (seen[1] - size[1]) // 2
            row = row[..., top : top + size[0], left : left + size[1]]
        fitted = F.interpolate(row, size, mode="bicubic", align_corners=False)
        return np.asarray(fitted[0, 0].cpu().numpy(), np.float32)

    def _outcome(self, task: Task, image: Pixels, raw: Map) -> Outcome | Exception:
        if not np.isfinite(raw).all():
            return weights.not_finite()
        small, low, high = nearness(raw, self.method)
        height, width = image.shape[:2]
        depth = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
        detail: dict[str, Any] = {"method": self.method, "range": [low, high]} | self.world_note()
        if task.spec.kind is not Kind.STEREO:
            return Outcome(depth=depth, detail=detail)
        share = float(task.spec.input.get("disparity") or self._disparity)
        left, right = stereo.views(image, depth, share * width)
        pair = Picture(pixels=stereo.side_by_side(left, right))
        detail["disparity_px"] = round(share * width, 2)
        detail["pictures"] = ["side by side, for parallel viewing", "anaglyph, red before the left eye"]
        return Outcome(
            pictures=(pair, Picture(pixels=stereo.anaglyph(left, right))), depth=depth, detail=detail
        )


def nearness(raw: Map, method: str) -> tuple[Map, float, float]:
    """Bring a network's numbers to [0, 1], 1 the nearest.

    Args:
        raw: HW, finite.
        method: what the numbers mean, one of `METHODS`.

    Returns:
        The map, and the network's own numbers for what became 0 (far) and 1 (near).
    """
    if method == "nearness":
        return np.asarray(raw.clip(0, 1), np.float32), 0.0, 1.0
    values = 1 / raw.clip(_LEAST_DISTANCE) if method == "metric" else raw
    far, near = (float(level) for level in np.quantile(values, (_OUTLIERS, 1 - _OUTLIERS)))
    least = max(_FLAT * max(abs(near), abs(far)), 1e-12)
    scaled = ((values - far) / max(near - far, least)).clip(0, 1)
    if method == "metric":
        far, near = 1 / far, 1 / near
    return np.asarray(scaled, np.float32), float(f"{far:.4g}"), float(f"{near:.4g}")


def _method_of(config: Any) -> str:
    kind = getattr(config, "depth_estimation_type", None)
    return "metric" if kind == "metric" or config.model_type in _METRIC_TYPES else "inverse"


def load(entry: ModelEntry, device: Device) -> DepthEstimator:
    """Open the entry's directory on the device and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a depth network; or no such method.
    """
    if entry.method and entry.method not in METHODS:
        raise ModelUnavailable(f"model {entry.id}: `method` is none of {', '.join(METHODS)}")
    network = open_network(entry, device, AutoModelForDepthEstimation)
    with weights.loading(entry):
        model = DepthEstimator(entry, network)
        model.warm_up(Task(spec=probe(Kind.DEPTH, entry)))
    return model
