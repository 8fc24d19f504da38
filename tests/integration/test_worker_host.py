"""A worker whose host runs short of memory or of file descriptors: a live process gets new limits."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from pixelkiln_shared.fleet import WorkerInfo
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger.contract import Record
from tests.worker_processes import TENANT, Stack, result_of, stub_spec, wait_for

if sys.platform != "linux":
    pytest.skip("only Linux changes the limits of another process", allow_module_level=True)
import resource

ROOM_BYTES = 96_000_000


@pytest.fixture(scope="module")
def stack(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    more = {"PIXELKILN_WORKER_MODELS": "stub,classical-otsu", "MALLOC_ARENA_MAX": "2"}
    stack = Stack(f"{redis_server}/3", tmp_path_factory.mktemp("host"), **more)
    stack.client.flushdb()
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def worker(stack: Stack) -> WorkerInfo:
    """The one whose limits change; they are put back after each test."""
    return stack.start()


@pytest.fixture(autouse=True)
def limits_put_back(worker: WorkerInfo) -> Iterator[None]:
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)
    before = {kind: resource.prlimit(worker.pid, kind) for kind in kinds}
    yield
    for kind, limits in before.items():
        resource.prlimit(worker.pid, kind, limits)


def segment_spec(stack: Stack, width: int, height: int) -> JobSpec:
    """Return a job on a stored picture of this size."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    data = file.getvalue()
    key = f"{TENANT}/uploads/{width}x{height}"
    stack.storage.put(key, data, media_type="image/png")
    ref = {"object": key, "sha256": sha256(data).hexdigest(), "width": width, "height": height}
    return JobSpec(
        id=new_id("job"), kind=Kind.SEGMENT, model="classical-otsu", tenant=TENANT, input={"image": ref}
    )


def limit_memory(pid: int) -> None:
    """Leave a process so much more address space than it has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def limit_descriptors(pid: int) -> tuple[int, int]:
    """Leave a process no descriptor but those it has open; returns the limits before."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    return soft, hard


def code_of(record: Record) -> str:
    return str(json.loads(record.error or "{}").get("code"))


def test_a_host_without_memory_fails_what_does_not_fit_and_serves_on(
    stack: Stack, worker: WorkerInfo
) -> None:
    warm = stack.submit(*(stub_spec(f"warm {i}") for i in range(8)), segment_spec(stack, 64, 64))
    assert {record.status for record in stack.until(warm)} == {Status.SUCCEEDED}
    limit_memory(worker.pid)
    paints_too_much = stub_spec(width=4_096, height=4_096)
    reads_too_much = segment_spec(stack, 8_000, 4_000)
    [painted] = stack.until(stack.submit(paints_too_much))
    [read] = stack.until(stack.submit(reads_too_much))
    assert (painted.status, code_of(painted)) == (Status.FAILED, "out_of_memory")
    assert "smaller size than 4096 x 4096" in (painted.error or "")
    assert (read.status, code_of(read)) == (Status.FAILED, "out_of_memory")
    assert "smaller" in (read.error or "")
    after = stack.until(stack.submit(stub_spec("after"), segment_spec(stack, 60, 60)))
    assert {(record.status, record.worker) for record in after} == {(Status.SUCCEEDED, worker.id)}


def test_a_worker_without_descriptors_is_late_and_loses_nothing(stack: Stack, worker: WorkerInfo) -> None:
    stack.until(stack.submit(stub_spec("warm")))
    before = limit_descriptors(worker.pid)
    ids = stack.submit(*(stub_spec(f"late {i}") for i in range(5)))
    wait_for(lambda: stack.ledger.get(ids[0]).status is Status.RUNNING or None, 20, "none was begun")
    with pytest.raises(AssertionError):
        stack.until(ids, seconds=2)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
    records = stack.until(ids, seconds=60)
    assert {(r.status, r.attempt, r.worker) for r in records} == {(Status.SUCCEEDED, 1, worker.id)}
    assert all(stack.storage.get(a.key) for record in records for a in result_of(record).artifacts)
