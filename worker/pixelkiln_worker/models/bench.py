"""How fast a model is on this machine: time to load, seconds a picture by batch size, memory at the peak."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import INPUTS
from pixelkiln_shared.settings import Settings
from pixelkiln_worker import device, families
from pixelkiln_worker.device import Device, DeviceThread
from pixelkiln_worker.families.contract import Model, Nobody, Outcome, Pixels, Task
from pixelkiln_worker.residency import Residency

ROUNDS = 3  # their median; one round before them, uncounted, for what libraries do at a first shape
_SIDE_PX = 512
_FALLBACKS: dict[str, Any] = {"steps": 20, "guidance": 5.0, "strength": 0.6, "scale": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model on one device. `seconds` is what a picture takes, by batch size; `failed` says why not."""

    model: str
    kind: str
    device: str
    load_s: float
    footprint_bytes: int
    peak_bytes: int
    steps: int | None
    seconds: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def bench(entry: ModelEntry, settings: Settings, sizes: Sequence[int], steps: int | None) -> Measured:
    """Load the model and run it at each batch size; a size that fails is noted, and the next one tried.

    Raises:
        ModelUnavailable: it does not load.
        Misconfigured: the device asked for is not there.
    """
    chosen, thread = device.pick(settings), DeviceThread()
    residency = Residency(chosen, families.load)
    thread.run(partial(families.family, entry))  # importing its libraries is no load time
    in_use = thread.run(partial(residency.use, entry))
    seconds, failed = {}, {}
    for size in sizes:
        tasks = [task_of(entry, number, steps) for number in range(size)]
        try:
            seconds[size] = thread.run(partial(_median_s, in_use.model, tasks, chosen)) / size
        except Exception as error:  # noqa: BLE001 - whatever a library raises is this size's result
            thread.run(chosen.free_caches)
            short = device.is_out_of_memory(error)
            failed[size] = "out of memory" if short else f"{type(error).__name__}: {error}"[:200]
    [told] = residency.residents
    return Measured(
        model=entry.id,
        kind=entry.kinds[0],
        device=_title(chosen),
        load_s=told.load_s,
        footprint_bytes=told.footprint_bytes,
        peak_bytes=_peak_bytes(chosen),
        steps=task_of(entry, 0, steps).spec.input.get("steps"),
        seconds=seconds,
        failed=failed,
    )


def report(measured: Measured, *, as_json: bool) -> None:
    """Print what was measured, as JSON or for people."""
    if as_json:
        print(json.dumps(asdict(measured)))
        return
    steps = f", {measured.steps} steps" if measured.steps else ""
    print(f"{measured.model} on {measured.device}: {measured.kind}{steps}")
    print(f"loaded in {measured.load_s:.2f} s; {measured.footprint_bytes / 1e6:.1f} MB of weights; "
          f"{measured.peak_bytes / 1e6:.0f} MB at the peak")  # fmt: skip
    print(f"{'batch':>5}  {'s/picture':>9}  {'pictures/s':>10}")
    for size, seconds in measured.seconds.items():
        print(f"{size:>5}  {seconds:>9.3f}  {1 / seconds:>10.2f}")
    for size, why in measured.failed.items():
        print(f"{size:>5}  {why}")


def task_of(entry: ModelEntry, number: int, steps: int | None = None) -> Task:
    """Return a job such as users send, as far as its model's entry tells: each with a seed of its own."""
    kind = entry.kinds[0]
    side = min(_SIDE_PX, entry.limits.max_side, int(entry.limits.max_pixels**0.5)) // 8 * 8
    width, height = (int(entry.defaults.get(name, side)) for name in ("width", "height"))
    given: dict[str, Any] = {name: {"base64": ""} for name in INPUTS[kind].pictures if name == "image"}
    asked = INPUTS[kind].model_validate(given).model_dump(exclude=set(given))
    prompts = entry.example_prompts or ("a house by the sea",)
    known = {
        **_FALLBACKS,
        **entry.defaults,
        "width": width,
        "height": height,
        "seed": number,
        "prompt": None if entry.prompt == "ignored" else prompts[number % len(prompts)],
    }
    asked |= {name: known[name] for name, value in asked.items() if value is None and name in known}
    asked |= {"steps": steps} if steps and "steps" in asked else {}
    asked |= {"labels": ["house", "tree"]} if entry.phrases else {}
    if entry.marks == "needed":
        asked["boxes"] = [{"x0": width / 4, "y0": height / 4, "x1": width * 3 / 4, "y1": height * 3 / 4}]
    spec = JobSpec(id=new_id("job"), kind=kind, model=entry.id, tenant="bench", input=asked)
    return Task(spec=spec, images={name: _picture(width, height, number) for name in given})


def _picture(width: int, height: int, number: int) -> Pixels:
    """Return slopes and a disc with some noise: something to find, and nothing that compresses to nothing."""
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(x - width / 2, y - height / 2) < min(width, height) / 4
    slopes = np.stack([x * 255 / width, y * 255 / height, np.where(disc, 230, 60)], -1)  # HWC
    noise = np.random.default_rng(number).normal(0, 6, slopes.shape)
    return np.asarray((slopes + noise).clip(0, 255), np.uint8)


def _median_s(model: Model, tasks: Sequence[Task], chosen: Device) -> float:
    """Return the median time of a batch, in seconds."""
    times = []
    for _ in range(1 + ROUNDS):
        began = time.monotonic()
        outcomes: list[Outcome | Exception] = []
        for first in range(0, len(tasks), model.max_rows):
            outcomes += model.run(tasks[first : first + model.max_rows], Nobody())
        times.append(time.monotonic() - began)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
    return statistics.median(times[1:])


def _peak_bytes(chosen: Device) -> int:
    """Return the most that tensors took of a CUDA device; elsewhere, what the process took of the host."""
    torch: Any = sys.modules.get("torch")
    if chosen.kind == "cuda" and torch is not None:
        return int(torch.cuda.max_memory_allocated(chosen.name))
    unit_bytes = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _title(chosen: Device) -> str:
    torch: Any = sys.modules.get("torch")
    if chosen.kind == "cuda" and torch is not None:
        return str(torch.cuda.get_device_name(chosen.name))
    return f"{chosen.name}, {chosen.threads} threads" if chosen.kind == "cpu" else chosen.name
