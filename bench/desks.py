"""Where simulated jobs wait: our ledger, with every move really executed, and the queues of others."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import redis

from bench.simulation import SimBatch, SimJob, SimModel, SimWorker
from pixelkiln_shared.catalogue import Limits, ModelEntry
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger
from pixelkiln_shared.ledger.contract import Claim, Claimed, Ledger, NewJob
from pixelkiln_worker import choices

T = TypeVar("T")

LEASE_S = 15.0
START_S = 1_700_000_000.0  # virtual time begins there, in Unix seconds
CLOCK_KEY = "simulation:clock"
VIRTUAL_TIME = f'local function read_clock() return tonumber(redis.call("GET", "{CLOCK_KEY}")) end'


class VirtualClock:
    """Seconds since `START_S` that move only when told; kept in a key for the scripts of a real Redis."""

    def __init__(self, client: redis.Redis | None = None) -> None:
        self._client = client
        self._now_ms = -1
        self.set(0.0)

    def __call__(self) -> float:
        return self._now_ms / 1_000

    def set(self, now_s: float) -> None:
        """Move to so many seconds after the start."""
        now_ms = round((START_S + now_s) * 1_000)
        if now_ms != self._now_ms:
            self._now_ms = now_ms
            if self._client is not None:
                self._client.set(CLOCK_KEY, now_ms)


def redis_desk(client: redis.Redis, models: Mapping[str, SimModel], *, busy: float = 0.0) -> LedgerDesk:
    """Return a desk on an empty Redis: the production ledger, but for its clock."""
    client.flushdb()
    ledger = RedisLedger(client, clock=VIRTUAL_TIME)
    return LedgerDesk(ledger, VirtualClock(client), models, busy=busy)


class LedgerDesk:
    """Our own way: the worker's offers, the ledger's moves.

    `passed_over_s` tells how long each model's lane waited at most between two claims, `took_s` how long the
    moves took in truth. With `busy`, the moves take virtual time as well: an answer comes as long after a
    call as it really did, and for this share of that time Redis can do nothing else. 0: they take no time.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: VirtualClock,
        models: Mapping[str, SimModel],
        *,
        busy: float = 0.0,
    ) -> None:
        self.took_s: dict[str, list[float]] = {}
        self.passed_over_s: dict[str, float] = {}
        self._ledger = ledger
        self._clock = clock
        self._busy = busy
        self._free_s = self._answered_s = 0.0
        self._jobs: dict[str, SimJob] = {}
        self._held: dict[str, dict[str, int]] = {}
        self._waiting: Counter[str] = Counter()
        self._since_s: dict[str, float] = {}
        self._entries = {name: _entry(model) for name, model in models.items()}

    def arrive(self, now_s: float, jobs: Sequence[SimJob]) -> None:
        """Submit."""
        self._jobs |= {job.id: job for job in jobs}
        for job in jobs:
            self._since_s.setdefault(job.model, now_s)
        self._waiting.update(job.model for job in jobs)
        new = [
            NewJob(
                id=job.id,
                kind=Kind.GENERATE,
                lane=_lane(job.model),
                tenant=job.tenant,
                spec="{}",
                batch_key=job.model,
            )
            for job in jobs
        ]
        self._call(now_s, "submit", lambda: self._ledger.submit(new))

    def claim(self, now_s: float, worker: SimWorker) -> SimBatch | None:
        """Offer what the worker would, and claim."""
        offers = choices.offers(
            {_lane(name): self._entries[name] for name in worker.machine.models},
            resident=worker.resident,
            load_s=lambda name: worker.load_s.get(name, 0.0),
            last_load=choices.LastLoad(
                ago_s=now_s - worker.loaded_at_s, took_s=worker.load_s.get(worker.newest, 0.0)
            ),
            resting=lambda name: False,
        )
        name = worker.machine.id
        claim = self._call(now_s, "claim", lambda: self._ledger.claim(name, offers, lease_s=LEASE_S))
        if claim is None:
            return None
        model = claim.lane.partition(".")[2]
        passed_s = now_s - self._since_s[model]
        self.passed_over_s[model] = max(passed_s, self.passed_over_s.get(model, 0.0))
        self._since_s[model] = now_s
        return SimBatch(model, self._take(name, claim.jobs), claim)

    def top_up(self, now_s: float, worker: SimWorker, batch: SimBatch, room: int) -> list[SimJob]:
        """Take more of the same batch key."""
        name, claim = worker.machine.id, batch.token
        assert isinstance(claim, Claim)
        more = self._call(now_s, "top_up", lambda: self._ledger.top_up(name, claim, room, lease_s=LEASE_S))
        return self._take(name, more)

    def done(self, now_s: float, worker: SimWorker, batch: SimBatch) -> None:
        """Publish each job."""
        held = self._held[worker.machine.id]
        for job in batch.jobs:
            attempt = held.pop(job.id)
            self._call(now_s, "publish", lambda: self._ledger.publish(job.id, attempt, "{}"))  # noqa: B023

    def heartbeat(self, now_s: float, worker: SimWorker) -> None:
        """Renew what the worker holds."""
        pairs = list(self._held.get(worker.machine.id, {}).items())
        if pairs:
            name = worker.machine.id
            self._call(now_s, "renew", lambda: self._ledger.renew(name, pairs, lease_s=LEASE_S))

    def leaving(self, now_s: float, worker: SimWorker, needed_bytes: int) -> list[str]:
        """Let models leave as a worker would."""
        order = choices.by_worth(
            worker.resident, demand=worker.demand, load_s=worker.load_s.__getitem__, now_s=now_s
        )
        return list(
            choices.leaving(
                {name: worker.resident[name] for name in order},
                needed_bytes=needed_bytes,
                budget_bytes=worker.machine.memory_bytes,
                waiting=[name for name, count in self._waiting.items() if count],
            )
        )

    def answered_s(self, now_s: float) -> float:
        """Return when the last call was answered."""
        return max(now_s, self._answered_s) if self._busy else now_s

    def _take(self, worker: str, jobs: Iterable[Claimed]) -> list[SimJob]:
        taken = {job.id: job.attempt for job in jobs}
        self._held.setdefault(worker, {}).update(taken)
        found = [self._jobs[name] for name in taken]
        for job in found:
            self._waiting[job.model] -= 1
            if not self._waiting[job.model]:
                del self._since_s[job.model]
        return found

    def _call(self, now_s: float, move: str, call: Callable[[], T]) -> T:
        self._clock.set(now_s)
        began = time.perf_counter()
        answer = call()
        took_s = time.perf_counter() - began
        self.took_s.setdefault(move, []).append(took_s)
        began_s = max(now_s, self._free_s)
        self._free_s, self._answered_s = began_s + took_s * self._busy, began_s + took_s
        return answer


