"""The reading half of `MemoryLedger`: records, listings, counters."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from pixelkiln_shared.errors import NotFound
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Ahead, Group, LaneStats, NewJob, Page, Record
from pixelkiln_shared.ledger.restoring import NO_TIMES, restored_sequence
from pixelkiln_shared.testing.lanes import Job, Lane, work_of

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="MemoryRecords")


def atomic(
    move: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """Let one thread at a time run a move."""

    @wraps(move)
    def locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return move(self, *args, **kwargs)

    return locked


@dataclass(slots=True)
class GroupEntry:
    """Who owns a group, since when, and whom its end is told; its jobs are found by looking through all."""

    tenant: str
    created_at: float
    webhook: str | None = None


class MemoryRecords:
    """Jobs, lanes and groups in dicts, and the questions about them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[str, Lane] = {}
        self._groups: dict[str, GroupEntry] = {}

    @atomic
    def get(self, job_id: str) -> Record:
        """Return the record; raises `NotFound`."""
        return record(self._job(job_id))

    @atomic
    def get_many(self, ids: Sequence[str]) -> list[Record | None]:
        """Return the records in the order asked for, None for unknown ids."""
        return [record(self._jobs[one]) if one in self._jobs else None for one in ids]

    @atomic
    def jobs(
        self,
        tenant: str,
        *,
        status: Status | None = None,
        kind: Kind | None = None,
        group: str | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> Page:
        """List a tenant's jobs, newest first."""
        matching = [
            job
            for job in self._jobs.values()
            if job.new.tenant == tenant
            and (status is None or job.status is status)
            and (kind is None or job.new.kind is kind)
            and (group is None or job.new.group == group)
            and (after is None or job.sequence < after)
        ]
        matching.sort(key=lambda job: -job.sequence)
        shown = matching[: max(1, limit)]
        more = len(matching) > len(shown)
        return Page(records=tuple(map(record, shown)), after=shown[-1].sequence if more else None)

    @atomic
    def group(self, group_id: str) -> Group:
        """Return a group's counters; raises `NotFound`."""
        entry = self._groups.get(group_id)
        if entry is None:
            raise NotFound(f"no group {group_id}")
        counts = _counted([job for job in self._jobs.values() if job.new.group == group_id])
        return Group(
            id=group_id,
            tenant=entry.tenant,
            total=sum(counts.values()),
            counts=counts,
            created_at=entry.created_at,
        )

    @atomic
    def counts(self, tenant: str) -> Mapping[Status, int]:
        """Return how many jobs a tenant has in each state."""
        return _counted([job for job in self._jobs.values() if job.new.tenant == tenant])

    @atomic
    def position(self, job_id: str) -> int | None:
        """Return how many jobs are served before this one, about; None when it does not wait."""
        found = self.ahead(job_id)
        return None if found is None else found.jobs

    @atomic
    def ahead(self, job_id: str) -> Ahead | None:
        """Return what is served before this job in its lane, about; None when it does not wait."""
        job = self._job(job_id)
        return self._lanes[job.new.lane].ahead_of(job) if job.status is Status.QUEUED else None

    @atomic
    def lanes(self) -> list[LaneStats]:
        """Return every lane that has waiting or running jobs, by name."""
        now = self._clock()
        held = [job for job in self._jobs.values() if job.lease_until is not None]
        running = Counter(job.new.lane for job in held)
        stats = []
        for name in sorted({*self._lanes, *running}):
            lane = self._lanes.get(name)
            heads = lane.heads() if lane else []
            oldest = max((now - (job.queued_at or job.created_at) for job in heads), default=0.0)
            stats.append(
                LaneStats(
                    lane=name,
                    waiting=len(lane.jobs) if lane else 0,
                    running=running[name],
                    oldest_s=oldest,
                    work=work_of(lane.jobs) if lane else 0,
                    running_work=work_of(job for job in held if job.new.lane == name),
                )
            )
        return stats

    @atomic
    def dead_letters(self, *, limit: int = 100) -> list[Record]:
        """Return the newest jobs that ended because three worker processes died while running them alone."""
        dead = sorted((job for job in self._jobs.values() if job.dead), key=lambda job: -job.sequence)
        return [record(job) for job in dead[:limit]]

    @atomic
    def waiting(self) -> dict[str, int]:
        """Return the number of waiting jobs by lane, for the bells."""
        return {name: len(lane.jobs) for name, lane in self._lanes.items()}

    def _job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id[:64]}")
        return job

    @atomic
    def restore(self, records: Sequence[Record], expires_at: Mapping[str, float] = NO_TIMES) -> list[bool]:
        """Write records of succeeded jobs that the ledger does not know (`restoring.Restoring`)."""
        return [self._restore(record, expires_at.get(record.id)) for record in records]

    def _restore(self, record: Record, expires_at: float | None) -> bool:
        owner = self._groups.get(record.group or "")
        if record.id in self._jobs or (owner is not None and owner.tenant != record.tenant):
            return False
        taken = {job.sequence for job in self._jobs.values()}
        sequence = restored_sequence(record.id)
        while sequence in taken:
            sequence += 1
        job = self._jobs[record.id] = _restored(record, sequence, self._clock())
        job.expires_at = expires_at
        if record.group is not None:
            group = self._groups.setdefault(record.group, GroupEntry(record.tenant, record.created_at))
            group.created_at = min(group.created_at, record.created_at)
        return True


def record(job: Job) -> Record:
    """Return what the outside sees of a job."""
    new = job.new
    return Record(
        id=new.id,
        kind=new.kind,
        lane=new.lane,
        tenant=new.tenant,
        priority=new.priority,
        batch_key=new.batch_key,
        rows=new.rows,
        work=new.work,
        spec=new.spec,
        status=job.status,
        sequence=job.sequence,
        attempt=job.attempt,
        strikes=job.strikes,
        suspect=job.suspect,
        group=new.group,
        waits_for=tuple(dict.fromkeys(new.waits_for)),
        worker=job.worker,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        step=job.step,
        steps=job.steps,
        result=job.outcome if job.status is Status.SUCCEEDED else None,
        error=job.outcome if job.status is Status.FAILED else None,
    )


def _restored(known: Record, sequence: int, now: float) -> Job:
    """Return a succeeded job made from its record."""
    new = NewJob(
        id=known.id,
        kind=known.kind,
        lane=known.lane,
        tenant=known.tenant,
        spec=known.spec,
        batch_key=known.batch_key,
        priority=known.priority,
        rows=known.rows,
        work=known.work,
        group=known.group,
    )
    return Job(
        new=new,
        sequence=sequence,
        created_at=known.created_at,
        status=Status.SUCCEEDED,
        attempt=known.attempt,
        worker=known.worker,
        started_at=known.started_at,
        completed_at=known.completed_at or known.created_at,
        outcome=known.result or "{}",
        restored_at=now,
    )


def _counted(jobs: Sequence[Job]) -> dict[Status, int]:
    counts = Counter(job.status for job in jobs)
    return {status: counts[status] for status in Status}
