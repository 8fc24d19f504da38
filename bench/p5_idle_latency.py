"""P5: an idle system: from the submit of one empty job to its result in the submitter's hands, one at a time.

Everyone waits as its own documentation says. Against the queues we use our library: `Producer.submit`, then
the job's events, then the record. Against the servers we use HTTP: `POST /v1/jobs` with `Prefer: wait`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from http.client import HTTPConnection

from bench.peers.field import EVERYONE, Peer
from bench.peers.rounds import measure, quantile, rows
from bench.peers.running import ground
from bench.peers.work import latencies
from bench.results import Result
from bench.stage import Stage, api, stage
from pixelkiln.producer import Producer
from pixelkiln_shared.events import EventReader
from pixelkiln_shared.jobs import Status
from pixelkiln_shared.ledger import async_redis_client

CALLS = 200
GOAL = 1 / 1.5
_SIZE = {"width": 8, "height": 8, "steps": 1}
REQUEST = {
    "kind": "generate",
    "model": "stub",
    "input": {"prompt": "hill", **_SIZE, "options": {"device_ms": 0, "per_item_ms": 0, "empty": True}},
}


def run(rounds: int, full: bool) -> list[Result]:
    """Measure us by library and by HTTP, then every peer; a short run measures each peer once."""
    with stage() as ready:
        library = [_told("library", by_library(ready)) for _ in range(rounds)]
        with api(ready) as port:
            over_http = [_told("HTTP", by_http(port)) for _ in range(rounds)]
    p99: dict[str, float] = {}
    found = measure("p5", "latency", EVERYONE, lambda peer: _p50(peer, p99), rounds if full else 1)
    made = []
    for peer in EVERYONE:
        http = not peer.keeps
        ours = over_http if http else library
        made += rows(
            "p5",
            f"ms from submit to result of an empty job on an idle system, p50 of {CALLS}",
            [p50 for p50, _ in ours],
            [peer],
            found,
            goal=lambda _: GOAL,
            caveat=f"Ours {'over HTTP, Prefer: wait' if http else 'by library and events'}: p99 "
            f"{statistics.median(high for _, high in ours):.2f} ms; the peer's p99 "
            f"{p99.get(peer.name, 0.0):.2f} ms. The goal is meant for the fastest peer",
            less_is_better=True,
        )
    return made


def by_library(ready: Stage) -> list[float]:
    """Return milliseconds from `Producer.submit` to the record of the ended job, event-driven."""
    producer = Producer(ready.settings)

    async def once(reader: EventReader) -> None:
        job = await asyncio.to_thread(producer.accept, REQUEST)
        async with reader.subscribe(job.ids[0]) as events:
            record = await asyncio.to_thread(producer.get, job.ids[0])
            while not record.status.terminal:
                event = await anext(events)
                if event.type == "status" and Status(event.data["status"]).terminal:
                    record = await asyncio.to_thread(producer.get, job.ids[0])

    with asyncio.Runner() as runner:
        client = async_redis_client(ready.settings)
        reader = EventReader(client)
        try:
            return latencies(lambda: runner.run(once(reader)), CALLS)
        finally:
            runner.run(reader.aclose())
            runner.run(client.aclose())


def by_http(port: int) -> list[float]:
    """Return milliseconds of `POST /v1/jobs` with `Prefer: wait`, over one kept connection."""
    wire = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Prefer": "wait=30"}

    def once() -> None:
        wire.request("POST", "/v1/jobs", json.dumps(REQUEST), headers)
        answer = wire.getresponse()
        told = json.loads(answer.read())
        if told.get("status") != "succeeded":
            raise RuntimeError(f"the job of the benchmark did not succeed: {told}")

    try:
        return latencies(once, CALLS)
    finally:
        wire.close()


def _p50(peer: Peer, p99: dict[str, float]) -> float:
    with ground(peer, "latency") as place, place.served():
        found: list[float] = place.drive(CALLS)
    p99[peer.name] = max(p99.get(peer.name, 0.0), quantile(found, 0.99))
    return statistics.median(found)


def _told(way: str, found: list[float]) -> tuple[float, float]:
    p50, p99 = statistics.median(found), quantile(found, 0.99)
    print(f"p5 ours by {way}: p50 {p50:.2f} ms, p99 {p99:.2f} ms", file=sys.stderr)
    return p50, p99
