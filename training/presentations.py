"""Drawn scenes as the models of masks are shown them: mirrored, spoilt, and asked about cell by cell."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.dataset import IMAGE_PX, Split
from training.segmenter import spoil
from training.world.grammar import CLASSES

CELLS = 32
"""Side of the grid on which features are asked."""
_MIDDLE_BINS = 16


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A scene: `image` (128, 128, 3), `classes` and `instances` (128, 128), all uint8."""

    image: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]


class Presentations:
    """Scenes of several splits at random."""

    def __init__(self, splits: list[Split]) -> None:
        self._splits = splits
        self._ends = np.cumsum([len(split) for split in splits])
        self.rng = np.random.default_rng()

    def draw(self, count: int) -> list[Shown]:
        """`count` scenes, half of them mirrored, their pictures spoilt."""
        return [self._show(number) for number in self.rng.integers(self._ends[-1], size=count)]

    def _show(self, number: int) -> Shown:
        which = int(np.searchsorted(self._ends, number, side="right"))
        split, index = self._splits[which], number - self._ends[which]  # negative: counted from the end
        flip = 1 if self.rng.random() < 0.5 else -1
        return Shown(
            image=spoil(np.ascontiguousarray(split.images[index][:, ::flip]), self.rng),
            classes=split.classes[index][:, ::flip],
            instances=split.instances[index][:, ::flip],
        )


class Companion(nn.Module):
    """Asks the features of every cell, while they learn, for its class and where its object's middle is.

    A mask by the scene is a thin thing to learn from; this is a lesson for each cell. It is not shipped.
    """

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self._factor = CELLS // cells
        self.read = nn.Conv2d(width, (len(CLASSES) + 2 * _MIDDLE_BINS) * self._factor**2, 1)

    def loss(self, features: Tensor, scenes: list[Shown]) -> Tensor:
        """From (n, width, cells, cells) features."""
        logits = functional.pixel_shuffle(self.read(features), self._factor).float()
        names, row, column = logits.split([len(CLASSES), _MIDDLE_BINS, _MIDDLE_BINS], dim=1)
        asked = torch.from_numpy(np.stack([_answers(scene) for scene in scenes]))
        classes, rows, columns = asked.unbind(1)
        middle = functional.cross_entropy(row, rows, ignore_index=-1)
        middle = middle + functional.cross_entropy(column, columns, ignore_index=-1)
        return functional.cross_entropy(names, classes) + 0.25 * middle


def _answers(scene: Shown) -> NDArray[np.int64]:
    """Class, and row and column of the object's middle in bins, of each cell: (3, 32, 32), -1 for none."""
    step = IMAGE_PX // CELLS
    grid = np.s_[step // 2 :: step, step // 2 :: step]
    answers = np.full((3, CELLS, CELLS), -1)
    answers[0] = scene.classes[grid]
    numbers = scene.instances[grid]
    for number in np.unique(numbers[numbers > 0]):
        inside = np.nonzero(numbers == number)
        for axis in range(2):
            answers[1 + axis][inside] = int(inside[axis].mean() * _MIDDLE_BINS / CELLS)
    return answers
