"""Real worker processes on a real Redis and a folder, serving the stub model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from pixelkiln.local.redis_server import free_port
from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.fleet import Fleet, WorkerInfo
from pixelkiln_shared.jobs import JobSpec, Result, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import open_ledger, redis_client
from pixelkiln_shared.ledger.contract import NewJob, Record
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import open_storage

T = TypeVar("T")

TENANT = "tests"
BOOT_S = 90.0  # far more than a process needs; the machine may be busy


def stub_spec(prompt: str = "a hill", **changes: Any) -> JobSpec:
    """Return a stub job; `changes` go into the spec, the input or the stub's options, where they belong."""
    spec = {name: changes.pop(name) for name in list(changes) if name in JobSpec.model_fields}
    given = {"prompt": prompt, "seed": 1, "width": 64, "height": 64, "steps": 1, "guidance": 1.0, "count": 1}
    given |= {name: changes.pop(name) for name in list(changes) if name in given}
    fields = {"id": new_id("job"), "kind": Kind.GENERATE, "model": "stub", "tenant": TENANT, **spec}
    return JobSpec(**fields, input={**given, "format": "png", "options": changes})


def new_job(spec: JobSpec) -> NewJob:
    """Return the spec as the ledger takes it."""
    return NewJob(
        id=spec.id,
        kind=spec.kind,
        lane=spec.lane,
        tenant=spec.tenant,
        spec=spec.model_dump_json(),
        batch_key=spec.batch_key,
        priority=spec.priority,
        rows=spec.rows,
        work=spec.work,
    )


class Stack:
    """A Redis, a folder, and the launchers started over them; `close` ends what is left."""

    def __init__(self, redis_url: str, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {
            "PIXELKILN_REDIS_URL": redis_url,
            "PIXELKILN_STORAGE_URL": f"file://{folder / 'objects'}",
            "PIXELKILN_DEVICE": "cpu",
            "PIXELKILN_STUB": "1",
            "PIXELKILN_WORKER_MODELS": "stub",
            "PIXELKILN_LEASE_S": "1.5",
            "PIXELKILN_HEARTBEAT_S": "0.4",
            "PIXELKILN_SPOOL_DIR": str(folder / "spool"),
            **environment,
        }
        settings = Settings(redis_url=redis_url, storage_url=f"file://{folder / 'objects'}", lease_s=1.5)
        self.client = redis_client(settings)
        self.ledger = open_ledger(settings, client=self.client)
        self.storage = open_storage(settings)
        self.app = make_app(settings)
        self.bells = CeleryBells(self.app, self.client)
        self.fleet = Fleet(self.client)
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.apis: list[subprocess.Popen[bytes]] = []

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start `python -m pixelkiln_worker`; its log is in the folder."""
        launcher = self._process("pixelkiln_worker", f"worker-{len(self.launchers)}.log", environment)
        self.launchers.append(launcher)
        return launcher

    def serve(self, **environment: str) -> str:
        """Start `python -m pixelkiln.api` and wait until it answers; returns its URL."""
        port = str(free_port())
        api = self._process("pixelkiln.api", "api.log", {"PIXELKILN_PORT": port, **environment})
        self.apis.append(api)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool | None:
            with suppress(httpx2.TransportError):
                return httpx2.get(f"{url}/healthz", timeout=10, trust_env=False).status_code == 200
            return None

        wait_for(answers, BOOT_S, "the API did not start")
        return url

    def _process(self, module: str, log_name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")}
        with (self.folder / log_name).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env={**inherited, **self.environment, **environment},
                stdout=log,
                stderr=log,
            )

    def start(self, **environment: str) -> WorkerInfo:
        """Start a launcher and wait until its worker is ready."""
        known = {info.id for info in self.fleet.workers()}
        self.launch(**environment)
        return self.ready_worker(lambda info: info.id not in known)

    def ready_worker(self, which: Callable[[WorkerInfo], bool] = lambda info: True) -> WorkerInfo:
        """Wait for a ready worker and return it."""

        def found() -> WorkerInfo | None:
            return next((i for i in self.fleet.workers() if i.state == "ready" and which(i)), None)

        return wait_for(found, BOOT_S, "no worker became ready")

    def submit(self, *specs: JobSpec) -> list[str]:
        """Put jobs into the ledger and ring for them."""
        self.ledger.submit([new_job(spec) for spec in specs])
        self.bells.ring({spec.lane: len(specs) for spec in specs})
        return [spec.id for spec in specs]

    def until(self, ids: Sequence[str], *, seconds: float = 20.0) -> list[Record]:
        """Wait until every job has ended; return the records in order."""

        def ended() -> list[Record] | None:
            records = [self.ledger.get(name) for name in ids]
            return records if all(record.status.terminal for record in records) else None

        return wait_for(ended, seconds, "the jobs did not end")

    def until_running(self, name: str, *, step: int = 0) -> Record:
        """Wait until a job runs and has reached a step."""

        def running() -> Record | None:
            record = self.ledger.get(name)
            return record if record.status is Status.RUNNING and record.step >= step else None

        return wait_for(running, 20.0, "the job did not start")

    def kill(self, worker: WorkerInfo, *, whole: bool) -> None:
        """SIGKILL a worker; `whole`: its launcher too, and first, so that it does not see it."""
        if whole:
            launcher = next(one for one in self.launchers if worker.pid in _children(one))
            os.kill(worker.pid, signal.SIGSTOP)  # it shall not hear of that, and drain
            launcher.kill()
            launcher.wait()
        os.kill(worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the launchers and the workers they left."""
        for info in self.fleet.workers():
            if info.pid in self._pids():
                os.kill(info.pid, signal.SIGKILL)
        for process in [*self.launchers, *self.apis]:
            process.kill()
            process.wait()
        self.app.close()
        self.client.close()

    def _pids(self) -> set[int]:
        """The children of our launchers that are alive."""
        return {pid for launcher in self.launchers for pid in _children(launcher)}


def _children(launcher: subprocess.Popen[bytes]) -> set[int]:
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return {int(pid) for pid in listed.read_text().split()} if listed.exists() else set()


def result_of(record: Record) -> Result:
    """Return what a job published."""
    assert record.result is not None, record.error
    return Result.model_validate_json(record.result)


def wait_for(look: Callable[[], T | None], seconds: float, otherwise: str) -> T:
    """Look again and again until something is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = look()
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(otherwise)
