"""What callers hear while Redis is silent, refuses or cuts: 503, and when to come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.chaos.proxy import Mode, TcpProxy
from tests.integration.api.conftest import Api
from tests.worker_processes import wait_for

CALLERS = 120  # more than the API has threads
PATIENCE_S = 20.0


@pytest.fixture
def line(redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def api_on_line(start_api: Callable[..., Api], line: TcpProxy) -> Iterator[Api]:
    """An API that reaches Redis through a proxy, with one second of patience."""
    yield start_api(redis_url=f"redis://127.0.0.1:{line.port}/0", redis_timeout_s=1.0)
    line.mode = Mode.PASS


@pytest.mark.parametrize("mode", [Mode.BLACK_HOLE, Mode.REFUSE, Mode.RESET])
def test_everybody_hears_503_while_redis_is_away(api_on_line: Api, line: TcpProxy, mode: Mode) -> None:
    job_id = api_on_line.submit()["id"]
    line.mode = mode

    limits = httpx2.Limits(max_connections=CALLERS)
    with (
        httpx2.Client(base_url=api_on_line.url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        paths = [f"/v1/jobs/{job_id}", "/v1/jobs"] * (CALLERS // 2 if mode is Mode.BLACK_HOLE else 4)
        answers = list(callers.map(http.get, paths))

    # a refused line leaves the connections that were open
    if mode is not Mode.REFUSE:
        assert {answer.status_code for answer in answers} == {503}
    assert {answer.status_code for answer in answers} <= {200, 503}
    away = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.json()["code"] == "redis_unavailable" for answer in away)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in away)


@pytest.mark.parametrize("mode", [Mode.BLACK_HOLE, Mode.RESET])
def test_a_submit_sent_again_after_an_outage_is_one_job(api_on_line: Api, line: TcpProxy, mode: Mode) -> None:
    request = {"kind": "generate", "input": {"prompt": "a red house"}}
    headers = {"Idempotency-Key": "once"}
    line.mode = mode
    during = api_on_line.http.post("/v1/jobs", json=request, headers=headers)
    line.mode = Mode.PASS
    after: list[httpx2.Response] = []

    def accepted() -> bool | None:
        after.append(api_on_line.http.post("/v1/jobs", json=request, headers=headers))
        return after[-1].status_code == 202 or None

    wait_for(accepted, PATIENCE_S, "the API did not find back to Redis")
    wait_for(accepted, PATIENCE_S, "the API lost Redis again")

    # a line that is cut may have carried this one just before
    assert during.status_code in ({503} if mode is Mode.BLACK_HOLE else {202, 503})
    assert {answer.status_code for answer in after} <= {202, 503}
    assert len({answer.json()["id"] for answer in after if answer.status_code == 202}) == 1
    assert sum(api_on_line.ledger.counts("default").values()) == 1


def test_an_api_whose_connections_died_unclosed_finds_back(api_on_line: Api, line: TcpProxy) -> None:
    job_id = api_on_line.submit()["id"]
    line.forget()
    answers: list[httpx2.Response] = []

    def served() -> bool | None:
        answers.append(api_on_line.http.get(f"/v1/jobs/{job_id}"))
        return [answer.status_code for answer in answers[-5:]] == [200] * 5 or None

    wait_for(served, 60, "the API did not find back to Redis")
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert api_on_line.submit()["status"] == "queued"
