"""What a worker process has done so far: a few counters, read by the fleet report."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

from pixelkiln_shared.costs import Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Since the process started. `rows` per batch tells how full the batches were."""

    batches: int
    rows: int
    jobs_done: int
    jobs_failed: int


class Telemetry:
    """Counts; safe from every thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._heard_at = time.monotonic()
        self._measured: dict[str, Measured] = {}

    def heard(self) -> None:
        """Note that a bell was heard."""
        self._heard_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since a bell was heard, or since the start."""
        return time.monotonic() - self._heard_at

    def batch(self, rows: int) -> None:
        """Count a batch that went to the device."""
        with self._lock:
            self._counts.update(batches=1, rows=rows)

    def ran(self, lane: str, measured: Measured) -> None:
        """Note what a batch cost."""
        with self._lock:
            self._measured[lane] = self._measured.get(lane, Measured()) + measured

    def take_measured(self) -> dict[str, Measured]:
        """Return what batches cost since this was asked last, by lane."""
        with self._lock:
            measured, self._measured = self._measured, {}
        return measured

    def done(self) -> None:
        """Count a job that was published."""
        with self._lock:
            self._counts["jobs_done"] += 1

    def failed(self) -> None:
        """Count a job that failed."""
        with self._lock:
            self._counts["jobs_failed"] += 1

    def totals(self) -> Totals:
        """Return the counts so far."""
        with self._lock:
            counts = self._counts.copy()
        return Totals(
            batches=counts["batches"],
            rows=counts["rows"],
            jobs_done=counts["jobs_done"],
            jobs_failed=counts["jobs_failed"],
        )
