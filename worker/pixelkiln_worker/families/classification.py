"""What a picture shows: the classes of a network, or labels given in words.

Opens what `AutoModelForImageClassification` opens; an entry with `phrases` is opened by
`AutoModelForZeroShotImageClassification` (CLIP, SigLIP), and its jobs name the labels to choose among. The
answer stands in the result's detail as `classes`. Importing this module imports torch and transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from pixelkiln_worker.families.networks import Network, PictureModel, class_names, open_network, probe

_TOP = 5
_TEMPLATE = "a photo of a {label}"
_PAIRWISE = ("siglip", "siglip2")
"""Models trained to say of each pair of text and picture whether they belong together (a sigmoid)."""

Warnings = tuple[dict[str, str], ...]


class Classifier(PictureModel):
    """A model that names what a picture shows."""

    @abstractmethod
    def scores(
        self, tasks: Sequence[Task], images: Sequence[Pixels]
    ) -> list[Mapping[str, float] | Exception]:
        """Return for each picture the score of each label, 0 to 1."""

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Name what the pictures show, in one pass."""
        both = zip(tasks, self.scores(tasks, images), strict=True)
        return [self._outcome(task, found) for task, found in both]

    def _outcome(self, task: Task, found: Mapping[str, float] | Exception) -> Outcome | Exception:
        if isinstance(found, Exception):
            return found
        found, warnings = self.chosen(task, found)
        top = int(task.spec.input.get("top") or _TOP)
        best = sorted(found.items(), key=lambda pair: -pair[1])[:top]
        classes = [{"label": label, "score": round(score, 4)} for label, score in best]
        return Outcome(detail={"classes": classes} | self.world_note(), warnings=warnings)

    def chosen(self, task: Task, found: Mapping[str, float]) -> tuple[Mapping[str, float], Warnings]:
        """Return the labels a job wants, and what it should know of them."""
        return found, ()


class ClosedClassifier(Classifier):
    """A network with classes of its own."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        config = network.net.config
        self._names = class_names(entry, config)
        self._several = config.problem_type == "multi_label_classification"

    @torch.inference_mode()
    def scores(
        self, tasks: Sequence[Task], images: Sequence[Pixels]
    ) -> list[Mapping[str, float] | Exception]:
        """See `Classifier`."""
        found: list[Mapping[str, float] | Exception] = [{} for _ in images]
        for places, pixels in self.network.pixel_values(images):
            logits = self.network.net(pixel_values=pixels).logits.float()  # (n, classes)
            chances = logits.sigmoid() if self._several else logits.softmax(-1)
            for place, row in zip(places, chances.cpu(), strict=True):
                finite = bool(torch.isfinite(row).all())
                found[place] = _table(self._names, row) if finite else weights.not_finite()
        return found

    def chosen(self, task: Task, found: Mapping[str, float]) -> tuple[Mapping[str, float], Warnings]:
        """Keep the labels a job names; they compare without regard to case."""
        wanted = {str(label).strip().casefold() for label in task.spec.input.get("labels") or ()}
        if not wanted:
            return found, ()
        unknown = sorted(wanted - {name.casefold() for name in found})
        warnings = tuple(
            {"code": "unknown_label", "message": f"the model has no class {label!r}"} for label in unknown
        )
        return {name: score for name, score in found.items() if name.casefold() in wanted}, warnings


class ZeroShotClassifier(Classifier):
    """Two towers, one for pictures and one for texts; the labels come with the job."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        self._template = str(entry.defaults.get("template", _TEMPLATE))
        if "{label}" not in self._template:
            raise ModelUnavailable("its template has no {label}")
        self._pairwise = network.net.config.model_type in _PAIRWISE

    @torch.inference_mode()
    def scores(
        self, tasks: Sequence[Task], images: Sequence[Pixels]
    ) -> list[Mapping[str, float] | Exception]:
        """Read the labels of all jobs once, then let each job choose among its own."""
        wishes = [_labels(task) for task in tasks]
        every = list(dict.fromkeys(label for wish in wishes for label in wish))
        if not every:
            return [_no_labels() for _ in tasks]
        logits = self._logits(images, every)  # (n, labels)
        found: list[Mapping[str, float] | Exception] = []
        for wish, row in zip(wishes, logits, strict=True):
            mine = row[[every.index(label) for label in wish]]
            if not wish:
                found.append(_no_labels())
            elif not bool(torch.isfinite(mine).all()):
                found.append(weights.not_finite())
            else:
                found.append(_table(wish, mine.sigmoid() if self._pairwise else mine.softmax(-1)))
        return found

    def _logits(self, images: Sequence[Pixels], labels: Sequence[str]) -> torch.Tensor:
        inputs = self.network.processor(
            text=[self._template.replace("{label}", label) for label in labels],
            images=list(images),
            return_tensors="pt",
            padding="max_length" if self._pairwise else True,  # SigLIP was trained so
            truncation=True,
        )
        answer = self.network.net(**self.network.send(inputs)).logits_per_image
        found: torch.Tensor = answer.float().cpu()
        return found


def _table(names: Sequence[str], row: torch.Tensor) -> dict[str, float]:
    return dict(zip(names, row.tolist(), strict=True))


def _labels(task: Task) -> list[str]:
    return list(dict.fromkeys(str(label).strip() for label in task.spec.input.get("labels") or ()))


def _no_labels() -> InvalidInput:
    return InvalidInput("the model chooses among labels: name some", pointer="/input/labels")


def load(entry: ModelEntry, device: Device) -> Classifier:
    """Open the entry's directory on the device and run it once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a classifier, or the template has no label.
    """
    kind, processors, auto = (
        (ZeroShotClassifier, AutoProcessor, AutoModelForZeroShotImageClassification)
        if entry.phrases
        else (ClosedClassifier, AutoImageProcessor, AutoModelForImageClassification)
    )
    network = open_network(entry, device, auto, processors)
    with weights.loading(entry):
        model: Any = kind(entry, network)
        fields = {"labels": ["a thing"]} if entry.phrases else {}
        model.warm_up(Task(spec=probe(Kind.CLASSIFY, entry, **fields)))
    loaded: Classifier = model
    return loaded
