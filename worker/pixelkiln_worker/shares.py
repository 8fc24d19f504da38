"""How a device spends its time: running, loading, or standing still, and whether it could have worked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from pixelkiln_shared.fleet import DeviceTime

_State = Literal["busy", "load", "idle_waiting", "idle_claiming", "idle_no_work"]


class Shares:
    """Adds up the time since `begin`, each moment under one heading; safe from every thread.

    The device stands still in vain while this worker holds jobs for it, and while jobs of its lanes wait, by
    the newest count of them. A claim under way is put down when it ends: as waiting if it brought jobs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._doing: Literal["busy", "load"] | None = None
        self._held = self._claims = 0
        self._lanes_wait = False
        self.begin()

    def begin(self) -> None:
        """Count from now: the worker is ready."""
        with self._lock:
            self._spent: dict[_State, float] = dict.fromkeys(
                ("busy", "load", "idle_waiting", "idle_claiming", "idle_no_work"), 0.0
            )
            self._since = self._clock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark that a model runs; on the device thread."""
        yield from self._while("busy")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Mark that a model is loaded; on the device thread."""
        yield from self._while("load")

    def lanes_wait(self, waiting: bool) -> None:
        """Note whether jobs wait in the lanes this worker serves."""
        with self._lock:
            self._settle()
            self._lanes_wait = waiting

    def claiming(self) -> None:
        """Note that a claim begins."""
        with self._lock:
            self._settle()
            self._claims += 1

    def claimed(self, got: bool) -> None:
        """Note what a claim came to; jobs it brought are held for the device until `let_go`."""
        with self._lock:
            self._settle()
            self._claims -= 1
            self._held += got
            self._spent["idle_waiting" if got else "idle_no_work"] += self._spent["idle_claiming"]
            self._spent["idle_claiming"] = 0.0

    def let_go(self) -> None:
        """Note that a claim's jobs wait for the device no longer."""
        with self._lock:
            self._settle()
            self._held -= 1

    def told(self) -> DeviceTime:
        """Return the time so far; the four add up to that since `begin`."""
        with self._lock:
            self._settle()
            spent = dict(self._spent)
        return DeviceTime(
            busy_s=spent["busy"],
            load_s=spent["load"],
            idle_waiting_s=spent["idle_waiting"],
            idle_no_work_s=spent["idle_no_work"] + spent["idle_claiming"],
        )

    def _while(self, doing: Literal["busy", "load"]) -> Iterator[None]:
        self._do(doing)
        try:
            yield
        finally:
            self._do(None)

    def _do(self, doing: Literal["busy", "load"] | None) -> None:
        with self._lock:
            self._settle()
            self._doing = doing

    def _settle(self) -> None:
        """Put the time since the last change under the heading it belongs to."""
        now = self._clock()
        self._spent[self._state()] += now - self._since
        self._since = now

    def _state(self) -> _State:
        if self._doing is not None:
            return self._doing
        if self._held or self._lanes_wait:
            return "idle_waiting"
        return "idle_claiming" if self._claims else "idle_no_work"
