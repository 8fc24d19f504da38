"""What a family is: a module with `load(entry, device) -> Model`, and a model that runs a batch.

A family knows nothing of Redis, leases or storage. It gets decoded pictures and settled parameters, and hands
back pixels; everything else is the firing's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Role
from pixelkiln_worker.device import Device

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a model worked out about a picture, of use to later jobs on the same picture.

    `key` names the tenant's picture, the weights and the number format. `data` is for models of the same key
    to read (safetensors); None: nobody kept it.
    """

    key: str
    data: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One job of a batch. `images` are its pictures by input field: HWC, RGB, uint8, [0, 255], upright.

    `memory` is what was kept of an earlier job on the picture, where the model is one that `Remembers`.
    """

    spec: JobSpec
    images: Mapping[str, Pixels] = field(default_factory=dict)
    memory: Memory | None = None

    @property
    def image(self) -> Pixels | None:
        """The picture the job works on; None where its kind takes none."""
        return self.images.get("image")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture made: HWC uint8, RGB or RGBA, or HW uint8, grey. `seed` is the one that made just this."""

    pixels: Pixels
    role: Role = Role.IMAGE
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One region. `id` is its value in the id map, `category` its class number, stable for the model.

    Both are 1 or more: 0 means "nothing" in masks, and COCO's categories begin at 1.
    """

    id: int
    label: str
    category: int
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """A picture taken apart. `ids` is HW uint16: 0 where nothing was found, else the id of a segment."""

    ids: NDArray[np.uint16]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one job came to. `detail` goes into the result and the manifest as it is (JSON).

    `depth` is HW float32 in [0, 1], 0 the farthest, 1 the nearest. `memory` is for later jobs.
    """

    pictures: tuple[Picture, ...] = ()
    segmentation: Segmentation | None = None
    depth: NDArray[np.float32] | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[dict[str, str], ...] = ()
    memory: Memory | None = None

    @property
    def bare(self) -> bool:
        """Whether there is nothing to encode and to store, not even words."""
        return not (self.pictures or self.detail or self.segmentation is not None or self.depth is not None)


class Watch(Protocol):
    """The model's line to the outside while it runs."""

    def step(self, step: int, steps: int) -> None:
        """Report that step `step` of `steps` is done. Call after each step.

        Raises:
            JobCanceled: nobody wants any job of this batch any more; let it pass through.
        """
        ...

    def left(self) -> Collection[int]:
        """Indices of the tasks that nobody wants any more; a model may drop them after a step, or run on.

        Their outcomes are not looked at.
        """
        ...

    def previews_due(self) -> Sequence[int]:
        """Indices of the tasks that want a rough picture now; mostly empty."""
        ...

    def preview(self, index: int, pixels: Pixels) -> None:
        """A rough picture of task `index`, HWC RGB uint8, for the eye; free to ignore."""
        ...


class Nobody:
    """A watch that nobody reads."""

    def step(self, step: int, steps: int) -> None:
        """Do nothing."""

    def left(self) -> Collection[int]:
        """Nobody left."""
        return ()

    def previews_due(self) -> Sequence[int]:
        """Ask for none."""
        return ()

    def preview(self, index: int, pixels: Pixels) -> None:
        """Do nothing."""


class Model(Protocol):
    """A loaded model. Only the device thread calls it, one batch at a time.

    Attributes:
        footprint_bytes: device memory the weights take, measured at load.
        identity: revision and hash of the weights, library versions, dtype: what manifests say of the model.
        max_rows: rows one forward pass takes; a job with more rows is run in several passes.
    """

    footprint_bytes: int
    identity: dict[str, Any]
    max_rows: int

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Run the jobs together; one outcome per task, in order. An exception in a place fails only that job.

        Raises:
            JobCanceled: `watch.step` raised it.
            torch.OutOfMemoryError: the caller halves the batch and tries again.
        """
        ...

    def close(self) -> None:
        """Drop every reference to the weights."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A model whose work on a picture is worth keeping; safe from every thread, even after `close`."""

    def memory_key(self, task: Task) -> str:
        """Return the key of what there is to know of the task's picture: letters, digits and dashes."""
        ...

    def at_hand(self, key: str) -> bool:
        """Whether the model has it in memory, so that nobody need fetch it."""
        ...


@runtime_checkable
class Frugal(Protocol):
    """A model that can do with less memory. Models need not be."""

    def economize(self) -> bool:
        """Switch to slower settings that need less memory; True if anything changed.

        Called on the device thread when one job alone did not fit, again and again until it fits or nothing
        changes any more.
        """
        ...


Load = Callable[[ModelEntry, Device], Model]
