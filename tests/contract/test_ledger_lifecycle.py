"""The life of a job, on both ledgers: submitted, claimed, ended; one result at most, whoever comes late."""

from __future__ import annotations

import pytest

from pixelkiln_shared.errors import (
    AlreadyTerminal,
    IdempotencyKeyReused,
    LeaseLost,
    NotFound,
    QueueFull,
)
from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import IDEMPOTENCY_S, new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Idempotency, Ledger
from tests.ledger_worlds import LANE, LEASE_S, START, World, new_job

ERROR = '{"code":"out_of_memory","message":"too large"}'


def test_both_ledgers_speak_the_contract(world: World) -> None:
    ledger: Ledger = world.ledger
    assert ledger.lanes() == []


def test_a_submitted_job_is_recorded_whole(world: World) -> None:
    job = new_job(
        tenant="bert",
        priority=Priority.BULK,
        rows=3,
        group="grp",
        spec='{"prompt":"füchse 🦊"}',
        batch_key="k",
    )
    world.ledger.submit([job])
    record = world.ledger.get(job.id)
    assert (record.id, record.tenant, record.priority, record.rows, record.group) == (
        job.id,
        "bert",
        Priority.BULK,
        3,
        "grp",
    )
    assert (record.spec, record.batch_key, record.lane, record.kind) == (
        job.spec,
        "k",
        LANE,
        Kind.GENERATE,
    )
    assert (record.status, record.attempt, record.created_at) == (Status.QUEUED, 0, START)
    assert (record.started_at, record.completed_at, record.result, record.error) == (None,) * 4


def test_nothing_submitted_is_nothing_written(world: World) -> None:
    assert world.ledger.submit([]).ids == ()


def test_a_claimed_job_runs_under_its_first_attempt(world: World) -> None:
    job = world.one()
    claim = world.claim("w7")
    assert claim is not None
    assert [(one.id, one.attempt, one.rows, one.spec) for one in claim.jobs] == [(job, 1, 1, '{"v":1}')]
    record = world.ledger.get(job)
    assert (record.status, record.worker, record.attempt) == (Status.RUNNING, "w7", 1)


def test_an_empty_lane_gives_nothing(world: World) -> None:
    assert world.claim() is None
    world.one(lane="generate.other")
    assert world.claim() is None


def test_a_published_result_is_the_jobs_result(world: World) -> None:
    job = world.one()
    world.claim()
    world.clock.advance(2)
    assert world.ledger.publish(job, 1, '{"artifacts":[]}') is Status.SUCCEEDED
    record = world.ledger.get(job)
    assert (record.status, record.result, record.error) == (Status.SUCCEEDED, '{"artifacts":[]}', None)
    assert (record.started_at, record.completed_at) == (START, START + 2)


def test_results_published_together_count_one_by_one(world: World) -> None:
    first, second, third = world.submit(3)
    world.claim(max_rows=3)
    world.ledger.cancel(second)
    results = [(first, 1, '{"n":1}'), (second, 1, '{"n":2}'), (third, 2, '{"n":3}')]
    for _ in range(2):  # the second time as if the first answer had been lost
        statuses = world.ledger.publish_many(results)
        assert [statuses[0], statuses[2]] == [Status.SUCCEEDED, None]
    assert [world.ledger.get(job).status for job in (first, second, third)] == [
        Status.SUCCEEDED,
        Status.CANCELED,
        Status.RUNNING,
    ]
    assert world.ledger.get(first).result == '{"n":1}'
    assert world.ledger.publish_many([]) == []


def test_results_published_together_free_all_who_wait_for_them(world: World) -> None:
    parents = world.submit(2)
    world.claim(max_rows=2)
    [child] = world.submit(1, waits_for=tuple(parents))
    world.ledger.publish_many([(parent, 1, "{}") for parent in parents])
    assert world.ledger.get(child).status is Status.QUEUED


def test_a_failed_job_keeps_its_error(world: World) -> None:
    job = world.one()
    world.claim()
    assert world.ledger.fail(job, 1, ERROR) is Status.FAILED
    record = world.ledger.get(job)
    assert (record.status, record.result, record.error) == (Status.FAILED, None, ERROR)


def test_the_same_answer_twice_is_one_answer(world: World) -> None:
    """A worker whose connection broke while publishing asks again, and hears what became of it."""
    job, other = world.submit(2)
    world.claim(max_rows=2)
    for _ in range(2):
        assert world.ledger.publish(job, 1, '{"n":1}') is Status.SUCCEEDED
        assert world.ledger.fail(other, 1, ERROR) is Status.FAILED
    assert world.ledger.get(job).result == '{"n":1}'


def test_an_ended_job_takes_no_second_result(world: World) -> None:
    job = world.one()
    world.claim()
    world.ledger.publish(job, 1, '{"n":1}')
    with pytest.raises(LeaseLost):
        world.ledger.publish(job, 1, '{"n":2}')
    with pytest.raises(LeaseLost):
        world.ledger.fail(job, 1, ERROR)
    assert world.ledger.get(job).result == '{"n":1}'


