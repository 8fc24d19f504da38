"""What the client does when the server is busy, away, wrong or somebody else, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pixelkiln import (
    ApiError,
    AsyncClient,
    AuthError,
    Client,
    JobCanceled,
    JobFailed,
    NotFoundError,
    QueueFullError,
    ServerUnreachable,
    ValidationError,
    WaitTimeout,
)

JOB = {
    "id": "job_1",
    "kind": "generate",
    "model": "stub",
    "status": "queued",
    "priority": "standard",
    "created_at": "2026-11-20T12:00:00Z",
}
CUT = object()
"""Instead of an answer: hang up."""


def problem(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = {"title": "No", "status": status, "detail": f"because {code}", "code": code}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(body).encode()


def answer(body: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


class Script:
    """A server that gives listed answers, one a request, the last for ever; notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.requests.append((self.command, self.path, headers, body))
                given = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
                if given is CUT:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, data = given
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                if "Content-Length" in headers:  # one that promises more than it gives
                    self.close_connection = True

            do_GET = do_POST = do_DELETE = handle_one  # noqa: N815  the library's names

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest, script: Script) -> Callable[..., Any]:
    """Call a method of a client, `Client` and `AsyncClient` in turn."""

    def blocking(method: str, *arguments: Any, **options: Any) -> Any:
        with Client(script.url, retry_for_s=options.pop("retry_for_s", 5)) as client:
            return getattr(client, method)(*arguments, **options)

    def awaited(method: str, *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            async with AsyncClient(script.url, retry_for_s=options.pop("retry_for_s", 5)) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(call())

    return blocking if request.param == "blocking" else awaited


def test_a_busy_server_is_asked_again_under_the_same_key(ask: Callable[..., Any], script: Script) -> None:
    busy = problem(429, "queue_full", **{"Retry-After": "0"})
    script.answers = [busy, problem(503, "redis_unavailable", **{"Retry-After": "0"}), answer(JOB, 202)]
    job = ask("generate", "a red house", seed=7)
    assert (job.id, job.status) == ("job_1", "queued")
    assert len({headers["idempotency-key"] for _, _, headers, _ in script.requests}) == 1
    assert [json.loads(body) for *_, body in script.requests] == 3 * [
        {"kind": "generate", "input": {"prompt": "a red house", "count": 1, "seed": 7}}
    ]


def test_a_lost_answer_is_asked_for_again_under_the_same_key(ask: Callable[..., Any], script: Script) -> None:
    script.answers = [answer([JOB]), CUT, answer(JOB, 202)]
    with pytest.raises(ServerUnreachable):  # not what Pixelkiln says
        ask("stats")
    ask("submit", {"kind": "generate", "input": {"prompt": "x"}})
    first, second = script.requests[1:]
    assert first[2]["idempotency-key"] == second[2]["idempotency-key"]


def test_requests_have_keys_of_their_own(ask: Callable[..., Any], script: Script) -> None:
    script.answers = [answer(JOB, 202)]
    ask("generate", "a")
    ask("generate", "a")
    assert len({headers["idempotency-key"] for _, _, headers, _ in script.requests}) == 2


def test_the_server_says_how_long_to_wait(ask: Callable[..., Any], script: Script) -> None:
    script.answers = [problem(429, "queue_full", **{"Retry-After": "1"}), answer(JOB, 202)]
    began = time.monotonic()
    ask("generate", "a")
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("status", [429, 503])  # the queue is at its limit; its Redis is
def test_a_wait_beyond_our_patience_is_not_begun(
    ask: Callable[..., Any], script: Script, status: int
) -> None:
    script.answers = [problem(status, "queue_full", **{"Retry-After": "120"})]
    began = time.monotonic()
    with pytest.raises(QueueFullError) as caught:
        ask("generate", "a")
    assert time.monotonic() - began < 2
    assert caught.value.retry_after_s == 120
    assert caught.value.code == "queue_full"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (problem(401, "unauthorized"), AuthError),
        (problem(403, "forbidden"), AuthError),
        (problem(404, "not_found"), NotFoundError),
        (problem(409, "already_terminal"), ApiError),
        (problem(422, "unknown_model"), ValidationError),
        (problem(500, "internal_error"), ApiError),
        (problem(503, "no_worker_for_model", **{"x-should-retry": "false"}), ApiError),
        ((502, {"Content-Type": "text/html", "x-should-retry": "false"}, b"<h1>proxy</h1>"), ApiError),
    ],
)
def test_an_answer_that_will_not_change_is_raised_at_once(
    ask: Callable[..., Any], script: Script, given: tuple[int, dict[str, str], bytes], error: type[ApiError]
) -> None:
    script.answers = [given]
    with pytest.raises(error) as caught:
        ask("job", "job_1")
    assert len(script.requests) == 1
    assert caught.value.http_status == given[0]


