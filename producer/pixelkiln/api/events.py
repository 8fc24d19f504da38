"""Following jobs: waiting for their end, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from typing import Any

import redis.asyncio
import redis.exceptions
from starlette.concurrency import run_in_threadpool

from pixelkiln.resources import JobResource
from pixelkiln_shared.errors import PixelkilnError, RedisUnavailable
from pixelkiln_shared.events import Event, EventReader
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger import async_redis_client
from pixelkiln_shared.ledger.contract import Ledger, Record
from pixelkiln_shared.settings import Settings

HEARTBEAT_S = 15.0  # below the idle time of proxies, and how late a lost event is noticed
RECHECK_S = 2.0  # a waiter looks for itself now and then: an event may be lost, a wait must not

_EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}")

View = Callable[[Record], JobResource]


class Watcher:
    """Follows jobs on behalf of HTTP clients, all of them through one reader of the event streams."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._reader: EventReader | None = None
        self._client: redis.asyncio.Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the reader for as long as the application lives."""
        async with async_redis_client(self._settings) as client:
            self._client, self._reader = client, EventReader(client)
            self._loop = asyncio.get_running_loop()
            try:
                yield
            finally:
                await self._reader.aclose()

    def stop(self) -> None:
        """End all streams and waits soon; the server is about to stop. Safe in a signal handler."""
        if self._reader is not None and self._loop is not None:
            reader = self._reader
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(reader.aclose()))

    async def ended(self, job_id: str, seconds: float) -> None:
        """Return when the job has ended, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), contextlib.aclosing(self.until_end(job_id)) as events:
                async for _ in events:
                    pass

    async def until_end(self, job_id: str) -> AsyncGenerator[Event | None, None]:
        """Yield what happens to a job until it has ended, and None when nothing did for `RECHECK_S`.

        It ends before the job when the server stops.
        """
        async with self._subscription(job_id, None) as events, _ticking(events, RECHECK_S) as ticks:
            async for event in ticks:
                if event is None or _tells_an_end(event):
                    record = await run_in_threadpool(self._ledger.get, job_id)
                    if record.status.terminal:
                        return
                yield event

    async def stream(self, job_id: str, after: str | None, view: View, *, base: str) -> AsyncIterator[str]:
        """Yield a job's event stream: a snapshot, what follows (or was missed since `after`), heartbeats.

        It ends with the job, or with an `error` event when Redis goes away; the client then resumes.

        Args:
            base: the address users reach us at, for the links of previews.
        """
        after = after if after is not None and _EVENT_ID.fullmatch(after) else None
        try:
            async with self._subscription(job_id, after) as events, _ticking(events, HEARTBEAT_S) as ticks:
                async for text in self._told(job_id, after, ticks, view, base):
                    yield text
        except PixelkilnError as error:
            yield _text("error", {"code": error.code, "message": "the stream broke; connect again"}, None)

    async def moving(self, job_ids: Collection[str]) -> AsyncIterator[str]:
        """Yield what happens to several jobs from now on, one stream without an end; `job` says to which."""
        assert self._reader is not None  # noqa: S101 - running
        async with self._reader.follow(job_ids) as events, _ticking(events, HEARTBEAT_S) as ticks:
            async for event in ticks:
                if event is None:
                    yield ": heartbeat\n\n"
                else:
                    yield _text(event.type, {**event.data, "job": event.job}, event.id)

    async def _told(
        self, job_id: str, after: str | None, ticks: AsyncIterator[Event | None], view: View, base: str
    ) -> AsyncIterator[str]:
        since = after or await self._now()
        seen = await run_in_threadpool(self._snapshot, job_id, view)
        yield _text("status", _plain(seen), since)
        if seen.status.terminal:
            return
        await anext(ticks)  # the first tick is the snapshot
        async for event in ticks:
            if event is not None and event.type != "status":
                yield _text(event.type, _linked(event, base), event.id)
                continue
            found = await run_in_threadpool(self._snapshot, job_id, view)
            if event is not None or found.status is not seen.status:
                yield _text("status", _plain(found), event.id if event else None)
            else:
                yield ": heartbeat\n\n"
            seen = found
            if seen.status.terminal:
                return

    def _snapshot(self, job_id: str, view: View) -> JobResource:
        return view(self._ledger.get(job_id))

    async def _now(self) -> str:
        """Return an event id just before this moment by Redis's clock: to resume from it misses nothing."""
        assert self._client is not None  # noqa: S101 - running
        try:
            seconds, micros = await self._client.time()
        except redis.exceptions.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error
        return f"{int(seconds) * 1_000 + int(micros) // 1_000 - 1}-0"

    def _subscription(
        self, job_id: str, after: str | None
    ) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Event]]:
        assert self._reader is not None  # noqa: S101 - running
        return self._reader.subscribe(job_id, after)


def _ticking(
    events: AsyncIterator[Event], seconds: float
) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Event | None]]:
    """Give the events, first of all a None, and another whenever nothing came for `seconds`."""
    return contextlib.aclosing(_ticks(events, seconds))


async def _ticks(events: AsyncIterator[Event], seconds: float) -> AsyncGenerator[Event | None, None]:
    yield None
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield None
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(anext(events))
            yield event
    finally:
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
            await pending


def _tells_an_end(event: Event) -> bool:
    return event.type == "status" and Status(event.data["status"]).terminal


def _linked(event: Event, base: str) -> dict[str, Any]:
    """Return an event's data; a preview's with the address of its picture, never the same for two steps."""
    if event.type != "preview":
        return event.data
    return {**event.data, "url": f"{base}/v1/jobs/{event.job}/preview?step={event.data.get('step', 0)}"}


def _plain(resource: JobResource) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(resource.model_dump_json())
    return data


def _text(kind: str, data: dict[str, Any], identity: str | None) -> str:
    """Return one server-sent event; JSON in ASCII has no line breaks to escape."""
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n"
