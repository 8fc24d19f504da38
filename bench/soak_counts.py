"""What the samples of a soak are taken to show: whether anything grows, and what is left at the end."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.results import Result, compared, machine
from bench.results import commit as commit_now

STEP = 250
WARM = 500  # jobs until caches are full; growth counts from here
MOST_GROWTH = 0.05
MIB = 1_048_576


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Processes as the kernel sees them, together: resident bytes, open handles, threads."""

    rss_bytes: int
    handles: int
    threads: int


_LOOKED_AT: tuple[tuple[str, str, Callable[[Footprint], float]], ...] = (
    ("resident memory in MB", "MB", lambda one: one.rss_bytes / MIB),
    ("open handles", "handles", lambda one: float(one.handles)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Everything after so many jobs, none under way. `processes` has a footprint by name of the processes."""

    jobs: int
    processes: dict[str, Footprint]
    temporary_files: int
    redis_keys: int
    redis_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftovers:
    """What is there when the last job's time has run out, and should not be. `notes` tell what was found."""

    keys: int  # beyond those there before, records forgotten as now
    unacked: int  # Celery's lists of messages taken and never acknowledged
    waiting: int  # jobs in lanes, bells nobody heard
    temporary_files: int  # after the processes have ended
    uploads: int  # in parts, begun and left
    objects: int  # that no manifest names
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return each count by the words for it."""
        return {
            "Redis keys beyond those before": self.keys,
            "`unacked` keys": self.unacked,
            "waiting jobs and bells": self.waiting,
            "temporary files": self.temporary_files,
            "uploads in parts, unfinished": self.uploads,
            "objects that no manifest names": self.objects,
        }


def footprint(*pids: int) -> Footprint:
    """Return what processes hold now (Linux)."""
    found = [_one(pid) for pid in pids]
    return Footprint(
        rss_bytes=sum(one.rss_bytes for one in found),
        handles=sum(one.handles for one in found),
        threads=sum(one.threads for one in found),
    )


def _one(pid: int) -> Footprint:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return Footprint(
        rss_bytes=1_024 * int(status["VmRSS"].split()[0]),
        handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
    )


def grown(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return a figure at the end and after `WARM` jobs, by whichever of two looks shows more growth.

    One is the median of the last three samples beside that of the three around `WARM`, the other the two ends
    of a line fitted to all samples since: a slow leak shows in the line, a late jump at the end.
    """
    since = [(jobs, value) for jobs, value in points if jobs >= WARM]
    around = [value for jobs, value in points if abs(jobs - WARM) <= STEP]
    seen = statistics.median(value for _, value in points[-3:]), statistics.median(around)
    slope, start = (
        statistics.linear_regression(*zip(*since, strict=True)) if len(since) > 1 else (0.0, seen[0])
    )
    fitted = start + slope * since[-1][0], start + slope * since[0][0]
    return max(seen, fitted, key=lambda pair: pair[0] / pair[1])


def rows(samples: Sequence[Sample], left: Leftovers, caveat: str) -> list[Result]:
    """Return memory and handles of each kind of process (`p11`), and what is left (`soak`)."""
    jobs = samples[-1].jobs
    found = []
    for name in samples[0].processes:
        for what, unit, of in _LOOKED_AT:
            points = [(sample.jobs, of(sample.processes[name])) for sample in samples]
            after, before = grown(points)
            per_job = (after - before) / max(1, jobs - WARM)
            found.append(
                compared(
                    "p11",
                    f"{what} of the {name} after {jobs:,} jobs",
                    [(after, before)],
                    peer_name=f"the same after {WARM}",
                    goal=round(1 / (1 + MOST_GROWTH), 3),
                    caveat=f"{per_job:.2g} {unit} a job; {caveat}",
                    less_is_better=True,
                )
            )
    for what, count in left.counts().items():
        row = compared(
            "soak",
            f"{what} after {jobs:,} jobs",
            [(count + 1.0, 1.0)],
            peer_name="none, one more than each being compared",
            goal=1.0,
            caveat=caveat,
            less_is_better=True,
        )
        found.append(row)
    return found


def line(sample: Sample) -> str:
    """Return a sample for who watches the run."""
    parts = [
        f"{name} {one.rss_bytes / MIB:.1f} MB, {one.handles} handles, {one.threads} threads"
        for name, one in sample.processes.items()
    ]
    redis = f"Redis {sample.redis_keys} keys, {sample.redis_bytes / MIB:.2f} MB"
    return f"{sample.jobs} jobs: {'; '.join(parts)}; {redis}; {sample.temporary_files} temporary files"


def table(document: dict[str, Any]) -> str:
    """Return a kept soak as Markdown."""
    all_of_them = document["samples"]
    samples = [
        one
        for one in all_of_them
        if one["jobs"] == WARM or one["jobs"] % document["shown_every"] == 0 or one is all_of_them[-1]
    ]
    names = list(samples[0]["processes"])
    head = ["jobs", *(f"{name}: MB, handles" for name in names), "Redis keys", "MB", "temporary files"]
    lines = [head, ["---"] * len(head)]
    for one in samples:
        cells = [
            f"{part['rss_bytes'] / MIB:.1f}, {part['handles']}"
            for part in (one["processes"][name] for name in names)
        ]
        redis = [f"{one['redis_keys']:,}", f"{one['redis_bytes'] / MIB:.2f}"]
        lines.append([f"{one['jobs']:,}", *cells, *redis, str(one["temporary_files"])])
    left = ", ".join(f"{what} {count}" for what, count in document["left"].items())
    told = f"Commit `{document['commit']}`, {document['date']}, {document['machine']}. {document['setting']}."
    return "\n".join(
        [told, "", *(f"| {' | '.join(cells)} |" for cells in lines), "", f"Left at the end: {left}."]
    )


def document(samples: Sequence[Sample], left: Leftovers, *, setting: str, date: str) -> str:
    """Return a soak as it is kept: all samples, and what is left."""
    made = {
        "commit": commit_now(),
        "date": date,
        "machine": machine(),
        "setting": setting,
        "shown_every": max(STEP, samples[-1].jobs // 10 // STEP * STEP),
        "left": left.counts(),
        "notes": left.notes,
        "samples": [asdict(sample) for sample in samples],
    }
    return json.dumps(made, indent=1) + "\n"
