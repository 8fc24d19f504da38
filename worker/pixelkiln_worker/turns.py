"""Whose turn it is: one firing prepares, one has the device.

A firing takes the *next* slot, claims and fetches, then waits for the *device* slot; once it has that, the
next firing may prepare. Claiming is put off until the running batch is about to end, as late as preparing
allows, so that no worker hoards jobs while another idles.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WEIGHT = 0.3  # of the newest measurement in a running mean: a few batches settle it
_KINDS_KEPT = 256  # batch keys whose run time is remembered
_POLL_S = 0.05  # progress changes the forecast; looking twenty times a second is soon enough
TOP_UP_S = 0.05  # between two top-ups of a batch that waits
_SPARE_S = 0.02  # a thread may wake that much late on a busy machine
_LAST_CALL_S = 0.008  # a batch that is ready is topped up so long before the device is free; fetching apart
_TOO_LATE_S = 0.003  # what is asked for later than that would come when the batch is gone


class NextSlot:
    """The right to prepare the next batch; released once, early or late."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._mine = True

    def release(self) -> None:
        """Let the next firing prepare; a second call does nothing."""
        if self._mine:
            self._mine = False
            self._lock.release()


class Turns:
    """The two slots of a process, and the forecast of when the device is free.

    Args:
        long_fetches: how many firings may wait for pictures at a time before jobs that need some are left.
    """

    def __init__(self, *, long_fetches: int = 2) -> None:
        self._long_fetches_left = long_fetches
        self._next = threading.Lock()
        self._busy = False
        self._changed = threading.Condition()
        self._run_began: float | None = None
        self._expected_s: float | None = None
        self._typical_s: OrderedDict[str, float] = OrderedDict()
        self._preparing_s = 0.0

    @contextmanager
    def next_slot(self) -> Iterator[NextSlot]:
        """Wait for the right to prepare; given back at the end at the latest."""
        self._next.acquire()
        slot = NextSlot(self._next)
        try:
            yield slot
        finally:
            slot.release()

    @property
    def may_fetch(self) -> bool:
        """Whether a firing may take jobs that need pictures; else it should take others."""
        return self._long_fetches_left > 0

    @contextmanager
    def long_fetch(self) -> Iterator[None]:
        """Mark a firing that waits for pictures, as long as a store that is away may take."""
        with self._changed:
            self._long_fetches_left -= 1
        try:
            yield
        finally:
            with self._changed:
                self._long_fetches_left += 1

    @contextmanager
    def device_slot(self) -> Iterator[None]:
        """Mark the device as taken; on the device thread, which lets in one batch after the other."""
        self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._run_began = self._expected_s = None
                self._changed.notify_all()

    @property
    def must_wait(self) -> bool:
        """Whether a firing that begins now would not claim at once."""
        return self._next.locked() or self._lead_s() > 0

    def await_lead(self, stop: Callable[[], bool]) -> None:
        """Wait until it is time to claim: the device is free, or will be once a batch can be prepared."""
        with self._changed:
            while not stop() and (wait_s := self._lead_s()) > 0:
                self._changed.wait(min(wait_s, _POLL_S))

    @contextmanager
    def running(self, kind: str) -> Iterator[None]:
        """Mark a model run of a kind of batch; the next forecast of that kind learns from it."""
        began = time.monotonic()
        with self._changed:
            self._run_began, self._expected_s = began, self._typical_s.get(kind)
        yield
        took_s = time.monotonic() - began
        with self._changed:
            self._typical_s[kind] = _mean(self._typical_s.get(kind), took_s)
            self._typical_s.move_to_end(kind)
            while len(self._typical_s) > _KINDS_KEPT:
                self._typical_s.popitem(last=False)

    def progress(self, step: int, steps: int) -> None:
        """Sharpen the forecast by what the model has done; called on the device thread, never waits long."""
        began = self._run_began
        if began is not None and 0 < step <= steps:
            self._expected_s = (time.monotonic() - began) * steps / step

    def prepared(self, took_s: float) -> None:
        """Learn how long claiming and fetching took."""
        self._preparing_s = _mean(self._preparing_s, took_s)

    def until_last_call_s(self, fetching_s: float) -> float:
        """Seconds until a batch that is ready should be topped up: as late as fetching its jobs allows.

        Past the last moment there is nothing to be had, until the run under way is long overdue.
        """
        began, expected_s = self._run_began, self._expected_s
        if began is None or expected_s is None:
            return TOP_UP_S
        left_s = began + expected_s - time.monotonic()
        if left_s > 2 * fetching_s + _LAST_CALL_S:
            return left_s - 2 * fetching_s - _LAST_CALL_S
        return max(0.0, left_s + TOP_UP_S) if left_s < fetching_s + _TOO_LATE_S else 0.0

    def _lead_s(self) -> float:
        """Seconds to wait before claiming; without a forecast, until the device is free."""
        if not self._busy:
            return 0.0
        began, expected_s = self._run_began, self._expected_s
        if began is None or expected_s is None:
            return _POLL_S
        ahead_s = 2 * self._preparing_s + expected_s / 4 if expected_s < 1 else 2 * self._preparing_s + 0.25
        return max(0.0, began + expected_s - ahead_s - _SPARE_S - time.monotonic())


def _mean(old: float | None, new: float) -> float:
    return new if not old else old + _WEIGHT * (new - old)
