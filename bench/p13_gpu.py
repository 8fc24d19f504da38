"""P13: networks of the size people use on a GPU, the whole path beside the bare batched loop.

The weights are random and the shapes real: SDXL at 1024 x 1024, and a Mask2Former on a large Swin. Without
a GPU there is nothing to measure and the rows say so; tests run the same code with tiny shapes on the CPU.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.model_path import (
    BareLoop,
    Mix,
    bare_loop,
    generate_jobs,
    ours_s,
    paired,
    segment_jobs,
    stored_pictures,
    warm,
)
from bench.results import Result, compared, unable
from bench.stage import Stage, stage
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.fleet import DeviceTime, Fleet
from pixelkiln_shared.ledger import redis_client

GENERATOR, SEGMENTER = "bench-sdxl", "bench-mask2former"
GOAL, BUSY_GOAL = 0.97, 0.98
STEPS, GUIDANCE = 20, 5.0
_REPORTED_S = 6.0  # a worker tells the fleet of its device every five seconds
_CATALOGUE = """
[models.{generator}]
title = "SDXL, random"
family = "diffusion"
kinds = ["generate"]
source = {pipeline}
defaults = {{ width = {side}, height = {side}, steps = {steps}, guidance = {guidance} }}
limits = {{ max_batch = {batch}, max_side = {side}, max_pixels = {pixels} }}

[models.{segmenter}]
title = "Mask2Former, random"
family = "universal"
kinds = ["segment"]
source = {network}
limits = {{ max_batch = {batch}, min_side = 8, max_side = {side}, max_pixels = {pixels} }}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How much is done in a round, in batches of how many, on which device (as `PIXELKILN_DEVICE` has it)."""

    pictures: int = 24
    segmented: int = 192
    batch: int = 4
    steps: int = STEPS
    device: str = "cuda:0"


def run(rounds: int, full: bool) -> list[Result]:
    """Measure where there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return [
            unable(
                name,
                what,
                peer_name="the bare batched loop",
                goal=goal,
                why="no GPU on this machine: not run",
            )
            for name, what, goal in (
                ("p13", "pictures a second of an SDXL and of a Mask2Former", GOAL),
                ("p13-busy", "share of the time that the device works", BUSY_GOAL),
            )
        ]
    from bench.random_weights import REAL

    return measure(REAL, Work(pictures=48, segmented=384) if full else Work(), rounds)


def measure(shape: object, work: Work, rounds: int) -> list[Result]:
    """Return two rows for each network: the speed beside the loop's, and how busy the device was."""
    with _models(shape, work) as catalogue:
        environment = {"PIXELKILN_CATALOGUE": str(catalogue), "PIXELKILN_DEVICE": work.device}
        models = f"{GENERATOR},{SEGMENTER}"
        with (
            tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name,
            stage(models=models, environment=environment) as ready,
            bare_loop(environment) as loop,
        ):
            made = mixes(ready, Catalogue.load(catalogue), Path(name), work)
            return [row for mix in made for row in _rows(ready, loop, mix, rounds)]


def mixes(ready: Stage, catalogue: Catalogue, folder: Path, work: Work) -> list[Mix]:
    """Return the jobs of both networks; the pictures to segment are drawn first."""
    generator, segmenter = catalogue.get(GENERATOR), catalogue.get(SEGMENTER)
    drawn = Mix(name="drawn", stages=(generate_jobs(generator, work.batch),))
    ours_s(ready, drawn)
    refs, files = stored_pictures(ready, drawn.specs, folder)
    repeated = tuple(files[index % len(files)] for index in range(work.segmented))
    return [
        Mix(name="SDXL", stages=(generate_jobs(generator, work.pictures),)),
        Mix(name="Mask2Former", stages=(segment_jobs(segmenter, refs, work.segmented),), files=repeated),
    ]


def _rows(ready: Stage, loop: BareLoop, mix: Mix, rounds: int) -> Iterator[Result]:
    warm(ready, loop, mix)
    before = _device_time(ready)
    pairs = paired(ready, loop, mix, rounds)
    after = _device_time(ready)
    yield compared(
        "p13",
        f"{mix.name}: pictures a second, whole path, files into a folder",
        pairs,
        peer_name=f"{mix.name}: the bare batched loop in a process of its own",
        goal=GOAL,
        caveat="random weights of the real shape; from the first bell to the last publish; the loop neither "
        "encodes nor stores",
    )
    yield compared(
        "p13-busy",
        f"{mix.name}: share of the time from the first bell to the last publish that the device works",
        [(busy_share(before, after, len(mix.stages[0]), pairs), 1.0)],
        peer_name=f"{mix.name}: a device that never waits",
        goal=BUSY_GOAL,
        caveat="over all rounds, by the worker's own account of its device",
    )


def busy_share(
    before: DeviceTime, after: DeviceTime, jobs: int, pairs: Sequence[tuple[float, float]]
) -> float:
    """Return the share of our rounds' time in which the device ran or loaded models."""
    worked_s = after.busy_s + after.load_s - before.busy_s - before.load_s
    return worked_s / sum(jobs / ours for ours, _ in pairs)


def _device_time(ready: Stage) -> DeviceTime:
    """Return the worker's account, once it tells all that has happened until now."""
    time.sleep(_REPORTED_S)
    with redis_client(ready.settings) as client:
        return Fleet(client).workers()[0].device_time


@contextmanager
def _models(shape: object, work: Work) -> Iterator[Path]:
    """Save both networks and a catalogue that names them; give the catalogue's file."""
    import torch

    from bench import random_weights

    assert isinstance(shape, random_weights.Shape)
    dtype = torch.float32 if work.device == "cpu" else torch.bfloat16
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        folder = Path(name)
        random_weights.sdxl(folder / "pipeline", shape, dtype, work.device)
        random_weights.mask2former(folder / "network", shape, dtype, work.device)
        if work.device != "cpu":
            torch.cuda.empty_cache()
        text = _CATALOGUE.format(
            generator=GENERATOR,
            segmenter=SEGMENTER,
            pipeline=json.dumps(str(folder / "pipeline")),
            network=json.dumps(str(folder / "network")),
            side=shape.side_px,
            pixels=shape.side_px**2,
            batch=work.batch,
            steps=work.steps,
            guidance=GUIDANCE,
        )
        (folder / "catalogue.toml").write_text(text, "utf-8")
        yield folder / "catalogue.toml"
