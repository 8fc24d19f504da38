"""P1: what the whole path costs, beside the bare batched loop on the same device.

The device is the stub: 40 ms a batch and 5 ms a picture, batches of 8, so at best 100 pictures a second. The
bare loop does only that, one batch after another. We do it for jobs that come from Redis through Celery, and
store every picture as a 512 x 512 PNG with its manifest. Each round measures the loop, then us, over as many
pictures.
"""

from __future__ import annotations

import sys
import time

from bench import p1_peers
from bench.results import Result, compared, machine
from bench.stage import Stage, stage, stub_specs
from pixelkiln_worker.families.stub import DEVICE_MS, PER_ITEM_MS

BATCH = 8
PICTURES = 960
SIZE_PX = 512
GOAL = 0.98


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; the ratio is the median over the rounds."""
    with stage() as ready:
        ours_per_s(ready, 10 * BATCH)  # connections, caches, forecasts
        pairs = [_round(ready, number) for number in range(rounds)]
    beside_loop = [
        compared(
            "p1",
            f"pictures a second, whole path, {PICTURES} stub pictures of {SIZE_PX} px as PNG into a folder",
            pairs,
            peer_name="the bare batched loop on the same device: no queue, no encoding, no storage",
            goal=GOAL,
            caveat="from the first bell to the last publish, start and tail included; the device sleeps and "
            "leaves the processor to the rest",
        )
    ]
    ours = [one for one, _ in pairs]
    return beside_loop + p1_peers.beside(ours, size_px=SIZE_PX, rounds=rounds, full=full)


def bare_per_s(pictures: int) -> float:
    """Return the bare loop's pictures a second."""
    began = time.monotonic()
    for _ in range(pictures // BATCH):
        time.sleep((DEVICE_MS + PER_ITEM_MS * BATCH) / 1_000)
    return pictures / (time.monotonic() - began)


def ours_per_s(ready: Stage, pictures: int) -> float:
    """Return our pictures a second, from the first bell to the last publish by Redis's clock."""
    specs = stub_specs(pictures, size_px=SIZE_PX)
    ready.submit(specs)
    began = time.time()
    ready.ring(specs[0].lane, pictures)
    records = ready.wait([spec.id for spec in specs], limit_s=pictures)
    ended = max(record.completed_at or 0.0 for record in records)
    return pictures / (ended - began)


def _round(ready: Stage, number: int) -> tuple[float, float]:
    bare = bare_per_s(PICTURES)
    cpu_s, began = ready.cpu_s(), time.monotonic()
    ours = ours_per_s(ready, PICTURES)
    busy = (ready.cpu_s() - cpu_s) / (time.monotonic() - began)
    print(
        f"p1 round {number + 1}: bare {bare:.1f}/s, ours {ours:.1f}/s, ratio {ours / bare:.3f}, "
        f"worker used {busy:.2f} cores, load {machine().partition('load ')[2].partition(',')[0]}",
        file=sys.stderr,
    )
    return ours, bare
