"""The store goes away under a real worker: nothing fails, nothing runs twice, and it says what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import Status
from tests.worker_processes import Stack, stub_spec, wait_for


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path, PIXELKILN_SPOOL_DIR=str(tmp_path / "spool"))
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
        assert "jobs wait for the store: storage folder: " in told.reason

    records = stack.until(ids, seconds=15)

    assert {(record.status, record.attempt) for record in records} == {(Status.SUCCEEDED, 1)}
    assert worker(stack).tallies["stub"].rows == 40
    wait_for(lambda: not worker(stack).reason or None, 15, "it still says that results wait")


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
