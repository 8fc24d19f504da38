"""Which lanes a worker offers, and which models make room: the rules alone, without a device or a ledger.

They stand by themselves so that the simulation (`bench/simulation.py`) plays by the very same. Why they are
as they are, and what others cost: docs/decisions/0014-a-load-earns-a-turn.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.ledger.contract import LaneOffer

SHORTEST_MAX_WAIT_S = 10.0  # a lane whose model is not loaded is passed over at least so long
LOADS_PER_MAX_WAIT = 4  # of a model that loads slowly, so many times its load
LOADS_PER_TURN = (1, 4)  # what a load earns: it may be followed by so much work before another is forced
DEMAND_MEMORY_S = 300.0  # what was asked for a while ago counts for a third


def max_wait_s(load_s: float) -> float:
    """Return how long the lanes of a model may be passed over, from how long the model takes to load."""
    return max(SHORTEST_MAX_WAIT_S, LOADS_PER_MAX_WAIT * load_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class LastLoad:
    """The newest load of a device: how many seconds ago it ended, and how long it took."""

    ago_s: float = math.inf
    took_s: float = 0.0

    @property
    def holds_s(self) -> float | None:
        """How long a job must have waited so that no overdue lane forces the next load (`LaneOffer`).

        For as long as the load took, any job will do; then those that were there when it ended; and after
        four times as long, none.
        """
        shortest, longest = LOADS_PER_TURN
        if self.ago_s < shortest * self.took_s:
            return 0.0
        return self.ago_s if self.ago_s < longest * self.took_s else None


def offers(
    lanes: Mapping[str, ModelEntry],
    *,
    resident: Collection[str],
    load_s: Callable[[str], float],
    last_load: LastLoad,
    resting: Callable[[str], bool],
    size: Callable[[str, int], int] = lambda lane, limit: limit,
) -> list[LaneOffer]:
    """Return what a worker offers to take: its lanes, but those whose model did not load just now.

    `size` gives, of a lane and what its model can take, how many rows are worth taking at once.
    """
    return [
        LaneOffer(
            lane=lane,
            max_rows=size(lane, entry.limits.max_batch),
            resident=entry.id in resident,
            max_wait_s=max_wait_s(load_s(entry.id)),
            holds_s=last_load.holds_s if entry.id in resident else None,
        )
        for lane, entry in lanes.items()
        if not resting(entry.id)
    ]


def longest_wait_s(
    lanes: Mapping[str, str], load_s: Mapping[str, float], run_s: Mapping[str, float]
) -> float:
    """Return a bound for how long a lane with waiting jobs is passed over by a worker that serves it.

    It becomes overdue, then waits for the turn under way, then for each other lane that waits longer still: a
    turn each, which is a load, the work it earns, and the batch that has begun by then.

    Args:
        lanes: the model of each lane the worker serves.
        load_s: how long each model takes to load.
        run_s: how long its longest batch takes.
    """
    loads = {name: load_s.get(name, 0.0) for name in lanes.values()}
    run = max((run_s.get(name, 0.0) for name in loads), default=0.0)
    turns = {lane: (1 + max(LOADS_PER_TURN)) * loads[name] + run for lane, name in lanes.items()}
    under_way = max(turns.values(), default=0.0)
    return max(
        (max_wait_s(loads[lanes[lane]]) + under_way + sum(turns.values()) - turns[lane] for lane in lanes),
        default=0.0,
    )


@dataclass(slots=True)
class Demand:
    """How much each model was asked for of late: rows, which fade with time."""

    _rows: dict[str, tuple[float, float]] = field(default_factory=dict)  # faded rows, and when they were

    def note(self, model_id: str, rows: int, now_s: float) -> None:
        """Add what a batch asked for."""
        self._rows[model_id] = (self.of(model_id, now_s) + rows, now_s)

    def of(self, model_id: str, now_s: float) -> float:
        """Return the rows that are not forgotten yet."""
        rows, then_s = self._rows.get(model_id, (0.0, now_s))
        return rows * math.exp((then_s - now_s) / DEMAND_MEMORY_S)


def by_worth(
    models: Iterable[str], *, demand: Demand, load_s: Callable[[str], float], now_s: float
) -> list[str]:
    """Return models in the order in which they make room: first what costs least to bring back as often.

    Among equals the order stays, which should be: least recently used first.
    """
    return sorted(models, key=lambda name: demand.of(name, now_s) * load_s(name))


def leaving(
    footprints: Mapping[str, int],
    *,
    needed_bytes: int,
    budget_bytes: int,
    keep: str | None = None,
    waiting: Collection[str] = (),
) -> Iterator[str]:
    """Give the models to unload so that `needed_bytes` more fit into the budget, as long as any are left.

    `footprints` are the bytes of the loaded models, in the order of leaving; `keep` stays in any case.
    Those for which jobs are `waiting` go last: they would be loaded again at once.
    """
    used_bytes = sum(footprints.values())
    for name, bytes_ in sorted(footprints.items(), key=lambda item: item[0] in waiting):
        if used_bytes + needed_bytes <= budget_bytes:
            return
        if name != keep:
            used_bytes -= bytes_
            yield name
