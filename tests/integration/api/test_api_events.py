"""The event stream of a job: snapshot first, ids on everything that can be resumed, an end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.api.conftest import Api


@dataclass
class Told:
    """One server-sent event."""

    type: str
    data: dict[str, Any]
    id: str | None


def read(lines: Iterator[str]) -> Iterator[Told]:
    """Parse an event stream; comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            yield Told(fields["event"], json.loads(fields["data"]), fields.get("id"))
        fields = {}


def follow(api: Api, job_id: str, **headers: str) -> list[Told]:
    """Read the stream to its end."""
    with api.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(read(answer.iter_lines()))


def test_a_stream_begins_with_a_snapshot_and_ends_with_the_job(api: Api) -> None:
    job_id = api.submit()["id"]

    def work() -> None:
        time.sleep(0.5)
        claimed = api.claim()
        api.ledger.progress(claimed.id, claimed.attempt, 7, 14)
        time.sleep(0.3)
        api.publish(claimed)

    worker = threading.Thread(target=work)
    worker.start()
    told = follow(api, job_id)
    worker.join()
    assert told[0].type == "status"
    assert told[0].data["status"] == "queued"
    assert told[-1].data["status"] == "succeeded"
    assert told[-1].data["artifacts"][0]["url"].startswith(api.url)
    assert any(one.type == "progress" and one.data["step"] == 7 for one in told)
    assert all(one.id for one in told)


def test_a_stream_of_an_ended_job_is_one_snapshot(api: Api) -> None:
    job_id = api.submit()["id"]
    api.http.post(f"/v1/jobs/{job_id}/cancel")
    assert [one.data["status"] for one in follow(api, job_id)] == ["canceled"]


def test_a_broken_stream_goes_on_where_it_was(api: Api) -> None:
    job_id = api.submit()["id"]
    with api.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        first = next(read(answer.iter_lines()))
    claimed = api.claim()
    api.ledger.progress(claimed.id, claimed.attempt, 3, 14)
    threading.Timer(0.5, api.publish, [claimed]).start()
    told = follow(api, job_id, **{"Last-Event-ID": first.id or ""})
    assert told[0].data["status"] == "running"
    assert any(one.type == "progress" and one.data["step"] == 3 for one in told), "missed while away"
    assert told[-1].data["status"] == "succeeded"


@pytest.mark.parametrize("mark", ["nonsense", "1-1; DROP", "-", "9" * 500])
def test_a_mark_we_never_gave_is_as_good_as_none(api: Api, mark: str) -> None:
    job_id = api.submit()["id"]
    api.http.post(f"/v1/jobs/{job_id}/cancel")
    assert follow(api, job_id, **{"Last-Event-ID": mark})[0].data["status"] == "canceled"


def test_heartbeats_keep_a_quiet_stream_open(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkiln.api.events.HEARTBEAT_S", 0.2)
    job_id = api.submit()["id"]
    with api.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert any(line == ": heartbeat" for line in answer.iter_lines())


def test_thirty_watchers_all_see_the_end(api: Api) -> None:
    job_id = api.submit()["id"]
    ends: list[str] = []

    def watch() -> None:
        with (
            httpx2.Client(trust_env=False, timeout=20) as http,
            http.stream("GET", f"{api.url}/v1/jobs/{job_id}/events") as answer,
        ):
            ends.append(list(read(answer.iter_lines()))[-1].data["status"])

    watchers = [threading.Thread(target=watch) for _ in range(30)]
    for watcher in watchers:
        watcher.start()
    time.sleep(1)
    api.publish(api.claim())
    for watcher in watchers:
        watcher.join(20)
    assert ends == ["succeeded"] * 30


def test_the_server_stops_in_time_though_somebody_listens(redis_url: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PIXELKILN_REDIS_URL": redis_url,
        "PIXELKILN_PORT": str(port),
        "PIXELKILN_STORAGE_URL": f"file://{tmp_path}",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "pixelkiln.api"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
            job_id = submitted(http)
            with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                lines = answer.iter_lines()
                assert next(read(lines)).data["status"] == "queued"
                server.terminate()
                assert list(read(lines)) == [], "the stream ends in an orderly way"
        server.wait(15)
    finally:
        server.kill()
        server.wait()


def submitted(http: httpx2.Client) -> str:
    """Submit a job as soon as the server answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            body = {"kind": "generate", "input": {"prompt": "a red house"}}
            return str(http.post("/v1/jobs", json=body).json()["id"])
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
