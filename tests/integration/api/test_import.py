"""A Redis that lost everything, and what `pixelkiln import` brings back of what real workers made."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixelkiln_shared import keys
from tests.contract.test_history import finish, made
from tests.integration.api.conftest import Api
from tests.worker_processes import Stack, stub_spec

NOT_IN_A_MANIFEST = {"encode_ms", "upload_ms"}  # it is written before these are known


@pytest.fixture
def stack(api: Api, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def here(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line looks after this API's own Redis and storage."""
    monkeypatch.setenv("PIXELKILN_REDIS_URL", api.settings.redis_url)
    monkeypatch.setenv("PIXELKILN_STORAGE_URL", api.settings.storage_url)


def resource(api: Api, job_id: str) -> dict[str, Any]:
    """Return a job as users see it, without what differs from read to read or is not in the manifest."""
    found = api.http.get(f"/v1/jobs/{job_id}").json()
    for artifact in found["artifacts"]:
        del artifact["url"], artifact["url_expires_at"]
    for name in ("created_at", "started_at", "completed_at", "progress"):
        del found[name]
    found["metrics"] = {
        name: round(value) for name, value in found["metrics"].items() if name not in NOT_IN_A_MANIFEST
    }
    del found["metrics"]["queue_ms"]
    return dict(found)


def moment_of(job_id: str) -> str:
    """Return the part of an id that is its time: the order within a millisecond is in no manifest."""
    return job_id[:14]


def expiry_ms(api: Api, job_id: str) -> float:
    """Return when a job is forgotten, in Unix milliseconds."""
    found = api.redis.zscore(keys.LedgerKey.EXPIRING, job_id)
    assert found is not None
    return float(found)


def moments(api: Api, job_id: str) -> list[float]:
    """Return when a job was made, begun and ended, in Unix seconds."""
    record = api.ledger.get(job_id)
    return [record.created_at, record.started_at or 0.0, record.completed_at or 0.0]


def test_finished_jobs_come_back_as_they_were(
    api: Api, stack: Stack, pixelkiln: Callable[..., Any], here: None, tmp_path: Path
) -> None:
    stack.start()
    body = {"kind": "generate", "model": "stub", "input": {"prompt": "a hill", "options": {"device_ms": 20}}}
    grouped = api.http.post("/v1/groups", json={"jobs": [body] * 3}).json()
    labelled = api.http.post(
        "/v1/jobs", json={**body, "labels": {"for": "Anna"}, "priority": "interactive", "retention_s": 900}
    ).json()
    ids = [*grouped["ids"], labelled["id"]]
    stack.until(ids)
    failed = stack.submit(stub_spec("[fail=error]", tenant="default"))
    stack.until(failed)
    before = [resource(api, job_id) for job_id in ids]
    times = [moments(api, job_id) for job_id in ids]
    ends = [expiry_ms(api, job_id) for job_id in ids]
    listed = [job["id"] for job in api.http.get("/v1/jobs?status=succeeded").json()["jobs"]]
    stack.client.flushall()
    assert api.http.get(f"/v1/jobs/{ids[0]}").status_code == 404

    told = pixelkiln("import", "--json", "--data", tmp_path / "none")
    assert told.exit_code == 0, told.output
    counts = json.loads(told.stdout)
    assert (counts["restored"], counts["known"], counts["foreign"]) == (4, 0, 0)
    assert [resource(api, job_id) for job_id in ids] == before
    for one, other in zip(times, (moments(api, job_id) for job_id in ids), strict=True):
        assert all(abs(a - b) < 10.0 for a, b in zip(one, other, strict=True))
    for job_id, end in zip(ids, ends, strict=True):
        assert abs(expiry_ms(api, job_id) - end) < 10_000
    found = [job["id"] for job in api.http.get("/v1/jobs").json()["jobs"]]
    assert sorted(found) == sorted(listed)
    assert [moment_of(job_id) for job_id in found] == [moment_of(job_id) for job_id in listed]
    group = api.http.get(f"/v1/groups/{grouped['group']}").json()
    assert (group["total"], group["done"], group["counts"]["succeeded"]) == (3, True, 3)
    first = api.http.get(f"/v1/jobs/{ids[0]}").json()
    assert api.http.get(first["artifacts"][0]["url"]).content.startswith(b"\x89PNG")
    assert ids[0] in api.http.get("/").text
    assert pixelkiln("download", ids[0], "-o", tmp_path / "out").exit_code == 0
    assert list((tmp_path / "out").iterdir())
    assert api.http.get(f"/v1/jobs/{failed[0]}").status_code == 404

    again = pixelkiln("import", "--data", tmp_path / "none")
    assert again.exit_code == 0
    assert again.stdout.startswith("0 jobs imported, 4 were known")
    fresh = api.http.post("/v1/jobs", json=body).json()["id"]
    stack.until([fresh])
    assert [job["id"] for job in api.http.get("/v1/jobs").json()["jobs"]] == [fresh, *found]
    assert api.http.delete(f"/v1/jobs/{ids[0]}").status_code == 204
    assert pixelkiln("import", "--data", tmp_path / "none").stdout.startswith("0 jobs imported, 4 were known")


def test_a_dry_run_leaves_redis_empty(
    api: Api, stack: Stack, pixelkiln: Callable[..., Any], here: None, tmp_path: Path
) -> None:
    stack.start()
    stack.until(stack.submit(stub_spec(tenant="default")))
    stack.client.flushall()
    told = pixelkiln("import", "--dry-run", "--data", tmp_path / "none")
    assert told.stdout.startswith("1 jobs would be imported")
    assert api.http.get("/v1/jobs").json()["jobs"] == []


def test_what_cannot_be_read_is_exit_code_1(
    api: Api, pixelkiln: Callable[..., Any], here: None, tmp_path: Path
) -> None:
    spec = stub_spec(tenant="default")
    key = keys.attempt_prefix("default", spec.id, 1) + "manifest.json"
    api.storage.put(key, b'{"format":"pixelkiln-manifest/9"}', media_type="application/json")
    told = pixelkiln("import", "--data", tmp_path / "none")
    assert told.exit_code == 1
    assert "1 jobs of a newer version" in told.stdout


def test_a_redis_that_does_not_answer_is_exit_code_5(
    api: Api, pixelkiln: Callable[..., Any], here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIXELKILN_REDIS_URL", f"redis://127.0.0.1:{probe.getsockname()[1]}/0")
        told = pixelkiln("import", "--data", tmp_path / "none")
    assert told.exit_code == 5
    assert "Redis does not answer" in told.stderr


def test_history_leaves_room_for_new_jobs(
    api: Api, pixelkiln: Callable[..., Any], here: None, tmp_path: Path
) -> None:
    finish(api.storage, made(tenant="default"))
    api.redis.config_set("maxmemory", round(int(api.redis.info("memory")["used_memory"]) / 0.9))
    try:
        told = pixelkiln("import", "--data", tmp_path / "none")
    finally:
        api.redis.config_set("maxmemory", 0)
    assert told.exit_code == 1
    assert "new jobs need the rest" in told.stderr
    assert pixelkiln("import", "--data", tmp_path / "none").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tenant", "../x"),
        ("--tenant", ""),
        ("--since", "yesterday"),
        ("--since", "2026-02-02", "--until", "2026-02-01"),
    ],
)
def test_wrong_usage_is_refused(
    pixelkiln: Callable[..., Any], here: None, arguments: tuple[str, ...]
) -> None:
    assert pixelkiln("import", *arguments).exit_code == 2
