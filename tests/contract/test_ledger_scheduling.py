"""Who is next, on both ledgers: classes, tenants, batches, lanes, and how long anybody is passed over."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.ledger.contract import Claim, LaneOffer
from tests.ledger_worlds import LANE, LEASE_S, World, memory_world, new_job

OTHER = "generate.other"


def take(world: World, *offers: LaneOffer, worker: str = "w1") -> Claim:
    claim = world.ledger.claim(worker, offers, lease_s=LEASE_S)
    assert claim is not None
    return claim


def test_a_tenants_own_jobs_run_in_their_order(world: World) -> None:
    jobs = world.submit(5)
    assert world.serve(5) == jobs


def test_twenty_small_tenants_pass_a_large_one(world: World) -> None:
    world.submit(200, tenant="large")
    world.serve(5)
    small = {world.one(tenant=f"t{number:02}") for number in range(20)}
    assert set(world.serve(21)) >= small


def test_tenants_take_turns(world: World) -> None:
    for tenant in ("anna", "bert", "cora"):
        world.submit(6, tenant=tenant)
    served = [world.ledger.get(job).tenant for job in world.serve(12)]
    assert Counter(served) == {"anna": 4, "bert": 4, "cora": 4}


def test_large_jobs_count_for_their_rows(world: World) -> None:
    world.submit(20, tenant="large", rows=4)
    world.submit(20, tenant="small")
    served = Counter(world.ledger.get(job).tenant for job in world.serve(10))
    assert served == {"large": 2, "small": 8}


def test_who_leaves_and_comes_back_does_not_jump_the_queue(world: World) -> None:
    """One job at a time, submitted again as soon as it is served, gets its share and no more."""
    for tenant in ("anna", "bert", "cora"):
        world.submit(20, tenant=tenant)
    served = []
    sly = world.one(tenant="sly")
    for _ in range(24):
        job = world.serve(1)[0]
        served.append(world.ledger.get(job).tenant)
        if job == sly:
            sly = world.one(tenant="sly")
    assert Counter(served)["sly"] <= 7


def test_better_classes_go_first(world: World) -> None:
    bulk = world.one(priority=Priority.BULK)
    standard = world.one()
    interactive = world.one(priority=Priority.INTERACTIVE)
    assert world.serve(3) == [interactive, standard, bulk]


@pytest.mark.parametrize("lower", [Priority.STANDARD, Priority.BULK])
def test_a_lower_class_gets_one_claim_in_eight(world: World, lower: Priority) -> None:
    world.submit(40, priority=Priority.INTERACTIVE)
    world.submit(5, priority=lower)
    classes = [world.ledger.get(job).priority for job in world.serve(40)]
    assert longest_wait(classes, lower) <= 7


def test_both_lower_classes_keep_their_bound_together(world: World) -> None:
    world.submit(80, priority=Priority.INTERACTIVE)
    world.submit(30, priority=Priority.STANDARD)
    world.submit(30, priority=Priority.BULK)
    classes = [world.ledger.get(job).priority for job in world.serve(80)]
    assert longest_wait(classes, Priority.STANDARD) <= 7
    assert longest_wait(classes, Priority.BULK) <= 7


def longest_wait(classes: list[Priority], lower: Priority) -> int:
    gaps, run = [], 0
    for served in classes:
        run = 0 if served is lower else run + 1
        gaps.append(run)
    return max(gaps)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 3)), max_size=40), st.data())
def test_no_waiting_class_is_ever_passed_over_more_than_seven_times(
    arrivals: list[tuple[Priority, int]], data: st.DataObject
) -> None:
    world = memory_world()
    passed = dict.fromkeys(Priority, 0)
    for priority, count in arrivals:
        world.submit(count, priority=priority)
        for _ in range(data.draw(st.integers(0, 3))):
            waiting = {record.priority for record in world.ledger.jobs("anna", status=Status.QUEUED).records}
            for job in world.serve(1):
                served = world.ledger.get(job).priority
                passed = {one: passed[one] + 1 if one in waiting else 0 for one in Priority}
                passed[served] = 0
        assert passed[Priority.STANDARD] <= 7
        assert passed[Priority.BULK] <= 7


def test_a_batch_holds_the_same_key_only(world: World) -> None:
    first = world.one(batch_key="a")
    world.one(batch_key="b")
    third = world.one(batch_key="a")
    assert [job.id for job in world.claimed(max_rows=8)] == [first, third]


def test_a_claim_tells_how_long_each_job_waited_since_it_came_or_came_back(world: World) -> None:
    first = world.one()
    world.clock.advance(2.5)
    world.one()
    world.clock.advance(1.25)
    claimed = world.claimed(max_rows=2)
    assert [job.waited_s for job in claimed] == [3.75, 1.25]
    world.ledger.release(first, claimed[0].attempt)
    world.clock.advance(0.5)
    assert [job.waited_s for job in world.claimed(max_rows=2)] == [0.5]


def test_a_batch_stops_at_its_rows(world: World) -> None:
    jobs = world.submit(5, rows=2)
    assert [job.id for job in world.claimed(max_rows=5)] == jobs[:2]


def test_a_smaller_job_fills_the_place_a_larger_one_cannot(world: World) -> None:
    leader, large, small = world.one(rows=2), world.one(rows=4), world.one(rows=1)
    assert [job.id for job in world.claimed(max_rows=4)] == [leader, small]
    assert world.ledger.get(large).status is Status.QUEUED


def test_a_job_larger_than_the_batch_runs_alone(world: World) -> None:
    large = world.one(rows=9)
    world.one()
    assert [job.id for job in world.claimed(max_rows=4)] == [large]


def test_riders_come_from_any_tenant_and_class(world: World) -> None:
    leader = world.one(tenant="anna", priority=Priority.INTERACTIVE)
    rider = world.one(tenant="bert", priority=Priority.BULK)
    assert [job.id for job in world.claimed(max_rows=8)] == [leader, rider]


def test_a_ride_is_charged_to_the_rider(world: World) -> None:
    world.one(tenant="anna")
    world.submit(8, tenant="bert", batch_key="b")
    riders = world.submit(4, tenant="cora")
    world.publish(world.claimed(max_rows=5))  # anna leads; cora's jobs ride along and cost her four rows
    assert {world.ledger.get(job).status for job in riders} == {Status.SUCCEEDED}
    world.submit(4, tenant="cora", batch_key="c")
    served = [world.ledger.get(job).tenant for job in world.serve(5)]
    assert served == ["bert", "bert", "bert", "bert", "bert"]


def test_top_up_takes_more_of_the_same_key(world: World) -> None:
    world.one(batch_key="a")
    claim = take(world, LaneOffer(lane=LANE, max_rows=4))
    world.one(batch_key="b")
    later = world.submit(3, batch_key="a")
    more = world.ledger.top_up("w1", claim, 2, lease_s=LEASE_S)
    assert [(job.id, job.attempt) for job in more] == [(later[0], 1), (later[1], 1)]
    assert world.ledger.get(later[0]).worker == "w1"
    assert world.ledger.top_up("w1", claim, 0, lease_s=LEASE_S) == ()


def test_resident_lanes_go_before_the_rest(world: World) -> None:
    world.one(lane=OTHER)
    world.one()
    offers = [LaneOffer(lane=OTHER, max_rows=1, resident=False), LaneOffer(lane=LANE, max_rows=1)]
    assert [take(world, *offers).lane for _ in range(2)] == [LANE, OTHER]


def test_a_lane_passed_over_too_long_goes_first(world: World) -> None:
    world.submit(4)
    world.one(lane=OTHER)
    offers = [
        LaneOffer(lane=LANE, max_rows=1),
        LaneOffer(lane=OTHER, max_rows=1, resident=False, max_wait_s=10),
    ]
    assert take(world, *offers).lane == LANE
    world.clock.advance(10)
    assert take(world, *offers).lane == LANE
    world.clock.advance(1)
    assert take(world, *offers).lane == OTHER


def test_a_lane_served_elsewhere_is_not_passed_over(world: World) -> None:
    world.submit(4)
    world.submit(4, lane=OTHER)
    offers = [LaneOffer(lane=LANE, max_rows=1), LaneOffer(lane=OTHER, max_rows=1, resident=False)]
    world.clock.advance(8)
    take(world, LaneOffer(lane=OTHER, max_rows=1), worker="w2")
    world.clock.advance(8)
    take(world, LaneOffer(lane=LANE, max_rows=1), worker="w2")
    assert take(world, *offers).lane == LANE


def test_the_lane_passed_over_longest_goes_first(world: World) -> None:
    world.one(lane=OTHER)
    world.clock.advance(5)
    world.one()
    world.clock.advance(20)
    offers = [LaneOffer(lane=LANE, max_rows=1), LaneOffer(lane=OTHER, max_rows=1, resident=False)]
    assert take(world, *offers).lane == OTHER


def test_among_equal_lanes_the_better_class_then_the_older_job_decides(world: World) -> None:
    world.one()
    world.one(lane=OTHER)
    world.one(lane=OTHER, priority=Priority.INTERACTIVE)
    offers = [LaneOffer(lane=OTHER, max_rows=1), LaneOffer(lane=LANE, max_rows=1)]
    assert [take(world, *offers).lane for _ in range(3)] == [OTHER, LANE, OTHER]


def test_the_position_counts_down_to_the_claim(world: World) -> None:
    jobs = world.submit(5)
    assert [world.ledger.position(job) for job in jobs] == [0, 1, 2, 3, 4]
    world.claim()
    assert [world.ledger.position(job) for job in jobs] == [None, 0, 1, 2, 3]


def test_the_position_of_a_small_tenant_is_near_the_front(world: World) -> None:
    world.submit(50, tenant="large")
    small = world.one(tenant="small")
    place = world.ledger.position(small)
    assert place is not None
    assert place <= 1


def test_better_classes_stand_before_in_the_position(world: World) -> None:
    bulk = world.one(priority=Priority.BULK)
    world.submit(3, priority=Priority.INTERACTIVE)
    assert world.ledger.position(bulk) == 3


def test_lanes_tell_what_waits_runs_and_how_long(world: World) -> None:
    world.submit(3)
    world.clock.advance(4)
    world.submit(2, lane=OTHER)
    world.clock.advance(1)
    world.claim()
    stats = {one.lane: (one.waiting, one.running, one.oldest_s) for one in world.ledger.lanes()}
    assert stats == {LANE: (2, 1, 5.0), OTHER: (2, 0, 1.0)}


def test_idle_lanes_are_not_listed(world: World) -> None:
    world.submit(2)
    world.serve(2)
    assert world.ledger.lanes() == []
    assert world.ledger.waiting() == {}


def test_a_sweep_tells_which_lanes_have_work(world: World) -> None:
    world.submit(3)
    world.one(lane=OTHER)
    assert world.ledger.reap().lanes == {LANE: 3, OTHER: 1}


def test_a_job_alone_in_its_batch_key_takes_no_riders(world: World) -> None:
    jobs = [new_job(batch_key=f"alone:{number}") for number in range(3)]
    world.ledger.submit(jobs)
    assert [job.id for job in world.claimed(max_rows=8)] == [jobs[0].id]
