"""Rows that nobody wants any more leave a forward pass under way, so that the others go on without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pixelkiln_worker.families.contract import Watch

# What these pipelines take back from `callback_on_step_end`, and must take back shorter. Others keep
# something of each row where no callback reaches it; there a row runs on to the end of its batch.
_TAKEN_BACK = {
    "StableDiffusionPipeline": ("latents", "prompt_embeds"),
    "StableDiffusionImg2ImgPipeline": ("latents", "prompt_embeds"),
    "StableDiffusionXLPipeline": ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids"),
}


class Leaving:
    """The rows of one pass.

    Attributes:
        inputs: for the pipeline's `callback_on_step_end_tensor_inputs`.
        tasks: the task of each row that is still in; shortened in place, as `generators` is.
    """

    def __init__(self, pipe: Any, watch: Watch, tasks: list[int], generators: list[torch.Generator]) -> None:
        unet = getattr(pipe, "unet", None)
        guided_by_time = unet is not None and unet.config.get("time_cond_proj_dim") is not None
        self.inputs = () if guided_by_time else _TAKEN_BACK.get(type(pipe).__name__, ())
        self.tasks = tasks
        self._scheduler = pipe.scheduler
        self._watch = watch
        self._generators = generators
        self._places = list(range(len(tasks)))

    @property
    def places(self) -> list[int]:
        """Which of the rows that began are still in, in order."""
        return list(self._places)

    def after_step(self, index: int, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tensors of step `index` without the rows of tasks that left; nothing where all stay."""
        gone = set(self._watch.left()) if self.inputs else set()
        stay = [row for row, task in enumerate(self.tasks) if task not in gone]
        count = len(self.tasks)
        if len(stay) == count or not stay:
            return {}
        _shorten(self._scheduler, stay, count, tensors["latents"].ndim)
        self.tasks[:] = [self.tasks[row] for row in stay]
        self._generators[:] = [self._generators[row] for row in stay]
        self._places[:] = [self._places[row] for row in stay]
        return {name: _without(tensors[name], stay, count) for name in self.inputs}


def _without(tensor: torch.Tensor, stay: list[int], count: int) -> torch.Tensor:
    """Keep some rows of (count, ...), or of (2 * count, ...) where guidance doubles them."""
    rows = [half * count + row for half in range(tensor.shape[0] // count) for row in stay]
    return tensor[rows]


def _shorten(scheduler: Any, stay: list[int], count: int, ndim: int) -> None:
    """Let a scheduler forget rows of what it keeps of earlier steps: tensors shaped as the latents are."""

    def shorter(value: Any) -> Any:
        if isinstance(value, list):
            return [shorter(one) for one in value]
        if isinstance(value, torch.Tensor) and value.ndim == ndim and value.shape[0] == count:
            return value[stay]
        return value

    for name, value in vars(scheduler).items():
        if isinstance(value, list | torch.Tensor):
            setattr(scheduler, name, shorter(value))
