"""The fleet's register on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from pixelkiln_shared import keys
from pixelkiln_shared.errors import NotFound, RedisUnavailable
from pixelkiln_shared.fleet import Fleet, LoadedModel, State, WorkerInfo, unavailable

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(params=[True, False], ids=["text", "bytes"])
def client(request: pytest.FixtureRequest, redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=request.param) as client:
        yield client


def worker(name: str, *, lanes: tuple[str, ...] = (), state: State = "ready", minutes: int = 0) -> WorkerInfo:
    return WorkerInfo(
        id=name,
        host="host",
        pid=7,
        device="cpu",
        state=state,
        lanes=lanes,
        started_at=NOON + timedelta(minutes=minutes),
        version="0.1.0",
    )


def test_a_report_comes_back_whole(client: redis.Redis) -> None:
    loaded = (LoadedModel(id="stub", footprint_bytes=7, load_s=0.5),)
    info = worker("w1", lanes=("generate.stub",)).model_copy(
        update={"loaded": loaded, "unavailable": {"b": "no"}}
    )
    Fleet(client).report(info)
    assert Fleet(client).workers() == [info]


def test_workers_are_listed_oldest_first(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("a", minutes=5))
    fleet.report(worker("b"))
    assert [info.id for info in fleet.workers()] == ["b", "a"]


def test_a_silent_worker_disappears(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("w1"))
    assert 0 < client.ttl(keys.worker("w1")) <= keys.WORKER_S
    client.delete(keys.worker("w1"))  # what the lifetime does
    assert fleet.workers() == []
    assert client.scard(keys.WORKERS) == 0


def test_leaving_is_seen_at_once_and_may_be_repeated(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("w1"))
    fleet.leave("w1")
    fleet.leave("w1")
    assert fleet.workers() == []


def test_a_model_is_unavailable_when_every_worker_that_serves_it_says_so(client: redis.Redis) -> None:
    def serving(name: str, **why: str) -> WorkerInfo:
        return worker(name).model_copy(update={"models": ("a", "b"), "unavailable": why})

    assert unavailable([serving("w1", a="no file"), serving("w2", a="too large")], "a") == "no file"
    assert unavailable([serving("w1", a="no file"), serving("w2")], "a") is None
    assert unavailable([serving("w1", a="no file")], "b") is None
    assert unavailable([], "a") is None


def test_only_ready_workers_serve_their_lanes(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("w1", lanes=("generate.a", "segment.b")))
    fleet.report(worker("w2", lanes=("generate.c",), state="draining"))
    fleet.report(worker("w3", lanes=("generate.d",), state="refusing"))
    assert fleet.served_lanes() == {"generate.a", "segment.b", "generate.d"}


def test_a_report_of_another_version_hides_nobody(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("w1"))
    client.sadd(keys.WORKERS, "future")
    client.set(keys.worker("future"), '{"id": "future"}')
    assert [info.id for info in fleet.workers()] == ["w1"]


def test_a_dead_redis_is_a_typed_error() -> None:
    with redis.Redis(port=1, socket_timeout=1) as client, pytest.raises(RedisUnavailable):
        Fleet(client).workers()


def test_an_asked_worker_hears_it_with_its_next_report(client: redis.Redis) -> None:
    fleet = Fleet(client)
    assert not fleet.report(worker("w1"))
    assert fleet.drain("w1") == fleet.drain("w1") == worker("w1")
    assert fleet.report(worker("w1"))
    assert fleet.unwanted("w1")
    assert not fleet.report(worker("w2"))


def test_the_wish_ends_with_the_worker_or_after_an_hour(client: redis.Redis) -> None:
    fleet = Fleet(client)
    fleet.report(worker("w1"))
    fleet.drain("w1")
    assert 0 < client.ttl(keys.drain("w1")) <= keys.DRAIN_S
    fleet.leave("w1")
    assert not fleet.unwanted("w1")


def test_a_worker_that_is_not_there_cannot_be_asked(client: redis.Redis) -> None:
    with pytest.raises(NotFound):
        Fleet(client).drain("w1")
    assert client.exists(keys.drain("w1")) == 0
