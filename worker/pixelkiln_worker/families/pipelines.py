"""Diffusers folders: opened and checked, put on the device, and asked for the pipelines a job needs.

Importing this module imports torch and diffusers (seconds): workers do it at boot.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    UNet2DConditionModel,
)

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import schedulers

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")
_TRUSTED_MODULES = frozenset({"diffusers", "transformers"})
_MASK_CHANNELS = 9  # of a U-Net trained for inpainting: latents, mask, and the latents the mask leaves
# How far a picture drawn in a batch may be from the same drawn alone.
_IN_A_BATCH = {
    "float32": "within 2e-6 of the range: at most 0.01 % of the 8-bit values differ, by 1",
    "bfloat16": "within its rounding: up to 8 % of the 8-bit values differ, by 1",
    "float16": "within its rounding",
}

INPAINT = "inpaint"
"""The companion of an entry that draws within masks: a nine-channel U-Net in place of the folder's own."""

Choose = Callable[[Path, Mapping[str, Any]], Any]
"""From a folder and its `model_index.json` to the class whose `from_pretrained` opens it."""


class Mode(StrEnum):
    """What a forward pass starts from."""

    TEXT = "text-to-image"
    IMAGE = "image-to-image"
    MASK = "inpainting"


_AUTO = {
    Mode.TEXT: AutoPipelineForText2Image,
    Mode.IMAGE: AutoPipelineForImage2Image,
    Mode.MASK: AutoPipelineForInpainting,
}


class Pipelines:
    """One folder's networks on the device, and the pipelines over them. Only one thread may use it.

    Attributes:
        base: the pipeline the folder was opened as.
        identity: what a manifest says of it.
        device: where the networks run.
        reads_masks: whether the folder's own network takes a mask, so that it draws everything as inpainting.
    """

    def __init__(
        self, base: Any, device: Device, identity: Mapping[str, Any], *, offload: bool, inpaint: Any = None
    ) -> None:
        self.base: Any = base
        self.identity: dict[str, Any] = dict(identity)
        self.reads_masks = reads_masks(base)
        self._scheduler = base.scheduler  # only a pattern: no pipeline ever runs it
        self._pipes: dict[tuple[Mode, bool], Any] = {
            (Mode.MASK if self.reads_masks else Mode.TEXT, False): base
        }
        self._inpaint = inpaint
        self.device = device
        self._offloads = offload
        self._offloaded: Any = None
        self._frugal = False
        if not offload:
            base.to(device.name)
            if inpaint is not None:
                inpaint.to(device.name)
        vae: Any = getattr(base, "vae", None)  # pipelines that work on pixels have none
        if device.kind == "cuda" and hasattr(vae, "enable_slicing"):
            vae.enable_slicing()  # decodes one picture at a time: the peak of a batch is in the VAE

    @property
    def footprint_bytes(self) -> int:
        """Device memory of the weights: of the largest component, when only one is there at a time."""
        sizes = [_size_bytes(module) for module in self._networks()]
        return max(sizes, default=0) if self._offloads else sum(sizes)

    @property
    def scheduler(self) -> str:
        """The class of the scheduler that came with the model."""
        return type(self._scheduler).__name__

    @property
    def has_companion(self) -> bool:
        """Whether another network than the folder's own draws within masks."""
        return self._inpaint is not None

    def get(self, mode: Mode, scheduler: str = "", *, adapted: bool = False) -> Any:
        """Return the pipeline of a mode, ready to run with a new scheduler; empty: one like the model's own.

        With `adapted` it is one of the folder's own networks, for which adapters are made.

        A scheduler has state (timesteps, step index) that derived pipelines would share, and that a canceled
        run leaves behind.

        Raises:
            ModelUnavailable: the library derives no such pipeline from this one.
        """
        key = mode, mode is Mode.MASK and self.has_companion and not adapted
        if key not in self._pipes:
            self._pipes[key] = self._derive(*key)
        pipe = self._pipes[key]
        own = self._scheduler
        pipe.scheduler = schedulers.build(scheduler, own) if scheduler else schedulers.fresh(own)
        if self._offloads and self._offloaded is not pipe:
            pipe.enable_model_cpu_offload(device=self.device.name)
            self._offloaded = pipe
        return pipe

    def economize(self) -> bool:
        """Need less memory: first decode and attend in slices, then keep only the working component there."""
        if not self._frugal:
            self._frugal = True
            for module in self._networks():
                _in_slices(module)
            return True
        if self.device.kind == "cpu" or self._offloads or not self.base.model_cpu_offload_seq:
            return False  # without an accelerator there is nowhere to offload from
        self._offloads = True
        return True

    def close(self) -> None:
        """Drop the pipelines and hand their memory back."""
        self._pipes.clear()
        self.base = self._offloaded = self._scheduler = self._inpaint = None
        gc.collect()
        self.device.free_caches()

    def _networks(self) -> list[torch.nn.Module]:
        own = list(modules(self.base).values())
        return own if self._inpaint is None else [*own, self._inpaint]

    def _derive(self, mode: Mode, by_companion: bool) -> Any:
        others = {"unet": self._inpaint} if by_companion else {}
        try:
            pipe = _AUTO[mode].from_pipe(self.base, **others)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelUnavailable(f"{type(self.base).__name__} does no {mode}") from error
        pipe.set_progress_bar_config(disable=True)
        return pipe


