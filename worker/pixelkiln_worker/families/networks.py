"""What the families on transformers share: a network opened and checked, and pictures run through it.

Importing this module imports torch and transformers: workers do it at boot.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Pixels, Task, Watch

_LIBRARIES = ("torch", "transformers", "safetensors")


class Network:
    """A network on its device, with the processor that makes its input.

    Attributes:
        net: the transformers module, in eval mode, without gradients.
        processor: its image processor, or the processor that also holds a tokenizer.
        identity: what a manifest says of the weights and of where they run.
    """

    def __init__(self, net: Any, processor: Any, device: Device, identity: dict[str, Any]) -> None:
        self.net = net
        self.processor = processor
        self.device = device
        self.identity = identity

    @property
    def footprint_bytes(self) -> int:
        """Device memory of parameters and buffers."""
        tensors = (*self.net.parameters(), *self.net.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def send(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a processor's tensors on the device, those of floating point in the network's dtype."""
        return {
            name: value.to(self.device.name, self.net.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }

    def pixel_values(self, images: Sequence[Pixels]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield the network's input in stacks of equal shape: the places of its pictures, and (n, 3, H, W).

        Processors that keep the aspect ratio give several shapes.
        """
        prepared = [self.processor(images=image, return_tensors="pt").pixel_values for image in images]
        shapes = dict.fromkeys(tuple(picture.shape) for picture in prepared)
        for shape in shapes:
            places = [index for index, picture in enumerate(prepared) if tuple(picture.shape) == shape]
            stack = torch.cat([prepared[index] for index in places])
            yield places, stack.to(self.device.name, self.net.dtype)

    def see_whole_pictures(self) -> None:
        """Keep the processor from cutting out the middle: answers for each pixel cover all of a picture."""
        if getattr(self.processor, "do_center_crop", False):
            self.processor.do_center_crop = False

    def close(self) -> None:
        """Drop the network and hand its memory back."""
        self.net = self.processor = None
        gc.collect()
        self.device.free_caches()


def class_names(entry: ModelEntry, config: Any) -> tuple[str, ...]:
    """Return the names of a network's classes by index; the catalogue's win over those of its configuration.

    Raises:
        ModelUnavailable: the catalogue names another number of classes than the network has.
    """
    own = tuple(config.id2label[index] for index in sorted(config.id2label))
    if entry.classes and len(entry.classes) != len(own):
        raise ModelUnavailable(
            f"the catalogue names {len(entry.classes)} classes, and the network has {len(own)}"
        )
    return tuple(entry.classes) or own


def open_network(
    entry: ModelEntry, device: Device, auto: Any, processors: Any = AutoImageProcessor
) -> Network:
    """Open the entry's folder on the device, in the entry's dtype or the device's.

    Args:
        entry: whose `source` is a transformers folder.
        device: where it runs.
        auto: the class whose `from_pretrained` builds the network, such as `AutoModelForDepthEstimation`.
        processors: the same for its processor.

    Raises:
        ModelUnavailable: the weights are missing, damaged, incomplete, or of another kind of network.
    """
    found = weights.resolve(entry)
    transformers.utils.logging.set_verbosity_error()  # their logs repeat prompts
    transformers.utils.logging.disable_progress_bar()
    dtype_name = entry.dtype or device.dtype_name
    more = {"attn_implementation": entry.attention} if entry.attention else {}
    with weights.loading(entry):
        net, facts = auto.from_pretrained(
            str(found.folder),
            dtype=getattr(torch, dtype_name),
            variant=found.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
        if lacking := sorted(map(str, facts["missing_keys"] or facts["mismatched_keys"])):
            raise ModelUnavailable(f"the weights are incomplete: no {lacking[0]}")
        processor = processors.from_pretrained(  # PIL everywhere: the same pixels on every machine
            str(found.folder), backend="pil", local_files_only=True, trust_remote_code=False
        )
        net.eval().requires_grad_(False).to(device.name)
    identity = found.identity | {
        "network": type(net).__name__,
        "dtype": dtype_name,
        "device": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name,
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    return Network(net, processor, device, identity)


def probe(kind: Kind, entry: ModelEntry, **fields: Any) -> JobSpec:
    """Return the job a model is warmed up with."""
    return JobSpec(id="warm-up", kind=kind, model=entry.id, tenant="", input=fields)


class PictureModel(ABC):
    """A model that answers each picture by itself, several in one forward pass."""

    def __init__(self, entry: ModelEntry, network: Network) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity = network.identity
        self.footprint_bytes = network.footprint_bytes
        self.network = network
        self._world = entry.world

    @abstractmethod
    def answer(self, tasks: Sequence[Task], images: Sequence[Pixels]) -> list[Outcome | Exception]:
        """Return an outcome for each task; `images` are their pictures, at most `max_rows`."""

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Answer the pictures, `max_rows` in one pass; a step is a pass."""
        outcomes: list[Outcome | Exception] = []
        passes = -(-len(batch) // self.max_rows)
        for number in range(passes):
            tasks = batch[number * self.max_rows : (number + 1) * self.max_rows]
            outcomes += self._pass(tasks)
            watch.step(number + 1, passes)
        return outcomes

    def warm_up(self, task: Task) -> None:
        """Answer a grey picture: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the network's numbers are not finite.
        """
        (found,) = self.answer([task], [np.full((64, 64, 3), 128, np.uint8)])
        if isinstance(found, Exception):
            raise found

    def close(self) -> None:
        """Drop the network and hand its memory back."""
        self.network.close()

    def world_note(self) -> dict[str, str]:
        """What a result's detail says of a model that knows only its own world."""
        if not self._world:
            return {}
        return {"note": f"the model knows only pictures of its own world, {self._world}"}

    def _pass(self, tasks: Sequence[Task]) -> list[Outcome | Exception]:
        images = {index: task.image for index, task in enumerate(tasks) if task.image is not None}
        found = self.answer([tasks[index] for index in images], list(images.values())) if images else []
        outcomes = dict(zip(images, found, strict=True))
        missing = InvalidInput("the job needs a picture", pointer="/input/image")
        return [outcomes.get(index, missing) for index in range(len(tasks))]
