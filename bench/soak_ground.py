"""What a soak runs on: Redis, the API, workers with their launchers, a store that can be out of reach.

Every process has a folder of its own for temporary files. The store is the S3 server that `TEST_S3_ENDPOINT`
names, which the workers reach through a gate; else a folder, which is never away.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import redis

from bench.soak_receiver import receiver
from bench.stage import PATIENCE_S, free_port, redis_server, stub_catalogue, until, worker_environment
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.ledger import redis_client
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import Storage
from pixelkiln_shared.storage.folder import FolderStorage
from pixelkiln_shared.storage.s3 import S3Storage, s3_client
from tests.chaos.proxy import Mode, TcpProxy

WORKERS = 2
WORKER, LAUNCHER, API = "workers", "launchers", "API"
SHORT_LIVES = Path(__file__).parent / "short_lives"
_S3 = ("TEST_S3_ENDPOINT", "TEST_S3_ACCESS_KEY", "TEST_S3_SECRET_KEY")
_BIG_SIDE_PX = 2_560
_HANDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket of one's own, and the gate through which the workers reach it."""

    name: str
    client: Any  # boto3 makes the class at run time
    gate: TcpProxy

    def uploads(self) -> int:
        """Return how many uploads in parts were begun and neither completed nor given up."""
        return len(self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let the store be out of the workers' reach inside the block."""
        self.gate.mode = Mode.RESET
        try:
            yield
        finally:
            self.gate.mode = Mode.PASS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where a soak takes place. `pids` are the processes by what they are, `scratch` has a folder of each."""

    url: str
    hook: str
    settings: Settings
    client: redis.Redis
    storage: Storage
    bucket: Bucket | None
    scratch: Path
    pids: dict[str, tuple[int, ...]]

    def temporary_files(self) -> list[Path]:
        """Return the files in the processes' folders for temporary ones."""
        return [path for path in self.scratch.rglob("*") if path.is_file()]

    def jobs_done(self) -> list[int]:
        """Return how many jobs each worker has seen to."""
        return [info.jobs_done for info in sorted(Fleet(self.client).workers(), key=lambda info: info.pid)]


@contextmanager
def ground(folder: Path, models: str, retention_s: int) -> Iterator[Ground]:
    """Start everything; end it in order, and empty the bucket, at the end. Logs stay in the folder."""
    with ExitStack() as stack:
        storage, bucket, reach = _store(folder, stack)
        port = free_port()
        stack.enter_context(redis_server(folder, port))
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}/0",
            storage_url=f"s3://{bucket.name}" if bucket else f"file://{folder}/objects",
            stub=True,
            catalogue=stub_catalogue(folder, max_batch=8, max_side=_BIG_SIDE_PX),
        )
        hook = stack.enter_context(receiver())
        door = free_port()
        common = {
            "PYTHONPATH": os.pathsep.join([str(SHORT_LIVES), *filter(None, sys.path)]),
            "PIXELKILN_WORKER_MODELS": models,
            "PIXELKILN_RETENTION_S": str(retention_s),
            "PIXELKILN_PORT": str(door),
            "PIXELKILN_WEBHOOK_SECRETS": f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}",
            "PIXELKILN_WEBHOOK_HOSTS": urlsplit(hook).netloc,
        }
        environment = worker_environment(settings, common | reach)
        straight = {"PIXELKILN_S3_ENDPOINT_URL": os.environ[_S3[0]]} if bucket else {}
        api = _process(stack, folder, "api", ["-m", "pixelkiln.api"], environment | straight)
        launchers = [
            _process(stack, folder, f"worker-{number}", ["-m", "pixelkiln_worker"], environment)
            for number in range(WORKERS)
        ]
        client = redis_client(settings)
        stack.callback(client.close)
        yield Ground(
            url=f"http://127.0.0.1:{door}",
            hook=hook,
            settings=settings,
            client=client,
            storage=storage,
            bucket=bucket,
            scratch=folder / "tmp",
            pids={WORKER: _ready(client, door), LAUNCHER: tuple(launchers), API: (api,)},
        )


def _process(
    stack: ExitStack, folder: Path, name: str, line: Sequence[str], environment: dict[str, str]
) -> int:
    """Start a Python process with a temporary folder of its own; returns its id."""
    scratch = folder / "tmp" / name
    scratch.mkdir(parents=True)
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *line],
            env=environment | {"TMPDIR": str(scratch)},
            stdout=log,
            stderr=log,
        )
    stack.callback(process.wait, PATIENCE_S)
    stack.callback(process.terminate)
    return process.pid


def _ready(client: redis.Redis, door: int) -> tuple[int, ...]:
    """Wait until the workers and the API are ready; return the ids of the workers' processes."""

    def pids() -> tuple[int, ...]:
        return tuple(sorted(info.pid for info in Fleet(client).workers() if info.state == "ready"))

    until(lambda: len(pids()) == WORKERS, "not every worker became ready", 2 * PATIENCE_S)
    until(lambda: _answers(f"http://127.0.0.1:{door}/healthz"), "the API did not start")
    return pids()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).is_success
    except httpx2.TransportError:
        return False


def _store(folder: Path, stack: ExitStack) -> tuple[Storage, Bucket | None, dict[str, str]]:
    """Return the store as the soak sees it, its bucket if it has one, and how the workers reach it."""
    if not all(os.environ.get(name) for name in _S3):
        return FolderStorage(folder / "objects", secret=b"of a soak"), None, {}
    endpoint, access, private = (os.environ[name] for name in _S3)
    client = s3_client(endpoint_url=endpoint, access_key=access, secret_key=private)
    gate = stack.enter_context(TcpProxy(urlsplit(endpoint).port or 80))
    bucket = Bucket(name=f"pixelkiln-soak-{secrets.token_hex(6)}", client=client, gate=gate)
    client.create_bucket(Bucket=bucket.name)
    storage = S3Storage(client, bucket.name)
    stack.callback(_empty, storage, bucket)
    reach = {
        "PIXELKILN_S3_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}",
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": private,
    }
    return storage, bucket, reach


def _empty(storage: Storage, bucket: Bucket) -> None:
    with ThreadPoolExecutor(_HANDS) as hands:
        list(hands.map(storage.delete, [stored.key for stored in storage.list("")]))
    bucket.client.delete_bucket(Bucket=bucket.name)
