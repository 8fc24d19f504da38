"""A Redis that answers and yet does not serve: what users see meanwhile, and that all is well afterwards.

Each with a real API; where work is under way, with a real worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.jobs import Status
from tests.integration.api.conftest import Api
from tests.worker_processes import Stack, wait_for

STUB = {"kind": "generate", "model": "stub", "input": {"prompt": "a hill", "options": {"device_ms": 20}}}
SLOW = {"kind": "generate", "model": "stub", "input": {"prompt": "a hill", "options": {"device_ms": 1_500}}}


@pytest.fixture
def stack(api: Api, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """No memory left."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def replica(client: redis.Redis) -> Iterator[None]:
    """As after a failover that our address did not follow."""
    client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


def setting(client: redis.Redis, name: str) -> str:
    return str(client.config_get(name)[name])


@contextmanager
def disk_gone(client: redis.Redis) -> Iterator[None]:
    """A snapshot that cannot be written, as on a full disk: a folder stands where the file should go."""
    in_the_way = Path(setting(client, "dir")) / setting(client, "dbfilename")
    before = setting(client, "save")

    def snapshot(state: str) -> None:
        client.bgsave()
        wait_for(
            lambda: client.info("persistence")["rdb_last_bgsave_status"] == state or None, 10, f"not {state}"
        )

    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir()
    client.config_set("save", "3600 1")
    try:
        snapshot("err")
        yield
    finally:
        in_the_way.rmdir()
        snapshot("ok")
        client.config_set("save", before)


AWAY = ("redis_unavailable", "the queue does not answer; try again soon")
STATES = pytest.mark.parametrize(
    ("ruin", "words", "code", "told"),
    [
        (full, "Redis is full", "queue_full", "the queue has no memory left; try again later"),
        (replica, "Redis is a replica", *AWAY),
        (disk_gone, "Redis cannot save to its disk", *AWAY),
    ],
)


def unready(api: Api) -> str | None:
    """Return what `/readyz` says of Redis, None while all is well."""
    answer = api.http.get("/readyz")
    return answer.json()["redis"] if answer.status_code == 503 else None


@STATES
def test_a_redis_that_takes_no_writes_is_503_and_still_read(
    api: Api, ruin: Callable[[redis.Redis], AbstractContextManager[None]], words: str, code: str, told: str
) -> None:
    job_id = api.submit()["id"]
    with ruin(api.redis):
        refused = [
            api.http.post("/v1/jobs", json=STUB),
            api.http.post("/v1/groups", json={"jobs": [STUB]}),
            api.http.post(f"/v1/jobs/{job_id}/cancel"),
        ]
        assert [answer.status_code for answer in refused] == [503] * 3
        with pytest.raises(RedisUnavailable, match=words):  # operators read why, in the log of each sweep
            api.ledger.cancel(job_id)
        for answer in refused:
            assert (answer.json()["code"], answer.json()["detail"]) == (code, told)
            assert int(answer.headers["Retry-After"]) >= 1
        assert wait_for(lambda: unready(api), 20, "it still called itself ready") == code
        assert api.http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
        assert [job["id"] for job in api.http.get("/v1/jobs").json()["jobs"]] == [job_id]
    assert api.http.post("/v1/jobs", json=STUB).status_code == 202
    assert api.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "canceled"


@STATES
def test_work_under_way_outlives_a_redis_that_takes_no_writes(
    api: Api,
    stack: Stack,
    ruin: Callable[[redis.Redis], AbstractContextManager[None]],
    words: str,
    code: str,
    told: str,
) -> None:
    stack.start()
    running, waiting = (api.http.post("/v1/jobs", json=SLOW).json()["id"] for _ in range(2))
    stack.until_running(running)
    with ruin(stack.client):
        time.sleep(3.0)  # the running job has come to its end meanwhile
        refused = api.http.post("/v1/jobs", json=STUB)
        assert (refused.status_code, refused.json()["code"]) == (503, code)
    records = stack.until([running, waiting], seconds=60)
    assert [record.status for record in records] == [Status.SUCCEEDED] * 2
    for record in records:
        job = api.http.get(f"/v1/jobs/{record.id}").json()
        assert len([one for one in job["artifacts"] if one["role"] == "image"]) == 1
        assert api.http.get(job["artifacts"][0]["url"]).content.startswith(b"\x89PNG")


def test_an_emptied_redis_is_404_and_goes_on_serving(api: Api, stack: Stack) -> None:
    worker = stack.start()
    done = api.http.post("/v1/jobs", json=STUB).json()["id"]
    stack.until([done])
    group = api.http.post("/v1/groups", json={"jobs": [SLOW, SLOW]}).json()
    running = group["ids"][0]
    stack.until_running(running)
    kept = sorted(stored.key for stored in api.storage.list("default/") if f"/{done}/" in stored.key)
    stack.client.flushall()

    for path in (f"/v1/jobs/{done}", f"/v1/jobs/{running}", f"/v1/groups/{group['group']}"):
        answer = api.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert api.http.get("/v1/jobs").json()["jobs"] == []
    fresh = api.http.post("/v1/jobs", json=STUB).json()["id"]
    [record] = stack.until([fresh], seconds=30)
    assert (record.status, record.worker) == (Status.SUCCEEDED, worker.id)
    assert api.http.get(f"/v1/jobs/{running}").status_code == 404  # its late result changed nothing
    assert sorted(stored.key for stored in api.storage.list("default/") if f"/{done}/" in stored.key) == kept


# ------------------------------------------------------------------------------------------------ passwords


@pytest.fixture
def password(redis_url: str) -> Iterator[str]:
    """A password that Redis wants from now on."""
    client = redis.Redis.from_url(redis_url)
    client.config_set("requirepass", "right")
    yield "right"
    client.execute_command("AUTH", "right")
    client.config_set("requirepass", "")
    client.close()


def with_password(url: str, word: str) -> str:
    """Return the URL with a password in it."""
    parts = urlsplit(url)
    return f"redis://:{word}@{parts.netloc}{parts.path}"


@pytest.mark.parametrize("module", ["pixelkiln.api", "pixelkiln_worker"])
@pytest.mark.parametrize("word", ["", "wrong"])
def test_a_start_with_a_wrong_password_ends_with_one_line(
    redis_url: str, tmp_path: Path, password: str, module: str, word: str
) -> None:
    url = with_password(redis_url, word) if word else redis_url
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")}
    told = subprocess.run(
        [sys.executable, "-m", module],
        env={
            **inherited,
            "PIXELKILN_REDIS_URL": url,
            "PIXELKILN_STORAGE_URL": f"file://{tmp_path}/objects",
            "PIXELKILN_STUB": "1",
            "PIXELKILN_DEVICE": "cpu",
            "PIXELKILN_WORKER_MODELS": "stub",
            "PIXELKILN_PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 2
    said = told.stdout + told.stderr
    assert "PIXELKILN_REDIS_URL: Redis refuses the password" in said
    assert "Traceback" not in said
    assert word == "" or f":{word}@" not in said


def test_a_password_changed_at_run_time_is_503_until_it_is_put_back(api: Api, redis_url: str) -> None:
    job_id = api.submit()["id"]
    client = redis.Redis.from_url(redis_url)
    client.config_set("requirepass", "another")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    try:
        answer = api.http.get(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
        assert "another" not in answer.text
    finally:
        client.config_set("requirepass", "")
        client.close()

    def found() -> bool | None:
        return api.http.get(f"/v1/jobs/{job_id}").status_code == 200 or None

    wait_for(found, 20, "the API did not find back to Redis")
