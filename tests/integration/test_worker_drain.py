"""A worker that is asked to drain ends what it runs, claims no more, and stays down."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import Record
from tests.worker_processes import BOOT_S, TENANT, Stack, result_of, stub_spec, wait_for

HEARD_S = 6.0  # a report comes every 5 s; on a quiet machine a wish is heard within one


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def log_of(stack: Stack) -> str:
    return (stack.folder / "worker-0.log").read_text()


def until_draining(stack: Stack) -> None:
    def draining() -> bool | None:
        return any(info.state == "draining" for info in stack.fleet.workers()) or None

    wait_for(draining, HEARD_S, "the wish was not heard")


def test_the_job_in_hand_ends_the_next_waits_and_nobody_starts_the_worker_again(stack: Stack) -> None:
    worker = stack.start()
    [in_hand] = stack.submit(stub_spec("in hand", steps=20, device_ms=4_000))
    stack.until_running(in_hand, step=1)
    stack.fleet.drain(worker.id)
    until_draining(stack)
    [later] = stack.submit(stub_spec("later"))
    [record] = stack.until([in_hand])
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    assert stack.launchers[0].wait(timeout=30) == 0
    assert stack.fleet.workers() == []
    assert stack.ledger.get(later).status is Status.QUEUED
    assert not Path(f"/proc/{worker.pid}").exists()
    assert log_of(stack).count("worker started") == 1


def test_a_bell_beside_a_draining_worker_is_left_for_another(stack: Stack) -> None:
    launchers = {stack.start().id: stack.launchers[0], stack.start().id: stack.launchers[1]}
    [in_hand] = stack.submit(stub_spec("in hand", steps=100, device_ms=8_000))
    stack.until_running(in_hand, step=1)

    def holder() -> WorkerInfo | None:
        return next((info for info in stack.fleet.workers() if info.running), None)

    leaving = wait_for(holder, HEARD_S, "nobody tells of the job")
    stack.fleet.drain(leaving.id)
    until_draining(stack)
    [later] = stack.until(stack.submit(stub_spec("later")))
    assert later.status is Status.SUCCEEDED
    stack.until([in_hand])
    assert launchers.pop(leaving.id).wait(timeout=30) == 0
    assert [info.id for info in stack.fleet.workers()] == list(launchers)


def test_a_worker_that_dies_while_it_drains_is_not_replaced(stack: Stack) -> None:
    worker = stack.start()
    [in_hand] = stack.submit(stub_spec("[crash] in hand", steps=2, device_ms=3_000))
    stack.until_running(in_hand)
    stack.fleet.drain(worker.id)
    assert stack.launchers[0].wait(timeout=30) == 0
    assert stack.ledger.get(in_hand).status is not Status.SUCCEEDED
    assert log_of(stack).count("worker started") == 1
    assert stack.fleet.workers() == []


def test_rough_goodbyes_move_a_job_on_and_leave_no_half_of_it(stack: Stack) -> None:
    """SIGTERM twice to one launcher, as impatient supervisors send it, SIGQUIT to the next."""
    for _ in range(3):
        stack.launch(PIXELKILN_DRAIN_S="0.5")
    wait_for(lambda: ready(stack) >= 2 or None, BOOT_S, "the workers did not become ready")
    [job] = stack.submit(stub_spec("passed on", steps=60, device_ms=3_000))

    def hit(attempt: int, *signals: signal.Signals) -> None:
        record = wait_for(lambda: running_as(stack, job, attempt), 30, f"no attempt {attempt}")
        pid = next(info.pid for info in stack.fleet.workers() if info.id == record.worker)
        for number in signals:
            os.kill(parent(pid), number)

    hit(1, signal.SIGTERM, signal.SIGTERM)
    hit(2, signal.SIGQUIT)
    [record] = stack.until([job], seconds=BOOT_S)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 3)
    kept = [stored.key for stored in stack.storage.list(f"{TENANT}/") if job in stored.key]
    assert sorted(kept) == sorted(artifact.key for artifact in result_of(record).artifacts)
    assert all("/a3/" in key for key in kept)


def ready(stack: Stack) -> int:
    return sum(info.state == "ready" for info in stack.fleet.workers())


def running_as(stack: Stack, job: str, attempt: int) -> Record | None:
    """Return the record once this attempt is on its way."""
    record = stack.ledger.get(job)
    begun = (record.status, record.attempt) == (Status.RUNNING, attempt) and record.step > 0
    return record if begun else None


def parent(pid: int) -> int:
    """Return the process id of a worker's launcher."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
