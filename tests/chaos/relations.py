"""The judge's rules on what belongs together: a request's jobs, parent and child, a group, a picture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Group, Record
from tests.chaos.history import Entry
from tests.chaos.verdict import (
    DEADLINE_LABEL,
    REUSED,
    ROWS_LABEL,
    Breach,
    Finding,
    ended,
    error_code,
    found,
    label,
    request_key,
)

PARENT_FAILED = "parent_failed"
KEY_REUSED = "idempotency_key_reused"
UPLOADS = "/uploads/"


def requests(records: Sequence[Record]) -> Iterator[Finding]:
    """A request that makes several jobs makes all of them, once."""
    made: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if label(record, ROWS_LABEL):
            made[request_key(record)].append(record)
    for key, jobs in made.items():
        wanted = int(label(jobs[0], ROWS_LABEL))
        if len(jobs) < wanted:  # more than that share a row, which is another breach
            yield found(Breach.TORN, key, f"made {len(jobs)} of {wanted} jobs")
        if len({job.group for job in jobs}) > 1:
            yield found(Breach.TORN, key, "made jobs of different groups")


def reuses(entries: Sequence[Entry], records: Sequence[Record]) -> Iterator[Finding]:
    """A key that has made a job takes no other body."""
    for record in records:
        if request_key(record).endswith(REUSED):
            yield found(Breach.REUSED, record.id, "made by a key that had made a job before")
    for entry in entries:
        if entry.op != "reuse":
            continue
        if entry.event == "ok":
            yield found(Breach.REUSED, entry.key, f"another body was answered {entry.status}")
        elif entry.status == 422 and entry.seen.get("code") != KEY_REUSED:
            yield found(Breach.REUSED, entry.key, f"another body was refused as {entry.seen.get('code')}")


def children(by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """A child starts after all its parents succeeded, and ends as `parent_failed` when one did not."""
    for record in by_id.values():
        parents = [by_id[parent] for parent in record.waits_for if parent in by_id]
        doomed = [parent for parent in parents if parent.status is not Status.SUCCEEDED]
        if error_code(record) == PARENT_FAILED and not doomed:
            yield found(Breach.CHILD, record.id, "failed for its parents, and all of them succeeded")
        if doomed and record.attempt:
            yield found(Breach.CHILD, record.id, f"ran, and its parent {doomed[0].id} {doomed[0].status}")
        elif doomed and doomed[0].status.terminal and not _ended_with(record):
            yield found(Breach.CHILD, record.id, f"{record.status}, and its parent {doomed[0].status}")
        for parent in parents:
            if not doomed and record.started_at and record.started_at < (parent.completed_at or 0):
                yield found(Breach.CHILD, record.id, f"started before its parent {parent.id} had ended")


def _ended_with(child: Record) -> bool:
    """Whether a child ended as one of a parent that did not succeed; it may have been canceled before."""
    return error_code(child) == PARENT_FAILED or child.status in (Status.CANCELED, Status.EXPIRED)


def groups(
    entries: Sequence[Entry], records: Sequence[Record], known: Mapping[str, Group]
) -> Iterator[Finding]:
    """A group counts its members as they are; those that a cancel counted as canceled stay so."""
    members: dict[str, Counter[Status]] = defaultdict(Counter)
    for record in records:
        if record.group:
            members[record.group][record.status] += 1
    for group_id, counts in members.items():
        group = known.get(group_id)
        told = {status: count for status, count in group.counts.items() if count} if group else {}
        if group is None or told != counts or group.total != counts.total():
            says = f"says {_words(told)}, and its members are {_words(counts)}"
            yield found(Breach.COUNTERS, group_id, says)
    for entry in ended(entries, "cancel_group", "ok"):
        acknowledged = sum(entry.seen["counts"].get(status, 0) for status in ("canceled", "canceling"))
        held = members[entry.key][Status.CANCELED]
        if held < acknowledged:
            yield found(Breach.CANCEL, entry.key, f"{acknowledged} of the group acknowledged, {held} held")


def _words(counts: Mapping[Status, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing"


def deadlines(records: Sequence[Record]) -> Iterator[Finding]:
    """Only a job with a deadline expires, after it, and only one that never started."""
    for record in records:
        if record.status is not Status.EXPIRED:
            continue
        deadline_s = float(label(record, DEADLINE_LABEL) or "inf")
        waited_s = (record.completed_at or 0) - record.created_at
        if record.attempt or waited_s < deadline_s:
            says = f"after {waited_s:.2f} s in attempt {record.attempt}, to start within {deadline_s} s"
            yield found(Breach.EXPIRY, record.id, says)


def picture(record: Record) -> dict[str, Any]:
    """Return where the picture is that a job works on; empty for one that takes none."""
    return json.loads(record.spec).get("input", {}).get("image") or {}


def inputs(
    by_id: Mapping[str, Record], objects: Mapping[str, str], swept: Collection[str] | None
) -> Iterator[Finding]:
    """A job's own copy of a picture outlives the sweep and every upload; uploads go after their time."""
    for record in by_id.values():
        given = picture(record)
        key = given.get("object")
        if key is None:
            continue
        if objects.get(key) != given["sha256"]:
            yield found(Breach.INPUT, record.id, f"{key} {'differs' if key in objects else 'is missing'}")
        elif swept is not None and key not in swept:
            yield found(Breach.INPUT, record.id, f"{key} was swept away")
    for key in sorted(swept or ()):
        if UPLOADS in key:
            yield found(Breach.LEFTOVER, key, "an upload whose time is over")
