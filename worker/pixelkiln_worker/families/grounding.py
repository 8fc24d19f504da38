"""Boxes around what phrases name: OWL-ViT, OWLv2 and Grounding DINO behind one question.

Minderer et al. 2022 and 2023; Liu et al. 2023. Importing this module imports torch and transformers: workers
do it at boot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Box
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Pixels
from pixelkiln_worker.families.networks import Network, open_network

OVERLAP = 0.7
"""Highest IoU of two boxes; of those that share more, the one of lower score goes."""
MOST = 255

Answers = tuple[torch.Tensor, torch.Tensor]
"""Probability of each phrase for each box, (boxes, phrases), and the boxes: XYXY in pixels of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """A box around something, which phrase names it (by index), and how surely, in [0, 1]."""

    box: Box
    phrase: int
    score: float


class Detector(ABC):
    """A network that answers phrases with boxes, loaded.

    Attributes:
        threshold: lowest score of what is kept, where nobody says otherwise.
    """

    threshold: float

    def __init__(self, network: Network) -> None:
        self.network = network

    @torch.inference_mode()
    def ask(self, images: Sequence[Pixels], phrases: Sequence[str]) -> list[Answers]:
        """Return the answers for each picture, those of one shape in one pass; float32 on the CPU."""
        found: list[Answers] = [(torch.empty(0), torch.empty(0))] * len(images)
        for places, pixels in self.network.pixel_values(images):
            scores, boxes = self._forward(pixels, phrases)
            for row, place in enumerate(places):
                across, down = self.reach(images[place])
                corners = _corners(boxes[row].float().cpu()) * torch.tensor([across, down, across, down])
                found[place] = (scores[row].float().cpu(), corners)
        return found

    @abstractmethod
    def reach(self, image: Pixels) -> tuple[float, float]:
        """Return which XY position of the picture the network calls (1, 1)."""

    @abstractmethod
    def _forward(self, pixels: torch.Tensor, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities (n, boxes, phrases) and boxes (n, boxes, 4): centre and size, in [0, 1]."""


class Owl(Detector):
    """OWL-ViT and OWLv2: a phrase is a query, by itself."""

    threshold = 0.1

    def reach(self, image: Pixels) -> tuple[float, float]:
        """OWLv2's pictures lie in a padded square, OWL-ViT's are stretched."""
        height, width = image.shape[:2]
        padded = self.network.net.config.model_type == "owlv2"
        return (max(height, width),) * 2 if padded else (width, height)

    def _forward(self, pixels: torch.Tensor, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        net, longest = self.network.net, self.network.net.config.text_config.max_position_embeddings
        tokens = self.network.processor.tokenizer(
            list(phrases), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        asked = {name: tokens[name].repeat(len(pixels), 1) for name in ("input_ids", "attention_mask")}
        made = net(pixel_values=pixels, **self.network.send(asked))
        return made.logits.sigmoid(), made.pred_boxes


class Dino(Detector):
    """Grounding DINO: the phrases are one text, and a phrase's probability is that of its best token."""

    threshold = 0.25

    def reach(self, image: Pixels) -> tuple[float, float]:
        """The picture keeps its shape."""
        return image.shape[1], image.shape[0]

    def _forward(self, pixels: torch.Tensor, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        scores, boxes, first = [], [], 0
        for ids, spans in self._texts(phrases):
            tokens = torch.tensor(ids, device=pixels.device).repeat(len(pixels), 1)
            made = self.network.net(
                pixel_values=pixels,
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                token_type_ids=torch.zeros_like(tokens),
            )
            likely = made.logits.sigmoid()  # (n, boxes, tokens)
            of_text = torch.stack([likely[..., begin:end].amax(-1) for begin, end in spans], -1)
            after = len(phrases) - first - len(spans)
            scores.append(torch.nn.functional.pad(of_text, (first, after)))
            boxes.append(made.pred_boxes)
            first += len(spans)
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def _texts(self, phrases: Sequence[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Yield "phrase . phrase ." as token ids, and where each phrase is; as few texts as hold them all."""
        tokenizer, most = self.network.processor.tokenizer, int(self.network.net.config.max_text_len)
        stop = tokenizer.convert_tokens_to_ids(".")
        ids: list[int] = [tokenizer.cls_token_id]
        spans: list[tuple[int, int]] = []
        for phrase in phrases:
            plain = phrase.lower().replace(".", " ").replace("?", " ")  # both would end the phrase
            own = tokenizer(plain, add_special_tokens=False).input_ids[: most - 3] or [tokenizer.unk_token_id]
            if len(ids) + len(own) + 2 > most:
                yield [*ids, tokenizer.sep_token_id], spans
                ids, spans = [tokenizer.cls_token_id], []
            spans.append((len(ids), len(ids) + len(own)))
            ids += [*own, stop]
        yield [*ids, tokenizer.sep_token_id], spans


_KINDS: dict[str, type[Detector]] = {
    "owlvit": Owl,
    "owlv2": Owl,
    "grounding-dino": Dino,
    "mm-grounding-dino": Dino,
}


def open_detector(entry: ModelEntry, device: Device) -> Detector:
    """Open the entry's folder.

    Raises:
        ModelUnavailable: the weights are missing, damaged or of no detector known here.
    """
    network = open_network(entry, device, AutoModelForZeroShotObjectDetection, AutoProcessor)
    with weights.loading(entry):
        kind = str(network.net.config.model_type)
        if kind not in _KINDS:
            raise ModelUnavailable(f"no detector {kind!r} is known here; there are {', '.join(_KINDS)}")
        return _KINDS[kind](network)


def choose(answers: Answers, image: Pixels, threshold: float) -> list[Detection]:
    """Return the boxes of at least the threshold that do not repeat each other, the surest first."""
    best, which = answers[0].max(1)
    height, width = image.shape[:2]
    corners = answers[1].clamp(min=0)
    corners = torch.minimum(corners, torch.tensor([width, height, width, height]))
    sizes = corners[:, 2:] - corners[:, :2]
    kept = torch.nonzero((best >= threshold) & (sizes >= 1).all(1)).flatten()
    kept = kept[_apart(corners[kept], best[kept])]
    return [
        Detection(box=_box(corners[index].tolist()), phrase=int(which[index]), score=float(best[index]))
        for index in kept.tolist()
    ]


def _apart(corners: torch.Tensor, scores: torch.Tensor) -> list[int]:
    """Return the places of boxes that do not overlap a surer one, whatever their phrases."""
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    left = torch.ones(len(scores), dtype=torch.bool)
    chosen: list[int] = []
    for place in torch.argsort(scores, descending=True, stable=True).tolist():
        if not left[place] or len(chosen) == MOST:
            continue
        chosen.append(place)
        low = torch.maximum(corners[:, :2], corners[place, :2])
        high = torch.minimum(corners[:, 2:], corners[place, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left &= shared / (areas + areas[place] - shared) <= OVERLAP
    return chosen


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """From centre and size to corners, (n, 4)."""
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def _box(corners: list[Any]) -> Box:
    x0, y0, x1, y1 = map(float, corners)
    return Box(x0=x0, y0=y0, x1=x1, y1=y1)
