"""One judge over what was asked, what the ledger says and what the bucket holds. Pure: it reads and decides.

The rules are the goals G1, G2, G6, G7 and G8 as far as a finished run can show them. Each breach is a finding
with a subject (a job, a key) and a sentence; a run is clean when there is none.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.keys import attempt_prefix, job_prefix
from pixelkiln_shared.ledger.contract import MAX_STRIKES, Record
from tests.chaos.history import Entry
from tests.chaos.schedule import Kind

KEY_LABEL = "chaos"  # the label that carries a job's idempotency key
POISON_LABEL = "poison"  # the label of a job that kills whoever runs it
CLAIM_SLACK_S = 5.0  # a lease that a fault broke is noticed by a sweep, up to so much later
SLOWEST_S = 20.0  # an answer that takes longer counts as hung; four time limits of one Redis call

# Faults after which a lease may run out, or a process give a job back.
DISRUPTIONS = frozenset(
    {
        *(Kind.WORKER_GROUP, Kind.WORKER_DEVICE, Kind.REAPER_KILL, Kind.ZOMBIE),
        *(Kind.REDIS_KILL, Kind.REDIS_FREEZE, Kind.LINK),
    }
)
_ATTEMPT = re.compile(r"/(job_[0-9a-z]{26})/a(\d+)/")
_JOB = re.compile(r"/(job_[0-9a-z]{26})/")


class Breach(StrEnum):
    """What may be wrong, in the order of the result table."""

    LOST = "lost"
    UNFINISHED = "unfinished"
    FAILED = "failed though innocent"
    BLAMED = "blamed though innocent"
    POISON = "poison not ended"
    DOUBLED = "two visible results"
    CORRUPT = "result differs from its record"
    IDEMPOTENCY = "one key, two jobs"
    CANCEL = "cancel did not hold"
    CANCELED_SHOWN = "canceled, yet a result"
    UNFENCED = "published by an old attempt"
    UNCOUNTED = "run that no attempt counts"
    LEFTOVER = "left over after the sweep"
    UNEXPLAINED = "attempt that no fault explains"
    ANSWER = "answer that must not be"
    HUNG = "answer that hung"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One breach."""

    breach: Breach
    subject: str
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The findings, and figures that are neither right nor wrong: name -> value."""

    findings: tuple[Finding, ...]
    figures: Mapping[str, float]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, breach: Breach) -> int:
        """How often a rule was broken."""
        return sum(finding.breach is breach for finding in self.findings)


def check(
    entries: Sequence[Entry],
    records: Sequence[Record],
    objects: Mapping[str, str],
    *,
    swept: Collection[str] | None = None,
) -> Verdict:
    """Judge a run.

    Args:
        entries: the whole history.
        records: every record the ledger holds.
        objects: every object of the bucket: key -> SHA-256 of its bytes, in hexadecimal.
        swept: the keys that are left after orphans were removed; None when nobody swept.
    """
    by_id = {record.id: record for record in records}
    findings = [
        *_submits(entries, by_id),
        *_keys(records),
        *_answers(entries),
        *_cancels(entries, by_id),
        *_observations(entries, by_id),
        *_bucket(objects, by_id),
        *_attempts(entries, records),
    ]
    if swept is not None:
        findings += _sweep(swept, by_id)
    for record in records:
        findings += [*_ending(record), *_result(record, objects)]
    return Verdict(findings=tuple(findings), figures=_figures(entries, records, objects))


# ---------------------------------------------------------------------------------------------- the clients


def _submits(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    answered: dict[str, set[str]] = defaultdict(set)
    for entry in _ended(entries, "submit", "ok"):
        answered[entry.key].add(entry.seen["id"])
    for key, ids in answered.items():
        if len(ids) > 1:
            yield _found(Breach.IDEMPOTENCY, key, f"answered with {', '.join(sorted(ids))}")
        for job_id in sorted(ids - by_id.keys()):
            yield _found(Breach.LOST, job_id, f"accepted for {key}, and the ledger does not know it")


def _keys(records: Sequence[Record]) -> Iterator[Finding]:
    jobs: dict[str, list[str]] = defaultdict(list)
    for record in records:
        jobs[_label(record, KEY_LABEL)].append(record.id)
    for key, ids in jobs.items():
        if len(ids) > 1:
            yield _found(Breach.IDEMPOTENCY, key, f"made {', '.join(sorted(ids))}")


def _answers(entries: Sequence[Entry]) -> Iterator[Finding]:
    """No 500, no refusal of what is right; and no caller waits for ever."""
    for entry in entries:
        if entry.op == "fault" or entry.event == "invoke":
            continue
        if entry.took_s > SLOWEST_S:
            yield _found(Breach.HUNG, entry.key, f"{entry.op} took {entry.took_s:.1f} s")
        if entry.status and entry.status >= 400 and entry.status not in (409, 429, 503):
            yield _found(Breach.ANSWER, entry.key, f"{entry.op} was answered {entry.status}")


def _cancels(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    for entry in _ended(entries, "cancel", "ok"):
        record = by_id.get(entry.key)
        acknowledged = entry.seen["status"] in (Status.CANCELED, Status.CANCELING)
        if record is not None and acknowledged and record.status is not Status.CANCELED:
            yield _found(Breach.CANCEL, record.id, f"acknowledged, then {record.status}")


def _observations(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """What a client saw at the end of a job stays so."""
    seen: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in _ended(entries, "poll", "ok"):
        if Status(entry.seen["status"]).terminal:
            seen[entry.key].add((entry.seen["status"], *entry.seen["results"]))
    for job_id, ends in seen.items():
        record = by_id.get(job_id)
        if record is not None:
            ends.add((record.status, *(artifact["sha256"] for artifact in _artifacts(record))))
        if len(ends) > 1:
            yield _found(Breach.DOUBLED, job_id, f"was seen to end in {len(ends)} ways")


# ---------------------------------------------------------------------------------------------- the records


def _ending(record: Record) -> Iterator[Finding]:
    poison = bool(_label(record, POISON_LABEL))
    code = json.loads(record.error)["code"] if record.error else ""
    if not record.status.terminal:
        yield _found(Breach.UNFINISHED, record.id, f"{record.status} in attempt {record.attempt}")
    elif poison and record.status is not Status.CANCELED and (code, record.strikes) != (CRASHED, MAX_STRIKES):
        yield _found(Breach.POISON, record.id, f"{record.status} {code} with {record.strikes} strikes")
    elif not poison and record.status is Status.FAILED:
        breach = Breach.BLAMED if code == CRASHED else Breach.FAILED
        yield _found(breach, record.id, f"{record.error}, attempt {record.attempt}")


CRASHED = "worker_crashed"


def _result(record: Record, objects: Mapping[str, str]) -> Iterator[Finding]:
    artifacts = _artifacts(record)
    if record.status is not Status.SUCCEEDED:
        if artifacts:
            yield _found(Breach.CANCELED_SHOWN, record.id, f"{record.status} with {len(artifacts)} artifacts")
        return
    if not artifacts:
        yield _found(Breach.CORRUPT, record.id, "succeeded without a result")
    newest = attempt_prefix(record.tenant, record.id, record.attempt)
    for artifact in artifacts:
        key, sha256 = artifact["key"], artifact["sha256"]
        if not key.startswith(newest):
            yield _found(Breach.UNFENCED, record.id, f"shows {key}, but attempt {record.attempt} is newest")
        if objects.get(key) != sha256:
            what = "differs" if key in objects else "is missing"
            yield _found(Breach.CORRUPT, record.id, f"{key} {what}")


def _attempts(entries: Sequence[Entry], records: Sequence[Record]) -> Iterator[Finding]:
    """Each attempt beyond the first has a fault of its own to explain it, within the job's life."""
    spans = list(_disruptions(entries, records))
    for record in records:
        if record.attempt < 2 or _label(record, POISON_LABEL):
            continue
        ended = record.completed_at or float("inf")
        explained = sum(
            times
            for began, over, times in spans
            if began <= ended and over + CLAIM_SLACK_S >= record.created_at
        )
        if record.attempt - 1 > explained:
            says = f"{record.attempt} attempts, {explained} faults in its life"
            yield _found(Breach.UNEXPLAINED, record.id, says)


