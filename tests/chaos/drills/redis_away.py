"""Redis is killed, frozen, or cut off without a word (goal G4)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from pixelkiln_shared.jobs import Status
from tests.chaos.drills.report import Row, Told
from tests.chaos.drills.traffic import (
    STUB_ONLY,
    User,
    open_jobs,
    recent,
    seconds_until,
    sending,
    stub_job,
    unsuccessful,
)
from tests.chaos.schedule import FULL
from tests.chaos.stage import Stage, stage, until

KILLED_S, FROZEN_S, STRANDED_S = 10.0, 30.0, 60.0
FREEZE_S = 90.0
BACKLOG = 40
_PATIENCE_S = 120.0
_DOWN_S = 0.5
_SETTLE_S = 300.0
_ON_ITS_WAY_S = 0.2  # a claim that had reached Redis already


def redis_away(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play each of them so often; `seconds` is not used."""
    told = Told("redis")
    with stage(folder, FULL, seed=1, more=STUB_ONLY) as made:
        if made.s3 is not None:
            made.s3.share = 0.0
        ids: list[str] = []
        user = User(made.url)
        # A little more than four workers do: jobs wait at every moment.
        with sending(user, ids, 8.0, lambda n: stub_job(f"{n}", per_item_ms=500, device_ms=0), hands=8):
            until(lambda: len(ids) > BACKLOG, _PATIENCE_S, "no backlog")
            killed = [_strike(made, _kill) for _ in range(repeats + 2)]
            frozen = [_strike(made, _freeze) for _ in range(max(1, repeats - 1))]
            stranded = [_strike(made, _strand) for _ in range(repeats)]
        seconds_until(lambda: not open_jobs(made), _SETTLE_S)
        return [
            told.longest(
                "killed, started again: first job starts after PING", KILLED_S, [s for s, _ in killed]
            ),
            told.longest(
                f"frozen for {FREEZE_S:.0f} s: first job starts after PING", FROZEN_S, [s for s, _ in frozen]
            ),
            told.longest("all connections half-open: first job starts", STRANDED_S, [s for s, _ in stranded]),
            told.longest("killed: all four workers start jobs", _PATIENCE_S, [s for _, s in killed]),
            told.longest("frozen: all four workers start jobs", _PATIENCE_S, [s for _, s in frozen]),
            told.longest("half-open: all four workers start jobs", STRANDED_S, [s for _, s in stranded]),
            told.exactly("accepted jobs that are lost or did not succeed", 0, unsuccessful(made, ids)),
            told.told(
                "jobs; answers to POSTs",
                f"{len(ids):,}; {dict(user.answers)}, slowest {user.slowest_s:.1f} s",
            ),
            told.exactly("503 without Retry-After", 0, user.unpolite),
        ]


def _strike(made: Stage, fault: Callable[[Stage], float]) -> tuple[float, float]:
    """Do it; returns the seconds until the first job starts, and until each worker has started one."""
    at = fault(made)
    first = every = float("inf")
    give_up = time.time() + _PATIENCE_S
    while every == float("inf") and time.time() < give_up:
        starts: dict[str, float] = {}
        # Of all jobs the newest thousand may still wait.
        for record in (*recent(made, Status.RUNNING), *recent(made, Status.SUCCEEDED)):
            if record.started_at is not None and record.worker and record.started_at > at:
                known = starts.get(record.worker, float("inf"))
                starts[record.worker] = min(known, record.started_at)
        if starts:
            first = min(first, min(starts.values()) - at)
        if len(starts) >= len(made.launchers):
            every = sorted(starts.values())[len(made.launchers) - 1] - at
        time.sleep(0.3)
    time.sleep(5)
    return first, every


def _kill(made: Stage) -> float:
    made.redis.kill()
    time.sleep(_DOWN_S)
    made.start_redis()
    return time.time()


def _freeze(made: Stage) -> float:
    made.redis.signal(signal.SIGSTOP)
    time.sleep(FREEZE_S)
    made.redis.signal(signal.SIGCONT)
    made.client.ping()
    return time.time()


def _strand(made: Stage) -> float:
    at = time.time()
    made.link.forget()
    time.sleep(_ON_ITS_WAY_S)
    return at + _ON_ITS_WAY_S
