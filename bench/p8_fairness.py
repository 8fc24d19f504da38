"""P8: one tenant has thousands of jobs waiting; twenty others come with one job each. How long do they wait?

A real worker process on the stub device (40 ms a batch and 5 ms a picture, batches of eight). The twenty come
together: once to an empty system, once two seconds after the large tenant began. Their wait is from submit to
result. The third run has as many jobs, all of one tenant: what fairness costs in throughput. A queue in order
of arrival, as Celery keeps it, is simulated with the same device and the same batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.desks import QueueDesk
from bench.results import Result, compared
from bench.simulation import Machine, SimJob, SimModel, Simulation
from bench.stage import Stage, stage, stub_specs
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_worker.families.stub import DEVICE_MS, PER_ITEM_MS

LARGE, FULL_LARGE = 1_500, 5_000
SMALL = 20
SIZE_PX = 64
HEAD_START_S = 2.0
BATCH = 8
GOALS = {"wait": 1 / 3, "throughput": 0.98, "fifo": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round measured: waits in seconds (p95 of the small tenants), jobs a second."""

    empty_s: float
    beside_s: float
    fifo_s: float
    alone_per_s: float
    together_per_s: float


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; the ratios are medians over the rounds."""
    large = FULL_LARGE if full else LARGE
    with stage() as ready:
        _jobs_per_s(ready, stub_specs(10 * BATCH, size_px=SIZE_PX), [])  # connections, caches, forecasts
        measured = [_round(ready, large, number) for number in range(rounds)]
    what = f"{SMALL} tenants with one job each beside one with {large}"
    caveat = "the device sleeps; a wait is from submit to result, and the twenty come together"
    return [
        compared(
            "p8",
            f"p95 of the wait in seconds, {what}",
            [(one.beside_s, one.empty_s) for one in measured],
            peer_name="the same twenty on an empty system",
            goal=GOALS["wait"],
            caveat=caveat,
            less_is_better=True,
        ),
        compared(
            "p8",
            f"jobs a second, {what}",
            [(one.together_per_s, one.alone_per_s) for one in measured],
            peer_name=f"{large + SMALL} jobs of one tenant",
            goal=GOALS["throughput"],
            caveat="from the first bell to the last publish",
        ),
        compared(
            "p8",
            f"p95 of the wait in seconds, {what}",
            [(one.beside_s, one.fifo_s) for one in measured],
            peer_name="a queue in order of arrival (plain Celery), simulated with the same batches",
            goal=GOALS["fifo"],
            caveat=f"{caveat}; the peer's order is simulated, without any cost of its own",
            less_is_better=True,
        ),
    ]


def fifo_wait_s(large: int) -> float:
    """Return the p95 of the small tenants' wait when jobs are served in the order in which they came."""
    stub = SimModel(id="stub", load_s=0.0, fixed_s=DEVICE_MS / 1_000, per_row_s=PER_ITEM_MS / 1_000)
    trace = [SimJob(id=f"large-{number}", at_s=0.0, model="stub") for number in range(large)]
    trace += [SimJob(id=f"small-{number}", at_s=HEAD_START_S, model="stub") for number in range(SMALL)]
    machine = Machine(id="w1", models=("stub",), memory_bytes=1)
    served = Simulation({"stub": stub}, [machine], QueueDesk("fifo", max_batch=BATCH)).run(trace)
    return _p95([one.ended_s - one.job.at_s for one in served if one.job.id.startswith("small")])


def _round(ready: Stage, large: int, number: int) -> Round:
    _, few = _jobs_per_s(ready, [], _small())
    alone_per_s, _ = _jobs_per_s(ready, stub_specs(large + SMALL, size_px=SIZE_PX, tenant="large"), [])
    together_per_s, beside = _jobs_per_s(ready, stub_specs(large, size_px=SIZE_PX, tenant="large"), _small())
    measured = Round(
        empty_s=_wait_s(few),
        beside_s=_wait_s(beside),
        fifo_s=fifo_wait_s(large),
        alone_per_s=alone_per_s,
        together_per_s=together_per_s,
    )
    print(f"p8 round {number + 1}: {measured}", file=sys.stderr)
    return measured


def _small() -> list[JobSpec]:
    return [
        spec
        for number in range(SMALL)
        for spec in stub_specs(1, size_px=SIZE_PX, tenant=f"small-{number:02}")
    ]


def _jobs_per_s(
    ready: Stage, first: Sequence[JobSpec], later: Sequence[JobSpec]
) -> tuple[float, list[Record]]:
    """Run `first`, and `later` after a head start; return jobs a second, and the records of `later`."""
    began = time.time()
    for specs in (first, later):
        if specs is later and first and later:
            time.sleep(HEAD_START_S)
        if specs:
            ready.submit(specs)
            ready.ring(specs[0].lane, len(specs))
    everything = [*later, *first]
    records = ready.wait([spec.id for spec in everything], limit_s=60 + len(everything) / 10)
    ended = max(record.completed_at or 0.0 for record in records)
    return len(everything) / (ended - began), records[: len(later)]


def _wait_s(records: Sequence[Record]) -> float:
    return _p95([(record.completed_at or 0.0) - record.created_at for record in records])


def _p95(waits: Sequence[float]) -> float:
    return sorted(waits)[int(0.95 * len(waits))]
