"""Phrases about a drawn scene, and the pixels each of them means.

A phrase names one thing: a kind of object ("two trees"), with its colour ("the red balloon"), its side ("the
tree on the left") or both, or a part of the backdrop ("snow"). Colour and side choose: what does not fit them
is not meant, and a phrase that nothing fits means no pixel. Numbers and "large" describe without choosing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.dataset import Split
from training.world.grammar import (
    BACKDROP_CLASSES,
    CLASSES,
    COLOURS,
    COUNT_WORDS,
    KINDS,
    PLURALS,
    POSITIONS,
)

PRESENT_TYPES = ("kind", "colour", "position", "colour_and_position", "backdrop")
ABSENT_TYPES = ("wrong_colour", "wrong_position", "absent_kind", "absent_backdrop", "unknown")
BACKDROP_WORDS = {
    "sky": ("sky", "night sky"),
    "grass": ("meadow", "grass"),
    "sand": ("desert", "sand"),
    "snow": ("snow",),
    "water": ("sea", "water"),
    "mountain": ("mountains", "mountain"),
    "sun": ("sun",),
    "moon": ("moon",),
}
_TYPE_SHARES = {
    "kind": 0.12,
    "colour": 0.22,
    "position": 0.13,
    "colour_and_position": 0.06,
    "backdrop": 0.15,
    "wrong_colour": 0.13,
    "wrong_position": 0.06,
    "absent_kind": 0.08,
    "absent_backdrop": 0.03,
    "unknown": 0.02,
}
_SIDE_ENDS = (0.365, 0.635)
_DOUBT = 0.035
"""An object whose middle is nearer than this to the end of a side is called neither here nor there."""
_CACTUS_COLOUR = "green"
_ADJECTIVES = ("old", "shiny", "little", "pretty", "lonely")
_STRANGERS = ("dog", "person", "aeroplane", "chair", "bicycle", "thing")


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """`text`, its type out of `PRESENT_TYPES` or `ABSENT_TYPES`, and its pixels, (H, W) bool."""

    text: str
    type: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """All objects of one kind in a scene: each one's side, "" where in doubt, and its instance id."""

    kind: str
    colour: str
    instances: tuple[tuple[str, int], ...]

    @property
    def sides(self) -> set[str]:
        return {side for side, _ in self.instances}


def _side(x: float) -> str:
    if any(abs(x - end) < _DOUBT for end in _SIDE_ENDS):
        return ""
    return POSITIONS[int(np.searchsorted(_SIDE_ENDS, x))]


