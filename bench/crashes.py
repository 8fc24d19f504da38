"""Crashes: a stream of small jobs, and SIGKILLs to the workers that run them. What is lost, doubled, stuck?

The same for everyone: four workers that are started again half a second after they died, jobs of 100 ms that
come at seven tenths of what the four can do, kills at times drawn from one seed. Every other kill takes the
whole worker, the others only the process that runs the job. A job writes a line when it starts and when it
ends (`peers/stamps.py`); all is counted from these lines, and from what each system shows afterwards.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from bench.crash_counts import Count, Strike, Trace, count, read_accepted, recoveries_s
from bench.crash_sides import JOB_MS, WORKERS, Side, our_side, peer_side
from bench.killing import schedule, strike_all
from bench.peers.environments import CannotInstall
from bench.peers.field import CELERY_SAFE, RAY_SAFE, Peer
from bench.peers.running import PeerFailed
from bench.peers.stamps import ENDED, STARTED, WARM
from bench.results import Result, compared, unable

PER_S = 28  # of the 40 that the workers can do: no kill shall be seen through a queue that only grows
SETTLE_S = 120.0  # after the last job was accepted
MEDIAN_S, LONGEST_S = 20.0, 30.0  # goal G3 of the reliability goals
_GOALS = {"crashes-seconds": 0.9}  # the rate of the jobs is most of it; else 1
_SEED = 20261125
_WARM_S = 120.0
_NO_WHOLE = (
    "a replica is one process; what starts it again is the raylet of its node, and to kill that one ends the "
    "whole cluster of one node"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How many jobs, and how many kills."""

    jobs: int
    kills: int


