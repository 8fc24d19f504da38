"""One judge over what was asked, what the ledger says and what the bucket holds. Pure: it reads and decides.

The rules are the goals G1, G2, G6, G7, G8 and G9 as far as a finished run can show them. Each breach is a
finding with a subject (a job, a key) and a sentence; a run is clean when there is none. Rules on what belongs
together are in `relations`, those on webhooks in `told`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.keys import attempt_prefix, job_prefix
from pixelkiln_shared.kinds import Kind as Work
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import MAX_STRIKES, Group, Record
from tests.chaos import relations, told
from tests.chaos.history import Entry
from tests.chaos.schedule import Kind
from tests.chaos.verdict import (
    KEY_LABEL,
    POISON_LABEL,
    Breach,
    Finding,
    Verdict,
    artifacts,
    ended,
    error_code,
    found,
    label,
)

CLAIM_SLACK_S = 5.0  # a lease that a fault broke is noticed by a sweep, up to so much later
SLOWEST_S = 20.0  # an answer that takes longer counts as hung; four time limits of one Redis call

# Faults after which a lease may run out, or a process give a job back.
DISRUPTIONS = frozenset(
    {
        *(Kind.WORKER_GROUP, Kind.WORKER_DEVICE, Kind.REAPER_KILL, Kind.ZOMBIE),
        *(Kind.REDIS_KILL, Kind.REDIS_FREEZE, Kind.LINK),
    }
)
_UNASKED = ("fault", told.OP)  # what no client asked
_ATTEMPT = re.compile(r"/(job_[0-9a-z]{26})/a(\d+)/")
_JOB = re.compile(r"/(job_[0-9a-z]{26})/")


def check(
    entries: Sequence[Entry],
    records: Sequence[Record],
    objects: Mapping[str, str],
    *,
    groups: Mapping[str, Group] | None = None,
    given_back: Mapping[str, int] | None = None,
    swept: Collection[str] | None = None,
) -> Verdict:
    """Judge a run.

    Args:
        entries: the whole history.
        records: every record the ledger holds.
        objects: every object of the bucket: key -> SHA-256 of its bytes, in hexadecimal.
        groups: what the ledger says of each group, by id.
        given_back: by job, how many attempts the worker that held them gave back.
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
        *_attempts(entries, records, given_back or {}),
        *relations.requests(records),
        *relations.reuses(entries, records),
        *relations.children(by_id),
        *relations.groups(entries, records, groups or {}),
        *relations.deadlines(records),
        *relations.inputs(by_id, objects, swept),
        *told.webhooks(entries, by_id),
    ]
    if swept is not None:
        findings += _sweep(swept, by_id)
    for record in records:
        findings += [*_ending(record), *_result(record, objects)]
    return Verdict(findings=tuple(findings), figures=_figures(entries, records, objects))


# ---------------------------------------------------------------------------------------------- the clients


