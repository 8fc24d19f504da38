"""Semantic segmentation by any directory that transformers' `AutoModelForSemanticSegmentation` opens.

The network gives a class for each pixel. Classes that can be counted are then split into instances, by
connected components; the others stay one segment each. Families that name instances themselves, or take
prompts, stand beside this one and share `segments.py`. Importing this module imports torch and transformers:
workers do it at boot.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
import transformers
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task, Watch
from pixelkiln_worker.families.segments import Part, absorb_specks, assemble, enlarge, keep, shrink

WORK_PX = 1024
"""Longest side at which classes are compared for each pixel; larger pictures get the nearest one's class."""
_SPECK_SHARE = 1 / 1_000
"""Pieces smaller than this share of the picture go to their neighbours: specks and pinholes."""
_NOTHING = frozenset({"background", "unlabeled", "void"})
_LIBRARIES = ("torch", "transformers", "safetensors")


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
        """Read the table from the model's configuration; the catalogue's `classes` and `things` win."""
        names = entry.classes or tuple(config.id2label[index] for index in sorted(config.id2label))
        folded = [name.casefold() for name in names]
        things = {name.casefold() for name in entry.things or getattr(config, "things", None) or ()}
        return cls(
            names=tuple(names),
            things=frozenset(index for index, name in enumerate(folded) if name in things),
            nothing=frozenset(index for index, name in enumerate(folded) if name in _NOTHING),
        )


class SemanticSegmenter:
    """A semantic segmentation network, loaded."""

    def __init__(
        self, entry: ModelEntry, device: Device, net: Any, processor: Any, identity: dict[str, Any]
    ) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity = identity
        self.footprint_bytes = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
        self.classes = ClassTable.of(entry, net.config)
        self._world = entry.world
        self._device = device
        self._net: Any = net
        self._processor: Any = processor

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Segment the pictures, `max_rows` in one pass; a step is a pass."""
        outcomes: list[Outcome | Exception] = []
        passes = -(-len(batch) // self.max_rows)
        for number in range(passes):
            tasks = batch[number * self.max_rows : (number + 1) * self.max_rows]
            outcomes += self._pass(tasks)
            watch.step(number + 1, passes)
        return outcomes

    def close(self) -> None:
        """Drop the network and hand its memory back."""
        self._net = self._processor = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Segment a grey picture: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the network's numbers are not finite.
        """
        if not all(torch.isfinite(row).all() for row in self._logits([np.full((64, 64, 3), 128, np.uint8)])):
            raise weights.not_finite()

    def _pass(self, tasks: Sequence[Task]) -> list[Outcome | Exception]:
        outcomes: dict[int, Outcome | Exception] = {}
        images = {index: task.image for index, task in enumerate(tasks) if task.image is not None}
        for index, logits in zip(images, self._logits(list(images.values())), strict=True):
            outcomes[index] = self._outcome(tasks[index], images[index], logits)
        missing = InvalidInput("a segment job needs a picture", pointer="/input/image")
        return [outcomes.get(index, missing) for index in range(len(tasks))]

    @torch.inference_mode()
    def _logits(self, images: list[Pixels]) -> list[torch.Tensor]:
        """Return the class logits of each picture, (classes, h, w), at the network's own resolution."""
        prepared = [self._processor(images=image, return_tensors="pt").pixel_values for image in images]
        logits: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for shape in {tuple(picture.shape) for picture in prepared}:  # processors that keep the aspect ratio
            places = [index for index, picture in enumerate(prepared) if tuple(picture.shape) == shape]
            pixels = torch.cat([prepared[index] for index in places])  # (n, 3, H, W)
            rows = self._net(pixel_values=pixels.to(self._device.name, self._net.dtype)).logits.float()
            for place, row in zip(places, rows, strict=True):
                logits[place] = row
        return logits

    def _outcome(self, task: Task, image: Pixels, logits: torch.Tensor) -> Outcome | Exception:
        if not torch.isfinite(logits).all():
            return weights.not_finite()
        found = self._segmentation(image, logits)
        found, warnings = keep(found, task.spec.input.get("labels") or (), self._labels())
        if not found.segments:
            warnings += ({"code": "nothing_found", "message": "no part of the picture was found"},)
        detail: dict[str, Any] = {"labels": sorted({segment.label for segment in found.segments})}
        if self._world:
            detail["note"] = f"the model knows only pictures of its own world, {self._world}"
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
    """Open the entry's directory on the device, in the device's dtype, and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a semantic segmentation network.
    """
    found = weights.resolve(entry)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with weights.loading(entry):
        net, facts = AutoModelForSemanticSegmentation.from_pretrained(
            str(found.folder),
            dtype=getattr(torch, device.dtype_name),
            variant=found.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if facts["missing_keys"] or facts["mismatched_keys"]:
            lacking = sorted(map(str, facts["missing_keys"] or facts["mismatched_keys"]))
            raise ModelUnavailable(f"the weights are incomplete: no {lacking[0]}")
        processor = AutoImageProcessor.from_pretrained(  # PIL everywhere: the same pixels on every machine
            str(found.folder), backend="pil", local_files_only=True, trust_remote_code=False
        )
        net.eval().requires_grad_(False).to(device.name)
        identity = found.identity | {
            "network": type(net).__name__,
            "dtype": device.dtype_name,
            "device": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name,
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        model = SemanticSegmenter(entry, device, net, processor, identity)
        model.warm_up()
    return model
