"""Segment Anything, 1 and 2 (Kirillov et al. 2023; Ravi et al. 2024), as the families use it.

A picture is encoded once; each mark then costs a pass of the small decoder. Importing this module imports
torch and transformers: workers do it at boot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForMaskGeneration, Sam2Model, SamModel

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Box, Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Memory, Pixels, Task
from pixelkiln_worker.families.embeddings import Embeddings, Levels, pack
from pixelkiln_worker.families.marks import Marks
from pixelkiln_worker.families.networks import Network, open_network, probe

OBJECTS_PER_PASS = 64
"""Of the decoder; each takes three masks of the network's resolution."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """How a picture lies in the network's square input: at its top left, resized, the rest is padding.

    Sizes are (height, width) in pixels: the picture's, its size in the input, the input's side.
    """

    picture: tuple[int, int]
    inner: tuple[int, int]
    side: int

    @classmethod
    def of(cls, image: Pixels, side: int, *, padded: bool) -> Frame:
        """Return where a picture comes to lie; without padding it is stretched over the whole input."""
        height, width = image.shape[:2]
        scale = side / max(height, width)
        inner = (int(height * scale + 0.5), int(width * scale + 0.5)) if padded else (side, side)
        return cls(picture=(height, width), inner=inner, side=side)

    def place(self, corners: Sequence[tuple[float, float]]) -> torch.Tensor:
        """Return XY positions of the picture as positions of the input, (n, 2)."""
        scale = torch.tensor([self.inner[1] / self.picture[1], self.inner[0] / self.picture[0]])
        return torch.tensor(corners, dtype=torch.float32).reshape(-1, 2) * scale

    def crop(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the part of maps over the whole input (n, h, w) that shows the picture, not padding."""
        rows, columns = (-(-size * maps.shape[-1] // self.side) for size in self.inner)
        return maps[:, :rows, :columns]

    def restore(self, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return maps over the whole input (n, h, w) as maps of the picture alone, (n, *size), bilinear."""
        maps = maps[None]
        if self.inner != (self.side, self.side):
            maps = F.interpolate(maps, (self.side, self.side), mode="bilinear", align_corners=False)
            maps = maps[..., : self.inner[0], : self.inner[1]]
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A picture, encoded. `memory` is what is worth keeping of it: None when it was kept already."""

    frame: Frame
    levels: Levels
    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposals:
    """Masks the network proposes for n objects: the logits of each over the input, its predicted IoU.

    `logits` are (n, m, h, w), `scores` (n, m): m guesses at what each object is, from part to whole.
    """

    logits: torch.Tensor
    scores: torch.Tensor

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guess of the highest predicted IoU for each object: (n, h, w) and (n)."""
        scores, which = self.scores.max(1)
        return self.logits[torch.arange(len(which)), which], scores


class Sam:
    """A network of either generation, loaded, with the embeddings it made lately."""

    def __init__(self, network: Network) -> None:
        net = network.net
        if not isinstance(net, SamModel | Sam2Model):
            raise ModelUnavailable(f"{type(net).__name__} takes points in a way that is not SAM's or SAM 2's")
        self.network = network
        self._side = int(net.prompt_encoder.input_image_size)
        self._padded = isinstance(net, SamModel)
        kept_as = torch.bfloat16 if net.dtype == torch.bfloat16 else torch.float16
        self._embeddings = Embeddings(network.identity, kept_as)
        self._shapes: list[tuple[int, ...]] = []

    @classmethod
    def open(cls, entry: ModelEntry, device: Device) -> Self:
        """Open the entry's folder.

        Raises:
            ModelUnavailable: the weights are missing, damaged or not SAM's.
        """
        network = open_network(entry, device, AutoModelForMaskGeneration, _Processors)
        with weights.loading(entry):
            return cls(network)

    def memory_key(self, task: Task) -> str:
        """See `contract.Remembers`."""
        assert task.image is not None  # noqa: S101
        return self._embeddings.key(task.spec.tenant, task.image)

    def at_hand(self, key: str) -> bool:
        """See `contract.Remembers`."""
        return key in self._embeddings

    def warm_up(self, entry: ModelEntry) -> None:
        """Cut a box out of a grey picture: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the network's numbers are not finite.
        """
        grey = np.full((64, 64, 3), 128, np.uint8)
        (encoded,) = self.encode([Task(spec=probe(Kind.SEGMENT, entry), images={"image": grey})], [grey])
        if isinstance(encoded, Exception):
            raise encoded
        self.propose(encoded, [Marks(box=Box(x0=16, y0=16, x1=48, y1=48))])

    def close(self) -> None:
        """Drop the network and the embeddings."""
        self._embeddings.clear()
        self.network.close()

    # ------------------------------------------------------------------------------------------------ encoder

    @torch.inference_mode()
    def encode(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Encoded | ModelUnavailable]:
        """Encode pictures in one pass, without those that were encoded before, here or elsewhere."""
        keys = [self._key(*one) for one in zip(tasks, images, strict=True)]
        known = {key: self._recalled(key, task) for key, task in zip(keys, tasks, strict=True)}
        places = {key: index for index, key in enumerate(keys) if known[key] is None}
        fresh = dict(zip(places, self._levels([images[index] for index in places.values()]), strict=True))
        for key, levels in fresh.items():
            if _finite(levels):
                self._embeddings.hold(key, levels)
        found: list[Encoded | ModelUnavailable] = []
        for key, image in zip(keys, images, strict=True):
            levels = known[key] or fresh[key]
            new = Memory(key=key, data=pack(levels)) if key in fresh else None
            frame = Frame.of(image, self._side, padded=self._padded)
            encoded = Encoded(frame=frame, levels=levels, memory=new)
            found.append(encoded if _finite(levels) else weights.not_finite())
        return found

    def _key(self, task: Task, image: Pixels) -> str:
        if task.memory and self._embeddings.made(task.memory.key):
            return task.memory.key
        return self._embeddings.key(task.spec.tenant, image)

    def _recalled(self, key: str, task: Task) -> Levels | None:
        held = self._embeddings.get(key)
        if held is None and task.memory and task.memory.key == key and task.memory.data:
            held = self._embeddings.unpack(task.memory.data, self._shapes)
            if held is not None:
                self._embeddings.hold(key, held)
        return held

    def _levels(self, images: Sequence[Pixels]) -> list[Levels]:
        found: list[Levels] = [()] * len(images)
        for places, pixels in self.network.pixel_values(images):
            made = self.network.net.get_image_embeddings(pixels)
            levels = made if isinstance(made, list | tuple) else [made]
            kept = [level.to("cpu", self._embeddings.dtype) for level in levels]
            self._shapes = [tuple(level.shape[1:]) for level in kept]
            for row, place in enumerate(places):
                found[place] = tuple(level[row].clone() for level in kept)
        return found

    # ------------------------------------------------------------------------------------------------ decoder

    @torch.inference_mode()
    def propose(self, encoded: Encoded, objects: Sequence[Marks]) -> Proposals:
        """Return what the network takes each marked object to be, in order, float32 on the CPU.

        Raises:
            ModelUnavailable: the network's numbers are not finite.
        """
        levels = [
            level[None].to(self.network.device.name, self.network.net.dtype) for level in encoded.levels
        ]
        logits: list[torch.Tensor] = [torch.empty(0)] * len(objects)
        scores = list(logits)
        for alike in _alike(objects):
            for first in range(0, len(alike), OBJECTS_PER_PASS):
                some = alike[first : first + OBJECTS_PER_PASS]
                found = self._decode(levels, self._prompt(encoded.frame, [objects[index] for index in some]))
                for row, place in enumerate(some):
                    logits[place], scores[place] = found[0][row], found[1][row]
        proposals = Proposals(logits=torch.stack(logits), scores=torch.stack(scores))
        if not (torch.isfinite(proposals.logits).all() and torch.isfinite(proposals.scores).all()):
            raise weights.not_finite()
        return proposals

    def _decode(
        self, levels: list[torch.Tensor], prompt: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        made = self.network.net(
            image_embeddings=levels[0] if self._padded else levels, multimask_output=True, **prompt
        )
        return made.pred_masks[0].float().cpu(), made.iou_scores[0].float().cpu()

    def _prompt(self, frame: Frame, objects: Sequence[Marks]) -> dict[str, torch.Tensor]:
        """Return the decoder's input for objects that are alike."""
        prompt = {}
        if objects[0].points:
            spots = [(point.x, point.y) for marks in objects for point in marks.points]
            signs = [[int(point.positive) for point in marks.points] for marks in objects]
            prompt["input_points"] = frame.place(spots).reshape(1, len(objects), -1, 2)
            prompt["input_labels"] = torch.tensor(signs)[None]
        boxes = [marks.box for marks in objects if marks.box is not None]
        if boxes:
            corners = [corner for box in boxes for corner in ((box.x0, box.y0), (box.x1, box.y1))]
            prompt["input_boxes"] = frame.place(corners).reshape(1, len(boxes), 4)
        return {name: value.to(self.network.device.name) for name, value in prompt.items()}


def _alike(objects: Sequence[Marks]) -> list[list[int]]:
    """Group objects by how they are marked: padding a prompt would change its masks."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for index, marks in enumerate(objects):
        groups.setdefault((marks.box is not None, len(marks.points)), []).append(index)
    return list(groups.values())


def _finite(levels: Levels) -> bool:
    return all(bool(torch.isfinite(level).all()) for level in levels)


# ------------------------------------------------------------------------------------------------ processors


class _Processors:
    """Opens the processor of either generation: SAM 2's in the library needs torchvision, so here is ours."""

    @staticmethod
    def from_pretrained(folder: str, **how: Any) -> Any:
        facts = _processor_facts(Path(folder))
        if str(facts.get("image_processor_type", "")).startswith("Sam2"):
            return Stretcher(facts)
        return AutoImageProcessor.from_pretrained(folder, **how)


def _processor_facts(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            facts = json.loads((folder / name).read_text("utf-8"))
            facts = facts.get("image_processor", facts)
            if "image_processor_type" in facts:
                return dict(facts)
    return {}


@dataclass(frozen=True, slots=True)
class _Prepared:
    pixel_values: torch.Tensor


class Stretcher:
    """SAM 2's image processor: the picture stretched over a square (bilinear, smoothed), then normalised."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.size = (int(facts["size"]["width"]), int(facts["size"]["height"]))
        self._mean = np.array(facts["image_mean"], np.float32)
        self._deviation = np.array(facts["image_std"], np.float32)

    def __call__(self, images: Pixels, return_tensors: str) -> _Prepared:
        resized = Image.fromarray(images).resize(self.size, Image.Resampling.BILINEAR)
        values = (np.asarray(resized, np.float32) / 255 - self._mean) / self._deviation
        return _Prepared(torch.from_numpy(values.transpose(2, 0, 1)[None].copy()))
