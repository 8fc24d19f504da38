"""What each move of the ledger costs one Redis: processor time and bytes a call, beside Redis's own SET.

`python -m bench.moves` measures and replaces the tables of docs/scale.md. One caller asks at a time, so a
call's share of system calls is in its cost; the rates say what one processor core of Redis carries.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.door import Door, door
from bench.results import Result, commit, compared, machine
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.ledger import RedisLedger
from pixelkiln_shared.ledger.contract import LaneOffer

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
WAITING, CHUNK, CALLS, BATCH = 20_000, 1_000, 1_000, 8
LANE = "generate.toyworld"
LEASE_S, RETENTION_S = 600.0, 1
SPARE = 0.5  # of a core of Redis: the rest is for bursts, its own housekeeping and slower machines
HEARTBEAT_S, PROGRESS_PER_S = 5.0, 4.0
SECONDS = (0.1, 1.0, 5.0, 30.0)
SET = "SET of 300 bytes"
_RESULT = json.dumps({"artifacts": [{"role": "image", "key": "k" * 90, "sha256": "0" * 64}], "metrics": {}})


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one call of a move costs Redis; `jobs` is how many jobs it moves."""

    name: str
    jobs: int
    us: float
    bytes_in: float
    bytes_out: float


def run(rounds: int, full: bool) -> list[Result]:
    """Measure; rows are the calls a second one core of Redis carries, beside SET."""
    measured = rounds_of(rounds)
    plain = {number: costs[SET].us for number, costs in enumerate(measured)}
    return [
        compared(
            "moves",
            "calls a second that one processor core of Redis carries",
            [(1e6 / costs[name].us, 1e6 / plain[number]) for number, costs in enumerate(measured)],
            peer_name=f"{SET}; ours: {name}",
            goal=0.0,
            caveat=f"no goal: a table for docs/scale.md; {WAITING:,} jobs waiting, append-only file on, one "
            "caller; user and system time of the Redis process",
        )
        for name in measured[0]
        if name != SET
    ]


def rounds_of(rounds: int) -> list[dict[str, Cost]]:
    """Return the cost of each move by name, a table a round."""
    tables = []
    for number in range(rounds):
        with door() as one:
            tables.append({cost.name: cost for cost in _costs(one)})
        print(f"moves round {number + 1} of {rounds}", file=sys.stderr)
    return tables


