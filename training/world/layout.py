"""Chooses where the objects of a scene stand so that none hides another and no two of a kind touch."""

from dataclasses import dataclass

import numpy as np

from training.world.grammar import Group, Spec
from training.world.sprites import HALF_WIDTH, HEIGHT

POSITION_BANDS = {"left": (0.17, 0.30), "middle": (0.43, 0.57), "right": (0.70, 0.83)}
"""Where along the picture an object called left, in the middle or right may stand."""
_COUNT_SCALE = {1: 1.0, 2: 0.78, 3: 0.64}
_SIZE_SCALE = {"": 1.0, "large": 1.3}
_GAP = 0.025  # two pixels at 64 px: what a judge of connected components needs to count two objects as two
_TRIES_PER_OBJECT, _TRIES_PER_SCENE = 24, 12

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object: foot (x, y), height h (unit coordinates), depth in [0, 1] with 1 nearest."""

    kind: str
    colour: str
    x: float
    y: float
    h: float
    depth: float

    @property
    def box(self) -> Box:
        """(left, top, right, bottom)."""
        half = HALF_WIDTH[self.kind] * self.h
        return self.x - half, self.y - self.h, self.x + half, self.y

    def overlap(self, other: "Placed") -> float:
        """Shared area as a fraction of this object's box, after the gap that two of a kind must keep."""
        gap = _GAP if self.kind == other.kind else 0.0
        left, top, right, bottom = self.box
        other_left, other_top, other_right, other_bottom = other.box
        width = min(right, other_right) - max(left, other_left) + gap
        height = min(bottom, other_bottom) - max(top, other_top) + gap
        return max(0.0, width) * max(0.0, height) / ((right - left) * (bottom - top))


def ground_depth(y: float, horizon: float) -> float:
    """Depth of the ground at height `y`: 0.12 at the horizon, 1 at the lower edge."""
    return float(np.clip(0.12 + 0.88 * (y - horizon) / (1 - horizon), 0, 1))


def _propose(rng: np.random.Generator, group: Group, horizon: float, attempt: int) -> Placed:
    low, high = POSITION_BANDS.get(group.position, (0.1, 0.9))
    x = rng.uniform(low, high)
    shrink = 0.95 ** (attempt // 4)
    scale = (
        HEIGHT[group.kind]
        * _SIZE_SCALE[group.size]
        * _COUNT_SCALE[group.count]
        * shrink
        * rng.uniform(0.94, 1.06)
    )
    if group.kind == "balloon":
        y = max(rng.uniform(0.3, horizon - 0.04), scale + 0.02)
        return Placed(kind=group.kind, colour=group.colour, x=x, y=y, h=scale, depth=0.3)
    reach = rng.uniform(0.3, 0.88)
    y = horizon + (1 - horizon) * reach
    h = scale * (0.84 + 0.3 * reach)
    return Placed(kind=group.kind, colour=group.colour, x=x, y=y, h=h, depth=ground_depth(y, horizon))


def _fault(candidate: Placed, others: list[Placed]) -> float:
    left, _, right, _ = candidate.box
    outside = max(0.0, 0.01 - left) + max(0.0, right - 0.99)
    return sum(candidate.overlap(other) for other in others) + 4 * outside


def _attempt(rng: np.random.Generator, spec: Spec, horizon: float) -> tuple[float, list[Placed]]:
    placed: list[Placed] = []
    worst = 0.0
    for group in spec.groups:
        for _ in range(group.count):
            best_fault, best = np.inf, None
            for attempt in range(_TRIES_PER_OBJECT):
                candidate = _propose(rng, group, horizon, attempt)
                fault = _fault(candidate, placed)
                if fault < best_fault:
                    best_fault, best = fault, candidate
                if fault <= 0.0:
                    break
            assert best is not None
            placed.append(best)
            worst = max(worst, float(best_fault))
    return worst, placed


def place(rng: np.random.Generator, spec: Spec, horizon: float) -> list[Placed]:
    """Place every object of `spec`, back to front: the balloons, then by how near they stand."""
    best_fault, best = _attempt(rng, spec, horizon)
    for _ in range(_TRIES_PER_SCENE):
        if best_fault <= 0.0:
            break
        fault, placed = _attempt(rng, spec, horizon)
        if fault < best_fault:
            best_fault, best = fault, placed
    return sorted(best, key=lambda item: (item.kind != "balloon", item.y))
