"""What a process holds, and how each job leaves it exactly once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pixelkiln_shared.errors import JobError, RedisUnavailable
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Claim, LaneOffer
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_worker.held import Gone, Held, HeldJob
from tests.worker_processes import new_job, stub_spec

RESULT = '{"artifacts": []}'


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> MemoryLedger:
    return MemoryLedger(clock)


@pytest.fixture
def held(ledger: MemoryLedger) -> Held:
    return Held(ledger)


def claim(ledger: MemoryLedger, worker: str = "w1") -> Claim:
    claimed = ledger.claim(worker, [LaneOffer(lane="generate.stub", max_rows=8)], lease_s=10)
    assert claimed is not None
    return claimed


@pytest.fixture
def job(ledger: MemoryLedger, held: Held) -> HeldJob:
    ledger.submit([new_job(stub_spec())])
    [job] = held.take(claim(ledger).jobs)
    return job


@pytest.mark.parametrize(
    ("reason", "status"),
    [(Gone.DRAINED, Status.QUEUED), (Gone.TIMED_OUT, Status.FAILED)],
)
def test_the_reason_decides_the_move(
    ledger: MemoryLedger, held: Held, job: HeldJob, reason: Gone, status: Status
) -> None:
    held.leave([job.id], reason)
    held.settle(job)
    assert ledger.get(job.id).status is status
    assert held.jobs() == []


def test_a_cancel_is_confirmed(ledger: MemoryLedger, held: Held, job: HeldJob) -> None:
    ledger.cancel(job.id)
    held.leave([job.id], Gone.CANCELED)
    held.settle(job)
    assert ledger.get(job.id).status is Status.CANCELED


def test_the_first_reason_stays(held: Held, job: HeldJob) -> None:
    held.leave([job.id], Gone.CANCELED)
    held.leave([job.id], Gone.DRAINED)
    assert job.gone is Gone.CANCELED


def test_a_job_is_settled_once(ledger: MemoryLedger, held: Held, job: HeldJob) -> None:
    assert held.publish([(job, RESULT)]) == [True]
    held.fail(job, JobError("too late"))
    assert ledger.get(job.id).status is Status.SUCCEEDED


def test_a_fenced_attempt_moves_nothing(ledger: MemoryLedger, held: Held, job: HeldJob, clock: Clock) -> None:
    clock.now += 11
    ledger.reap()
    claim(ledger, "w2")
    assert held.publish([(job, RESULT)]) == [False]
    assert job.gone is Gone.LOST
    assert ledger.get(job.id).status is Status.RUNNING
    assert held.jobs() == []


def test_of_several_results_each_counts_by_itself(ledger: MemoryLedger, held: Held, clock: Clock) -> None:
    ledger.submit([new_job(stub_spec(name)) for name in ("a", "b", "c")])
    ours, canceled, fenced = held.take(claim(ledger).jobs)
    ledger.cancel(canceled.id)
    ledger.fail(fenced.id, fenced.attempt, "{}")
    assert held.publish([(fenced, RESULT), (canceled, RESULT), (ours, RESULT)]) == [False, False, True]
    assert ledger.get(ours.id).status is Status.SUCCEEDED
    assert ledger.get(canceled.id).status is Status.CANCELED
    assert fenced.gone is Gone.LOST
    assert held.jobs() == []


def test_an_outage_settles_nothing_and_may_be_tried_again(
    ledger: MemoryLedger, held: Held, job: HeldJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Status:
        raise RedisUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "publish_many", away)
        with pytest.raises(RedisUnavailable):
            held.publish([(job, RESULT)])
    assert held.pairs() == [(job.id, 1)]
    assert held.publish([(job, RESULT)]) == [True]


def test_a_fenced_attempt_that_had_run_is_lost(
    ledger: MemoryLedger, held: Held, job: HeldJob, clock: Clock
) -> None:
    clock.now += 20
    ledger.reap()
    held.shelve(job)
    assert (job.gone, held.jobs()) == (Gone.LOST, [])


def test_the_error_of_a_timeout_says_how_to_mend_it(ledger: MemoryLedger, held: Held, job: HeldJob) -> None:
    held.leave([job.id], Gone.TIMED_OUT)
    held.settle(job)
    error = json.loads(ledger.get(job.id).error or "")
    assert error["code"] == "timeout"
    assert "run_timeout_s" in error["message"]


def test_a_job_handed_to_us_again_replaces_its_older_attempt(
    ledger: MemoryLedger, held: Held, job: HeldJob, clock: Clock
) -> None:
    clock.now += 11
    ledger.reap()
    [newer] = held.take(claim(ledger).jobs)
    assert job.gone is Gone.LOST
    assert held.jobs() == [newer]


def test_waiting_until_nothing_is_held(held: Held, job: HeldJob) -> None:
    assert not held.wait_until_empty(0.01)
    held.publish([(job, RESULT)])
    assert held.wait_until_empty(0.01)


def test_a_job_of_a_later_version_is_left_to_others(ledger: MemoryLedger, held: Held) -> None:
    newer, ours = stub_spec(), stub_spec("plain")
    spec = json.dumps({**newer.model_dump(mode="json"), "v": 99, "kind": "dream", "input": "elsewhere"})
    ledger.submit([replace(new_job(newer), spec=spec), new_job(ours)])
    assert [job.id for job in held.take(claim(ledger).jobs)] == [ours.id]
    record = ledger.get(newer.id)
    assert (record.status, record.lane, record.strikes) == (Status.QUEUED, "generate.stub@99", 0)
    assert ledger.claim("w1", [LaneOffer(lane="generate.stub", max_rows=8)], lease_s=10) is None


@pytest.mark.parametrize("spec", ["", "[]", "{}", '{"v":1}', '{"v":"x"}', "\x00"])
def test_a_job_that_nobody_can_read_fails_by_name(ledger: MemoryLedger, held: Held, spec: str) -> None:
    broken = new_job(stub_spec())
    ledger.submit([replace(broken, spec=spec)])
    assert held.take(claim(ledger).jobs) == []
    assert json.loads(ledger.get(broken.id).error or "")["code"] == "unsupported_version"
