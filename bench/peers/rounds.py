"""The rows of one benchmark: we beside every peer, or the reason why a peer has no figure."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.peers.environments import CannotInstall
from bench.peers.field import Peer
from bench.peers.running import PeerFailed
from bench.results import Result, compared, unable

Figures = Sequence[float]
Beside = tuple[Callable[[Peer], float], dict[str, list[float]]]


def measure(
    name: str, verb: str, peers: Iterable[Peer], once: Callable[[Peer], float], rounds: int
) -> dict[str, list[float] | str]:
    """Return, by the peer's name, a figure a round, or why there is none."""
    found: dict[str, list[float] | str] = {}
    for peer in peers:
        if verb in peer.cannot:
            found[peer.name] = peer.cannot[verb]
            continue
        try:
            found[peer.name] = [once(peer) for _ in range(1 if peer.slow else rounds)]
            print(f"{name} {peer.name}: {_shown(found[peer.name])}", file=sys.stderr)
        except (CannotInstall, PeerFailed) as error:
            found[peer.name] = f"not measured: {error}"
            print(f"{name} {error}", file=sys.stderr)
    return found


def beside(ours: Callable[[Peer], float], theirs: Callable[[Peer], float]) -> Beside:
    """Return what measures us right before a peer, every time, and what that found of us, by peer."""
    found: dict[str, list[float]] = {}

    def once(peer: Peer) -> float:
        mine = ours(peer)
        their = theirs(peer)  # may fail, and then mine is beside nothing
        found.setdefault(peer.name, []).append(mine)
        return their

    return once, found


def rows(
    name: str,
    what: str,
    ours: Figures | Mapping[str, Figures],
    peers: Sequence[Peer],
    found: dict[str, list[float] | str],
    *,
    goal: Callable[[Peer], float],
    caveat: str,
    less_is_better: bool = False,
) -> list[Result]:
    """Return a row a peer. Fewer rounds of a peer than of ours: its rounds serve more than once.

    Args:
        ours: our figures beside every peer, or those beside each by its name.
    """
    made = []
    for peer in peers:
        figures = found[peer.name]
        if isinstance(figures, str):
            made.append(unable(name, what, peer_name=peer.name, goal=goal(peer), why=figures))
            continue
        mine = ours[peer.name] if isinstance(ours, Mapping) else ours
        pairs = [(one, figures[at % len(figures)]) for at, one in enumerate(mine)]
        made.append(
            compared(
                name,
                what,
                pairs,
                peer_name=peer.name,
                goal=goal(peer),
                caveat=f"{peer.name}: {peer.setting}; {len(figures)} rounds of it. {caveat}",
                versions=peer.versions,
                less_is_better=less_is_better,
            )
        )
    return made


def quantile(values: Figures, share: float) -> float:
    """Return a quantile by rank; the largest value when there are few."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _shown(figures: list[float] | str) -> str:
    return figures if isinstance(figures, str) else f"{statistics.median(figures):.4g}"
