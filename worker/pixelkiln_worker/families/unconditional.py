"""Pictures from noise alone, by networks that know one kind of picture: DDPM and DDIM folders.

Ho et al., arXiv 2006.11239; Song et al., arXiv 2010.02502. The loop over the steps is ours, because the
library's tells nobody how far it is. Importing this module imports torch and diffusers (seconds).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import schedulers
from pixelkiln_worker.families.contract import Nobody, Outcome, Picture, Pixels, Task, Watch
from pixelkiln_worker.families.pipelines import Mode, Pipelines, one_of, open_folder
from pixelkiln_worker.families.sampling import Progress

PIPELINES = ("DDPMPipeline", "DDIMPipeline")


class Unconditional:
    """An unconditional pipeline, loaded. Only one thread may use it."""

    def __init__(self, entry: ModelEntry, pipelines: Pipelines) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity = pipelines.identity
        self._pipelines = pipelines
        self._device_name = pipelines.device.name
        unet = pipelines.base.unet
        self._options = frozenset(entry.options)
        self._cell_px = 2 ** (len(unet.config.block_out_channels) - 1)

    @property
    def footprint_bytes(self) -> int:
        """Device memory of the weights."""
        return self._pipelines.footprint_bytes

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Draw every job's pictures, the rows of all jobs together, at most `max_rows` in one pass."""
        shared = batch[0].spec.input
        if shared["width"] % self._cell_px or shared["height"] % self._cell_px:
            message = f"the model draws sides that are multiples of {self._cell_px} pixels"
            return [InvalidInput(message, code="invalid_size", pointer="/input/width") for _ in batch]
        rows = [
            (index, task.spec.input["seed"] + number)
            for index, task in enumerate(batch)
            for number in range(task.spec.rows)
        ]
        passes = [rows[start : start + self.max_rows] for start in range(0, len(rows), self.max_rows)]
        made: list[list[Picture]] = [[] for _ in batch]
        broken: set[int] = set()
        for number, some in enumerate(passes):
            samples = self._pass(some, shared, Progress(watch, number, len(passes)))
            for (index, seed), sample in zip(some, samples, strict=True):
                made[index].append(Picture(pixels=_pixels(sample), seed=seed))
                if not torch.isfinite(sample).all():
                    broken.add(index)
        return [
            weights.not_finite() if index in broken else Outcome(pictures=tuple(pictures))
            for index, pictures in enumerate(made)
        ]

    def warm_up(self, side_px: int) -> None:
        """Draw one picture in one step.

        Raises:
            ModelUnavailable: the network's numbers are not finite.
        """
        shape = {"width": side_px, "height": side_px, "steps": 1}
        if not torch.isfinite(self._pass([(0, 0)], shape, Progress(Nobody()))).all():
            raise weights.not_finite()

    def economize(self) -> bool:
        """See `contract.Frugal`."""
        return self._pipelines.economize()

    def close(self) -> None:
        """Drop the pipeline and hand its memory back."""
        self._pipelines.close()

    @torch.no_grad()
    def _pass(
        self, rows: Sequence[tuple[int, int]], shared: Mapping[str, Any], progress: Progress
    ) -> torch.Tensor:
        """Draw the rows, pairs of task and seed; return (n, C, H, W) in about [-1, 1]."""
        options = {k: v for k, v in (shared.get("options") or {}).items() if k in self._options}
        pipe = self._pipelines.get(Mode.TEXT, str(options.get("scheduler", "")))
        unet, scheduler = pipe.unet, pipe.scheduler
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in rows]
        takes_noise = "generator" in inspect.signature(scheduler.step).parameters
        more: dict[str, Any] = {"generator": generators} if takes_noise else {}
        shape = (1, unet.config.in_channels, shared["height"], shared["width"])
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        scheduler.set_timesteps(shared["steps"], device=self._device_name)
        sample: torch.Tensor = noise.to(self._device_name, unet.dtype) * scheduler.init_noise_sigma
        for number, timestep in enumerate(scheduler.timesteps):
            output = unet(scheduler.scale_model_input(sample, timestep), timestep).sample
            self._show(output, timestep, sample, scheduler, [task for task, _ in rows], progress)
            sample = scheduler.step(output, timestep, sample, **more).prev_sample
            progress.step(number + 1, len(scheduler.timesteps))
        return sample

    def _show(
        self,
        output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        scheduler: Any,
        tasks: Sequence[int],
        progress: Progress,
    ) -> None:
        """Hand previews of the finished pictures to a watch that wants some."""
        due = [task for task in progress.watch.previews_due() if task in tasks]
        if due:
            clean = schedulers.clean_estimate(scheduler, output[:, : sample.shape[1]], timestep, sample)
            for task in due:
                progress.watch.preview(task, _pixels(clean[tasks.index(task)]))


def load(entry: ModelEntry, device: Device) -> Unconditional:
    """Open the entry's directory on the device and run one step to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not one of `PIPELINES`, or an option of the
            entry names a scheduler that the model cannot have.
    """
    pipelines = open_folder(entry, device, one_of(*PIPELINES))
    with weights.loading(entry):
        schedulers.check(entry.options.get("scheduler", ()), pipelines.base.scheduler)
        model = Unconditional(entry, pipelines)
        model.warm_up(int(entry.defaults.get("width", pipelines.base.unet.config.sample_size)))
    return model


def _pixels(sample: torch.Tensor) -> Pixels:
    """Return a sample (C, H, W) in [-1, 1] as HWC uint8; one channel becomes three."""
    levels = ((sample.float().clamp(-1, 1) + 1) * 127.5).round()
    pixels = np.asarray(levels.nan_to_num().permute(1, 2, 0).cpu().numpy(), np.uint8)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2)
