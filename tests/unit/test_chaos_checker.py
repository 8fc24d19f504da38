"""The judge of chaos runs on histories made by hand: each rule can be broken, and is then named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pixelkiln_shared.jobs import Priority, Status
from pixelkiln_shared.keys import attempt_prefix, new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Record
from tests.chaos.checker import SLOWEST_S, check
from tests.chaos.history import Entry, Event, History, read
from tests.chaos.recovery import given_back, starts, waits_s
from tests.chaos.schedule import CUT, FULL, schedule
from tests.chaos.schedule import Kind as Fault
from tests.chaos.verdict import Breach, Verdict

SUM = "a" * 64
OTHER = "b" * 64
BEGAN = 1_000.0
JOB = new_id("job")


def entry(op: str, event: Event, key: str, at: float = BEGAN, **more: Any) -> Entry:
    return Entry(at=at, client=0, op=op, event=event, key=key, **more)


def submitted(job_id: str = JOB, key: str = "k1") -> Entry:
    return entry("submit", "ok", key, status=202, seen={"ids": [job_id], "group": ""})


def polled(status: str, *sums: str) -> Entry:
    return entry("poll", "ok", JOB, status=200, seen={"id": JOB, "status": status, "results": list(sums)})


def canceled(status: str) -> Entry:
    return entry("cancel", "ok", JOB, status=200, seen={"id": JOB, "status": status, "results": []})


def fault(kind: Fault, at: float) -> list[Entry]:
    return [entry("fault", event, kind, at) for event in ("invoke", "ok")]


def key_of(attempt: int, job_id: str = JOB) -> str:
    return attempt_prefix("default", job_id, attempt) + "image-0.png"


def record(
    job_id: str = JOB,
    *,
    status: Status = Status.SUCCEEDED,
    attempt: int = 1,
    shows: int | None = None,
    key: str = "k1",
    poison: bool = False,
    **more: Any,
) -> Record:
    """A record as it should be; `shows` names the attempt whose object it shows."""
    artifacts = [{"key": key_of(shows or attempt, job_id), "sha256": SUM, "role": "image"}]
    labels = {"chaos": key} | ({"poison": "1"} if poison else {})
    return Record(
        id=job_id,
        kind=Kind.GENERATE,
        lane="generate.stub",
        tenant="default",
        priority=Priority.STANDARD,
        batch_key="stub",
        rows=1,
        work=1,
        spec=json.dumps({"labels": labels}),
        status=status,
        sequence=1,
        attempt=attempt,
        created_at=BEGAN,
        completed_at=BEGAN + 10 if status.terminal else None,
        result=json.dumps({"artifacts": artifacts}) if status is Status.SUCCEEDED or shows else None,
        **more,
    )


OBJECTS = {key_of(1): SUM}


def breaches(verdict: Verdict) -> set[Breach]:
    return {finding.breach for finding in verdict.findings}


def test_a_run_without_fault_is_clean() -> None:
    verdict = check([submitted(), polled("queued"), polled("succeeded", SUM)], [record()], OBJECTS)

    assert verdict.clean
    assert (verdict.figures["accepted"], verdict.figures["extra executions"]) == (1, 0)


def test_an_accepted_job_that_the_ledger_forgot_is_lost() -> None:
    assert breaches(check([submitted()], [], {})) == {Breach.LOST}


def test_a_job_nobody_answered_for_may_be_there_or_not() -> None:
    unsure = entry("submit", "unknown", "k1")

    assert check([unsure], [], {}).clean
    assert check([unsure], [record()], OBJECTS).clean


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.CANCELING])
def test_a_job_that_has_not_ended_is_named(status: Status) -> None:
    assert breaches(check([submitted()], [record(status=status)], {})) == {Breach.UNFINISHED}


def test_one_key_with_two_answers_is_a_breach() -> None:
    other = new_id("job")
    records = [record(), record(other, key="k2")]
    objects = OBJECTS | {key_of(1, other): SUM}

    assert breaches(check([submitted(), submitted(other)], records, objects)) == {Breach.IDEMPOTENCY}


def test_one_key_with_two_jobs_is_a_breach_though_nobody_heard_of_the_second() -> None:
    other = new_id("job")
    objects = OBJECTS | {key_of(1, other): SUM}

    assert breaches(check([submitted()], [record(), record(other)], objects)) == {Breach.IDEMPOTENCY}


def test_two_ends_of_one_job_are_seen() -> None:
    assert breaches(check([submitted(), polled("succeeded", OTHER)], [record()], OBJECTS)) == {Breach.DOUBLED}
    assert breaches(check([submitted(), polled("failed")], [record()], OBJECTS)) == {Breach.DOUBLED}


@pytest.mark.parametrize("objects", [{}, {key_of(1): OTHER}])
def test_a_result_that_is_not_as_recorded_is_corrupt(objects: dict[str, str]) -> None:
    assert breaches(check([submitted()], [record()], objects)) == {Breach.CORRUPT}


def test_a_success_without_artifacts_is_corrupt() -> None:
    empty = replace(record(), result=json.dumps({"artifacts": []}))

    assert breaches(check([submitted()], [empty], OBJECTS)) == {Breach.CORRUPT}


@pytest.mark.parametrize("acknowledged", ["canceling", "canceled"])
def test_an_acknowledged_cancel_must_hold(acknowledged: str) -> None:
    history = [submitted(), canceled(acknowledged)]

    assert breaches(check(history, [record()], OBJECTS)) == {Breach.CANCEL}
    assert check(history, [record(status=Status.CANCELED)], {}).clean


def test_a_cancel_that_came_too_late_changes_nothing() -> None:
    assert check([submitted(), canceled("succeeded")], [record()], OBJECTS).clean


def test_a_canceled_job_must_show_no_result() -> None:
    shown = record(status=Status.CANCELED, shows=1)

    assert breaches(check([submitted()], [shown], OBJECTS)) == {Breach.CANCELED_SHOWN}


def test_a_result_of_an_old_attempt_was_not_fenced() -> None:
    history = [submitted(), *fault(Fault.ZOMBIE, BEGAN + 1)]

    assert breaches(check(history, [record(attempt=2, shows=1)], OBJECTS)) == {Breach.UNFENCED}


@pytest.mark.parametrize("job_id", [JOB, new_id("job")], ids=["a job", "no job"])
def test_objects_of_an_attempt_nobody_counted_are_named(job_id: str) -> None:
    verdict = check([submitted()], [record()], OBJECTS | {key_of(2, job_id): SUM})

    assert breaches(verdict) == {Breach.UNCOUNTED}


def test_objects_of_a_killed_attempt_are_left_over_and_no_breach() -> None:
    history = [submitted(), *fault(Fault.WORKER_DEVICE, BEGAN + 1)]
    verdict = check(history, [record(attempt=2)], OBJECTS | {key_of(2): SUM})

    assert verdict.clean
    assert (verdict.figures["objects left over"], verdict.figures["extra executions"]) == (1, 1)


def test_the_sweep_must_take_orphans_and_nothing_else() -> None:
    history = [submitted(), *fault(Fault.WORKER_DEVICE, BEGAN + 1)]
    records, objects = [record(attempt=2)], OBJECTS | {key_of(2): SUM}

    assert check(history, records, objects, swept=[key_of(2)]).clean
    assert breaches(check(history, records, objects, swept=list(objects))) == {Breach.LEFTOVER}
    assert breaches(check(history, records, objects, swept=[])) == {Breach.CORRUPT}


def test_each_further_attempt_needs_a_fault_of_its_own() -> None:
    kills = [*fault(Fault.WORKER_DEVICE, BEGAN + 1), *fault(Fault.API_KILL, BEGAN + 2)]
    objects = OBJECTS | {key_of(3): SUM}

    assert breaches(check([submitted(), *kills], [record(attempt=3)], objects)) == {Breach.UNEXPLAINED}
    assert check([submitted(), *kills, *kills], [record(attempt=3)], objects).clean


def test_a_fault_before_the_job_or_after_its_end_explains_nothing() -> None:
    kills = [*fault(Fault.WORKER_DEVICE, BEGAN - 60), *fault(Fault.WORKER_DEVICE, BEGAN + 60)]
    verdict = check([submitted(), *kills], [record(attempt=2)], OBJECTS | {key_of(2): SUM})

    assert breaches(verdict) == {Breach.UNEXPLAINED}


CRASHED = '{"code":"worker_crashed","message":""}'


def test_poison_ends_after_three_strikes() -> None:
    ended = record(status=Status.FAILED, attempt=4, strikes=3, error=CRASHED, poison=True)

    assert check([submitted()], [ended], {}).clean
    assert breaches(check([submitted()], [replace(ended, strikes=2)], {})) == {Breach.POISON}
    assert breaches(check([submitted()], [record(poison=True)], OBJECTS)) == {Breach.POISON}


def test_an_innocent_job_is_neither_blamed_nor_failed() -> None:
    blamed = record(status=Status.FAILED, strikes=3, error=CRASHED)
    failed = record(status=Status.FAILED, error='{"code":"job_error","message":""}')

    assert breaches(check([submitted()], [blamed], {})) == {Breach.BLAMED}
    assert breaches(check([submitted()], [failed], {})) == {Breach.FAILED}


@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_answer_that_must_not_be_is_named(status: int) -> None:
    answer = entry("poll", "unknown", JOB, status=status)

    assert breaches(check([submitted(), answer], [record()], OBJECTS)) == {Breach.ANSWER}


@pytest.mark.parametrize("status", [0, 409, 429, 503])
def test_a_refusal_that_says_try_again_is_right(status: int) -> None:
    assert check([submitted(), entry("poll", "unknown", JOB, status=status)], [record()], OBJECTS).clean


def test_an_answer_that_hung_is_named() -> None:
    late = entry("poll", "unknown", JOB, status=503, took_s=SLOWEST_S + 1)

    assert breaches(check([submitted(), late], [record()], OBJECTS)) == {Breach.HUNG}


def test_a_history_is_read_as_it_was_written(tmp_path: Any) -> None:
    history = History(tmp_path / "history.jsonl")
    history.add(1, "submit", "invoke", "k1")
    history.add(1, "submit", "ok", "k1", status=202, took_s=0.1, seen={"id": JOB})
    history.close()

    assert read((tmp_path / "history.jsonl").read_text().splitlines()) == history.entries()


def event(at: float, status: str, **more: Any) -> tuple[str, dict[str, str]]:
    data = json.dumps({"status": status, **more})
    return f"{round(at * 1_000)}-0", {"job": JOB, "type": "status", "data": data}


def test_recovery_is_from_the_kill_to_the_next_attempt() -> None:
    events = [event(BEGAN, "running"), event(BEGAN + 20, "queued"), event(BEGAN + 21, "running")]
    kill = entry("fault", "ok", Fault.WORKER_DEVICE, BEGAN + 3, seen={"jobs": [JOB, new_id("job")]})

    assert waits_s([kill], starts(events)) == [18.0]
    assert waits_s([replace(kill, at=BEGAN + 30)], starts(events)) == []


def test_attempts_that_were_given_back_are_told_from_those_that_died() -> None:
    died = [event(BEGAN, "queued"), event(BEGAN + 1, "running"), event(BEGAN + 2, "queued")]

    assert given_back(died) == {}
    assert given_back([*died, event(BEGAN + 3, "queued", given_back=True)]) == {JOB: 1}


@pytest.mark.parametrize("size", [FULL, CUT])
def test_a_seed_gives_the_same_faults_again(size: Any) -> None:
    once = schedule(7, size)

    assert once == schedule(7, size)
    assert once != schedule(8, size)
    assert [fault.at_s for fault in once] == sorted(fault.at_s for fault in once)


def test_the_full_schedule_is_the_goal() -> None:
    faults = [fault.kind for fault in schedule(1, FULL)]

    assert faults.count(Fault.WORKER_GROUP) == faults.count(Fault.WORKER_DEVICE) == 100
    assert faults.count(Fault.REDIS_KILL) == faults.count(Fault.REDIS_FREEZE) == 20
    assert faults.count(Fault.API_KILL) == 20
    assert faults.count(Fault.REAPER_KILL) == 10


def test_fewer_jobs_meet_fewer_faults_of_every_kind() -> None:
    kinds = {fault.kind for fault in schedule(1, FULL.scaled(100))}

    assert kinds == set(Fault)
    assert len(schedule(1, FULL.scaled(100))) < len(schedule(1, FULL)) / 10
