"""What the ledger's events tell of attempts: how long a kill's jobs waited for the next one (goal G3), and
which were given back.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from tests.chaos.history import Entry

JOBS = "jobs"  # what a kill's line of the history names: the jobs that the process held


def starts(events: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, list[float]]:
    """Return, by job, when its attempts began (Unix seconds, by Redis's clock).

    Args:
        events: entries of the ledger's event streams: the entry's id, and its fields.
    """
    return {
        job_id: [at for at, status in moves if status == "running"]
        for job_id, moves in _moves(events).items()
    }


def given_back(events: Iterable[tuple[str, Mapping[str, str]]], lease_s: float) -> dict[str, int]:
    """Return, by job, how many attempts ended as `queued` before their lease could run out.

    A worker gives a job back that was to fill up a batch and whose picture came too late for it. A launcher
    gives back those of its dead child, and a fault explains these as well: they are counted twice.
    """
    times = {
        job_id: sum(
            (before, after) == ("running", "queued") and at - began < lease_s
            for (began, before), (at, after) in pairwise(moves)
        )
        for job_id, moves in _moves(events).items()
    }
    return {job_id: count for job_id, count in times.items() if count}


def _moves(events: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, list[tuple[float, str]]]:
    """Return, by job, when it came into which state, in order."""
    moves: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for entry_id, fields in events:  # each job's are in one stream, which is in order
        if fields["type"] == "status":
            status = json.loads(fields["data"])["status"]
            moves[fields["job"]].append((int(entry_id.partition("-")[0]) / 1_000, status))
    return moves


def waits_s(entries: Sequence[Entry], began: Mapping[str, Sequence[float]]) -> list[float]:
    """Return for each job that a kill took along how long its next attempt took to begin.

    A job that had ended by then, or was canceled, began no further attempt and is left out.
    """
    waits = []
    for entry in entries:
        if entry.op == "fault" and entry.event == "ok":
            for job_id in entry.seen.get(JOBS, ()):
                later = [at - entry.at for at in began.get(job_id, ()) if at > entry.at]
                waits += later[:1]
    return waits


def figures(waits: Sequence[float]) -> dict[str, float]:
    """Return the rows of the result table."""
    if not waits:
        return {}
    return {
        "jobs taken along by kills": len(waits),
        "begun again after, s, median": round(median(waits), 1),
        "begun again after, s, longest": round(max(waits), 1),
    }
