"""The scenes of several splits as one heap to draw from."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.dataset import Split


class Pool:
    """Draws scenes at random, every scene of every split as likely as any other."""

    def __init__(self, splits: Sequence[Split], rng: np.random.Generator) -> None:
        self._splits, self._rng = splits, rng
        self._ends = np.cumsum([len(split) for split in splits])

    def draw(self, count: int) -> Iterator[tuple[Split, int]]:
        """`count` scenes, each as its split and its index there."""
        for number in self._rng.integers(self._ends[-1], size=count):
            which = int(np.searchsorted(self._ends, number, side="right"))
            split = self._splits[which]
            yield split, int(number - self._ends[which] + len(split))
