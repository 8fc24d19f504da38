"""What a batch of 8 of an embedded model is worth, beside the same pictures one by one.

Model and inputs are the real ones, called in this process: no queue, no encoding, no storage. Each round
makes the same eight pictures in batches of 1, 2, 4 and 8, so that whatever else the machine does falls on all
of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from importlib import resources
from typing import Any

import numpy as np

from bench.results import Result, compared
from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.settings import settings
from pixelkiln_worker import device, families
from pixelkiln_worker.families.contract import Model, Nobody, Outcome, Task

SIZES = (1, 2, 4, 8)
PICTURES = max(SIZES)
GOAL = 1.2
SIZE_PX = 128
_PROMPTS = ("a red house in a meadow by day", "two white boats on the sea at sunset")
_EXTRA: dict[str, dict[str, Any]] = {
    "toyworld-text": {"labels": ["a house"]},
    "toyworld-points": {"points": [{"x": 64.0, "y": 96.0, "positive": True}]},
}
"""What a model's jobs need beside the picture."""


def run(rounds: int, full: bool) -> list[Result]:
    """Measure every embedded model that generates or segments."""
    folder = resources.files("pixelkiln_worker") / "embedded"
    return [
        measure(entry, rounds)
        for entry in Catalogue.load(settings().catalogue)
        if entry.source.startswith("embedded:")
        and {Kind.GENERATE, Kind.SEGMENT} & set(entry.kinds)
        and (folder / entry.source.removeprefix("embedded:")).is_dir()
    ]


def measure(entry: ModelEntry, rounds: int) -> Result:
    """Return the row of one model; each ratio is the median over the rounds."""
    place = device.pick(settings())
    model = families.load(entry, place)
    tasks = _tasks(entry)
    pictures_per_s(model, tasks, PICTURES)  # libraries plan their kernels at the first sight of a shape
    speeds = [{size: pictures_per_s(model, tasks, size) for size in SIZES} for _ in range(rounds)]
    model.close()
    ratios = {size: statistics.median(speed[size] / speed[1] for speed in speeds) for size in SIZES[1:]}
    medians = ", ".join(f"of {size}: {ratio:.2f}" for size, ratio in ratios.items())
    steps = f" in {entry.defaults['steps']} steps" if "steps" in entry.defaults else ""
    return compared(
        "batch",
        f"pictures a second in batches of {PICTURES}, {SIZE_PX} px",
        [(speed[PICTURES], speed[1]) for speed in speeds],
        peer_name=f"{entry.id}{steps}, one by one",
        goal=GOAL,
        caveat=f"median for batches {medians}; on {place.name}, {place.threads} threads; the model alone, "
        "without queue, encoding and storage",
    )


def pictures_per_s(model: Model, tasks: list[Task], size: int) -> float:
    """Return the speed over all tasks, in batches of `size`."""
    began = time.monotonic()
    for start in range(0, len(tasks), size):
        _check(model.run(tasks[start : start + size], Nobody()))
    return len(tasks) / (time.monotonic() - began)


def _check(outcomes: Iterable[Outcome | Exception]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def _tasks(entry: ModelEntry) -> list[Task]:
    return [_task(entry, index) for index in range(PICTURES)]


def _task(entry: ModelEntry, index: int) -> Task:
    kind = Kind.GENERATE if Kind.GENERATE in entry.kinds else Kind.SEGMENT
    shape = {"width": SIZE_PX, "height": SIZE_PX, "steps": 1, "guidance": 1.0} | dict(entry.defaults)
    given = {"prompt": _PROMPTS[index % 2], "seed": index, "count": 1} | shape
    if kind is Kind.SEGMENT:
        given = {"image": {}} | _EXTRA.get(entry.id, {})
    spec = JobSpec(id=f"job-{index}", kind=kind, model=entry.id, tenant="bench", input=given)
    return Task(spec=spec, images={"image": picture(index)} if kind is Kind.SEGMENT else {})


def picture(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return something to take apart: a dark disc on the ground before a sky."""
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    picture = np.full((SIZE_PX, SIZE_PX, 3), (120, 180, 240), np.uint8)
    picture[rows > SIZE_PX // 2] = (100, 180, 80)
    picture[(rows - 80) ** 2 + (columns - 24 - 8 * index) ** 2 < 400] = (200, 40, 40)
    return picture
