"""Semantic segmentation by any directory that transformers' `AutoModelForSemanticSegmentation` opens.

The network gives a class for each pixel. Classes that can be counted are then split into instances, by
connected components; the others stay one segment each. Families that name instances themselves, or take
prompts, stand beside this one and share `segments.py`. Importing this module imports torch and transformers:
workers do it at boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from transformers import AutoModelForSemanticSegmentation

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.networks import Network, PictureModel, class_names, open_network, probe
from pixelkiln_worker.families.segments import Part, absorb_specks, assemble, enlarge, keep, shrink

WORK_PX = 1024
"""Longest side at which classes are compared for each pixel; larger pictures get the nearest one's class."""
_SPECK_SHARE = 1 / 1_000
"""Pieces smaller than this share of the picture go to their neighbours: specks and pinholes."""
_NOTHING = frozenset({"background", "__background__", "unlabeled", "void"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTable:
    """The classes of a model: names by index, which of them can be counted, which mean "nothing here"."""

    names: tuple[str, ...]
    things: frozenset[int]
    nothing: frozenset[int]

    def category(self, index: int) -> int:
        """Return the number of a class in masks and annotations, where 0 means "nothing": 1 or more.

        A model whose class 0 is the background keeps its numbers, as PASCAL VOC's; others move up by one.
        """
        return index if 0 in self.nothing else index + 1

    @classmethod
    def of(cls, entry: ModelEntry, config: Any) -> ClassTable:
        """Read the table from the model's configuration; the catalogue's `classes` and `things` win.

        Raises:
            ModelUnavailable: the catalogue names another number of classes than the network has, or a thing
                that is no class.
        """
        names = class_names(entry, config)
        folded = [name.casefold() for name in names]
        strange = [name for name in entry.things if name.casefold() not in folded]
        if strange:
            raise ModelUnavailable(f"{strange[0]!r} of the catalogue's things is no class of the network")
        things = {name.casefold() for name in entry.things or getattr(config, "things", None) or ()}
        return cls(
            names=tuple(names),
            things=frozenset(index for index, name in enumerate(folded) if name in things),
            nothing=frozenset(index for index, name in enumerate(folded) if name in _NOTHING),
        )


class SemanticSegmenter(PictureModel):
    """A semantic segmentation network, loaded."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        network.see_whole_pictures()
        self.classes = ClassTable.of(entry, network.net.config)

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Segment the pictures in one pass."""
        return [self._outcome(*one) for one in zip(tasks, images, self._logits(images), strict=True)]

    @torch.inference_mode()
    def _logits(self, images: Sequence[Pixels]) -> list[torch.Tensor]:
        """Return the class logits of each picture, (classes, h, w), at the network's own resolution."""
        logits: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for places, pixels in self.network.pixel_values(images):
            for place, row in zip(places, self.network.net(pixel_values=pixels).logits.float(), strict=True):
                logits[place] = row
        return logits

    def _outcome(self, task: Task, image: Pixels, logits: torch.Tensor) -> Outcome | Exception:
        if not torch.isfinite(logits).all():
            return weights.not_finite()
        found = self._segmentation(image, logits)
        found, warnings = keep(found, task.spec.input.get("labels") or (), self._labels())
        if not found.segments:
            warnings += ({"code": "nothing_found", "message": "no part of the picture was found"},)
        labels = sorted({segment.label for segment in found.segments})
        detail: dict[str, Any] = {"labels": labels} | self.world_note()
        return Outcome(segmentation=found, detail=detail, warnings=warnings)

    @torch.inference_mode()
    def _segmentation(self, image: Pixels, logits: torch.Tensor) -> Segmentation:
        height, width = shrink(image, WORK_PX).shape[:2]
        large = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
        best, winner = torch.softmax(large, 0).max(0)  # (h, w) each
        ids, parts = instances(winner.cpu().numpy(), best.cpu().numpy(), self.classes)
        found = assemble(ids, parts)
        full = enlarge(found.ids, image.shape[0], image.shape[1])
        return Segmentation(ids=np.asarray(full, np.uint16), segments=found.segments)

    def _labels(self) -> tuple[str, ...]:
        return tuple(
            name for index, name in enumerate(self.classes.names) if index not in self.classes.nothing
        )


def instances(
    winner: NDArray[np.integer], confidence: NDArray[np.floating], classes: ClassTable
) -> tuple[NDArray[np.int32], dict[int, Part]]:
    """Split a class map into segments: one for each connected piece of a thing, one for each other class.

    Args:
        winner: HW, the class index of each pixel.
        confidence: HW in [0, 1], the probability of that class; a segment's score is its mean.
        classes: names, and which of them are things.

    Returns:
        A label map (0 where there is nothing) and what each of its values is.
    """
    tidy = absorb_specks(winner, max(4, int(winner.size * _SPECK_SHARE)))
    ids = np.zeros(winner.shape, np.int32)
    parts: dict[int, Part] = {}
    for index in np.unique(tidy).tolist():
        if index in classes.nothing:
            continue
        region = tidy == index
        count, pieces = 1, region.astype(np.int32)
        if index in classes.things:
            count, pieces = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
            count -= 1  # its first is the rest of the picture
        scores = np.bincount(pieces.ravel(), confidence.ravel()) / np.bincount(pieces.ravel()).clip(1)
        for piece in range(1, count + 1):
            number = len(parts) + 1
            ids[pieces == piece] = number
            parts[number] = Part(
                label=classes.names[index],
                category=classes.category(index),
                score=round(float(scores[piece]), 4),
            )
    return ids, parts


def load(entry: ModelEntry, device: Device) -> SemanticSegmenter:
    """Open the entry's directory on the device and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a semantic segmentation network.
    """
    network = open_network(entry, device, AutoModelForSemanticSegmentation)
    with weights.loading(entry):
        model = SemanticSegmenter(entry, network)
        model.warm_up(Task(spec=probe(Kind.SEGMENT, entry)))
    return model
