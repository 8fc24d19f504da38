"""P4: what submitting costs, one by one and by the thousand, beside Celery on the same Redis.

A round submits as many jobs by Celery's `delay`, by a publisher tuned as Celery allows (one connection, one
producer, `send_task`), by `submit_many`, and by the ledger alone (rows already checked). Ours checks each row
against its model and writes the record, its place in the queue and in the listings; Celery pushes a message
with the same row to a list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from celery import Celery

from bench.door import Door, door, quantile, rows, seconds
from bench.results import Result, compared
from pixelkiln_shared.keys import new_id

JOBS, FULL_JOBS = 5_000, 100_000
SINGLES, FULL_SINGLES = 1_000, 5_000
WARM = 200
GOAL, SINGLE_GOAL = 20.0, 1.0
DELAY, TUNED = "a loop of Celery's delay", "Celery's send_task over one kept producer"
_CAVEAT = (
    "Celery comes from our own environment: it is the same library and version as in one of its own; its "
    "task does nothing and has no worker; Redis with its append-only file; one process submits"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Jobs a second of each way, and the times of single submits in milliseconds."""

    delay: float
    tuned: float
    whole: float
    ledger: float
    delay_ms: list[float]
    tuned_ms: list[float]
    single_ms: list[float]


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; rows are the ways of ours beside the ways of Celery."""
    jobs, singles = (FULL_JOBS, FULL_SINGLES) if full else (JOBS, SINGLES)
    with door() as ours, publishers(ours.settings.redis_url) as theirs:
        measured = [_round(ours, theirs, number, jobs, singles) for number in range(rounds)]
    versions = {name: version(name) for name in ("celery", "kombu", "redis")}

    def bulk(what: str, pairs: list[tuple[float, float]], peer: str) -> Result:
        what = f"jobs a second, {jobs} in bulk, {what}"
        return compared("p4", what, pairs, peer_name=peer, goal=GOAL, caveat=_CAVEAT, versions=versions)

    def single(what: str, share: float, peer: str) -> Result:
        pairs = [
            (quantile(one.single_ms, share), quantile(one.delay_ms if peer is DELAY else one.tuned_ms, share))
            for one in measured
        ]
        return compared(
            "p4",
            f"milliseconds of a single submit, {what} of {singles}",
            pairs,
            peer_name=f"{peer}, {what}",
            goal=SINGLE_GOAL,
            caveat=f"ours returns the record as the ledger has it, bell rung; {_CAVEAT}",
            versions=versions,
            less_is_better=True,
        )

    return [
        bulk("the whole door", [(one.whole, one.delay) for one in measured], DELAY),
        bulk(
            "the ledger alone", [(one.ledger, one.delay) for one in measured], f"{DELAY}; rows were checked"
        ),
        bulk("the whole door", [(one.whole, one.tuned) for one in measured], TUNED),
        single("median", 0.5, DELAY),
        single("99th percentile", 0.99, DELAY),
        single("median", 0.5, TUNED),
    ]


class Publishers:
    """Celery's ways to send a row."""

    def __init__(self, app: Celery, producer: Any) -> None:
        @app.task(name="bench.nothing")
        def nothing(row: dict[str, Any]) -> None: ...

        self._app, self._task, self._producer = app, nothing, producer

    def delay(self, row: dict[str, Any]) -> None:
        """Send as the tutorial does."""
        self._task.delay(row)

    def send(self, row: dict[str, Any]) -> None:
        """Send without asking the pool for a producer each time."""
        self._app.send_task("bench.nothing", args=(row,), producer=self._producer)


@contextmanager
def publishers(redis_url: str) -> Iterator[Publishers]:
    """Give Celery's ways to send, over one connection."""
    app = Celery("bench", broker=redis_url, set_as_current=False)
    app.conf.task_ignore_result = True
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        yield Publishers(app, producer)
    app.close()


def _round(ours: Door, theirs: Publishers, number: int, jobs: int, singles: int) -> Round:
    ours.empty()
    for row in rows(WARM):  # connections, caches, scripts
        theirs.delay(row)
        theirs.send(row)
        ours.producer.submit(row)
    delay = jobs / seconds(lambda: each(theirs.delay, rows(jobs)))
    tuned = jobs / seconds(lambda: each(theirs.send, rows(jobs)))
    ours.empty()
    whole = jobs / seconds(lambda: ours.producer.submit_many(rows(jobs)))
    checked = ours.prepared(jobs, group=new_id("grp"))
    ours.empty()
    ledger = jobs / seconds(lambda: ours.ledger.submit(checked))
    ours.empty()
    times = _singles(ours, theirs, singles)
    made = Round(
        delay=delay,
        tuned=tuned,
        whole=whole,
        ledger=ledger,
        delay_ms=times[0],
        tuned_ms=times[1],
        single_ms=times[2],
    )
    print(
        f"p4 round {number + 1}: delay {delay:.0f}/s, tuned {tuned:.0f}/s, whole door {whole:.0f}/s, "
        f"ledger alone {ledger:.0f}/s; single {quantile(made.single_ms, 0.5):.3f} ms, "
        f"delay {quantile(made.delay_ms, 0.5):.3f} ms",
        file=sys.stderr,
    )
    return made


def each(send: Callable[[dict[str, Any]], object], given: Iterable[dict[str, Any]]) -> None:
    """Send rows one by one."""
    for row in given:
        send(row)


def _singles(ours: Door, theirs: Publishers, singles: int) -> tuple[list[float], list[float], list[float]]:
    """Return the milliseconds of single submits by `delay`, tuned and ours, in turn: a fair share of load."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    ways: tuple[Callable[[dict[str, Any]], object], ...] = (theirs.delay, theirs.send, ours.producer.submit)
    for row in rows(singles):
        for way, found in zip(ways, times, strict=True):
            found.append(1_000 * seconds(partial(way, row)))
    return times