def _disruptions(entries: Sequence[Entry], records: Sequence[Record]) -> Iterator[tuple[float, float, int]]:
    """Yield (began, over, how often) of everything that may cost a job an attempt."""
    open_at: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        if entry.op == "fault" and entry.key in DISRUPTIONS:
            if entry.event == "invoke":
                open_at[entry.key].append(entry.at)
            elif open_at[entry.key]:
                yield open_at[entry.key].pop(0), entry.at, 1
    for left in open_at.values():
        yield from ((at, at, 1) for at in left)
    for record in records:
        if _label(record, POISON_LABEL):  # it takes along whoever was in its worker
            yield record.created_at, record.completed_at or float("inf"), record.attempt


# ----------------------------------------------------------------------------------------------- the bucket


def _bucket(objects: Mapping[str, str], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    for key in objects:
        found = _ATTEMPT.search(key)
        if found is None:
            continue
        record, attempt = by_id.get(found[1]), int(found[2])
        if record is None or attempt > record.attempt:
            yield _found(Breach.UNCOUNTED, found[1], f"{key}, of an attempt that no record knows")


def _sweep(left: Collection[str], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """The sweep takes every orphan, and nothing that a record shows."""
    for key in _leftovers(left, by_id):
        yield _found(Breach.LEFTOVER, key, "no record names it")
    for key in sorted(_named(by_id) - set(left)):
        yield _found(Breach.CORRUPT, key, "was swept away though a record shows it")


def _named(by_id: Mapping[str, Record]) -> set[str]:
    return {artifact["key"] for record in by_id.values() for artifact in _artifacts(record)}


def _leftovers(found: Iterable[str], by_id: Mapping[str, Record]) -> list[str]:
    """Return the objects that no record names: of killed attempts, of jobs that never came to be."""
    named = _named(by_id)
    return [key for key in found if key not in named and _is_leftover(key, by_id)]


def _is_leftover(key: str, by_id: Mapping[str, Record]) -> bool:
    job = _JOB.search(key)
    if job is None:
        return False
    record = by_id.get(job[1])
    if record is None:
        return True
    inside = key.removeprefix(job_prefix(record.tenant, record.id))
    return not inside.startswith("input.")


# ---------------------------------------------------------------------------------------------- the figures


def _figures(
    entries: Sequence[Entry], records: Sequence[Record], objects: Mapping[str, str]
) -> dict[str, float]:
    statuses = Counter(record.status for record in records)
    answers = [entry for entry in entries if entry.op != "fault" and entry.event != "invoke"]
    by_id = {record.id: record for record in records}
    return {
        "accepted": len({entry.seen["id"] for entry in _ended(entries, "submit", "ok")}),
        **{str(status): statuses[status] for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)},
        "executions": sum(record.attempt for record in records),
        "extra executions": sum(max(0, record.attempt - 1) for record in records),
        "answers": len(answers),
        "answers unknown": sum(entry.event == "unknown" for entry in answers),
        "slowest answer, s": round(max((entry.took_s for entry in answers), default=0.0), 1),
        "objects": len(objects),
        "objects left over": len(_leftovers(objects, by_id)),
    }


def _ended(entries: Sequence[Entry], op: str, event: str) -> Iterator[Entry]:
    return (entry for entry in entries if entry.op == op and entry.event == event)


def _artifacts(record: Record) -> list[dict[str, Any]]:
    return list(json.loads(record.result)["artifacts"]) if record.result else []


def _label(record: Record, name: str) -> str:
    return str(json.loads(record.spec).get("labels", {}).get(name, ""))


def _found(breach: Breach, subject: str, says: str) -> Finding:
    return Finding(breach=breach, subject=subject, says=says)
