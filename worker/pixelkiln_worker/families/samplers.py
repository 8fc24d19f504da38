"""Pictures from noise alone, by networks that paint in one pass: a GAN's generator, a VAE's decoder.

A model is a directory of diffusers models: `prior` turns Gaussian noise into codes, `painter` codes into
latents, `vae` latents into pixels; `model_index.json` says of which classes they are. Nothing reads a prompt.
One CPU generator for each picture, so that its noise never depends on the batch it rides in. Importing this
module imports torch and diffusers (seconds): workers do it at boot.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Task, Watch
from pixelkiln_worker.families.noise_nets import CodePainter, CodePrior

PIPELINE = "NoiseSampler"
"""The class that `model_index.json` names. There is none: this family is the pipeline."""
COMPONENTS: Mapping[str, Mapping[str, Any]] = {
    "prior": {"CodePrior": CodePrior},
    "painter": {"CodePainter": CodePainter, "AutoencoderKL": AutoencoderKL},
    "vae": {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL},
}
"""Classes that may stand in each place."""
_LIBRARIES = ("torch", "diffusers", "safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One picture to make: a place of a forward pass. `noise` is (size,) float32; `seed` None between two."""

    task: int
    noise: Tensor
    seed: int | None


class Sampler:
    """A generator, loaded."""

    def __init__(
        self, entry: ModelEntry, device: Device, parts: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity: dict[str, Any] = dict(identity)
        self.footprint_bytes = sum(
            tensor.numel() * tensor.element_size()
            for part in parts.values()
            for tensor in (*part.parameters(), *part.buffers())
        )
        self._device = device
        self._parts: dict[str, Any] = dict(parts)
        self._options = frozenset(entry.options)

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Make every job's pictures, the rows of all jobs together, at most `max_rows` in one pass.

        All tasks share size and options (one batch key). Picture i comes from seed + i; with the option
        `interpolate` the pictures walk from that of the first seed to that of the last. The option
        `truncation` (psi, 0 to 1) shrinks the noise: below 1 fewer surprises, and less variety. A size that
        is not the model's own is reached by bicubic scaling, and the outcome says so.
        """
        rows = [row for index, task in enumerate(batch) for row in self._rows(index, task)]
        passes = [rows[start : start + self.max_rows] for start in range(0, len(rows), self.max_rows)]
        made: list[list[Picture]] = [[] for _ in batch]
        broken: set[int] = set()
        warnings: tuple[dict[str, str], ...] = ()
        for number, some in enumerate(passes):
            painted = self._pass(torch.stack([row.noise for row in some]))
            scaled, warnings = _to_size(painted, batch[0].spec.input)
            for row, picture in zip(some, scaled, strict=True):
                if torch.isfinite(picture).all():
                    made[row.task].append(Picture(pixels=_to_uint8(picture), seed=row.seed))
                else:
                    broken.add(row.task)
            watch.step(number + 1, len(passes))
        return [
            Outcome(pictures=tuple(made[index]), warnings=warnings)
            if index not in broken
            else weights.not_finite()
            for index in range(len(batch))
        ]

    def warm_up(self) -> None:
        """Make one picture: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the model's numbers are not finite.
        """
        if not torch.isfinite(self._pass(self._noise(0)[None])).all():
            raise weights.not_finite()

    def close(self) -> None:
        """Drop the networks and hand their memory back."""
        self._parts = {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, index: int, task: Task) -> Iterator[_Row]:
        given = task.spec.input.get("options") or {}
        options = {name: value for name, value in given.items() if name in self._options}
        seed, last = task.spec.input["seed"], task.spec.rows - 1
        for picture in range(task.spec.rows):
            between = options.get("interpolate", False) and 0 < picture < last
            noise = (
                slerp(self._noise(seed), self._noise(seed + last), picture / last)
                if between
                else self._noise(seed + picture)
            )
            psi = float(options.get("truncation", 1.0))
            yield _Row(task=index, noise=noise * psi, seed=None if between else seed + picture)

    def _noise(self, seed: int) -> Tensor:
        """Return the Gaussian noise of a seed, (size,): the same on every device."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self._parts["prior"].noise_size, generator=generator)

    @torch.inference_mode()
    def _pass(self, noise: Tensor) -> Tensor:
        """Run one forward pass; return (n, 3, h, w), about [0, 1], float32, of the model's own size."""
        prior, painter, vae = (self._parts[name] for name in COMPONENTS)
        codes = prior(noise.to(self._device.name, prior.dtype))  # (n, channels, side, side)
        latents = painter.decode(codes).sample / vae.config.scaling_factor
        pictures: Tensor = vae.decode(latents).sample.float()
        return pictures / 2 + 0.5


def slerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Return the noise at `share` (0 to 1) of the way between two, along the arc.

    A straight line would lead through noise that is shorter than any Gaussian draw: White, "Sampling
    Generative Networks" (2016).
    """
    cosine = torch.dot(first, last) / (first.norm() * last.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-3:
        return torch.lerp(first, last, share)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()


def load(entry: ModelEntry, device: Device) -> Sampler:
    """Open the entry's directory on the device, in the device's dtype, and paint one picture to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not a sampler's.
    """
    found = weights.resolve(entry)
    diffusers.utils.logging.set_verbosity_error()
    with weights.loading(entry):
        parts: dict[str, Any] = {}
        for name, kind in _classes(found).items():
            parts[name] = kind.from_pretrained(
                str(found.folder / name),
                torch_dtype=getattr(torch, device.dtype_name),
                variant=found.variant,
                use_safetensors=True,
                local_files_only=True,
            )
            found.check_complete(parts[name], name)
            parts[name].eval().requires_grad_(False).to(device.name)
        identity = found.identity | {
            "networks": {name: type(part).__name__ for name, part in parts.items()},
            "dtype": device.dtype_name,
            "device": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else device.name,
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        model = Sampler(entry, device, parts, identity)
        model.warm_up()
    return model


def _classes(found: weights.Weights) -> dict[str, Any]:
    """Return the class of each component as `model_index.json` names it.

    Raises:
        ModelUnavailable: the folder is no sampler's, or names a class that has no place there.
    """
    path = found.folder / "model_index.json"
    index = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if index.get("_class_name") != PIPELINE:
        raise ModelUnavailable(f"the folder has no model_index.json of a {PIPELINE}")
    classes = {}
    for name, known in COMPONENTS.items():
        named = index.get(name, [None, None])[1]
        if named not in known:
            raise ModelUnavailable(f"component {name} is none of {', '.join(known)}")
        classes[name] = known[named]
    return classes


def _to_size(pictures: Tensor, wanted: Mapping[str, Any]) -> tuple[Tensor, tuple[dict[str, str], ...]]:
    """Scale (n, 3, h, w) to the size of the job, with a warning, where it is not the model's own."""
    height, width = (
        wanted.get(name) or own for name, own in zip(("height", "width"), pictures.shape[2:], strict=True)
    )
    if (height, width) == tuple(pictures.shape[2:]):
        return pictures, ()
    own = f"{pictures.shape[3]} x {pictures.shape[2]}"
    message = f"the model paints {own} pixels; its pictures were scaled to {width} x {height}"
    scaled = F.interpolate(pictures, (height, width), mode="bicubic", antialias=True)
    return scaled, ({"code": "scaled", "message": message},)


def _to_uint8(picture: Tensor) -> Pixels:
    """Turn (3, h, w) into HWC uint8."""
    return np.asarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
