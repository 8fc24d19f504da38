"""A discrete-event simulation: workers with room for few models serve a trace of jobs in virtual time.

Only devices and arrivals are simulated. Who is next is asked of a `Desk`, which may be the ledger itself with
every move really executed (`bench/desks.py`); which models make room is decided by the worker's own code.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Protocol

from pixelkiln_worker.choices import Demand

HEARTBEAT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimModel:
    """A model and what it costs: seconds to load, seconds a batch and a row, bytes while loaded."""

    id: str
    load_s: float
    fixed_s: float
    per_row_s: float
    footprint_bytes: int = 1
    max_batch: int = 8

    def run_s(self, rows: int) -> float:
        """Return the device time of a batch."""
        return self.fixed_s + self.per_row_s * rows


@dataclass(frozen=True, kw_only=True, slots=True)
class SimJob:
    """A job of one row, and when it comes."""

    id: str
    at_s: float
    model: str
    tenant: str = "anna"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A worker's lot: the models it serves, and its room for loaded ones."""

    id: str
    models: tuple[str, ...]
    memory_bytes: int


@dataclass(slots=True)
class SimBatch:
    """What a desk handed out; `token` is the desk's own."""

    model: str
    jobs: list[SimJob]
    token: object = None


@dataclass(slots=True)
class SimWorker:
    """A machine at work. `resident` holds bytes by model, least recently used first."""

    machine: Machine
    resident: OrderedDict[str, int] = field(default_factory=OrderedDict)
    load_s: dict[str, float] = field(default_factory=dict)
    run_s: dict[str, float] = field(default_factory=dict)
    loaded_at_s: float = float("-inf")
    newest: str = ""
    demand: Demand = field(default_factory=Demand)
    busy: bool = False
    asking: bool = False
    next: SimBatch | None = None
    busy_s: float = 0.0
    loading_s: float = 0.0
    loads: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One job's way: when it came, was taken, started on the device, ended; seconds of virtual time."""

    job: SimJob
    worker: str
    batch: int
    started_s: float
    ended_s: float

    @property
    def wait_s(self) -> float:
        """From arrival to the device; loading the model is part of it."""
        return self.started_s - self.job.at_s


class Desk(Protocol):
    """Where jobs wait, and who says which are next. `now_s` is virtual time."""

    def arrive(self, now_s: float, jobs: Sequence[SimJob]) -> None:
        """Take jobs in."""

    def claim(self, now_s: float, worker: SimWorker) -> SimBatch | None:
        """Hand out the next batch for a worker, or None."""

    def top_up(self, now_s: float, worker: SimWorker, batch: SimBatch, room: int) -> list[SimJob]:
        """Hand out more jobs for a batch that is about to run."""

    def done(self, now_s: float, worker: SimWorker, batch: SimBatch) -> None:
        """Hear that a batch has run."""

    def heartbeat(self, now_s: float, worker: SimWorker) -> None:
        """Hear that a worker lives."""

    def leaving(self, now_s: float, worker: SimWorker, needed_bytes: int) -> list[str]:
        """Return the loaded models that make room for so many bytes."""

    def answered_s(self, now_s: float) -> float:
        """Return when the last answer was there: later than `now_s` if the desk itself takes time."""


