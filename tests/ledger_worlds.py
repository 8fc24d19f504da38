"""A ledger and a clock that tests move: the in-memory twin with its own, Redis with a clock kept in a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger
from pixelkiln_shared.ledger.contract import Claim, Claimed, LaneOffer, NewJob
from pixelkiln_shared.ledger.outbox import RedisOutbox
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.outbox import MemoryOutbox

LANE = "generate.m"
LEASE_S = 15.0
RETENTION_S = 1_000
START = 1_700_000_000.0
CLOCK_KEY = "test:clock"
TEST_CLOCK = f'local function read_clock() return tonumber(redis.call("GET", "{CLOCK_KEY}")) end'


class Clock:
    """Unix seconds that move only when told."""

    def __init__(self, client: redis.Redis | None = None) -> None:
        self.now = START
        self._client = client
        self.advance(0)

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on by so much, for Redis too."""
        self.now = round(self.now + seconds, 3)
        if self._client is not None:
            self._client.set(CLOCK_KEY, round(self.now * 1_000))


@dataclass
class World:
    """What a test of the contract needs, with the words it says often."""

    ledger: RedisLedger | MemoryLedger
    clock: Clock
    outbox: RedisOutbox | MemoryOutbox = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.ledger, MemoryLedger):
            self.outbox = self.ledger.outbox
        else:
            self.outbox = RedisOutbox(self.ledger._client, clock=TEST_CLOCK)

    def submit(self, count: int = 1, **fields: Any) -> list[str]:
        """Submit alike jobs and return their ids."""
        jobs = [new_job(**fields) for _ in range(count)]
        return list(self.ledger.submit(jobs).ids)

    def one(self, **fields: Any) -> str:
        """Submit one job and return its id."""
        return self.submit(**fields)[0]

    def claim(self, worker: str = "w1", max_rows: int = 1, lane: str = LANE) -> Claim | None:
        """Claim from one lane."""
        return self.ledger.claim(worker, [LaneOffer(lane=lane, max_rows=max_rows)], lease_s=LEASE_S)

    def claimed(self, worker: str = "w1", max_rows: int = 1, lane: str = LANE) -> tuple[Claimed, ...]:
        """Claim from one lane; the jobs, none when nothing may be taken."""
        claim = self.claim(worker, max_rows, lane)
        return claim.jobs if claim else ()

    def serve(self, count: int, *, worker: str = "w1", max_rows: int = 1) -> list[str]:
        """Claim and publish again and again; the leaders' ids in the order of service."""
        leaders = []
        for _ in range(count):
            jobs = self.claimed(worker, max_rows)
            leaders += [job.id for job in jobs[:1]]
            self.publish(jobs)
        return leaders

    def publish(self, jobs: Sequence[Claimed]) -> None:
        """Publish an empty result for each."""
        for job in jobs:
            self.ledger.publish(job.id, job.attempt, "{}")

    def crash(self, *, after_s: float = LEASE_S + 1) -> None:
        """Let the leases lapse and sweep."""
        self.clock.advance(after_s)
        self.ledger.reap()


def new_job(**fields: Any) -> NewJob:
    """Return a small job; give what matters to the test."""
    kind = fields.pop("kind", Kind.GENERATE)
    defaults = {
        "id": new_id("job"),
        "kind": kind,
        "lane": f"{kind}.m",
        "tenant": "anna",
        "spec": '{"v":1}',
        "batch_key": "m:64",
    }
    return NewJob(**{**defaults, **fields})


def memory_world() -> World:
    """Return a world over the twin."""
    clock = Clock()
    return World(MemoryLedger(clock, retention_s=RETENTION_S), clock)


@contextmanager
def redis_world(redis_url: str) -> Iterator[World]:
    """Give a world over an empty database."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    try:
        yield World(RedisLedger(client, retention_s=RETENTION_S, clock=TEST_CLOCK), Clock(client))
    finally:
        client.close()
