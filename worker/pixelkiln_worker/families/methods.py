"""What the families without weights share: a method, dressed as a model, that takes one picture at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import cv2

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, PixelkilnError
from pixelkiln_worker.families.contract import Outcome, Pixels, Task, Watch

_LIBRARIES = ("opencv-python-headless", "scikit-image", "numpy")


class PictureMethod(ABC):
    """A method that runs on the CPU whatever the device."""

    footprint_bytes = 0

    def __init__(self, entry: ModelEntry, name: str) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity: dict[str, Any] = {
            "method": name,
            "dtype": "uint8",
            "versions": {library: version(library) for library in _LIBRARIES},
        }

    @abstractmethod
    def answer(self, task: Task, image: Pixels) -> Outcome:
        """Return what a task's picture comes to.

        Raises:
            PixelkilnError, cv2.error, ValueError, MemoryError: this job fails, and no other.
        """

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Answer the pictures one by one; a step is a picture."""
        outcomes: list[Outcome | Exception] = []
        for done, task in enumerate(batch, start=1):
            outcomes.append(self._safely(task))
            watch.step(done, len(batch))
        return outcomes

    def close(self) -> None:  # noqa: B027 - there is nothing to drop, and nothing to overwrite
        """Nothing is held."""

    def _safely(self, task: Task) -> Outcome | Exception:
        if task.image is None:
            return InvalidInput("the job needs a picture", pointer="/input/image")
        try:
            return self.answer(task, task.image)
        except (PixelkilnError, cv2.error, ValueError, MemoryError) as error:
            return error