def test_nobody_there_is_said_soon() -> None:
    began = time.monotonic()
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServerUnreachable):
        client.stats()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8700", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="PIXELKILN_URL"):
        Client(url)


def test_the_key_goes_to_the_api_and_nowhere_else(script: Script) -> None:
    store = Script()
    picture = b"picture"
    store.answers = [(200, {"Content-Type": "image/png"}, picture)]
    artifact = {
        "role": "image",
        "index": 0,
        "media_type": "image/png",
        "size_bytes": len(picture),
        "sha256": hashlib.sha256(picture).hexdigest(),
        "url": f"{store.url}/bucket/a.png?X-Amz-Signature=1&X-Amz-Expires=9",
        "url_expires_at": "2026-11-20T12:15:00Z",
    }
    script.answers = [answer({**JOB, "status": "succeeded", "artifacts": [artifact]})]
    try:
        with Client(script.url, "secret") as client:
            assert client.job("job_1").result().images[0].bytes() == picture
    finally:
        store.close()
    assert all(headers["authorization"] == "Bearer secret" for _, _, headers, _ in script.requests)
    assert "authorization" not in store.requests[0][2]
    assert store.requests[0][1].endswith("?X-Amz-Signature=1&X-Amz-Expires=9")


def finished(data: bytes) -> Any:
    artifact = {
        "role": "image",
        "index": 0,
        "media_type": "image/png",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "url": "/v1/objects/a.png?expires=1&signature=2",
        "url_expires_at": "2026-11-20T12:15:00Z",
    }
    return answer({**JOB, "status": "succeeded", "artifacts": [artifact]})