def _submits(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    answered: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in ended(entries, "submit", "ok"):
        answered[entry.key].add(tuple(entry.seen["ids"]))
    for key, answers in answered.items():
        ids = {job_id for answer in answers for job_id in answer}
        if len(answers) > 1:
            yield found(Breach.IDEMPOTENCY, key, f"answered with {', '.join(sorted(ids))}")
        for job_id in sorted(ids - by_id.keys()):
            yield found(Breach.LOST, job_id, f"accepted for {key}, and the ledger does not know it")


def _keys(records: Sequence[Record]) -> Iterator[Finding]:
    jobs: dict[str, list[str]] = defaultdict(list)
    for record in records:
        jobs[label(record, KEY_LABEL)].append(record.id)
    for key, ids in jobs.items():
        if len(ids) > 1:
            yield found(Breach.IDEMPOTENCY, key, f"made {', '.join(sorted(ids))}")


def _answers(entries: Sequence[Entry]) -> Iterator[Finding]:
    """No 500, no refusal of what is right; and no caller waits for ever."""
    for entry in entries:
        if entry.op in _UNASKED or entry.event == "invoke":
            continue
        if entry.took_s > SLOWEST_S:
            yield found(Breach.HUNG, entry.key, f"{entry.op} took {entry.took_s:.1f} s")
        right = (409, 429, 503, 422) if entry.op == "reuse" else (409, 429, 503)
        if entry.status >= 400 and entry.status not in right:
            yield found(Breach.ANSWER, entry.key, f"{entry.op} was answered {entry.status}")


def _cancels(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    for entry in ended(entries, "cancel", "ok"):
        record = by_id.get(entry.key)
        acknowledged = entry.seen["status"] in (Status.CANCELED, Status.CANCELING)
        if record is not None and acknowledged and record.status is not Status.CANCELED:
            yield found(Breach.CANCEL, record.id, f"acknowledged, then {record.status}")


def _observations(entries: Sequence[Entry], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """What a client saw at the end of a job stays so."""
    seen: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for entry in ended(entries, "poll", "ok"):
        if Status(entry.seen["status"]).terminal:
            seen[entry.key].add((entry.seen["status"], *entry.seen["results"]))
    for job_id, ends in seen.items():
        record = by_id.get(job_id)
        if record is not None:
            ends.add((record.status, *(artifact["sha256"] for artifact in artifacts(record))))
        if len(ends) > 1:
            yield found(Breach.DOUBLED, job_id, f"was seen to end in {len(ends)} ways")


# ---------------------------------------------------------------------------------------------- the records


def _ending(record: Record) -> Iterator[Finding]:
    poison = bool(label(record, POISON_LABEL))
    code = error_code(record)
    if not record.status.terminal:
        yield found(Breach.UNFINISHED, record.id, f"{record.status} in attempt {record.attempt}")
    elif poison and record.status is not Status.CANCELED and (code, record.strikes) != (CRASHED, MAX_STRIKES):
        yield found(Breach.POISON, record.id, f"{record.status} {code} with {record.strikes} strikes")
    elif not poison and record.status is Status.FAILED and code != relations.PARENT_FAILED:
        breach = Breach.BLAMED if code == CRASHED else Breach.FAILED
        yield found(breach, record.id, f"{record.error}, attempt {record.attempt}")


CRASHED = "worker_crashed"


def _result(record: Record, objects: Mapping[str, str]) -> Iterator[Finding]:
    shown = artifacts(record)
    if record.status is not Status.SUCCEEDED:
        if shown:
            yield found(Breach.CANCELED_SHOWN, record.id, f"{record.status} with {len(shown)} artifacts")
        return
    if not shown:
        yield found(Breach.CORRUPT, record.id, "succeeded without a result")
    elif len(missing := _due(record) - Counter(artifact["role"] for artifact in shown)):
        yield found(Breach.INCOMPLETE, record.id, f"lacks {', '.join(missing.elements())}")
    newest = attempt_prefix(record.tenant, record.id, record.attempt)
    for artifact in shown:
        key, sha256 = artifact["key"], artifact["sha256"]
        if not key.startswith(newest):
            yield found(Breach.UNFENCED, record.id, f"shows {key}, but attempt {record.attempt} is newest")
        if objects.get(key) != sha256:
            what = "differs" if key in objects else "is missing"
            yield found(Breach.CORRUPT, record.id, f"{key} {what}")


def _due(record: Record) -> Counter[str]:
    """Return the files that a job of its kind makes, at least: role -> how many."""
    if record.kind is Work.SEGMENT:
        return Counter({Role.MASK: 1, Role.OVERLAY: 1})
    return Counter({Role.IMAGE: record.rows})


def _attempts(
    entries: Sequence[Entry], records: Sequence[Record], given_back: Mapping[str, int]
) -> Iterator[Finding]:
    """Each attempt beyond the first has a fault of its own to explain it, within the job's life.

    Or it was given back unrun, because it came too late for a batch.
    """
    spans = list(_disruptions(entries, records))
    for record in records:
        if record.attempt < 2 or label(record, POISON_LABEL):
            continue
        last = record.completed_at or float("inf")
        explained = given_back.get(record.id, 0) + sum(
            times
            for began, over, times in spans
            if began <= last and over + CLAIM_SLACK_S >= record.created_at
        )
        if record.attempt - 1 > explained:
            says = f"{record.attempt} attempts, {explained} explained"
            yield found(Breach.UNEXPLAINED, record.id, says)


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
        if label(record, POISON_LABEL):  # it takes along whoever was in its worker
            yield record.created_at, record.completed_at or float("inf"), record.attempt


# ----------------------------------------------------------------------------------------------- the bucket


def _bucket(objects: Mapping[str, str], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    for key in objects:
        stored = _ATTEMPT.search(key)
        if stored is None:
            continue
        record, attempt = by_id.get(stored[1]), int(stored[2])
        if record is None or attempt > record.attempt:
            yield found(Breach.UNCOUNTED, stored[1], f"{key}, of an attempt that no record knows")


def _sweep(left: Collection[str], by_id: Mapping[str, Record]) -> Iterator[Finding]:
    """The sweep takes every orphan, and nothing that a record shows."""
    for key in _leftovers(left, by_id):
        yield found(Breach.LEFTOVER, key, "no record names it")
    for key in sorted(_named(by_id) - set(left)):
        yield found(Breach.CORRUPT, key, "was swept away though a record shows it")


def _named(by_id: Mapping[str, Record]) -> set[str]:
    return {artifact["key"] for record in by_id.values() for artifact in artifacts(record)}


def _leftovers(listed: Iterable[str], by_id: Mapping[str, Record]) -> list[str]:
    """Return the objects that no record names: of killed attempts, of jobs that never came to be."""
    named = _named(by_id)
    return [key for key in listed if key not in named and _is_leftover(key, by_id)]


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
    answers = [entry for entry in entries if entry.op not in _UNASKED and entry.event != "invoke"]
    by_id = {record.id: record for record in records}
    return {
        "accepted": len({one for entry in ended(entries, "submit", "ok") for one in entry.seen["ids"]}),
        **{str(status): statuses[status] for status in Status if status.terminal},
        **{f"{kind} jobs": count for kind, count in Counter(record.kind for record in records).items()},
        "groups": len({record.group for record in records if record.group}),
        "ended for a parent": sum(error_code(record) == relations.PARENT_FAILED for record in records),
        "executions": sum(record.attempt for record in records),
        "extra executions": sum(max(0, record.attempt - 1) for record in records),
        "answers": len(answers),
        "answers unknown": sum(entry.event == "unknown" for entry in answers),
        "slowest answer, s": round(max((entry.took_s for entry in answers), default=0.0), 1),
        "objects": len(objects),
        "objects left over": len(_leftovers(objects, by_id)),
        **told.figures(entries),
    }
