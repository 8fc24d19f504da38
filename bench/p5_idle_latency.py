"""P5: an idle system: from the submit of one empty job to its result in the submitter's hands, one at a time.

Everyone waits as its own documentation says. Against the queues we use our library: `Producer.submit`, then
the job's events, then the record. Against the servers we use HTTP: `POST /v1/jobs` with `Prefer: wait`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from http.client import HTTPConnection

from bench.peers.field import EVERYONE, Peer
from bench.peers.rounds import beside, measure, quantile, rows
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
_WAITS = {"library": "told by events", "HTTP": "Prefer: wait"}
_SIZE = {"width": 8, "height": 8, "steps": 1}
REQUEST = {
    "kind": "generate",
    "model": "stub",
    "input": {"prompt": "hill", **_SIZE, "options": {"device_ms": 0, "per_item_ms": 0, "empty": True}},
}


def run(rounds: int, full: bool) -> list[Result]:
    """Measure us, by library or by HTTP, right before each peer, every round."""
    p99: dict[str, float] = {}
    with stage() as ready, api(ready) as port:

        def ours(peer: Peer) -> float:
            way, found = ("library", by_library(ready)) if peer.keeps else ("HTTP", by_http(port))
            return _noted(f"ours by {way}", found, p99)

        once, mine = beside(ours, lambda peer: _noted(peer.name, _latencies(peer), p99))
        found = measure("p5", "latency", EVERYONE, once, rounds)
    made = []
    for peer in EVERYONE:
        way = "library" if peer.keeps else "HTTP"
        made += rows(
            "p5",
            f"ms from submit to result of an empty job on an idle system, p50 of {CALLS}",
            mine,
            [peer],
            found,
            goal=lambda _: GOAL,
            caveat=f"Ours by {way}, {_WAITS[way]}: p99 at most {p99.get(f'ours by {way}', 0.0):.2f} ms; the "
            f"peer's {p99.get(peer.name, 0.0):.2f} ms. The goal is meant for the fastest peer",
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


def _latencies(peer: Peer) -> list[float]:
    with ground(peer, "latency") as place, place.served():
        found: list[float] = place.drive(CALLS)
    return found


def _noted(who: str, found: list[float], p99: dict[str, float]) -> float:
    """Return the median; the worst 99th percentile of each is kept."""
    p99[who] = max(p99.get(who, 0.0), quantile(found, 0.99))
    return statistics.median(found)
