"""The store goes away under a real worker: nothing fails, nothing runs twice, and it says what it does."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneOffer
from tests.worker_processes import Stack, stub_spec, wait_for


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


@contextmanager
def outage(folder: Path) -> Iterator[None]:
    """Let the folder of the store refuse everything: a file stands in its place."""
    objects, aside = folder / "objects", folder / "objects.aside"
    objects.mkdir(exist_ok=True)
    objects.rename(aside)
    objects.touch()
    yield
    objects.unlink()
    aside.rename(objects)


def worker(stack: Stack) -> WorkerInfo:
    [info] = stack.fleet.workers()
    return info


def test_the_device_goes_on_while_the_store_is_away(stack: Stack, tmp_path: Path) -> None:
    stack.start()
    ids = stack.submit(*(stub_spec(str(i), seed=i, device_ms=100) for i in range(40)))
    stack.until(ids[:1])
    with outage(tmp_path):
        wait_for(lambda: worker(stack).tallies["stub"].rows == 40 or None, 30, "the device stood still")
        statuses = {stack.ledger.get(name).status for name in ids}
        assert statuses == {Status.SUCCEEDED, Status.RUNNING}
        told = worker(stack)
        assert told.state == "ready"
        assert re.fullmatch(r"results that wait for the store: \d+ \(storage folder: .+\)", told.reason)

    records = stack.until(ids, seconds=15)

    assert {(record.status, record.attempt) for record in records} == {(Status.SUCCEEDED, 1)}
    assert worker(stack).tallies["stub"].rows == 40
    wait_for(lambda: not worker(stack).reason or None, 15, "it still says that results wait")


def test_suspects_whose_results_wait_hold_up_nobody(stack: Stack, tmp_path: Path) -> None:
    ids = stack.submit(*(stub_spec(str(i), seed=i) for i in range(3)))
    stack.ledger.claim("dead", [LaneOffer(lane="generate.stub", max_rows=2)], lease_s=60)
    stack.ledger.lapse("dead")
    stack.ledger.reap()
    with outage(tmp_path):
        stack.start()
        wait_for(lambda: worker(stack).tallies["stub"].rows == 3 or None, 30, "the device stood still")
        assert {stack.ledger.get(name).status for name in ids} == {Status.RUNNING}

    records = stack.until(ids)

    assert [record.suspect for record in records] == [True, True, False]
    assert {(record.status, record.strikes) for record in records} == {(Status.SUCCEEDED, 0)}


def test_a_full_spool_stops_the_claims_until_the_store_is_back(stack: Stack, tmp_path: Path) -> None:
    stack.start(PIXELKILN_SPOOL_MB="0")
    with outage(tmp_path):
        ids = stack.submit(*(stub_spec(str(i), seed=i, device_ms=100 + i) for i in range(12)))
        told = wait_for(lambda: i if (i := worker(stack)).state == "refusing" else None, 30, "it claims on")
        assert told.reason.startswith("spool_full: ")
        waiting = sum(stack.ledger.get(name).status is Status.QUEUED for name in ids)
        assert waiting > 0

    assert {record.status for record in stack.until(ids, seconds=30)} == {Status.SUCCEEDED}
    stack.ready_worker()


def test_a_worker_told_to_stop_sends_what_waits_when_the_store_is_back_in_time(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start()
    with outage(tmp_path):
        ids = stack.submit(*(stub_spec(str(i), seed=i) for i in range(6)))
        wait_for(lambda: "wait for the store: 6 " in worker(stack).reason or None, 30, "nothing waits")
        stack.launchers[0].terminate()
        wait_for(lambda: worker(stack).state == "draining" or None, 10, "it does not drain")

    assert stack.launchers[0].wait(30) == 0

    assert {(r.status, r.attempt) for r in stack.until(ids)} == {(Status.SUCCEEDED, 1)}
    assert not list((tmp_path / "spool").iterdir())


def test_a_worker_told_to_stop_gives_back_what_the_store_does_not_take(stack: Stack, tmp_path: Path) -> None:
    stack.start(PIXELKILN_DRAIN_S="1")
    with outage(tmp_path):
        [name] = stack.submit(stub_spec())
        wait_for(lambda: worker(stack).reason or None, 30, "nothing waits")
        stack.launchers[0].terminate()
        assert stack.launchers[0].wait(30) == 0
        record = stack.ledger.get(name)
        assert (record.status, record.strikes) == (Status.QUEUED, 0)


def test_a_killed_workers_spool_goes_and_its_jobs_run_again(stack: Stack, tmp_path: Path) -> None:
    killed = stack.start()
    with outage(tmp_path):
        [name] = stack.submit(stub_spec())
        wait_for(lambda: worker(stack).reason or None, 30, "nothing waits")
        assert (tmp_path / "spool" / f"{killed.id}.spool").is_dir()
        os.kill(killed.pid, signal.SIGKILL)
        successor = stack.ready_worker(lambda info: info.id != killed.id)
        folders = {path.name for path in (tmp_path / "spool").iterdir() if path.is_dir()}
        assert folders == {f"{successor.id}.spool"}

    [record] = stack.until([name])

    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    assert (record.strikes, record.suspect) == (0, False)  # it had run
