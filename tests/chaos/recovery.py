"""What the ledger's events tell of attempts: how long a kill's jobs waited for the next one (goal G3), and
which were given back.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tests.chaos.history import Entry

JOBS = "jobs"  # what a kill's line of the history names: the jobs that the process held


def starts(events: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, list[float]]:
    """Return, by job, when its attempts began (Unix seconds, by Redis's clock).

    Args:
        events: entries of the ledger's event streams: the entry's id, and its fields.
    """
    began: dict[str, list[float]] = defaultdict(list)
    for entry_id, fields in events:  # each job's are in one stream, which is in order
        if _status(fields).get("status") == "running":
            began[fields["job"]].append(int(entry_id.partition("-")[0]) / 1_000)
    return began


def given_back(events: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, int]:
    """Return, by job, how many attempts the worker that held them gave back unrun.

    It does that with a job that was to fill up a batch and came too late for it.
    """
    return Counter(fields["job"] for _, fields in events if _status(fields).get("given_back"))


def _status(fields: Mapping[str, str]) -> dict[str, Any]:
    return json.loads(fields["data"]) if fields["type"] == "status" else {}


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
