"""A model that sleeps instead of computing: for benchmarks, chaos runs and tests (`PIXELKILN_STUB=1`).

A batch of n rows takes `device_ms + per_item_ms * n`, spread over the job's `steps`; each row beyond `knee`,
if that is given, `knee_ms` more, as on a device that is full. Its pictures depend on prompt, seed and size
alone. What goes wrong on request:

    options.fail    error      only that job fails
                    batch      the whole batch raises, as a library does on one bad row
                    oom        out of memory unless the job runs alone
                    oom_alone  out of memory even alone
                    hang       a forward pass that never ends
                    poison     the device's context breaks, as by an illegal memory access
    options.crash   true       the process dies at the middle step
    options.seize   true       it hangs there in native code that keeps Python's global lock
    options.empty   true       it makes no picture: what is left is the way of a job through the worker

`[fail=error]`, `[crash]` or `[seize]` in the prompt does the same without changing the batch key: innocents
ride along.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Pixels, Task, Watch

DEVICE_MS = 40.0
PER_ITEM_MS = 5.0

Mishap = Literal["", "error", "batch", "oom", "oom_alone", "hang", "poison", "crash", "seize"]

_MARK = re.compile(r"\[(?:fail=(error|batch|oom|oom_alone|hang|poison)|(crash|seize))\]")


class OutOfMemoryError(RuntimeError):
    """Stands in for `torch.OutOfMemoryError`, so that the stub needs no torch."""


class AcceleratorError(RuntimeError):
    """Stands in for `torch.AcceleratorError`."""


def load(entry: ModelEntry, device: Device) -> StubModel:
    """Return the stub; only its canvas is made."""
    _canvas(entry.defaults["width"], entry.defaults["height"])
    return StubModel(entry)


class StubModel:
    """See the module's page."""

    footprint_bytes = 0

    def __init__(self, entry: ModelEntry) -> None:
        self.max_rows = entry.limits.max_batch
        self.identity: dict[str, Any] = {"family": "stub", "revision": "1", "dtype": "uint8"}

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        """Sleep as long as the device would take, then paint."""
        mishaps = [_mishap(task.spec) for task in batch]
        if "oom_alone" in mishaps or ("oom" in mishaps and len(batch) > 1):
            raise OutOfMemoryError("the stub's memory is full")
        if "batch" in mishaps:
            raise ValueError("a row that the stub cannot digest")
        if "poison" in mishaps:
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        if "hang" in mishaps:
            while True:
                time.sleep(1)
        self._sleep_through(batch, watch, end=_end(mishaps))
        return [
            ValueError("this job was asked to fail") if mishap == "error" else _paint(task.spec)
            for task, mishap in zip(batch, mishaps, strict=True)
        ]

    def close(self) -> None:
        """Nothing to drop."""

    def _sleep_through(
        self, batch: Sequence[Task], watch: Watch, *, end: Callable[[], object] | None = None
    ) -> None:
        leader = batch[0].spec
        steps = int(leader.input.get("steps") or 1)
        rows = sum(task.spec.rows for task in batch)
        work_ms = _number(leader, "device_ms", DEVICE_MS) + _number(leader, "per_item_ms", PER_ITEM_MS) * rows
        work_ms += _number(leader, "knee_ms", 0.0) * max(0.0, rows - _number(leader, "knee", rows))
        began = time.monotonic()
        for step in range(1, steps + 1):
            # against the start, not step by step: sleeping overshoots, and the overshoot must not add up
            time.sleep(max(0.0, began + work_ms / 1_000 * step / steps - time.monotonic()))
            if end is not None and step >= steps / 2:
                end()
            watch.step(step, steps)
            if step < steps:
                _show(batch, watch)


def _show(batch: Sequence[Task], watch: Watch) -> None:
    """Give the previews that are due: a quarter of the picture's size, so that they are told apart."""
    for index in watch.previews_due():
        asked = batch[index].spec.input
        watch.preview(
            index, _picture(asked["prompt"], asked["seed"], asked["width"], asked["height"])[::4, ::4]
        )


def _mishap(spec: JobSpec) -> Mishap:
    options = spec.input.get("options", {})
    mark = _MARK.search(spec.input["prompt"])
    marked = (mark[1] or mark[2]) if mark else ""
    ends = [name for name in ("crash", "seize") if options.get(name) or marked == name]
    return cast(Mishap, ends[0] if ends else options.get("fail") or marked)


def _end(mishaps: Sequence[Mishap]) -> Callable[[], object] | None:
    """Return what ends or hangs the process at the middle step, if anything."""
    if "crash" in mishaps:
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    if "seize" in mishaps:
        return lambda: ctypes.PyDLL(None).sleep(86_400)  # PyDLL, unlike CDLL, keeps the lock
    return None


def _number(spec: JobSpec, option: str, default: float) -> float:
    return float(spec.input.get("options", {}).get(option, default))


def _paint(spec: JobSpec) -> Outcome:
    if spec.input.get("options", {}).get("empty"):
        return Outcome()
    seed, width, height = spec.input.get("seed") or 0, spec.input["width"], spec.input["height"]
    pictures = tuple(
        Picture(pixels=_picture(spec.input["prompt"], seed + i, width, height), seed=seed + i)
        for i in range(spec.rows)
    )
    return Outcome(pictures=pictures, detail={"stub": True})


def _picture(prompt: str, seed: int, width: int, height: int) -> Pixels:
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    x, y = digest[0], digest[1]
    return _canvas(width, height)[y : y + height, x : x + width]  # HWC


@lru_cache(maxsize=4)
def _canvas(width: int, height: int) -> Pixels:
    """A surface 256 pixels larger than asked: slopes with noise as of a sensor, such as photographs have."""
    rows = np.linspace(0, 200, height + 256)[:, None, None]
    columns = np.linspace(0, 3, width + 256)[None, :, None]
    slope = rows * 0.5 + 50 * np.sin(columns + np.arange(3)) + 64  # HWC
    noise = np.random.default_rng(0).normal(0, 3, slope.shape)  # a few levels at random cost zlib far more
    canvas: Pixels = np.clip(slope + noise, 0, 255).astype(np.uint8)
    return canvas
