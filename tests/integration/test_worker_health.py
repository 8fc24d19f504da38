"""The container's health check: a real process asking a real fleet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis

from pixelkiln_shared.fleet import Fleet, State, WorkerInfo


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    client = redis.Redis.from_url(redis_url)
    yield Fleet(client)
    client.close()


def report(fleet: Fleet, state: State, host: str | None = None, reason: str = "") -> None:
    fleet.report(
        WorkerInfo(
            id=f"wrk_{state}",
            host=host or socket.gethostname(),
            pid=1,
            device="cpu",
            state=state,
            reason=reason,
            started_at=datetime.now(UTC),
            version="0",
        )
    )


def ask(redis_url: str) -> tuple[int, str]:
    """Return the exit status and the line printed."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pixelkiln_worker.health"],
        env=os.environ | {"PIXELKILN_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "| torch" not in done.stderr  # a check runs every few seconds: it must stay light
    return done.returncode, done.stdout.strip()


def test_health_is_bad_without_a_worker_here(fleet: Fleet, redis_url: str) -> None:
    report(fleet, "ready", host="elsewhere")

    status, line = ask(redis_url)

    assert status == 1
    assert "no worker process" in line


def test_health_is_bad_until_a_worker_is_ready(fleet: Fleet, redis_url: str) -> None:
    report(fleet, "starting")
    assert ask(redis_url) == (1, "0 of 1 ready: cpu starting")

    report(fleet, "ready")
    status, line = ask(redis_url)
    assert status == 0
    assert line.startswith("1 of 2 ready")


@pytest.mark.parametrize(
    ("state", "reason", "line"),
    [
        ("draining", "", "0 of 1 ready: cpu draining"),
        ("refusing", "spool_full: 9 results", "0 of 1 ready: cpu refusing (spool_full: 9 results)"),
    ],
)
def test_health_is_bad_while_no_jobs_are_taken(
    fleet: Fleet, redis_url: str, state: State, reason: str, line: str
) -> None:
    report(fleet, state, reason=reason)

    assert ask(redis_url) == (1, line)


def test_a_ready_worker_whose_results_wait_is_ready_and_says_so(fleet: Fleet, redis_url: str) -> None:
    report(fleet, "ready", reason="results that wait for the store: 2 (it is slow)")

    status, line = ask(redis_url)

    assert status == 0
    assert "wait for the store: 2" in line


def test_health_is_bad_when_redis_is_away() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    status, line = ask(f"redis://127.0.0.1:{port}/0")

    assert status == 1
    assert line == "Redis does not answer"
