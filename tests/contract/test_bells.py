"""Both bells, the real ones on a real Redis, hold to one contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from pixelkiln_shared.bells import CAP, Bells, CeleryBells, make_app, queue_key
from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.testing.bells import MemoryBells

LANE = "generate.stub"


@dataclass(frozen=True)
class Tower:
    """Bells with two hands: how many hang in a lane, and take one away."""

    bells: Bells
    count: Callable[[str], int]
    take: Callable[[str], object]


@pytest.fixture(params=["memory", "celery"])
def tower(request: pytest.FixtureRequest) -> Iterator[Tower]:
    if request.param == "memory":
        memory = MemoryBells()
        yield Tower(memory, lambda lane: memory.queues[lane], memory.hear)
        return
    url = request.getfixturevalue("redis_url")
    app = make_app(Settings(redis_url=url))
    with redis.Redis.from_url(url) as client:
        yield Tower(
            CeleryBells(app, client),
            lambda lane: int(client.llen(queue_key(lane))),
            lambda lane: client.rpop(queue_key(lane)),
        )
    app.close()


def test_a_lane_gets_one_bell_for_each_waiting_job(tower: Tower) -> None:
    assert tower.bells.ring({LANE: 3}) == 3
    assert tower.count(LANE) == 3


def test_ringing_again_adds_only_what_is_missing(tower: Tower) -> None:
    tower.bells.ring({LANE: 3})
    tower.take(LANE)
    assert tower.bells.ring({LANE: 5}) == 3
    assert tower.count(LANE) == 5


def test_a_lane_never_holds_more_bells_than_the_cap(tower: Tower) -> None:
    assert tower.bells.ring({LANE: 100_000}) == CAP
    assert tower.bells.ring({LANE: 100_000}) == 0


def test_bells_are_not_taken_away_when_less_waits(tower: Tower) -> None:
    tower.bells.ring({LANE: 5})
    assert tower.bells.ring({LANE: 1}) == 0
    assert tower.count(LANE) == 5


def test_hushing_takes_away_what_no_job_waits_for(tower: Tower) -> None:
    tower.bells.ring({LANE: 9, "segment.other": 3, "segment.untouched": 2})
    assert tower.bells.hush({LANE: 4, "segment.other": 0}) == 8
    assert (tower.count(LANE), tower.count("segment.other"), tower.count("segment.untouched")) == (4, 0, 2)
    assert tower.bells.hush({LANE: 4}) == 0


def test_lanes_do_not_share_bells(tower: Tower) -> None:
    assert tower.bells.ring({LANE: 2, "segment.other": 1, "segment.idle": 0}) == 3
    assert (tower.count(LANE), tower.count("segment.other"), tower.count("segment.idle")) == (2, 1, 0)


def test_nothing_waiting_rings_nothing(tower: Tower) -> None:
    assert tower.bells.ring({}) == 0


def test_a_bell_is_the_message_that_celery_itself_would_send(redis_url: str) -> None:
    app = make_app(Settings(redis_url=redis_url))
    with redis.Redis.from_url(redis_url) as client:
        app.send_task("pixelkiln.generate", args=[LANE], queue=LANE)
        theirs = json.loads(client.rpop(queue_key(LANE)))
        CeleryBells(app, client).ring({LANE: 2})
        ours, second = (json.loads(client.rpop(queue_key(LANE))) for _ in range(2))
    app.close()
    assert ours["body"] == theirs["body"]
    assert ours.keys() == theirs.keys()
    assert ours["headers"].keys() == theirs["headers"].keys()
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["headers"]["task"] == "pixelkiln.generate"
    assert ours["headers"]["id"] == ours["properties"]["correlation_id"] != second["headers"]["id"]
    assert ours["properties"]["delivery_tag"] != second["properties"]["delivery_tag"]


def test_a_dead_broker_is_a_typed_error() -> None:
    app = make_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    with redis.Redis(port=1, socket_timeout=1) as client, pytest.raises(RedisUnavailable):
        CeleryBells(app, client).ring({LANE: 1})
    app.close()
