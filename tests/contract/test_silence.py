"""While Redis is silent one caller tries it and the others are answered at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.ledger import RedisLedger, redis_client, silence
from pixelkiln_shared.ledger.silence import ASK_AGAIN_S, Silence
from pixelkiln_shared.settings import Settings
from tests.chaos.proxy import Mode, TcpProxy


def test_nobody_is_held_back_while_redis_answers() -> None:
    assert [Silence().may_ask() for _ in range(3)] == [True] * 3


def test_one_caller_in_a_while_tries_a_silent_redis() -> None:
    now = [0.0]
    silent = Silence(lambda: now[0])
    silent.begin()
    at_once = [silent.may_ask(), silent.may_ask()]
    now[0] = ASK_AGAIN_S
    later = [silent.may_ask(), silent.may_ask()]
    silent.end()

    assert (at_once, later) == ([False, False], [True, False])
    assert silent.may_ask()


@pytest.fixture
def line(redis_url: str) -> Iterator[TcpProxy]:
    with TcpProxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


def client_on(line: TcpProxy, *, impatient: bool) -> redis.Redis:
    settings = Settings(redis_url=f"redis://127.0.0.1:{line.port}/0", redis_timeout_s=0.3)
    return redis_client(settings, impatient=impatient)


def test_only_one_of_many_waits_for_a_silent_redis(line: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "ASK_AGAIN_S", 60.0)
    with client_on(line, impatient=True) as client:
        client.ping()
        line.mode = Mode.BLACK_HOLE
        with pytest.raises(redis.TimeoutError):
            client.ping()
        line.mode = Mode.PASS  # it would answer now, but nobody asks for a minute

        with pytest.raises(redis.TimeoutError, match="a moment ago"):
            client.ping()
        with pytest.raises(RedisUnavailable, match="a moment ago"):
            RedisLedger(client).lanes()


def test_a_redis_that_is_back_is_asked_again(line: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "ASK_AGAIN_S", 0.0)
    with client_on(line, impatient=True) as client:
        line.mode = Mode.BLACK_HOLE
        with pytest.raises(redis.TimeoutError):
            client.ping()
        line.mode = Mode.PASS

        assert client.ping()


def test_a_refused_connection_is_no_silence(line: TcpProxy) -> None:
    with client_on(line, impatient=True) as client:
        line.mode = Mode.REFUSE
        with pytest.raises(redis.ConnectionError):
            client.ping()
        line.mode = Mode.PASS

        assert client.ping()


def test_callers_at_the_same_moment_do_not_wait_in_turn(line: TcpProxy) -> None:
    with client_on(line, impatient=True) as client:
        line.mode = Mode.BLACK_HOLE
        refused: list[str] = []

        def ask_twice() -> None:
            for _ in range(2):
                with pytest.raises(redis.TimeoutError) as caught:
                    client.ping()
                refused.append(str(caught.value))

        threads = [threading.Thread(target=ask_twice) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(refused) == 20
    assert sum("a moment ago" in reason for reason in refused) >= 9
