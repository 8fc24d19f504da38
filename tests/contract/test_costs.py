"""Learned costs on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelkiln_shared import keys
from pixelkiln_shared.costs import BATCHES_KEPT, Cost, Costs, Measured
from pixelkiln_shared.errors import RedisUnavailable

LANE, OTHER = "generate.m", "segment.m"


@pytest.fixture(params=[True, False], ids=["text", "bytes"])
def client(request: pytest.FixtureRequest, redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=request.param) as client:
        yield client


def run(costs: Costs, *, work_s: float, batches: int = 1, work: int = 1_000) -> None:
    """Tell of so many batches at this cost."""
    for _ in range(batches):
        costs.learn({LANE: Measured(seconds=work_s * work, work=work, batches=1)})


def known_s(costs: Costs, lane: str = LANE) -> float:
    """Return a lane's cost, which is known."""
    work_s = costs.known()[lane].work_s
    assert work_s is not None
    return work_s


def test_nothing_is_known_at_first(client: redis.Redis) -> None:
    assert Costs(client).known() == {}


def test_one_batch_is_enough_to_know(client: redis.Redis) -> None:
    run(Costs(client), work_s=0.002)
    assert Costs(client).known() == {LANE: Cost(work_s=0.002, load_s=None)}


def test_several_lanes_are_told_in_one_call(client: redis.Redis) -> None:
    costs = Costs(client)
    costs.learn({LANE: Measured(seconds=1, work=10, batches=1), OTHER: Measured(load_s=3.0)})
    assert costs.known() == {LANE: Cost(work_s=0.1), OTHER: Cost(load_s=3.0)}


def test_nothing_measured_is_no_call(client: redis.Redis) -> None:
    Costs(client).learn({})
    assert client.exists(keys.COSTS) == 0


def test_the_cost_is_that_of_all_the_work_and_not_of_the_mean_batch(client: redis.Redis) -> None:
    costs = Costs(client)
    costs.learn({LANE: Measured(seconds=1.0, work=1, batches=1)})
    costs.learn({LANE: Measured(seconds=8.0, work=1_000, batches=1)})
    assert known_s(costs) == pytest.approx(8.0 / 1_000, rel=0.2)


def test_a_faster_device_shows_within_some_dozens_of_batches(client: redis.Redis) -> None:
    costs = Costs(client)
    run(costs, work_s=0.010, batches=100)
    run(costs, work_s=0.001, batches=3 * BATCHES_KEPT)
    assert 0.001 < known_s(costs) < 0.002


def test_one_slow_batch_does_not_turn_the_average(client: redis.Redis) -> None:
    costs = Costs(client)
    run(costs, work_s=0.001, batches=100)
    run(costs, work_s=0.010)
    assert known_s(costs) < 0.002


def test_batches_told_together_weigh_as_if_told_apart(client: redis.Redis) -> None:
    costs = Costs(client)
    run(costs, work_s=0.010, batches=50)
    costs.learn({LANE: Measured(seconds=0.001 * 32_000, work=32_000, batches=32)})
    together = known_s(costs)
    client.delete(keys.COSTS)
    run(costs, work_s=0.010, batches=50)
    run(costs, work_s=0.001, batches=32)
    assert together == pytest.approx(known_s(costs), rel=0.5)


def test_the_newest_load_weighs_half(client: redis.Redis) -> None:
    costs = Costs(client)
    costs.learn({LANE: Measured(load_s=8.0)})
    costs.learn({LANE: Measured(load_s=4.0)})
    run(costs, work_s=0.5)
    assert costs.known() == {LANE: Cost(work_s=0.5, load_s=6.0)}


def test_what_is_known_outlives_the_workers_and_does_not_expire(client: redis.Redis) -> None:
    run(Costs(client), work_s=0.5)
    assert client.ttl(keys.COSTS) == -1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    batches=st.lists(
        st.tuples(st.floats(1e-4, 1e4), st.integers(1, 10**9), st.integers(1, 100)), min_size=1, max_size=8
    )
)
def test_the_cost_lies_between_the_cheapest_and_the_dearest(
    client: redis.Redis, batches: list[tuple[float, int, int]]
) -> None:
    client.delete(keys.COSTS)
    for seconds, work, count in batches:
        Costs(client).learn({LANE: Measured(seconds=seconds, work=work, batches=count)})
    each = [seconds / work for seconds, work, _ in batches]
    assert min(each) * 0.999 <= known_s(Costs(client)) <= max(each) * 1.001


def test_a_silent_redis_is_an_error_of_ours() -> None:
    with redis.Redis(port=1, socket_connect_timeout=0.2) as client:
        for ask in (Costs(client).known, lambda: Costs(client).learn({LANE: Measured(load_s=1)})):
            with pytest.raises(RedisUnavailable):
                ask()
