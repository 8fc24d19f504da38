"""Events travel from the moves to whoever watches a job, live and after a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import redis

from pixelkiln_shared.events import Event, EventReader, emit
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import RedisLedger, async_redis_client, redis_client
from pixelkiln_shared.ledger.contract import LaneOffer, NewJob
from pixelkiln_shared.settings import Settings

OFFER = LaneOffer(lane="generate.m", max_rows=1)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url)


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    return redis_client(settings)


def submit(client: redis.Redis) -> str:
    job = NewJob(id=new_id("job"), kind=Kind.GENERATE, lane=OFFER.lane, tenant="t", spec="{}", batch_key="k")
    RedisLedger(client).submit([job])
    return job.id


async def first(events: AsyncIterator[Event], count: int) -> list[Event]:
    async def take() -> list[Event]:
        return [await anext(events) for _ in range(count)]

    return await asyncio.wait_for(take(), 5)


def with_reader(settings: Settings, story: Callable[[EventReader], Awaitable[None]]) -> None:
    async def run() -> None:
        client = async_redis_client(settings)
        reader = EventReader(client)
        try:
            await story(reader)
        finally:
            await reader.aclose()
            await client.aclose()

    coroutine: Coroutine[Any, Any, None] = run()
    asyncio.run(coroutine)


def test_a_watcher_hears_each_state_of_its_job(settings: Settings, client: redis.Redis) -> None:
    ledger, job = RedisLedger(client), submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job) as events:
            ledger.claim("w", [OFFER], lease_s=10)
            ledger.publish(job, 1, "{}")
            heard = await first(events, 2)
        assert [(event.type, event.data["status"]) for event in heard] == [
            ("status", "running"),
            ("status", "succeeded"),
        ]

    with_reader(settings, story)


def test_what_was_given_back_is_told_from_what_was_taken_back(
    settings: Settings, client: redis.Redis
) -> None:
    ledger, job = RedisLedger(client), submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job) as events:
            ledger.claim("w", [OFFER], lease_s=10)
            ledger.release(job, 1)
            ledger.claim("w", [OFFER], lease_s=10)
            ledger.lapse("w")
            ledger.reap()
            heard = await first(events, 4)
        queued = [event.data for event in heard if event.data["status"] == "queued"]
        assert [event.get("given_back") for event in queued] == [True, None]

    with_reader(settings, story)


def test_a_watcher_hears_nothing_of_other_jobs(settings: Settings, client: redis.Redis) -> None:
    mine = submit(client)
    others = [new_id("job") for _ in range(40)]

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(mine) as events:
            for other in others:
                emit(client, other, "preview", {"n": 1})
            emit(client, mine, "preview", {"n": 2})
            assert (await first(events, 1))[0].data == {"n": 2}

    with_reader(settings, story)


def test_who_comes_back_with_an_id_hears_what_was_missed_once_and_in_order(
    settings: Settings, client: redis.Redis
) -> None:
    ledger, job = RedisLedger(client), submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job) as events:
            emit(client, job, "preview", {"n": 0})
            seen = (await first(events, 1))[0]
        emit(client, job, "preview", {"n": 1})
        ledger.claim("w", [OFFER], lease_s=10)
        async with reader.subscribe(job, after=seen.id) as events:
            emit(client, job, "preview", {"n": 3})
            heard = [event.data.get("n") or event.data["status"] for event in await first(events, 3)]
            assert heard == [1, "running", 3]

    with_reader(settings, story)


def test_an_id_that_is_none_of_ours_counts_as_none(settings: Settings, client: redis.Redis) -> None:
    job = submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job, after="+ COUNT 1") as events:
            emit(client, job, "error", {"code": "x"})
            assert (await first(events, 1))[0].type == "error"

    with_reader(settings, story)


def test_progress_goes_out_at_most_four_times_a_second(settings: Settings, client: redis.Redis) -> None:
    ledger, job = RedisLedger(client), submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job) as events:
            ledger.claim("w", [OFFER], lease_s=10)
            for step in range(1, 21):
                assert ledger.progress(job, 1, step, 20)
            ledger.publish(job, 1, "{}")
            heard = await first(events, 3)
        assert [event.type for event in heard] == ["status", "progress", "status"]
        assert ledger.get(job).step == 20

    with_reader(settings, story)


def test_closing_the_reader_ends_the_iteration(settings: Settings, client: redis.Redis) -> None:
    job = submit(client)

    async def story(reader: EventReader) -> None:
        async with reader.subscribe(job) as events:
            await reader.aclose()
            assert [event async for event in events] == []

    with_reader(settings, story)
