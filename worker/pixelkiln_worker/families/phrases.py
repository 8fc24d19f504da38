"""What phrases name: CLIPSeg (Lüddecke and Ecker 2022), from any folder transformers opens as one.

Each of a job's `labels` is a phrase, and each phrase gets a probability for every pixel. A picture is encoded
once for all its phrases. Importing this module imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from transformers import AutoProcessor, CLIPSegForImageSegmentation

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.networks import Network, PictureModel, open_network, probe
from pixelkiln_worker.families.segmentation import ClassTable, instances
from pixelkiln_worker.families.segments import assemble, enlarge, shrink

WORK_PX = 1024
"""Longest side at which phrases are compared for each pixel; larger pictures get the nearest one's."""
THRESHOLD = 0.5
"""Of models whose catalogue entry names none; the published CLIPSeg does best a little lower."""
_PAIRS_PER_PASS = 64
_BANDS = 16
"""Phrases enlarged at once: at 1024 x 1024 each takes 4 MB."""

Warnings = tuple[dict[str, str], ...]


class PhraseSegmenter(PictureModel):
    """A CLIPSeg, loaded."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        super().__init__(entry, network)
        self._threshold = float(entry.defaults.get("threshold", THRESHOLD))
        self._things = frozenset(name.casefold() for name in entry.things)

    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Find the phrases of all pictures in one pass."""
        asked = [phrases_of(task) for task in tasks]
        logits = self._logits(images, asked)
        return [self._outcome(*one) for one in zip(tasks, images, asked, logits, strict=True)]

    @torch.inference_mode()
    def _logits(self, images: Sequence[Pixels], asked: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Return for each picture the logits of its phrases, (phrases, h, w), at the network's resolution."""
        every = list(dict.fromkeys(phrase for phrases in asked for phrase in phrases))
        conditions = self._conditions(every)
        found = [torch.empty(0)] * len(images)
        for places, pixels in self.network.pixel_values(images):
            levels = self._levels(pixels)
            pairs = [(row, phrase) for row, place in enumerate(places) for phrase in asked[place]]
            logits = self._decode(levels, pairs, {phrase: conditions[n] for n, phrase in enumerate(every)})
            for row, place in enumerate(places):
                found[place] = logits[[n for n, pair in enumerate(pairs) if pair[0] == row]]
        return found

    def _conditions(self, phrases: Sequence[str]) -> torch.Tensor:
        """Return what the decoder is told of each phrase, (phrases, width)."""
        if not phrases:
            return torch.empty(0)
        tokens = self.network.processor.tokenizer(
            list(phrases), padding=True, truncation=True, max_length=self._longest(), return_tensors="pt"
        )
        sent = self.network.send({name: tokens[name] for name in ("input_ids", "attention_mask")})
        conditions: torch.Tensor = self.network.net.get_conditional_embeddings(len(phrases), **sent)
        return conditions

    def _longest(self) -> int:
        return int(self.network.net.config.text_config.max_position_embeddings)

    def _levels(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return what the decoder reads of the pictures: (n, tokens, width) of some layers."""
        net = self.network.net
        vision = net.clip.get_image_features(pixels, output_hidden_states=True)
        return [vision.hidden_states[layer + 1] for layer in net.extract_layers]

    def _decode(
        self, levels: list[torch.Tensor], pairs: list[tuple[int, str]], conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the logits of (picture, phrase) pairs, (pairs, h, w), float32 on the CPU."""
        found = [torch.empty(0, 1, 1)]
        for first in range(0, len(pairs), _PAIRS_PER_PASS):
            some = pairs[first : first + _PAIRS_PER_PASS]
            rows = [row for row, _ in some]
            told = torch.stack([conditions[phrase] for _, phrase in some])
            found.append(
                self.network.net.decoder([level[rows] for level in levels], told).logits.float().cpu()
            )
        return torch.cat(found[1:] or found)

    def _outcome(
        self, task: Task, image: Pixels, phrases: Sequence[str], logits: torch.Tensor
    ) -> Outcome | Exception:
        if not phrases:
            return no_phrases()
        if not torch.isfinite(logits).all():
            return weights.not_finite()
        asked = task.spec.input.get("threshold")
        threshold = self._threshold if asked is None else float(asked)
        found = self._segmentation(image, phrases, logits, threshold)
        warnings = missing(phrases, found, torch.sigmoid(logits).flatten(1).amax(1).tolist(), threshold)
        detail: dict[str, Any] = {"labels": sorted({segment.label for segment in found.segments})}
        return Outcome(segmentation=found, detail=detail | self.world_note(), warnings=warnings)

    def _segmentation(
        self, image: Pixels, phrases: Sequence[str], logits: torch.Tensor, threshold: float
    ) -> Segmentation:
        height, width = shrink(image, WORK_PX).shape[:2]
        best, winner = best_of(logits, (height, width))
        winner = torch.where(best >= threshold, winner + 1, 0)
        things = {number for number, phrase in enumerate(phrases, 1) if phrase.casefold() in self._things}
        table = ClassTable(names=("", *phrases), things=frozenset(things), nothing=frozenset({0}))
        found = assemble(*instances(winner.numpy(), best.numpy(), table))
        full = enlarge(found.ids, image.shape[0], image.shape[1])
        return Segmentation(ids=np.asarray(full, np.uint16), segments=found.segments)


def phrases_of(task: Task) -> list[str]:
    """Return what a job looks for, without repetitions."""
    stripped = (str(label).strip() for label in task.spec.input.get("labels") or ())
    return list({phrase.casefold(): phrase for phrase in stripped if phrase}.values())


def no_phrases() -> InvalidInput:
    """Return the error of a job that does not say what it looks for."""
    return InvalidInput("name what to find", code="missing_field", pointer="/input/labels")


def best_of(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each pixel's highest probability and whose it is, (h, w) each, at another size (bilinear)."""
    best, winner = torch.full(size, -1.0), torch.zeros(size, dtype=torch.long)
    for first in range(0, len(logits), _BANDS):
        some = logits[first : first + _BANDS]
        large = F.interpolate(some[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
        high, which = large.max(0)
        winner = torch.where(high > best, which + first, winner)
        best = torch.maximum(best, high)
    return best, winner


def missing(
    phrases: Sequence[str], found: Segmentation, highest: Sequence[float], threshold: float
) -> Warnings:
    """Return a warning for each phrase that got no segment; `highest` are the best scores of each."""
    there = {segment.label for segment in found.segments}
    warnings = []
    for phrase, score in zip(phrases, highest, strict=True):
        if phrase in there:
            continue
        why = f"its highest score is {score:.2f}, the threshold {threshold:g}"
        if score >= threshold:
            why = "only in specks, or where another phrase fits better"
        warnings.append({"code": "nothing_found", "message": f"{phrase!r} was not found: {why}"})
    return tuple(warnings)


def load(entry: ModelEntry, device: Device) -> PhraseSegmenter:
    """Open the entry's directory on the device and look for a phrase once to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not CLIPSeg's.
    """
    network = open_network(entry, device, CLIPSegForImageSegmentation, AutoProcessor)
    with weights.loading(entry):
        model = PhraseSegmenter(entry, network)
        model.warm_up(Task(spec=probe(Kind.SEGMENT, entry, labels=["a house"])))
    return model
