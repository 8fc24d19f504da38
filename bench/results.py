"""How a benchmark's result is written down: with machine, commit, and what it does not show."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """We beside one peer. `ours` and `peer` are in the unit that `what` names; above 1, `ratio` is for us.

    `spread` are the lowest and highest ratio of the rounds. A peer that cannot do the work has a row all the
    same: `peer` and `ratio` are 0, `met` is None, and the caveat says what it lacks. `versions` names the
    libraries whose version matters.
    """

    id: str
    what: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    goal: float
    met: bool | None
    machine: str
    commit: str
    caveat: str
    spread: tuple[float, float] = (0.0, 0.0)
    versions: dict[str, str] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return the result as it is written."""
        return asdict(self)


def compared(
    name: str,
    what: str,
    rounds: Sequence[tuple[float, float]],
    *,
    peer_name: str,
    goal: float,
    caveat: str,
    versions: Mapping[str, str] | None = None,
    less_is_better: bool = False,
) -> Result:
    """Return the row of a peer measured beside us: the median of the ratios of `(ours, peer)` rounds."""
    pairs = [(peer, ours) if less_is_better else (ours, peer) for ours, peer in rounds]
    ratios = sorted(one / other for one, other in pairs)
    ratio = statistics.median(ratios)
    return Result(
        id=name,
        what=what,
        ours=_short(statistics.median(ours for ours, _ in rounds)),
        peer=_short(statistics.median(peer for _, peer in rounds)),
        peer_name=peer_name,
        ratio=_short(ratio),
        goal=goal,
        met=ratio >= goal,
        machine=machine(),
        commit=commit(),
        caveat=f"{len(rounds)} rounds; {caveat}",
        spread=(_short(ratios[0]), _short(ratios[-1])),
        versions=dict(versions or {}),
    )


def unable(name: str, what: str, *, peer_name: str, goal: float, why: str) -> Result:
    """Return the row of a peer that cannot do the work."""
    return Result(
        id=name,
        what=what,
        ours=0.0,
        peer=0.0,
        peer_name=peer_name,
        ratio=0.0,
        goal=goal,
        met=None,
        machine=machine(),
        commit=commit(),
        caveat=why,
    )


def machine() -> str:
    """Return what this machine is, and how busy it was with other things just now."""
    model = platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    nice = f", nice {os.nice(0)}" if os.nice(0) else ""
    load = f"load {os.getloadavg()[0]:.1f}{nice}"
    return f"{os.cpu_count()} x {model}, {load}, Python {platform.python_version()}"


def commit() -> str:
    """Return the commit measured, with a plus sign when the working tree differs in more than results."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + (
            "+"
            if _git(
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ".",
                ":!bench/results",
                ":!docs",
                ":!bench/README.md",
            )
            else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read(path: Path) -> list[Result]:
    """Return the results in a file; a missing or foreign file holds none."""
    try:
        lines = json.loads(path.read_text("utf-8"))
        names = {one.name for one in fields(Result)}
        return [Result(**{name: value for name, value in line.items() if name in names}) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(path: Path, results: Iterable[Result]) -> None:
    """Write the results, in the order of their ids; the rows of one benchmark stay as it ordered them."""
    lines = [result.shown() for result in sorted(results, key=lambda result: result.id)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lines, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True, stderr=subprocess.DEVNULL).strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
