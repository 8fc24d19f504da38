"""Simulated workers on a real Redis: how long lanes are passed over, and that the twin decides the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from bench.desks import LedgerDesk, VirtualClock, redis_desk
from bench.simulation import Machine, SimJob, SimModel, Simulation
from bench.traces import zipf
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_worker.choices import longest_wait_s, max_wait_s

MODELS = {
    name: SimModel(id=name, load_s=load_s, fixed_s=0.8, per_row_s=0.1, max_batch=4)
    for name, load_s in (("a", 3.0), ("b", 1.0), ("c", 0.0), ("d", 4.0))
}
NAMES = tuple(MODELS)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty database."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.mark.parametrize("room", [1, 2])
def test_under_a_flood_every_lane_is_served_within_the_bound(client: redis.Redis, room: int) -> None:
    flood = [SimJob(id=f"flood_{number}", at_s=0.0, model="a") for number in range(400)]
    trace = flood + zipf(NAMES[1:], jobs=100, per_s=1.0, seed=room)
    desk = redis_desk(client, MODELS)
    Simulation(MODELS, [Machine(id="w1", models=NAMES, memory_bytes=room)], desk).run(trace)
    bound_s = longest_wait_s(
        {name: name for name in NAMES},
        {name: model.load_s for name, model in MODELS.items()},
        {name: model.run_s(model.max_batch) for name, model in MODELS.items()},
    )
    assert max_wait_s(4.0) < max(desk.passed_over_s.values()) < bound_s


def test_nobody_starves_among_workers_of_different_kinds(client: redis.Redis) -> None:
    machines = [
        Machine(id="large", models=NAMES, memory_bytes=3),
        Machine(id="small", models=("a",), memory_bytes=1),
        Machine(id="odd", models=("c", "d"), memory_bytes=1),
    ]
    trace = zipf(NAMES, jobs=400, per_s=8.0, seed=3)
    served = Simulation(MODELS, machines, redis_desk(client, MODELS)).run(trace)
    assert {one.worker for one in served} == {"large", "small", "odd"}
    last_s = {name: max(one.wait_s for one in served if one.job.model == name) for name in NAMES}
    assert max(last_s.values()) < 120, last_s


def test_the_twin_serves_a_trace_in_the_same_order_as_redis(client: redis.Redis) -> None:
    trace = zipf(NAMES, jobs=150, per_s=2.0, seed=4)
    machines = [Machine(id="w1", models=NAMES, memory_bytes=2)]
    clock = VirtualClock()
    desks = (redis_desk(client, MODELS), LedgerDesk(MemoryLedger(clock), clock, MODELS))
    orders = [[one.job.id for one in Simulation(MODELS, machines, desk).run(trace)] for desk in desks]
    assert orders[0] == orders[1]