@pytest.mark.parametrize("move", ["publish", "fail", "release", "stopped"])
def test_a_late_worker_changes_nothing(world: World, move: str) -> None:
    job = world.one()
    world.claim("frozen")
    world.crash()
    world.claim("w2")
    arguments = ("{}",) if move in {"publish", "fail"} else ()
    with pytest.raises(LeaseLost):
        getattr(world.ledger, move)(job, 1, *arguments)
    assert world.ledger.get(job).worker == "w2"
    assert world.ledger.publish(job, 2, "{}") is Status.SUCCEEDED


def test_a_lease_taken_back_is_lost_even_before_the_next_claim(world: World) -> None:
    job = world.one()
    world.claim()
    world.crash()
    with pytest.raises(LeaseLost):
        world.ledger.publish(job, 1, "{}")
    assert world.ledger.get(job).status is Status.QUEUED


def test_a_lapsed_lease_that_nobody_took_back_still_publishes(world: World) -> None:
    job = world.one()
    world.claim()
    world.clock.advance(LEASE_S + 1)
    assert world.ledger.publish(job, 1, "{}") is Status.SUCCEEDED


def test_a_heartbeat_keeps_the_lease(world: World) -> None:
    job = world.one()
    world.claim()
    for _ in range(4):
        world.clock.advance(LEASE_S - 1)
        renewal = world.ledger.renew("w1", [(job, 1)], lease_s=LEASE_S)
        assert (renewal.canceling, renewal.lost) == (frozenset(), frozenset())
        assert world.ledger.reap().requeued == ()


def test_a_heartbeat_tells_what_was_canceled_and_what_was_lost(world: World) -> None:
    kept, canceled, ended, unknown = *world.submit(3), new_id("job")
    world.claim(max_rows=3)
    world.ledger.cancel(canceled)
    world.ledger.publish(ended, 1, "{}")
    held = [(kept, 1), (canceled, 1), (ended, 1), (unknown, 1), (kept, 7)]
    renewal = world.ledger.renew("w1", held[:4], lease_s=LEASE_S)
    assert (set(renewal.canceling), set(renewal.lost)) == ({canceled}, {ended, unknown})
    assert world.ledger.renew("w1", held[4:], lease_s=LEASE_S).lost == {kept}
    assert world.ledger.renew("w1", [], lease_s=LEASE_S).lost == frozenset()


def test_a_released_job_returns_to_the_front_without_blame(world: World) -> None:
    first, second = world.submit(2)
    world.claim()
    assert world.ledger.release(first, 1) is Status.QUEUED
    record = world.ledger.get(first)
    assert (record.strikes, record.suspect) == (0, False)
    assert world.serve(2) == [first, second]
    assert world.ledger.get(first).attempt == 2


def test_progress_is_noted_for_the_newest_attempt_only(world: World) -> None:
    job = world.one()
    world.claim()
    assert world.ledger.progress(job, 1, 3, 20)
    assert not world.ledger.progress(job, 2, 9, 20)
    assert not world.ledger.progress(new_id("job"), 1, 1, 2)
    record = world.ledger.get(job)
    assert (record.step, record.steps) == (3, 20)


def test_a_new_attempt_starts_from_step_zero(world: World) -> None:
    job = world.one()
    world.claim()
    world.ledger.progress(job, 1, 3, 20)
    world.ledger.release(job, 1)
    world.claim()
    assert world.ledger.get(job).step == 0


def test_a_waiting_job_is_canceled_at_once(world: World) -> None:
    job = world.one()
    assert world.ledger.cancel(job) is Status.CANCELED
    assert world.claim() is None


def test_a_running_job_is_canceled_when_its_worker_says_so(world: World) -> None:
    job = world.one()
    world.claim()
    assert world.ledger.cancel(job) is Status.CANCELING
    assert world.ledger.cancel(job) is Status.CANCELING
    assert world.ledger.stopped(job, 1) is Status.CANCELED
    assert world.ledger.cancel(job) is Status.CANCELED


@pytest.mark.parametrize("move", ["publish", "fail", "release"])
def test_a_cancel_wins_over_whatever_the_worker_brings(world: World, move: str) -> None:
    job = world.one()
    world.claim()
    world.ledger.cancel(job)
    arguments = ("{}",) if move in {"publish", "fail"} else ()
    assert getattr(world.ledger, move)(job, 1, *arguments) is Status.CANCELED
    record = world.ledger.get(job)
    assert (record.result, record.error) == (None, None)


def test_a_canceled_job_whose_worker_died_ends_with_the_lease(world: World) -> None:
    job = world.one()
    world.claim()
    world.ledger.cancel(job)
    world.clock.advance(LEASE_S + 1)
    assert world.ledger.reap().canceled == (job,)
    assert world.ledger.get(job).strikes == 0


def test_nobody_stops_a_job_that_was_not_canceled(world: World) -> None:
    job = world.one()
    world.claim()
    with pytest.raises(LeaseLost):
        world.ledger.stopped(job, 1)
    assert world.ledger.get(job).status is Status.RUNNING


