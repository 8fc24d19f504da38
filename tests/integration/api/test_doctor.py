"""`doctor` before a real Redis and a real store in each of the states it should tell of."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from pixelkiln.cli.backstage import _clock
from pixelkiln_shared import keys
from pixelkiln_shared.bells import queue_key
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.keys import LedgerKey, id_time
from pixelkiln_shared.ledger.outbox import RedisOutbox, Word
from pixelkiln_shared.strays import Strays
from tests.integration.api.conftest import Api
from tests.ledger_worlds import new_job

LANE = "generate.toyworld"


@pytest.fixture
def ask(
    api: Api, pixelkiln: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], Any]:
    """Run `doctor` backstage; returns its exit code and its findings. A worker is there."""
    monkeypatch.setenv("PIXELKILN_REDIS_URL", api.settings.redis_url)
    monkeypatch.setenv("PIXELKILN_STORAGE_URL", api.settings.storage_url)
    api.serve(LANE)

    def run() -> tuple[int, list[dict[str, str]]]:
        told = pixelkiln("doctor", "--json", "--data", tmp_path / "none")
        return told.exit_code, json.loads(told.stdout)

    return run


@pytest.fixture
def config(api: Api) -> Iterator[Callable[[str, str], None]]:
    """Changes settings of Redis, and puts them back."""
    before: dict[str, str] = {}

    def change(name: str, value: str) -> None:
        before.setdefault(name, str(api.redis.config_get(name)[name]))
        api.redis.config_set(name, value)

    yield change
    for name, value in before.items():
        api.redis.config_set(name, value)


def said(findings: list[dict[str, str]], words: str) -> str:
    """Return the state of the finding with these words."""
    [found] = [finding for finding in findings if words in finding["detail"]]
    return found["state"]


def test_a_redis_that_may_evict_jobs_is_wrong(
    ask: Callable[[], Any], config: Callable[[str, str], None]
) -> None:
    assert ask()[0] == 0
    config("maxmemory-policy", "allkeys-lru")
    code, findings = ask()
    assert (code, said(findings, "Redis may throw jobs away")) == (1, "fail")


@pytest.mark.parametrize(
    ("settings", "state", "words"),
    [
        ({"appendonly": "no"}, "warn", "a restart or crash loses every job"),
        ({"appendonly": "no", "save": "3600 1"}, "warn", "loses what came since its last snapshot"),
        ({"appendonly": "yes"}, "ok", "a power cut at most the last second of accepted jobs"),
        ({"appendonly": "yes", "appendfsync": "always"}, "ok", "neither a crash nor a power cut loses a job"),
        ({"appendonly": "yes", "appendfsync": "no"}, "warn", "a power cut up to half a minute"),
    ],
)
def test_what_a_crash_would_cost_is_said(
    ask: Callable[[], Any],
    config: Callable[[str, str], None],
    settings: dict[str, str],
    state: str,
    words: str,
) -> None:
    for name, value in settings.items():
        config(name, value)
    assert said(ask()[1], words) == state


def test_a_full_redis_is_wrong_and_a_nearly_full_one_is_told(
    api: Api, ask: Callable[[], Any], config: Callable[[str, str], None]
) -> None:
    used = int(api.redis.info("memory")["used_memory"])
    config("maxmemory", str(round(used / 0.95)))
    code, findings = ask()
    assert (code, said(findings, "soon no job can be accepted")) == (0, "warn")
    config("maxmemory", str(used // 2))
    code, findings = ask()
    assert (code, said(findings, ": no job can be accepted")) == (1, "fail")


def test_a_replica_takes_no_writes(api: Api, ask: Callable[[], Any]) -> None:
    api.redis.replicaof("127.0.0.1", 9)
    try:
        code, findings = ask()
    finally:
        api.redis.replicaof("NO", "ONE")
    assert (code, said(findings, "takes no writes: name the primary")) == (1, "fail")


def test_leases_that_nobody_takes_back_are_wrong(api: Api, ask: Callable[[], Any]) -> None:
    api.submit()
    api.claim()
    code, findings = ask()
    assert (code, said(findings, "1 jobs run, none overdue")) == (0, "ok")
    api.redis.set(keys.REAP_LOCK, "somebody who hangs", ex=60)  # no sweep takes it back meanwhile
    [lease] = cast(list[bytes], api.redis.zrange(LedgerKey.LEASES, 0, 0))
    api.redis.zadd(LedgerKey.LEASES, {lease: 1_000})
    code, findings = ask()
    assert (code, said(findings, "1 of 1 leases are over")) == (1, "fail")
    assert "pixelkiln_leases_overdue 1.0" in api.http.get("/metrics").text


def test_old_work_without_a_bell_is_told(api: Api, ask: Callable[[], Any]) -> None:
    job_id = api.submit()["id"]
    assert said(ask()[1], f"{LANE}: 1 wait, 1 bells") == "ok"
    api.redis.set(keys.REAP_LOCK, "somebody who hangs", ex=60)
    api.redis.delete(queue_key(LANE))
    api.redis.hset(LedgerKey.JOB + job_id, "created_at", round(time.time() * 1_000) - 60_000)
    code, findings = ask()
    assert (code, said(findings, "and no bell hangs")) == (0, "warn")


def test_garbage_in_the_queues_is_told(api: Api, ask: Callable[[], Any]) -> None:
    assert not [finding for finding in ask()[1] if "no jobs in the queues" in finding["detail"]]
    for message in (b"of before", b"\x1b[31m not json"):
        Strays(api.redis).keep(LANE, message, "no JSON", at=datetime(2026, 11, 26, 8, 5, tzinfo=UTC))
    code, findings = ask()
    assert (code, said(findings, "2 messages that are no jobs in the queues")) == (0, "warn")
    assert said(findings, f"the newest of 2026-11-26 08:05:00 UTC in {LANE}, 14 bytes") == "warn"
    assert said(findings, r"'\x1b[31m not json' (no JSON)") == "warn"


def test_orphaned_objects_are_counted_and_stay(api: Api, ask: Callable[[], Any], tmp_path: Path) -> None:
    api.submit()
    api.publish(api.claim())  # the ledger knows a job of today
    job_id = keys.new_id("job")
    key = keys.input_key("default", job_id)
    api.storage.put(key, b"x", media_type="image/png")
    old = id_time(job_id).timestamp() - 2 * keys.ORPHAN_S
    os.utime(tmp_path / "objects" / key, (old, old))
    assert said(ask()[1], "1 orphaned objects of the last 8 days") == "ok"
    assert api.storage.get(key) == b"x"


def test_a_redis_that_does_not_answer_is_exit_code_5(
    ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIXELKILN_REDIS_URL", f"redis://127.0.0.1:{probe.getsockname()[1]}/0")
        code, findings = ask()
    assert code == 5
    [found] = [finding for finding in findings if finding["check"] == "redis"]
    assert (found["state"], found["code"]) == ("fail", "redis_unavailable")
    assert not [finding for finding in findings if finding["check"] == "ledger"]


def test_a_wrong_password_is_exit_code_5_and_says_so(
    api: Api, ask: Callable[[], Any], config: Callable[[str, str], None]
) -> None:
    config("requirepass", "secret")
    try:
        api.redis.execute_command("AUTH", "secret")
        code, findings = ask()
    finally:
        api.redis.config_set("requirepass", "")
    assert code == 5
    [detail] = [found["detail"] for found in findings if found["check"] == "redis"]
    assert detail == "Redis refuses the password: it is missing or wrong"


def test_a_store_that_cannot_be_written_is_exit_code_5(
    ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PIXELKILN_STORAGE_URL", f"file://{tmp_path / 'file'}")
    code, findings = ask()
    assert code == 5
    assert [found["code"] for found in findings if found["check"] == "storage"] == ["storage_unavailable"]


def test_a_model_that_was_never_loaded_is_told(ask: Callable[[], Any]) -> None:
    assert said(ask()[1], "not loaded anywhere yet: toyworld") == "ok"


@pytest.mark.parametrize(
    ("ahead_s", "state", "words"),
    [(0.01, "ok", "ahead of"), (-30.0, "warn", "behind"), (3_600.0, "fail", "set the clock")],
)
def test_a_clock_that_differs_from_redis_is_told(ahead_s: float, state: str, words: str) -> None:
    found = _clock(ahead_s)
    assert found.state == state
    assert words in found.detail


def test_this_machine_and_its_redis_agree(ask: Callable[[], Any]) -> None:
    assert said(ask()[1], "this machine is 0.") == "ok"


def test_receivers_and_messages_that_fail_are_told(api: Api, ask: Callable[[], Any]) -> None:
    assert not [finding for finding in ask()[1] if finding["check"] == "webhooks"]
    urls = ["http://a.example/", "http://b.example/", "http://c.example/"]
    jobs = [new_job(webhook=url, notify=(Status.CANCELED,), tenant="default") for url in urls]
    api.ledger.submit(jobs)
    for job in jobs:
        api.ledger.cancel(job.id)
    outbox = RedisOutbox(api.redis)
    words = {urls[0]: Word.FAILED, urls[1]: Word.GONE}
    for delivery in outbox.claim(10):
        if word := words.get(delivery.url):
            outbox.settle(delivery, word, response=410, error="status")
    for name in cast(list[bytes], api.redis.zrange(LedgerKey.RECEIVERS, 0, -1)):
        api.redis.zadd(LedgerKey.RECEIVERS, {name: 1_000})
    code, findings = ask()
    assert code == 0
    assert said(findings, "2 messages wait, 0 were delivered") == "ok"
    assert said(findings, "1 receivers took nothing") == "warn"
    assert said(findings, "1 URLs want no more (410)") == "warn"
    assert said(findings, "1 messages were given up") == "warn"
    assert said(findings, "run an API with PIXELKILN_WEBHOOK_SECRETS") == "warn"
    text = api.http.get("/metrics").text
    assert 'pixelkiln_webhook_receivers{state="failing"} 1.0' in text
    assert 'pixelkiln_webhook_receivers{state="gone"} 1.0' in text
    assert 'pixelkiln_webhooks{status="failed"} 1.0' in text
    (late,) = [line for line in text.splitlines() if line.startswith("pixelkiln_webhooks_late_seconds ")]
    assert float(late.split()[1]) > 60
