"""What a run with kills came to, counted for everyone from the same lines (`bench/peers/stamps.py`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.stamps import ENDED, STARTED, WARM


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A job that started or ended (`what`) at a time, Unix seconds, in a process."""

    job: int
    what: str
    at: float
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A kill that was done: when, to which process that ran `jobs`, and whether to its whole worker."""

    at: float
    pid: int
    whole: bool
    jobs: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """The figures of a run.

    Attributes:
        accepted: jobs that the queue took.
        lost: no result, and the queue knows of none that is to come.
        stuck: no result at the end, but the queue still holds the job.
        doubled: jobs that ran to their end more than once.
        untrue: jobs that show a result though none ever ran to its end.
        again: starts beyond the first of each job.
        seconds: from the first job accepted to the last first end.
        longest_s: the longest that one job took from accepted to its first end.
    """

    accepted: int
    lost: int
    stuck: int
    doubled: int
    untrue: int
    again: int
    seconds: float
    longest_s: float

    @property
    def wrong(self) -> int:
        """Jobs with which something is wrong."""
        return self.lost + self.stuck + self.doubled + self.untrue


class Trace:
    """The lines of a run, read as they come; a line that is not yet whole waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """Return all lines until now, in the order in which they were written."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._lines += map(_line, whole.decode("ascii").splitlines())
        return list(self._lines)


def running(lines: Iterable[Line]) -> dict[int, tuple[int, ...]]:
    """Return by process which jobs it has started and not ended; the dead included."""
    found: dict[int, dict[int, None]] = defaultdict(dict)
    for line in lines:
        if line.what == STARTED:
            found[line.pid][line.job] = None
        else:
            found[line.pid].pop(line.job, None)
    return {pid: tuple(jobs) for pid, jobs in found.items() if jobs}


def count(
    accepted: Mapping[int, float], lines: Sequence[Line], *, shown: Collection[int], kept: Collection[int]
) -> Count:
    """Count.

    Args:
        accepted: when each job was accepted, Unix seconds.
        lines: what the jobs wrote.
        shown: the jobs that show a result at the end.
        kept: those the queue still holds, waiting or handed out.
    """
    starts = Counter(line.job for line in lines if line.what == STARTED and line.job in accepted)
    ends = Counter(line.job for line in lines if line.what == ENDED and line.job in accepted)
    first_end: dict[int, float] = {}
    for line in lines:
        if line.what == ENDED and line.job in accepted:
            first_end[line.job] = min(line.at, first_end.get(line.job, line.at))
    missing = set(accepted) - set(shown)
    return Count(
        accepted=len(accepted),
        lost=len(missing - set(kept)),
        stuck=len(missing & set(kept)),
        doubled=sum(times > 1 for times in ends.values()),
        untrue=len(set(shown) & set(accepted) - set(ends)),
        again=sum(times - 1 for times in starts.values()),
        seconds=max(first_end.values(), default=0.0) - min(accepted.values(), default=0.0),
        longest_s=max((end - accepted[job] for job, end in first_end.items()), default=0.0),
    )


def recoveries_s(
    strikes: Iterable[Strike], lines: Sequence[Line], *, whole: bool | None = None
) -> list[float]:
    """Return for each job whose only holder was killed how long it took to start in another process, seconds.

    A job that never did is left out: it is lost or stuck. `whole` chooses among the strikes; None: all.
    """
    starts: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        if line.what == STARTED:
            starts[line.job].append(line)
    found = []
    for strike in strikes:
        if whole is not None and strike.whole is not whole:
            continue
        for job in strike.jobs:
            later = [
                one.at - strike.at for one in starts[job] if one.at > strike.at and one.pid != strike.pid
            ]
            found += sorted(later)[:1]
    return found


def read_accepted(path: Path) -> dict[int, float]:
    """Return when each job was accepted; those that warm up are left out."""
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    found = {int(job): float(at) for job, _, at in map(str.split, lines)}
    return {job: at for job, at in found.items() if job < WARM}


def _line(text: str) -> Line:
    job, what, at, pid = text.split()
    return Line(job=int(job), what=what, at=float(at), pid=int(pid))