SHORT, FULL = Size(jobs=2_000, kills=10), Size(jobs=20_000, kills=70)


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What a run came to: the count, the recoveries in seconds after each kind of kill."""

    count: Count
    strikes: Sequence[Strike]
    process_s: Sequence[float]
    whole_s: Sequence[float]

    @property
    def all_s(self) -> list[float]:
        """Every recovery."""
        return [*self.process_s, *self.whole_s]

    def told(self) -> str:
        """Return the figures in words."""
        counted = self.count
        kills = (
            f"{len(self.strikes)} kills, {sum(one.whole for one in self.strikes)} of them of whole workers"
        )
        jobs = f"{counted.lost} lost, {counted.stuck} stuck, {counted.doubled} run twice to the end"
        again = f"{counted.again} starts beyond the first, {counted.untrue} results without a run"
        slow = f"{counted.seconds:.0f} s, the slowest job {counted.longest_s:.1f} s"
        parts = (("the process killed", self.process_s), ("the whole worker", self.whole_s))
        waits = [
            f"{name}: {len(found)} jobs begun again after {statistics.median(found):.1f} s in the median, "
            f"{max(found):.1f} s at most"
            for name, found in parts
            if found
        ]
        return "; ".join([f"{counted.accepted} accepted", kills, jobs, again, slow, *waits])


# --------------------------------------------------------------------------------------------------- a run


def run(rounds: int, full: bool) -> list[Result]:
    """Play one run a system, whatever the rounds; `CRASHES_SEED` chooses another schedule."""
    size, seed = FULL if full else SHORT, int(os.environ.get("CRASHES_SEED") or _SEED)
    kills = schedule(seed, size.kills, size.jobs / PER_S)
    shown = ", ".join(f"{one.at_s:.1f}{' (whole)' if one.whole else ''}" for one in kills)
    print(f"crashes: seed {seed}: {size.jobs} jobs, kills at {shown} s", file=sys.stderr)
    with our_side() as side:
        ours = _tell("us", play(side, seed, size))
    found: list[tuple[Peer, Played | str]] = []
    for peer in (CELERY_SAFE, RAY_SAFE):
        try:
            with peer_side(peer) as other:
                found.append((peer, _tell(peer.name, play(other, seed, size))))
        except (CannotInstall, PeerFailed, TimeoutError) as error:
            found.append((peer, f"not measured: {error}"))
            print(f"crashes: {peer.name}: {error}", file=sys.stderr)
    return rows(
        ours, found, f"seed {seed}, {size.jobs} jobs of {JOB_MS} ms at {PER_S} a second, {WORKERS} workers"
    )


def play(side: Side, seed: int, size: Size) -> Played:
    """Feed the jobs, strike, and wait until all have ended or will not.

    Raises:
        TimeoutError: the workers did not all begin to work.
        PeerFailed: the peer's side of the run broke.
    """
    trace = Trace(side.folder / "trace")
    _warm_up(side, trace)
    kills = schedule(seed, size.kills, size.jobs / PER_S)
    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(side.feed, 0, size.jobs, PER_S)
        strikes = strike_all(kills, side.keeper, trace, whole=side.whole)
        feeding.result()
    shown, kept = _settled(side, trace)
    accepted, lines = read_accepted(side.folder / "accepted"), trace.lines()
    return Played(
        count=count(accepted, lines, shown=shown, kept=kept),
        strikes=strikes,
        process_s=recoveries_s(strikes, lines, whole=False),
        whole_s=recoveries_s(strikes, lines, whole=True),
    )


def _warm_up(side: Side, trace: Trace) -> None:
    """Let every worker run a job that is not counted."""
    until, first = time.monotonic() + _WARM_S, WARM
    while time.monotonic() < until:
        side.feed(first, 4 * WORKERS, 1_000)
        first += 4 * WORKERS
        seen_by = time.monotonic() + 3.0
        while time.monotonic() < seen_by:
            if len({line.pid for line in trace.lines() if line.what == STARTED}) >= WORKERS:
                return
            time.sleep(0.1)
    raise TimeoutError("the workers did not all begin to work")


def _settled(side: Side, trace: Trace) -> tuple[set[int], set[int]]:
    """Wait until every accepted job shows its result; return those that do, and those still held."""
    until = time.monotonic() + SETTLE_S
    accepted = set(read_accepted(side.folder / "accepted"))
    while time.monotonic() < until:
        if accepted <= {line.job for line in trace.lines() if line.what == ENDED}:
            shown, kept = side.fates()
            if accepted <= shown:
                return shown, kept
        time.sleep(1.0)
    return side.fates()


def _tell(name: str, played: Played) -> Played:
    print(f"crashes: {name}: {played.told()}", file=sys.stderr)
    return played


# ---------------------------------------------------------------------------------------------------- rows


def rows(ours: Played, found: Sequence[tuple[Peer, Played | str]], setting: str) -> list[Result]:
    """Return us beside the goals, and beside each peer: recoveries, what went wrong, seconds."""
    made = []
    for name, limit_s, waited in (("median", MEDIAN_S, statistics.median), ("longest", LONGEST_S, max)):
        what = f"s from the SIGKILL of a job's only holder to its next start, {name} of all kills"
        pairs = [(waited(ours.all_s), limit_s)] if ours.all_s else []
        made += _row("crashes", what, pairs, f"the goal, {limit_s:g} s", f"{setting}; ours: {ours.told()}")
    for peer, played in found:
        made += _beside(ours, peer, played, setting)
    return made


def _beside(ours: Played, peer: Peer, played: Played | str, setting: str) -> list[Result]:
    start = "s from the SIGKILL to the job's next start, median"
    whats = {
        "crashes-process": f"{start}: only the process that runs the job is killed",
        "crashes-worker": f"{start}: the whole worker is killed",
        "crashes-wrong": "jobs lost, stuck, run twice to the end, or shown without a run",
        "crashes-seconds": "s from the first job accepted to the last end",
    }
    if isinstance(played, str):
        return [unable(name, what, peer_name=peer.name, goal=1.0, why=played) for name, what in whats.items()]
    caveat = f"{setting}. {peer.name}: {peer.setting}; {played.told()}. Ours: {ours.told()}"
    pairs = {
        "crashes-process": _medians(ours.process_s, played.process_s),
        "crashes-worker": _medians(ours.whole_s, played.whole_s),
        "crashes-wrong": [(ours.count.wrong + 1.0, played.count.wrong + 1.0)],
        "crashes-seconds": [(ours.count.seconds, played.count.seconds)],
    }
    made = []
    for name, what in whats.items():
        why = _NO_WHOLE if name == "crashes-worker" and peer is RAY_SAFE else ""
        made += _row(name, what, pairs[name], peer.name, caveat, why=why, peer=peer)
    return made


def _medians(ours: Sequence[float], theirs: Sequence[float]) -> list[tuple[float, float]]:
    return [(statistics.median(ours), statistics.median(theirs))] if ours and theirs else []


def _row(
    name: str,
    what: str,
    pairs: Sequence[tuple[float, float]],
    beside: str,
    caveat: str,
    *,
    why: str = "",
    peer: Peer | None = None,
) -> list[Result]:
    """Return the row, or one that says why there is none. The ratio of counts is of one more than each."""
    if not pairs:
        why = why or "no kill of this kind struck a job that began again"
        return [unable(name, what, peer_name=beside, goal=_GOALS.get(name, 1.0), why=why)]
    row = compared(
        name,
        what,
        pairs,
        peer_name=beside,
        goal=_GOALS.get(name, 1.0),
        caveat=caveat,
        versions=peer.versions if peer else None,
        less_is_better=True,
    )
    if name == "crashes-wrong":
        row = replace(row, ours=row.ours - 1.0, peer=row.peer - 1.0)
    return [row]
