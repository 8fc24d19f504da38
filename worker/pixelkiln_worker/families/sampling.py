"""The steps of a forward pass, seen from outside: progress, cancel, previews, and noisy steps run again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pixelkiln_worker.families import schedulers
from pixelkiln_worker.families.contract import Pixels, Watch

_PREVIEW_CELLS = 64  # of the latents on the longer side: what is larger is shrunk before it is decoded


class Progress:
    """Counts the steps of all passes of a batch as one run."""

    def __init__(self, watch: Watch, number: int = 0, passes: int = 1) -> None:
        self.watch = watch
        self._number, self._passes = number, passes
        self._reported = (0, 0)

    def step(self, step: int, steps: int) -> None:
        """Report step `step` of the `steps` of this pass.

        Raises:
            JobCanceled: the watch raised it; passing through, it stops the pipeline there.
        """
        step = min(step, steps)
        if self._reported != (step, steps):
            self._reported = (step, steps)
            self.watch.step(self._number * steps + step, self._passes * steps)

    def done(self, steps: int) -> None:
        """Report the last step of pipelines that tell of none, or that take fewer than they announced."""
        planned = self._reported[1] or steps
        self.step(planned, planned)


def show_previews(pipe: Any, progress: Progress, tasks: Sequence[int], width: int, height: int) -> None:
    """Let the pipeline's scheduler, new for this pass, show the finished picture as the model foresees it.

    Args:
        pipe: about to run.
        progress: whose watch says which tasks want a picture.
        tasks: the task of each row of the pass.
        width: of the pictures, in pixels.
        height: likewise.
    """
    if not (hasattr(pipe.scheduler, "sigmas") or hasattr(pipe.scheduler, "alphas_cumprod")):
        return

    def before(output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> None:
        rows = {task: tasks.index(task) for task in progress.watch.previews_due() if task in tasks}
        if not rows or len(output) != len(tasks):
            return
        clean = schedulers.clean_estimate(pipe.scheduler, output, timestep, sample)
        for task, row in rows.items():
            pixels = decoded(pipe, clean[row : row + 1], width, height)
            if pixels is not None:
                progress.watch.preview(task, pixels)

    _before_each_step(pipe.scheduler, before)


def decoded(pipe: Any, latents: torch.Tensor, width: int, height: int) -> Pixels | None:
    """Return a rough picture of one row of latents, HWC, at most 512 pixels wide; None where none is had."""
    vae: Any = getattr(pipe, "vae", None)
    if latents.ndim == 3 and hasattr(pipe, "_unpack_latents"):  # FLUX packs patches of 2 x 2 cells
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    if vae is None or latents.ndim != 4 or latents.shape[1] != vae.config.latent_channels:
        return None
    larger = max(latents.shape[-2:])
    if larger > _PREVIEW_CELLS:
        latents = torch.nn.functional.interpolate(latents, scale_factor=_PREVIEW_CELLS / larger, mode="area")
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        picture = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample[0]
    if not torch.isfinite(picture).all():  # half precision overflows in some decoders
        return None
    pixels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    return np.asarray(pixels.cpu().numpy(), np.uint8)


class Rounds:
    """Lets an inpainting pipeline run the noisier half of its schedule several times a step.

    After each round but the last the finished picture is foreseen and covered with new noise of the same
    level, and so is what the mask keeps: what is drawn and what is around it come to agree while the layout
    is still open. This is the resampling of RePaint (Lugmayr et al., arXiv 2201.09865, section 4.2), within
    one level of noise.

    Attributes:
        noisy: how many calls of the network belong to the noisier half; known once the pipeline has begun.
    """

    def __init__(self, pipe: Any, rounds: int, generators: Sequence[torch.Generator]) -> None:
        self.noisy = 0
        self._scheduler = pipe.scheduler
        self._get_timesteps, self._step = pipe.get_timesteps, pipe.scheduler.step
        self._rounds = rounds if self._scheduler.order == 1 else 1  # others take several calls a step already
        self._generators = generators
        self._left: list[int] = []  # rounds still to come after each call
        self._noise: torch.Tensor | None = None

    @contextmanager
    def over(self, pipe: Any) -> Iterator[Rounds]:
        """Stand between the pipeline and its scheduler, which is new for this pass, while the block runs."""
        pipe.get_timesteps = self._timesteps
        pipe.scheduler.step = functools.wraps(self._step)(
            lambda *args, **kw: self._step_or_again(*args, **kw)
        )
        for name, place in (("add_noise", 1), ("scale_noise", 2)):  # where their arguments have the noise
            if hasattr(pipe.scheduler, name):
                setattr(pipe.scheduler, name, self._with_new_noise(getattr(pipe.scheduler, name), place))
        try:
            yield self
        finally:
            del pipe.get_timesteps  # the class's own again

    def _timesteps(self, num_inference_steps: int, *args: Any, **kwargs: Any) -> Any:
        timesteps, count = self._get_timesteps(num_inference_steps, *args, **kwargs)
        noisy = max(0, len(timesteps) - num_inference_steps // 2 * self._scheduler.order)
        counts = [self._rounds] * noisy + [1] * (len(timesteps) - noisy)
        self.noisy = noisy * self._rounds
        self._left = [left for rounds in counts for left in range(rounds - 1, -1, -1)]
        return timesteps.repeat_interleave(torch.tensor(counts, device=timesteps.device)), count

    def _step_or_again(
        self, output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self._left.pop(0) == 0:
            return self._step(output, timestep, sample, *args, **kwargs)
        clean = schedulers.clean_estimate(self._scheduler, output, timestep, sample)
        shape = (1, *clean.shape[1:])
        rows = [torch.randn(shape, generator=generator) for generator in self._generators]
        self._noise = torch.cat(rows).to(clean)
        return (schedulers.noised(self._scheduler, clean, timestep, self._noise),)

    def _with_new_noise(self, cover: Callable[..., Any], place: int) -> Callable[..., Any]:
        def covered(*args: Any) -> Any:
            if self._noise is None:
                return cover(*args)
            return cover(*args[:place], self._noise, *args[place + 1 :])

        return covered


def _before_each_step(scheduler: Any, act: Callable[[torch.Tensor, Any, torch.Tensor], None]) -> None:
    step = scheduler.step

    @functools.wraps(step)  # pipelines look at its signature
    def acting(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        act(output, timestep, sample)
        return step(output, timestep, sample, *args, **kwargs)

    scheduler.step = acting