def test_cancel_leaves_an_ended_job_as_it_is(world: World) -> None:
    job = world.one()
    world.serve(1)
    assert world.ledger.cancel(job) is Status.SUCCEEDED


def test_a_failed_job_runs_again_when_asked(world: World) -> None:
    job = world.one()
    world.claim()
    world.ledger.fail(job, 1, ERROR)
    assert world.ledger.retry(job) is Status.QUEUED
    record = world.ledger.get(job)
    assert (record.error, record.completed_at, record.attempt) == (None, None, 1)
    assert [(one.id, one.attempt) for one in world.claimed()] == [(job, 2)]


def test_only_an_ended_job_without_a_result_is_retried(world: World) -> None:
    job = world.one()
    with pytest.raises(AlreadyTerminal) as waiting:
        world.ledger.retry(job)
    assert waiting.value.code == "not_terminal"
    world.serve(1)
    with pytest.raises(AlreadyTerminal) as succeeded:
        world.ledger.retry(job)
    assert succeeded.value.code == "already_terminal"


def test_a_retried_job_ignores_the_worker_of_before(world: World) -> None:
    job = world.one()
    world.claim("zombie")
    world.ledger.cancel(job)
    world.crash()
    world.ledger.retry(job)
    with pytest.raises(LeaseLost):
        world.ledger.publish(job, 1, "{}")


@pytest.mark.parametrize("move", ["get", "cancel", "retry", "delete", "position"])
def test_an_unknown_id_is_not_found(world: World, move: str) -> None:
    for unknown in (new_id("job"), "*", "../x", "x" * 10_000, ""):
        with pytest.raises(NotFound):
            getattr(world.ledger, move)(unknown)


def test_many_records_come_in_the_order_asked_for(world: World) -> None:
    first, second = world.submit(2)
    found = world.ledger.get_many([second, "nobody", first])
    assert [record.id if record else None for record in found] == [second, None, first]
    assert world.ledger.get_many([]) == []


def test_the_same_key_gives_the_same_job(world: World) -> None:
    key = Idempotency(scope="anna", key="k", fingerprint="f")
    first = world.ledger.submit([new_job(), new_job()], idempotency=key)
    again = world.ledger.submit([new_job(), new_job()], idempotency=key)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.ids == first.ids
    assert world.ledger.counts("anna")[Status.QUEUED] == 2


def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    world.ledger.submit([new_job()], idempotency=Idempotency(scope="a", key="k", fingerprint="f"))
    with pytest.raises(IdempotencyKeyReused):
        world.ledger.submit([new_job()], idempotency=Idempotency(scope="a", key="k", fingerprint="g"))


def test_a_key_belongs_to_its_credential(world: World) -> None:
    for scope in ("a", "b"):
        key = Idempotency(scope=scope, key="k", fingerprint="f")
        assert not world.ledger.submit([new_job()], idempotency=key).replayed


def test_a_refused_submit_does_not_use_up_its_key(world: World) -> None:
    key = Idempotency(scope="a", key="k", fingerprint="f")
    with pytest.raises(QueueFull):
        world.ledger.submit([new_job()], idempotency=key, max_waiting=0)
    assert not world.ledger.submit([new_job()], idempotency=key).replayed
    assert IDEMPOTENCY_S == 86_400


def test_the_same_id_is_written_once(world: World) -> None:
    """A submit whose answer was lost is sent again whole."""
    job = new_job()
    world.ledger.submit([job])
    world.claim()
    assert world.ledger.submit([job]).ids == (job.id,)
    assert world.ledger.get(job.id).status is Status.RUNNING
    assert world.ledger.counts("anna")[Status.QUEUED] == 0


def test_a_full_queue_takes_none_of_the_jobs(world: World) -> None:
    world.submit(3)
    with pytest.raises(QueueFull):
        world.ledger.submit([new_job(), new_job()], max_waiting=4)
    assert world.ledger.counts("anna")[Status.QUEUED] == 3
    world.ledger.submit([new_job()], max_waiting=4)


def test_running_jobs_leave_room_in_the_queue(world: World) -> None:
    world.submit(2)
    world.claim(max_rows=2)
    world.ledger.submit([new_job()], max_waiting=1)


def test_a_job_not_started_by_its_deadline_expires(world: World) -> None:
    late, started = new_job(start_deadline_s=5, lane="generate.late"), new_job(start_deadline_s=5)
    world.ledger.submit([late, started])
    world.claim()
    world.clock.advance(6)
    assert world.ledger.reap().expired == (late.id,)
    assert world.ledger.get(late.id).status is Status.EXPIRED
    assert world.ledger.get(started.id).status is Status.RUNNING
    assert world.claim(lane="generate.late") is None


def test_a_job_that_started_once_does_not_expire(world: World) -> None:
    job = world.one(start_deadline_s=5)
    world.claim()
    world.crash()
    assert world.ledger.get(job).status is Status.QUEUED
    assert world.ledger.reap().expired == ()


def test_an_expired_job_may_be_retried(world: World) -> None:
    job = world.one(start_deadline_s=5)
    world.crash()
    assert world.ledger.retry(job) is Status.QUEUED
    assert world.serve(1) == [job]
