"""The real thing on loopback: redis-server with its file, the API, launchers with their workers, a store.

Everything that dies is started again, as a supervisor would. Between the workers and Redis stands a
`TcpProxy`; between everybody and S3, where `TEST_S3_ENDPOINT` names a server, an `S3Proxy`. Without such a
server the store is a folder, and no call to it fails.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import redis

from pixelkiln.leftovers import DAYS, ROUND, Orphans, sweep_uploads
from pixelkiln.local.redis_server import find_server, free_port
from pixelkiln_shared import keys
from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.fleet import Fleet, WorkerInfo
from pixelkiln_shared.keys import LedgerKey
from pixelkiln_shared.ledger import RedisLedger, redis_client
from pixelkiln_shared.ledger.contract import Group, Record
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.storage.s3 import S3Storage, s3_client
from tests.chaos.proxy import S3Proxy, TcpProxy
from tests.chaos.schedule import Size

TENANT = "default"
MODELS = ("stub", "classical-otsu")
BOOT_S = 90.0  # far more than needed; the machine may be busy
RESTART_S = 0.5  # the supervisor's pause
MUTANTS = ("reaper_off", "fencing_off", "blame_off", "bells_off")  # see mutated/sitecustomize.py
MUTATIONS = Path(__file__).parent / "mutated"
_HANDS = 8  # calls to the store side by side
_S3_NAMES = ("TEST_S3_ENDPOINT", "TEST_S3_ACCESS_KEY", "TEST_S3_SECRET_KEY")


class Server:
    """A process that a supervisor keeps: `start` again after `kill`."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, 0 when it does not run."""
        return self.process.pid if self.process is not None and self.alive else 0

    def start(self) -> None:
        """Start it, in a group of its own, its output appended to its log."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def children(self) -> list[int]:
        """Return the ids of its own children."""
        with suppress(OSError):
            return [
                int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            ]
        return []


class Stage:
    """What a run plays on; see `stage`."""

    def __init__(self, folder: Path, size: Size, *, seed: int, mutant: str, more: Mapping[str, str]) -> None:
        self.folder = folder
        self._redis_port = free_port()
        self.link = TcpProxy(self._redis_port)
        self.s3 = _s3_proxy(seed, size.s3_share)
        self.bucket = f"pixelkiln-chaos-{secrets.token_hex(6)}"
        self.url = ""
        self.redis_url = self._redis_url(self._redis_port)
        self.client = redis_client(Settings(redis_url=self.redis_url))
        self.ledger = RedisLedger(self.client)
        self.fleet = Fleet(self.client)
        self.storage = self._storage()
        self._size = size
        self._mutant = mutant
        self._more = more
        self._stopping = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="supervisor", daemon=True)
        self.redis = Server(self._redis_command(), dict(os.environ), folder / "redis.log")
        self.api = Server([], {}, folder / "api.log")
        self.launchers: list[Server] = []

    def start(self) -> None:
        """Start everything and wait until all workers are ready."""
        self.start_redis()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        api = self._environment(self._redis_port) | {"PIXELKILN_PORT": str(port)}
        self.api = Server([sys.executable, "-m", "pixelkiln.api"], api, self.folder / "api.log")
        worker = self._environment(self.link.port)
        command = [sys.executable, "-m", "pixelkiln_worker"]
        self.launchers = [
            Server(command, worker, self.folder / f"worker-{number}.log")
            for number in range(self._size.workers)
        ]
        self._tending.start()
        until(lambda: len(self.ready()) >= self._size.workers, BOOT_S, "the workers did not become ready")

    def start_redis(self) -> None:
        """Start redis-server on what it wrote before, and wait until it answers."""
        self.redis.start()
        until(self._redis_answers, BOOT_S, "redis-server does not answer")

    def ready(self) -> list[WorkerInfo]:
        """Return the workers that report themselves ready."""
        with suppress(RedisUnavailable):
            return [info for info in self.fleet.workers() if info.state == "ready"]
        return []

    def device_pids(self) -> list[int]:
        """Return the device processes that live now."""
        return [pid for launcher in self.launchers for pid in launcher.children()]

    def records(self) -> list[Record]:
        """Return every record of the ledger."""
        found: list[Record] = []
        after: int | None = None
        while True:
            page = self.ledger.jobs(TENANT, limit=1_000, after=after)
            found += page.records
            after = page.after
            if after is None:
                return found

    def groups(self, records: Sequence[Record]) -> dict[str, Group]:
        """Return what the ledger says of the groups of these records."""
        return {one: self.ledger.group(one) for one in {record.group for record in records} if one}

    def events(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the entries of the ledger's event streams: id and fields."""
        for shard in range(keys.EVENT_SHARDS):
            yield from cast(
                list[tuple[str, dict[str, str]]], self.client.xrange(f"{LedgerKey.EVENTS}{shard}")
            )

    def objects(self) -> dict[str, str]:
        """Return every object: key -> SHA-256 of its bytes as the store has them now."""
        found = [stored.key for stored in self.storage.list("")]
        with ThreadPoolExecutor(_HANDS) as hands:
            return dict(zip(found, hands.map(self._sha256, found), strict=True))

    def sweep(self) -> list[str]:
        """Remove orphans as after hours, and uploads as after a day; returns the keys that are left."""
        later = datetime.now(UTC) + timedelta(seconds=keys.ORPHAN_S + 60)
        orphans = Orphans(self.storage, self.ledger, now=lambda: later)
        rounds = DAYS + 2 + sum(1 for _ in self.storage.list("")) // ROUND
        for _ in range(rounds):
            orphans.sweep()
        sweep_uploads(self.storage, TENANT, now=datetime.now(UTC) + timedelta(seconds=keys.UPLOAD_S + 60))
        return [stored.key for stored in self.storage.list("")]

    def _sha256(self, key: str) -> str:
        return hashlib.sha256(self.storage.get(key)).hexdigest()

    def close(self) -> None:
        """End every process by its id."""
        self._stopping.set()
        if self._tending.ident:
            self._tending.join()
        for pid in self.device_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for server in (*self.launchers, self.api, self.redis):
            server.kill()
        self.client.close()

    # ------------------------------------------------------------------------------------------------ parts

    def _tend(self) -> None:
        """Keep API and launchers alive."""
        due: dict[int, float] = {}
        while not self._stopping.wait(0.05):
            for number, server in enumerate((self.api, *self.launchers)):
                if server.alive:
                    due.pop(number, None)
                elif server.process is None or time.monotonic() > due.setdefault(
                    number, time.monotonic() + RESTART_S
                ):
                    server.start()

    def _redis_command(self) -> list[str]:
        options = {
            "port": str(self._redis_port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        return [find_server()[0], *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _redis_answers(self) -> bool:
        with suppress(redis.RedisError), redis.Redis(port=self._redis_port, socket_timeout=2) as client:
            return bool(client.ping())
        return False

    def _redis_url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def _storage(self) -> Storage:
        if self.s3 is None:
            return FolderStorage(self.folder / "objects", secret=b"of a chaos run")
        endpoint, access, secret = (os.environ[name] for name in _S3_NAMES)
        client = s3_client(endpoint_url=endpoint, access_key=access, secret_key=secret)
        client.create_bucket(Bucket=self.bucket)
        return S3Storage(client, self.bucket)

    def _environment(self, redis_port: int) -> dict[str, str]:
        ours = {
            "PIXELKILN_REDIS_URL": self._redis_url(redis_port),
            "PIXELKILN_STORAGE_URL": f"file://{self.folder / 'objects'}",
            "PIXELKILN_SECRET": "of a chaos run",
            "PIXELKILN_DEVICE": "cpu",
            "PIXELKILN_STUB": "1",
            "PIXELKILN_WORKER_MODELS": ",".join(MODELS),
            "PIXELKILN_LEASE_S": str(self._size.lease_s),
            "PIXELKILN_HEARTBEAT_S": str(self._size.heartbeat_s),
            **self._more,
        }
        if self.s3 is not None:
            ours |= {
                "PIXELKILN_STORAGE_URL": f"s3://{self.bucket}",
                "PIXELKILN_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}",
                "AWS_ACCESS_KEY_ID": os.environ["TEST_S3_ACCESS_KEY"],
                "AWS_SECRET_ACCESS_KEY": os.environ["TEST_S3_SECRET_KEY"],
            }
        if self._mutant:
            ours["CHAOS_MUTANT"] = self._mutant
            ours["PYTHONPATH"] = os.pathsep.join([str(MUTATIONS), *sys.path[1:]])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")}
        return {**inherited, **ours}


@contextmanager
def stage(
    folder: Path, size: Size, *, seed: int, mutant: str = "", more: Mapping[str, str] | None = None
) -> Iterator[Stage]:
    """Set the stage in an empty folder and clear it afterwards; logs and Redis's file stay in the folder.

    Args:
        more: environment of the processes beside what every run has.
    """
    with ExitStack() as stack:
        made = Stage(folder, size, seed=seed, mutant=mutant, more=more or {})
        stack.callback(_empty_bucket, made)
        stack.enter_context(made.link)
        if made.s3 is not None:
            stack.enter_context(made.s3)
        stack.callback(made.close)
        made.start()
        yield made


def _empty_bucket(made: Stage) -> None:
    if made.s3 is None:
        return
    with ThreadPoolExecutor(_HANDS) as hands:
        list(hands.map(made.storage.delete, [stored.key for stored in made.storage.list("")]))
    store: Any = made.storage
    store._client.delete_bucket(Bucket=made.bucket)


def _s3_proxy(seed: int, share: float) -> S3Proxy | None:
    if not all(os.environ.get(name) for name in _S3_NAMES):
        return None
    server = urlsplit(os.environ["TEST_S3_ENDPOINT"])
    return S3Proxy(server.port or 80, seed=seed, share=share)


def until(look: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Look again and again until it is so.

    Raises:
        TimeoutError: it was not, within the time.
    """
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)
