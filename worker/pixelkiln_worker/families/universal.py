"""Segmentation by queries, by `AutoModelForUniversalSegmentation`: Mask2Former, MaskFormer, OneFormer, EoMT.

One network answers three questions: `panoptic` (every pixel; things one by one, the rest by class),
`instance` (only things), `semantic` (classes). Importing this module imports torch and transformers: workers
do it at boot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from transformers import AutoModelForUniversalSegmentation, AutoProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import queries
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.networks import Network, PictureModel, open_network, probe
from pixelkiln_worker.families.queries import Naming, Queries
from pixelkiln_worker.families.segmentation import WORK_PX, ClassTable
from pixelkiln_worker.families.segments import assemble, enlarge, keep, shrink

TaskName = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[TaskName, ...] = ("panoptic", "instance", "semantic")
_THRESHOLD = 0.5
_SHAPES = ("eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A picture as the network sees it.

    Attributes:
        inputs: tensors by name; `pixel_values` has one row, or one for each piece of a picture cut in pieces.
        content: height and width of the picture inside each row, without padding.
        pieces: start and end of each row along the picture's longer side; empty where the picture is whole.
        tall: whether that longer side is the height.
    """

    inputs: Mapping[str, torch.Tensor]
    content: tuple[int, int]
    pieces: tuple[tuple[int, int], ...] = ()
    tall: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A network's raw answer: `classes` (rows, q, classes + 1) and `masks` (rows, q, h, w), both logits."""

    classes: torch.Tensor
    masks: torch.Tensor

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return bool(torch.isfinite(self.classes).all() and torch.isfinite(self.masks).all())


