"""What a worker process has done so far: a few counters, read by the fleet report."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pixelkiln_shared.costs import Measured
from pixelkiln_shared.fleet import Histogram, ModelTally
from pixelkiln_worker.shares import Shares

BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Since the process started. `rows` per batch tells how full the batches were."""

    batches: int
    rows: int
    jobs_done: int
    jobs_failed: int


class Observed:
    """Observations in seconds, sorted into `BOUNDS_S`."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Add one."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def told(self) -> Histogram:
        """Return them as the fleet tells them."""
        return Histogram(bounds=BOUNDS_S, counts=tuple(self._counts), sum=round(self._sum_s, 3))


@dataclass(slots=True)
class _Tally:
    """What was done with one model."""

    counts: Counter[str] = field(default_factory=Counter)
    run_s: float = 0.0
    queue_wait: Observed = field(default_factory=Observed)
    duration: Observed = field(default_factory=Observed)
    load: Observed = field(default_factory=Observed)
    upload: Observed = field(default_factory=Observed)

    def told(self, max_batch: int) -> ModelTally:
        return ModelTally(
            **self.counts,
            run_s=round(self.run_s, 3),
            max_batch=max_batch,
            queue_wait=self.queue_wait.told(),
            duration=self.duration.told(),
            load=self.load.told(),
            upload=self.upload.told(),
        )


class Telemetry:
    """Counts; safe from every thread.

    Attributes:
        shares: how the device spends its time.
        waiting: the models that had jobs waiting when the lanes were counted last.
    """

    def __init__(self) -> None:
        self.shares = Shares()
        self.waiting: frozenset[str] = frozenset()
        self._models: dict[str, _Tally] = {}
        self._lock = threading.Lock()
        self._heard_at = self._busy_at = time.monotonic()
        self._measured: dict[str, Measured] = {}

    def heard(self) -> None:
        """Note that a bell was heard."""
        self._heard_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since a bell was heard, or since the start."""
        return time.monotonic() - self._heard_at

    def busy(self) -> None:
        """Note that this worker is at work, or has a reason not to be."""
        self._busy_at = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since this worker was at work, or had a reason not to be."""
        return time.monotonic() - self._busy_at

    def counted(self, waiting: Mapping[str, int]) -> None:
        """Note how many jobs wait in each lane this worker serves."""
        self.waiting = frozenset(lane.partition(".")[2] for lane, count in waiting.items() if count)
        self.shares.lanes_wait(bool(self.waiting))

    def ran(self, lane: str, measured: Measured) -> None:
        """Note what a batch cost."""
        with self._lock:
            self._measured[lane] = self._measured.get(lane, Measured()) + measured

    def take_measured(self) -> dict[str, Measured]:
        """Return what batches cost since this was asked last, by lane."""
        with self._lock:
            measured, self._measured = self._measured, {}
        return measured

    def claimed(self, model: str, waited_s: Iterable[float]) -> None:
        """Note how long each job that was claimed had waited."""
        self.busy()
        with self._lock:
            tally = self._tally(model)
            for one in waited_s:
                tally.queue_wait.add(one)

    def loaded(self, model: str, took_s: float, switched: bool) -> None:
        """Count a load; `switched` when another model had to leave for it."""
        with self._lock:
            tally = self._tally(model)
            tally.counts.update(loads=1, switches=int(switched))
            tally.load.add(took_s)

    def batch(self, model: str, rows: int, run_s: float) -> None:
        """Count a batch that went to the device, and how long the model ran."""
        with self._lock:
            tally = self._tally(model)
            tally.counts.update(batches=1, rows=rows)
            tally.run_s += run_s

    def done(self, model: str, *, duration_s: float, upload_s: float, pictures: int) -> None:
        """Count a job that was published so long after its claim, and the pictures it came to."""
        with self._lock:
            tally = self._tally(model)
            tally.counts.update(succeeded=1, pictures=pictures)
            tally.duration.add(duration_s)
            tally.upload.add(upload_s)

    def failed(self, model: str) -> None:
        """Count a job that failed."""
        with self._lock:
            self._tally(model).counts["failed"] += 1

    def tallies(self, max_batch: Callable[[str], int]) -> dict[str, ModelTally]:
        """Return what was done, by model; `max_batch` gives how many rows a batch of a model takes now."""
        with self._lock:
            return {model: tally.told(max_batch(model)) for model, tally in self._models.items()}

    def totals(self) -> Totals:
        """Return the counts so far."""
        counts: Counter[str] = Counter()
        with self._lock:
            for tally in self._models.values():
                counts.update(tally.counts)
        return Totals(
            batches=counts["batches"],
            rows=counts["rows"],
            jobs_done=counts["succeeded"],
            jobs_failed=counts["failed"],
        )

    def _tally(self, model: str) -> _Tally:
        tally = self._models.get(model)
        if tally is None:
            tally = self._models[model] = _Tally()
        return tally
