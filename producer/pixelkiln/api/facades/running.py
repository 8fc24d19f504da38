"""From a request that waits for its result to a job, and back: what all facades do alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from pixelkiln.api.auth import Caller
from pixelkiln.api.errors import RunFailed, RunTooLong
from pixelkiln.api.jobs import idempotency
from pixelkiln.api.services import Services
from pixelkiln.api.views import Views
from pixelkiln.records import result_of
from pixelkiln.resources import JobFailure
from pixelkiln_shared.errors import PixelkilnError, Unavailable
from pixelkiln_shared.events import Event
from pixelkiln_shared.jobs import Artifact, Priority, Status
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.storage.contract import Storage

PATIENCE_S = 570  # the clients' own time limit is 600 s
LOOK_S = 1.0  # how often it is asked whether the client is still there


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One job on behalf of a request that waits for it.

    With `cancel_if_left` the caller has no key to ask for the result again: nobody could, once it has left.
    """

    job_id: str
    caller: Caller
    request: Request
    parts: Services
    cancel_if_left: bool

    @classmethod
    async def begin(
        cls,
        job: Mapping[str, Any],
        request: Request,
        parts: Services,
        caller: Caller,
        *,
        key: str | None = None,
        fingerprint: Any = None,
    ) -> Run:
        """Submit a job, before others unless it says otherwise: somebody waits.

        Args:
            job: as for `POST /v1/jobs`.
            key: the `Idempotency-Key`; the same again waits for the same job.
            fingerprint: what must be equal for that; JSON.

        Raises:
            PixelkilnError: as `Producer.accept`; `no_worker_for_model` when nobody would run it.
        """
        accepted = await run_in_threadpool(
            parts.producer.accept,
            {"priority": Priority.INTERACTIVE.value, **job},
            tenant=caller.tenant,
            idempotency=await run_in_threadpool(idempotency, key, request, fingerprint, caller),
            need_worker=True,
        )
        return cls(
            job_id=accepted.ids[0], caller=caller, request=request, parts=parts, cancel_if_left=key is None
        )

    async def events(self) -> AsyncGenerator[Event | None, None]:
        """Yield what happens until the job has ended or the server stops, and None while nothing does.

        Raises:
            RunTooLong: it has not ended in `PATIENCE_S`.
            ClientDisconnect: the caller has left.
        """
        clock = asyncio.get_running_loop().time
        looked, deadline = clock(), clock() + PATIENCE_S
        async with contextlib.aclosing(self.parts.watcher.until_end(self.job_id)) as events:
            async for event in events:
                if clock() > deadline:
                    raise RunTooLong(f"{self.job_id} has not ended in {PATIENCE_S} s; it goes on")
                if clock() - looked >= LOOK_S:
                    looked = clock()
                    if await self.request.is_disconnected():
                        await self.left()
                        raise ClientDisconnect
                yield event

    async def result(self) -> Record:
        """Wait for the job's end and return its record.

        Raises:
            RunFailed: it has no result.
            PixelkilnError: as `events`.
        """
        async with contextlib.aclosing(self.events()) as events:
            async for _ in events:
                pass
        return await self.outcome()

    async def outcome(self) -> Record:
        """Return the record of a job that has ended.

        Raises:
            RunFailed: it has no result.
            Unavailable: it has not ended, because the server stops.
        """
        record = await run_in_threadpool(self.parts.producer.get, self.job_id, self.caller.tenant)
        if record.status is Status.SUCCEEDED:
            return record
        if not record.status.terminal:
            raise Unavailable(f"the server stops; {self.job_id} goes on")
        raise failure_of(record)

    async def left(self) -> None:
        """Do what is right when the caller has left."""
        if self.cancel_if_left:
            with contextlib.suppress(PixelkilnError):
                await run_in_threadpool(self.parts.producer.cancel, self.job_id, self.caller.tenant)

    @property
    def views(self) -> Views:
        """What shows records to the caller."""
        return Views.of(self.request, self.parts)


def files_of(record: Record, role: Role, storage: Storage) -> list[tuple[Artifact, bytes]]:
    """Return the files of a role with their bytes, in order.

    Raises:
        NotFound: one has been deleted.
        StorageUnavailable: the store does not answer.
    """
    found = sorted((a for a in result_of(record).artifacts if a.role is role), key=lambda a: a.index)
    return [(artifact, storage.get(artifact.key)) for artifact in found]


def failure_of(record: Record) -> RunFailed:
    """Return why a job has ended without a result."""
    if record.error:
        failure = JobFailure.model_validate_json(record.error)
        return RunFailed(f"{record.id} failed: {failure.message}", code=failure.code)
    return RunFailed(f"{record.id} is {record.status}", code=f"job_{record.status}")
