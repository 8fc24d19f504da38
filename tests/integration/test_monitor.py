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
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import redis

from pixelkiln.monitor import run
from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.errors import Misconfigured
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.settings import Settings
from tests import worker_processes
from tests.worker_processes import Stack, stub_spec

PASSWORD = "only-for-this-test"


class Monitor:
    """A running Flower and how to ask it."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

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
        monitor = Monitor(f"http://127.0.0.1:{port}", process.pid)
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


def test_a_frozen_monitor_holds_up_no_job_and_redis_drops_what_it_does_not_read(
    monitor: Monitor, redis_url: str, tmp_path: Path
) -> None:
    stack = Stack(redis_url, tmp_path)
    try:
        stack.start()
        event = an_event(stack)
        os.kill(monitor.pid, signal.SIGSTOP)
        try:
            jobs = stack.submit(*(stub_spec(str(i), device_ms=5) for i in range(20)))
            records = stack.until(jobs, seconds=40)
            assert {(r.status, r.attempt) for r in records} == {(Status.SUCCEEDED, 1)}
            assert stack.client.publish(*event) > 0, "nobody listens"
            flood(stack.client, *event, total_bytes=50_000_000)  # as days of events would
            unread = [int(one["omem"]) for one in stack.client.client_list(_type="pubsub")]
            assert max(unread, default=0) < 1_000_000, "Redis keeps what nobody reads"
            assert stack.client.info("memory")["used_memory"] < 60_000_000
            [after] = stack.until(stack.submit(stub_spec("after")))
            assert after.status is Status.SUCCEEDED
        finally:
            os.kill(monitor.pid, signal.SIGCONT)
        assert monitor.ask("/api/queues/length")[0] == 200
    finally:
        stack.close()


def an_event(stack: Stack) -> tuple[bytes, bytes]:
    """Return a message that a worker sends to monitors, and its channel."""
    with stack.client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe("*celeryev*")
        heard.get_message(timeout=5)
        stack.until(stack.submit(stub_spec("to be heard of")))

        def message() -> dict[str, bytes] | None:
            found: dict[str, bytes] | None = heard.get_message(timeout=1)
            return found

        found = worker_processes.wait_for(message, 20, "workers tell monitors nothing")
    return found["channel"], found["data"]


def flood(client: redis.Redis, channel: bytes, data: bytes, *, total_bytes: int) -> None:
    """Send a message so often."""
    for _ in range(total_bytes // (len(data) * 1_000)):
        with client.pipeline(transaction=False) as pipe:
            for _ in range(1_000):
                pipe.publish(channel, data)
            pipe.execute()


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
