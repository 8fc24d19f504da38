"""A Redis of our own, the door to it, and jobs as they are made of users' rows; no worker."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench.stage import TENANT, cpu_s, free_port, redis_server
from pixelkiln.inputs import Inputs, Order, picture_limits
from pixelkiln.intake import Intake
from pixelkiln.producer import Producer
from pixelkiln.webhooks.destinations import Destinations
from pixelkiln_shared.ledger import RedisLedger, redis_client
from pixelkiln_shared.ledger.contract import NewJob
from pixelkiln_shared.settings import Settings

PATIENT_S = 60.0  # a busy machine is slow, which is no failure
_PROMPTS = ("a red house in a meadow by day", "two white boats on the sea at sunset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """A producer over an empty Redis, append-only file on, and what Redis itself tells."""

    settings: Settings
    producer: Producer
    ledger: RedisLedger
    client: redis.Redis
    pid: int

    def prepared(self, count: int, *, group: str | None = None, tenant: str = TENANT) -> list[NewJob]:
        """Return jobs as the intake makes them of users' rows, ready to be written."""
        parts = self.producer
        limits = picture_limits(self.settings)
        inputs = Inputs(parts.catalogue, self.ledger, parts.storage, limits)
        intake = Intake(parts.catalogue, inputs, Destinations(parts.settings))
        order = Order(tenant=tenant, group=group)
        return [intake.prepare(row, order).job for row in rows(count)]

    def used_bytes(self) -> int:
        """Return the memory Redis uses for data."""
        return int(self.client.info("memory")["used_memory"])

    def redis_cpu_s(self) -> float:
        """Return the processor seconds Redis has used."""
        return cpu_s(self.pid)

    def empty(self) -> None:
        """Forget everything."""
        self.client.flushall()


@contextmanager
def door() -> Iterator[Door]:
    """Start Redis, as in production; end it, and delete what it stored, at the end."""
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        folder, port = Path(name), free_port()
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}/0",
            redis_timeout_s=PATIENT_S,
            storage_url=f"file://{folder}/objects",
            max_queue=100_000_000,
            stub=True,
        )
        with redis_server(folder, port) as pid, redis_client(settings) as client:
            ledger = RedisLedger(client)
            producer = Producer(settings, ledger=ledger)
            yield Door(settings=settings, producer=producer, ledger=ledger, client=client, pid=pid)


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield what a user's script would submit: a prompt and a seed, the rest left to the model."""
    for number in range(count):
        given = {"prompt": _PROMPTS[number % 2], "seed": number}
        yield {"kind": "generate", "model": "toyworld", "input": given}


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def quantile(times: Sequence[float], share: float) -> float:
    """Return the time below which a share of them lie."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]
