"""Which worker processes of this machine live: each locks a file that bears its name, and never lets go.

The kernel does, when the process has ended, in whatever way and in whatever container; a frozen process keeps
its lock. So whoever gets the lock of such a file knows that its process is dead.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from pixelkiln_shared.errors import Misconfigured
from pixelkiln_worker.locks import locked, remove_unheld

log = structlog.get_logger(__name__)

FORGOTTEN_S = 86_400.0  # a file that nobody locks or looks for: its fleet or its kernel is gone
_ENDING = ".alive"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def base_folder(named: Path | None) -> Path:
    """Return the folder below which each worker process has its own; makes it.

    Args:
        named: left out: one in the system's place for temporary files, private to this user.

    Raises:
        Misconfigured: it cannot be made, or belongs to somebody else.
    """
    base = named or Path(tempfile.gettempdir()) / f"pixelkiln-spool-{os.geteuid()}"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if named is None and (base.is_symlink() or base.stat().st_uid != os.geteuid()):
            raise Misconfigured(f"PIXELKILN_SPOOL_DIR: {base} belongs to somebody else; name another")
    except OSError as error:
        raise Misconfigured(f"PIXELKILN_SPOOL_DIR: {base}: {error.strerror}") from error
    return base


class Presence:
    """The files in `folder` of the processes that work off the ledger at `redis_url`."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder = folder
        self._ending = f".{_fleet_here(redis_url)}{_ENDING}"

    def hold(self, worker: str) -> None:
        """Say that this process is the worker of that name, until it ends."""
        try:
            locked(self._folder / f"{worker}{self._ending}")
        except OSError as error:  # no reason not to work
            log.warning("should this process die, its jobs wait for their leases", error=str(error))
        for path in self._folder.glob(f"*{_ENDING}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > FORGOTTEN_S:
                    remove_unheld(path)

    def bury_dead(self, bury: Callable[[str], object]) -> None:
        """Call `bury` with the name of each dead worker, and forget those for whom it did not raise."""
        for path in self._folder.glob(f"*{self._ending}"):
            with suppress(OSError):
                remove_unheld(path, partial(bury, path.name.removesuffix(self._ending)))


def _fleet_here(redis_url: str) -> str:
    """Name a ledger and a kernel: a lock means nothing on another machine that shares the folder."""
    kernel = _BOOT_ID.read_text("ascii") if _BOOT_ID.exists() else socket.gethostname()
    url = urlsplit(redis_url)
    place = url._replace(netloc=url.netloc.rpartition("@")[2], query="")  # no secret, not even hashed
    return hashlib.sha256(f"{kernel}\n{place.geturl()}".encode()).hexdigest()[:12]
