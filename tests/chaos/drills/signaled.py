"""SIGTERM to launchers that have work in hand (goal G3)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from pixelkiln_shared.jobs import Status
from tests.chaos.drills.report import Row, Told
from tests.chaos.drills.traffic import STUB_ONLY, User, open_jobs, seconds_until, stub_job
from tests.chaos.schedule import FULL
from tests.chaos.stage import Server, Stage, stage, until

GRACE_S = 3.0
LONG_S, SHORT_S = 20.0, 1.5
AGAIN_S = 5.0
_END_S = 120.0


def signals(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play it so often; `seconds` is not used."""
    told = Told("signals")
    with stage(folder, FULL, seed=1, more={**STUB_ONLY, "PIXELKILN_DRAIN_S": f"{GRACE_S:g}"}) as made:
        if made.s3 is not None:
            made.s3.share = 0.0
        user = User(made.url)
        waits = [_terminate(made, user) for _ in range(repeats)]
        finished = [_finish(made, user) for _ in range(repeats)]
        seconds_until(lambda: not open_jobs(made), _END_S)
        records = made.records()
        what = f"a job of {LONG_S:.0f} s, grace {GRACE_S:g} s: begun elsewhere after"
        return [
            told.longest(f"{what} the end of the grace", AGAIN_S, [wait_s - GRACE_S for wait_s in waits]),
            told.longest(f"{what} SIGTERM", AGAIN_S + GRACE_S, waits),
            told.exactly(
                f"jobs of {SHORT_S:g} s that ran again although the grace was longer",
                0,
                sum(not ok for ok in finished),
            ),
            told.exactly(
                "jobs that did not succeed", 0, sum(r.status is not Status.SUCCEEDED for r in records)
            ),
            told.exactly("strikes", 0, sum(r.strikes for r in records)),
        ]


def _terminate(made: Stage, user: User) -> float:
    """SIGTERM to the launcher of a long job; returns the seconds until another worker began it again."""
    until(lambda: len(made.ready()) >= len(made.launchers), _END_S, "a worker stayed away")
    name = user.submit(stub_job("long", steps=40, device_ms=LONG_S * 1_000, per_item_ms=0)) or ""
    until(lambda: made.ledger.get(name).step > 0, _END_S, "the job does not run")
    launcher = _launcher_of(made, name)
    at = time.time()
    launcher.signal(signal.SIGTERM)
    until(lambda: made.ledger.get(name).attempt > 1, _END_S, "it did not begin again")
    wait_s = (made.ledger.get(name).started_at or float("inf")) - at
    until(lambda: made.ledger.get(name).status.terminal, _END_S, "it does not end")
    return wait_s


def _finish(made: Stage, user: User) -> bool:
    """SIGTERM to the launcher of a short job; returns whether that very attempt ended it."""
    until(lambda: len(made.ready()) >= len(made.launchers), _END_S, "a worker stayed away")
    name = user.submit(stub_job("short", steps=10, device_ms=SHORT_S * 1_000, per_item_ms=0)) or ""
    until(lambda: made.ledger.get(name).status is Status.RUNNING, _END_S, "the job does not run")
    _launcher_of(made, name).signal(signal.SIGTERM)
    until(lambda: made.ledger.get(name).status.terminal, _END_S, "it does not end")
    return made.ledger.get(name).attempt == 1


def _launcher_of(made: Stage, name: str) -> Server:
    """The launcher whose worker holds a job; a worker's id is `host-pid-random`."""
    pid = int(str(made.ledger.get(name).worker).split("-")[-2])
    return next(launcher for launcher in made.launchers if pid in launcher.children())


def kill_workers(made: Stage) -> None:
    """SIGKILL to every launcher and every worker, at once."""
    children = made.device_pids()
    for pid in (*(launcher.pid for launcher in made.launchers), *children):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
