"""`pixelkiln up` for real: Redis, API and worker processes, with the stub model and a classical one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pixelkiln import Client, JobCanceled
from pixelkiln.local.facts import facts_of
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.kinds import Kind

START_S = 90
MODELS = "stub,classical-otsu"


def environment() -> dict[str, str]:
    """Ours without what would lead a stack astray, and with the stub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIXELKILN_") and k != "REDIS_URL"}
    return {**kept, "PIXELKILN_STUB": "1", "PIXELKILN_WORKER_MODELS": MODELS}


@dataclass
class Up:
    """A running `pixelkiln up`."""

    process: subprocess.Popen[str]
    data: Path
    url: str

    def descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def named(self, word: str) -> list[psutil.Process]:
        return [child for child in self.descendants() if word in " ".join(command_line(child))]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def command_line(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
        return words
    except psutil.Error:  # it has ended meanwhile
        return []


def start(data: Path, workers: int = 1) -> Up:
    command = [sys.executable, "-m", "pixelkiln", "up", "--data", str(data), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: http://127.0.0.1:"), line
    return Up(process, data, line.removeprefix("ready: ").strip())


def until(true: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = start(tmp_path_factory.mktemp("stack") / "data", workers=2)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)
        assert up.process.stdout is not None
        up.process.stdout.close()


@pytest.fixture
def client(stack: Up) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


def test_a_prompt_becomes_a_picture(client: Client) -> None:
    result = client.generate("anything", model="stub", seed=3, count=2, width=64, height=64).result(30)
    assert [image.pil().size for image in result.images] == [(64, 64)] * 2
    assert result.seed == 3
    again = client.generate("anything", model="stub", seed=3, count=2, width=64, height=64).result(30)
    assert [i.pil().tobytes() for i in again.images] == [i.pil().tobytes() for i in result.images]


def test_what_was_made_is_taken_apart_as_soon_as_it_is_there(client: Client) -> None:
    scene = client.generate("anything", model="stub", width=64, height=64)
    masks = client.segment(scene, model="classical-otsu")
    result = masks.result(30)
    assert result.masks[0].pil().size == (64, 64)
    assert scene.refresh().status == "succeeded"


def test_a_running_job_stops_when_canceled_and_the_worker_lives(client: Client) -> None:
    job = client.generate("long", model="stub", steps=200, options={"device_ms": 60_000})
    until(lambda: job.refresh().status == "running", 10)
    began = time.monotonic()
    job.cancel()
    with pytest.raises(JobCanceled):
        job.result(10)
    assert time.monotonic() - began < 5
    assert client.generate("after", model="stub", width=64, height=64).result(20).images


def test_a_job_outlives_the_sigkill_of_its_worker(stack: Up, client: Client) -> None:
    job = client.generate(
        "survivor", model="stub", steps=20, options={"device_ms": 3_000}, width=64, height=64
    )
    until(lambda: job.refresh().status == "running" and job.progress.step > 2, 10)
    before = {process.pid for process in stack.named("celery")}
    for process in stack.named("celery"):
        process.kill()
    assert job.result(90).images
    assert job.resource.attempts >= 2
    until(lambda: len({p.pid for p in stack.named("celery")} - before) == 2, 30)


def test_ctrl_c_while_waiting_lets_go_and_the_job_goes_on(stack: Up, client: Client) -> None:
    job = client.generate("long", model="stub", steps=50, options={"device_ms": 4_000}, width=64, height=64)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "pixelkiln", "wait", job.id],
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "PIXELKILN_URL": stack.url},
    )
    until(lambda: job.refresh().status == "running", 10)
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    told = waiting.communicate(timeout=10)[1]
    assert waiting.returncode == 130
    assert f"`pixelkiln wait {job.id}`" in told
    assert "Traceback" not in told
    assert job.result(30).images


