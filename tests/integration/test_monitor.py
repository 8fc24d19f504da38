"""The monitor: a real Flower process on a real Redis."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import redis

from pixelkiln.monitor import run
from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.errors import Misconfigured
from pixelkiln_shared.settings import Settings

PASSWORD = "only-for-this-test"


class Monitor:
    """A running Flower and how to ask it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, *, password: str | None = PASSWORD, post: bool = False) -> tuple[int, bytes]:
        """Return the HTTP status and the body."""
        request = Request(self.url + path, data=b"" if post else None)  # noqa: S310 - our own loopback address
        if password is not None:
            pair = base64.b64encode(f"pixelkiln:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {pair}")
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture
def monitor(redis_url: str) -> Iterator[Monitor]:
    """Flower on a free port, stopped by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PIXELKILN_REDIS_URL": redis_url, "FLOWER_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "pixelkiln.monitor", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        monitor = Monitor(f"http://127.0.0.1:{port}")
        try:
            wait_for(monitor, process)
            yield monitor
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0


def wait_for(monitor: Monitor, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the monitor ended at once"
        try:
            if monitor.ask("/healthcheck")[0] == 200:
                return
        except URLError:
            time.sleep(0.2)
    raise AssertionError("the monitor did not answer within a minute")


def test_monitor_shows_waiting_bells_to_whoever_logs_in(monitor: Monitor, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    CeleryBells(make_app(Settings(redis_url=redis_url)), client).ring({"generate.toyworld": 3})
    client.close()

    assert monitor.ask("/", password=None)[0] == 401
    assert monitor.ask("/api/queues/length", password=None)[0] == 401
    assert monitor.ask("/api/queues/length", password="wrong")[0] == 401
    status, body = monitor.ask("/api/queues/length")

    lengths = {queue["name"]: queue["messages"] for queue in json.loads(body)["active_queues"]}
    assert status == 200
    assert lengths["generate.toyworld"] == 3
    assert lengths["segment.toyworld-classes"] == 0


def test_monitor_refuses_to_control_anything(monitor: Monitor) -> None:
    status, _ = monitor.ask("/api/task/revoke/00000000-0000-0000-0000-000000000000?terminate=true", post=True)

    assert status == 403


def test_monitor_beyond_loopback_needs_a_password_of_its_own() -> None:
    with pytest.raises(Misconfigured, match="FLOWER_PASSWORD"):
        run(host="0.0.0.0", port=0)  # noqa: S104 - refused


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a:b", "x"), ("a", "one,two"), ("a", "pässword")])
def test_monitor_refuses_credentials_that_flower_misreads(user: str, password: str) -> None:
    with pytest.raises(Misconfigured, match="monitor's"):
        run(user=user, password=password)
