"""Workers and jobs of different versions meet: nothing is lost, nothing is tried over and over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pixelkiln_shared.jobs import SPEC_VERSION, JobSpec, Status
from pixelkiln_shared.ledger.contract import NewJob
from tests.worker_processes import Stack, new_job, stub_spec

LATER = Path(__file__).parents[1] / "later_version"


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def later(spec: JobSpec) -> NewJob:
    """Return a job as an API of the next version might write it, into the lane of this one."""
    document = {**json.loads(spec.compact()), "v": SPEC_VERSION + 1, "mood": "blue"}
    return replace(new_job(spec), spec=json.dumps(document))


def later_worker(stack: Stack) -> str:
    """Start a worker of the next version; returns its id."""
    path = os.pathsep.join([str(LATER), os.environ.get("PYTHONPATH", "")])
    return stack.start(PYTHONPATH=path).id


def test_a_later_job_waits_for_a_later_worker_and_holds_up_nobody(stack: Stack) -> None:
    stack.start()
    spec = stub_spec()
    stack.ledger.submit([later(spec)])
    stack.bells.ring({spec.lane: 1})
    others = [stack.submit(stub_spec(f"hill {at}"))[0] for at in range(5)]
    assert {record.status for record in stack.until(others)} == {Status.SUCCEEDED}
    time.sleep(2.0)  # sweeps ring for what waits: a worker that took it again and again would show here
    waiting = stack.ledger.get(spec.id)
    assert (waiting.status, waiting.attempt, waiting.lane) == (Status.QUEUED, 1, "generate.stub@2")
    assert [(lane.lane, lane.waiting) for lane in stack.ledger.lanes()] == [("generate.stub@2", 1)]
    newer = later_worker(stack)
    [record] = stack.until([spec.id])
    assert (record.status, record.attempt, record.worker) == (Status.SUCCEEDED, 2, newer)


def test_a_later_worker_serves_the_jobs_of_before(stack: Stack) -> None:
    old = stub_spec()
    given = {name: old.input[name] for name in ("prompt", "seed", "width", "height", "steps", "options")}
    fields = {"id": old.id, "kind": "generate", "model": "stub", "tenant": old.tenant, "input": given}
    stack.ledger.submit([replace(new_job(old), spec=json.dumps(fields))])  # no version, no newer field
    later_worker(stack)
    stack.bells.ring({old.lane: 1})
    records = stack.until([old.id, *stack.submit(stub_spec("hill"))])
    assert [record.status for record in records] == [Status.SUCCEEDED] * 2


def test_the_next_version_submits_where_only_its_own_workers_look(stack: Stack) -> None:
    stack.start()
    spec = stub_spec(v=SPEC_VERSION + 1)
    stack.submit(spec)
    time.sleep(1.0)
    assert (stack.ledger.get(spec.id).status, stack.ledger.get(spec.id).attempt) == (Status.QUEUED, 0)
    later_worker(stack)
    assert stack.until([spec.id])[0].status is Status.SUCCEEDED
