"""P2: the embedded generator and segmenter on the CPU, the whole path beside the bare batched loop.

The model, the encoder, the ledger's client and Celery share the processors here: what a picture costs beside
its forward pass cannot hide behind the next one, as it does beside a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.model_path import (
    BareLoop,
    Mix,
    bare_loop,
    generate_jobs,
    ours_s,
    paired,
    segment_jobs,
    segment_results,
    stored_pictures,
    warm,
)
from bench.results import Result, compared
from bench.stage import Stage, stage
from pixelkiln_shared.catalogue import Catalogue

GENERATOR, SEGMENTER = "toyworld", "toyworld-classes"
GOAL = 0.90
PICTURES = {"generate": 64, "segment": 960, "generate, then segment": 56}
"""How many in a round: some seconds of each."""
FULL_TIMES = 3
_ENVIRONMENT = {"PIXELKILN_DEVICE": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
"""Of both sides. Threads that spin while they wait are quick only on cores that nobody else uses."""


def run(rounds: int, full: bool) -> list[Result]:
    """Measure three mixes; the ratios are medians over the rounds."""
    times = FULL_TIMES if full else 1
    with (
        tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name,
        stage(models=f"{GENERATOR},{SEGMENTER}", environment=_ENVIRONMENT) as ready,
        bare_loop(_ENVIRONMENT) as loop,
    ):
        return [_row(ready, loop, mix, rounds) for mix in mixes(ready, Path(name), times)]


def _row(ready: Stage, loop: BareLoop, mix: Mix, rounds: int) -> Result:
    warm(ready, loop, mix)
    return compared(
        "p2",
        f"{mix.name}: pictures a second on the CPU, whole path, files into a folder",
        paired(ready, loop, mix, rounds),
        peer_name=f"{mix.name}: the bare batched loop in a process of its own",
        goal=GOAL,
        caveat="from the first bell to the last publish, start and tail included; on the same cores, "
        "with as many threads, which sleep while they wait; the loop neither encodes nor stores",
    )


def mixes(ready: Stage, folder: Path, times: int) -> list[Mix]:
    """Return the jobs of the three rows; the pictures to segment are drawn first."""
    catalogue = Catalogue.load()
    generator, segmenter = catalogue.get(GENERATOR), catalogue.get(SEGMENTER)
    drawn = Mix(name="drawn", stages=(generate_jobs(generator, 2 * generator.limits.max_batch),))
    ours_s(ready, drawn)
    refs, files = stored_pictures(ready, drawn.specs, folder)
    alone, taken_apart, both = ((name, times * count) for name, count in PICTURES.items())
    made = generate_jobs(generator, both[1])
    repeated = tuple(files[index % len(files)] for index in range(taken_apart[1]))
    return [
        Mix(name=alone[0], stages=(generate_jobs(generator, alone[1]),)),
        Mix(name=taken_apart[0], stages=(segment_jobs(segmenter, refs, taken_apart[1]),), files=repeated),
        Mix(name=both[0], stages=(made, segment_results(segmenter, made))),
    ]
