"""Id maps to measure masks with: twenty instances each, of several characters, the same at every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.uint16]]

INSTANCES = 20
SIDE_PX = 1_024


def scenes(*, side_px: int = SIDE_PX, instances: int = INSTANCES) -> dict[str, Ids]:
    """Return HW maps by name: numbers from 1 to `instances`, 0 where nothing is."""
    return {name: draw(np.random.default_rng(7), side_px, instances) for name, draw in _DRAWN.items()}


REALISTIC = ("blobs", "thin", "holes")
"""What pictures of things have; noise is the worst case, for comparison."""


def _blobs(rng: np.random.Generator, side: int, count: int) -> Ids:
    """Round things with wavy borders, here and there one before another."""
    ids = np.zeros((side, side), np.uint16)
    across = math.ceil(math.sqrt(count))
    for number in range(count):
        place = np.array(divmod(number, across)) + rng.uniform(0.3, 0.7, 2)
        ids[_blob(rng, side, place / across)] = number + 1
    return ids


def _holes(rng: np.random.Generator, side: int, count: int) -> Ids:
    """Blobs that are full of small round holes."""
    ids = _blobs(rng, side, count)
    rows, columns = np.mgrid[0:side, 0:side]
    pitch = max(4, side // 32)
    ids[(rows % pitch - pitch // 2) ** 2 + (columns % pitch - pitch // 2) ** 2 < (pitch // 4) ** 2] = 0
    return ids


def _thin(rng: np.random.Generator, side: int, count: int) -> Ids:
    """Wires two pixels wide that wave across the picture: many runs, little area."""
    ids = np.zeros((side, side), np.uint16)
    along = np.arange(side)
    for number in range(1, count + 1):
        swing = side * rng.uniform(0.05, 0.25) * np.sin(along * rng.uniform(2, 12) / side * np.pi)
        across = (rng.uniform(0.1, 0.9) * side + swing).round().astype(int) % side
        for width in (0, 1):
            places = (across + width) % side
            if number % 2:
                ids[along, places] = number
            else:
                ids[places, along] = number
    return ids


def _noise(rng: np.random.Generator, side: int, count: int) -> Ids:
    """Every pixel of another instance than its neighbours: as many runs as there can be."""
    return rng.integers(1, count + 1, (side, side)).astype(np.uint16)


def _blob(
    rng: np.random.Generator, side: int, middle: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    rows, columns = np.mgrid[0:side, 0:side] - (middle * side)[:, None, None]
    angle = np.arctan2(rows, columns)
    waves = sum(
        rng.uniform(0.03, 0.15) * np.sin(number * angle + rng.uniform(0, 2 * np.pi)) for number in range(2, 9)
    )
    radius = rng.uniform(0.04, 0.13) * side * (1 + waves)
    inside: np.ndarray[Any, np.dtype[np.bool_]] = rows**2 + columns**2 < radius**2
    return inside


_DRAWN: dict[str, Callable[[np.random.Generator, int, int], Ids]] = {
    "blobs": _blobs,
    "thin": _thin,
    "holes": _holes,
    "noise": _noise,
}
