"""Who is to blame when a worker dies, on both ledgers: the poison job ends, an innocent one never does."""

from __future__ import annotations

import json

import pytest

from pixelkiln_shared.errors import LeaseLost
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Claimed, LaneOffer
from pixelkiln_shared.ledger.scripts import SUSPECT_PATIENCE_MS
from tests.ledger_worlds import LANE, LEASE_S, World

OTHER = "generate.other"


def test_a_job_that_dies_alone_gets_a_strike(world: World) -> None:
    job = world.one()
    world.claim()
    world.clock.advance(LEASE_S + 1)
    assert world.ledger.reap().requeued == (job,)
    record = world.ledger.get(job)
    assert (record.status, record.strikes, record.suspect) == (Status.QUEUED, 1, True)


def test_jobs_that_die_together_become_suspects_without_a_strike(world: World) -> None:
    jobs = world.submit(3)
    world.claim(max_rows=3)
    world.clock.advance(LEASE_S + 1)
    assert set(world.ledger.reap().requeued) == set(jobs)
    assert {(record.strikes, record.suspect) for record in map(world.ledger.get, jobs)} == {(0, True)}


def test_the_company_counts_although_the_leases_end_apart(world: World) -> None:
    first, second = world.submit(2)
    world.claim()
    world.clock.advance(5)
    world.claim()
    world.clock.advance(LEASE_S - 4)
    assert world.ledger.reap().requeued == (first,)
    world.clock.advance(5)
    assert world.ledger.reap().requeued == (second,)
    assert [world.ledger.get(job).strikes for job in (first, second)] == [0, 0]


def test_a_job_that_outlived_its_company_dies_alone(world: World) -> None:
    first, second = world.submit(2)
    world.claim(max_rows=2)
    world.ledger.publish(first, 1, "{}")
    world.crash()
    assert world.ledger.get(second).strikes == 1


def test_a_death_that_was_seen_is_judged_at_once(world: World) -> None:
    first, second = world.submit(2)
    world.claim("w1")
    world.claim("w2")
    assert world.ledger.lapse("w1") == 1
    assert world.ledger.reap().requeued == (first,)
    assert [world.ledger.get(job).strikes for job in (first, second)] == [1, 0]
    assert world.ledger.get(second).status is Status.RUNNING


def test_company_counts_in_a_death_that_was_seen(world: World) -> None:
    jobs = world.submit(3)
    world.claim(max_rows=2)
    world.claim()
    assert world.ledger.lapse("w1") == 3
    assert set(world.ledger.reap().requeued) == set(jobs)
    assert {(record.strikes, record.suspect) for record in map(world.ledger.get, jobs)} == {(0, True)}


def test_a_worker_taken_for_dead_can_no_longer_publish(world: World) -> None:
    job = world.one()
    world.claim()
    world.ledger.lapse("w1")
    world.ledger.reap()
    with pytest.raises(LeaseLost):
        world.ledger.publish(job, 1, "{}")


def test_a_worker_that_holds_nothing_dies_without_a_trace(world: World) -> None:
    job = world.one()
    assert world.ledger.lapse("w1") == 0
    assert world.ledger.reap().requeued == ()
    assert world.ledger.get(job).status is Status.QUEUED


def test_a_suspect_whose_result_only_waits_for_the_store_keeps_its_worker_from_nothing(world: World) -> None:
    suspects(world, 2)
    innocent = world.one()
    [first] = world.claimed()
    assert world.claim() is None
    world.ledger.shelve(first.id, first.attempt)
    [other] = world.claimed()
    assert other.id == innocent
    world.ledger.shelve(other.id, other.attempt)
    claim = world.claim()
    assert claim is not None
    assert claim.suspect
    assert world.claim() is None  # this one runs
    world.publish([first, other, *claim.jobs])


def test_a_death_is_not_blamed_on_a_job_that_had_run(world: World) -> None:
    ran, runs = world.submit(2)
    world.claim()
    world.ledger.shelve(ran, 1)
    world.claim()
    world.ledger.lapse("w1")
    assert set(world.ledger.reap().requeued) == {ran, runs}
    told = [(record.strikes, record.suspect) for record in map(world.ledger.get, (ran, runs))]
    assert told == [(0, False), (1, True)]  # the other one was alone


def test_a_suspect_that_had_run_keeps_its_strikes_and_gets_no_other(world: World) -> None:
    job = world.one()
    world.claim()
    world.crash()
    world.claim()
    world.ledger.shelve(job, 2)
    world.crash()
    record = world.ledger.get(job)
    assert (record.status, record.strikes, record.suspect) == (Status.QUEUED, 1, True)
    world.claim()
    world.crash()
    assert world.ledger.get(job).strikes == 2  # the attempt after that is judged as any other


def test_jobs_that_run_beside_results_that_wait_are_each_others_company(world: World) -> None:
    ran, *runs = world.submit(3)
    world.claim()
    world.ledger.shelve(ran, 1)
    world.claim(max_rows=2)
    world.crash()
    assert {(record.strikes, record.suspect) for record in map(world.ledger.get, runs)} == {(0, True)}
    assert world.ledger.get(ran).suspect is False


