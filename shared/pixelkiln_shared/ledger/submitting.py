"""Submitting: jobs as `submit.lua` reads them, its answers, and many chunks sent one behind the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pixelkiln_shared.errors import IdempotencyKeyReused, NotFound, QueueFull, RedisUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.connection import RETRY_AFTER_S
from pixelkiln_shared.ledger.contract import NewJob, Record, Submitted
from pixelkiln_shared.ledger.scripts import Scripts

QUEUE_FULL_RETRY_S = 30.0


class BulkSubmit:
    """Implements `contract.Bulk`: Redis writes one chunk while its caller prepares the next.

    It holds one connection of the client's pool. Not for several threads.

    Args:
        client: as the ledger's.
        scripts: the ledger's.
        limit: how many jobs may wait, -1 for any number.
        again: submits a chunk whose answer did not come; ids written before are not written twice.
    """

    def __init__(
        self,
        client: redis.Redis,
        scripts: Scripts,
        limit: int,
        again: Callable[[Sequence[NewJob]], Submitted],
    ) -> None:
        self._pool = client.connection_pool
        self._scripts = scripts
        self._limit = limit
        self._again = again
        self._connection: Any = None  # None while chunks are sent: they must be sent again
        self._sent: deque[Sequence[NewJob]] = deque()

    def __enter__(self) -> BulkSubmit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            if self._sent:
                self._connection.disconnect()  # else its next user would read our answer
            self._pool.release(self._connection)

    def send(self, jobs: Sequence[NewJob]) -> None:
        """See `contract.Bulk.send`."""
        before = bool(self._sent)
        self._sent.append(jobs)
        if before and self._connection is None:
            return
        try:
            if self._connection is None:
                self._scripts.load("submit")
                self._connection = self._pool.get_connection()
            line = self._scripts.command("submit", "", "", self._limit, len(jobs), *flat(jobs))
            self._connection.send_command(*line)
        except RedisError:
            self._drop()

    def answer(self) -> Submitted:
        """See `contract.Bulk.answer`."""
        answer = None
        if self._connection is not None:
            try:
                answer = self._connection.read_response()
            except RedisTimeoutError as error:  # a caller waits one time limit, not two
                self._drop()
                raise RedisUnavailable("Redis does not answer", retry_after_s=RETRY_AFTER_S) from error
            except RedisError:
                self._drop()
        jobs = self._sent.popleft()
        return self._again(jobs) if answer is None else submitted(answer, jobs)

    def _drop(self) -> None:
        """Let go of a connection whose state is unknown."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts take it, never 0."""
    return max(1, round(seconds * 1_000))


def flat(jobs: Sequence[NewJob]) -> list[str | int]:
    """Return the jobs as `submit.lua` reads them: what many have in common goes over the wire once."""
    shapes: dict[tuple[str | int, ...], int] = {}
    rows: list[str | int] = []
    for job in jobs:
        shape = (
            job.kind,
            job.lane,
            job.tenant,
            job.priority,
            job.batch_key,
            job.rows,
            job.work,
            job.group or "",
            " ".join(dict.fromkeys(job.waits_for)) if job.waits_for else "",
            "" if job.start_deadline_s is None else milliseconds(job.start_deadline_s),
            "" if job.retention_s is None else job.retention_s * 1_000,
            " ".join(job.notify) if job.webhook else "",
            job.webhook or "",
            job.group_webhook or "",
        )
        rows += (shapes.setdefault(shape, len(shapes) + 1), job.id, job.spec)
    return [len(shapes), *(value for shape in shapes for value in shape), *rows]


def submitted(answer: list[Any], jobs: Sequence[NewJob]) -> Submitted:
    """Read the answer of `submit.lua`.

    Raises:
        IdempotencyKeyReused, QueueFull, NotFound: it wrote nothing.
    """
    word, *rest = answer
    if word == "reused":
        raise IdempotencyKeyReused("this idempotency key came before with another request")
    if word == "full":
        raise QueueFull(f"{rest[0]} jobs wait already", retry_after_s=QUEUE_FULL_RETRY_S)
    if word == "missing":
        raise NotFound(f"no job or group {str(rest[0])[:64]}")
    if word == "replayed":
        return Submitted(ids=tuple(rest[0].split()), replayed=True)
    at_ms, last, *lanes = rest
    return Submitted(
        ids=tuple(job.id for job in jobs),
        waiting={lane: int(count) for lane, count in zip(lanes[0::2], lanes[1::2], strict=True)},
        at=int(at_ms) / 1_000,
        last_sequence=int(last) if int(last) >= 0 else None,
    )


def fresh_record(job: NewJob, submitted: Submitted) -> Record | None:
    """Return the record of a job submitted alone just now; None when only the ledger can tell."""
    if submitted.last_sequence is None or job.waits_for:
        return None
    return Record(
        id=job.id,
        kind=job.kind,
        lane=job.lane,
        tenant=job.tenant,
        priority=job.priority,
        batch_key=job.batch_key,
        rows=job.rows,
        work=job.work,
        spec=job.spec,
        status=Status.QUEUED,
        sequence=submitted.last_sequence,
        group=job.group,
        created_at=submitted.at,
    )
