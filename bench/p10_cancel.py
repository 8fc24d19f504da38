"""P10: cancel a running job of 100 steps of 20 ms at a random step: when has the job behind it run?

Real processes, one job at a time. The clock runs from the cancel to the end of an empty job that waits behind
the canceled one: then the worker is free, whatever it did to become so.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from bench.peers.field import EVERYONE, Peer
from bench.peers.rounds import measure, quantile, rows
from bench.peers.running import ground
from bench.peers.work import STEP_MS, STEPS
from bench.results import Result, compared
from bench.stage import Stage, stage, stub_specs
from pixelkiln_shared.jobs import JobSpec, Status
from pixelkiln_shared.ledger.contract import Record

CANCELS, FULL_CANCELS = 8, 20  # in a round
LIMIT_MS = STEP_MS + 250
_SEED = 10
_WHAT = "ms from a cancel at a random step until the next job has run, p95"


def run(rounds: int, full: bool) -> list[Result]:
    """Measure us, then every peer at the same steps; a short run measures each peer once."""
    count = FULL_CANCELS if full else CANCELS
    steps = random.Random(_SEED).sample(range(5, STEPS - 5), count)
    with stage() as ready:
        waits = [[_cancel_ours(ready, step) for step in steps] for _ in range(rounds)]
    ours = [quantile(found, 0.95) * 1_000 for found in waits]
    saved: dict[str, str] = {"us": _saved(steps, waits[0])}
    print(f"p10 ours: p95 {statistics.median(ours):.0f} ms, {saved['us']}", file=sys.stderr)
    found = measure(
        "p10", "cancel", EVERYONE, lambda peer: _cancel_peer(peer, steps, saved), rounds if full else 1
    )
    limit = compared(
        "p10",
        _WHAT,
        [(one, LIMIT_MS) for one in ours],
        peer_name=f"the limit: one step and 250 ms, {LIMIT_MS:g} ms",
        goal=1.0,
        caveat=f"{count} cancels a round; {saved['us']}",
        less_is_better=True,
    )
    made = [limit]
    for peer in EVERYONE:
        made += rows(
            "p10",
            _WHAT,
            ours,
            [peer],
            found,
            goal=lambda _: 0.0,
            caveat=f"{count} cancels; ours: {saved['us']}; the peer: {saved.get(peer.name, '')}. Ours stops "
            "between steps and keeps the process and its models; what ends a child or a work horse loses "
            "them, and the small process here starts anew far faster than one with a model",
            less_is_better=True,
        )
    return made


def _cancel_ours(ready: Stage, step: int) -> float:
    """Cancel a job at a step; return seconds until the one behind it was published."""
    [first] = _job(STEPS, STEP_MS * STEPS)
    [behind] = _job(1, 0.0)
    for spec in (first, behind):
        ready.submit([spec])
    ready.ring(first.lane, 2)
    while ready.ledger.get(first.id).step < step:
        time.sleep(0.002)
    asked_at = time.time()
    ready.ledger.cancel(first.id)
    stopped, record = (_ended(ready, spec.id) for spec in (first, behind))
    if stopped.status is not Status.CANCELED or record.completed_at is None:
        raise RuntimeError("the job of the benchmark was not canceled")
    return record.completed_at - asked_at


def _ended(ready: Stage, job_id: str) -> Record:
    while not (record := ready.ledger.get(job_id)).status.terminal:
        time.sleep(0.002)
    return record


def _job(steps: int, device_ms: float) -> list[JobSpec]:
    options = {"device_ms": device_ms, "per_item_ms": 0.0, "empty": 1.0}
    [spec] = stub_specs(1, size_px=8, options=options)
    return [spec.model_copy(update={"input": {**spec.input, "steps": steps}})]


def _cancel_peer(peer: Peer, steps: list[int], saved: dict[str, str]) -> float:
    with ground(peer, "cancel") as place, place.served():
        found = place.drive(*steps)
    saved[peer.name] = _saved(steps, found)
    return quantile(found, 0.95) * 1_000


def _saved(steps: list[int], waits: list[float]) -> str:
    """Say how much of the device time that the canceled jobs had left went to others."""
    left = [(STEPS - step) * STEP_MS / 1_000 for step in steps]
    kept = sum(max(0.0, one - wait) for one, wait in zip(left, waits, strict=True))
    return f"{kept:.1f} of {sum(left):.1f} device seconds saved"
