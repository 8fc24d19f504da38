"""The line between a worker and Redis is slow, or dead and not closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pixelkiln_shared.jobs import Status
from tests.chaos.proxy import Mode, TcpProxy
from tests.worker_processes import Stack, stub_spec

DEAD_S = 60.0  # the goal; with the time limit of one call that is set by default it takes about 24 s


@pytest.fixture
def line(redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def stack(redis_url: str, line: TcpProxy, tmp_path: Path) -> Iterator[Stack]:
    """Only the workers are on the line."""
    address = f"redis://127.0.0.1:{line.port}/0"
    stack = Stack(redis_url, tmp_path, PIXELKILN_REDIS_URL=address, PIXELKILN_REDIS_TIMEOUT_S="1")
    yield stack
    stack.close()


def test_a_worker_bears_a_slow_line_and_finds_back_from_a_dead_one(stack: Stack, line: TcpProxy) -> None:
    worker = stack.start(PIXELKILN_LEASE_S="15", PIXELKILN_HEARTBEAT_S="5")

    line.mode = Mode.LATENCY
    records = stack.until(stack.submit(*(stub_spec(seed=seed) for seed in range(3))), seconds=40)
    assert {(record.status, record.attempt) for record in records} == {(Status.SUCCEEDED, 1)}

    line.mode = Mode.PASS
    line.forget()
    [record] = stack.until(stack.submit(stub_spec()), seconds=DEAD_S)
    assert (record.status, record.attempt, record.worker) == (Status.SUCCEEDED, 1, worker.id)
