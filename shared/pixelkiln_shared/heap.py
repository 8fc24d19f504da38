"""Memory that was freed goes back to the system; glibc keeps most of it otherwise, in an arena a thread."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h


def share_arenas() -> None:
    """Let all threads allocate from two arenas. For the first moment of a process, before it starts threads.

    glibc makes up to eight for each processor, and what is free in one serves no thread of another: a process
    of many threads grows for hours. Who sets `MALLOC_ARENA_MAX` decides himself.
    """
    if _MALLOPT is not None and "MALLOC_ARENA_MAX" not in os.environ:
        _MALLOPT(_M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Give back every page of the heap that nothing lives on, where the C library can (malloc_trim(3)).

    Takes milliseconds, in which other threads compute on; but for allocations, each of which may wait for it.
    """
    if _TRIM is not None:
        _TRIM(0)


def _of_glibc(name: str, *takes: type) -> Callable[..., int] | None:
    """Return a function of the C library, None where it is another one: those keep little."""
    if sys.platform != "linux":
        return None
    try:
        found: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_int, *takes)((name, ctypes.CDLL(None)))
    except AttributeError:
        return None
    return found


_MALLOPT = _of_glibc("mallopt", ctypes.c_int, ctypes.c_int)
_TRIM = _of_glibc("malloc_trim", ctypes.c_size_t)
