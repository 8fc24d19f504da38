"""Pictures made larger by diffusion: Stable Diffusion's upscaler, which draws the detail a prompt calls for.

The folder's `model_index.json` names the pipeline; only those below are opened. Importing this module imports
torch and diffusers (seconds): workers do it at boot.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import schedulers
from pixelkiln_worker.families.contract import Nobody, Outcome, Picture, Pixels, Task, Watch
from pixelkiln_worker.families.pipelines import Mode, Pipelines, one_of, open_folder
from pixelkiln_worker.families.prompts import Reader
from pixelkiln_worker.families.sampling import Progress

PIPELINES = ("StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline")

_LATENT = PIPELINES[1]
_CELL_PX = {_LATENT: 64}  # sides are filled up to a multiple of this
_PLAIN_CELL_PX = 8


class Upscaler:
    """An upscaling pipeline, loaded. Only one thread may use it.

    Attributes:
        scale: how many times larger the result is, in each direction.
    """

    def __init__(self, entry: ModelEntry, pipelines: Pipelines) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity = pipelines.identity
        self._pipelines = pipelines
        self._options = frozenset(entry.options)
        self._reader = Reader(pipelines.base)
        name = type(pipelines.base).__name__
        self.scale = 2 if name == _LATENT else int(pipelines.base.vae_scale_factor)
        self._cell_px = _CELL_PX.get(name, _PLAIN_CELL_PX)

    @property
    def footprint_bytes(self) -> int:
        """Device memory of the weights."""
        return self._pipelines.footprint_bytes

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Enlarge the pictures, those of one size together, at most `max_rows` in one pass."""
        refused = {index: error for index, task in enumerate(batch) if (error := self._refusal(task))}
        made: dict[int, Outcome | Exception] = dict(refused)
        passes = self._passes(batch, [index for index in range(len(batch)) if index not in refused])
        for number, indices in enumerate(passes):
            tasks = [batch[index] for index in indices]
            images = self._pass(tasks, Progress(watch, number, len(passes)))
            made |= {i: self._outcome(batch[i], image) for i, image in zip(indices, images, strict=True)}
        return [made[index] for index in range(len(batch))]

    def warm_up(self, guidance: float) -> None:
        """Enlarge a grey picture in one step.

        Raises:
            ModelUnavailable: the pipeline's numbers are not finite.
        """
        grey = np.full((64, 64, 3), 128, np.uint8)
        shared = {"steps": 1, "guidance": guidance}
        if not np.isfinite(self._draw([grey], [""], [""], [0], shared, Progress(Nobody()))).all():
            raise weights.not_finite()

    def economize(self) -> bool:
        """See `contract.Frugal`."""
        return self._pipelines.economize()

    def close(self) -> None:
        """Drop the pipeline and hand its memory back."""
        self._pipelines.close()

    def _refusal(self, task: Task) -> InvalidInput | None:
        if task.image is None:
            return InvalidInput("the job needs a picture", pointer="/input/image")
        wanted = task.spec.input.get("scale")
        if wanted not in (None, self.scale):
            return InvalidInput(
                f"the model makes pictures {self.scale} times larger, not {wanted}", pointer="/input/scale"
            )
        return None

    def _passes(self, batch: Sequence[Task], indices: Sequence[int]) -> list[list[int]]:
        """Cut jobs into passes whose pictures are of one size."""

        def size(index: int) -> tuple[int, ...]:
            image = batch[index].image
            return () if image is None else image.shape

        groups = [list(alike) for _, alike in groupby(sorted(indices, key=size), key=size)]
        return [
            group[start : start + self.max_rows]
            for group in groups
            for start in range(0, len(group), self.max_rows)
        ]

    def _pass(self, tasks: Sequence[Task], progress: Progress) -> list[NDArray[np.floating]]:
        """Run one forward pass; return HWC in [0, 1] for each task."""
        images = [task.image for task in tasks if task.image is not None]
        height, width = images[0].shape[:2]
        fields = [task.spec.input for task in tasks]
        drawn = self._draw(
            [_filled_up(image, self._cell_px) for image in images],
            [one.get("prompt") or "" for one in fields],
            [one.get("negative_prompt") or "" for one in fields],
            [one["seed"] for one in fields],
            fields[0],
            progress,
        )
        return list(drawn[:, : height * self.scale, : width * self.scale])

    def _draw(
        self,
        images: Sequence[Pixels],
        prompts: list[str],
        negatives: list[str],
        seeds: Sequence[int],
        shared: Mapping[str, Any],
        progress: Progress,
    ) -> NDArray[np.floating]:
        options = {k: v for k, v in (shared.get("options") or {}).items() if k in self._options}
        pipe = self._pipelines.get(Mode.TEXT, str(options.pop("scheduler", "")))
        steps = shared["steps"]

        def on_step(index: int, timestep: Any, latents: torch.Tensor) -> None:
            progress.step(index + 1, steps)  # its JobCanceled stops the pipeline there

        arguments = {
            "prompt": prompts,
            "negative_prompt": negatives,
            "image": [Image.fromarray(image) for image in images],
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "num_inference_steps": steps,
            "guidance_scale": shared["guidance"],
            "output_type": "np",
            "callback": on_step,
        }
        accepted = inspect.signature(pipe.__call__).parameters
        drawn = pipe(**{k: v for k, v in (arguments | options).items() if k in accepted}).images
        progress.done(steps)
        return np.asarray(drawn)

    def _outcome(self, task: Task, image: NDArray[np.floating]) -> Outcome | Exception:
        if not np.isfinite(image).all():
            return weights.not_finite()
        pixels = np.asarray((image * 255).round().clip(0, 255), np.uint8)
        return Outcome(
            pictures=(Picture(pixels=pixels, seed=task.spec.input["seed"]),),
            detail={"scale": self.scale},
            warnings=self._reader.warnings(task.spec.input),
        )


def load(entry: ModelEntry, device: Device) -> Upscaler:
    """Open the entry's directory on the device and run one step to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not one of `PIPELINES`, or an option of the
            entry names a scheduler that the model cannot have.
    """
    pipelines = open_folder(entry, device, one_of(*PIPELINES))
    with weights.loading(entry):
        schedulers.check(entry.options.get("scheduler", ()), pipelines.base.scheduler)
        model = Upscaler(entry, pipelines)
        model.warm_up(float(entry.defaults.get("guidance", 9.0)))
    return model


def _filled_up(image: Pixels, cell_px: int) -> Pixels:
    """Return the picture with its last row and column repeated up to whole cells."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % cell_px), (0, -width % cell_px), (0, 0)), mode="edge")
