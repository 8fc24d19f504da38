"""What happens to jobs while it happens: capped Redis streams, sharded by job id.

The ledger's moves write `status` and `progress` themselves; `emit` is for the rest. A new job writes none: a
watcher gets a snapshot first. An entry's id is the event's id, so a client may resume at any replica.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import redis
import redis.asyncio

from pixelkiln_shared.keys import EVENT_SHARDS, EVENTS_KEPT, LedgerKey
from pixelkiln_shared.ledger.connection import redis_errors

EventType = Literal["status", "progress", "preview", "artifact", "error"]

BLOCK_MS = 2_000  # one read waits so long; always less than the client's own time limit
BACKLOG = 1_000  # events a slow subscriber may be behind; then it is cut off and resumes by id
PAGE = 1_000
RETRY_S = 0.5

_Entries = list[tuple[str, dict[str, str]]]
_ID = re.compile(r"^\d{1,20}-\d{1,20}$")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one job. `id` grows with time within a job."""

    id: str
    job: str
    type: str
    data: dict[str, Any] = field(default_factory=dict)


def stream_of(job_id: str) -> str:
    """Return the stream that carries a job's events (the same rule as `emit` in `prelude.lua`)."""
    return f"{LedgerKey.EVENTS}{sum(job_id[-4:].encode()) % EVENT_SHARDS}"


def emit(client: redis.Redis, job_id: str, type: EventType, data: Mapping[str, Any]) -> None:
    """Tell whoever watches the job. The caller keeps to a few events a second and job.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    fields: dict[Any, Any] = {"job": job_id, "type": type, "data": json.dumps(data, separators=(",", ":"))}
    with redis_errors():
        client.xadd(stream_of(job_id), fields, maxlen=EVENTS_KEPT, approximate=True)


class EventReader:
    """Reads all shards with one blocking call a process and hands each event to those who asked for its job.

    Args:
        client: made by `async_redis_client`, used in one event loop only.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._queues: dict[str, set[asyncio.Queue[Event | None]]] = {}
        self._positions: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        limit_s = client.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_ms = BLOCK_MS if not limit_s else min(BLOCK_MS, int(limit_s * 400))

    @asynccontextmanager
    async def subscribe(
        self, job_id: str, after: str | None = None
    ) -> AsyncGenerator[AsyncIterator[Event], None]:
        """Give the events of a job from now on, or those after the id `after` as far as they are kept.

        Nothing that happens once the block is entered is missed, so: subscribe, then take the snapshot. The
        iteration ends when the reader is closed or the subscriber is too slow; it may resume by the last id.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        await self._start()
        with self._queue_of([job_id]) as queue:
            events = self._events(job_id, queue, after if after and _ID.match(after) else None)
            async with aclosing(events):
                yield events

    @asynccontextmanager
    async def follow(self, job_ids: Collection[str]) -> AsyncGenerator[AsyncIterator[Event], None]:
        """Give what happens to any of these jobs from now on; it ends as that of `subscribe` does.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        await self._start()
        with self._queue_of(job_ids) as queue:
            events = self._live(queue)
            async with aclosing(events):
                yield events

    @contextmanager
    def _queue_of(self, job_ids: Collection[str]) -> Iterator[asyncio.Queue[Event | None]]:
        """Let a new queue hear of these jobs inside the block."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for name in job_ids:
            self._queues.setdefault(name, set()).add(queue)
        try:
            yield queue
        finally:
            for name in set(job_ids):
                self._queues[name].discard(queue)
                if not self._queues[name]:
                    del self._queues[name]

    async def aclose(self) -> None:
        """Stop reading and end all subscriptions. The client stays open: it is the caller's."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # more than once: a cancel that meets an arriving answer is swallowed by the client
            await asyncio.wait({task}, timeout=0.1)
        for queues in self._queues.values():
            for queue in queues:
                queue.put_nowait(None)

    async def _events(
        self, job_id: str, queue: asyncio.Queue[Event | None], after: str | None
    ) -> AsyncGenerator[Event, None]:
        seen = (0, 0)
        if after is not None:
            seen = _order(after)
            async for event in self._history(job_id, after):
                seen = _order(event.id)
                yield event
        async for live in self._live(queue):
            if _order(live.id) > seen:
                yield live

    async def _live(self, queue: asyncio.Queue[Event | None]) -> AsyncGenerator[Event, None]:
        while (event := await queue.get()) is not None:
            yield event

    async def _history(self, job_id: str, after: str) -> AsyncGenerator[Event, None]:
        stream = stream_of(job_id)
        while True:
            with redis_errors():
                found: Any = await self._client.xrange(stream, min=f"({after}", count=PAGE)
            entries = cast(_Entries, found)
            for entry_id, fields in entries:
                if fields.get("job") == job_id:
                    yield _event(entry_id, fields)
            if len(entries) < PAGE:
                return
            after = entries[-1][0]

    async def _start(self) -> None:
        """Note where the streams end now, then begin to read: later events are not missed."""
        async with self._starting:
            if self._task is not None:
                return
            streams = [f"{LedgerKey.EVENTS}{shard}" for shard in range(EVENT_SHARDS)]
            with redis_errors():
                pipeline = self._client.pipeline(transaction=False)
                for stream in streams:
                    pipeline.xrevrange(stream, count=1)
                newest = await pipeline.execute()
            ends = [entries[0][0] if entries else "0-0" for entries in newest]
            self._positions = dict(zip(streams, ends, strict=True))
            self._task = asyncio.create_task(self._read(), name="event-reader")

    async def _read(self) -> None:
        while True:
            try:
                positions: dict[Any, Any] = dict(self._positions)
                found: Any = await self._client.xread(positions, count=PAGE, block=self._block_ms)
            except (redis.RedisError, OSError):
                await asyncio.sleep(RETRY_S)  # the streams keep what we miss meanwhile
                continue
            for stream, entries in cast(dict[str, _Entries], dict(found or ())).items():
                self._positions[stream] = entries[-1][0]
                for entry_id, fields in entries:
                    self._deliver(entry_id, fields)

    def _deliver(self, entry_id: str, fields: dict[str, str]) -> None:
        queues = self._queues.get(fields.get("job", ""))
        if not queues:
            return
        event = _event(entry_id, fields)
        for queue in queues:
            if queue.qsize() < BACKLOG:
                queue.put_nowait(event)
            elif queue.qsize() == BACKLOG:
                queue.put_nowait(None)


def _event(entry_id: str, fields: dict[str, str]) -> Event:
    return Event(entry_id, fields["job"], fields["type"], json.loads(fields["data"]))


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)
