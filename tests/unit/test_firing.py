"""The life of a batch, on the in-memory twins and a model that does what the test says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.jobs import Result, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Role
from pixelkiln_worker import imaging
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Task, Watch
from pixelkiln_worker.firing import fire
from pixelkiln_worker.held import Gone, HeldJob
from tests.firing_houses import (
    RED,
    Brush,
    House,
    code_of,
    firing_house,
    in_background,
    outcome_of,
    paint,
    roles,
    segment_spec,
    stored,
)
from tests.worker_processes import TENANT, stub_spec, wait_for


@pytest.fixture
def house() -> Iterator[House]:
    with firing_house() as house:
        yield house


# ------------------------------------------------------------------------------------------------ the way


def test_a_bell_with_nothing_waiting_is_surplus(house: House) -> None:
    assert fire(house.shop) == "nothing waits"


def test_a_batch_is_published_job_by_job(house: House) -> None:
    records = house.run(stub_spec("a", seed=3), stub_spec("b", seed=4))
    results = [Result.model_validate_json(record.result or "") for record in records]
    assert house.brush.batches == [["a", "b"]]
    assert [result.seed for result in results] == [3, 4]
    assert [result.metrics["batch_index"] for result in results] == [0, 1]
    assert roles(records[0]) == [Role.IMAGE, Role.MANIFEST]
    assert all(house.storage.head(artifact.key) for result in results for artifact in result.artifacts)
    assert house.shop.held.jobs() == []


def test_jobs_that_leave_no_files_are_published_in_one_call(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    publish = house.ledger.publish_many

    def counted(results: Sequence[tuple[str, int, str]]) -> list[Status | None]:
        calls.append(len(results))
        return publish(results)

    monkeypatch.setattr(house.ledger, "publish_many", counted)
    house.brush.run_batch = lambda batch, watch: [Outcome() for _ in batch]
    records = house.run(*(stub_spec(str(number)) for number in range(3)))
    assert [record.status for record in records] == [Status.SUCCEEDED] * 3
    assert [Result.model_validate_json(record.result or "").artifacts for record in records] == [[], [], []]
    assert list(house.storage.list("")) == []
    assert calls == [3]


def test_flower_is_told_jobs_batch_and_times(house: House) -> None:
    [name] = house.submit(stub_spec())
    line = fire(house.shop)
    assert line.startswith("generate.stub batch=1 ")
    assert "run=" in line
    assert name in line


def test_bells_are_rung_again_after_a_batch(house: House) -> None:
    house.run(stub_spec())
    assert house.rung


def test_more_jobs_than_a_batch_holds_stay_waiting(house: House) -> None:
    records = house.run(*(stub_spec(str(i)) for i in range(10)))
    assert [record.status for record in records].count(Status.SUCCEEDED) == 8
    fire(house.shop)
    assert house.ledger.counts(TENANT)[Status.SUCCEEDED] == 10


# -------------------------------------------------------------------------------------------------- inputs


def test_a_picture_in_the_store_reaches_the_model_as_pixels(house: House) -> None:
    [record] = house.run(segment_spec(stored(house)))
    assert record.status is Status.SUCCEEDED
    assert np.array_equal(house.brush.images[0], RED)
    assert Role.MASK in roles(record)


def test_an_artifact_of_another_job_is_an_input(house: House) -> None:
    [parent] = house.run(stub_spec())
    [record] = house.run(segment_spec({"job": parent.id, "role": "image", "index": 0}))
    assert record.status is Status.SUCCEEDED
    assert np.array_equal(house.brush.images[1], RED)


@pytest.mark.parametrize(
    "image",
    [
        {"object": "t/uploads/gone", "sha256": "0" * 64, "width": 8, "height": 8},
        {"job": new_id("job"), "role": "image", "index": 0},
    ],
    ids=["object", "job"],
)
def test_a_vanished_input_fails_its_job_alone(house: House, image: dict[str, Any]) -> None:
    [record] = house.run(segment_spec(image))
    assert (record.status, code_of(record)) == (Status.FAILED, "input_unavailable")


def test_a_picture_that_changed_after_it_was_accepted_is_refused(house: House) -> None:
    house.storage.put("t/uploads/u1", imaging.png_of(RED), media_type="image/png")
    [record] = house.run(
        segment_spec({"object": "t/uploads/u1", "sha256": "0" * 64, "width": 8, "height": 8})
    )
    assert code_of(record) == "input_unavailable"
    assert house.brush.batches == []


def test_bytes_that_are_no_picture_fail_their_job_alone(house: House) -> None:
    house.storage.put("t/uploads/u1", b"text", media_type="image/png")
    ref = {"object": "t/uploads/u1", "sha256": hashlib.sha256(b"text").hexdigest(), "width": 8, "height": 8}
    [record] = house.run(segment_spec(ref))
    assert record.status is Status.FAILED
    assert code_of(record) in {"invalid_image", "unsupported_format"}


# ------------------------------------------------------------------------------------------------ failures


def test_a_failing_batch_is_run_again_one_by_one(house: House) -> None:
    def refuse(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        if any(task.spec.input["prompt"] == "bad" for task in batch):
            raise ValueError("a bad row")
        return paint(batch, watch)

    house.brush.run_batch = refuse
    records = house.run(stub_spec("a"), stub_spec("bad"), stub_spec("b"))
    assert [record.status.value for record in records] == ["succeeded", "failed", "succeeded"]
    assert code_of(records[1]) == "job_failed"
    assert "a bad row" in (records[1].error or "")


def test_a_model_that_does_not_load_fails_its_jobs_and_rests(house: House) -> None:
    def missing(entry: ModelEntry, device: Device) -> Brush:
        if entry.id == "stub":
            raise ModelUnavailable("no weights")
        return house.brush

    house.shop.residency._load = missing
    [record] = house.run(stub_spec())
    [later] = house.run(stub_spec())
    assert code_of(record) == "model_unavailable"
    assert later.status is Status.QUEUED  # not offered for a while: another worker may do better


def test_a_store_that_is_away_is_waited_out_and_nothing_computed_again(house: House) -> None:
    house.submit(spec := stub_spec())

    def outage(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        house.storage.outage = True
        return paint(batch, watch)

    house.brush.run_batch = outage
    fired = in_background(lambda: fire(house.shop))
    wait_for(lambda: house.storage.outage or None, 5, "it did not run")
    time.sleep(0.5)
    assert house.ledger.get(spec.id).status is Status.RUNNING
    house.storage.outage = False
    fired.join(10)
    wait_for(lambda: house.ledger.get(spec.id).status.terminal or None, 10, "it was not published")
    assert house.ledger.get(spec.id).status is Status.SUCCEEDED
    assert len(house.brush.batches) == 1


def test_a_result_that_cannot_be_stored_fails_its_job_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = stub_spec("good"), stub_spec("bad")
    put = house.storage.put

    def picky(key: str, data: Any, *, media_type: str) -> Any:
        if bad.id in key:
            raise ValueError("a bug in the store")
        time.sleep(0.2)
        return put(key, data, media_type=media_type)

    monkeypatch.setattr(house.storage, "put", picky)
    records = house.run(bad, good)
    assert [record.status for record in records] == [Status.FAILED, Status.SUCCEEDED]


def test_a_bug_of_ours_settles_the_jobs_all_the_same(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.shop.compute, "run", broken)
    [name] = house.submit(stub_spec())
    with pytest.raises(RuntimeError):
        fire(house.shop)
    assert code_of(house.ledger.get(name)) == "internal_error"
    assert house.shop.held.jobs() == []


# --------------------------------------------------------------------------------------- unwanted, drained


def during(act: Callable[[], object]) -> Callable[[Sequence[Task], Watch], list[Outcome | Exception]]:
    """Return a `run` that does something between two steps."""

    def run(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        watch.step(1, 2)
        act()
        watch.step(2, 2)
        return [outcome_of(task) for task in batch]

    return run


def test_a_batch_that_nobody_wants_stops_at_the_next_step(house: House) -> None:
    [name] = house.submit(stub_spec())

    def cancel() -> None:
        house.ledger.cancel(name)
        house.shop.held.leave([name], Gone.CANCELED)

    house.brush.run_batch = during(cancel)
    fire(house.shop)
    assert house.ledger.get(name).status is Status.CANCELED
    assert list(house.storage.list("")) == []


def test_a_lost_lease_publishes_nothing(house: House) -> None:
    [name] = house.submit(stub_spec())
    house.brush.run_batch = during(lambda: house.shop.held.leave([name], Gone.LOST))
    fire(house.shop)
    assert house.ledger.get(name).status is Status.RUNNING  # as the newer attempt's process would have it
    assert list(house.storage.list("")) == []


def test_a_cancel_that_nobody_told_us_of_leaves_no_files(house: House) -> None:
    [name] = house.submit(stub_spec())
    house.brush.run_batch = during(lambda: house.ledger.cancel(name))
    fire(house.shop)
    assert house.ledger.get(name).status is Status.CANCELED
    assert list(house.storage.list("")) == []


def test_a_draining_worker_claims_nothing_and_passes_the_bell_on(house: House) -> None:
    house.shop.draining.set()
    [record] = house.run(stub_spec())
    assert record.status is Status.QUEUED
    assert house.rung


def test_a_batch_that_still_waits_for_the_device_is_given_back_in_a_drain(house: House) -> None:
    [name] = house.submit(stub_spec())
    take = house.shop.held.take

    def take_and_drain(claimed: Any) -> Any:
        house.shop.draining.set()
        return take(claimed)

    house.shop.held.take = take_and_drain  # type: ignore[method-assign]
    fire(house.shop)
    assert (house.ledger.get(name).status, house.brush.batches) == (Status.QUEUED, [])


def test_a_device_that_breaks_ends_the_process_with_the_jobs_that_ran_as_suspects(house: House) -> None:
    def broken(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def end(jobs: Sequence[HeldJob]) -> None:
        suspects.extend(job.id for job in jobs)
        house.shop.held.leave([job.id for job in jobs], Gone.LOST)

    suspects: list[str] = []
    house.brush.run_batch = broken
    ids = house.submit(stub_spec("a"), stub_spec("b"))
    fire(replace(house.shop, end_poisoned=end))
    assert sorted(suspects) == sorted(ids)
    assert {house.ledger.get(name).status for name in ids} == {Status.RUNNING}  # nobody is told it failed
