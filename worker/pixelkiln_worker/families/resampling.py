"""Pictures made larger without a model: the pixels in between are computed from their neighbours."""

from __future__ import annotations

import cv2
import numpy as np

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Task
from pixelkiln_worker.families.methods import PictureMethod

METHODS = {"bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST}
_SCALE = 2  # of a job that names none, where the entry does not either


class Resampler(PictureMethod):
    """A method of interpolation; `lanczos` is the windowed sinc over 8 x 8 neighbours (Duchon, 1979)."""

    def __init__(self, entry: ModelEntry) -> None:
        if entry.method not in METHODS:
            raise ModelUnavailable(f"{entry.id}: method {entry.method!r} is none of {', '.join(METHODS)}")
        super().__init__(entry, entry.method)
        self._how = METHODS[entry.method]
        self._scale = int(entry.defaults.get("scale", _SCALE))

    def answer(self, task: Task, image: Pixels) -> Outcome:
        """Enlarge a picture."""
        scale = task.spec.input.get("scale") or self._scale
        height, width = image.shape[:2]
        larger = cv2.resize(image, (width * scale, height * scale), interpolation=self._how)
        return Outcome(pictures=(Picture(pixels=np.asarray(larger, np.uint8)),), detail={"scale": scale})


def load(entry: ModelEntry, device: Device) -> Resampler:
    """Return the entry's method.

    Raises:
        ModelUnavailable: the entry names no method there is.
    """
    return Resampler(entry)
