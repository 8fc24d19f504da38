"""P9: one to eight worker processes on one Redis, and one to sixty-four in simulation.

The processes are real: launcher, Celery, Redis, PNG, storage. Their device is the stub, which sleeps: 400 ms
a batch and 50 ms a picture, batches of eight, pictures of 64 px. So slow a device and so small a picture let
two processors carry the Python of eight workers (80 pictures a second, a few ms of processor each): the
question is what workers cost each other, not what they cost.

In the simulation only devices are virtual. Every worker's claims, publishes and heartbeats are really
executed on one real Redis. An answer comes as long after its call as in truth, and Redis takes one call
after the other: for each it is busy for the share of that time in which it really was, measured before. Two
devices: the one above, and one ten times as fast, as P1 has it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from bench import plots
from bench.desks import redis_desk
from bench.results import Result, compared
from bench.simulation import Machine, SimJob, SimModel, Simulation
from bench.stage import Stage, cpu_s, free_port, redis_server, stage, stub_specs

BATCH = 8
SIZE_PX = 64
DEVICE_MS, PER_ITEM_MS = 400.0, 50.0
BATCHES, FULL_BATCHES = 20, 40  # that each worker runs, if they share fairly
WORKERS = (1, 2, 4, 8)
SIMULATED = (1, 2, 4, 8, 16, 32, 64)
GOAL = 0.95
MODELS = {
    "slow": SimModel(id="slow", load_s=0.0, fixed_s=0.4, per_row_s=0.05),
    "fast": SimModel(id="fast", load_s=0.0, fixed_s=0.04, per_row_s=0.005),
}
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """A simulated fleet: jobs a second, Redis's processor seconds a virtual second, claims in ms."""

    per_s: float
    redis_share: float
    claim_p50_ms: float
    claim_p99_ms: float
    busy: float  # the share of the calls' time in which Redis worked


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; each round runs every number of workers, and the ratio is to as many times one worker."""
    batches = FULL_BATCHES if full else BATCHES
    measured = {count: real_per_s(count, rounds, batches) for count in WORKERS}
    simulated = {name: _simulate_all(name, batches) for name in MODELS}
    _plot(measured, simulated)
    rows = [
        compared(
            "p9",
            "pictures a second, worker processes on stub devices",
            list(zip(measured[count], (count * one for one in measured[1]), strict=True)),
            peer_name=f"{count} times one worker process",
            goal=GOAL,
            caveat=f"{batches} batches of {BATCH} a worker, start and tail included; device "
            f"{DEVICE_MS:.0f} ms and {PER_ITEM_MS:.0f} ms a picture, {SIZE_PX} px",
        )
        for count in WORKERS[1:]
    ]
    return rows + [
        _simulated_row(name, count, fleet) for name, fleet in simulated.items() for count in (8, 64)
    ]


def real_per_s(count: int, rounds: int, batches: int) -> list[float]:
    """Return the pictures a second of so many worker processes, once a round."""
    with stage(workers=count) as ready:
        _pictures_per_s(ready, 2 * count * BATCH)  # connections, caches, forecasts
        speeds = []
        for number in range(rounds):
            before, began = (ready.cpu_s(), ready.redis_cpu_s()), time.monotonic()
            speeds.append(_pictures_per_s(ready, batches * count * BATCH))
            took_s = time.monotonic() - began
            print(
                f"p9 {count} workers, round {number + 1}: {speeds[-1]:.1f}/s, workers used "
                f"{(ready.cpu_s() - before[0]) / took_s:.2f} cores, "
                f"Redis {(ready.redis_cpu_s() - before[1]) / took_s:.3f}",
                file=sys.stderr,
            )
    return speeds


def simulated(
    client: redis.Redis, redis_pid: int, model: SimModel, workers: int, batches: int, *, busy: float
) -> Simulated:
    """Run a fleet of identical workers through work that all waits at the start."""
    jobs = [
        SimJob(id=f"job_{number:06}", at_s=0.0, model=model.id)
        for number in range(workers * batches * model.max_batch)
    ]
    desk = redis_desk(client, {model.id: model}, busy=busy)
    machines = [Machine(id=f"w{number}", models=(model.id,), memory_bytes=1) for number in range(workers)]
    simulation = Simulation({model.id: model}, machines, desk, lead=_lead_s)
    before_s = cpu_s(redis_pid)
    ended_s = simulation.run(jobs)[-1].ended_s
    claims = sorted(desk.took_s["claim"])
    used_s = cpu_s(redis_pid) - before_s
    return Simulated(
        per_s=len(jobs) / ended_s,
        redis_share=used_s / ended_s,
        busy=used_s / sum(map(sum, desk.took_s.values())),
        claim_p50_ms=1_000 * claims[len(claims) // 2],
        claim_p99_ms=1_000 * claims[int(0.99 * len(claims))],
    )


def _lead_s(run_s: float) -> float:
    """How long before the end of a batch a worker claims the next, much as `turns.Turns` has it."""
    return min(run_s / 4, 0.25)


def _simulate_all(name: str, batches: int) -> dict[int, Simulated]:
    fleet = {}
    with _redis() as (client, pid):
        simulated(client, pid, MODELS[name], 1, 5, busy=1.0)  # the scripts are sent
        busy = simulated(client, pid, MODELS[name], 8, 2 * FULL_BATCHES, busy=1.0).busy
        for count in SIMULATED:
            fleet[count] = simulated(client, pid, MODELS[name], count, batches, busy=busy)
            print(f"p9 simulated, {name} device, {count} workers: {fleet[count]}", file=sys.stderr)
    return fleet


def _simulated_row(name: str, count: int, fleet: dict[int, Simulated]) -> Result:
    one, many, model = fleet[1], fleet[count], MODELS[name]
    return compared(
        "p9",
        "pictures a second, simulated devices, real ledger calls",
        [(many.per_s, count * one.per_s)],
        peer_name=f"{count} times one simulated worker, batches of {1_000 * model.run_s(BATCH):.0f} ms",
        goal=GOAL,
        caveat=f"Redis used {many.redis_share:.2f} processors; a claim took {many.claim_p50_ms:.2f} ms in "
        f"the median, {many.claim_p99_ms:.2f} ms at p99; bells and readers of events are not simulated",
    )


def _pictures_per_s(ready: Stage, pictures: int) -> float:
    options = {"device_ms": DEVICE_MS, "per_item_ms": PER_ITEM_MS}
    specs = stub_specs(pictures, size_px=SIZE_PX, options=options)
    ready.submit(specs)
    began = time.time()
    ready.ring(specs[0].lane, pictures)
    records = ready.wait([spec.id for spec in specs], limit_s=60 + pictures)
    return pictures / (max(record.completed_at or 0.0 for record in records) - began)


@contextmanager
def _redis() -> Iterator[tuple[redis.Redis, int]]:
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        port = free_port()
        with redis_server(Path(name), port) as pid, redis.Redis(port=port, decode_responses=True) as client:
            yield client, pid


def _plot(measured: Mapping[int, Sequence[float]], simulated: Mapping[str, Mapping[int, Simulated]]) -> None:
    curves = {
        "worker processes": [(float(n), max(speeds) / max(measured[1])) for n, speeds in measured.items()]
    }
    for name, fleet in simulated.items():
        run_ms = 1_000 * MODELS[name].run_s(BATCH)
        curves[f"simulated, batches of {run_ms:.0f} ms"] = [
            (float(count), one.per_s / fleet[1].per_s) for count, one in fleet.items()
        ]
    curves["linear"] = [(float(count), float(count)) for count in SIMULATED]
    plots.lines(
        _RESULTS / "p9-scaling.png",
        curves,
        title="Pictures a second, one worker being 1",
        x="workers",
        y="times one worker",
        log=True,
    )
