"""A cancel that was acknowledged holds, whoever is killed (goal G8)."""

from __future__ import annotations

import time
from pathlib import Path

from pixelkiln_shared.jobs import Status
from tests.chaos.drills.report import Row, Told
from tests.chaos.drills.signaled import kill_workers
from tests.chaos.drills.traffic import STUB_ONLY, User, open_jobs, seconds_until, stub_job
from tests.chaos.schedule import FULL
from tests.chaos.stage import Stage, stage, until

JOBS = 60
LONG_MS, STEPS = 20_000, 40
STEP_S = LONG_MS / STEPS / 1_000
STOPPED_S = 2.0
_END_S = 120.0
_ENOUGH_S = 30.0


def cancel(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play it so often; `seconds` is not used."""
    told = Told("cancel")
    with stage(folder, FULL, seed=1, more=STUB_ONLY) as made:
        if made.s3 is not None:
            made.s3.share = 0.0
        user = User(made.url)
        stopped = [_stop(made, user) for _ in range(2 * repeats)]
        canceled, spared = list[str](), list[str]()
        running = 0
        for _ in range(repeats):
            running += _strike(made, user, canceled, spared)
        seen = {name: user.get(name).json() for name in canceled}
        records = {record.id: record for record in made.records()}
        undone = sum(job["status"] != "canceled" for job in seen.values())
        shown = sum(bool(job["artifacts"]) for job in seen.values())
        shown += sum(records[name].result is not None for name in canceled)
        bad = sum(records[name].status is not Status.SUCCEEDED for name in spared)
        goal_s = max(STOPPED_S, STEP_S)
        return [
            told.longest(
                "a running job: from the answer to the cancel until its worker runs the next job",
                goal_s,
                [s for _, s in stopped],
            ),
            told.longest("a running job: until its record says canceled", goal_s, [s for s, _ in stopped]),
            told.told(
                "acknowledged, of them while they ran; kills of all workers",
                f"{len(canceled)}, {running}; {repeats}",
            ),
            told.exactly("acknowledged cancels undone", 0, undone),
            told.exactly("canceled jobs that show a result", 0, shown),
            told.exactly("jobs that nobody canceled and that did not succeed", 0, bad),
        ]


def _stop(made: Stage, user: User) -> tuple[float, float]:
    """Cancel one of a long job for each worker; returns until it is so, and until the next job has run."""
    long = [user.submit(_long(n)) or "" for n in range(len(made.launchers))]
    until(lambda: all(made.ledger.get(name).step > 1 for name in long), _END_S, "the long jobs do not run")
    quick = user.submit(stub_job("quick", device_ms=0, per_item_ms=1)) or ""
    time.sleep(1.0)
    user.cancel(long[0])
    ended_s = seconds_until(lambda: made.ledger.get(long[0]).status is Status.CANCELED, _ENOUGH_S)
    next_s = ended_s + seconds_until(lambda: made.ledger.get(quick).status is Status.SUCCEEDED, _ENOUGH_S)
    for name in long[1:]:
        user.cancel(name)
    until(lambda: not open_jobs(made), _END_S, "a canceled job does not end")
    return ended_s, next_s


def _strike(made: Stage, user: User, canceled: list[str], spared: list[str]) -> int:
    """Cancel running and waiting jobs, kill all workers at once; returns how many ran."""
    long = [user.submit(_long(n)) or "" for n in range(len(made.launchers))]
    until(lambda: all(made.ledger.get(name).step > 0 for name in long), _END_S, "the long jobs do not run")
    waiting = [user.submit(stub_job(f"{n}", device_ms=100, per_item_ms=0)) or "" for n in range(JOBS)]
    running = 0
    # The long ones last, so that the kill comes before the workers have let go of them.
    for name in (*waiting[::2], *long):
        acknowledged = user.cancel(name)
        if acknowledged["status"] != "succeeded":
            canceled.append(name)
            running += name in long
    kill_workers(made)
    spared += waiting[1::2]
    until(lambda: len(made.ready()) >= len(made.launchers), _END_S, "the workers did not come back")
    until(lambda: not open_jobs(made), _END_S, "the jobs did not end")
    return running


def _long(number: int) -> dict[str, object]:
    # options that differ: they do not run as one batch
    return stub_job(f"long {number}", steps=STEPS, device_ms=LONG_MS + number, per_item_ms=0)