class Teller:
    """Makes phrases about the scene of (H, W) `classes` and `instances`; `colours` has one entry a kind."""

    def __init__(
        self,
        classes: NDArray[np.uint8],
        instances: NDArray[np.uint8],
        colours: NDArray[np.int8],
        rng: np.random.Generator,
    ) -> None:
        self._classes, self._instances, self._rng = classes, instances, rng
        self._nothing = np.zeros(classes.shape, bool)
        self._things = self._find_things(colours)
        shown = np.unique(classes)
        self._backdrop = [name for k, name in enumerate(BACKDROP_CLASSES) if k in shown]

    @classmethod
    def of(cls, split: Split, index: int, rng: np.random.Generator, *, flip: bool = False) -> "Teller":
        """A teller of scene `index`, mirrored with `flip`; sides are those one sees."""
        step = -1 if flip else 1
        maps = (split.classes[index][:, ::step], split.instances[index][:, ::step])
        return cls(*maps, split.colours[index], rng)

    def _find_things(self, colours: NDArray[np.int8]) -> list[Thing]:
        found: dict[str, list[tuple[str, int]]] = {}
        for number in range(1, int(self._instances.max()) + 1):
            rows, columns = np.nonzero(self._instances == number)
            if len(rows):
                kind = CLASSES[self._classes[rows[0], columns[0]]]
                x = float(columns.mean() + 0.5) / self._classes.shape[1]
                found.setdefault(kind, []).append((_side(x), number))
        things = []
        for kind, instances in found.items():
            colour = int(colours[KINDS.index(kind)])
            name = COLOURS[colour - 1] if colour else _CACTUS_COLOUR
            things.append(Thing(kind=kind, colour=name, instances=tuple(instances)))
        return things

    def side_map(self) -> NDArray[np.int64]:
        """The side of every pixel's object, (H, W), by its place in `POSITIONS`; -1 in doubt or elsewhere."""
        sides = np.full(self._classes.shape, -1)
        for thing in self._things:
            for side, number in thing.instances:
                if side:
                    sides[self._instances == number] = POSITIONS.index(side)
        return sides

    def tell(self, count: int) -> list[Phrase]:
        """`count` phrases, about a third of them of what is not there."""
        types = self._rng.choice(list(_TYPE_SHARES), size=count, p=list(_TYPE_SHARES.values()))
        return [self.phrase(str(wanted)) for wanted in types]

    def phrase(self, wanted: str) -> Phrase:
        """A phrase of type `wanted`, or of the nearest type that the scene allows."""
        if wanted in ("backdrop", "absent_backdrop"):
            return self._backdrop_phrase(wanted)
        if wanted in ("absent_kind", "unknown") or not self._things:
            return self._stranger_phrase(wanted)
        thing = self._things[int(self._rng.integers(len(self._things)))]
        colour = side = ""
        if wanted == "wrong_colour":
            colour = self._one([name for name in COLOURS if name != thing.colour])
        elif wanted in ("colour", "colour_and_position"):
            colour = thing.colour
        if wanted in ("position", "colour_and_position") and "" not in thing.sides:
            side = self._one(sorted(thing.sides))
        elif wanted == "wrong_position" and "" not in thing.sides and len(thing.sides) < len(POSITIONS):
            side = self._one([name for name in POSITIONS if name not in thing.sides])
        return self._object_phrase(thing, colour, side)

    def _object_phrase(self, thing: Thing, colour: str, side: str) -> Phrase:
        fitting = [number for where, number in thing.instances if side in ("", where)]
        if colour not in ("", thing.colour):
            fitting, kind_of_phrase = [], "wrong_colour"
        elif not fitting:
            kind_of_phrase = "wrong_position"
        else:
            kind_of_phrase = {
                (False, False): "kind",
                (True, False): "colour",
                (False, True): "position",
                (True, True): "colour_and_position",
            }[bool(colour), bool(side)]
        mask = np.isin(self._instances, fitting) if fitting else self._nothing
        text = self._words(thing.kind, colour, side, len(fitting) or len(thing.instances))
        return Phrase(text=text, type=kind_of_phrase, mask=mask)

    def _backdrop_phrase(self, wanted: str) -> Phrase:
        absent = [name for name in BACKDROP_CLASSES if name not in self._backdrop]
        name = self._one(absent if wanted == "absent_backdrop" else self._backdrop)
        text = self._one(("", "the ")) + self._one(BACKDROP_WORDS[name])
        return Phrase(text=text, type=wanted, mask=self._classes == CLASSES.index(name))

    def _stranger_phrase(self, wanted: str) -> Phrase:
        colour = self._one(COLOURS) if self._rng.random() < 0.5 else ""
        side = self._one(POSITIONS) if self._rng.random() < 0.25 else ""
        if wanted == "unknown":
            text = f"a {self._one(_STRANGERS)}" if not colour else f"{colour} {self._one(_STRANGERS)}"
            return Phrase(text=text, type=wanted, mask=self._nothing)
        here = {thing.kind for thing in self._things}
        kind = self._one([name for name in KINDS if name not in here])
        text = self._words(kind, colour, side, int(self._rng.integers(1, 4)))
        return Phrase(text=text, type="absent_kind", mask=self._nothing)

    def _words(self, kind: str, colour: str, side: str, count: int) -> str:
        article = self._one(("the", "", COUNT_WORDS[count]))
        size = "large" if count == 1 and self._rng.random() < 0.12 else ""
        adjective = self._one(_ADJECTIVES) if self._rng.random() < 0.08 else ""
        noun = PLURALS[kind] if count > 1 else kind
        where = {"": "", "middle": "in the middle"}.get(side, f"on the {side}")
        words = [article, size, adjective, colour, noun, where]
        if where and self._rng.random() < 0.1:
            words = [where, *words[:-1]]
        return " ".join(word for word in words if word)

    def _one(self, names: Sequence[str]) -> str:
        return names[int(self._rng.integers(len(names)))]
