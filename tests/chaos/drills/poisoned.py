"""One job after the other kills whoever runs it, among healthy ones (goal G6)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import MAX_STRIKES, Record
from tests.chaos.drills.report import Row, Told, figure
from tests.chaos.drills.traffic import (
    STUB_ONLY,
    User,
    open_jobs,
    seconds_until,
    sending,
    stub_job,
    unsuccessful,
)
from tests.chaos.schedule import FULL
from tests.chaos.stage import Stage, stage, until

ROW_MS = 250
PHASE_S = 40.0
BACKLOG = 60
SHARE = 80.0
_END_S = 180.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """How many healthy jobs were done in how long, by how many workers on average."""

    done: int
    seconds: float
    up: float


def poison(folder: Path, seconds: float, repeats: int) -> list[Row]:
    """Play phases without and with poison in turn, `repeats` of each; `seconds` is not used."""
    told = Told("poison")
    with stage(folder, FULL, seed=1, more=STUB_ONLY) as made:
        if made.s3 is not None:
            made.s3.share = 0.0
        user, ids, poisons = User(made.url), list[str](), list[str]()
        pure, spoiled = list[Phase](), list[Phase]()
        most = len(made.launchers) * 1_000 / ROW_MS
        with sending(user, ids, most * 1.15, _healthy, hands=8):
            until(lambda: open_jobs(made) > BACKLOG, _END_S, "no backlog")
            for _ in range(repeats):
                pure.append(_phase(made, None, poisons))
                spoiled.append(_phase(made, user, poisons))
                until(lambda: len(made.ready()) >= len(made.launchers), _END_S, "a worker stayed away")
        end_s = seconds_until(lambda: not open_jobs(made), _END_S)
        records = {record.id: record for record in made.records()}
        ended = [records[name] for name in poisons]
        share = 100 * _rate(spoiled) / _rate(pure)
        each = 100 * (_rate(spoiled) / _there(spoiled)) / (_rate(pure) / _there(pure))
        lost = (_rate(pure) - _rate(spoiled)) * sum(one.seconds for one in spoiled)
        cost_s = lost / (_rate(pure) / _there(pure)) / max(1, len(poisons))
        return [
            told.exactly(
                "poison that ended otherwise than as worker_crashed", 0, sum(map(_otherwise, ended))
            ),
            told.exactly(
                "poison without exactly three strikes", 0, sum(r.strikes != MAX_STRIKES for r in ended)
            ),
            told.exactly("innocent jobs that failed or are lost", 0, unsuccessful(made, ids)),
            told.at_least("healthy jobs done, of those without poison", SHARE, share, "%"),
            told.told("the same, by worker that was up", f"{figure(each)} %"),
            told.told(
                "healthy jobs a second, workers up: without; with", f"{_shown(pure)}; {_shown(spoiled)}"
            ),
            told.told("one poison costs, seconds of a worker", figure(cost_s)),
            told.told("poison jobs, one at any moment; seconds each", f"{len(ended)}; {_lives(ended)}"),
            told.told("their attempts", ", ".join(str(record.attempt) for record in ended)),
            told.told("healthy jobs, of them with a second attempt", f"{len(ids)}, {_again(ids, records)}"),
            told.at_most("all ended after the last", _END_S, end_s, "s"),
        ]


def _phase(made: Stage, user: User | None, poisons: list[str]) -> Phase:
    """Let it go on for a while, with poison if a user sends it."""
    before, began = _done(made), time.monotonic()
    up = list[int]()
    while time.monotonic() < began + PHASE_S:
        if user is not None and (not poisons or made.ledger.get(poisons[-1]).status.terminal):
            sent = user.submit(stub_job("[crash]", device_ms=0, per_item_ms=ROW_MS))
            poisons += [sent] if sent else []
        up.append(len(made.ready()))
        time.sleep(0.2)
    phase = Phase(done=_done(made) - before, seconds=time.monotonic() - began, up=sum(up) / len(up))
    if poisons:
        until(lambda: made.ledger.get(poisons[-1]).status.terminal, _END_S, "the poison does not end")
    return phase


def _rate(phases: Sequence[Phase]) -> float:
    """Healthy jobs a second."""
    return sum(one.done for one in phases) / sum(one.seconds for one in phases)


def _there(phases: Sequence[Phase]) -> float:
    """How many workers were up on average."""
    return sum(one.up * one.seconds for one in phases) / sum(one.seconds for one in phases)


def _shown(phases: Sequence[Phase]) -> str:
    return f"{figure(_rate(phases))}, {figure(_there(phases))}"


def _done(made: Stage) -> int:
    return made.ledger.counts("default")[Status.SUCCEEDED]


def _healthy(number: int) -> dict[str, Any]:
    return stub_job(f"{number}", device_ms=0, per_item_ms=ROW_MS)


def _otherwise(record: Record) -> bool:
    code = json.loads(record.error or "{}").get("code")
    return record.status is not Status.FAILED or code != "worker_crashed"


def _lives(records: list[Record]) -> str:
    lives = [r.completed_at - r.created_at for r in records if r.completed_at is not None]
    return f"median {figure(median(lives))}" if lives else "-"


def _again(ids: list[str], records: dict[str, Record]) -> int:
    return sum(name in records and records[name].attempt > 1 for name in ids)
