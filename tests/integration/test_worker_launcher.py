"""`python -m pixelkiln_worker`: one child a device, kept alive, ended with its launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger.contract import LaneOffer
from pixelkiln_shared.settings import Settings
from pixelkiln_worker import device, launcher
from pixelkiln_worker.burials import Burials
from pixelkiln_worker.serving import worker_id
from tests.conftest import redis_binary
from tests.worker_processes import Stack, stub_spec, wait_for


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends_told(stack: Stack) -> list[dict[str, Any]]:
    lines = (stack.folder / "worker-0.log").read_text().splitlines()
    return [json.loads(line) for line in lines if '"worker ended"' in line]


def test_a_wrong_setting_ends_the_launcher_with_a_line(stack: Stack) -> None:
    process = stack.launch(PIXELKILN_WORKER_MODELS="no-such-model")
    assert process.wait(timeout=20) == 2
    assert "PIXELKILN_WORKER_MODELS" in (stack.folder / "worker-0.log").read_text()


def test_a_redis_that_may_evict_is_refused(stack: Stack) -> None:
    stack.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert stack.launch().wait(timeout=30) == 2
    finally:
        stack.client.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in (stack.folder / "worker-0.log").read_text()


def test_a_child_dies_with_its_launcher(stack: Stack) -> None:
    worker = stack.start(PIXELKILN_DRAIN_S="0")
    stack.launchers[0].send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(worker.pid) or None, 10, "the child outlived its launcher")


def test_a_dead_child_is_replaced_and_struck_off(stack: Stack) -> None:
    worker = stack.start()
    os.kill(worker.pid, signal.SIGKILL)
    other = stack.ready_worker(lambda info: info.id != worker.id)
    assert other.pid != worker.pid
    assert [info.id for info in stack.fleet.workers()] == [other.id]


@pytest.mark.parametrize("whole", [False, True], ids=["child", "launcher and child"])
def test_the_jobs_of_the_dead_start_elsewhere_long_before_their_leases_end(stack: Stack, whole: bool) -> None:
    workers = {info.id: info for info in (stack.start(PIXELKILN_LEASE_S="600") for _ in range(2))}
    [job] = stack.submit(stub_spec(device_ms=3_000, steps=30))
    first = workers.pop(stack.until_running(job).worker or "")
    stack.kill(first, whole=whole)
    [record] = stack.until([job], seconds=30)
    assert (record.status, record.attempt, record.strikes) == (Status.SUCCEEDED, 2, 1)
    assert record.worker != first.id
    known = {info.id for info in stack.fleet.workers()}
    assert set(workers) <= known
    assert first.id not in known


def test_a_launcher_that_starts_finds_who_died_before_it(stack: Stack) -> None:
    first = stack.start(PIXELKILN_LEASE_S="600")
    [job] = stack.submit(stub_spec(device_ms=2_000, steps=20))
    stack.until_running(job)
    stack.kill(first, whole=True)
    assert first.id in {info.id for info in stack.fleet.workers()}
    stack.launch(PIXELKILN_LEASE_S="600")
    [record] = stack.until([job], seconds=60)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    assert first.id not in {info.id for info in stack.fleet.workers()}


def test_a_child_that_had_to_be_killed_at_a_stop_gives_its_jobs_back_without_blame(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "KILL_AFTER_S", 0.1)
    settings = Settings(redis_url=redis_url, spool_dir=tmp_path, drain_s=0.1)
    child = launcher.Child(["sh", "-c", "trap '' TERM; sleep 60"], {})
    with closing(Stack(redis_url, tmp_path)) as stack:
        [job] = stack.submit(stub_spec())
        child.start()
        assert child.process is not None
        name = worker_id(child.process.pid, child.birth)
        stack.ledger.claim(name, [LaneOffer(lane=stub_spec().lane, max_rows=8)], lease_s=600)
        assert launcher.Launcher(settings, Burials(settings), [child])._stop() == 1
        record = stack.ledger.get(job)
        assert (record.status, record.strikes, record.suspect) == (Status.QUEUED, 0, False)


def test_who_holds_the_global_lock_for_ever_is_killed_and_who_is_frozen_for_a_moment_is_not(
    stack: Stack,
) -> None:
    worker = stack.start(PIXELKILN_SILENT_S="6", PIXELKILN_LEASE_S="600")
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(worker.pid, signal.SIGCONT)
    [before] = stack.until(stack.submit(stub_spec()))
    assert before.worker == worker.id

    [job] = stack.submit(stub_spec("[seize]"))
    wait_for(lambda: stack.ledger.get(job).strikes or None, 60, "nobody saw that it hangs")

    assert not alive(worker.pid)
    told = wait_for(lambda: ends_told(stack) or None, 20, "the launcher does not say what became of it")
    assert (told[0]["pid"], told[0]["code"], told[0]["why"]) == (worker.pid, -signal.SIGKILL, "silent")


def test_a_job_that_breaks_the_device_ends_alone_and_the_worker_comes_back(stack: Stack) -> None:
    worker = stack.start()
    poison = stub_spec("[fail=poison]", device_ms=50)
    innocent = [stub_spec(str(i), device_ms=50) for i in range(7)]
    ids = stack.submit(poison, *innocent)
    records = stack.until(ids, seconds=60)
    assert records[0].status is Status.FAILED
    assert "worker_crashed" in (records[0].error or "")
    assert {record.status for record in records[1:]} == {Status.SUCCEEDED}
    assert {record.strikes for record in records[1:]} == {0}
    other = stack.ready_worker(lambda info: info.id != worker.id)
    assert other.pid != worker.pid
    [after] = stack.until(stack.submit(stub_spec("after")))
    assert after.status is Status.SUCCEEDED


def test_ctrl_c_drains_like_sigterm(stack: Stack) -> None:
    worker = stack.start()
    stack.launchers[0].send_signal(signal.SIGINT)
    assert stack.launchers[0].wait(timeout=15) == 0
    assert not alive(worker.pid)
    assert stack.fleet.workers() == []


def test_two_processes_share_the_work_and_count_it_right(stack: Stack) -> None:
    stack.start()
    stack.start()
    ids = stack.submit(*(stub_spec(str(i), device_ms=30, per_item_ms=1) for i in range(200)))
    records = stack.until(ids, seconds=60)
    assert {record.status for record in records} == {Status.SUCCEEDED}
    assert {record.attempt for record in records} == {1}
    assert len({record.worker for record in records}) == 2
    counts = stack.ledger.counts("tests")
    assert counts[Status.SUCCEEDED] == 200
    assert counts[Status.QUEUED] == counts[Status.RUNNING] == 0


def test_an_idle_worker_hears_the_bell_a_busy_one_took(stack: Stack) -> None:
    stack.start()
    stack.start()
    [long] = stack.submit(stub_spec(device_ms=6_000, steps=60))
    stack.until_running(long, step=1)
    began = time.monotonic()
    for _ in range(4):
        stack.until(stack.submit(stub_spec(device_ms=10)), seconds=4)
    assert time.monotonic() - began < 3
    assert stack.ledger.get(long).status is Status.RUNNING


@pytest.mark.slow
def test_a_worker_survives_a_restart_of_redis(tmp_path: Path, free_port: int) -> None:
    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(redis_binary(), "--port", str(free_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)),
                *("--appendonly", "yes", "--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
        )

    server = serve()
    client = redis.Redis(port=free_port)
    wait_for(lambda: _answers(client), 10, "redis did not start")
    stack = Stack(f"redis://127.0.0.1:{free_port}/0", tmp_path)
    try:
        worker = stack.start()
        [running] = stack.submit(stub_spec(device_ms=3_000, steps=30))
        stack.until_running(running, step=1)
        server.kill()
        server.wait()
        time.sleep(1)
        server = serve()
        wait_for(lambda: _answers(client), 10, "redis did not come back")
        came_back_at = time.monotonic()
        [after] = stack.until(stack.submit(stub_spec("after")), seconds=30)
        [record] = stack.until([running], seconds=30)
        assert (record.status, after.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
        assert time.monotonic() - came_back_at < 20
        assert alive(worker.pid)
    finally:
        stack.close()
        client.close()
        server.kill()
        server.wait()


def _answers(client: redis.Redis) -> bool | None:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return None


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_an_accelerator_there_is_one_child() -> None:
    assert launcher.devices(Settings(device="cpu")) == [{}]


def test_each_accelerator_gets_a_child_that_sees_only_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_ACCELERATORS", ("/",))
    monkeypatch.setattr(launcher, "_visible_cards", lambda: ["2", "5"])
    cards = [child["CUDA_VISIBLE_DEVICES"] for child in launcher.devices(Settings(device="auto"))]
    assert cards == ["2", "5"]


def test_the_child_hears_every_lane_it_serves() -> None:
    line = launcher.command(Settings(stub=True, worker_models="stub", worker_concurrency=3), 0)
    assert line[:3] == [sys.executable, "-m", "celery"]
    assert line[line.index("--queues") + 1] == "generate.stub"
    assert line[line.index("--concurrency") + 1] == "3"
