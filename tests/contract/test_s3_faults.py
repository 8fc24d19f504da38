"""A store against a server that misbehaves, over a real socket: what is retried, what not, and for how long.

The server speaks just enough of S3 for one object. Each request takes the next fault from a list; when the
list is empty the server behaves.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pixelkiln_shared import storage as opening
from pixelkiln_shared.errors import NotFound, StorageUnavailable
from pixelkiln_shared.jobs import Result, Status
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage import IMPATIENT_S, PATIENT_S
from pixelkiln_shared.storage.s3 import S3Storage, s3_client
from tests.firing_houses import House, firing_house
from tests.worker_processes import stub_spec, wait_for
from tests.workshops import spool_on

BODY = bytes(range(256)) * 2_000
KEY = "t/0.png"


class FaultyServer(ThreadingHTTPServer):
    """`faults` are done in turn, one a request; `puts` and `requests` remember what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Callable[[Handler], None]] = []
        self.requests: list[str] = []
        self.puts: list[bytes] = []
        self.sha256: str | None = None
        self.closing = threading.Event()
        self._client = s3_client(
            endpoint_url=f"http://127.0.0.1:{self.server_port}",
            access_key="AK",
            secret_key="secret",
            timeout_s=0.5,
        )

    def storage(self, *, deadline_s: float = 10.0) -> S3Storage:
        """Return a store that talks to this server."""
        return S3Storage(self._client, "bucket", deadline_s=deadline_s)

    def handle_error(self, request: object, client_address: object) -> None:
        """Cut connections are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One object, and the fault of the moment."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        self.handle_one(self.send_object)

    def do_HEAD(self) -> None:
        self.handle_one(lambda: self.send_object(body=b""))

    def do_PUT(self) -> None:
        self.server.puts.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.handle_one(lambda: self.send(200, b""))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upload = b"<UploadId>u1</UploadId>" if self.path.endswith("uploads") else b"<ETag>e</ETag>"
        self.handle_one(lambda: self.send(200, b"<Result>" + upload + b"</Result>"))

    def do_DELETE(self) -> None:
        self.handle_one(lambda: self.send(204, b""))

    def handle_one(self, behave: Callable[[], None]) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.faults:
            self.server.faults.pop(0)(self)
        else:
            behave()

    def send_object(self, body: bytes | None = None) -> None:
        self.send(200, BODY if body is None else body, length=len(BODY))

    def send(self, status: int, body: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"e"')
        self.send_header("Content-Type", "image/png")
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 11:00:00 GMT")
        if self.server.sha256:
            self.send_header("x-amz-meta-sha256", self.server.sha256)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def error(status: int, code: str) -> Callable[[Handler], None]:
    document = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    # the answer to a HEAD has no body: it would be read as the beginning of the next answer
    return lambda handler: handler.send(status, b"" if handler.command == "HEAD" else document)


def truncate(handler: Handler) -> None:
    handler.send(200, BODY[: len(BODY) // 2], length=len(BODY))
    handler.close_connection = True


def reset_in_body(handler: Handler) -> None:
    handler.send(200, BODY[:5_000], length=len(BODY))
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)  # close sends RST at once
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True


def swallow_answer(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    handler.send(200, b"", length=len(BODY))
    for byte in BODY:
        if handler.server.closing.is_set():
            break
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def hang(handler: Handler) -> None:
    handler.server.closing.wait(5)
    handler.close_connection = True


def wrong_bytes(handler: Handler) -> None:
    handler.send(200, bytes(len(BODY)))


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyServer]:
    """The server, once for this file: making a boto3 client is what takes long here."""
    server = FaultyServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running: FaultyServer) -> FaultyServer:
    """A server of one object, without faults until some are given."""
    running.faults, running.requests, running.puts = [], [], []
    running.sha256 = hashlib.sha256(BODY).hexdigest()
    return running


@pytest.mark.parametrize(
    "fault",
    [
        *(error(500, "InternalError"), error(503, "SlowDown"), error(429, "TooMany")),
        *(error(400, "RequestTimeout"), truncate, reset_in_body, swallow_answer, hang, wrong_bytes),
    ],
)
def test_a_get_is_tried_again(server: FaultyServer, fault: Callable[[Handler], None]) -> None:
    server.faults = [fault, fault]

    assert server.storage().get(KEY) == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [truncate, reset_in_body])
def test_a_cut_is_noticed_without_a_hash(server: FaultyServer, fault: Callable[[Handler], None]) -> None:
    server.sha256, server.faults = None, [fault]

    assert server.storage().get(KEY) == BODY


@pytest.mark.parametrize("fault", [error(500, "InternalError"), error(503, "SlowDown"), swallow_answer])
def test_a_put_is_tried_again_with_the_same_bytes(
    server: FaultyServer, fault: Callable[[Handler], None]
) -> None:
    server.faults = [fault, fault]

    stored = server.storage().put(KEY, BODY, media_type="image/png")

    assert server.puts == [BODY] * 3
    assert len({request.partition("?")[0] for request in server.requests}) == 1
    assert stored.sha256 == hashlib.sha256(BODY).hexdigest()


def test_head_and_delete_are_tried_again(server: FaultyServer) -> None:
    server.faults = [error(500, "InternalError")]
    found = server.storage().head(KEY)
    server.faults = [error(500, "InternalError")]
    server.storage().delete(KEY)

    assert found is not None
    assert (found.size_bytes, found.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert [request.split()[0] for request in server.requests] == ["HEAD", "HEAD", "DELETE", "DELETE"]


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "refuses"),
        (403, "SignatureDoesNotMatch", "refuses"),
        (403, "RequestTimeTooSkewed", "clock"),
        (404, "NoSuchBucket", "bucket"),
    ],
)
def test_a_refusal_is_not_tried_again(server: FaultyServer, status: int, code: str, says: str) -> None:
    server.faults = [error(status, code)]

    with pytest.raises(StorageUnavailable, match=says) as caught:
        server.storage().get(KEY)

    assert caught.value.detail == {"reason": code}
    assert len(server.requests) == 1


def test_a_missing_key_is_not_tried_again(server: FaultyServer) -> None:
    server.faults = [error(404, "NoSuchKey")]

    with pytest.raises(NotFound):
        server.storage().get(KEY)

    assert len(server.requests) == 1


def test_an_error_in_a_good_answer_is_noticed(server: FaultyServer, tmp_path: Path) -> None:
    big = tmp_path / "big.zip"
    big.write_bytes(bytes(9 << 20))
    document = b"<Error><Code>InternalError</Code><Message>no</Message></Error>"

    def succeed(handler: Handler) -> None:
        handler.send(200, b"<Result><UploadId>u1</UploadId></Result>")

    def part(handler: Handler) -> None:
        handler.send(200, b"")

    unlisted = error(501, "NotImplemented")  # some servers do not tell which uploads were begun
    server.faults = [unlisted, succeed, part, part, lambda handler: handler.send(200, document)]
    server.storage().put(KEY, big, media_type="application/zip")

    completions = [
        request for request in server.requests if request.startswith("POST") and "uploadId" in request
    ]
    assert len(completions) == 2


def test_an_outage_ends_at_the_deadline(server: FaultyServer) -> None:
    server.faults = [error(503, "SlowDown")] * 1_000
    began = time.monotonic()

    with pytest.raises(StorageUnavailable, match="SlowDown"):
        server.storage(deadline_s=1.0).get(KEY)

    assert time.monotonic() - began < 2.0
    assert len(server.requests) > 2


def test_a_dripping_body_ends_at_the_deadline(server: FaultyServer) -> None:
    server.faults = [drip] * 10
    began = time.monotonic()

    with pytest.raises(StorageUnavailable):
        server.storage(deadline_s=1.0).get(KEY)

    assert time.monotonic() - began < 2.0


def test_with_a_client_at_the_other_end_a_silent_store_is_given_up_sooner(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"http://127.0.0.1:{server.server_port}"
    assert [ours < theirs for ours, theirs in zip(IMPATIENT_S, PATIENT_S, strict=True)] == [True, True]
    monkeypatch.setattr(opening, "IMPATIENT_S", (0.2, 0.4))
    storage = opening.open_storage(
        Settings(storage_url="s3://bucket", s3_endpoint_url=url), secret=b"", impatient=True
    )
    server.faults = [hang] * 20
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        storage.get(KEY)
    assert time.monotonic() - began < PATIENT_S[0]


def test_nobody_listening_ends_at_the_deadline() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = s3_client(endpoint_url=f"http://127.0.0.1:{port}", access_key="AK", secret_key="s")
    began = time.monotonic()

    with pytest.raises(StorageUnavailable):
        S3Storage(client, "bucket", deadline_s=0.5).check()

    assert time.monotonic() - began < 2.0


@pytest.fixture
def house(server: FaultyServer) -> Iterator[House]:
    """A worker that stores on the server, with little patience for one call and more for all of them."""
    storage = server.storage(deadline_s=0.2)
    with firing_house() as house, spool_on(storage, patience_s=20) as spool:
        house.shop = replace(house.shop, storage=storage, spool=spool)
        yield house
        server.faults = []


@pytest.mark.parametrize("fault", [error(503, "SlowDown"), swallow_answer, hang, error(403, "AccessDenied")])
def test_a_worker_sends_again_what_an_outage_held_up(
    server: FaultyServer, house: House, fault: Callable[[Handler], None]
) -> None:
    server.faults = [fault] * 3

    [record] = house.run(stub_spec())
    wait_for(lambda: house.ledger.get(record.id).status.terminal or None, 20, "it was not published")

    record = house.ledger.get(record.id)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    assert len(house.brush.batches) == 1
    by_hash = {hashlib.sha256(body).hexdigest() for body in server.puts}
    assert {a.sha256 for a in Result.model_validate_json(record.result or "").artifacts} == by_hash


def test_a_refusal_that_lasts_fails_the_job_and_says_why(server: FaultyServer, house: House) -> None:
    server.faults = [error(404, "NoSuchBucket")] * 10_000
    with spool_on(house.shop.storage, patience_s=0.5) as spool:
        house.shop = replace(house.shop, spool=spool)
        [record] = house.run(stub_spec())
        wait_for(lambda: house.ledger.get(record.id).status.terminal or None, 20, "it waits for ever")

    told = json.loads(house.ledger.get(record.id).error or "{}")
    assert told == {"code": "storage_unavailable", "message": "the S3 bucket does not exist"}


def test_no_credentials_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage = S3Storage(s3_client(endpoint_url="http://127.0.0.1:9"), "bucket")

    with pytest.raises(StorageUnavailable, match="credentials"):
        storage.get(KEY)
    with pytest.raises(StorageUnavailable, match="credentials"):
        storage.link(KEY, expires_s=60)