def test_an_expired_link_is_renewed(script: Script, tmp_path: Path) -> None:
    job = finished(b"x")
    script.answers = [job, job, problem(403, "link_expired"), job, (200, {}, b"x")]
    with Client(script.url) as client:
        image = client.job("job_1").result().images[0]
        assert image.save(tmp_path / "x.png").read_bytes() == b"x"
        with pytest.raises(FileExistsError):
            image.save(tmp_path / "x.png", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_damaged_bytes_are_no_result(script: Script, tmp_path: Path) -> None:
    job = finished(b"x")
    script.answers = [job, job, (200, {}, b"y")]
    with Client(script.url) as client, pytest.raises(ServerUnreachable, match="damaged"):
        client.job("job_1").result().images[0].save(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_waited_for_until_it_ends(ask: Callable[..., Any], script: Script) -> None:
    script.answers = [answer({**JOB, "status": s}) for s in ("queued", "running", "succeeded")]
    job = ask("job", "job_1")
    assert job.status == "queued"

    with Client(script.url) as client:
        assert client.job("job_1").wait(5).status == "succeeded"


@pytest.mark.parametrize(
    ("state", "error"), [("failed", JobFailed), ("expired", JobFailed), ("canceled", JobCanceled)]
)
def test_a_job_without_a_result_raises(
    script: Script, state: str, error: type[JobFailed | JobCanceled]
) -> None:
    failure = {"code": "out_of_memory", "message": "too large"} if state == "failed" else None
    script.answers = [answer({**JOB, "status": state, "error": failure})]
    with Client(script.url) as client, pytest.raises(error) as caught:
        client.job("job_1").result(5)
    assert isinstance(caught.value, error)
    assert caught.value.job.id == "job_1"


def test_waiting_ends_in_time_and_the_job_goes_on(script: Script) -> None:
    script.answers = [answer({**JOB, "status": "running"})]
    with Client(script.url) as client:
        job = client.job("job_1")
        began = time.monotonic()
        with pytest.raises(WaitTimeout):
            job.wait(0.3)
    assert 0.3 <= time.monotonic() - began < 2
    assert all(method == "GET" for method, *_ in script.requests)


def stream(*events: tuple[str, str, dict[str, Any]], promised: int | None = None) -> Any:
    text = ": hello\n\n" + "".join(f"event: {t}\nid: {i}\ndata: {json.dumps(d)}\n\n" for i, t, d in events)
    headers = {"Content-Type": "text/event-stream"}
    if promised:
        headers["Content-Length"] = str(promised)
    return 200, headers, text.encode()


def test_a_broken_event_stream_goes_on_where_it_broke(script: Script) -> None:
    script.answers = [
        answer(JOB),
        stream(("1-0", "status", {"status": "running"}), ("2-0", "progress", {"step": 1}), promised=9_999),
        stream(("3-0", "progress", {"step": 2}), ("4-0", "status", {"status": "succeeded"})),
    ]
    with Client(script.url) as client:
        events = list(client.job("job_1").events())
    assert [(event.id, event.type) for event in events] == [
        ("1-0", "status"),
        ("2-0", "progress"),
        ("3-0", "progress"),
        ("4-0", "status"),
    ]
    assert script.requests[2][2]["last-event-id"] == "2-0"


def test_events_are_followed_by_asyncio_too(script: Script) -> None:
    script.answers = [
        answer(JOB),
        stream(("1-0", "status", {"status": "running"}), promised=9_999),
        stream(("2-0", "status", {"status": "failed"})),
    ]

    async def follow() -> list[str]:
        async with AsyncClient(script.url) as client:
            job = await client.job("job_1")
            return [event.data["status"] async for event in job.events()]

    assert asyncio.run(follow()) == ["running", "failed"]


def test_events_of_an_unknown_job_raise(script: Script) -> None:
    script.answers = [answer(JOB), problem(404, "not_found")]
    with Client(script.url) as client, pytest.raises(NotFoundError):
        list(client.job("job_1").events())


def test_pages_are_fetched_as_the_iteration_reaches_them(script: Script) -> None:
    script.answers = [
        answer({"jobs": [{**JOB, "id": "job_3"}, {**JOB, "id": "job_2"}], "next_cursor": "c"}),
        answer({"jobs": [JOB], "next_cursor": None}),
    ]
    with Client(script.url) as client:
        jobs = client.jobs(status="queued", page_size=2)
        assert next(jobs).id == "job_3"
        assert len(script.requests) == 1
        assert [job.id for job in jobs] == ["job_2", "job_1"]
    assert script.requests[1][1] == "/v1/jobs?status=queued&limit=2&cursor=c"


def test_many_rows_go_in_chunks_into_one_group(ask: Callable[..., Any], script: Script) -> None:
    group = {"id": "grp_1", "total": 1, "counts": {}, "done": False, "created_at": JOB["created_at"]}
    bulk = [
        answer({"group": "grp_1", "ids": [f"job_{n}" for n in range(size)]}, 202) for size in (500, 500, 3)
    ]
    script.answers = [*bulk[:2], problem(429, "queue_full", **{"Retry-After": "0"}), bulk[2], answer(group)]
    rows = ({"prompt": f"row {n}", "row": n} for n in range(1_003))
    group = ask("submit_many", rows, name="evening", key="row")
    assert len(group.ids) == 1_003
    sent = [json.loads(body) for method, *_, body in script.requests if method == "POST"]
    assert [len(body["jobs"]) for body in sent] == [500, 500, 3, 3]
    assert [body.get("group") for body in sent] == [None, "grp_1", "grp_1", "grp_1"]
    assert sent[0]["jobs"][7] == {
        "kind": "generate",
        "labels": {"name": "evening", "key": "7"},
        "input": {"prompt": "row 7"},
    }
