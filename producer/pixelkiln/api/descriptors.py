"""File descriptors: how many connections the API takes, so that Redis and the store always get theirs.

asyncio accepts until the process has no descriptor left, and then logs a traceback for each further try: 200
idle connections to a server with 64 descriptors were 12 MB of log a second, and nobody was answered.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Any

import structlog

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

ENOUGH = 65_536
DEFAULT = 1_024
LOG_S = 10.0  # between two lines about the same shortage

_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = structlog.get_logger("pixelkiln.api")


def claim() -> int:
    """Take as many descriptors as this process may have, up to `ENOUGH`; return how many that are."""
    if resource is None:
        return DEFAULT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def connections(descriptors: int) -> int:
    """Return how many connections to hold: a request may need one to Redis and a file of the store, too."""
    return max(4, descriptors // 3)


def backlog(descriptors: int) -> int:
    """Return how many connections may be accepted in one go, before any of them can be turned away."""
    return max(4, min(2_048, descriptors // 8))


class Shortage:
    """What the event loop calls for errors nobody handles: a lack of descriptors is told now and then."""

    def __init__(self) -> None:
        self._told_at = -LOG_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log the error; see `loop.set_exception_handler`."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _SHORT):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_at >= LOG_S:
            self._told_at = time.monotonic()
            _log.error("connections cannot be accepted", reason=str(error))
