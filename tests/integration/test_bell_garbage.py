"""Bells heard twice, and what is no bell at all, in the queue of a real worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelkiln_shared.bells import queue_key
from pixelkiln_shared.jobs import Status
from tests.worker_processes import Stack, new_job, stub_spec, wait_for

LANE = "generate.stub"


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def a_bell(stack: Stack) -> str:
    """Return a bell as it hangs in the queue."""
    return stack.bells._bell(LANE)


def other_task(stack: Stack) -> str:
    """Return a message that calls a task nobody has."""
    message = json.loads(a_bell(stack))
    message["headers"]["task"] = "os.system"
    return json.dumps(message)


def other_body(stack: Stack, body: bytes) -> str:
    """Return a bell with another body."""
    message = json.loads(a_bell(stack))
    message["body"] = base64.b64encode(body).decode()
    return json.dumps(message)


def test_a_bell_delivered_a_hundred_times_makes_one_result(stack: Stack) -> None:
    worker = stack.start()
    spec = stub_spec(device_ms=20)
    bell = a_bell(stack)
    stack.ledger.submit([new_job(spec)])
    stack.client.lpush(queue_key(LANE), *[bell] * 100)
    [record] = stack.until([spec.id])
    wait_for(lambda: stack.client.llen(queue_key(LANE)) == 0 or None, 20, "the bells were not heard")
    assert (record.status, stack.ledger.get(spec.id)) == (Status.SUCCEEDED, record)
    assert record.attempt == 1
    assert [info.id for info in stack.fleet.workers()] == [worker.id]


@pytest.mark.parametrize("kind", ["text", "number", "list", "no body", "other task", "body", "huge", "bytes"])
def test_garbage_in_the_queue_harms_no_worker_and_no_job(stack: Stack, kind: str) -> None:
    worker = stack.start()
    garbage = {
        "text": "not json",
        "number": "7",
        "list": "[]",
        "no body": "{}",
        "other task": other_task(stack),
        "body": other_body(stack, b"\xff\xfe not json"),
        "huge": other_body(stack, b'[["' + b"x" * 5_000_000 + b'"], {}, {}]'),
        "bytes": b"\x80\x04\x95",
    }[kind]
    stack.client.lpush(queue_key(LANE), garbage)
    [record] = stack.until(stack.submit(stub_spec()), seconds=30)
    assert record.status is Status.SUCCEEDED
    assert record.worker == worker.id, "the worker ended and another one took its place"
    assert stack.client.llen(queue_key(LANE)) == 0