def _costs(one: Door) -> Iterator[Cost]:
    ledger = RedisLedger(one.client, retention_s=RETENTION_S)
    ledger.submit(one.prepared(WAITING))
    jobs = one.prepared(WAITING)
    chunks = iter([jobs[start : start + CHUNK] for start in range(0, WAITING - CALLS, CHUNK)])
    singles = iter(jobs[-CALLS:])
    held: list[tuple[str, int]] = []

    def claim(rows: int) -> None:
        found = ledger.claim(new_id("w"), [LaneOffer(lane=LANE, max_rows=rows)], lease_s=LEASE_S)
        assert found is not None
        held.extend((job.id, job.attempt) for job in found.jobs)

    yield _measured(one, "submit, one by one", CALLS, lambda: ledger.submit([next(singles)]))
    yield _measured(one, "submit, 1,000 at a time", 10, lambda: ledger.submit(next(chunks)), jobs=CHUNK)
    waiting = [record.id for record in ledger.jobs("bench", limit=CALLS).records]
    yield _measured(one, "look at a job", CALLS, lambda: ledger.get(waiting[0]))
    yield _measured(one, "position", CALLS, lambda: ledger.position(waiting[0]))
    yield _measured(one, "page of 50", CALLS // 4, lambda: ledger.jobs("bench", limit=50))
    yield _measured(one, "stats", CALLS, lambda: (ledger.lanes(), ledger.counts("bench")))
    yield _measured(one, "cancel", CALLS // 2, lambda: ledger.cancel(waiting.pop()))
    yield _measured(one, "claim of 1", CALLS, partial(claim, 1))
    yield _measured(one, "claim of 8", CALLS, partial(claim, BATCH), jobs=BATCH)
    pairs = iter(held * 2)
    yield _measured(one, "progress", CALLS, lambda: ledger.progress(*next(pairs), 1, 2))
    yield _measured(
        one, "renew of 8", CALLS, lambda: ledger.renew("w", held[:BATCH], lease_s=LEASE_S), jobs=BATCH
    )
    ends = iter(held)
    yield _measured(one, "publish", 4 * CALLS, lambda: ledger.publish(*next(ends), _RESULT))
    time.sleep(RETENTION_S + 0.1)
    ended = 4 * CALLS + CALLS // 2
    yield _measured(one, "forget", 1, lambda: ledger.reap(), jobs=ended)
    value = "x" * 300
    numbers = iter(range(10 * CALLS))
    yield _measured(one, SET, 5 * CALLS, lambda: one.client.set(f"plain:{next(numbers)}", value))


def _measured(one: Door, name: str, calls: int, act: Callable[[], object], *, jobs: int = 1) -> Cost:
    idle = _difference(one, lambda: None, 1)
    found = _difference(one, act, calls)
    seconds, came, went = (max(0.0, new - old) / calls for new, old in zip(found, idle, strict=True))
    return Cost(name=name, jobs=jobs, us=1e6 * seconds, bytes_in=came, bytes_out=went)


def _difference(one: Door, act: Callable[[], object], calls: int) -> tuple[float, float, float]:
    before = _used(one)
    for _ in range(calls):
        act()
    after = _used(one)
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def _used(one: Door) -> tuple[float, float, float]:
    cpu, stats = one.client.info("cpu"), one.client.info("stats")
    used_s = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return used_s, float(stats["total_net_input_bytes"]), float(stats["total_net_output_bytes"])


def middle(tables: Sequence[dict[str, Cost]]) -> dict[str, Cost]:
    """Return the median of the rounds."""

    def of(name: str) -> Cost:
        rounds = [table[name] for table in tables]
        us, came, went = (
            statistics.median(values)
            for values in zip(*((c.us, c.bytes_in, c.bytes_out) for c in rounds), strict=True)
        )
        return Cost(name=name, jobs=rounds[0].jobs, us=us, bytes_in=came, bytes_out=went)

    return {name: of(name) for name in tables[0]}


def tables(costs: dict[str, Cost]) -> dict[str, str]:
    """Return the tables of docs/scale.md by the name of their place."""
    plain = costs[SET].us
    lines = [
        "| move | calls a second | µs a call | µs a job | of SET's rate | bytes to and from Redis a job |",
        "|---|---|---|---|---|---|",
    ]
    for cost in costs.values():
        a_job = (cost.bytes_in + cost.bytes_out) / cost.jobs
        lines.append(
            f"| {cost.name} | {1e6 / cost.us:,.0f} | {cost.us:,.0f} | {cost.us / cost.jobs:.1f} "
            f"| {plain / cost.us:.2g} | {a_job:,.0f} |"
        )
    life = ("submit, 1,000 at a time", "claim of 8", "publish", "forget")
    us = sum(costs[name].us / costs[name].jobs for name in life)
    sent = sum((costs[name].bytes_in + costs[name].bytes_out) / costs[name].jobs for name in life)
    lines += [
        "",
        f"A job's whole life ({', '.join(life)}) is {us:.0f} µs of Redis and {sent:,.0f} bytes: "
        f"{1e6 / us:,.0f} jobs a second on a full core. Machine: {machine()}, commit {commit()}.",
    ]
    return {"moves": "\n".join(lines), "devices": _devices(costs, us)}


def _devices(costs: dict[str, Cost], life_us: float) -> str:
    """Return how many devices one Redis feeds, by the device time of a job."""
    lines = [
        "| device time of a job | µs of Redis a job | jobs a second | devices fed |",
        "|---|---|---|---|",
    ]
    beat, step = costs["renew of 8"], costs["progress"]
    for seconds in SECONDS:
        in_hand_s = BATCH * seconds  # a batch of 8 is in hand eight times as long as its share of the device
        told = PROGRESS_PER_S * in_hand_s * step.us if in_hand_s > 1 / PROGRESS_PER_S else 0.0
        us = life_us + told + in_hand_s / HEARTBEAT_S * beat.us / BATCH
        rate = SPARE * 1e6 / us
        lines.append(f"| {seconds:g} s | {us:,.0f} | {rate:,.0f} | {rate * seconds:,.0f} |")
    return "\n".join(lines)


def written(page: str, parts: dict[str, str]) -> str:
    """Return the page with the text between its marks replaced."""
    for name, text in parts.items():
        begin, end = f"<!-- {name}: measured -->\n", f"\n<!-- {name}: end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no place for {name}")
        page = head + begin + text + end + tail
    return page


def main() -> int:
    """Measure and write the tables into docs/scale.md."""
    parts = tables(middle(rounds_of(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
    PAGE.write_text(written(PAGE.read_text("utf-8"), parts), "utf-8")
    print("\n\n".join(parts.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
