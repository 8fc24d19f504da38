"""How long the jobs of a killed worker waited for their next attempt: goal G3."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from tests.chaos.history import Entry

JOBS = "jobs"  # what a kill's line of the history names: the jobs that the process held


def starts(events: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, list[float]]:
    """Return, by job, when its attempts began (Unix seconds, by Redis's clock).

    Args:
        events: entries of the ledger's event streams: the entry's id, and its fields.
    """
    began: dict[str, list[float]] = defaultdict(list)
    for entry_id, fields in events:
        if fields["type"] == "status" and json.loads(fields["data"])["status"] == "running":
            began[fields["job"]].append(int(entry_id.partition("-")[0]) / 1_000)
    return {job_id: sorted(times) for job_id, times in began.items()}


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
