"""`MemoryLedger`: the ledger's moves in plain Python, for tests; the contract suite holds it to Redis's.

It looks through all jobs each time: made to be read, not to be fast. It writes no events and publishes no
cancels; a heartbeat tells of those.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pixelkiln_shared.errors import AlreadyTerminal, IdempotencyKeyReused, LeaseLost, NotFound, QueueFull
from pixelkiln_shared.jobs import Status, lane_suffix
from pixelkiln_shared.keys import IDEMPOTENCY_S
from pixelkiln_shared.ledger.contract import (
    CANCEL_CHUNK,
    MAX_STRIKES,
    Idempotency,
    NewJob,
    Reaped,
    Renewal,
    Submitted,
)
from pixelkiln_shared.testing.claiming import MemoryClaims
from pixelkiln_shared.testing.lanes import Job
from pixelkiln_shared.testing.outbox import MemoryOutbox
from pixelkiln_shared.testing.records import GroupEntry, atomic

PARENT_FAILED = '{"code":"parent_failed","message":"the job it waited for did not succeed"}'
WORKER_CRASHED = '{"code":"worker_crashed","message":"3 worker processes died while running this job alone"}'
UNFINISHED = (Status.BLOCKED, Status.QUEUED, Status.RUNNING)  # what a cancel can still change


class MemoryLedger(MemoryClaims):
    """Implements the `Ledger` protocol.

    Args:
        clock: Unix seconds; tests pass their own and so end leases without waiting.
        retention_s: how long a finished record lives unless the job says otherwise.
    """

    def __init__(self, clock: Callable[[], float] = time.time, *, retention_s: int = 7 * 86_400) -> None:
        super().__init__(clock)
        self._retention_s = retention_s
        self._sequence = 0
        self.outbox = MemoryOutbox(clock, self.lock)
        self._unwritten: set[str] | None = None
        self._answers: dict[tuple[str, str], tuple[str, tuple[str, ...], float]] = {}

    # ---------------------------------------------------------------------------------------- submit

    @atomic
    def submit(
        self,
        jobs: Sequence[NewJob],
        *,
        idempotency: Idempotency | None = None,
        max_waiting: int | None = None,
    ) -> Submitted:
        """Write the jobs: all of them or none."""
        now = self._clock()
        if idempotency is not None:
            first = self._answers.get((idempotency.scope, idempotency.key))
            if first is not None and first[2] > now:
                if first[0] != idempotency.fingerprint:
                    raise IdempotencyKeyReused("this idempotency key came before with another request")
                return Submitted(ids=first[1], replayed=True)
        waiting = sum(job.status in (Status.QUEUED, Status.BLOCKED) for job in self._jobs.values())
        if max_waiting is not None and waiting + len(jobs) > max_waiting:
            raise QueueFull(f"{waiting} jobs wait already")
        self._check(jobs)
        self._unwritten = set()  # a group is not complete while its other jobs are still to be written
        all_new = not any(job.id in self._jobs for job in jobs) and len({job.id for job in jobs}) == len(jobs)
        for job in jobs:
            self._sequence += 1
            if job.id not in self._jobs:
                self._write(Job(new=job, sequence=self._sequence, created_at=now))
        ended, self._unwritten = self._unwritten, None
        for group in sorted(ended):
            self._group_lost_one(group)
        ids = tuple(job.id for job in jobs)
        if idempotency is not None:
            expiry = now + IDEMPOTENCY_S
            self._answers[idempotency.scope, idempotency.key] = (idempotency.fingerprint, ids, expiry)
        depths = self.waiting()
        return Submitted(
            ids=ids,
            waiting={job.lane: depths.get(job.lane, 0) for job in jobs},
            at=now,
            last_sequence=self._sequence if all_new else None,
        )

    @contextmanager
    def bulk(self, *, max_waiting: int | None = None) -> Iterator[MemoryBulk]:
        """Return a way to submit chunk after chunk."""
        yield MemoryBulk(self, max_waiting)

    def _check(self, jobs: Sequence[NewJob]) -> None:
        owners = {job_id: job.new.tenant for job_id, job in self._jobs.items()}
        groups = {group_id: group.tenant for group_id, group in self._groups.items()}
        for job in jobs:
            if job.group is not None and groups.setdefault(job.group, job.tenant) != job.tenant:
                raise NotFound(f"no group {job.group}")
            for parent in job.waits_for:
                if owners.get(parent) != job.tenant:
                    raise NotFound(f"no job {parent}")
            owners[job.id] = job.tenant

    def _write(self, job: Job) -> None:
        new = job.new
        self._jobs[new.id] = job
        if new.group is not None:
            group = self._groups.setdefault(new.group, GroupEntry(new.tenant, job.created_at))
            group.webhook = new.group_webhook or group.webhook
        if new.start_deadline_s is not None:
            job.deadline = job.created_at + new.start_deadline_s
        if self._await_parents(job):
            job.status = Status.BLOCKED
            self._finish(job, Status.FAILED, PARENT_FAILED)
        elif job.pending:
            job.status = Status.BLOCKED
        else:
            self._enter(job)

    def _await_parents(self, job: Job) -> bool:
        """Note which parents have not ended; returns whether one ended without success."""
        parents = {name: self._jobs.get(name) for name in job.new.waits_for}
        job.pending = {name for name, parent in parents.items() if parent and not parent.status.terminal}
        return any(
            parent is None or (parent.status.terminal and parent.status is not Status.SUCCEEDED)
            for parent in parents.values()
        )

    # ---------------------------------------------------------------------------------------- attempts

    @atomic
    def renew(self, worker: str, held: Iterable[tuple[str, int]], *, lease_s: float) -> Renewal:
        """Extend the leases of `(id, attempt)` pairs in one call; the heartbeat of a process."""
        canceling, lost = set(), set()
        for job_id, attempt in held:
            job = self._attempt(job_id, attempt)
            if job is None:
                lost.add(job_id)
                continue
            job.lease_until = self._clock() + lease_s
            if job.status is Status.CANCELING:
                canceling.add(job_id)
        return Renewal(canceling=frozenset(canceling), lost=frozenset(lost))

    @atomic
    def progress(self, job_id: str, attempt: int, step: int, steps: int) -> bool:
        """Note the step reached; False when the attempt is no longer the newest."""
        job = self._attempt(job_id, attempt)
        if job is not None:
            job.step, job.steps = step, steps
        return job is not None

    @atomic
    def shelve(self, job_id: str, attempt: int) -> None:
        """Note that the attempt has run, and that its result only waits for the store."""
        job = self._attempt(job_id, attempt)
        if job is None:
            raise LeaseLost(f"attempt {attempt} of {job_id} no longer owns the job")
        job.shelved = attempt

    @atomic
    def publish(self, job_id: str, attempt: int, result: str) -> Status:
        """End the attempt with a result: `succeeded`, or `canceled` when a cancel came first."""
        return self._end(job_id, attempt, Status.SUCCEEDED, result)

    @atomic
    def publish_many(self, results: Sequence[tuple[str, int, str]]) -> list[Status | None]:
        """Publish the results of several jobs, each as if it were alone; None: the lease is lost."""
        statuses: list[Status | None] = []
        for job_id, attempt, result in results:
            try:
                statuses.append(self._end(job_id, attempt, Status.SUCCEEDED, result))
            except LeaseLost:
                statuses.append(None)
        return statuses

    @atomic
    def fail(self, job_id: str, attempt: int, error: str) -> Status:
        """End the attempt with an error, or `canceled` when a cancel came first."""
        return self._end(job_id, attempt, Status.FAILED, error)

    @atomic
    def release(self, job_id: str, attempt: int, *, version: int = 1) -> Status:
        """Give the job back without blame, to the front of its queue: `queued` (or `canceled`)."""
        job = self._attempt(job_id, attempt)
        if job is not None and version > 1:
            lane = job.new.lane.partition("@")[0] + lane_suffix(version)
            job.new = replace(job.new, lane=lane)
        return self._end(job_id, attempt, Status.QUEUED)

    @atomic
    def stopped(self, job_id: str, attempt: int) -> Status:
        """Confirm that a canceling job was stopped: `canceled`."""
        return self._end(job_id, attempt, Status.CANCELED)

    def _attempt(self, job_id: str, attempt: int) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job and job.attempt == attempt and job.lease_until is not None else None

    def _end(self, job_id: str, attempt: int, status: Status, outcome: str | None = None) -> Status:
        job = self._attempt(job_id, attempt)
        if job is None:
            return self._repeated(job_id, attempt, status, outcome)
        if job.status is Status.CANCELING:
            self._finish(job, Status.CANCELED)
        elif status is Status.CANCELED:
            raise LeaseLost(f"nobody asked to cancel {job_id}")
        elif status is Status.QUEUED:
            self._requeue(job)
        else:
            self._finish(job, status, outcome)
        return job.status

    def _repeated(self, job_id: str, attempt: int, status: Status, outcome: str | None) -> Status:
        """Answer the same move of the same attempt once more; nothing is done twice."""
        job = self._jobs.get(job_id)
        same = job is not None and job.attempt == attempt and job.status is status and job.outcome == outcome
        if not same:
            raise LeaseLost(f"attempt {attempt} of {job_id} no longer owns the job")
        return status

    # ---------------------------------------------------------------------------------------- endings

    def _finish(self, job: Job, status: Status, outcome: str | None = None) -> None:
        self._leave(job)
        job.status, job.outcome, job.completed_at, job.deadline = status, outcome, self._clock(), None
        new = job.new
        if new.webhook and status in new.notify:
            self.outbox.post(f"job.{status}", new.id, new.tenant, new.webhook)
        if new.group is not None:
            self._group_lost_one(new.group)
        for child in [one for one in self._jobs.values() if job.new.id in one.pending]:
            child.pending.discard(job.new.id)
            if child.status is not Status.BLOCKED:
                continue
            if status is not Status.SUCCEEDED:
                self._finish(child, Status.FAILED, PARENT_FAILED)
            elif not child.pending:
                self._requeue(child)

    def _group_lost_one(self, group_id: str) -> None:
        """Tell that a group is complete when this was the last of its jobs to end."""
        if self._unwritten is not None:
            self._unwritten.add(group_id)
            return
        entry = self._groups[group_id]
        open_jobs = (one.new.group == group_id and not one.status.terminal for one in self._jobs.values())
        if entry.webhook and not any(open_jobs):
            self.outbox.post("group.completed", group_id, entry.tenant, entry.webhook)

    @atomic
    def cancel(self, job_id: str) -> Status:
        """Ask a job to end; idempotent."""
        return self._cancel(self._job(job_id))

    def _cancel(self, job: Job) -> Status:
        if job.status is Status.RUNNING:
            job.status = Status.CANCELING
        elif job.status in UNFINISHED:
            self._finish(job, Status.CANCELED)
        return job.status

    @atomic
    def cancel_group(self, group_id: str, *, limit: int = CANCEL_CHUNK) -> int:
        """Cancel up to `limit` unfinished jobs of a group; returns how many were touched (0: done)."""
        ours = [job for job in self._jobs.values() if job.new.group == group_id and job.status in UNFINISHED]
        ours.sort(key=lambda job: (UNFINISHED.index(job.status), -job.sequence))
        for job in ours[:limit]:  # children before their parents, so that they end as canceled, not as failed
            self._cancel(job)
        return len(ours[:limit])

    @atomic
    def retry(self, job_id: str) -> Status:
        """Put a failed, canceled or expired job back into its queue, strikes cleared."""
        job = self._job(job_id)
        if not job.status.terminal:
            raise AlreadyTerminal(f"the job is {job.status}, it has not ended", code="not_terminal")
        if job.status is Status.SUCCEEDED:
            raise AlreadyTerminal("the job has succeeded")
        if self._await_parents(job):
            return job.status
        job.outcome = job.completed_at = None
        job.strikes = job.company = job.step = job.steps = 0
        job.dead = False
        if job.pending:
            job.status = Status.BLOCKED
        else:
            self._requeue(job)
        return job.status

    @atomic
    def delete(self, job_id: str) -> None:
        """Forget an ended job: record and place in its group."""
        job = self._job(job_id)
        if not job.status.terminal:
            raise AlreadyTerminal(f"the job is {job.status}; cancel it first", code="not_terminal")
        self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.new.id]
        if not any(one.new.group == job.new.group for one in self._jobs.values()):
            self._groups.pop(job.new.group or "", None)

    # ---------------------------------------------------------------------------------------- sweep

    @atomic
    def lapse(self, worker: str) -> int:
        """End the leases of all that a dead worker holds, for the next sweep to judge; return how many."""
        held = self._held(worker)
        for job in held:
            job.lease_until = self._clock()
        return len(held)

    @atomic
    def reap(self, *, limit: int = 5_000) -> Reaped:
        """Take back lapsed leases, expire jobs past their deadline, forget records past their retention."""
        now = self._clock()
        before = {job_id: job.status for job_id, job in self._jobs.items()}
        held = [job for job in self._jobs.values() if job.lease_until is not None]
        lapsed = sorted(
            (job for job in held if (job.lease_until or 0) <= now), key=lambda job: job.lease_until or 0
        )
        crowds = {job.worker for job in lapsed if len(self._running(job.worker or "")) > 1}
        for job in lapsed:
            self._take_back(job, crowded=job.worker in crowds or job.company == job.attempt)
        for job in held:
            if job.worker in crowds and job.lease_until is not None:
                job.company = job.attempt
        late = [job for job in self._jobs.values() if job.deadline is not None and job.deadline <= now]
        for job in reversed(late):  # children before their parents, so that they too end as expired
            self._finish(job, Status.EXPIRED)
        after = {job_id: job.status for job_id, job in self._jobs.items() if job.status is not before[job_id]}
        self._sweep(now)
        return Reaped(
            requeued=tuple(job.new.id for job in lapsed if job.status is Status.QUEUED),
            failed=_ids(after, Status.FAILED),
            canceled=_ids(after, Status.CANCELED),
            expired=_ids(after, Status.EXPIRED),
            lanes=self.waiting(),
        )

    def _take_back(self, job: Job, *, crowded: bool) -> None:
        if job.status is Status.CANCELING:
            self._finish(job, Status.CANCELED)
            return
        if job.shelved == job.attempt:
            self._requeue(job)
            return
        job.suspect = True
        if not crowded:
            job.strikes += 1
        if job.strikes >= MAX_STRIKES:
            job.dead = True
            self._finish(job, Status.FAILED, WORKER_CRASHED)
        else:
            self._requeue(job)

    def _sweep(self, now: float) -> None:
        for job in list(self._jobs.values()):
            kept_s = self._retention_s if job.new.retention_s is None else job.new.retention_s
            forgotten_at = job.expires_at or (job.restored_at or job.completed_at or 0) + kept_s
            if job.status.terminal and forgotten_at <= now:
                self._forget(job)


def _ids(statuses: dict[str, Status], wanted: Status) -> tuple[str, ...]:
    return tuple(job_id for job_id, status in statuses.items() if status is wanted)


def _lease(job: Job) -> float:
    return job.lease_until or 0.0


class MemoryBulk:
    """Implements `contract.Bulk`: a chunk is written when its answer is asked for."""

    def __init__(self, ledger: MemoryLedger, max_waiting: int | None) -> None:
        self._ledger = ledger
        self._max_waiting = max_waiting
        self._sent: deque[Sequence[NewJob]] = deque()

    def send(self, jobs: Sequence[NewJob]) -> None:
        """See `contract.Bulk.send`."""
        self._sent.append(jobs)

    def answer(self) -> Submitted:
        """See `contract.Bulk.answer`."""
        return self._ledger.submit(self._sent.popleft(), max_waiting=self._max_waiting)
