"""Pictures made larger without a model: the pixels in between are computed from their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Task, Watch

METHODS = {"bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST}
_SCALE = 2  # of a job that names none, where the entry does not either


class Resampler:
    """A method of interpolation; `lanczos` is the windowed sinc over 8 x 8 neighbours (Duchon, 1979)."""

    footprint_bytes = 0

    def __init__(self, entry: ModelEntry) -> None:
        if entry.method not in METHODS:
            raise ModelUnavailable(f"{entry.id}: method {entry.method!r} is none of {', '.join(METHODS)}")
        self.max_rows = entry.limits.max_batch
        self.identity: dict[str, Any] = {
            "method": entry.method,
            "dtype": "uint8",
            "versions": {"opencv": cv2.__version__},
        }
        self._how = METHODS[entry.method]
        self._scale = int(entry.defaults.get("scale", _SCALE))

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Enlarge the pictures one by one; a step is a picture."""
        outcomes: list[Outcome | Exception] = []
        for number, task in enumerate(batch):
            outcomes.append(self._enlarged(task))
            watch.step(number + 1, len(batch))
        return outcomes

    def close(self) -> None:
        """Nothing to drop."""

    def _enlarged(self, task: Task) -> Outcome | Exception:
        if task.image is None:
            return InvalidInput("the job needs a picture", pointer="/input/image")
        scale = task.spec.input.get("scale") or self._scale
        height, width = task.image.shape[:2]
        larger = cv2.resize(task.image, (width * scale, height * scale), interpolation=self._how)
        return Outcome(pictures=(Picture(pixels=np.asarray(larger, np.uint8)),), detail={"scale": scale})


def load(entry: ModelEntry, device: Device) -> Resampler:
    """Return the entry's method.

    Raises:
        ModelUnavailable: the entry names no method there is.
    """
    return Resampler(entry)
