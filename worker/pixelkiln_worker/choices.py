"""Which lanes a worker offers, and which models make room: the rules alone, without a device or a ledger.

They stand by themselves so that the simulation (`bench/simulation.py`) plays by the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.ledger.contract import LaneOffer

SHORTEST_MAX_WAIT_S = 10.0  # a lane whose model is not loaded is passed over at least so long
LOADS_PER_MAX_WAIT = 4  # then the loading costs at most a fifth of the time


def max_wait_s(load_s: float) -> float:
    """Return how long the lanes of a model may be passed over, from how long the model takes to load."""
    return max(SHORTEST_MAX_WAIT_S, LOADS_PER_MAX_WAIT * load_s)


def offers(
    lanes: Mapping[str, ModelEntry],
    *,
    resident: Collection[str],
    load_s: Callable[[str], float],
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
        )
        for lane, entry in lanes.items()
        if not resting(entry.id)
    ]


def leaving(
    footprints: Mapping[str, int],
    *,
    needed_bytes: int,
    budget_bytes: int,
    keep: str | None = None,
    waiting: Collection[str] = (),
) -> Iterator[str]:
    """Give the models to unload so that `needed_bytes` more fit into the budget, as long as any are left.

    `footprints` are the bytes of the loaded models, least recently used first; `keep` stays in any case.
    Those for which jobs are `waiting` go last: they would be loaded again at once.
    """
    used_bytes = sum(footprints.values())
    for name, bytes_ in sorted(footprints.items(), key=lambda item: item[0] in waiting):
        if used_bytes + needed_bytes <= budget_bytes:
            return
        if name != keep:
            used_bytes -= bytes_
            yield name
