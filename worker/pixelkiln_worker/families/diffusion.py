"""Pictures drawn by any folder diffusers' Auto pipelines open: from text, from a picture, within a mask.

One CPU generator for each picture, so that its noise never depends on the batch it rides in. Importing this
module imports torch and diffusers (seconds): workers do it at boot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidInput, ModelUnavailable
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker import weights
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import inpainting, schedulers
from pixelkiln_worker.families.contract import Nobody, Outcome, Picture, Pixels, Task, Watch
from pixelkiln_worker.families.inpainting import Cells, Mask
from pixelkiln_worker.families.leaving import Leaving
from pixelkiln_worker.families.loras import Loras
from pixelkiln_worker.families.pipelines import Mode, Pipelines, open_folder, reads_masks
from pixelkiln_worker.families.prompts import Reader
from pixelkiln_worker.families.sampling import Progress, Rounds, show_previews

_OWN_OPTIONS = frozenset({"scheduler", "lora", "lora_scale", "rounds"})  # the others go to the pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One picture to make: a place of a forward pass. Picture and mask are at the output size."""

    task: int
    mode: Mode
    prompt: str
    negative_prompt: str
    seed: int
    picture: Pixels | None = None
    mask: Mask | None = None


class Diffusion:
    """A folder's pipelines, loaded. Only one thread may use it."""

    def __init__(self, entry: ModelEntry, pipelines: Pipelines) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity = pipelines.identity
        self._entry = entry
        self._pipelines = pipelines
        self._reader = Reader(pipelines.base)
        self._loras = Loras(entry)
        config = pipelines.base.config
        self._tells_no_empty = bool(config.get("force_zeros_for_empty_prompt"))
        self._rounds = int((entry.options.get("rounds") or (1,))[0])

    @property
    def footprint_bytes(self) -> int:
        """Device memory of the weights, those of loaded adapters included."""
        return self._pipelines.footprint_bytes

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Make every job's pictures, the rows of all jobs together, at most `max_rows` in one pass.

        All tasks share size, steps, guidance, strength and options (one batch key); pictures come in order of
        seed.
        """
        shared = batch[0].spec.input
        lost: dict[int, Exception] = {
            i: _no_picture() for i, task in enumerate(batch) if _lacks_picture(task)
        }
        rows = [
            row for index, task in enumerate(batch) if index not in lost for row in self._rows(index, task)
        ]
        passes = list(self._passes(rows))
        made: list[list[Picture]] = [[] for _ in batch]
        details: list[dict[str, Any]] = [{} for _ in batch]
        for number, some in enumerate(passes):
            images, detail, places = self._pass(some, shared, Progress(watch, number, len(passes)))
            for row, image in zip([some[place] for place in places], images, strict=True):
                details[row.task] = detail
                if np.isfinite(image).all():
                    made[row.task].append(Picture(pixels=_finished(row, image), seed=row.seed))
                else:
                    lost[row.task] = weights.not_finite()
        return [
            lost.get(index) or self._outcome(task, made[index], details[index])
            for index, task in enumerate(batch)
        ]

    def warm_up(self) -> None:
        """Make one picture in one step: reads every weight, and finds what would only give noise.

        Raises:
            ModelUnavailable: the pipeline's numbers are not finite.
        """
        side = min(512, self._entry.limits.max_side)
        shape = {"width": side, "height": side, "guidance": 3.0} | dict(self._entry.defaults) | {"steps": 1}
        task = 0
        row = _Row(task=task, mode=Mode.TEXT, prompt="a", negative_prompt="", seed=0)
        rows = [self._masked(row, shape)]
        if self._pipelines.has_companion:
            rows.append(_all_masked(row, shape))
        for one in rows:
            images, *_ = self._pass([one], shape, Progress(Nobody()))
            if not np.isfinite(images).all():
                raise weights.not_finite()

    def economize(self) -> bool:
        """See `contract.Frugal`."""
        return self._pipelines.economize()

    def close(self) -> None:
        """Drop the pipelines and hand their memory back."""
        self._pipelines.close()

    # ------------------------------------------------------------------------------------------------- rows

    def _rows(self, index: int, task: Task) -> Iterator[_Row]:
        fields = task.spec.input
        size = fields["width"], fields["height"]
        picture = inpainting.fitted(task.images["image"], *size) if "image" in task.images else None
        mask = inpainting.mask_of(task.images["mask"], *size) if "mask" in task.images else None
        mode = Mode.TEXT if picture is None else Mode.IMAGE if mask is None else Mode.MASK
        for number in range(task.spec.rows):
            row = _Row(
                task=index,
                mode=mode,
                prompt=fields.get("prompt") or "",
                negative_prompt=fields.get("negative_prompt") or "",
                seed=fields["seed"] + number,
                picture=picture,
                mask=mask,
            )
            yield self._masked(row, fields)

    def _masked(self, row: _Row, fields: Mapping[str, Any]) -> _Row:
        """Return the row with a mask over everything, for a network that draws nothing without a mask."""
        if row.mask is not None or not self._pipelines.reads_masks:
            return row
        return _all_masked(row, fields)

    def _passes(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Cut rows into passes of one mode; SDXL tells no negative prompt from an empty one, so they part."""

        def kind(row: _Row) -> tuple[str, bool]:
            return row.mode, self._tells_no_empty and bool(row.negative_prompt)

        for _, alike in groupby(sorted(rows, key=kind), key=kind):
            group = list(alike)
            yield from (group[start : start + self.max_rows] for start in range(0, len(group), self.max_rows))

    # ------------------------------------------------------------------------------------------------- pass

    def _pass(
        self, rows: Sequence[_Row], shared: Mapping[str, Any], progress: Progress
    ) -> tuple[NDArray[np.floating], dict[str, Any], list[int]]:
        """Run one forward pass; return NHWC in [0, 1], how it was made, and which rows reached the end."""
        options = {k: v for k, v in (shared.get("options") or {}).items() if k in self._entry.options}
        adapter = str(options.get("lora", ""))
        pipe = self._pipelines.get(rows[0].mode, str(options.get("scheduler", "")), adapted=bool(adapter))
        generators = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
        tasks = [row.task for row in rows]
        with ExitStack() as stack:
            scale = float(options.get("lora_scale", 1.0))
            lora = stack.enter_context(self._loras.active(pipe, adapter, scale))
            show_previews(pipe, progress, tasks, shared["width"], shared["height"])
            arguments = _arguments(rows, shared, generators)
            leaving = Leaving(pipe, progress.watch, tasks, generators)
            arguments["callback_on_step_end"] = _on_step(progress, shared["steps"], leaving.after_step)
            if leaving.inputs:
                arguments["callback_on_step_end_tensor_inputs"] = list(leaving.inputs)
            if rows[0].mode is Mode.MASK:
                rounds = int(options.get("rounds", self._rounds))
                arguments |= self._mask_arguments(pipe, rows, arguments, progress, rounds, stack)
            arguments |= {k: v for k, v in options.items() if k not in _OWN_OPTIONS}
            accepted = _parameters(pipe)
            images = pipe(**{k: v for k, v in arguments.items() if k in accepted}).images
        progress.done(shared["steps"])
        detail = {"mode": str(rows[0].mode), "scheduler": options.get("scheduler", self._pipelines.scheduler)}
        return np.asarray(images), detail | ({"lora": lora} if lora else {}), leaving.places

    def _mask_arguments(
        self,
        pipe: Any,
        rows: Sequence[_Row],
        arguments: Mapping[str, Any],
        progress: Progress,
        rounds: int,
        stack: ExitStack,
    ) -> dict[str, Any]:
        masks = [row.mask for row in rows if row.mask is not None]
        if reads_masks(pipe):  # it was taught to join the new to the old by itself
            return {"mask_image": [Image.fromarray(mask) for mask in masks]}
        cells = Cells(masks, pipe.vae_scale_factor)
        runs = stack.enter_context(Rounds(pipe, rounds, arguments["generator"]).over(pipe))
        steps = arguments["num_inference_steps"]
        noisy = int(steps * arguments["strength"]) > steps // 2
        if not noisy or "mask" not in pipe._callback_tensor_inputs or "unet" not in pipe.components:
            return {"mask_image": cells.pictures(cells.all)}

        def widen(index: int, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"mask": cells.like(tensors["mask"])} if index + 1 >= runs.noisy else {}

        return {
            "mask_image": cells.pictures(cells.inner),
            "callback_on_step_end": _on_step(progress, steps, widen),
            "callback_on_step_end_tensor_inputs": ["latents", "mask"],
        }

    def _outcome(self, task: Task, pictures: Sequence[Picture], detail: Mapping[str, Any]) -> Outcome:
        warnings = list(self._reader.warnings(task.spec.input))
        mask = task.images.get("mask")
        if mask is not None and not inpainting.mask_of(mask, mask.shape[1], mask.shape[0]).any():
            warnings.append({"code": "empty_mask", "message": "the mask is black: nothing was drawn anew"})
        return Outcome(pictures=tuple(pictures), detail=dict(detail), warnings=tuple(warnings))


