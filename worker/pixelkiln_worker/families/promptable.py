"""What points and boxes show, or every object: SAM and SAM 2, from any folder transformers opens as one.

The picture's embedding is kept (`contract.Remembers`), so that the second click on it costs no encoder pass.
Importing this module imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Box, Point
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.everything import Rules, find_all
from pixelkiln_worker.families.marks import group_marks, inside
from pixelkiln_worker.families.networks import PictureModel
from pixelkiln_worker.families.sam import Encoded, Frame, Sam
from pixelkiln_worker.families.segments import (
    MAX_SEGMENTS,
    Part,
    absorb_specks,
    assemble,
    enlarge,
    shrink,
)

WORK_PX = 1024
"""Longest side at which masks are laid over each other; larger pictures get the nearest pixel's."""
_MASKS_AT_ONCE = 16
_SPECK_SHARE = 1 / 5_000
"""Of everything: what is left of a mask under the others, if smaller than this, goes to its neighbours."""

LABELS_IGNORED = {
    "code": "labels_ignored",
    "message": "the model takes points and boxes and knows no names; `labels` was not used",
}

Warnings = tuple[dict[str, str], ...]


class PromptableSegmenter(PictureModel):
    """A SAM, loaded."""

    def __init__(self, entry: ModelEntry, sam: Sam) -> None:
        super().__init__(entry, sam.network)
        self.sam = sam
        self._defaults = entry.defaults

    def memory_key(self, task: Task) -> str:
        """See `contract.Remembers`."""
        return self.sam.memory_key(task)

    def at_hand(self, key: str) -> bool:
        """See `contract.Remembers`."""
        return self.sam.at_hand(key)

    def close(self) -> None:
        """Drop the network and the embeddings."""
        self.sam.close()

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Encode the new pictures in one pass, then decode each picture's marks."""
        return [
            self._outcome(*one) for one in zip(tasks, images, self.sam.encode(tasks, images), strict=True)
        ]

    def _outcome(self, task: Task, image: Pixels, encoded: Encoded | ModelUnavailable) -> Outcome | Exception:
        if isinstance(encoded, Exception):
            return encoded
        fields = task.spec.input
        try:
            if fields.get("boxes") or fields.get("points"):
                found, warnings = self._marked(image, encoded, task)
            else:
                found, warnings = self._everything(image, encoded, task)
        except (InvalidInput, ModelUnavailable) as error:
            return error
        if fields.get("labels"):
            warnings += (LABELS_IGNORED,)
        detail = {"labels": [segment.label for segment in found.segments]} | self.world_note()
        return Outcome(segmentation=found, detail=detail, warnings=warnings, memory=encoded.memory)

    def _marked(self, image: Pixels, encoded: Encoded, task: Task) -> tuple[Segmentation, Warnings]:
        """Find one object for each box, and one for the points outside them."""
        height, width = image.shape[:2]
        points = [Point.model_validate(point) for point in task.spec.input.get("points") or ()]
        boxes = [Box.model_validate(box) for box in task.spec.input.get("boxes") or ()]
        objects = group_marks(inside(boxes, points, width, height), points, margin=0)
        logits, scores = self.sam.propose(encoded, objects).best()
        least = task.spec.input.get("threshold") or 0.0
        sure = [index for index, score in enumerate(scores.tolist()) if score >= least]
        ids = painted(encoded.frame, logits[sure], np.array(sure, int) + 1, image)
        found = assemble(ids, {place + 1: _part(place + 1, scores[place]) for place in sure})
        there = {segment.category for segment in found.segments}
        warnings = tuple(
            _nothing(f"{_name(number)} was not found: {_why(float(score), least)}")
            for number, score in enumerate(scores, start=1)
            if number not in there
        )
        return at_size(found, image), warnings

    def _everything(self, image: Pixels, encoded: Encoded, task: Task) -> tuple[Segmentation, Warnings]:
        """Find all objects; where they overlap, the smaller lies on top."""
        logits, scores = find_all(self.sam, encoded, self._rules(task))
        numbers = np.arange(1, len(scores) + 1)
        ids = painted(encoded.frame, logits, numbers, image)
        ids = absorb_specks(ids, max(4, int(ids.size * _SPECK_SHARE)))
        found = assemble(ids, lambda value, number: _part(number, scores[value - 1]))
        warnings = () if found.segments else (_nothing("no part of the picture was found"),)
        return at_size(found, image), warnings

    def _rules(self, task: Task) -> Rules:
        """Return the rules of the job, else the catalogue's, else the usual ones."""
        usual, asked, options = (
            Rules(),
            task.spec.input.get("threshold"),
            task.spec.input.get("options") or {},
        )
        grid = options.get("points_per_side") or self._defaults.get("points_per_side", usual.points_per_side)
        least = self._defaults.get("threshold", usual.threshold) if asked is None else asked
        stability = self._defaults.get("stability", usual.stability)
        return Rules(points_per_side=int(grid), threshold=least, stability=stability, most=MAX_SEGMENTS)


def painted(
    frame: Frame, logits: torch.Tensor, numbers: np.ndarray[Any, Any], image: Pixels
) -> np.ndarray[Any, Any]:
    """Lay masks over each other, the smaller on top.

    Args:
        frame: where the picture lies in the input.
        logits: (n, h, w) over the input.
        numbers: (n), what each mask's pixels become.
        image: HWC.

    Returns:
        A label map of the picture, no side above `WORK_PX`.
    """
    size = shrink(image, WORK_PX).shape[:2]
    areas = (frame.crop(logits) > 0).flatten(1).sum(1)
    order = torch.argsort(areas, descending=True, stable=True)
    ids = np.zeros(size, np.uint16)
    for first in range(0, len(order), _MASKS_AT_ONCE):
        some = order[first : first + _MASKS_AT_ONCE]
        masks = (frame.restore(logits[some], (size[0], size[1])) > 0).numpy()
        for place, mask in zip(some.tolist(), masks, strict=True):
            ids[mask] = numbers[place]
    return ids


def at_size(found: Segmentation, image: Pixels) -> Segmentation:
    """Return a segmentation made at the working size at the picture's, by nearest neighbour."""
    ids = enlarge(found.ids, image.shape[0], image.shape[1])
    return Segmentation(ids=np.asarray(ids, np.uint16), segments=found.segments)


def _part(number: int, score: torch.Tensor) -> Part:
    return Part(label=_name(number), category=number, score=round(min(max(float(score), 0.0), 1.0), 4))


def _name(number: int) -> str:
    return f"object {number}"


def _why(score: float, least: float) -> str:
    if score < least:
        return f"its predicted IoU of {score:.2f} is below the threshold of {least:g}"
    return "the model sees nothing there, or smaller objects cover it"


def _nothing(message: str) -> dict[str, str]:
    return {"code": "nothing_found", "message": message}


def load(entry: ModelEntry, device: Device) -> PromptableSegmenter:
    """Open the entry's directory on the device and mark one box to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a SAM's.
    """
    sam = Sam.open(entry, device)
    with weights.loading(entry):
        sam.warm_up(entry)
        return PromptableSegmenter(entry, sam)
