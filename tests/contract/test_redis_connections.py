"""How many connections a client opens, and what comes of it when all are taken."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixelkiln_shared.errors import RedisUnavailable
from pixelkiln_shared.ledger import check_writes, redis_client
from pixelkiln_shared.settings import Settings

MOST, THREADS, NAME = 3, 24, "bounded"


def test_however_many_threads_call_no_more_connections_are_opened(redis_url: str) -> None:
    with (
        redis_client(Settings(redis_url=f"{redis_url}?client_name={NAME}"), connections=MOST) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        assert all(threads.map(lambda _: client.ping(), range(20 * THREADS)))
        ours = [one for one in client.client_list() if one["name"] == NAME]
        assert 1 < len(ours) <= MOST


def test_who_finds_no_connection_free_is_told_in_time(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url, redis_timeout_s=0.2)
    with (
        redis_client(settings, connections=1) as client,
        client.pubsub(ignore_subscribe_messages=True) as channel,
    ):
        channel.subscribe("somewhere")  # keeps the connection
        began = time.monotonic()
        with pytest.raises(RedisUnavailable):
            check_writes(client)
        assert time.monotonic() - began < 2.0
    with redis_client(settings, connections=1) as client:
        check_writes(client)
