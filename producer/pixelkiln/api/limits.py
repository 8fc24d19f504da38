"""How often somebody may ask: token buckets in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 10_000  # buckets kept; the one that was asked for longest ago goes first


class Buckets:
    """A bucket for each name. It holds as many tokens as may be taken a minute, and fills at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and as of when

    def take(self, name: str, per_minute: int) -> float:
        """Take a token; returns 0, or in how many seconds there will be one."""
        now, rate = self._clock(), per_minute / 60
        tokens, since = self._buckets.pop(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - since) * rate)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / rate
        self._buckets[name] = (tokens - 1 if wait_s == 0 else tokens, now)
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return wait_s
