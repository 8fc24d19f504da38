"""The ledger in Redis: each move one atomic Lua script (`lua/`), the truth about every job.

The scripts build their key names themselves, so the ledger lives on one Redis (with replicas if you like),
not on a Redis Cluster. No move grows with the number of waiting jobs but O(log n). The figures are in
docs/scale.md: bulk submit 15 microseconds a job, a waiting job 1,130 bytes, a claim below 1 ms.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import redis

from pixelkiln_shared.errors import (
    AlreadyTerminal,
    LeaseLost,
    RedisUnavailable,
)
from pixelkiln_shared.jobs import Status, lane_suffix
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger.connection import redis_errors
from pixelkiln_shared.ledger.contract import (
    CANCEL_CHUNK,
    Claim,
    Claimed,
    Idempotency,
    LaneOffer,
    NewJob,
    Reaped,
    Record,
    Renewal,
    Submitted,
)
from pixelkiln_shared.ledger.reading import LedgerReader, missing
from pixelkiln_shared.ledger.restoring import NO_TIMES, RESTORE_CHUNK, flat_records
from pixelkiln_shared.ledger.scripts import Scripts
from pixelkiln_shared.ledger.submitting import BulkSubmit, flat, milliseconds, submitted

CHUNK = 1_000  # jobs in one script call: about 20 ms in which Redis does nothing else
CHUNKS_UNDER_WAY = 2  # one that Redis writes, one that waits for it: half a megabyte on the wire
REAP_CHUNK = 200  # as many leases and deadlines: below 20 ms in which Redis does nothing else
REAPED = 5_000  # of each in a sweep
SWEEP_CHUNK = 250
SWEEPS = 16  # 4,000 old records a sweep, and workers sweep every second: as many jobs a second, for ever


class RedisLedger(LedgerReader):
    """Implements the `Ledger` protocol. Safe for threads, as its client is.

    Args:
        client: made by `redis_client` (it must decode responses).
        retention_s: how long a finished record lives unless the job says otherwise.
        away_s: a sweep that comes later than this after the one before blames nobody for lost leases: Redis
            was away and no heartbeat could arrive. None: every lost lease is judged.
        clock: Lua source that replaces Redis's `TIME`; for tests only (`scripts.Scripts`).
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        retention_s: int = 7 * 86_400,
        away_s: float | None = None,
        clock: str | None = None,
    ) -> None:
        if not client.get_encoder().decode_responses:
            raise ValueError("the ledger needs a client with decode_responses=True")
        super().__init__(client, Scripts(client, retention_s=retention_s, clock=clock))
        self._away_ms = 0 if away_s is None else milliseconds(away_s)
        self._unanswered: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def submit(
        self,
        jobs: Sequence[NewJob],
        *,
        idempotency: Idempotency | None = None,
        max_waiting: int | None = None,
    ) -> Submitted:
        """Write the jobs: all of them or none.

        Up to `CHUNK` jobs are one script. More go in chunks, after one check of the limit and of all parents;
        when Redis fails between two chunks, submitting the same jobs again writes those that are missing.

        Raises:
            IdempotencyKeyReused: the key came before with another fingerprint.
            QueueFull: more than `max_waiting` jobs wait.
            NotFound: a job in `waits_for` (or the group) does not exist or belongs to another tenant.
            ValueError: more than `CHUNK` jobs with an idempotency key.
        """
        if idempotency is not None and len(jobs) > CHUNK:
            raise ValueError(f"at most {CHUNK} jobs can share an idempotency key")
        if not jobs:
            return Submitted(ids=())
        limit = -1 if max_waiting is None else max_waiting
        first: list[str | int] = ["", "", limit, len(jobs)]
        if idempotency is not None:
            first[:2] = [_fold(idempotency), idempotency.fingerprint]
        with redis_errors():
            if len(jobs) > CHUNK:
                self._check_parents(jobs)
            answer = self._scripts.run("submit", *first, *flat(jobs[:CHUNK]))
            written = submitted(answer, jobs)
            if len(jobs) > CHUNK:
                waiting = self._submit_rest(jobs[CHUNK:])
                written = replace(written, waiting={**written.waiting, **waiting}, last_sequence=None)
        return written

    def bulk(self, *, max_waiting: int | None = None) -> BulkSubmit:
        """Return a way to submit chunk after chunk, at most `CHUNK` jobs each (`contract.Ledger.bulk`)."""
        limit = -1 if max_waiting is None else max_waiting
        return BulkSubmit(
            self._client, self._scripts, limit, lambda jobs: self.submit(jobs, max_waiting=max_waiting)
        )

    def claim(self, worker: str, offers: Sequence[LaneOffer], *, lease_s: float) -> Claim | None:
        """Take the next batch among the lanes offered (the rules: `contract.Ledger.claim`), or None.

        A call whose answer was lost is asked again, with its token, by the worker's next call, which then
        gets the jobs already taken in its name: a cut connection costs a job neither time nor a strike.
        """
        arguments: list[str | int] = []
        for offer in offers:
            holds_ms = -1 if offer.holds_s is None else round(offer.holds_s * 1_000)
            arguments += [offer.lane, offer.max_rows, int(offer.resident)]
            arguments += [milliseconds(offer.max_wait_s), holds_ms]
        with self._lock:
            unanswered = self._unanswered.pop(worker, [])
            token = unanswered.pop() if unanswered else secrets.token_hex(8)
            if unanswered:
                self._unanswered[worker] = unanswered
        reply = self._take("claim", worker, token, lease_s, arguments)
        if not reply:
            return None
        return Claim(lane=reply[0], batch_key=reply[1], suspect=reply[2] == 1, jobs=_claimed(reply[3:]))

    def top_up(self, worker: str, claim: Claim, max_rows: int, *, lease_s: float) -> tuple[Claimed, ...]:
        """Take more jobs of the claim's batch key, at most `max_rows` further rows; none for a suspect."""
        if claim.suspect or max_rows < 1:
            return ()
        arguments: list[str | int] = [claim.lane, claim.batch_key, max_rows]
        reply = self._take("top_up", worker, secrets.token_hex(8), lease_s, arguments)
        return _claimed(reply)

    def renew(self, worker: str, held: Iterable[tuple[str, int]], *, lease_s: float) -> Renewal:
        """Extend the leases of `(id, attempt)` pairs in one call; the heartbeat of a process."""
        pairs = [value for pair in held for value in pair]
        if not pairs:
            return Renewal()
        with redis_errors():
            canceling, lost = self._scripts.run("renew", milliseconds(lease_s), *pairs)
        return Renewal(canceling=frozenset(canceling), lost=frozenset(lost))

    def progress(self, job_id: str, attempt: int, step: int, steps: int) -> bool:
        """Note the step reached; False when the attempt is no longer the newest. Refreshes no lease.

        The record always learns it; an event goes out at most four times a second and job.
        """
        with redis_errors():
            return bool(self._scripts.run("progress", job_id, attempt, step, steps))

    def shelve(self, job_id: str, attempt: int) -> None:
        """Note that the attempt has run, and that its result only waits for the store.

        Raises:
            LeaseLost: as for `publish`.
        """
        with redis_errors():
            if not self._scripts.run("shelve", job_id, attempt):
                raise LeaseLost(f"attempt {attempt} of {job_id} no longer owns the job")

    def publish(self, job_id: str, attempt: int, result: str) -> Status:
        """End the attempt with a result: `succeeded`, or `canceled` when a cancel came first.

        The same attempt may send the same result twice (an answer was lost): that changes nothing.

        Raises:
            LeaseLost: a newer attempt exists, the lease was taken back, or the job has ended.
        """
        return self._end("publish", job_id, attempt, result)

    def publish_many(self, results: Sequence[tuple[str, int, str]]) -> list[Status | None]:
        """Publish `(id, attempt, result)` of several jobs in one call; None: that lease is lost."""
        with redis_errors():
            flat = [value for one in results for value in one]
            statuses = self._scripts.run("end_attempt", "publish", *flat) if flat else []
        return [Status(status) if status else None for status in statuses]

    def fail(self, job_id: str, attempt: int, error: str) -> Status:
        """End the attempt with an error (JSON `{code, message}`), or `canceled` when a cancel came first.

        Raises:
            LeaseLost: as for `publish`.
        """
        return self._end("fail", job_id, attempt, error)

    def release(self, job_id: str, attempt: int, *, version: int = 1) -> Status:
        """Give the job back without blame, to the front of its queue: `queued` (or `canceled`).

        With a later `version`: to the lane of workers that read such jobs.

        Raises:
            LeaseLost: as for `publish`.
        """
        return self._end("release", job_id, attempt, lane_suffix(version))

    def stopped(self, job_id: str, attempt: int) -> Status:
        """Confirm that a canceling job was stopped: `canceled`.

        Raises:
            LeaseLost: as for `publish`, or nobody asked to cancel it.
        """
        return self._end("stopped", job_id, attempt)

    def cancel(self, job_id: str) -> Status:
        """Ask a job to end; idempotent. Running jobs hear it on `keys.CANCELS` and at their next heartbeat.

        Raises:
            NotFound: no such job.
        """
        with redis_errors():
            status = self._scripts.run("cancel", job_id)
        if not status:
            raise missing(job_id)
        return Status(status)

    def cancel_group(self, group_id: str, *, limit: int = CANCEL_CHUNK) -> int:
        """Cancel up to `limit` unfinished jobs of a group; returns how many were touched (0: done)."""
        with redis_errors():
            return int(self._scripts.run("cancel_group", group_id, limit))

    def retry(self, job_id: str) -> Status:
        """Put a failed, canceled or expired job back into its queue, strikes cleared.

        A suspect stays one and runs alone. A job whose parent failed stays failed: retry that first.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has succeeded, or it has not ended.
        """
        with redis_errors():
            answer, *status = self._scripts.run("retry", job_id)
        if answer == "missing":
            raise missing(job_id)
        if answer == "refused":
            code = None if Status(status[0]).terminal else "not_terminal"
            raise AlreadyTerminal(f"the job is {status[0]}, it has not ended without a result", code=code)
        return Status(status[0])

    def lapse(self, worker: str) -> int:
        """End the leases of all that a dead worker holds, for the next sweep to judge; return how many."""
        with redis_errors():
            return int(self._scripts.run("lapse", worker))

    def reap(self, *, limit: int = REAPED) -> Reaped:
        """Take back lapsed leases, expire jobs past their deadline, forget records past their retention.

        All in calls short enough to stand in nobody's way; what a sweep leaves, the next one takes.
        """
        done: list[list[str]] = [[], [], [], []]
        more, after_pause = 1, 0
        with redis_errors():
            for left in range(limit, 0, -REAP_CHUNK):
                *found, more, after_pause = self._scripts.run(
                    "reap", min(left, REAP_CHUNK), self._away_ms, after_pause
                )
                for ids, new in zip(done, found, strict=True):
                    ids += new
                if not more:
                    break
            for _ in range(SWEEPS):
                if int(self._scripts.run("sweep", SWEEP_CHUNK)) < SWEEP_CHUNK:
                    break
        requeued, failed, canceled, expired = map(tuple, done)
        return Reaped(
            requeued=requeued, failed=failed, canceled=canceled, expired=expired, lanes=self.waiting()
        )

    def delete(self, job_id: str) -> None:
        """Forget an ended job: record, indexes, its place in its group.

        Raises:
            NotFound: no such job.
            AlreadyTerminal: it has not ended (`code` is `not_terminal`).
        """
        with redis_errors():
            answer = self._scripts.run("delete", job_id)
        if not answer:
            raise missing(job_id)
        if answer != "ok":
            raise AlreadyTerminal(f"the job is {answer}; cancel it first", code="not_terminal")

    def restore(self, records: Sequence[Record], expires_at: Mapping[str, float] = NO_TIMES) -> list[bool]:
        """Write records of succeeded jobs that the ledger does not know (`restoring.Restoring`)."""
        written: list[bool] = []
        with redis_errors():
            for start in range(0, len(records), RESTORE_CHUNK):
                chunk = flat_records(records[start : start + RESTORE_CHUNK], expires_at)
                written += map(bool, self._scripts.run("restore", *chunk))
        return written

    def _take(
        self, move: str, worker: str, token: str, lease_s: float, arguments: list[str | int]
    ) -> list[Any]:
        """Run a move that hands out jobs; its token is kept when no answer came."""
        try:
            with redis_errors():
                return cast(
                    list[Any], self._scripts.run(move, worker, token, milliseconds(lease_s), *arguments)
                )
        except RedisUnavailable:
            with self._lock:
                self._unanswered.setdefault(worker, []).append(token)
            raise

    def _end(self, move: str, job_id: str, attempt: int, outcome: str = "") -> Status:
        with redis_errors():
            [status] = self._scripts.run("end_attempt", move, job_id, attempt, outcome)
        if not status:
            raise LeaseLost(f"attempt {attempt} of {job_id} no longer owns the job")
        return Status(status)

    def _check_parents(self, jobs: Sequence[NewJob]) -> None:
        """Refuse a missing parent before the first of several chunks is written."""
        ours = {job.id: job.tenant for job in jobs}
        outside = {(parent, job.tenant) for job in jobs for parent in job.waits_for if parent not in ours}
        pipeline = self._client.pipeline(transaction=False)
        for parent, _ in outside:
            pipeline.hget(LedgerKey.JOB + parent, "tenant")
        for (parent, tenant), owner in zip(outside, pipeline.execute(), strict=True):
            if owner != tenant:
                raise missing(parent)

    def _submit_rest(self, jobs: Sequence[NewJob]) -> dict[str, int]:
        """Write the further chunks, one put into words while Redis writes the one before."""
        waiting: dict[str, int] = {}
        under_way = 0
        with self.bulk() as bulk:
            for start in range(0, len(jobs), CHUNK):
                bulk.send(jobs[start : start + CHUNK])
                under_way += 1
                if under_way == CHUNKS_UNDER_WAY:
                    waiting |= bulk.answer().waiting
                    under_way -= 1
            for _ in range(under_way):
                waiting |= bulk.answer().waiting
        return waiting


def _fold(idempotency: Idempotency) -> str:
    """Return a key of ours for a scope (a credential) and a key (user text); neither appears in Redis."""
    return hashlib.sha256(f"{idempotency.scope}\0{idempotency.key}".encode()).hexdigest()


def _claimed(flat: list[Any]) -> tuple[Claimed, ...]:
    return tuple(
        Claimed(
            id=one,
            attempt=int(attempt),
            rows=int(rows),
            spec=spec,
            waited_s=int(waited_ms) / 1_000,
            group=group or None,
        )
        for one, attempt, rows, spec, waited_ms, group in zip(*[iter(flat)] * 6, strict=True)
    )
