"""Jobs through real worker processes: Celery, Redis, a folder, the stub model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from pixelkiln_shared.events import stream_of
from pixelkiln_shared.fleet import DeviceTime, ModelTally, WorkerInfo
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.previews import Previews
from tests.worker_processes import Stack, result_of, stub_spec, wait_for


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def test_a_job_goes_through(stack: Stack) -> None:
    stack.start()
    [record] = stack.until(stack.submit(stub_spec(device_ms=20)))
    result = result_of(record)
    [image] = [artifact for artifact in result.artifacts if artifact.role is Role.IMAGE]
    data = stack.storage.get(image.key)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    assert data.startswith(b"\x89PNG")
    assert hashlib.sha256(data).hexdigest() == image.sha256
    assert f"/{record.id}/a1/" in image.key
    assert result.metrics["run_ms"] >= 20


def test_jobs_that_wait_together_share_a_batch(stack: Stack) -> None:
    ids = stack.submit(*(stub_spec(f"hill {i}", device_ms=20) for i in range(6)))
    stack.start()
    assert {result_of(record).metrics["batch_size"] for record in stack.until(ids)} == {6}


def test_jobs_of_other_sizes_do_not_share_a_batch(stack: Stack) -> None:
    ids = stack.submit(stub_spec(device_ms=20), stub_spec(device_ms=21))
    stack.start()
    assert [result_of(record).metrics["batch_size"] for record in stack.until(ids)] == [1, 1]


def test_only_the_bad_job_of_a_batch_fails(stack: Stack) -> None:
    ids = stack.submit(
        stub_spec("good"), stub_spec("[fail=error]"), stub_spec("fine"), stub_spec("[fail=batch]")
    )
    stack.start()
    records = stack.until(ids)
    assert [record.status.value for record in records] == ["succeeded", "failed", "succeeded", "failed"]


def test_seven_of_eight_succeed_when_one_breaks_their_batch(stack: Stack) -> None:
    words = [f"hill {number}" for number in range(7)]
    ids = stack.submit(*(stub_spec(word, device_ms=20) for word in (*words[:3], "[fail=batch]", *words[3:])))
    worker = stack.start()
    records = stack.until(ids)
    assert [record.status for record in records].count(Status.SUCCEEDED) == 7
    assert records[3].status is Status.FAILED
    assert {result_of(r).metrics["batch_size"] for r in records if r.status is Status.SUCCEEDED} == {8}
    assert {record.attempt for record in records} == {1}

    def told() -> ModelTally | None:
        [info] = [info for info in stack.fleet.workers() if info.id == worker.id]
        tally = info.tallies.get("stub")
        return tally if tally is not None and tally.succeeded + tally.failed == 8 else None

    tally = wait_for(told, 10, "the worker's figures never came")
    assert (tally.batches, tally.rows, tally.succeeded, tally.failed, tally.pictures) == (1, 8, 7, 1, 7)


def test_the_device_time_of_a_worker_adds_up(stack: Stack) -> None:
    stack.start()
    ready_at = time.monotonic()
    time.sleep(1)
    submitted_at = time.monotonic()
    stack.submit(stub_spec(device_ms=500))

    def told() -> DeviceTime | None:
        [info] = stack.fleet.workers()
        return info.device_time if info.device_time.busy_s >= 0.5 else None

    spent = wait_for(told, 10, "the worker's figures never came")
    all_s = spent.busy_s + spent.load_s + spent.idle_waiting_s + spent.idle_no_work_s
    assert submitted_at - ready_at + 0.5 <= all_s
    assert all_s <= time.monotonic() - ready_at + 10  # it was ready a little before we saw it
    assert spent.idle_no_work_s > spent.idle_waiting_s


def test_a_job_too_large_for_the_memory_fails_with_advice_and_the_worker_lives(stack: Stack) -> None:
    worker = stack.start()
    [record] = stack.until(stack.submit(stub_spec("[fail=oom_alone]")))
    assert record.status is Status.FAILED
    assert '"out_of_memory"' in (record.error or "")
    stack.until(stack.submit(stub_spec()))
    assert stack.ready_worker().pid == worker.pid


def test_a_batch_too_large_for_the_memory_is_halved(stack: Stack) -> None:
    ids = stack.submit(stub_spec("[fail=oom]"), stub_spec("a"), stub_spec("b"), stub_spec("c"))
    stack.start()
    assert {record.status for record in stack.until(ids)} == {Status.SUCCEEDED}


def test_a_canceled_job_stops_at_the_next_step_and_the_worker_serves_on(stack: Stack) -> None:
    worker = stack.start()
    [name] = stack.submit(stub_spec(device_ms=60_000, steps=600))
    stack.until_running(name, step=2)
    asked_at = time.monotonic()
    stack.ledger.cancel(name)
    [record] = stack.until([name], seconds=5)
    assert record.status is Status.CANCELED
    assert time.monotonic() - asked_at < 2
    [after] = stack.until(stack.submit(stub_spec()))
    assert after.status is Status.SUCCEEDED
    assert stack.ready_worker().pid == worker.pid


def test_one_of_a_batch_is_canceled_and_the_others_are_finished(stack: Stack) -> None:
    ids = stack.submit(*(stub_spec(f"hill {i}", device_ms=2_000, steps=20) for i in range(3)))
    stack.start()
    stack.until_running(ids[1], step=1)
    stack.ledger.cancel(ids[1])
    [canceled] = stack.until([ids[1]], seconds=1.5)
    assert stack.ledger.get(ids[0]).status is Status.RUNNING
    assert [canceled.status, *(r.status for r in stack.until([ids[0], ids[2]]))] == [
        Status.CANCELED,
        Status.SUCCEEDED,
        Status.SUCCEEDED,
    ]


def test_a_hung_model_ends_as_a_timeout_and_the_next_job_is_served(stack: Stack) -> None:
    worker = stack.start()
    [record] = stack.until(stack.submit(stub_spec("[fail=hang]", run_timeout_s=0.5)))
    assert record.status is Status.FAILED
    assert '"timeout"' in (record.error or "")
    [after] = stack.until(stack.submit(stub_spec()), seconds=40)
    assert after.status is Status.SUCCEEDED
    assert stack.ready_worker().pid != worker.pid


def test_a_killed_worker_is_restarted_and_its_job_finished_once(stack: Stack) -> None:
    worker = stack.start()
    [name] = stack.submit(stub_spec(device_ms=1_500, steps=10))
    stack.until_running(name, step=1)
    os.kill(worker.pid, signal.SIGKILL)
    [record] = stack.until([name], seconds=40)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    assert all("/a2/" in artifact.key for artifact in result_of(record).artifacts)


def test_a_worker_that_slept_through_its_lease_publishes_nothing(stack: Stack) -> None:
    sleeper = stack.start()
    [name] = stack.submit(stub_spec(device_ms=1_500, steps=10))
    stack.until_running(name, step=1)
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        other = stack.start()
        [record] = stack.until([name])
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    time.sleep(2.5)  # it wakes, finishes its run, and finds the job gone
    assert stack.ledger.get(name) == record
    assert (record.status, record.attempt, record.worker) == (Status.SUCCEEDED, 2, other.id)
    assert all("/a2/" in artifact.key for artifact in result_of(record).artifacts)
    [after] = stack.until(stack.submit(stub_spec()))
    assert after.status is Status.SUCCEEDED


def test_a_worker_told_to_stop_gives_its_job_to_another(stack: Stack) -> None:
    first = stack.start(PIXELKILN_DRAIN_S="0.5")
    [name] = stack.submit(stub_spec(device_ms=8_000, steps=80))
    stack.until_running(name, step=1)
    stack.start()
    [leaving] = [launcher for launcher in stack.launchers if launcher is stack.launchers[0]]
    told_at = time.monotonic()
    leaving.terminate()

    def taken_over() -> bool | None:
        record = stack.ledger.get(name)
        return (record.attempt == 2 and record.worker != first.id) or None

    wait_for(taken_over, 5, "nobody took the job over")
    assert time.monotonic() - told_at < 5
    assert leaving.wait(timeout=10) == 0
    [record] = stack.until([name])
    assert (record.status, record.strikes, record.suspect) == (Status.SUCCEEDED, 0, False)


def test_a_worker_told_to_stop_finishes_what_it_can(stack: Stack) -> None:
    stack.start(PIXELKILN_DRAIN_S="10")
    [name] = stack.submit(stub_spec(device_ms=1_000, steps=10))
    stack.until_running(name, step=1)
    stack.launchers[0].terminate()
    [record] = stack.until([name])
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    assert stack.launchers[0].wait(timeout=10) == 0
    assert stack.fleet.workers() == []


@pytest.mark.slow
def test_a_poison_job_ends_and_takes_no_innocent_with_it(stack: Stack) -> None:
    ids = stack.submit(*(stub_spec(p, device_ms=50) for p in ("one", "two [crash]", "three", "four")))
    stack.start()
    records = stack.until(ids, seconds=120)
    assert [record.status.value for record in records] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert '"worker_crashed"' in (records[1].error or "")


def test_a_worker_tells_what_it_loaded_and_what_it_could_not(stack: Stack, tmp_path: Path) -> None:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(
        '[models.broken]\ntitle = "A stub without a size"\nfamily = "stub"\nkinds = ["generate"]\n'
    )
    stack.start(PIXELKILN_WORKER_MODELS="stub,broken", PIXELKILN_CATALOGUE=str(catalogue))

    def told() -> WorkerInfo | None:
        [info] = stack.fleet.workers()
        return info if info.unavailable else None

    info = wait_for(told, 20, "the second model was not tried")
    [loaded] = info.loaded
    assert loaded.id == "stub"
    assert info.memory_bytes > 0
    assert info.unavailable == {"broken": "broken did not load: KeyError"}


def test_a_long_job_is_seen_while_it_runs_and_a_short_one_is_not(stack: Stack) -> None:
    stack.start()
    long, short = stack.submit(
        stub_spec(device_ms=2_600, steps=26), stub_spec(device_ms=100, steps=4, width=72)
    )
    stack.until([short, long])
    previews = Previews(stack.client)
    webp = previews.get(long)
    assert webp is not None
    with Image.open(io.BytesIO(webp)) as image:
        assert (image.format, image.size) == ("WEBP", (16, 16))
    events = cast(list[tuple[str, dict[str, str]]], stack.client.xrange(stream_of(long)))
    told = [fields for _, fields in events if fields["job"] == long]
    steps = [json.loads(one["data"])["step"] for one in told if one["type"] == "preview"]
    assert 1 <= len(steps) <= 2  # at most one a second, none in the first
    assert steps[0] >= 10
    assert previews.get(short) is None