def auto(folder: Path, index: Mapping[str, Any]) -> Any:
    """Choose text to image, or inpainting where the network was trained for nothing else."""
    config = folder / "unet" / "config.json"
    channels = json.loads(config.read_text("utf-8")).get("in_channels") if config.is_file() else None
    return _AUTO[Mode.MASK if channels == _MASK_CHANNELS else Mode.TEXT]


def one_of(*names: str) -> Choose:
    """Return a choice among diffusers' pipeline classes of these names."""

    def choose(folder: Path, index: Mapping[str, Any]) -> Any:
        name = index["_class_name"]
        if name not in names:
            raise ModelUnavailable(f"a {name} is not one of {', '.join(names)}")
        return getattr(diffusers, name)

    return choose


def open_folder(entry: ModelEntry, device: Device, choose: Choose = auto) -> Pipelines:
    """Open the entry's folder on the device, in the entry's dtype or the device's.

    Loading is a memory map when the stored dtype is the run dtype, else a cast.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a pipeline of the kind asked for.
    """
    found = weights.resolve(entry)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()  # their logs repeat prompts
        library.utils.logging.disable_progress_bar()
    dtype_name = entry.dtype or device.dtype_name
    dtype = getattr(torch, dtype_name)
    with weights.loading(entry):
        index = _index(found)
        pipe = choose(found.folder, index).from_pretrained(
            str(found.folder),
            dtype=dtype,
            variant=found.variant,
            use_safetensors=True,
            local_files_only=True,
            **_absent(index),
        )
        for name, module in modules(pipe).items():
            found.check_complete(module, name)
            module.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        identity = _identity(found, pipe, device, dtype_name)
        needed_bytes = found.footprint_bytes(dtype.itemsize)
        inpaint = None
        if INPAINT in entry.companions:
            inpaint, beside = _open_companion(entry.companion(INPAINT), pipe, dtype)
            identity["companions"] = {INPAINT: beside.identity}
            needed_bytes += beside.footprint_bytes(dtype.itemsize)
        offload = offloads(entry, device, needed_bytes)
        return Pipelines(pipe, device, identity, offload=offload, inpaint=inpaint)


def _identity(found: weights.Weights, pipe: Any, device: Device, dtype_name: str) -> dict[str, Any]:
    return found.identity | {
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": dtype_name,
        "alone": "bit-equal" if device.kind == "cpu" else "within the rounding of the device",
        "in_a_batch": _IN_A_BATCH[dtype_name],
        "device": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _open_companion(entry: ModelEntry, pipe: Any, dtype: torch.dtype) -> tuple[Any, weights.Weights]:
    """Open the U-Net that draws within masks in place of the pipeline's own.

    Raises:
        ModelUnavailable: its files are missing or damaged, or it is not such a U-Net.
    """
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel):
        raise ModelUnavailable(f"a {type(pipe).__name__} has no U-Net whose place a companion could take")
    found = weights.resolve(entry)
    unet = UNet2DConditionModel.from_pretrained(
        str(found.folder), dtype=dtype, variant=found.variant, use_safetensors=True, local_files_only=True
    )
    found.check_complete(unet)
    if unet.config["in_channels"] != _MASK_CHANNELS:
        channels = unet.config["in_channels"]
        raise ModelUnavailable(
            f"the companion {INPAINT} has {channels} input channels instead of {_MASK_CHANNELS}"
        )
    return unet.eval().requires_grad_(False), found


def offloads(entry: ModelEntry, device: Device, needed_bytes: int) -> bool:
    """Whether only the component that works should be on the device. Never on the CPU: it has no other."""
    if device.kind == "cpu" or entry.offload == "never":
        return False
    return entry.offload == "always" or needed_bytes > device.memory_bytes


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline by component."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


# ------------------------------------------------------------------------------------------------ the folder


def _index(found: weights.Weights) -> dict[str, Any]:
    """Return `model_index.json`, checked to name nothing but library classes.

    Raises:
        ModelUnavailable: the folder is no pipeline, or asks for code of its own.
    """
    path = found.folder / "model_index.json"
    if not path.is_file():
        raise ModelUnavailable("the folder has no model_index.json: not a diffusers pipeline")
    index = weights.json_of(path)
    if not isinstance(index.get("_class_name"), str):
        raise ModelUnavailable("a pipeline with code of its own is not loaded")
    for name, component in _components(index).items():
        if component[0] not in {None, *_TRUSTED_MODULES} and name not in _absent(index):
            raise ModelUnavailable(f"component {name} comes from {component[0]!r}, which is not loaded")
        if component[0] is not None and name not in _absent(index) and not (found.folder / name).is_dir():
            raise ModelUnavailable(f"the component {name} is missing")
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


# ------------------------------------------------------------------------------------------------- networks


def reads_masks(pipe: Any) -> bool:
    """Whether a pipeline's network was trained for inpainting, and is given mask and picture."""
    unet = getattr(pipe, "unet", None)
    return unet is not None and unet.config.get("in_channels") == _MASK_CHANNELS


def _in_slices(module: Any) -> None:
    """Let a component work in slices and tiles, as far as it can: less memory at a time, slower."""
    for name in ("enable_slicing", "enable_tiling"):
        if hasattr(module, name):
            getattr(module, name)()
    if hasattr(module, "set_attention_slice"):
        module.set_attention_slice("auto")


def _size_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