def test_only_the_newest_attempt_is_said_to_have_run(world: World) -> None:
    job = world.one()
    world.claim()
    world.crash()
    with pytest.raises(LeaseLost):
        world.ledger.shelve(job, 1)
    world.claim("w2")
    with pytest.raises(LeaseLost):
        world.ledger.shelve(job, 1)
    world.crash()
    assert world.ledger.get(job).strikes == 2


def test_the_third_strike_ends_the_job_as_a_dead_letter(world: World) -> None:
    poison = world.one()
    for attempt in (1, 2, 3):
        assert [job.attempt for job in world.claimed(f"w{attempt}")] == [attempt]
        world.clock.advance(LEASE_S + 1)
        reaped = world.ledger.reap()
    assert reaped.failed == (poison,)
    record = world.ledger.get(poison)
    assert (record.status, record.strikes) == (Status.FAILED, 3)
    assert json.loads(record.error or "")["code"] == "worker_crashed"
    assert [letter.id for letter in world.ledger.dead_letters()] == [poison]
    assert world.claim() is None


def test_a_retried_dead_letter_starts_clean_but_still_alone(world: World) -> None:
    poison = world.one()
    for number in range(3):
        world.claim(f"w{number}")
        world.crash()
    world.ledger.retry(poison)
    record = world.ledger.get(poison)
    assert (record.status, record.strikes, record.suspect) == (Status.QUEUED, 0, True)
    assert world.ledger.dead_letters() == []


def suspects(world: World, count: int) -> list[str]:
    """Make suspects: jobs that died together."""
    jobs = world.submit(count)
    assert len(world.claimed("dead", max_rows=count)) == count
    world.crash()
    return jobs


def test_a_suspect_runs_alone(world: World) -> None:
    jobs = suspects(world, 2)
    world.submit(2)
    claim = world.claim(max_rows=8)
    assert claim is not None
    assert claim.suspect
    assert [job.id for job in claim.jobs] == jobs[:1]


def test_who_holds_a_suspect_is_given_nothing(world: World) -> None:
    suspects(world, 2)
    world.submit(2)
    claim = world.claim()
    assert claim is not None
    assert world.claim() is None
    assert world.ledger.top_up("w1", claim, 4, lease_s=LEASE_S) == ()
    world.publish(claim.jobs)
    assert world.claim() is not None


def test_who_holds_something_is_given_no_suspect(world: World) -> None:
    suspects(world, 2)
    world.one(lane=OTHER)
    world.claim(lane=OTHER)
    assert world.claim() is None
    assert world.claim("w2") is not None


def test_a_suspect_is_never_a_rider(world: World) -> None:
    jobs = suspects(world, 2)
    world.submit(3)
    world.publish(world.claimed())  # a suspect; the next turn is for the others
    claim = world.claim(max_rows=8)
    assert claim is not None
    assert len(claim.jobs) == 3
    assert world.ledger.top_up("w1", claim, 4, lease_s=LEASE_S) == ()
    assert world.ledger.get(jobs[1]).status is Status.QUEUED


def test_suspects_and_others_take_turns(world: World) -> None:
    guilty = set(suspects(world, 3))
    world.submit(3)
    assert [job in guilty for job in world.serve(6)] == [True, False, True, False, True, False]


def test_an_innocent_job_in_a_poisoned_batch_succeeds(world: World) -> None:
    poison, *innocent = world.submit(4)
    for number in range(40):
        jobs = world.claimed(f"w{number}", max_rows=4)
        if any(job.id == poison for job in jobs):
            world.crash()
        else:
            world.publish(jobs)
    assert world.ledger.get(poison).status is Status.FAILED
    assert {world.ledger.get(job).status for job in innocent} == {Status.SUCCEEDED}


def test_a_suspect_released_on_shutdown_is_not_struck(world: World) -> None:
    jobs = suspects(world, 2)
    world.claim()
    world.ledger.release(jobs[0], 2)
    record = world.ledger.get(jobs[0])
    assert (record.strikes, record.suspect, record.status) == (0, True, Status.QUEUED)


def test_under_load_one_worker_drains_for_a_suspect_and_the_others_go_on(world: World) -> None:
    offer = [LaneOffer(lane=LANE, max_rows=1)]

    def busy(worker: str) -> list[Claimed]:
        claim = world.ledger.claim(worker, offer, lease_s=600)
        return list(claim.jobs) if claim else []

    suspect = world.submit(20)[0]
    world.claim("dead")
    held = busy("w1")
    assert len(busy("w2")) == 1
    world.crash()
    world.clock.advance(SUSPECT_PATIENCE_MS / 1_000 - 0.1)
    held += busy("w1")
    assert len(held) == 2  # somebody may still be idle soon
    world.clock.advance(0.1)
    assert busy("w1") == []  # asked to finish what it holds
    assert len(busy("w2")) == 1
    world.publish(held)
    claim = world.claim("w1", max_rows=8)
    assert claim is not None
    assert (claim.suspect, [job.id for job in claim.jobs]) == (True, [suspect])
    assert len(busy("w2")) == 1
