"""Bad requests: each row of the reliability matrix that concerns HTTP and JSON gets its stated answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.api.conftest import Api

GOOD = {"kind": "generate", "input": {"prompt": "a red house"}}
JSON = {"Content-Type": "application/json"}


def with_input(**fields: Any) -> dict[str, Any]:
    return {"kind": "generate", "input": {"prompt": "a red house", **fields}}


def with_envelope(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


BODIES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "malformed_json"),
    ("cut short", b'{"kind": "generate"', 400, "malformed_json"),
    ("deep", b"[" * 100_000, 400, "malformed_json"),
    ("deep but well formed", b"[" * 30 + b"]" * 30, 400, "malformed_json"),
    ("millions of parts", b"[" + b"[]," * 1_000_000 + b"[]]", 413, "body_too_large"),
    ("not utf-8", b'{"kind": "\xff"}', 400, "malformed_json"),
    ("NaN", b'{"kind": "generate", "input": {"prompt": "a", "guidance": NaN}}', 422, "invalid_number"),
    (
        "-Infinity",
        b'{"kind": "generate", "input": {"prompt": "a", "guidance": -Infinity}}',
        422,
        "invalid_number",
    ),
    ("1e400", b'{"kind": "generate", "input": {"prompt": "a", "guidance": 1e400}}', 422, "invalid_number"),
    (
        "5,000 digits",
        b'{"kind": "generate", "input": {"prompt": "a", "seed": ' + b"9" * 5_000 + b"}}",
        422,
        "invalid_number",
    ),
    ("surrogate", b'{"kind": "generate", "input": {"prompt": "a \\ud800"}}', 422, "invalid_prompt"),
    (
        "surrogate as a name",
        b'{"kind": "generate", "input": {"prompt": "a", "\\ud800": 1}}',
        422,
        "invalid_prompt",
    ),
    ("an array", b"[]", 422, "invalid_type"),
    ("a number", b"7", 422, "invalid_type"),
    ("null", b"null", 422, "invalid_type"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
def test_broken_json_is_refused_with_its_code(shared: Api, body: bytes, status: int, code: str) -> None:
    answer = shared.http.post("/v1/jobs", content=body, headers=JSON)
    assert_problem(answer, status, code)


FIELDS: list[tuple[dict[str, Any], int, str, str]] = [
    (with_input(sedd=7), 422, "unknown_field", "/input/sedd"),
    (with_envelope(sedd=7), 422, "unknown_field", "/sedd"),
    (with_input(seed=True), 422, "invalid_type", "/input/seed"),
    (with_input(seed="7"), 422, "invalid_type", "/input/seed"),
    (with_input(seed=1.0), 422, "invalid_type", "/input/seed"),
    (with_input(seed=-1), 422, "invalid_seed", "/input/seed"),
    (with_input(seed=2**63), 422, "invalid_seed", "/input/seed"),
    (with_input(seed=2**70), 422, "invalid_seed", "/input/seed"),
    (with_input(steps=0), 422, "out_of_range", "/input/steps"),
    (with_input(steps=-1), 422, "out_of_range", "/input/steps"),
    (with_input(steps=10**6), 422, "out_of_range", "/input/steps"),
    (with_input(steps=150), 422, "out_of_range", "/input/steps"),
    (with_input(guidance=-1), 422, "out_of_range", "/input/guidance"),
    (with_input(guidance=1e308), 422, "out_of_range", "/input/guidance"),
    (with_input(count=0), 422, "out_of_range", "/input/count"),
    (with_input(count=1_000), 422, "out_of_range", "/input/count"),
    (with_input(width=0), 422, "invalid_size", "/input/width"),
    (with_input(width=1), 422, "invalid_size", "/input/width"),
    (with_input(height=7), 422, "invalid_size", "/input/height"),
    (with_input(height=513), 422, "invalid_size", "/input/height"),
    (with_input(width=100_000), 422, "invalid_size", "/input/width"),
    (with_input(width=512), 422, "invalid_size", "/input/width"),
    (with_input(prompt=""), 422, "invalid_prompt", "/input/prompt"),
    (with_input(prompt=" \n\t"), 422, "invalid_prompt", "/input/prompt"),
    (with_input(prompt="a\x00b"), 422, "invalid_prompt", "/input/prompt"),
    (with_input(prompt="a\x1b[31m"), 422, "invalid_prompt", "/input/prompt"),
    (with_input(prompt="a" * 1_000_000), 422, "prompt_too_long", "/input/prompt"),
    (with_input(prompt=7), 422, "invalid_type", "/input/prompt"),
    (with_input(format="gif"), 422, "unknown_option", "/input/format"),
    (with_input(options={"lora": "x"}), 422, "unknown_option", "/input/options/lora"),
    (with_input(options={"a": [1]}), 422, "invalid_type", "/input/options/a"),
    ({"kind": "generate", "model": "stub", "input": {}}, 422, "missing_field", "/input/prompt"),
    ({"kind": "generate", "input": []}, 422, "invalid_type", "/input"),
    ({"kind": "generate"}, 422, "missing_field", "/input"),
    ({"kind": "paint", "input": {}}, 422, "unknown_kind", "/kind"),
    ({"input": {}}, 422, "missing_field", "/kind"),
    (with_envelope(model="sdxl"), 422, "unknown_model", "/model"),
    (with_envelope(model="classical-otsu"), 422, "unknown_model", "/model"),
    (with_envelope(model="../../etc/passwd"), 422, "unknown_model", "/model"),
    (with_envelope(model="https://example.com/x"), 422, "unknown_model", "/model"),
    (with_envelope(model="toyworld\x00"), 422, "unknown_model", "/model"),
    (with_envelope(model="t\u043eyworld"), 422, "unknown_model", "/model"),
    (with_envelope(model="m" * 10_000), 422, "unknown_model", "/model"),
    (with_envelope(model=7), 422, "invalid_type", "/model"),
    (with_envelope(priority="urgent"), 422, "unknown_option", "/priority"),
    (with_envelope(labels={"a": 1}), 422, "invalid_type", "/labels/a"),
    (with_envelope(labels={"a": "x" * 300}), 422, "invalid_label", "/labels/a"),
    (with_envelope(labels={"a\n": "x"}), 422, "invalid_label", "/labels/a\n"),
    (with_envelope(run_timeout_s=0), 422, "out_of_range", "/run_timeout_s"),
    (with_envelope(group="pk:*"), 404, "not_found", "/group"),
]


@pytest.mark.parametrize(("body", "status", "code", "pointer"), FIELDS)
def test_wrong_fields_are_named_by_code_and_pointer(
    shared: Api, body: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    answer = shared.http.post("/v1/jobs", json=body)
    problem = assert_problem(answer, status, code)
    assert problem["errors"][0]["pointer"] == pointer
    assert len(answer.content) < 5_000


def test_limits_are_told_with_the_fault(shared: Api) -> None:
    answer = shared.http.post("/v1/jobs", json=with_input(count=99))
    error = answer.json()["errors"][0]
    assert error["max"] == 16


def test_unknown_models_are_answered_with_the_known_ones(shared: Api) -> None:
    answer = shared.http.post("/v1/jobs", json=with_envelope(model="sdxl"))
    assert "toyworld" in answer.json()["errors"][0]["models"]


def test_several_faults_are_listed_at_once(shared: Api) -> None:
    answer = shared.http.post("/v1/jobs", json=with_input(count=0, steps=0, sedd=1))
    assert {entry["pointer"] for entry in answer.json()["errors"]} == {
        "/input/count",
        "/input/steps",
        "/input/sedd",
    }


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"])
def test_other_content_types_are_refused(shared: Api, media_type: str) -> None:
    answer = shared.http.post("/v1/jobs", content=b"{}", headers={"Content-Type": media_type})
    assert_problem(answer, 415, "unsupported_media_type")


def test_compressed_bodies_are_refused(shared: Api) -> None:
    answer = shared.http.post("/v1/jobs", content=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported_encoding")


PATHS = [
    ("GET", "/nowhere", 404, "not_found"),
    ("GET", "/v1/jobs/", 404, "not_found"),
    ("GET", "//v1/jobs", 404, "not_found"),
    ("GET", "/v1/%2e%2e/jobs", 404, "not_found"),
    ("PUT", "/v1/jobs", 405, "method_not_allowed"),
    ("OPTIONS", "/v1/jobs", 405, "method_not_allowed"),
    ("DELETE", "/static/gallery.css", 405, "method_not_allowed"),
    ("GET", "/static/../pages.py", 404, "not_found"),
    ("GET", "/static/%2e%2e/pages.py", 404, "not_found"),
    ("GET", "/v1/jobs/job_%2a", 404, "not_found"),
    ("GET", "/v1/jobs/*", 404, "not_found"),
    ("GET", "/v1/jobs/..%2f..", 404, "not_found"),
    ("GET", "/v1/jobs/" + "x" * 10_000, 404, "not_found"),
    ("GET", "/v1/jobs/1'%20OR%201=1", 404, "not_found"),
    ("GET", "/v1/jobs/job_00000000000000000000000000", 404, "not_found"),
    ("POST", "/v1/jobs/job_00000000000000000000000000/cancel", 404, "not_found"),
    ("POST", "/v1/jobs/job_00000000000000000000000000/retry", 404, "not_found"),
    ("DELETE", "/v1/jobs/job_00000000000000000000000000", 404, "not_found"),
    ("GET", "/v1/jobs/job_00000000000000000000000000/events", 404, "not_found"),
    ("GET", "/v1/groups/grp_00000000000000000000000000", 404, "not_found"),
    ("GET", "/v1/groups/*", 404, "not_found"),
    ("GET", "/v1/models/nothing", 404, "not_found"),
    ("GET", "/v1/jobs?limit=0", 422, "out_of_range"),
    ("GET", "/v1/jobs?limit=-1", 422, "out_of_range"),
    ("GET", "/v1/jobs?limit=1000000000", 422, "out_of_range"),
    ("GET", "/v1/jobs?limit=abc", 422, "invalid_type"),
    ("GET", "/v1/jobs?status=done", 422, "unknown_option"),
    ("GET", "/v1/jobs?kind=paint", 422, "unknown_option"),
    ("GET", "/v1/jobs?cursor=abc", 400, "invalid_cursor"),
    ("GET", "/v1/jobs?cursor=" + "A" * 2_000, 400, "invalid_cursor"),
    ("GET", "/v1/jobs?cursor=%00", 400, "invalid_cursor"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), PATHS)
def test_wrong_addresses_and_parameters_are_problems(
    shared: Api, method: str, path: str, status: int, code: str
) -> None:
    answer = shared.http.request(method, path)
    assert_problem(answer, status, code)
    assert status != 405 or answer.headers["allow"]


def test_no_other_origin_is_ever_allowed(shared: Api) -> None:
    answer = shared.http.get("/v1/jobs", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_changes_from_foreign_pages_are_refused(shared: Api) -> None:
    for headers in (
        {"Origin": "https://example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert_problem(shared.http.post("/v1/jobs", json=GOOD, headers=headers), 403, "cross_origin")


def test_foreign_host_names_are_refused_where_no_key_is_asked(shared: Api) -> None:
    assert_problem(shared.http.get("/v1/jobs", headers={"Host": "evil.example"}), 403, "cross_origin")


def test_large_bodies_are_refused_by_their_announced_length(shared: Api) -> None:
    with connection(shared) as sock:
        sock.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\n")
        assert b" 413 " in sock.recv(4_096)


def test_large_bodies_without_a_length_are_cut_off(shared: Api) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1_000_000

    answer = shared.http.post("/v1/jobs", content=endless(), headers=JSON)
    assert_problem(answer, 413, "body_too_large")


def test_a_slow_body_is_given_up(shared: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkiln.api.body.BODY_S", 0.3)
    with connection(shared) as sock:
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Content-Length: 50\r\n\r\n{")
        began = time.monotonic()
        answer = sock.recv(4_096)
        assert b" 408 " in answer
        assert b"request_timeout" in answer or b"request_timeout" in sock.recv(4_096)
        assert time.monotonic() - began < 5


def test_slow_headers_are_given_up(start_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkiln.api.protocol.HEAD_S", 0.3)
    api = start_api()
    with connection(api) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        assert sock.recv(4_096) == b""
    assert api.http.get("/healthz").status_code == 200


def test_every_answer_has_a_request_id_and_security_headers(shared: Api) -> None:
    answer = shared.http.get("/v1/jobs", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    forged = shared.http.get("/v1/jobs", headers={"X-Request-Id": "a b\t{}"})
    assert forged.headers["x-request-id"].startswith("req_")


def test_no_bad_request_leaves_a_job(shared: Api) -> None:
    assert shared.http.get("/v1/jobs").json()["jobs"] == []


def connection(api: Api) -> socket.socket:
    parts = urlsplit(api.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return problem
