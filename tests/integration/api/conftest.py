"""The real application under a real server on a free port, with a real Redis and a folder for a store."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import structlog
import uvicorn
from click.testing import CliRunner
from PIL import Image

from pixelkiln import Client
from pixelkiln.api.app import create_app
from pixelkiln.api.protocol import HeadTimeoutProtocol
from pixelkiln.cli import main
from pixelkiln_shared import keys
from pixelkiln_shared.fleet import Fleet, WorkerInfo
from pixelkiln_shared.jobs import Artifact, JobSpec, Result
from pixelkiln_shared.kinds import Role
from pixelkiln_shared.ledger import RedisLedger, redis_client
from pixelkiln_shared.ledger.contract import Claimed, LaneOffer, Ledger
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import open_storage
from pixelkiln_shared.storage.contract import Storage
from tests.receivers import Receiver, receiving

SECRET = "a secret of these tests"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a webhook secret of these tests.").decode()


def picture(width: int = 48, height: int = 32, form: str = "PNG", colour: str = "teal") -> bytes:
    """A small picture file."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, form)
    return file.getvalue()


@dataclass
class Api:
    """A running API, a client for it, and what stands behind it."""

    url: str
    http: httpx2.Client
    settings: Settings
    redis: redis.Redis
    ledger: Ledger
    storage: Storage

    def submit(self, prompt: str = "a red house", **more: Any) -> dict[str, Any]:
        """Submit a generate job and return the answer."""
        body = {"kind": "generate", "input": {"prompt": prompt, **more.pop("input", {})}, **more}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def segment(self, image: dict[str, Any], **more: Any) -> httpx2.Response:
        """Submit a segment job."""
        body = {"kind": "segment", "input": {"image": image, **more.pop("input", {})}, **more}
        return self.http.post("/v1/jobs", json=body)

    def upload(self, data: bytes, name: str = "picture.png") -> httpx2.Response:
        """Upload a file."""
        return self.http.post("/v1/uploads", files={"file": (name, data, "image/png")})

    def claim(self, lane: str = "generate.toyworld") -> Claimed:
        """Take the next job of a lane, as a worker does."""
        claim = self.ledger.claim("worker-of-tests", [LaneOffer(lane=lane, max_rows=1)], lease_s=60)
        assert claim is not None, f"nothing waits in {lane}"
        return claim.jobs[0]

    def publish(self, job: Claimed, *, role: Role = Role.IMAGE) -> bytes:
        """End a claimed job with one picture; returns its bytes."""
        spec = JobSpec.model_validate_json(job.spec)
        data = picture(128, 128)
        key = f"{keys.attempt_prefix(spec.tenant, spec.id, job.attempt)}{role}-0.png"
        stored = self.storage.put(key, data, media_type="image/png")
        artifact = Artifact(
            role=role,
            index=0,
            key=key,
            media_type="image/png",
            size_bytes=len(data),
            sha256=stored.sha256 or "",
            width=128,
            height=128,
        )
        result = Result(artifacts=[artifact], seed=spec.input.get("seed"), metrics={"run_ms": 12.5})
        self.ledger.publish(job.id, job.attempt, result.model_dump_json())
        return data

    def serve(self, *lanes: str, **more: Any) -> None:
        """Let a ready worker appear in the fleet; `more` goes into its report."""
        info = WorkerInfo(
            id="worker-of-tests",
            host="here",
            pid=1,
            device="cpu",
            models=tuple(lane.partition(".")[2] for lane in lanes),
            lanes=lanes,
            started_at=datetime.now(UTC),
            version="0",
            **{"state": "ready", **more},
        )
        Fleet(self.redis).report(info)
        time.sleep(1.1)  # the API reads the fleet once a second


@contextmanager
def serving(settings: Settings) -> Iterator[Api]:
    """Run an API with these settings."""
    server, thread, url = _serve(settings)
    try:
        with (
            httpx2.Client(base_url=url, timeout=30, trust_env=False) as http,
            redis_client(settings) as client,
        ):
            yield Api(
                url=url,
                http=http,
                settings=settings,
                redis=client,
                ledger=RedisLedger(client),
                storage=open_storage(settings),
            )
    finally:
        server.should_exit = True
        thread.join(20)


def _serve(settings: Settings) -> tuple[uvicorn.Server, threading.Thread, str]:
    config = uvicorn.Config(
        create_app(settings),
        host="127.0.0.1",
        port=0,
        http=HeadTimeoutProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, thread, f"http://127.0.0.1:{port}"


@pytest.fixture
def start_api(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Starts an API with the settings given; stopped at the end of the test."""

    def start(**changes: Any) -> Api:
        return running.enter_context(serving(_settings(redis_url, tmp_path, **changes)))

    with ExitStack() as running:
        yield start


@pytest.fixture(scope="module")
def shared(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One API for all tests of a file: for those that leave nothing behind."""
    url = f"{redis_server}/1"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    with serving(_settings(url, tmp_path_factory.mktemp("shared"))) as api:
        yield api


def _settings(url: str, folder: Path, **changes: Any) -> Settings:
    fixed = {
        "redis_url": url,
        "storage_url": f"file://{folder}/objects",
        "secret": SECRET,
        "stub": True,
    }
    return Settings(**{**fixed, **changes})


@pytest.fixture
def api(start_api: Callable[..., Api]) -> Api:
    """An API on loopback without a key."""
    return start_api()


@pytest.fixture
def told(start_api: Callable[..., Api]) -> Api:
    """An API that may tell receivers on loopback."""
    return start_api(webhook_secrets=WEBHOOK_SECRET, webhook_hosts="127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks."""
    with receiving() as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    """The Python client of this API."""
    with Client(api.url) as client:
        yield client


@pytest.fixture
def quiet_server() -> Iterator[None]:
    """The server runs in this process: its log must not land in the output of the command line."""
    before = structlog.get_config()
    structlog.configure(
        processors=[], logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False
    )
    yield
    structlog.configure(**before)


@pytest.fixture
def pixelkiln(
    quiet_server: None, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """The command line, talking to this API, with a state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PIXELKILN_URL", api.url)
    return lambda *arguments, **more: CliRunner().invoke(main, [str(a) for a in arguments], **more)
