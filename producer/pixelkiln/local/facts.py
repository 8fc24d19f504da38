"""What a running stack tells others about itself: `stack.json` in its data folder, for this user only."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

NAME = "stack.json"
LOCK = "lock"


def facts_of(data: Path) -> dict[str, str]:
    """Return `url`, `redis_url`, `storage_url` and `pid` of the stack on a folder; empty when none runs."""
    try:
        facts: dict[str, str] = json.loads((data / NAME).read_text("utf-8"))
        return facts if is_held(data) else {}
    except (OSError, ValueError):
        return {}


def is_held(data: Path) -> bool:
    """Tell whether a stack holds the folder; one that was killed leaves its facts but not its lock."""
    with (data / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def write_facts(data: Path, facts: Mapping[str, str]) -> None:
    """Tell; the Redis address holds its password, so nobody else may read it."""
    write_private(data / f"{NAME}.new", json.dumps(facts))
    os.replace(data / f"{NAME}.new", data / NAME)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, from its first moment on; replaces what was there."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
