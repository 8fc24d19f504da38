"""The in-memory twin of the bells; the contract suite keeps it honest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from pixelkiln_shared.bells import CAP
from pixelkiln_shared.errors import RedisUnavailable


class MemoryBells:
    """Counts the bells of each lane in `queues`. Set `outage`, and every call raises `RedisUnavailable`."""

    def __init__(self) -> None:
        self.outage = False
        self.queues: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ring(self, waiting: Mapping[str, int]) -> int:
        """Top each lane up to `min(waiting, CAP)` bells; return how many were added."""
        if self.outage:
            raise RedisUnavailable("the broker does not answer")
        with self._lock:
            missing = {lane: min(count, CAP) - self.queues[lane] for lane, count in waiting.items()}
            missing = {lane: count for lane, count in missing.items() if count > 0}
            self.queues.update(missing)
        return sum(missing.values())

    def hush(self, waiting: Mapping[str, int]) -> int:
        """Take away the bells that no job waits for; return how many there were."""
        if self.outage:
            raise RedisUnavailable("the broker does not answer")
        with self._lock:
            surplus = {lane: max(0, self.queues[lane] - count) for lane, count in waiting.items()}
            self.queues.subtract(surplus)
        return sum(surplus.values())

    def hear(self, lane: str) -> bool:
        """Take one bell of a lane, as a worker does; False when none is there."""
        with self._lock:
            if self.queues[lane] == 0:
                return False
            self.queues[lane] -= 1
            return True
