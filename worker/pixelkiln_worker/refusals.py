"""When a worker takes no jobs although it could: its results, its disk or its memory have no room for more.

It tells so instead of taking jobs it could not finish; other workers take them, or they wait.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pixelkiln_worker.spool import Spool

LOOK_S = 1.0  # how long what was seen is taken for true
POLL_S = 0.25  # how often somebody who waits looks
FREE_BYTES = 64 << 20  # a disk with less than this, or than this share of all it has, is nearly full
FREE_SHARE = 0.05


class Refusals:
    """What speaks against claiming now. Safe to use from every thread.

    Args:
        spool: what waits for the store.
        rss_limit_bytes: the resident memory of this process above which it takes no more; None: never.
    """

    def __init__(self, spool: Spool, *, rss_limit_bytes: int | None = None) -> None:
        self._spool = spool
        self._rss_limit_bytes = rss_limit_bytes
        self._folders = dict.fromkeys([spool.folder, Path(tempfile.gettempdir())])
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._reason = ""
        self._swollen_at: float | None = None

    @property
    def reason(self) -> str:
        """Why nothing is claimed; empty when something may be."""
        if self._spool.full:  # asked afresh: each claim adds to it
            mb, why = self._spool.waiting_bytes / 1e6, self._spool.why or "it is slow"
            return f"spool_full: {mb:,.1f} MB, results that wait for the store: {self._spool.waiting} ({why})"
        with self._lock:
            if time.monotonic() - self._looked_at > LOOK_S:
                self._reason = self._memory() or next(self._disks(), "")
                self._looked_at = time.monotonic()
            return self._reason

    @property
    def note(self) -> str:
        """Why nothing is claimed, or what will lead to it if it goes on; empty when all is well."""
        if reason := self.reason:
            return reason
        count, why = self._spool.waiting, self._spool.why
        return f"results that wait for the store: {count} ({why or 'it is slow'})" if count else ""

    @property
    def swollen_s(self) -> float:
        """For how many seconds this process has had more memory than it may; 0 when it has not."""
        since = self._swollen_at
        return 0.0 if since is None else time.monotonic() - since

    def wait(self, stop: Callable[[], bool]) -> None:
        """Wait until something may be claimed."""
        while self.reason and not stop():
            time.sleep(POLL_S)

    def _disks(self) -> Iterator[str]:
        for folder in self._folders:
            try:
                disk = shutil.disk_usage(folder)
            except OSError as error:
                yield f"worker_disk_full: {folder}: {error.strerror}"
                continue
            if disk.free < min(FREE_BYTES, FREE_SHARE * disk.total):
                yield f"worker_disk_full: {disk.free / 1e6:,.1f} MB are left in {folder}"

    def _memory(self) -> str:
        limit, rss = self._rss_limit_bytes, resident_bytes()
        if limit is None or rss <= limit:
            self._swollen_at = None
            return ""
        self._swollen_at = self._swollen_at or time.monotonic()
        return f"memory_pressure: {rss / 1e6:,.0f} MB are resident, {limit / 1e6:,.0f} are allowed"


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