class Simulation:
    """Run a trace to its end.

    Args:
        models: what there is to serve, by id.
        machines: the workers.
        desk: where jobs wait.
        lead: how long before the end of a batch of so many seconds the next one is claimed.
        top_up_after_load: whether a batch is filled up once more when its model has been loaded. Workers do
            not do that.
        seed: decides which idle worker hears of a new job first, as a broker would, blindly.
    """

    def __init__(
        self,
        models: Mapping[str, SimModel],
        machines: Sequence[Machine],
        desk: Desk,
        *,
        lead: Callable[[float], float] = lambda run_s: 0.0,
        top_up_after_load: bool = False,
        seed: int = 0,
    ) -> None:
        self.models = models
        self.workers = [SimWorker(machine) for machine in machines]
        self.desk = desk
        self.served: list[Served] = []
        self.now_s = 0.0
        self._lead = lead
        self._top_up_after_load = top_up_after_load
        self._random = Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._left = 0

    def run(self, trace: Sequence[SimJob]) -> list[Served]:
        """Serve every job of the trace; return how each fared, in the order of ending."""
        self._left = len(trace)
        by_time: OrderedDict[float, list[SimJob]] = OrderedDict()
        for job in sorted(trace, key=lambda one: one.at_s):
            by_time.setdefault(job.at_s, []).append(job)
        for at_s, jobs in by_time.items():
            self._at(at_s, lambda jobs=jobs: self._arrive(jobs))  # type: ignore[misc]
        for worker in self.workers:
            self._at(HEARTBEAT_S * self._random.random(), lambda worker=worker: self._beat(worker))  # type: ignore[misc]
        while self._left:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
            if self._stuck():
                raise RuntimeError(f"{self._left} jobs wait that nobody serves")
        return self.served

    def _stuck(self) -> bool:
        """Whether every worker is idle, nothing will come, and jobs are left: only heartbeats go on."""
        if len(self._events) > len(self.workers) or not self._left:
            return False
        return not any(worker.busy or worker.asking for worker in self.workers)

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        assert at_s >= self.now_s, "time runs forward"
        heapq.heappush(self._events, (at_s, next(self._numbers), event))

    def _arrive(self, jobs: list[SimJob]) -> None:
        self.desk.arrive(self.now_s, jobs)
        wanted = {job.model for job in jobs}
        idle = [w for w in self.workers if not w.busy and not w.asking and wanted & set(w.machine.models)]
        self._random.shuffle(idle)
        for worker in idle[: len(jobs)]:
            self._ask(worker)

    def _beat(self, worker: SimWorker) -> None:
        self.desk.heartbeat(self.now_s, worker)
        self._at(self.now_s + HEARTBEAT_S, lambda: self._beat(worker))

    def _ask(self, worker: SimWorker) -> None:
        """Claim; the answer comes when the desk has it."""
        if worker.asking or worker.next is not None:
            return
        worker.asking = True
        batch = self.desk.claim(self.now_s, worker)
        self._at(self.desk.answered_s(self.now_s), lambda: self._answer(worker, batch))

    def _answer(self, worker: SimWorker, batch: SimBatch | None) -> None:
        worker.asking = False
        worker.next = batch
        if not worker.busy:
            self._start(worker)

    def _start(self, worker: SimWorker) -> None:
        batch, worker.next = worker.next, None
        if batch is None:
            return
        worker.busy = True
        model = self.models[batch.model]
        began_s = self._top_up(worker, batch, self.now_s)
        loading_s = self._load(worker, model)
        ready_s = began_s + loading_s
        if loading_s and self._top_up_after_load:
            self._at(ready_s, lambda: self._run(worker, batch, self._top_up(worker, batch, self.now_s)))
        else:
            self._at(ready_s, lambda: self._run(worker, batch, self.now_s))

    def _top_up(self, worker: SimWorker, batch: SimBatch, now_s: float) -> float:
        """Fill a batch up; return when that is done: a full one needs no call."""
        room = self.models[batch.model].max_batch - len(batch.jobs)
        if room <= 0:
            return now_s
        batch.jobs += self.desk.top_up(now_s, worker, batch, room)
        return self.desk.answered_s(now_s)

    def _load(self, worker: SimWorker, model: SimModel) -> float:
        if model.id in worker.resident:
            worker.resident.move_to_end(model.id)
            return 0.0
        for name in self.desk.leaving(self.now_s, worker, model.footprint_bytes):
            del worker.resident[name]
        worker.resident[model.id] = model.footprint_bytes
        worker.load_s[model.id] = model.load_s
        worker.newest, worker.loaded_at_s = model.id, self.now_s + model.load_s
        worker.loads += 1
        worker.loading_s += model.load_s
        return model.load_s

    def _run(self, worker: SimWorker, batch: SimBatch, began_s: float) -> None:
        run_s = self.models[batch.model].run_s(len(batch.jobs))
        worker.busy_s += run_s
        worker.run_s[batch.model] = max(run_s, worker.run_s.get(batch.model, 0.0))
        worker.demand.note(batch.model, len(batch.jobs), began_s + run_s)
        ends_s = began_s + run_s
        ahead_s = min(self._lead(run_s), run_s)
        if ahead_s > 0:
            self._at(ends_s - ahead_s, lambda: self._ask(worker))
        self._at(ends_s, lambda: self._end(worker, batch, began_s))

    def _end(self, worker: SimWorker, batch: SimBatch, began_s: float) -> None:
        self.desk.done(self.now_s, worker, batch)
        for job in batch.jobs:
            self.served.append(
                Served(
                    job=job,
                    worker=worker.machine.id,
                    batch=len(batch.jobs),
                    started_s=began_s,
                    ended_s=self.now_s,
                )
            )
        self._left -= len(batch.jobs)
        worker.busy = False
        if worker.next is not None:
            self._start(worker)
        elif not worker.asking:
            self._ask(worker)
