"""P3: empty jobs that wait, drained by one worker process: what a job costs when it does nothing.

Ours is a stub job without device time that makes no picture: it is claimed with a lease, read, run through
the device thread, published with its record, counters and event. A peer's does nothing but count itself.

Peers whose queue outlives their server get all jobs first and their worker afterwards; the clock runs from
the first job's beginning to the last one's end. Ours runs from the first bell to the last publish.
"""

from __future__ import annotations

import statistics
import sys
import time

from bench.peers.field import EVERYONE, TUNED, Peer
from bench.peers.rounds import beside, measure, rows
from bench.peers.running import ground
from bench.results import Result
from bench.stage import Stage, stage, stub_specs

BATCH = 32
JOBS, FULL_JOBS = 5_000, 20_000
SLOW_JOBS = 2_000  # for who needs seconds for a thousand
GOAL_TUNED, GOAL = 10.0, 1.0
_OPTIONS = {"device_ms": 0.0, "per_item_ms": 0.0}


def run(rounds: int, full: bool) -> list[Result]:
    """Measure us right before each peer, every round."""
    jobs = FULL_JOBS if full else JOBS
    with stage(max_batch=BATCH) as ready:
        ours_per_s(ready, 20 * BATCH)
        cores = _watched(ready, jobs, rounds)
        stored = ours_per_s(ready, SLOW_JOBS, empty=False)
        once, ours = beside(lambda _: ours_per_s(ready, jobs), lambda peer: peer_per_s(peer, jobs))
        found = measure("p3", "submit", EVERYONE, once, rounds)
    return rows(
        "p3",
        f"empty jobs a second, drained by one worker process; {jobs} of them wait",
        ours,
        EVERYONE,
        found,
        goal=lambda peer: GOAL_TUNED if peer is TUNED else GOAL,
        caveat=f"Ours in batches of {BATCH}, one bell for many jobs, no result message a job; but a durable "
        f"record, a lease, counters and an event each ({cores}). With a picture of 8 px stored, and its "
        f"manifest: {stored:.0f}/s. The peers' jobs leave nothing behind",
    )


def ours_per_s(ready: Stage, jobs: int, *, empty: bool = True) -> float:
    """Return our jobs a second."""
    options = _OPTIONS | ({"empty": 1.0} if empty else {})
    specs = stub_specs(jobs, size_px=8, options=options)
    ready.submit(specs)
    began = time.time()
    ready.ring(specs[0].lane, jobs)
    records = ready.wait([spec.id for spec in specs], limit_s=120)
    return jobs / (max(record.completed_at or 0.0 for record in records) - began)


def peer_per_s(peer: Peer, jobs: int) -> float:
    """Return a peer's jobs a second."""
    if not peer.keeps or peer.name == "RQ":
        jobs = min(jobs, SLOW_JOBS)
    with ground(peer, "submit") as place:
        if peer.keeps:
            place.drive(jobs)
            with place.served():
                place.until(jobs, limit_s=180)
        else:
            with place.served():
                place.drive(jobs)
                place.until(jobs, limit_s=60)
        return jobs / place.tally.span_s


def _watched(ready: Stage, jobs: int, rounds: int) -> str:
    """Return how busy worker and Redis are with so many jobs."""
    worker_s, redis_s, began = ready.cpu_s(), ready.redis_cpu_s(), time.monotonic()
    ours = [ours_per_s(ready, jobs) for _ in range(rounds)]
    worker, server = ready.cpu_s() - worker_s, ready.redis_cpu_s() - redis_s
    shown = (
        f"{worker / jobs / rounds * 1e6:.0f} us of the worker's and {server / jobs / rounds * 1e6:.0f} us of "
    )
    print(f"p3 ours: {statistics.median(ours):.0f}/s in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return f"{shown}Redis's processor time, its submission included"
