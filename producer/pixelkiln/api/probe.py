"""Whether what we need answers, asked seldom enough that anonymous callers may see the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pixelkiln_shared.errors import PixelkilnError

PROBE_S = 5.0  # the store's round trip writes an object: strangers must not make us write at will


class Probe:
    """Looks at what we need, at most once in `PROBE_S`.

    Args:
        redis: raises a `PixelkilnError` when Redis cannot be used.
        storage: the same of the store.
        ready_workers: counts them; that there are none is told, and no fault: jobs wait.
    """

    def __init__(
        self,
        redis: Callable[[], Any],
        storage: Callable[[], Any],
        ready_workers: Callable[[], int] = lambda: 0,
    ) -> None:
        self._ready_workers = ready_workers
        self._parts = {"redis": redis, "storage": storage}
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._state: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return `ready` and one word about each part; while somebody looks, others get what was seen last.

        A store that is away takes its whole deadline to say so: callers must not queue up behind it.
        """
        if not self._lock.acquire(blocking=not self._state):
            return self._state
        try:
            if time.monotonic() - self._looked_at > PROBE_S:
                self._state = self._look()
                self._looked_at = time.monotonic()
            return self._state
        finally:
            self._lock.release()

    def _look(self) -> dict[str, Any]:
        found = {name: _word(check) for name, check in self._parts.items()}
        return {
            "ready": all(word == "ok" for word in found.values()),
            **found,
            "ready_workers": self._counted(),
        }

    def _counted(self) -> int | None:
        """Count the ready workers; None when Redis does not say."""
        try:
            return self._ready_workers()
        except PixelkilnError:
            return None


def _word(check: Callable[[], Any]) -> str:
    try:
        check()
    except PixelkilnError as error:
        return error.code
    return "ok"
