"""Threads that go on whatever happens: an outage slows them down, a bug is logged, neither ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from pixelkiln_shared.errors import Unavailable

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0


class Loop:
    """Calls `action` every `period_s`, or sooner when nudged; after an error, again after a short pause."""

    def __init__(self, name: str, action: Callable[[], None], period_s: float) -> None:
        self._action = action
        self._period_s = period_s
        self._nudged = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._go, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._thread.start()

    def nudge(self) -> None:
        """Call the action soon; several nudges before it begins are one."""
        self._nudged.set()

    def stop(self) -> None:
        """End after the call under way, without waiting for it."""
        self._stopped = True
        self._nudged.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called; an action that listens for long asks it."""
        return self._stopped

    def _go(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopped:
            self._nudged.clear()
            if self._try():
                pause_s = _FIRST_PAUSE_S
                self._nudged.wait(self._period_s)
            else:
                self._nudged.wait(min(pause_s, self._period_s or pause_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _try(self) -> bool:
        try:
            self._action()
        except Unavailable as error:
            log.warning("no answer; trying again", loop=self._thread.name, error=error.message)
        except Exception:
            log.exception("a loop failed; it goes on", loop=self._thread.name)
        else:
            return True
        return False