Rule = Literal["fifo", "lookahead", "longest"]
LOOKAHEAD = 32


class QueueDesk:
    """One queue for all models, as others keep it; a batch is filled with the leader's likes, as ours are.

    Rules: `fifo` takes the oldest; `lookahead` the oldest of the first 32 whose model is loaded, else the
    oldest; `longest` the oldest of the model with most waiting jobs, which looks at all of them and lets the
    rare ones wait as long as it takes. A queue that cannot batch has `max_batch` 1.
    """

    def __init__(self, rule: Rule, *, max_batch: int = 8) -> None:
        self._rule = rule
        self._max_batch = max_batch
        self._waiting: OrderedDict[str, SimJob] = OrderedDict()
        self._by_model: dict[str, OrderedDict[str, SimJob]] = {}

    def arrive(self, now_s: float, jobs: Sequence[SimJob]) -> None:
        """Append."""
        for job in jobs:
            self._waiting[job.id] = job
            self._by_model.setdefault(job.model, OrderedDict())[job.id] = job

    def claim(self, now_s: float, worker: SimWorker) -> SimBatch | None:
        """Pick a leader by the rule, and its likes."""
        leader = self._leader(worker)
        if leader is None:
            return None
        self._remove(leader)
        batch = SimBatch(leader.model, [leader])
        batch.jobs += self.top_up(now_s, worker, batch, self._max_batch - 1)
        return batch

    def top_up(self, now_s: float, worker: SimWorker, batch: SimBatch, room: int) -> list[SimJob]:
        """Take the oldest of the same model."""
        room = min(room, self._max_batch - len(batch.jobs))
        more = list(self._by_model.get(batch.model, {}).values())[: max(0, room)]
        for job in more:
            self._remove(job)
        return more

    def done(self, now_s: float, worker: SimWorker, batch: SimBatch) -> None:
        """Nothing to note."""

    def heartbeat(self, now_s: float, worker: SimWorker) -> None:
        """Nothing to renew."""

    def leaving(self, now_s: float, worker: SimWorker, needed_bytes: int) -> list[str]:
        """Let the least recently used leave."""
        room = worker.machine.memory_bytes
        return list(choices.leaving(worker.resident, needed_bytes=needed_bytes, budget_bytes=room))

    def answered_s(self, now_s: float) -> float:
        """Answer at once."""
        return now_s

    def _leader(self, worker: SimWorker) -> SimJob | None:
        mine = (job for job in self._waiting.values() if job.model in worker.machine.models)
        if self._rule == "lookahead":
            seen = [job for job, _ in zip(mine, range(LOOKAHEAD), strict=False)]
            return next((job for job in seen if job.model in worker.resident), seen[0] if seen else None)
        if self._rule == "longest":
            best = max(worker.machine.models, key=lambda name: len(self._by_model.get(name, ())))
            return next(iter(self._by_model.get(best, {}).values()), None)
        return next(mine, None)

    def _remove(self, job: SimJob) -> None:
        del self._waiting[job.id]
        del self._by_model[job.model][job.id]


def _lane(model: str) -> str:
    return f"{Kind.GENERATE}.{model}"


def _entry(model: SimModel) -> ModelEntry:
    limits = Limits(max_batch=model.max_batch)
    return ModelEntry(id=model.id, family="stub", kinds=(Kind.GENERATE,), title=model.id, limits=limits)
