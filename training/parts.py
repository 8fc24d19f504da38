"""The models trained beside the generator: each a module with the same verbs, listed here.

A part's run lives in ``build/training/NAME``. From there `package` makes a folder that the library's own Auto
classes open, `score` measures that folder as a worker would load it, and the card is written from both.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from training.loop import Metrics, Plan

PARTS: dict[str, str] = {
    "segmenter": "training.segmenter",
    "instances": "training.instances",
    "points": "training.points",
    "depth": "training.depth",
    "text": "training.text",
    "vae": "training.vae",
    "gan": "training.gan",
    "inpainting": "training.inpainting",
}
"""Module by part, in the order in which they are trained."""


class Part(Protocol):
    """What a part's module holds.

    Attributes:
        MODEL: the folder it ships as; `templates/MODEL.md` is its card.
        SHARE: its part of the budget of `python -m training all`.
        BATCH_SIZE: presentations in one step.
        CURVE: columns of the run's log that the card shows.
    """

    MODEL: str
    SHARE: float
    BATCH_SIZE: int
    CURVE: tuple[str, ...]

    def train(self, folder: Path, data: Path, plan: Plan) -> Metrics:
        """Train into `folder`, or go on there; `data` holds the splits."""
        ...

    def package(self, run: Path, folder: Path) -> None:
        """Write the averaged weights of `run` into `folder` as fp16 safetensors of a library's own form."""
        ...

    def score(self, packaged: Path, data: Path) -> dict[str, Any]:
        """Measure the packaged model on the validation split; a sheet of pictures goes to `packaged`."""
        ...

    def facts(self, scores: dict[str, Any]) -> dict[str, object]:
        """What the card's template needs of the scores, beyond what every card has."""
        ...


def part(name: str) -> Part:
    """The module of a part."""
    return cast("Part", import_module(PARTS[name]))
