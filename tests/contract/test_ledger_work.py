"""The sums of work: what waits, what runs, what stands before a job; nothing is left when a lane empties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from pixelkiln_shared.jobs import Priority
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger.contract import Ahead
from tests.ledger_worlds import LANE, LEASE_S, World, new_job, redis_world

OTHER = "generate.other"


def sums(world: World) -> dict[str, tuple[int, int]]:
    """Return the work that waits and that runs, by lane."""
    return {one.lane: (one.work, one.running_work) for one in world.ledger.lanes()}


def test_lanes_tell_the_work_that_waits_and_runs(world: World) -> None:
    world.submit(3, work=700)
    world.submit(2, work=50, lane=OTHER)
    world.claim()
    assert sums(world) == {LANE: (1_400, 700), OTHER: (100, 0)}


def test_a_job_that_waits_for_another_is_no_work_yet(world: World) -> None:
    parent = world.one(work=10)
    world.one(work=90, waits_for=(parent,))
    assert sums(world) == {LANE: (10, 0)}
    world.serve(1)
    assert sums(world) == {LANE: (90, 0)}


def test_riders_and_late_riders_move_their_work(world: World) -> None:
    world.submit(4, work=25)
    claim = world.claim(max_rows=2)
    assert claim is not None
    world.ledger.top_up("w1", claim, 1, lease_s=LEASE_S)
    assert sums(world) == {LANE: (25, 75)}


def test_a_record_tells_its_work(world: World) -> None:
    assert world.ledger.get(world.one(work=123)).work == 123


def cancel_while_it_waits(world: World) -> None:
    world.ledger.cancel(world.one(work=10))


def cancel_while_it_runs(world: World) -> None:
    name = world.one(work=10)
    (job,) = world.claimed()
    world.ledger.cancel(name)
    world.ledger.stopped(name, job.attempt)


def publish(world: World) -> None:
    world.one(work=10)
    world.serve(1)


def fail(world: World) -> None:
    name = world.one(work=10)
    (job,) = world.claimed()
    world.ledger.fail(name, job.attempt, '{"code":"x","message":"y"}')


def release_then_publish(world: World) -> None:
    name = world.one(work=10)
    (job,) = world.claimed()
    world.ledger.release(name, job.attempt)
    assert sums(world) == {LANE: (10, 0)}
    world.serve(1)


def expire(world: World) -> None:
    world.one(work=10, start_deadline_s=1)
    world.clock.advance(2)
    world.ledger.reap()


def kill_three_workers(world: World) -> None:
    world.one(work=10)
    for _ in range(3):
        assert world.claimed()
        world.crash()


def fail_the_parent(world: World) -> None:
    parent = world.one(work=10)
    world.one(work=20, waits_for=(parent,))
    (job,) = world.claimed()
    world.ledger.fail(parent, job.attempt, '{"code":"x","message":"y"}')


def cancel_the_group(world: World) -> None:
    group = "grp_of_the_test"
    world.submit(3, work=10, group=group)
    world.claim()
    world.ledger.cancel_group(group)
    world.crash()


def retry_and_publish(world: World) -> None:
    name = world.one(work=10)
    world.ledger.cancel(name)
    world.ledger.retry(name)
    assert sums(world) == {LANE: (10, 0)}
    world.serve(1)


WAYS = [
    cancel_while_it_waits,
    cancel_while_it_runs,
    publish,
    fail,
    release_then_publish,
    expire,
    kill_three_workers,
    fail_the_parent,
    cancel_the_group,
    retry_and_publish,
]


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
def test_the_sums_return_to_nothing(world: World, leave: Callable[[World], None]) -> None:
    leave(world)
    assert sums(world) == {}


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_kept_of_an_empty_lane(redis_url: str, leave: Callable[[World], None]) -> None:
    with redis_world(redis_url) as world, redis.Redis.from_url(redis_url, decode_responses=True) as client:
        leave(world)
        assert client.hgetall(LedgerKey.WORK) == {}


def test_the_work_before_a_job_counts_down_with_its_position(world: World) -> None:
    jobs = world.submit(4, work=30)
    assert [world.ledger.ahead(job) for job in jobs] == [Ahead(jobs=n, work=30 * n) for n in range(4)]
    world.claim()
    assert world.ledger.ahead(jobs[0]) is None
    assert world.ledger.ahead(jobs[3]) == Ahead(jobs=2, work=60)


def test_work_of_better_classes_is_known_and_of_the_own_class_a_mean(world: World) -> None:
    world.ledger.submit([new_job(work=work, priority=Priority.INTERACTIVE) for work in (1, 1_000)])
    world.ledger.submit([new_job(work=work) for work in (100, 200)])
    last = world.one(work=600)
    assert world.ledger.ahead(last) == Ahead(jobs=4, work=1_001 + 2 * 900 // 3)


def test_a_suspect_waits_for_the_suspects_before_it(world: World) -> None:
    jobs = world.submit(2, work=40)
    world.claimed(max_rows=2)
    world.crash()
    assert [world.ledger.ahead(job) for job in jobs] == [Ahead(jobs=0, work=0), Ahead(jobs=1, work=40)]
