"""Listings, groups, counters and forgetting, on both ledgers."""

from __future__ import annotations

import pytest

from pixelkiln_shared.errors import AlreadyTerminal, NotFound
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Kind
from tests.ledger_worlds import RETENTION_S, World, new_job


def listed(world: World, **filters: object) -> list[str]:
    page = world.ledger.jobs("anna", **filters)  # type: ignore[arg-type]
    return [record.id for record in page.records]


def all_pages(world: World, limit: int, **filters: object) -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = world.ledger.jobs("anna", limit=limit, after=after, **filters)  # type: ignore[arg-type]
        found += [record.id for record in page.records]
        assert len(page.records) <= limit
        if page.after is None:
            return found
        after = page.after


def test_the_newest_come_first(world: World) -> None:
    jobs = world.submit(5)
    assert listed(world) == jobs[::-1]
    assert listed(world, limit=2) == jobs[:2:-1]


def test_pages_follow_each_other_without_gap_or_repeat(world: World) -> None:
    jobs = world.submit(7) + world.submit(6, kind=Kind.SEGMENT)
    world.serve(3)
    world.ledger.cancel(jobs[4])
    for limit in (1, 2, 13, 50):
        assert all_pages(world, limit) == jobs[::-1]


def test_new_jobs_do_not_disturb_the_pages(world: World) -> None:
    jobs = world.submit(4)
    page = world.ledger.jobs("anna", limit=2)
    world.submit(3)
    rest = world.ledger.jobs("anna", limit=2, after=page.after)
    assert [record.id for record in (*page.records, *rest.records)] == jobs[::-1]


def test_a_listing_is_the_tenants_own(world: World) -> None:
    mine = world.one()
    world.one(tenant="bert")
    assert listed(world) == [mine]


def test_filters_combine(world: World) -> None:
    done = world.one(group="g")
    world.serve(1)
    waiting = world.one(group="g")
    picture = world.one(kind=Kind.SEGMENT, group="g")
    outside = world.one()
    assert listed(world, status=Status.SUCCEEDED) == [done]
    assert listed(world, status=Status.QUEUED) == [outside, picture, waiting]
    assert listed(world, kind=Kind.SEGMENT) == [picture]
    assert listed(world, group="g") == [picture, waiting, done]
    assert listed(world, group="g", status=Status.QUEUED, kind=Kind.GENERATE) == [waiting]
    assert listed(world, group="nobody") == []


def test_somebody_elses_group_lists_nothing(world: World) -> None:
    world.one(tenant="bert", group="g")
    assert listed(world, group="g") == []


def test_counts_follow_each_move(world: World) -> None:
    jobs = world.submit(4)
    world.claim(max_rows=2)
    world.ledger.publish(jobs[0], 1, "{}")
    world.ledger.cancel(jobs[1])
    world.ledger.cancel(jobs[2])
    counts = world.ledger.counts("anna")
    assert {status: count for status, count in counts.items() if count} == {
        Status.SUCCEEDED: 1,
        Status.CANCELING: 1,
        Status.CANCELED: 1,
        Status.QUEUED: 1,
    }
    assert set(counts) == set(Status)
    assert sum(world.ledger.counts("nobody").values()) == 0


def test_a_group_counts_its_jobs_by_state(world: World) -> None:
    jobs = world.submit(5, group="g")
    world.serve(2)
    world.ledger.cancel(jobs[4])
    group = world.ledger.group("g")
    assert (group.id, group.tenant, group.total) == ("g", "anna", 5)
    assert (group.counts[Status.SUCCEEDED], group.counts[Status.CANCELED]) == (2, 1)
    assert sum(group.counts.values()) == group.total


def test_a_group_may_grow(world: World) -> None:
    world.one(group="g")
    created = world.ledger.group("g").created_at
    world.clock.advance(5)
    world.one(group="g")
    group = world.ledger.group("g")
    assert (group.total, group.created_at) == (2, created)


def test_a_group_belongs_to_one_tenant(world: World) -> None:
    world.one(group="g")
    with pytest.raises(NotFound):
        world.one(tenant="bert", group="g")
    assert world.ledger.group("g").total == 1


def test_an_unknown_group_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        world.ledger.group("g")


def test_a_group_is_canceled_in_bounded_steps(world: World) -> None:
    jobs = world.submit(5, group="g")
    world.one()
    world.claim()
    assert [world.ledger.cancel_group("g", limit=3) for _ in range(3)] == [3, 2, 0]
    assert {world.ledger.get(job).status for job in jobs} == {Status.CANCELED, Status.CANCELING}
    assert world.ledger.counts("anna")[Status.QUEUED] == 1
    assert world.ledger.cancel_group("nobody") == 0


def test_a_deleted_job_leaves_no_trace(world: World) -> None:
    jobs = world.submit(2, group="g")
    world.serve(2)
    world.ledger.delete(jobs[0])
    with pytest.raises(NotFound):
        world.ledger.get(jobs[0])
    assert listed(world) == [jobs[1]]
    assert world.ledger.counts("anna")[Status.SUCCEEDED] == 1
    assert world.ledger.group("g").total == 1


def test_a_group_goes_with_its_last_job(world: World) -> None:
    job = world.one(group="g")
    world.serve(1)
    world.ledger.delete(job)
    with pytest.raises(NotFound):
        world.ledger.group("g")
    world.one(tenant="bert", group="g")
    assert world.ledger.group("g").tenant == "bert"


def test_a_job_that_has_not_ended_is_not_deleted(world: World) -> None:
    job = world.one()
    with pytest.raises(AlreadyTerminal) as waiting:
        world.ledger.delete(job)
    assert waiting.value.code == "not_terminal"
    world.claim()
    with pytest.raises(AlreadyTerminal):
        world.ledger.delete(job)


def test_a_finished_record_is_forgotten_after_its_retention(world: World) -> None:
    job = world.one(group="g")
    short = world.one(group="g", retention_s=60)
    waiting = world.one()
    world.serve(2, max_rows=1)
    world.clock.advance(60)
    world.ledger.reap()
    assert listed(world) == [waiting, job]
    world.clock.advance(RETENTION_S - 60)
    world.ledger.reap()
    assert listed(world) == [waiting]
    assert world.ledger.get_many([job, short]) == [None, None]
    with pytest.raises(NotFound):
        world.ledger.group("g")


def test_a_retried_job_is_kept(world: World) -> None:
    job = world.one()
    world.ledger.cancel(job)
    world.ledger.retry(job)
    world.clock.advance(RETENTION_S + 1)
    world.ledger.reap()
    assert world.ledger.get(job).status is Status.QUEUED


def test_the_counters_stay_true_when_a_thousand_records_go(world: World) -> None:
    world.ledger.submit([new_job(group="g") for _ in range(1_000)])
    world.one(group="g", lane="generate.other")
    while world.ledger.cancel_group("g", limit=400):
        pass
    assert world.ledger.group("g").counts[Status.CANCELED] == 1_001
    world.clock.advance(RETENTION_S)
    world.ledger.reap()
    assert sum(world.ledger.counts("anna").values()) == 0
