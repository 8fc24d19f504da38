"""A worker without room for more takes no jobs and says why: its disk is full, or its memory is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pixelkiln_shared.jobs import Status
from tests.worker_processes import Stack, stub_spec, wait_for


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write until nothing is left; return the file."""
    filling = disk / "filling"
    with suppress(OSError):
        filling.write_bytes(bytes(8_000_000))
    return filling


def told(stack: Stack, state: str) -> str:
    """Wait until the worker reports a state; return the reason."""
    info = wait_for(
        lambda: next((i for i in stack.fleet.workers() if i.state == state), None), 30, f"never {state}"
    )
    return info.reason


def test_a_full_spool_disk_stops_the_claims_until_there_is_room(stack: Stack, small_disk: Path) -> None:
    stack.start(PIXELKILN_SPOOL_DIR=str(small_disk / "spool"))
    filling = fill(small_disk)
    assert told(stack, "refusing").startswith("worker_disk_full: ")
    ids = stack.submit(stub_spec())
    assert told(stack, "refusing")
    assert stack.ledger.get(ids[0]).status is Status.QUEUED

    filling.unlink()

    assert stack.until(ids)[0].status is Status.SUCCEEDED


def test_a_store_on_a_full_disk_keeps_jobs_waiting_until_there_is_room(
    stack: Stack, small_disk: Path
) -> None:
    (stack.folder / "objects").symlink_to(small_disk)
    stack.start()
    filling = fill(small_disk)
    [name] = stack.submit(stub_spec(width=256, height=256))
    wait_for(lambda: "disk is full" in told(stack, "ready") or None, 20, "nobody says why")
    assert stack.ledger.get(name).status is Status.RUNNING

    filling.unlink()

    assert stack.until([name])[0].status is Status.SUCCEEDED


def test_a_store_whose_disk_stays_full_fails_the_job_typed(stack: Stack, small_disk: Path) -> None:
    (stack.folder / "objects").symlink_to(small_disk)
    stack.start(PIXELKILN_OUTAGE_S="1")
    fill(small_disk)

    [record] = stack.until(stack.submit(stub_spec(width=256, height=256)))

    assert '"storage_full"' in (record.error or "")


def test_a_worker_above_its_memory_takes_no_jobs(stack: Stack) -> None:
    stack.launch(PIXELKILN_WORKER_RSS_MB="10")
    assert told(stack, "refusing").startswith("memory_pressure: ")
    [name] = stack.submit(stub_spec())
    assert told(stack, "refusing")
    assert stack.ledger.get(name).status is Status.QUEUED