@pytest.mark.slow
def test_a_thousand_mixed_jobs_go_through_two_workers(stack: Up, client: Client, tmp_path: Path) -> None:
    until(lambda: sum(worker.state == "ready" for worker in client.workers()) == 2, 60)
    picture = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(picture, "PNG")
    (tmp_path / "p.png").write_bytes(picture.getvalue())
    rows = [
        {"image": "p.png", "model": "classical-otsu"}
        if n % 4 == 0
        else {"prompt": f"row {n}", "model": "stub", "width": 64, "height": 64, "options": {"device_ms": 5}}
        for n in range(1_000)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PIXELKILN_URL": stack.url}
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "pixelkiln",
            "submit",
            str(tmp_path / "rows.jsonl"),
            "--wait",
            "--timeout",
            "150s",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    group = client.group(told.stdout.strip())
    assert (group.total, group.counts.get(Status.SUCCEEDED)) == (1_000, 1_000)
    jobs = list(group.jobs())
    assert len({job.id for job in jobs}) == 1_000
    assert [job.kind for job in jobs].count(Kind.SEGMENT) == 250
    assert all(job.resource.artifacts for job in jobs)
    assert client.stats().lanes == []


def test_a_second_stack_on_the_folder_says_so(stack: Up) -> None:
    command = [sys.executable, "-m", "pixelkiln", "up", "--data", str(stack.data), "--port", "0"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=30, check=False)
    assert told.returncode == 1
    assert f"already running on {stack.data}: {stack.url}" in told.stderr
    assert told.stdout == ""


def test_a_crashed_server_is_restarted(stack: Up, client: Client) -> None:
    assert client.stats()
    (api,) = stack.named("pixelkiln.api")
    api.kill()
    until(lambda: {p.pid for p in stack.named("pixelkiln.api")} - {api.pid}, 10)
    assert client.stats()  # a client that knows the server waits for it


def test_secrets_are_for_this_user_only(stack: Up) -> None:
    assert stack.data.stat().st_mode & 0o077 == 0
    for name in ("secret", "stack.json", "redis/redis.conf"):
        assert (stack.data / name).stat().st_mode & 0o077 == 0


def test_doctor_finds_the_stack_by_its_folder(stack: Up) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "pixelkiln", "doctor", "--data", str(stack.data), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    findings = json.loads(told.stdout)
    assert told.returncode == 0, findings
    assert {finding["check"] for finding in findings} >= {"redis", "storage", "api", "workers", "models"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_it_started(tmp_path: Path, number: int) -> None:
    up = start(tmp_path / "data")
    with Client(up.url) as client:
        waiting = client.generate("long", model="stub", steps=100, options={"device_ms": 60_000})
        until(lambda: waiting.refresh().status == "running", 20)
    children = up.descendants()
    assert len(children) >= 5  # guard, Redis, API, launcher, Celery
    assert up.end(number) == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert facts_of(up.data) == {}
    assert up.process.stdout is not None
    assert up.process.stdout.read() == ""
    up.process.stdout.close()


def test_children_do_not_outlive_a_killed_parent_and_jobs_survive(tmp_path: Path) -> None:
    up = start(tmp_path / "data")
    with Client(up.url) as client:
        job = client.generate("kept", model="stub", width=64, height=64).wait(30)
        waiting = client.generate("long", model="stub", steps=100, options={"device_ms": 4_000})
    children = up.descendants()
    up.process.kill()
    up.process.wait()
    assert psutil.wait_procs(children, timeout=40)[1] == []
    assert up.process.stdout is not None
    up.process.stdout.close()
    again = start(tmp_path / "data")
    try:
        with Client(again.url) as client:
            assert client.job(job.id).result(10).images[0].bytes()
            assert client.job(waiting.id).result(60).images
    finally:
        again.end(signal.SIGTERM)
        assert again.process.stdout is not None
        again.process.stdout.close()


def test_a_taken_port_is_one_clear_line(stack: Up, tmp_path: Path) -> None:
    port = stack.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pixelkiln", "up", "--data", str(tmp_path / "data"), "--port", port]
    told = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert told.returncode == 2
    assert f"port {port} is taken" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_drained_worker_stays_down_and_the_rest_stays_up(tmp_path: Path) -> None:
    up = start(tmp_path / "data")
    try:
        with Client(up.url) as client:
            [worker] = client.workers()
            client.drain_worker(worker.id)
            until(lambda: not client.workers() and not up.named("pixelkiln_worker"), 30)
            time.sleep(1.5)  # past the pause before a restart
            assert up.named("pixelkiln_worker") == []
            waiting = client.generate("anything", model="stub", width=64, height=64)
            assert waiting.refresh().status == "queued"
    finally:
        assert up.end(signal.SIGTERM) == 0
        assert up.process.stdout is not None
        up.process.stdout.close()
