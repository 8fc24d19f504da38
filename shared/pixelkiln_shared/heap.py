"""Memory that was freed goes back to the system; glibc keeps most of it otherwise, in an arena a thread."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # musl has none, and keeps little
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


_TRIM = _malloc_trim()


def trim() -> None:
    """Give back every page of the heap that nothing lives on, where the C library can (malloc_trim(3)).

    Takes milliseconds, in which other threads compute on; but for allocations, each of which may wait for it.
    """
    if _TRIM is not None:
        _TRIM(0)
