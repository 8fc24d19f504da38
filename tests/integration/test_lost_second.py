"""The power goes, and with it the last second that Redis had not written: an older file comes back."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from pixelkiln.local.redis_server import free_port
from pixelkiln_shared.jobs import Status
from tests.conftest import redis_binary
from tests.worker_processes import Stack, wait_for


class Server:
    """A redis-server on the append-only file in `folder`, which can be put back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }
        line = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([redis_binary(), *line], stdout=subprocess.DEVNULL)
        wait_for(self._answers, 20, "redis-server did not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool | None:
        with suppress(redis.RedisError), redis.Redis(port=self.port) as client:
            return bool(client.ping())
        return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def stack(server: Server, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(f"redis://127.0.0.1:{server.port}/0", tmp_path)
    yield stack
    stack.close()


def a_job(prompt: str, device_ms: int = 20) -> dict[str, Any]:
    """Return a request."""
    wish = {"prompt": prompt, "width": 64, "height": 64, "steps": 10, "options": {"device_ms": device_ms}}
    return {"kind": "generate", "model": "stub", "input": wish}


def test_jobs_of_the_lost_second_are_404_and_all_others_end(
    stack: Stack, server: Server, tmp_path: Path
) -> None:
    worker, url = stack.start(), stack.serve()
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:

        def submit(prompt: str, *, key: str = "", device_ms: int = 20) -> str:
            headers = {"Idempotency-Key": key} if key else {}
            answer = http.post("/v1/jobs", json=a_job(prompt, device_ms), headers=headers)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        done = submit("done")
        stack.until([done])
        running = submit("runs on", device_ms=2_500)
        stack.until_running(running, step=1)
        waiting = submit("waits")
        time.sleep(1.2)  # everysec: what is older than a second is on the disk
        shutil.copytree(server.folder, tmp_path / "copy")
        lost_quick = submit("lost", key="of the lost second")
        lost_held = submit("lost in hand", device_ms=500)
        server.kill()
        shutil.rmtree(server.folder)
        (tmp_path / "copy").rename(server.folder)
        server.start()

        for lost in (lost_quick, lost_held):
            answer = http.get(f"/v1/jobs/{lost}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        again = submit("lost", key="of the lost second")
        assert again != lost_quick
        records = stack.until([done, running, waiting, again], seconds=60)
        assert {record.status for record in records} == {Status.SUCCEEDED}
        assert {http.get(f"/v1/jobs/{record.id}").json()["status"] for record in records} == {"succeeded"}
        listed = {job["id"] for job in http.get("/v1/jobs").json()["jobs"]}
        assert listed == {done, running, waiting, again}
        for lost in (lost_quick, lost_held):
            assert http.get(f"/v1/jobs/{lost}").status_code == 404  # no late result brought one back
    assert stack.ready_worker().id == worker.id, "nothing crashed"
