"""Clients that say nothing, listen for ever or never read, and an API with few file descriptors."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pixelkiln.local.redis_server import free_port
from tests.worker_processes import wait_for

DESCRIPTORS = 64
PLACES = DESCRIPTORS // 3
JOB = {"kind": "generate", "model": "stub", "input": {"prompt": "a hill"}}


@dataclass
class Narrow:
    """The API process, a way to ask it that is new each time, and what it logs."""

    pid: int
    port: int
    log: Path

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Ask over a connection of its own."""
        with httpx2.Client(trust_env=False, timeout=20) as http:
            return http.request(method, f"http://127.0.0.1:{self.port}{path}", **more)

    @contextmanager
    def idle(self, count: int) -> Iterator[None]:
        """Hold connections that say nothing; those that find no place keep knocking."""
        with ExitStack() as held:
            for _ in range(count):
                sock = held.enter_context(socket.socket())
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", self.port))
            yield

    def descriptors(self) -> int:
        """Return how many the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_mb(self) -> float:
        """Return the memory of the process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    def submit(self) -> httpx2.Response:
        """Submit a job."""
        return self.ask("POST", "/v1/jobs", json=JOB)

    def until_accepted(self) -> None:
        """Submit until a job is accepted, as a client does that is answered 503."""
        wait_for(lambda: self.submit().status_code == 202 or None, 20, "no job was accepted")


@pytest.fixture(scope="module")
def api(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    folder, port = tmp_path_factory.mktemp("narrow"), free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")}
    ours = {
        "PIXELKILN_REDIS_URL": f"{redis_server}/2",
        "PIXELKILN_STORAGE_URL": f"file://{folder}/objects",
        "PIXELKILN_STUB": "1",
        "PIXELKILN_PORT": str(port),
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pixelkiln.api"],
            env=inherited | ours,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
        )
    api = Narrow(process.pid, port, folder / "api.log")

    def answers() -> bool | None:
        with suppress(httpx2.TransportError):
            return api.ask("GET", "/healthz").status_code == 200
        return None

    try:
        wait_for(answers, 60, "the API did not start")
        yield api
        assert process.poll() is None, "it lives on"
    finally:
        process.kill()
        process.wait()


def test_two_hundred_silent_connections_stand_in_nobodys_way(api: Narrow) -> None:
    with api.idle(200):
        api.until_accepted()  # silent for a second, a connection makes room
        # 503: those without a place knock again
        assert {api.submit().status_code for _ in range(10)} <= {202, 503}
        api.until_accepted()
        assert api.descriptors() < DESCRIPTORS
    assert api.submit().status_code == 202
    assert api.log.stat().st_size < 50_000, "a flood in the log"


def test_beyond_what_it_can_hold_the_api_answers_503_and_recovers(api: Narrow) -> None:
    url = f"http://127.0.0.1:{api.port}/v1/jobs/{api.submit().json()['id']}/events"
    with ExitStack() as streams:
        http = streams.enter_context(httpx2.Client(trust_env=False, timeout=20))
        # Fewer than all places are free where the last test's connections have not yet been silent for long.
        opened = (streams.enter_context(http.stream("GET", url)) for _ in range(PLACES + 1))
        refused = next(answer for answer in opened if answer.status_code != 200)
        assert (refused.status_code, json.loads(refused.read())["code"]) == (503, "unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Type"] == "application/problem+json"
    api.until_accepted()


def test_a_scraper_that_never_reads_costs_its_own_connection_only(api: Narrow) -> None:
    before_mb = api.resident_mb()
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as scraper:
        scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        scraper.settimeout(0.5)
        with suppress(TimeoutError):  # in the end its own requests are taken no more, either
            for _ in range(5_000):
                scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [api.submit().status_code for _ in range(5)] == [202] * 5
        assert api.ask("GET", "/metrics").status_code == 200
        assert api.resident_mb() - before_mb < 30