class UniversalSegmenter(PictureModel):
    """A network of queries, loaded."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        self.classes = ClassTable.of(entry, network.net.config)
        self.naming = Naming(
            names=self.classes.names,
            categories=tuple(self.classes.category(index) for index in range(len(self.classes.names))),
        )
        self._reads_task = network.net.config.model_type == "oneformer"
        self._images = getattr(network.processor, "image_processor", network.processor)
        self._in_pieces = bool(getattr(self._images, "do_split_image", False))
        if hasattr(self._images, "do_split_image") and not self._in_pieces:
            self._images.do_pad = True  # EoMT's positions are those of one square
        self._defaults = entry.defaults
        self._visible = float(entry.defaults.get("visible", queries.VISIBLE))
        self._tasks = tuple(name for name in TASKS if name in entry.options.get("task", TASKS))

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Segment the pictures, those of one shape in one pass."""
        names = [self._task_of(task) for task in tasks]
        prepared = [self._prepare(image, name) for image, name in zip(images, names, strict=True)]
        answers = self._answers(prepared)
        return [self._outcome(*one) for one in zip(tasks, names, images, prepared, answers, strict=True)]

    def _task_of(self, task: Task) -> TaskName:
        """Return what is asked: by the job, by the catalogue, else panoptic where the classes allow it."""
        if self._in_pieces:
            return "semantic"  # queries of one piece of a picture know nothing of the next
        wish = (task.spec.input.get("options") or {}).get("task") or self._defaults.get("task")
        if wish in TASKS:
            return cast(TaskName, wish)
        countable_only = len(self.classes.things) == len(self.classes.names) - len(self.classes.nothing)
        known = bool(self.classes.things) and not countable_only
        likely: TaskName = "panoptic" if known else "instance"
        return likely if likely in self._tasks else self._tasks[0]

    # -------------------------------------------------------------------------------------------- the network

    def _prepare(self, image: Pixels, name: TaskName) -> Prepared:
        more: dict[str, Any] = {"task_inputs": [name]} if self._reads_task else {}
        found = self.network.processor(images=image, return_tensors="pt", **more)
        inputs = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        height, width = inputs["pixel_values"].shape[2:]
        content = (int(height), int(width))
        if (mask := inputs.get("pixel_mask")) is not None:
            content = int(mask[0].any(1).sum()), int(mask[0].any(0).sum())
        elif getattr(self._images, "do_pad", False):
            size = self._images.size
            fitted = get_size_with_aspect_ratio(image.shape[:2], size["shortest_edge"], size["longest_edge"])
            content = min(fitted[0], content[0]), min(fitted[1], content[1])
        offsets = found.get("patch_offsets") if self._in_pieces else None
        pieces = tuple((int(start), int(end)) for _, start, end in offsets or ())
        return Prepared(inputs=inputs, content=content, pieces=pieces, tall=image.shape[0] > image.shape[1])

    @torch.inference_mode()
    def _answers(self, prepared: Sequence[Prepared]) -> list[Answer]:
        """Return the raw answer for each picture."""
        answers: dict[int, Answer] = {}
        shapes = dict.fromkeys(one.inputs["pixel_values"].shape[2:] for one in prepared)
        for shape in shapes:
            places = [i for i, one in enumerate(prepared) if one.inputs["pixel_values"].shape[2:] == shape]
            names = prepared[places[0]].inputs
            stack = {name: torch.cat([prepared[place].inputs[name] for place in places]) for name in names}
            found = self.network.net(**self.network.send(stack))
            rows = [len(prepared[place].inputs["pixel_values"]) for place in places]
            both = zip(
                found.class_queries_logits.float().split(rows),
                found.masks_queries_logits.float().split(rows),
                strict=True,
            )
            answers |= {
                place: Answer(classes=classes, masks=masks)
                for place, (classes, masks) in zip(places, both, strict=True)
            }
        return [answers[place] for place in range(len(prepared))]

    # -------------------------------------------------------------------------------------------- the answer

    def _outcome(
        self, task: Task, name: TaskName, image: Pixels, prepared: Prepared, answer: Answer
    ) -> Outcome | Exception:
        if not answer.finite:
            return weights.not_finite()
        found = self._segmentation(name, self._threshold_of(task), image, prepared, answer)
        found, warnings = keep(found, task.spec.input.get("labels") or (), self._labels())
        if not found.segments:
            warnings += ({"code": "nothing_found", "message": "no part of the picture was found"},)
        labels = sorted({segment.label for segment in found.segments})
        detail: dict[str, Any] = {"task": name, "labels": labels} | self.world_note()
        return Outcome(segmentation=found, detail=detail, warnings=warnings)

    def _threshold_of(self, task: Task) -> float:
        asked = task.spec.input.get("threshold")
        return float(self._defaults.get("threshold", _THRESHOLD) if asked is None else asked)

    @torch.inference_mode()
    def _segmentation(
        self, name: TaskName, threshold: float, image: Pixels, prepared: Prepared, answer: Answer
    ) -> Segmentation:
        height, width = shrink(image, WORK_PX).shape[:2]
        if name == "semantic":
            chances = self._chances(prepared, answer, (height, width))
            ids, parts = queries.classes(chances, self.naming, self.classes.nothing)
        else:
            kept = self._kept(name, threshold, answer)
            scores, labels = answer.classes[0].softmax(-1)[..., :-1].max(-1)
            masks = self._whole(answer.masks[0, kept], prepared, (height, width)).sigmoid()
            chosen = Queries(scores=scores[kept], labels=labels[kept], masks=masks)
            ids, parts = (
                queries.panoptic(chosen, self.naming, self._stuff(), self._visible)
                if name == "panoptic"
                else queries.instances(chosen, self.naming, threshold)
            )
        found = assemble(ids, parts)
        full = enlarge(found.ids, image.shape[0], image.shape[1])
        return Segmentation(ids=np.asarray(full, np.uint16), segments=found.segments)

    def _kept(self, name: TaskName, threshold: float, answer: Answer) -> torch.Tensor:
        """Return the indices of the queries that found something; for instances, something countable."""
        chances = answer.classes[0].softmax(-1)  # (q, classes + 1), the last is "no object"
        scores, labels = chances.max(-1)
        kept = (labels < chances.shape[-1] - 1) & (scores >= threshold)
        unwanted = set(self.classes.nothing)
        if name == "instance" and self.classes.things:
            unwanted |= set(range(len(self.classes.names))) - self.classes.things
        for index in unwanted:
            kept &= labels != index
        return kept.nonzero()[:, 0]

    def _whole(self, logits: torch.Tensor, prepared: Prepared, size: tuple[int, int]) -> torch.Tensor:
        """Return (q, h, w) logits at `size`, without what the processor had padded the picture with."""
        padded = tuple(prepared.inputs["pixel_values"].shape[2:])
        if padded != prepared.content:
            rows, columns = prepared.content
            logits = _resized(logits, padded)[:, :rows, :columns]
        return _resized(logits, size)

    def _chances(self, prepared: Prepared, answer: Answer, size: tuple[int, int]) -> torch.Tensor:
        """Return how much speaks for each class, (classes, h, w): over all queries, class times mask."""
        chances = answer.classes.softmax(-1)[..., :-1]  # (rows, q, classes)
        if not prepared.pieces:
            masks = self._whole(answer.masks[0], prepared, size).sigmoid()
            return torch.einsum("qc,qhw->chw", chances[0], masks)
        rows = F.interpolate(answer.masks, prepared.content, mode="bilinear", align_corners=False).sigmoid()
        return _resized(_joined(torch.einsum("rqc,rqhw->rchw", chances, rows), prepared), size)

    def _stuff(self) -> frozenset[int]:
        """Class indices that cannot be counted; none where nobody said which can."""
        everything = frozenset(range(len(self.classes.names)))
        return everything - self.classes.things if self.classes.things else frozenset()

    def _labels(self) -> tuple[str, ...]:
        nothing = self.classes.nothing
        return tuple(name for index, name in enumerate(self.classes.names) if index not in nothing)


def _joined(rows: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    """Put the pieces of a picture, (rows, classes, h, w), side by side; where they overlap, their mean."""
    along = 1 if prepared.tall else 2
    shape = [rows.shape[1], *prepared.content]
    shape[along] = max(end for _, end in prepared.pieces)
    total, count = rows.new_zeros(shape), rows.new_zeros(shape)
    for row, (start, end) in zip(rows, prepared.pieces, strict=True):
        total.narrow(along, start, end - start).add_(row)
        count.narrow(along, start, end - start).add_(1)
    return total / count.clamp(min=1)


def _resized(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if not len(logits):
        return logits.new_zeros((0, *size))
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def load(entry: ModelEntry, device: Device) -> UniversalSegmenter:
    """Open the entry's directory on the device and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a network of queries.
    """
    network = open_network(entry, device, AutoModelForUniversalSegmentation, AutoProcessor)
    with weights.loading(entry):
        if network.net.config.model_type not in _SHAPES:
            raise ModelUnavailable(f"{network.net.config.model_type} is none of {', '.join(_SHAPES)}")
        model = UniversalSegmenter(entry, network)
        model.warm_up(Task(spec=probe(Kind.SEGMENT, entry)))
    return model
