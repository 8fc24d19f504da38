"""Files locked for as long as a process lives: the kernel lets go when it ends in any way, never before."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def locked(path: Path) -> int:
    """Return the descriptor of a new file, locked until it is closed or this process ends in any way."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # somebody took it for a dead one's in between


def remove_unheld(path: Path, last_rites: Callable[[], object] = lambda: None) -> bool:
    """Remove a file that nobody locks, after these rites, while nobody else can begin them; return whether.

    When the rites raise, the file stays, for the next who comes by.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # another was quicker, or it is somebody else's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last_rites()
        path.unlink(missing_ok=True)
    except BlockingIOError:  # its process lives, or another removes it
        return False
    finally:
        os.close(descriptor)
    return True
