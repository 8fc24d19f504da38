"""Print the requirements of one or more extras of `pyproject.toml`, a line each.

Images install these before the source is copied, so that a change of code does not install torch again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
OWN = re.compile(rf"{PROJECT['name']}\[([^\]]+)\]$")


def requirements(extra: str) -> set[str]:
    """Return what `extra` needs, extras of our own followed."""
    found: set[str] = set()
    for line in PROJECT["optional-dependencies"][extra]:
        own = OWN.match(line)
        found |= set().union(*map(requirements, own[1].split(","))) if own else {line}
    return found


if __name__ == "__main__":
    print(*sorted(set(PROJECT["dependencies"]).union(*map(requirements, sys.argv[1:]))), sep="\n")
