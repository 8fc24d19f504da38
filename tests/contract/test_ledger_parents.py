"""Jobs that wait for other jobs, on both ledgers."""

from __future__ import annotations

import json

import pytest

from pixelkiln_shared.errors import NotFound, QueueFull
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from tests.ledger_worlds import World, new_job


def chain(world: World, length: int) -> list[str]:
    """Submit jobs in one call, each waiting for the one before."""
    jobs = [new_job()]
    for _ in range(length - 1):
        jobs.append(new_job(kind=Kind.SEGMENT, waits_for=(jobs[-1].id,)))
    world.ledger.submit(jobs)
    return [job.id for job in jobs]


def statuses(world: World, jobs: list[str]) -> list[Status]:
    return [world.ledger.get(job).status for job in jobs]


def test_a_child_waits_until_its_parent_has_succeeded(world: World) -> None:
    parent, child = chain(world, 2)
    assert world.claim(lane="segment.m") is None
    assert statuses(world, [child]) == [Status.BLOCKED]
    world.serve(1)
    assert [job.id for job in world.claimed(lane="segment.m")] == [child]
    assert world.ledger.get(child).waits_for == (parent,)


def test_a_child_of_two_waits_for_both(world: World) -> None:
    parents = world.submit(2)
    child = world.one(kind=Kind.SEGMENT, waits_for=(*parents, parents[0]))
    world.serve(1)
    assert statuses(world, [child]) == [Status.BLOCKED]
    world.serve(1)
    assert statuses(world, [child]) == [Status.QUEUED]


def test_a_parent_that_has_succeeded_holds_nobody_up(world: World) -> None:
    parent = world.one()
    world.serve(1)
    assert statuses(world, [world.one(waits_for=(parent,))]) == [Status.QUEUED]


def test_a_freed_child_keeps_its_place(world: World) -> None:
    parent = world.one(lane="generate.slow")
    child = world.one(waits_for=(parent,))
    later = world.one()
    world.publish(world.claimed(lane="generate.slow"))
    assert world.serve(2) == [child, later]


def test_a_failure_fails_the_whole_chain(world: World) -> None:
    jobs = chain(world, 4)
    world.claim()
    world.ledger.fail(jobs[0], 1, '{"code":"x","message":"y"}')
    assert statuses(world, jobs) == [Status.FAILED] * 4
    assert json.loads(world.ledger.get(jobs[3]).error or "")["code"] == "parent_failed"


def test_a_canceled_parent_fails_its_children(world: World) -> None:
    parent, child = chain(world, 2)
    world.ledger.cancel(parent)
    assert statuses(world, [parent, child]) == [Status.CANCELED, Status.FAILED]


def test_an_expired_parent_fails_its_children(world: World) -> None:
    parent = world.one(start_deadline_s=5)
    child = world.one(waits_for=(parent,))
    world.clock.advance(6)
    reaped = world.ledger.reap()
    assert (reaped.expired, reaped.failed) == ((parent,), (child,))


def test_a_child_of_a_failed_parent_fails_at_once(world: World) -> None:
    parent = world.one()
    world.ledger.cancel(parent)
    assert statuses(world, chain_from(world, parent)) == [Status.FAILED, Status.FAILED]


def chain_from(world: World, parent: str) -> list[str]:
    child = world.one(waits_for=(parent,))
    return [child, world.one(waits_for=(child,))]


def test_a_thousand_children_are_told_in_the_end(world: World) -> None:
    parent = world.one()
    children = world.submit(1_000, waits_for=(parent,))
    world.ledger.cancel(parent)
    while world.ledger.reap().failed:
        pass
    assert set(statuses(world, children)) == {Status.FAILED}


def test_a_blocked_job_may_be_canceled(world: World) -> None:
    parent, child, grandchild = chain(world, 3)
    assert world.ledger.cancel(child) is Status.CANCELED
    assert statuses(world, [grandchild]) == [Status.FAILED]
    world.serve(1)
    assert statuses(world, [parent, child]) == [Status.SUCCEEDED, Status.CANCELED]


def test_a_blocked_job_may_expire(world: World) -> None:
    parent = world.one()
    child = world.one(waits_for=(parent,), start_deadline_s=5)
    world.clock.advance(6)
    assert world.ledger.reap().expired == (child,)
    world.serve(1)
    assert statuses(world, [parent, child]) == [Status.SUCCEEDED, Status.EXPIRED]


def test_a_freed_child_still_has_its_deadline(world: World) -> None:
    parent = world.one(lane="generate.slow")
    child = world.one(waits_for=(parent,), start_deadline_s=5)
    world.publish(world.claimed(lane="generate.slow"))
    world.clock.advance(6)
    assert world.ledger.reap().expired == (child,)


def test_blocked_jobs_have_no_position_and_no_lane(world: World) -> None:
    _, child = chain(world, 2)
    assert world.ledger.position(child) is None
    assert "segment.m" not in world.ledger.waiting()


def test_blocked_jobs_count_towards_the_limit(world: World) -> None:
    chain(world, 3)
    with pytest.raises(QueueFull):
        world.ledger.submit([new_job()], max_waiting=3)


def test_a_parent_must_exist(world: World) -> None:
    good = new_job()
    with pytest.raises(NotFound):
        world.ledger.submit([good, new_job(waits_for=(new_id("job"),))])
    assert world.ledger.get_many([good.id]) == [None]


def test_a_parent_must_come_first(world: World) -> None:
    first, second = new_job(), new_job()
    with pytest.raises(NotFound):
        world.ledger.submit([new_job(id=first.id, waits_for=(second.id,)), second])
    with pytest.raises(NotFound):
        world.ledger.submit([new_job(id=first.id, waits_for=(first.id,))])


def test_somebody_elses_job_is_no_parent(world: World) -> None:
    theirs = world.one(tenant="bert")
    with pytest.raises(NotFound):
        world.one(waits_for=(theirs,))
    mine = new_job(tenant="bert")
    with pytest.raises(NotFound):
        world.ledger.submit([mine, new_job(waits_for=(mine.id,))])


def test_a_retried_child_waits_for_its_retried_parent(world: World) -> None:
    parent, child = chain(world, 2)
    world.ledger.cancel(parent)
    assert world.ledger.retry(child) is Status.FAILED
    assert world.ledger.retry(parent) is Status.QUEUED
    assert world.ledger.retry(child) is Status.BLOCKED
    world.serve(1)
    assert statuses(world, [parent, child]) == [Status.SUCCEEDED, Status.QUEUED]


def test_a_child_canceled_and_retried_waits_for_what_is_left(world: World) -> None:
    parents = world.submit(2)
    child = world.one(kind=Kind.SEGMENT, waits_for=tuple(parents))
    world.ledger.cancel(child)
    world.serve(1)
    assert world.ledger.retry(child) is Status.BLOCKED
    world.serve(1)
    assert statuses(world, [child]) == [Status.QUEUED]


def test_parent_and_child_may_expire_together(world: World) -> None:
    parent = world.one(start_deadline_s=5)
    child = world.one(waits_for=(parent,), start_deadline_s=5)
    world.clock.advance(6)
    assert set(world.ledger.reap().expired) == {parent, child}
    assert statuses(world, [parent, child]) == [Status.EXPIRED] * 2
