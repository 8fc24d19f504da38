"""The foreground of a picture on transparent ground, by networks.

Two methods. `semantic`: any directory that `AutoModelForSemanticSegmentation` opens; the catalogue's `things`
are the foreground, or all but the background where none are named. `vitmatte`: a ViTMatte directory (Yao et
al., 2024), which settles hair and glass where it is told roughly what is what; the rough foreground comes
from the entry's companion `semantic`, or else from the classical method of `cutout`. Importing this module
imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSemanticSegmentation, VitMatteForImageMatting

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable, PixelkilnError
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import alpha, cutout
from pixelkiln_worker.families.alpha import Alpha
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from pixelkiln_worker.families.networks import Network, PictureModel, open_network, probe
from pixelkiln_worker.families.segmentation import ClassTable
from pixelkiln_worker.families.segments import shrink

WORK_PX = 1024
"""Longest side that ViTMatte sees."""
METHODS = ("semantic", "vitmatte")
_BAND_SHARE = 0.015
"""Half the width of the unknown band around a rough outline, as a share of the longest side."""
_SURE = 0.05
_UNKNOWN = 128


class Foreground:
    """What is foreground, by the classes of a semantic network."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        network.see_whole_pictures()
        self.network = network
        classes = ClassTable.of(entry, network.net.config)
        every = set(range(len(classes.names)))
        self.indices = sorted(classes.things or every - classes.nothing)
        if len(self.indices) == len(every):
            raise ModelUnavailable("none of its classes is the background: name the foreground as `things`")

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> list[Alpha]:
        """Return for each picture the chance that it is foreground, HW at the network's own resolution."""
        found: list[Alpha] = [np.empty(0, np.float32)] * len(images)
        for places, pixels in self.network.pixel_values(images):
            chances = torch.softmax(self.network.net(pixel_values=pixels).logits.float(), 1)
            rows = chances[:, self.indices].sum(1).cpu().numpy()  # (n, h, w)
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return found


class Matter(PictureModel):
    """A model that cuts out the foreground."""

    method: str

    @abstractmethod
    def alphas(self, images: Sequence[Pixels]) -> list[Alpha | Exception]:
        """Return the alpha of each picture, at its size."""

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Cut out the foreground of the pictures."""
        return [self._outcome(*one) for one in zip(images, self.alphas(images), strict=True)]

    def _outcome(self, image: Pixels, found: Alpha | Exception) -> Outcome | Exception:
        if isinstance(found, Exception):
            return found
        if not np.isfinite(found).all():
            return weights.not_finite()
        return alpha.outcome(image, found, {"method": self.method} | self.world_note())


class SemanticMatter(Matter):
    """The foreground by its classes; the edge follows the picture."""

    method = "semantic"

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        self._foreground = Foreground(entry, network)

    def alphas(self, images: Sequence[Pixels]) -> list[Alpha | Exception]:
        """See `Matter`."""
        both = zip(images, self._foreground(images), strict=True)
        return [alpha.refined(image, rough) if np.isfinite(rough).all() else rough for image, rough in both]


class VitMatter(Matter):
    """ViTMatte, told roughly what is what by a semantic network or by the classical method."""

    method = "vitmatte"

    def __init__(self, entry: ModelEntry, network: Network, companion: Foreground | None) -> None:
        super().__init__(entry, network)
        self._companion = companion
        if companion is not None:
            self.footprint_bytes += companion.network.footprint_bytes
            self.identity |= {"companions": {"semantic": companion.network.identity}}

    def alphas(self, images: Sequence[Pixels]) -> list[Alpha | Exception]:
        """See `Matter`."""
        small = [shrink(image, WORK_PX) for image in images]
        trimaps = [self._trimap(*one) for one in zip(small, self._rough(small), strict=True)]
        mattes = self._mattes(small, trimaps)
        return [
            matte
            if isinstance(matte, Exception) or matte.shape == image.shape[:2]
            else np.asarray(cv2.resize(matte, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
            for image, matte in zip(images, mattes, strict=True)
        ]

    def close(self) -> None:
        """Drop both networks and hand their memory back."""
        if self._companion is not None:
            self._companion.network.close()
        super().close()

    def _rough(self, images: Sequence[Pixels]) -> list[Alpha | Exception]:
        if self._companion is not None:
            return list(self._companion(images))
        return [_classical(image) for image in images]

    def _trimap(self, image: Pixels, rough: Alpha | Exception) -> NDArray[np.uint8] | Exception:
        if isinstance(rough, Exception):
            return rough
        if not np.isfinite(rough).all():
            return weights.not_finite()
        size = image.shape[1], image.shape[0]
        return trimap(np.asarray(cv2.resize(rough, size, interpolation=cv2.INTER_LINEAR)))

    @torch.inference_mode()
    def _mattes(
        self, images: Sequence[Pixels], trimaps: Sequence[NDArray[np.uint8] | Exception]
    ) -> list[Alpha | Exception]:
        found: list[Alpha | Exception] = [t if isinstance(t, Exception) else _settled(t) for t in trimaps]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(trimaps):
            if not isinstance(one, Exception) and (one == _UNKNOWN).any():
                by_shape.setdefault(one.shape, []).append(place)
        for (height, width), places in by_shape.items():
            inputs = self.network.processor(
                images=[images[place] for place in places],
                trimaps=[trimaps[place] for place in places],
                return_tensors="pt",
            )
            rows = self.network.net(**self.network.send(inputs)).alphas[:, 0, :height, :width]
            for place, row in zip(places, rows.float().cpu().numpy(), strict=True):
                known = np.asarray(trimaps[place])
                matte = np.where(known == _UNKNOWN, row, _settled(known))
                found[place] = np.asarray(matte, np.float32)
        return found


def trimap(rough: Alpha) -> NDArray[np.uint8]:
    """Return what is sure of a rough alpha: 0 background, 255 foreground, 128 a band about its outline."""
    radius = max(2, round(_BAND_SHARE * max(rough.shape)))
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    inside = cv2.erode((rough > 1 - _SURE).astype(np.uint8), around, borderValue=1)
    outside = cv2.erode((rough < _SURE).astype(np.uint8), around, borderValue=1)
    return np.where(inside > 0, 255, np.where(outside > 0, 0, _UNKNOWN)).astype(np.uint8)


def _settled(known: NDArray[np.uint8]) -> Alpha:
    return np.asarray(known == 255, np.float32)


def _classical(image: Pixels) -> Alpha | Exception:
    try:
        return cutout.foreground(image)
    except (PixelkilnError, cv2.error, ValueError, MemoryError) as error:
        return error


def load(entry: ModelEntry, device: Device) -> Matter:
    """Open the entry's directory on the device, with its companion, and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or of another kind; or no such method.
    """
    if entry.method not in METHODS:
        raise ModelUnavailable(f"model {entry.id}: `method` is none of {', '.join(METHODS)}")
    opened: Any = VitMatteForImageMatting if entry.method == "vitmatte" else AutoModelForSemanticSegmentation
    network = open_network(entry, device, opened)
    with weights.loading(entry):
        model: Matter
        if entry.method == "semantic":
            model = SemanticMatter(entry, network)
        else:
            model = VitMatter(entry, network, _companion(entry, device))
        model.warm_up(Task(spec=probe(Kind.CUTOUT, entry)))
    return model


def _companion(entry: ModelEntry, device: Device) -> Foreground | None:
    if "semantic" not in entry.companions:
        return None
    semantic = entry.companion("semantic")
    return Foreground(semantic, open_network(semantic, device, AutoModelForSemanticSegmentation))
