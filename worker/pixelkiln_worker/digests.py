"""SHA-256 of files, remembered by this process for as long as a file stays as it was.

A model that was evicted and is loaded again needs no second look at its bytes; a new process reads them all.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTLED_S = 2.0  # clocks of file systems tick coarsely: a younger file may change without a trace
SIDE_BY_SIDE = 4  # hashing leaves Python alone; more threads only wait for the same memory

_Trace = tuple[int, int, int, int, int]
_known: dict[_Trace, str] = {}


def sha256_of(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, in order; unchanged files are not read again.

    A file is the same while device, inode, size, and the times of its content and its inode are.

    Raises:
        OSError: one of them cannot be read.
    """
    if len(paths) < 2:
        return [_digest(path) for path in paths]
    with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(paths)), thread_name_prefix="hashing") as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        began_ns, trace = time.time_ns(), _trace(file.fileno())
        found = _known.get(trace)
        if found is None:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            settled = began_ns - max(trace[3:]) > SETTLED_S * 1e9
            if settled and _trace(file.fileno()) == trace:
                _known[trace] = found
        return found


def _trace(descriptor: int) -> _Trace:
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
