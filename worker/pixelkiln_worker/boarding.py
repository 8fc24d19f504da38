"""Who rides in a batch: the jobs that are ready when the device takes it. It waits for no other."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from pixelkiln_worker.compute import Work
from pixelkiln_worker.held import HeldJob


class Boarding:
    """The jobs of a batch as they become ready. Safe from every thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: list[Work] = []
        self._awaited: dict[str, HeldJob] = {}
        self._closed = False

    def expect(self, jobs: Iterable[HeldJob]) -> None:
        """Say that these jobs are being made ready."""
        with self._changed:
            self._awaited |= {job.id: job for job in jobs}

    def board(self, job: HeldJob, work: Work | None) -> None:
        """Say that a job is ready, or, without a work, that it never will be."""
        with self._changed:
            if self._closed:
                return  # it missed it
            self._awaited.pop(job.id, None)
            if work is not None:
                self._ready.append(work)
            self._changed.notify_all()

    def close(self) -> list[Work]:
        """Take who is ready, in the order of boarding; from now on nobody can board."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return list(self._ready)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nobody is awaited any more, or the batch was closed; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not self._awaited, timeout_s)

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until the batch was closed; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)

    def missed(self) -> list[HeldJob]:
        """Return who was awaited still when the batch was closed."""
        with self._changed:
            return list(self._awaited.values()) if self._closed else []
