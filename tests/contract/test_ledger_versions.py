"""Jobs of a later version than the worker's, on both ledgers."""

from __future__ import annotations

from pixelkiln_shared.jobs import Status
from tests.ledger_worlds import LANE, World


def test_a_job_of_a_later_version_is_released_into_a_lane_of_its_own(world: World) -> None:
    first, second = world.submit(2)
    [job] = world.claimed()
    assert world.ledger.release(job.id, job.attempt, version=3) is Status.QUEUED
    assert world.ledger.release(job.id, job.attempt, version=3) is Status.QUEUED  # its answer was lost
    assert [(lane.lane, lane.waiting, lane.running) for lane in world.ledger.lanes()] == [
        (LANE, 1, 0),
        (f"{LANE}@3", 1, 0),
    ]
    assert [one.id for one in world.claimed(max_rows=8)] == [second]
    [again] = world.claimed(lane=f"{LANE}@3")
    assert (again.id, again.attempt) == (first, 2)
    world.ledger.release(again.id, again.attempt, version=2)
    assert world.ledger.get(first).lane == f"{LANE}@2"


def test_a_suspect_of_a_later_version_stays_one(world: World) -> None:
    first, _ = world.submit(2)
    world.claim(max_rows=2)
    world.crash()  # which of the two killed the worker is unknown
    [job] = world.claimed("w2")
    assert job.id == first
    world.ledger.release(job.id, job.attempt, version=2)
    claim = world.claim("w3", max_rows=8, lane=f"{LANE}@2")
    assert claim is not None
    assert (claim.suspect, [one.id for one in claim.jobs]) == (True, [first])


def test_a_cancel_reaches_a_job_in_its_later_lane(world: World) -> None:
    job_id = world.one()
    [job] = world.claimed()
    world.ledger.cancel(job_id)
    assert world.ledger.release(job.id, job.attempt, version=2) is Status.CANCELED
    other = world.one()
    [job] = world.claimed()
    world.ledger.release(job.id, job.attempt, version=2)
    assert world.ledger.cancel(other) is Status.CANCELED
    assert world.ledger.lanes() == []
