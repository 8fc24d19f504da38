"""Bells heard twice, and what is no bell at all, in the queue of a real worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from pixelkiln_shared.bells import queue_key
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.keys import CELERY_PREFIX, STRAYS, STRAYS_KEPT, STRAYS_S
from pixelkiln_shared.strays import TEXT_BYTES, Strays
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


def spoilt(stack: Stack, where: str, value: Any) -> str:
    """Return a bell with something else at a place named `outer/inner`; None: with nothing there."""
    message = json.loads(a_bell(stack))
    *outer, last = where.split("/")
    inner = message[outer[0]] if outer else message
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(message)


def garbage(stack: Stack) -> dict[str, str | bytes]:
    """Return messages that are no bells, by what is wrong with them."""
    return {
        "text": "not json",
        "nothing": "",
        "bytes": b"\x80\x04\x95",
        "a number": "7",
        "a list": "[]",
        "an object": "{}",
        "deep": "[" * 100_000,
        "large": "x" * 5_000_000,
        "a type": '{"__type__": "x", "__value__": 1}',
        "properties": '{"properties": 7}',
        "another task": spoilt(stack, "headers/task", "os.system"),
        "a list for a task": spoilt(stack, "headers/task", ["os.system"]),
        "no id": spoilt(stack, "headers/id", None),
        "no headers": spoilt(stack, "headers", None),
        "a list for a tag": spoilt(stack, "properties/delivery_tag", [1]),
        "no delivery": spoilt(stack, "properties/delivery_info", None),
        "an encoding": spoilt(stack, "properties/body_encoding", "rot13"),
        "no base64": spoilt(stack, "body", "%%%"),
        "pickle": spoilt(stack, "content-type", "application/x-python-serialize"),
        "a date": spoilt(stack, "headers/expires", "tomorrow"),
    }


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


def test_garbage_in_the_queue_harms_no_worker_and_no_job_and_is_kept(stack: Stack) -> None:
    worker = stack.start()
    sent = garbage(stack)
    for kind, message in sent.items():
        stack.client.lpush(queue_key(LANE), message)
        [record] = stack.until(stack.submit(stub_spec()), seconds=30)
        assert record.status is Status.SUCCEEDED
        assert record.worker == worker.id, f"{kind}: the worker ended and another one took its place"
        assert stack.client.llen(queue_key(LANE)) == 0

    kept = Strays(stack.client).newest_first()
    assert [stray.queue for stray in kept] == [LANE] * len(sent)
    for stray, (kind, message) in zip(reversed(kept), sent.items(), strict=True):
        data = message if isinstance(message, bytes) else message.encode()
        assert stray.text == data[:TEXT_BYTES].decode("utf-8", "backslashreplace"), kind
        assert (stray.size_bytes, bool(stray.why)) == (len(data), True)
    assert stack.client.hlen(f"{CELERY_PREFIX}unacked") == 0, "the next worker would stumble over it, too"

    for body in (
        b"\xff\xfe not json",
        b'[["' + b"x" * 5_000_000 + b'"], {}, {}]',
    ):  # a bell says nothing in it
        stack.client.lpush(queue_key(LANE), spoilt(stack, "body", base64.b64encode(body).decode()))
        [record] = stack.until(stack.submit(stub_spec()), seconds=30)
        assert (record.status, record.worker) == (Status.SUCCEEDED, worker.id)
    assert Strays(stack.client).newest_first() == kept


def test_of_much_garbage_the_newest_is_kept_for_a_week(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        strays = Strays(client)
        for number in range(STRAYS_KEPT + 5):
            strays.keep(LANE, b"%d" % number, "no reason", at=datetime.now(UTC))
        kept = strays.newest_first()
        assert [int(stray.text) for stray in kept] == list(range(STRAYS_KEPT + 4, 4, -1))
        assert 0 < client.ttl(STRAYS) <= STRAYS_S
