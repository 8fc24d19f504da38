"""Whether what we need answers, asked seldom enough that anonymous callers may see the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pixelkiln_shared.errors import PixelkilnError

PROBE_S = 5.0  # the store's round trip writes an object: strangers must not make us write at will


class Probe:
    """Looks at what we need, at most once in `PROBE_S`."""

    def __init__(self, redis: Callable[[], Any], storage: Callable[[], Any]) -> None:
        self._parts = {"redis": redis, "storage": storage}
        self._lock = threading.Lock()
        self._read: tuple[float, dict[str, Any]] = (float("-inf"), {})

    def state(self) -> dict[str, Any]:
        """Return `ready` and one word about each part."""
        with self._lock:
            if time.monotonic() - self._read[0] > PROBE_S:
                self._read = (time.monotonic(), self._look())
            return self._read[1]

    def _look(self) -> dict[str, Any]:
        found = {name: _word(check) for name, check in self._parts.items()}
        return {"ready": all(word == "ok" for word in found.values()), **found}


def _word(check: Callable[[], Any]) -> str:
    try:
        check()
    except PixelkilnError as error:
        return error.code
    return "ok"
