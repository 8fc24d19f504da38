"""How many rows one run of a batch key should take: what the memory holds, and what costs least a row.

A larger batch is cheaper a row until the device is full, and may be dearer beyond. So every run is timed.
Once the largest size has been seen a few times, half of it is tried, and half of that, as long as it pays;
then the smallest size that costs within `TOLERANCE` of the best is used. Smaller batches answer sooner, and
leave more to other workers. What was learned is doubted after a while: clocks and neighbours change.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TOLERANCE = 0.02  # as much dearer a row may be in a smaller batch: beyond, throughput would pay for latency
LOOKS = 3  # runs before a size is judged
HOPELESS = 1.25  # so much dearer in a single run, it needs no second
BATCH_S = 0.005  # what a batch costs beside the model: a claim, a few threads that wake
RECHECK_S = 900.0  # a measurement older than this is made again; then a look costs nothing that anybody feels

_WEIGHT = 0.3  # of the newest run in a running mean
_KEYS_KEPT = 256
_KEYS_A_LANE = 4  # recent batch keys of a lane: the next claim is likely to be of one of them


@dataclass(slots=True)
class _Cost:
    """Seconds a row at one size, over so many runs, the last at a monotonic time."""

    row_s: float
    looks: int
    at: float

    def learn(self, row_s: float, now: float) -> None:
        if now - self.at > RECHECK_S or (self.looks == 1 and self.row_s > 1.5 * row_s):
            self.row_s = row_s  # outdated, or a first run in which something warmed up
        else:
            self.looks += 1
            self.row_s += max(_WEIGHT, 1 / self.looks) * (min(row_s, 2 * self.row_s) - self.row_s)
        self.at = now


@dataclass(slots=True)
class _Key:
    """What is known of a batch key: its costs by rows, and how many rows at most fit the memory."""

    costs: dict[int, _Cost] = field(default_factory=dict)
    fits: int | None = None


class Sizes:
    """The sizes learned for the batch keys seen lately; safe from every thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._keys: OrderedDict[str, _Key] = OrderedDict()
        self._lanes: dict[str, OrderedDict[str, None]] = {}
        self._lock = threading.Lock()

    def plan(self, key: str, limit: int, rows: int) -> tuple[int, int]:
        """Return how many rows of a batch of `rows` to run first, and how many at once after that.

        They differ where a size is worth a look; that costs one run.
        """
        with self._lock:
            known = self._keys.get(key) or _Key()
            top = _top(known, limit)
            chosen = _chosen(known, top)
            looks = (look for look in self._looks(known, chosen, top) if rows >= max(look, chosen))
            return next(looks, chosen), chosen

    def ran(self, key: str, rows: int, took_s: float) -> None:
        """Learn that one run of `rows` took so long."""
        now, row_s = self._clock(), (took_s + BATCH_S) / rows
        with self._lock:
            costs = self._known(key).costs
            if rows in costs:
                costs[rows].learn(row_s, now)
            else:
                costs[rows] = _Cost(row_s, 1, now)

    def too_large(self, key: str, rows: int) -> None:
        """Learn that so many rows did not fit the memory; half of them may."""
        with self._lock:
            self._known(key).fits = max(1, rows // 2)

    def claimed(self, lane: str, key: str) -> None:
        """Note that a lane's jobs were of this batch key."""
        with self._lock:
            recent = self._lanes.setdefault(lane, OrderedDict())
            recent[key] = None
            recent.move_to_end(key)
            if len(recent) > _KEYS_A_LANE:
                recent.popitem(last=False)

    def full(self, key: str, limit: int) -> int:
        """Return how many rows to collect for a batch of this key."""
        with self._lock:
            return self._full(key, limit)

    def offer(self, lane: str, limit: int) -> int:
        """Return how many rows of a lane to claim at once: what its recent batch keys can use."""
        with self._lock:
            recent = self._lanes.get(lane)
            return max(self._full(key, limit) for key in recent) if recent else limit

    def _full(self, key: str, limit: int) -> int:
        known = self._keys.get(key)
        if known is None:
            return limit
        top = _top(known, limit)
        chosen = _chosen(known, top)
        return max(chosen, *self._looks(known, chosen, top), 1)

    def _looks(self, known: _Key, chosen: int, top: int) -> Iterator[int]:
        """Give the neighbours of the chosen size that have not been judged yet, or not for long."""
        full = known.costs.get(top)
        if full is None or full.looks < LOOKS:
            return
        sizes, now = _sizes(top), self._clock()
        place = sizes.index(chosen)
        for look in (*sizes[place + 1 : place + 2], *sizes[max(0, place - 1) : place]):
            cost = known.costs.get(look)
            dear = cost is not None and cost.row_s > HOPELESS * known.costs[chosen].row_s
            if cost is None or now - cost.at > RECHECK_S or (cost.looks < LOOKS and not dear):
                yield look

    def _known(self, key: str) -> _Key:
        known = self._keys.setdefault(key, _Key())
        self._keys.move_to_end(key)
        if len(self._keys) > _KEYS_KEPT:
            self._keys.popitem(last=False)
        return known


def _top(known: _Key, limit: int) -> int:
    return limit if known.fits is None else min(limit, known.fits)


def _sizes(top: int) -> list[int]:
    """Return the sizes that are considered, largest first: each half of the one before."""
    sizes = [top]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def _chosen(known: _Key, top: int) -> int:
    """Return the smallest size about as cheap a row as the best; the largest, until that is known."""
    full = known.costs.get(top)
    if full is None or full.looks < LOOKS:
        return top
    judged = {
        size: cost.row_s
        for size in _sizes(top)
        if (cost := known.costs.get(size)) is not None and cost.looks >= LOOKS
    }
    bearable = (1 + TOLERANCE) * min(judged.values())
    return min(size for size, row_s in judged.items() if row_s <= bearable)
