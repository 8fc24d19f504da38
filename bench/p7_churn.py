"""P7: eight models and room for two. How often are they loaded, and how long do jobs wait?

Devices and arrivals are simulated (`bench/simulation.py`); every claim and publish of ours is the real one,
on a real Redis, with the worker's own offers. A step takes 40 ms and 5 ms a row, a job 20 steps, a batch up
to eight jobs, and loading a model as long as 100 steps. Which model a job wants is Zipf distributed, and jobs
come as they please (Poisson). The load is told as a share of what the device could do if it never loaded.
All policies serve the same traces and may fill a batch with any waiting jobs of its model, as ours does; one
row shows a peer without. The lookahead is InvokeAI's rule as we understand it: of the first 32 waiting jobs
the oldest whose model is loaded.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from bench import plots
from bench.desks import LedgerDesk, QueueDesk, Rule, redis_desk
from bench.results import Result, compared
from bench.simulation import Desk, Machine, SimModel, Simulation
from bench.stage import free_port, redis_server
from bench.traces import zipf
from pixelkiln_worker.choices import longest_wait_s

STEP_S, ROW_S = 0.040, 0.005
STEPS, LOAD_STEPS = 20, 100
NAMES = tuple(f"model-{number}" for number in range(1, 9))
MODELS = {
    name: SimModel(
        id=name, load_s=LOAD_STEPS * (STEP_S + ROW_S), fixed_s=STEPS * STEP_S, per_row_s=STEPS * ROW_S
    )
    for name in NAMES
}
ROOM = 2
JOBS, FULL_JOBS = 2_000, 5_000
LOADS = (0.3, 0.6, 0.9)
PLOTTED_LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PEERS: Mapping[Rule, str] = {
    "fifo": "FIFO + LRU",
    "lookahead": "lookahead of 32",
    "longest": "longest queue",
}
GOAL = 1.0
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a policy served a trace: loads, waits in seconds, how long a lane was passed over (ours only)."""

    loads: int
    p50_s: float
    p95_s: float
    max_s: float
    passed_over_s: float = 0.0


def run(rounds: int, full: bool) -> list[Result]:
    """Simulate, a round being another trace; the ratios are medians over the rounds."""
    jobs = FULL_JOBS if full else JOBS
    with _redis() as client:
        ours = {load: [_ours(client, jobs, load, seed) for seed in range(rounds)] for load in LOADS}
        if full:
            _plot(client, jobs)
    peers = {
        (rule, load): [_theirs(rule, jobs, load, seed) for seed in range(rounds)]
        for rule in PEERS
        for load in LOADS
    }
    _tell(ours, peers)
    rows = [
        _row(metric, rule, load, ours[load], peers[rule, load])
        for rule in PEERS
        for load in LOADS
        for metric in ("loads", "p95_s")
        if (rule, metric) != ("longest", "loads")
    ]
    singles = [_theirs("lookahead", jobs, LOADS[0], seed, max_batch=1) for seed in range(rounds)]
    rows.append(_row("p95_s", "lookahead", LOADS[0], ours[LOADS[0]], singles, " unbatched"))
    return [*rows, _bound_row([one for outcomes in ours.values() for one in outcomes])]


def bound_s() -> float:
    """Return for how long a worker with these models may pass over a lane, as `pixelkiln doctor` does."""
    load_s = {name: model.load_s for name, model in MODELS.items()}
    run_s = {name: model.run_s(model.max_batch) for name, model in MODELS.items()}
    return longest_wait_s({name: name for name in NAMES}, load_s, run_s)


@contextmanager
def _redis() -> Iterator[redis.Redis]:
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        port = free_port()
        with redis_server(Path(name), port), redis.Redis(port=port, decode_responses=True) as client:
            yield client


def _ours(client: redis.Redis, jobs: int, load: float, seed: int) -> Outcome:
    return _serve(redis_desk(client, MODELS), jobs, load, seed)


def _theirs(rule: Rule, jobs: int, load: float, seed: int, max_batch: int = 8) -> Outcome:
    return _serve(QueueDesk(rule, max_batch=max_batch), jobs, load, seed)


def _serve(desk: Desk, jobs: int, load: float, seed: int) -> Outcome:
    first = MODELS[NAMES[0]]
    per_s = load * first.max_batch / first.run_s(first.max_batch)
    simulation = Simulation(MODELS, [Machine(id="w1", models=NAMES, memory_bytes=ROOM)], desk)
    waits = sorted(one.wait_s for one in simulation.run(zipf(NAMES, jobs=jobs, per_s=per_s, seed=seed)))
    return Outcome(
        loads=sum(worker.loads for worker in simulation.workers),
        p50_s=_at(waits, 0.5),
        p95_s=_at(waits, 0.95),
        max_s=waits[-1],
        passed_over_s=max(desk.passed_over_s.values()) if isinstance(desk, LedgerDesk) else 0.0,
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _row(
    metric: str, rule: Rule, load: float, ours: list[Outcome], theirs: list[Outcome], how: str = ""
) -> Result:
    pairs = [(getattr(one, metric), getattr(two, metric)) for one, two in zip(ours, theirs, strict=True)]
    what, short = {
        "loads": ("model loads", "loads"),
        "p95_s": ("p95 of the wait in seconds", "p95 wait"),
    }[metric]
    waits = "; ".join(
        f"{name} p50 {outcomes[0].p50_s:.0f} s, worst {outcomes[0].max_s:.0f} s"
        for name, outcomes in (("ours", ours), ("peer", theirs))
    )
    return compared(
        "p7",
        f"{what}, eight models and room for two, simulated devices, real ledger",
        pairs,
        peer_name=f"{PEERS[rule]}{how}: {short} at {load:g}",
        goal=GOAL,
        caveat=f"each round another trace; in the first of them: {waits}",
        less_is_better=True,
    )


def _bound_row(ours: list[Outcome]) -> Result:
    return compared(
        "p7",
        "longest time a lane with waiting jobs was passed over, seconds",
        [(one.passed_over_s, bound_s()) for one in ours],
        peer_name="the printed bound",
        goal=GOAL,
        caveat="all loads; a lane's turn, not a job's wait: under overload jobs queue within their lane",
        less_is_better=True,
    )


def _tell(ours: dict[float, list[Outcome]], peers: dict[tuple[Rule, float], list[Outcome]]) -> None:
    for load in LOADS:
        shown = {"ours": ours[load][0]} | {rule: peers[rule, load][0] for rule in PEERS}
        for name, one in shown.items():
            print(
                f"p7 load {load:g} {name:10} loads {one.loads:5} wait p50 {one.p50_s:7.1f} "
                f"p95 {one.p95_s:7.1f} max {one.max_s:7.1f} s",
                file=sys.stderr,
            )


def _plot(client: redis.Redis, jobs: int) -> None:
    curves = {"Pixelkiln": [(load, _ours(client, jobs, load, 0)) for load in PLOTTED_LOADS]}
    for rule, name in PEERS.items():
        curves[name] = [(load, _theirs(rule, jobs, load, 0)) for load in PLOTTED_LOADS]
    for metric, y in (("p95_s", "p95 of the wait, seconds"), ("loads", "model loads")):
        plots.lines(
            _RESULTS / f"p7-{metric.removesuffix('_s')}.png",
            {name: [(load, getattr(one, metric)) for load, one in curve] for name, curve in curves.items()},
            title=f"Eight models, room for two, {jobs} jobs",
            x="load, as a share of a device that never loads",
            y=y,
        )
