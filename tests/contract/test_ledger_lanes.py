"""Who else comes along, and which lane is next when models have to be loaded; on both ledgers."""

from __future__ import annotations

from pixelkiln_shared.jobs import Priority
from pixelkiln_shared.ledger.contract import LaneOffer
from tests.ledger_worlds import LANE, LEASE_S, World

COLD = "generate.cold"


def lane_of_next(world: World, *, holds_s: float | None, max_wait_s: float = 10.0) -> str:
    offers = [
        LaneOffer(lane=LANE, max_rows=1, max_wait_s=1_000, holds_s=holds_s),
        LaneOffer(lane=COLD, max_rows=1, resident=False, max_wait_s=max_wait_s),
    ]
    claim = world.ledger.claim("w1", offers, lease_s=LEASE_S)
    assert claim is not None
    return claim.lane


def cold_is_overdue(world: World) -> None:
    world.one(lane=COLD)
    world.clock.advance(20)


def test_a_loaded_lane_that_holds_keeps_an_overdue_one_from_loading(world: World) -> None:
    cold_is_overdue(world)
    world.submit(2)
    assert lane_of_next(world, holds_s=0) == LANE
    assert lane_of_next(world, holds_s=None) == COLD


def test_a_job_that_came_too_late_does_not_hold(world: World) -> None:
    cold_is_overdue(world)
    world.submit(2)
    world.clock.advance(3)
    assert lane_of_next(world, holds_s=3) == LANE
    assert lane_of_next(world, holds_s=3.001) == COLD


def test_a_lane_without_jobs_does_not_hold(world: World) -> None:
    cold_is_overdue(world)
    assert lane_of_next(world, holds_s=0) == COLD


def test_the_best_class_decides_whether_a_lane_holds(world: World) -> None:
    world.one(priority=Priority.BULK)
    cold_is_overdue(world)
    world.one(priority=Priority.INTERACTIVE)
    assert lane_of_next(world, holds_s=20) == COLD


def test_a_hold_does_not_keep_a_loaded_lane_from_being_overdue(world: World) -> None:
    other = "generate.other"
    world.one(lane=other)
    world.clock.advance(20)
    world.one()
    offers = [LaneOffer(lane=LANE, max_rows=1, holds_s=0), LaneOffer(lane=other, max_rows=1)]
    claim = world.ledger.claim("w1", offers, lease_s=LEASE_S)
    assert claim is not None
    assert claim.lane == other


def test_a_job_given_back_has_waited_since_then(world: World) -> None:
    claim = world.claim()
    assert claim is None
    world.one()
    world.clock.advance(30)
    for job in world.claimed():
        world.ledger.release(job.id, job.attempt)
    world.one(lane=COLD)
    world.clock.advance(11)
    assert lane_of_next(world, holds_s=20) == COLD


def test_riders_take_turns_as_leaders_do(world: World) -> None:
    world.submit(200, tenant="large")
    world.publish(world.claimed(max_rows=8))
    small = {world.one(tenant=f"t{number:02}") for number in range(20)}
    claims = [world.claimed(max_rows=8) for _ in range(3)]
    assert {job.id for jobs in claims for job in jobs} >= small


def test_riders_of_a_better_class_go_first(world: World) -> None:
    leader = world.one(priority=Priority.INTERACTIVE)
    bulk = world.one(tenant="bert", priority=Priority.BULK)
    standard = world.one(tenant="cora")
    assert [job.id for job in world.claimed(max_rows=2)] == [leader, standard]
    assert [job.id for job in world.claimed(max_rows=2)] == [bulk]


def test_a_rider_may_stand_behind_a_job_of_another_key(world: World) -> None:
    leader = world.one(tenant="anna", batch_key="a")
    other = world.one(tenant="bert", batch_key="b")
    behind = world.one(tenant="bert", batch_key="a")
    assert [job.id for job in world.claimed(max_rows=2)] == [leader, behind]
    assert [job.id for job in world.claimed(max_rows=2)] == [other]


def test_who_comes_on_board_late_takes_turns_too(world: World) -> None:
    world.submit(50, tenant="large")
    claim = world.claim(max_rows=1)
    assert claim is not None
    small = world.one(tenant="small")
    more = world.ledger.top_up("w1", claim, 2, lease_s=LEASE_S)
    assert small in [job.id for job in more]
