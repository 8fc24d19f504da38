"""How a benchmark's result is written down: with machine, commit, and what it does not show."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One benchmark. `ours` and `peer` are in the unit that `what` names; above 1, `ratio` is for us."""

    id: str
    what: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    goal: float
    met: bool
    machine: str
    commit: str
    caveat: str

    def shown(self) -> dict[str, Any]:
        """Return the result as it is written."""
        return asdict(self)


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
    """Return the commit measured, with a plus sign when the working tree differs from it."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read(path: Path) -> list[Result]:
    """Return the results in a file; a missing or foreign file holds none."""
    try:
        lines = json.loads(path.read_text("utf-8"))
        names = {field.name for field in fields(Result)}
        return [Result(**{name: line[name] for name in names}) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(path: Path, results: Iterable[Result]) -> None:
    """Write the results, in the order of their ids."""
    lines = [result.shown() for result in sorted(results, key=lambda result: result.id)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lines, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], text=True, stderr=subprocess.DEVNULL).strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