def load(entry: ModelEntry, device: Device) -> Diffusion:
    """Open the entry's directory on the device and run one step to warm it.

    Raises:
        ModelUnavailable: the weights are missing, damaged or not such a pipeline, or an option of the entry
            names a scheduler or a LoRA that the model cannot have.
    """
    pipelines = open_folder(entry, device)
    with weights.loading(entry):
        schedulers.check(entry.options.get("scheduler", ()), pipelines.base.scheduler)
        if unknown := [name for name in entry.options.get("lora", ()) if name not in entry.loras]:
            raise ModelUnavailable(f"its options name the LoRA {unknown[0]!r}, which `loras` does not give")
        _check_arguments(entry, pipelines)
        if Kind.EDIT in entry.kinds and not pipelines.reads_masks:
            pipelines.get(Mode.IMAGE)  # some pipelines have no such sister: better told now than by a job
        model = Diffusion(entry, pipelines)
        model.warm_up()
    return model


def _check_arguments(entry: ModelEntry, pipelines: Pipelines) -> None:
    """Refuse an option that no job could feel: it is neither ours nor an argument of a pipeline."""
    unknown = set(entry.options) - _OWN_OPTIONS - _parameters(pipelines.base)
    if unknown and Kind.EDIT in entry.kinds and not pipelines.reads_masks:
        for mode in (Mode.IMAGE, Mode.MASK):
            with suppress(ModelUnavailable):
                unknown -= _parameters(pipelines.get(mode))
    if unknown:
        name = type(pipelines.base).__name__
        raise ModelUnavailable(f"its option {min(unknown)!r} is no argument of {name}")


