"""The embedded stack as an object: `make demo` and `pixelkiln up` are two ways to hold one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from pixelkiln.client import ApiError, Client, ServerUnreachable
from pixelkiln.local import facts, redis_server
from pixelkiln.local.children import Child, Guard
from pixelkiln_shared.errors import Misconfigured

READY_S = 180.0  # importing the model libraries on a slow disk takes its time
STOP_S = 25.0  # longer than a worker may take: it drains, then its launcher gives it 10 s more
MAX_EARLY_CRASHES = 3


class AlreadyRunning(Misconfigured):
    """Another stack holds this folder."""


class Stack:
    """Redis, an API and workers over one data folder.

    Args:
        data: the folder; made when missing, readable by this user only.
        port: of the API; 0 takes a free one.
        workers: how many worker launchers; each serves every device it finds.
        environment: of the children; left out: ours.
        say: gets a line about each thing that happens.

    Raises (from `start`):
        AlreadyRunning: another stack uses the folder.
        Misconfigured: something is missing or does not start; the message says what and where its log is.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data = data
        self.url = ""
        self.children: list[Child] = []
        self._port = port
        self._workers = workers
        self._base = dict(os.environ if environment is None else environment)
        self._say = say
        self._lock: IO[str] | None = None
        self._guard: Guard | None = None
        self._began = datetime.now(UTC)

    # ------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Start everything and return once the API answers and a worker is ready."""
        check_installed(workers=self._workers)
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        self._logs.mkdir(exist_ok=True)
        self._guard = Guard()
        port = take_port(self._port)
        self.url = f"http://127.0.0.1:{port}"
        environment = self._environment(port)
        self._add("api", [sys.executable, "-m", "pixelkiln.api"], environment)
        for number in range(1, self._workers + 1):
            self._add(
                f"worker-{number}", [sys.executable, "-m", "pixelkiln_worker"], environment, may_end=True
            )
        self._wait_until_ready(environment.get("PIXELKILN_API_KEY"))
        names = {"redis_url": "PIXELKILN_REDIS_URL", "storage_url": "PIXELKILN_STORAGE_URL"}
        known = {fact: environment[name] for fact, name in names.items()}
        facts.write_facts(self.data, {"url": self.url, "pid": str(os.getpid()), **known})

    def tend(self) -> None:
        """Restart what has died; call it a few times a second."""
        for child in self.children:
            status = child.tend()
            if status == 0 and child.may_end:
                self._say(f"{child.name} has ended: its workers were drained")
            elif status is not None:
                self._say(f"{child.name} ended with status {status}; restarting it (log: {child.log})")

    def stop(self, hurry: threading.Event | None = None) -> None:
        """Stop everything: workers first (they give their jobs back), then the API, then Redis."""
        deadline = time.monotonic() + STOP_S
        workers = [child for child in self.children if child.name.startswith("worker")]
        others = [child for child in reversed(self.children) if child not in workers]
        for group in (workers, *([child] for child in others)):
            for child in group:
                child.ask_to_stop()
            for child in group:
                if not child.wait(deadline, hurry or threading.Event()):
                    self._say(f"{child.name} did not stop by itself and was killed")
        self.children.clear()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._lock is not None:
            (self.data / facts.NAME).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Stack]:
        """Start, tend in the background, and stop at the end."""
        done = threading.Event()

        def look_after() -> None:
            while not done.wait(0.2):
                self.tend()

        try:
            self.start()
            thread = threading.Thread(target=look_after, name="tend", daemon=True)
            thread.start()
            try:
                yield self
            finally:
                done.set()
                thread.join()
        finally:
            self.stop()

    # ------------------------------------------------------------------------------------------ parts

    @property
    def _logs(self) -> Path:
        return self.data / "logs"

    def _take_lock(self) -> None:
        self._lock = (self.data / facts.LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            where = facts.facts_of(self.data).get("url", "still starting")
            raise AlreadyRunning(f"Pixelkiln is already running on {self.data}: {where}") from error

    def _environment(self, port: int) -> dict[str, str]:
        environment = dict(self._base)
        environment["PIXELKILN_REDIS_URL"] = self._redis()
        environment.setdefault("PIXELKILN_STORAGE_URL", (self.data.resolve() / "objects").as_uri())
        environment.setdefault("PIXELKILN_SECRET", secret_of(self.data / "secret"))
        environment.setdefault("PIXELKILN_DRAIN_S", "3")  # at a desk, Ctrl-C should be quick
        environment["PIXELKILN_HOST"] = "127.0.0.1"
        environment["PIXELKILN_PORT"] = str(port)
        environment["PYTHONUNBUFFERED"] = "1"
        if self._workers > 1:  # several processes that each take every core only get into each other's way
            threads = max(1, (os.cpu_count() or 1) // self._workers)
            environment.setdefault("PIXELKILN_TORCH_THREADS", str(threads))
        return environment

    def _redis(self) -> str:
        url = redis_server.given_url(self._base)
        if url is not None:
            version = redis_server.wait_until_ready(url, timeout_s=5.0)
            self._say(f"redis {version} at {redis_server.without_password(url)}")
            return url
        program, version = redis_server.find_server(self.data / "redis")
        configuration, url = redis_server.write_configuration(self.data / "redis")
        child = self._add("redis", [program, str(configuration)], self._base)
        try:
            redis_server.wait_until_ready(url, alive=child.alive)
        except Misconfigured as error:
            raise Misconfigured(f"{program} does not start:\n{child.last_lines()}") from error
        self._say(f"redis {version} ({program})")
        return url

    def _add(
        self, name: str, command: list[str], environment: dict[str, str], *, may_end: bool = False
    ) -> Child:
        assert self._guard is not None  # noqa: S101
        child = Child(name, command, environment, self._logs, self._guard, may_end=may_end)
        self.children.append(child)
        child.start()
        return child

    def _wait_until_ready(self, api_key: str | None) -> None:
        deadline = time.monotonic() + READY_S
        with Client(self.url, api_key, retry_for_s=0.0) as client:
            while not self._ready(client):
                self.tend()
                for child in self.children:
                    if child.crashes >= MAX_EARLY_CRASHES:
                        raise Misconfigured(f"{child.name} does not start:\n{child.last_lines()}")
                if time.monotonic() > deadline:
                    raise Misconfigured(
                        f"nothing is ready after {READY_S:.0f} s; the logs are in {self._logs}"
                    )
                time.sleep(0.1)

    def _ready(self, client: Client) -> bool:
        try:
            workers = client.workers()
        except (ApiError, ServerUnreachable):
            return False
        newest = self._began - timedelta(seconds=1)  # those of an earlier run may still be listed
        return self._workers == 0 or any(w.state == "ready" and w.started_at >= newest for w in workers)


def check_installed(*, workers: int) -> None:
    """Look for the libraries of the parts without importing them.

    Raises:
        Misconfigured: some are missing.
    """
    needed = ["fastapi", "uvicorn", "celery", "redis", *(["torch", "diffusers"] if workers else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise Misconfigured(f"{', '.join(missing)} not installed: pip install 'pixelkiln[local]'")


def take_port(port: int) -> int:
    """Return the port to listen on, a free one for 0.

    Raises:
        Misconfigured: it is taken.
    """
    if port == 0:
        return redis_server.free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Misconfigured(f"port {port}: {error.strerror}") from error
            raise Misconfigured(f"port {port} is taken; `--port 0` takes a free one") from error
    return port


def secret_of(path: Path) -> str:
    """Return the secret that signs links and cursors: made once, so that links outlive a restart."""
    if not path.exists():
        facts.write_private(path, secrets.token_hex(32))
    return path.read_text("utf-8").strip()
