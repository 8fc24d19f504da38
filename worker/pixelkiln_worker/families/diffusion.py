"""Text to image by any directory that diffusers' `AutoPipelineForText2Image` opens.

One CPU generator for each picture, so that its noise never depends on the batch it rides in. Importing this
module imports torch and diffusers (seconds): workers do it at boot.
"""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoPipelineForText2Image
from numpy.typing import NDArray

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Task, Watch

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")
_TRUSTED_MODULES = frozenset({"diffusers", "transformers"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One picture to make: a place of a forward pass."""

    task: int
    prompt: str
    negative_prompt: str
    seed: int


class Diffusion:
    """A pipeline, loaded. Only one thread may use it: its scheduler has state."""

    def __init__(self, entry: ModelEntry, device: Device, pipe: Any, identity: Mapping[str, Any]) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity: dict[str, Any] = dict(identity)
        self.footprint_bytes = sum(_size_bytes(module) for module in _modules(pipe).values())
        self._pipe: Any = pipe
        self._accepted = frozenset(inspect.signature(pipe.__call__).parameters)
        self._options = frozenset(entry.options)

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Make every job's pictures, the rows of all jobs together, at most `max_rows` in one pass.

        All tasks share size, steps, guidance and options (one batch key); pictures come in order of seed.
        """
        passes = list(self._passes(_rows(batch)))
        made: list[list[Picture]] = [[] for _ in batch]
        broken: set[int] = set()
        for number, rows in enumerate(passes):
            pixels = self._pass(rows, batch[0].spec.input, _Progress(watch, number, len(passes)))
            for row, picture in zip(rows, pixels, strict=True):
                if np.isfinite(picture).all():
                    made[row.task].append(Picture(pixels=_to_uint8(picture), seed=row.seed))
                else:
                    broken.add(row.task)
        return [
            self._outcome(task, tuple(made[index])) if index not in broken else weights.not_finite()
            for index, task in enumerate(batch)
        ]

    def warm_up(self, entry: ModelEntry) -> None:
        """Make one picture in one step: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the pipeline's numbers are not finite.
        """
        side = min(512, entry.limits.max_side)
        shape = {"width": side, "height": side, "guidance": 3.0} | dict(entry.defaults) | {"steps": 1}
        row = _Row(task=0, prompt="a", negative_prompt="", seed=0)
        if not np.isfinite(self._pass([row], shape, _Progress(_Nobody(), 0, 1))).all():
            raise weights.not_finite()

    def close(self) -> None:
        """Drop the pipeline and hand its memory back."""
        self._pipe = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _passes(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Cut rows into passes; SDXL tells no negative prompt from an empty one, so there they stay apart."""
        alike = [rows]
        if self._pipe.config.get("force_zeros_for_empty_prompt"):
            ordered = sorted(rows, key=lambda row: bool(row.negative_prompt))
            alike = [list(group) for _, group in groupby(ordered, key=lambda row: bool(row.negative_prompt))]
        for group in alike:
            yield from (group[start : start + self.max_rows] for start in range(0, len(group), self.max_rows))

    def _pass(
        self, rows: Sequence[_Row], shared: Mapping[str, Any], progress: _Progress
    ) -> NDArray[np.floating]:
        """Run one forward pass; return NHWC in [0, 1]."""
        steps = shared["steps"]
        arguments: dict[str, Any] = {
            "prompt": [row.prompt for row in rows],
            "generator": [torch.Generator("cpu").manual_seed(row.seed) for row in rows],
            "num_inference_steps": steps,
            "guidance_scale": shared["guidance"],
            "width": shared["width"],
            "height": shared["height"],
            "output_type": "np",
            "callback_on_step_end": progress.on_step(steps),
        }
        if any(row.negative_prompt for row in rows):
            arguments["negative_prompt"] = [row.negative_prompt for row in rows]
        options = {k: v for k, v in (shared.get("options") or {}).items() if k in self._options}
        arguments = {k: v for k, v in (arguments | options).items() if k in self._accepted}
        images = self._pipe(**arguments).images
        progress.done(steps)
        return np.asarray(images)

    def _outcome(self, task: Task, pictures: tuple[Picture, ...]) -> Outcome:
        fields, found = task.spec.input, []
        if (cut := self._truncated(fields["prompt"])) is not None:
            found.append({"code": "prompt_truncated", "message": cut})
        negative = fields.get("negative_prompt") or ""
        if negative and not self._reads_negative(fields):
            message = "the model does not use a negative prompt at this guidance"
            found.append({"code": "negative_prompt_ignored", "message": message})
        return Outcome(pictures=pictures, warnings=tuple(found))

    def _reads_negative(self, fields: Mapping[str, Any]) -> bool:
        if "true_cfg_scale" in self._accepted:  # models with distilled guidance, FLUX among them
            default = inspect.signature(self._pipe.__call__).parameters["true_cfg_scale"].default
            return float((fields.get("options") or {}).get("true_cfg_scale", default)) > 1
        return "negative_prompt" in self._accepted and fields["guidance"] > 1

    def _truncated(self, prompt: str) -> str | None:
        """Say how much of the prompt is read, when no text encoder of the pipeline reads all of it."""
        counts = [self._tokens(tokenizer, prompt) for tokenizer in _tokenizers(self._pipe)]
        if not counts or any(count <= limit for count, limit in counts):
            return None
        count, limit = max(counts, key=lambda pair: pair[1])
        return f"the model reads {limit} tokens of a prompt; this one has {count}, and its end was not read"

    def _tokens(self, tokenizer: Any, prompt: str) -> tuple[int, int]:
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        limit = int(tokenizer.model_max_length)
        if "T5" in type(tokenizer).__name__ and "max_sequence_length" in self._accepted:
            limit = inspect.signature(self._pipe.__call__).parameters["max_sequence_length"].default
        return count, limit


class _Progress:
    """Counts the steps of all passes of a batch as one run."""

    def __init__(self, watch: Watch, number: int, passes: int) -> None:
        self._watch, self._number, self._passes = watch, number, passes
        self._reported = 0

    def on_step(self, steps: int) -> Callable[..., dict[str, Any]]:
        """Return a `callback_on_step_end`; a `JobCanceled` of the watch stops the pipeline there."""

        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._report(min(index + 1, steps), steps)
            return {}

        return callback

    def done(self, steps: int) -> None:
        """Report the last step of pipelines that take no callback, or take fewer steps than asked."""
        if self._reported < steps:
            self._report(steps, steps)

    def _report(self, step: int, steps: int) -> None:
        self._reported = step
        self._watch.step(self._number * steps + step, self._passes * steps)


def load(entry: ModelEntry, device: Device) -> Diffusion:
    """Open the entry's directory on the device, in the device's dtype, and run one step to warm it.

    Loading is a memory map when the stored dtype is the run dtype, else a cast.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a text-to-image pipeline.
    """
    found = weights.resolve(entry)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()  # their logs repeat prompts
        library.utils.logging.disable_progress_bar()
    with weights.loading(entry):
        pipe = AutoPipelineForText2Image.from_pretrained(
            str(found.folder),
            dtype=getattr(torch, device.dtype_name),
            variant=found.variant,
            use_safetensors=True,
            local_files_only=True,
            **_absent(_index(found)),
        )
        for name, module in _modules(pipe).items():
            found.check_complete(module, name)
            module.eval().requires_grad_(False)
        pipe.to(device.name)
        pipe.set_progress_bar_config(disable=True)
        vae: Any = getattr(pipe, "vae", None)  # pipelines that work on pixels have none
        if device.kind == "cuda" and hasattr(vae, "enable_slicing"):
            vae.enable_slicing()  # decodes one picture at a time: the peak of a batch is in the VAE
        identity = found.identity | {
            "pipeline": type(pipe).__name__,
            "scheduler": type(pipe.scheduler).__name__,
            "dtype": device.dtype_name,
            "device": _device_title(device),
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        model = Diffusion(entry, device, pipe, identity)
        model.warm_up(entry)
    return model


class _Nobody:
    """A watch that nobody reads."""

    def step(self, step: int, steps: int) -> None:
        """Do nothing."""

    def previews_due(self) -> Sequence[int]:
        """Ask for none."""
        return ()

    def preview(self, index: int, pixels: Pixels) -> None:
        """Do nothing."""


def _rows(batch: Sequence[Task]) -> list[_Row]:
    return [
        _Row(
            task=index,
            prompt=task.spec.input["prompt"],
            negative_prompt=task.spec.input.get("negative_prompt") or "",
            seed=task.spec.input["seed"] + picture,
        )
        for index, task in enumerate(batch)
        for picture in range(task.spec.rows)
    ]


def _index(found: weights.Weights) -> dict[str, Any]:
    """Return `model_index.json`, checked to name nothing but library classes.

    Raises:
        ModelUnavailable: the folder is no pipeline, or asks for code of its own.
    """
    path = found.folder / "model_index.json"
    if not path.is_file():
        raise ModelUnavailable("the folder has no model_index.json: not a diffusers pipeline")
    index: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if not isinstance(index.get("_class_name"), str):
        raise ModelUnavailable("a pipeline with code of its own is not loaded")
    for name, component in _components(index).items():
        if component[0] not in {None, *_TRUSTED_MODULES} and name not in _absent(index):
            raise ModelUnavailable(f"component {name} comes from {component[0]!r}, which is not loaded")
    return index


def _components(index: Mapping[str, Any]) -> dict[str, list[str | None]]:
    return {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}


def _absent(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to pass to `from_pretrained` for components that are not there or not wanted.

    A pipeline saved with None for a component does not open again unless told so.
    """
    absent: dict[str, Any] = {name: None for name, value in _components(index).items() if value[0] is None}
    if "safety_checker" in index:
        absent |= {"safety_checker": None, "feature_extractor": None}
    if "requires_safety_checker" in index:
        absent["requires_safety_checker"] = False
    return absent


def _modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _tokenizers(pipe: Any) -> list[Any]:
    found = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3"))
    return [tokenizer for tokenizer in found if tokenizer is not None]


def _size_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _device_title(device: Device) -> str:
    return torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name


def _to_uint8(picture: NDArray[np.floating]) -> Pixels:
    return np.asarray((picture * 255).round().clip(0, 255), np.uint8)