def _parameters(pipe: Any) -> set[str]:
    return set(inspect.signature(pipe.__call__).parameters)


def _all_masked(row: _Row, fields: Mapping[str, Any]) -> _Row:
    """Return the row with a mask over everything; where it has no picture, over a grey one."""
    shape = fields["height"], fields["width"]
    picture = np.full((*shape, 3), 128, np.uint8) if row.picture is None else row.picture
    return replace(row, mode=Mode.MASK, picture=picture, mask=np.ones(shape, np.bool_))


def _lacks_picture(task: Task) -> bool:
    return task.spec.kind is Kind.EDIT and task.image is None


def _no_picture() -> InvalidInput:
    return InvalidInput("the job needs a picture", pointer="/input/image")


def _arguments(
    rows: Sequence[_Row], shared: Mapping[str, Any], generators: list[torch.Generator]
) -> dict[str, Any]:
    """Return what all pipelines are called with; the mode's own beside it."""
    steps = shared["steps"]
    arguments: dict[str, Any] = {
        "prompt": [row.prompt for row in rows],
        "generator": generators,
        "num_inference_steps": steps,
        "guidance_scale": shared["guidance"],
        "width": shared["width"],
        "height": shared["height"],
        "output_type": "np",
    }
    if any(row.negative_prompt for row in rows):
        arguments["negative_prompt"] = [row.negative_prompt for row in rows]
    if rows[0].picture is not None:
        arguments["image"] = [Image.fromarray(row.picture) for row in rows if row.picture is not None]
        # pipelines take int(steps * strength) steps, and none is no picture
        arguments["strength"] = min(1.0, max(shared.get("strength") or 1.0, 1.001 / steps))
    return arguments


def _on_step(
    progress: Progress, steps: int, then: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None
) -> Callable[..., dict[str, Any]]:
    """Return a `callback_on_step_end`; a `JobCanceled` of the watch stops the pipeline there."""

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.step(index + 1, int(getattr(pipe, "num_timesteps", 0) or steps))
        return then(index, tensors) if then is not None else {}

    return callback


def _finished(row: _Row, image: NDArray[np.floating]) -> Pixels:
    """Return one picture of a pass as pixels; where there is a mask, joined with what it leaves."""
    if row.mask is not None and row.picture is not None:
        image = inpainting.joined(image, row.picture, row.mask)
    return np.asarray((image * 255).round().clip(0, 255), np.uint8)
