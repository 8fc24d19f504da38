"""P6: what the moves cost with many jobs waiting, and the memory a waiting job takes.

One Redis a depth, all of them up at once, so that each round measures every depth within the same seconds and
whatever else the machine does falls on all. Jobs are those of 20 tenants, made by the intake from rows as
users send them. The moves are called through the ledger, the network of this machine included.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import plots
from bench.door import Door, door, seconds
from bench.results import Result, compared
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.ledger.contract import LaneOffer

DEPTHS, FULL_DEPTHS = (10_000, 100_000), (10_000, 100_000, 1_000_000)
TENANTS = 20
FILLED_AT_ONCE = 5_000
CALLS = 100  # of each move in a round
LANE = "generate.toyworld"
LEASE_S = 600.0
FLAT = 1.5
BYTES = 1_229  # 1.2 KB
PLOT = Path(__file__).parent / "results" / "p6-depth.png"

Times = dict[tuple[int, str], list[float]]


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; rows are the moves at the greatest depth beside the least, and bytes beside the budget."""
    depths = FULL_DEPTHS if full else DEPTHS
    with ExitStack() as stack:
        doors = {depth: stack.enter_context(door()) for depth in depths}
        alone = [fill(doors[depth], depth, grouped=False) for depth in depths]
        medians: Times = {}
        for number in range(rounds):
            for depth, one in doors.items():
                for name, median_ms in look(one).items():
                    medians.setdefault((depth, name), []).append(median_ms)
            print(f"p6 round {number + 1} of {rounds}", file=sys.stderr)
    with door() as one:
        grouped = fill(one, depths[-1] // 10, grouped=True)
    names = list(dict.fromkeys(name for _, name in medians))
    plot(depths, medians, names)
    rows = [_flat(name, medians[depths[-1], name], medians[depths[0], name], depths) for name in names]
    return [
        *rows,
        _bytes("in no group", alone[-1], depths[-1]),
        _bytes("in a group", grouped, depths[-1] // 10),
    ]


def fill(one: Door, depth: int, *, grouped: bool) -> float:
    """Let so many jobs wait; returns the bytes of Redis each of them takes."""
    one.producer.submit_many(one_row(), chunk=1)  # scripts, counters, the lane itself
    before = one.used_bytes()
    group = new_id("grp") if grouped else None
    for start in range(0, depth, FILLED_AT_ONCE):
        tenant = "tenant-0" if grouped else f"tenant-{start // FILLED_AT_ONCE % TENANTS}"
        one.ledger.submit(one.prepared(min(FILLED_AT_ONCE, depth - start), group=group, tenant=tenant))
    return (one.used_bytes() - before) / depth


def one_row() -> Iterator[dict[str, object]]:
    """Yield a row."""
    yield {"kind": "generate", "model": "toyworld", "input": {"prompt": "a red house"}}


def look(one: Door) -> dict[str, float]:
    """Return the median milliseconds of each move; what was taken or written is put back or removed."""
    ledger = one.ledger
    fresh = iter(one.prepared(CALLS, tenant="tenant-1"))
    waiting = [record.id for record in ledger.jobs("tenant-0", limit=CALLS).records]
    held: list[tuple[str, int]] = []
    new: list[str] = []

    def submit() -> None:
        new.extend(ledger.submit([next(fresh)]).ids)

    def claim(rows: int) -> None:
        found = ledger.claim(new_id("w"), [LaneOffer(lane=LANE, max_rows=rows)], lease_s=LEASE_S)
        assert found is not None
        held.extend((job.id, job.attempt) for job in found.jobs)

    moves: dict[str, Callable[[], object]] = {
        "submit of 1": submit,
        "claim of 1": partial(claim, 1),
        "claim of 8": partial(claim, 8),
        "page of 50": lambda: ledger.jobs("tenant-0", limit=50),
        "stats": lambda: (ledger.lanes(), ledger.counts("tenant-0")),
        "position": lambda: ledger.position(waiting[0]),
        "cancel": lambda: ledger.cancel(new.pop()),
    }
    medians = {
        name: 1_000 * statistics.median(seconds(move) for _ in range(CALLS)) for name, move in moves.items()
    }
    for job_id, attempt in held:
        ledger.release(job_id, attempt)
    return medians


def plot(depths: tuple[int, ...], medians: Times, names: list[str]) -> None:
    """Draw the median of each move over the depth."""
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    series = {
        name: [(float(depth), statistics.median(medians[depth, name])) for depth in depths] for name in names
    }
    plots.lines(
        PLOT,
        series,
        title="p6: one move of the ledger, by the number of waiting jobs",
        x="jobs waiting",
        y="milliseconds (median)",
        log=True,
    )


def _flat(name: str, deep: list[float], shallow: list[float], depths: tuple[int, ...]) -> Result:
    return compared(
        "p6",
        f"milliseconds with {depths[-1]:,} jobs waiting",
        list(zip(deep, shallow, strict=True)),
        peer_name=f"{name}, with {depths[0]:,} waiting",
        goal=round(1 / FLAT, 3),
        caveat=f"medians of {CALLS} calls a round, one after another, over a local socket; the goal is that "
        f"the deep one takes at most {FLAT} x the shallow one's time",
        less_is_better=True,
    )


def _bytes(where: str, found: float, depth: int) -> Result:
    return compared(
        "p6",
        "bytes of Redis a waiting job",
        [(found, float(BYTES))],
        peer_name=f"the budget; {where}, {depth:,} waiting",
        goal=1.0,
        caveat="used_memory before and after, the jobs being prompts of 33 characters for one model; Redis's "
        "hash tables grow by doubling, so the figure swings by some 100 bytes with the number of jobs",
        less_is_better=True,
    )
