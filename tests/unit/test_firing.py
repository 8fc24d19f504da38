"""The life of a batch, on the in-memory twins and a model that does what the test says."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.jobs import JobSpec, Result, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind, Role
from pixelkiln_shared.ledger.contract import Record
from pixelkiln_shared.testing.ledger import MemoryLedger
from pixelkiln_shared.testing.storage import MemoryStorage
from pixelkiln_worker import firing, imaging
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Outcome, Picture, Segment, Segmentation, Task, Watch
from pixelkiln_worker.firing import fire
from pixelkiln_worker.held import Gone, HeldJob
from pixelkiln_worker.workshop import Workshop
from tests.worker_processes import TENANT, new_job, stub_spec, wait_for
from tests.workshops import workshop

CPU = Device(name="cpu", kind="cpu", memory_bytes=10**9, dtype_name="float32", threads=1)
RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def paint(batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
    watch.step(1, 1)
    return [_outcome(task) for task in batch]


def _outcome(task: Task) -> Outcome:
    if task.image is None:
        return Outcome(pictures=(Picture(pixels=RED, seed=task.spec.input["seed"]),))
    ids = np.ones(task.image.shape[:2], np.uint16)
    return Outcome(segmentation=Segmentation(ids=ids, segments=(Segment(id=1, label="all", category=1),)))


@dataclass
class Brush:
    """A model whose `run` the test sets; `batches` are the prompts it was handed."""

    run_batch: Callable[[Sequence[Task], Watch], list[Outcome | Exception]] = paint
    batches: list[list[str]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    footprint_bytes: int = 0
    identity: dict[str, Any] = field(default_factory=lambda: {"revision": "r1"})
    max_rows: int = 8

    def run(self, batch: Sequence[Task], watch: Watch) -> list[Outcome | Exception]:
        self.batches.append([task.spec.input.get("prompt", "") for task in batch])
        self.images += [task.image for task in batch]
        return self.run_batch(batch, watch)

    def close(self) -> None:
        pass


@dataclass
class House:
    """A workshop, with a handle on each of its parts."""

    ledger: MemoryLedger
    storage: MemoryStorage
    brush: Brush
    shop: Workshop
    rung: list[int]

    def submit(self, *specs: JobSpec) -> list[str]:
        self.ledger.submit([new_job(spec) for spec in specs])
        return [spec.id for spec in specs]

    def run(self, *specs: JobSpec) -> list[Record]:
        ids = self.submit(*specs)
        fire(self.shop)
        return [self.ledger.get(name) for name in ids]


@pytest.fixture
def house() -> Iterator[House]:
    brush, rung = Brush(), []
    catalogue = Catalogue.load(stub=True)
    lanes = {lane: catalogue.lanes[lane] for lane in ("generate.stub", "segment.classical-otsu")}

    def load(entry: ModelEntry, device: Device) -> Brush:
        return brush

    with workshop(lanes, load, lambda: rung.append(1)) as (shop, ledger, storage):
        yield House(ledger, storage, brush, shop, rung)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stored(house: House, key: str = "t/uploads/u1") -> dict[str, Any]:
    """Put a picture into the store; return the reference to it."""
    data = imaging.png_of(RED)
    house.storage.put(key, data, media_type="image/png")
    return {"object": key, "sha256": hashlib.sha256(data).hexdigest(), "width": 8, "height": 8}


def unloadable(entry: ModelEntry, device: Device) -> Brush:
    raise ModelUnavailable("no weights")


def segment_spec(image: dict[str, Any]) -> JobSpec:
    return JobSpec(
        id=new_id("job"), kind=Kind.SEGMENT, model="classical-otsu", tenant=TENANT, input={"image": image}
    )


def code_of(record: Record) -> str:
    return str(json.loads(record.error or "{}").get("code"))


def roles(record: Record) -> list[Role]:
    return [artifact.role for artifact in Result.model_validate_json(record.result or "").artifacts]


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


@contextmanager
def occupied(house: House) -> Iterator[None]:
    """Keep the device with a batch that seems about to end, so that the next firing claims at once."""
    taken, done = threading.Event(), threading.Event()

    def occupy() -> None:
        with house.shop.turns.device_slot(), house.shop.turns.running("an earlier batch"):
            house.shop.turns.progress(1, 1)
            taken.set()
            done.wait(10)

    earlier = in_background(lambda: house.shop.thread.run(occupy))
    assert taken.wait(5)
    yield
    done.set()
    earlier.join(10)


def until_running(house: House, name: str) -> None:
    wait_for(lambda: house.ledger.get(name).status is Status.RUNNING or None, 5, "it was not claimed")


def test_a_batch_that_waits_for_the_device_is_filled_up(house: House) -> None:
    with occupied(house):
        [first] = house.submit(stub_spec("first"))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, first)
        [second] = house.submit(stub_spec("second"))
        until_running(house, second)
    fired.join(10)
    assert house.brush.batches == [["first", "second"]]


def test_the_device_thread_asks_neither_ledger_nor_store(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            by_thread.append((threading.current_thread().name, name))
            return method(*args, **kwargs)

        return call

    by_thread: list[tuple[str, str]] = []
    for part in (house.ledger, house.storage):
        for name in ("claim", "top_up", "fail", "publish", "release", "get", "put"):
            if hasattr(part, name):
                monkeypatch.setattr(part, name, watched(name, getattr(part, name)))
    with occupied(house):
        first, *_ = house.submit(*(segment_spec(stored(house)) for _ in range(2)))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, first)
        [late] = house.submit(segment_spec(stored(house)))
        until_running(house, late)
    fired.join(10)
    house.shop.residency._load = unloadable
    house.run(stub_spec())
    assert {"claim", "top_up", "fail", "publish", "get", "put"} <= {name for _, name in by_thread}
    assert "device" not in {thread for thread, _ in by_thread}


def test_a_store_that_hangs_during_a_top_up_does_not_hold_up_the_batch_that_is_ready(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, freed = threading.Event(), threading.Event()
    get = house.storage.get

    def hang(key: str) -> bytes:
        if "slow" in key:
            hanging.set()
            assert freed.wait(10)
        return get(key)

    monkeypatch.setattr(house.storage, "get", hang)
    with occupied(house):
        [ready] = house.submit(segment_spec(stored(house)))
        fired = in_background(lambda: fire(house.shop))
        until_running(house, ready)
        [late] = house.submit(segment_spec(stored(house, "t/uploads/slow")))
        assert hanging.wait(5)
    fired.join(10)  # though the store hangs still
    assert house.ledger.get(ready).status is Status.SUCCEEDED
    assert house.ledger.get(late).status is Status.QUEUED
    assert house.shop.held.jobs() == []
    freed.set()
    fire(house.shop)
    assert (house.ledger.get(late).status, house.ledger.get(late).strikes) == (Status.SUCCEEDED, 0)
    assert [len(batch) for batch in house.brush.batches] == [1, 1]


def test_inputs_that_do_not_come_let_jobs_without_inputs_pass(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "LONG_FETCH_S", 0.05)
    freed = threading.Event()
    get = house.storage.get
    monkeypatch.setattr(house.storage, "get", lambda key: get(key) if freed.wait(10) else b"")
    [stuck] = house.submit(segment_spec(stored(house)))
    waiting = in_background(lambda: fire(house.shop))
    until_running(house, stuck)
    [record] = house.run(stub_spec())
    assert record.status is Status.SUCCEEDED
    freed.set()
    waiting.join(10)
    assert house.ledger.get(stuck).status is Status.SUCCEEDED


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
        return [_outcome(task) for task in batch]

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
