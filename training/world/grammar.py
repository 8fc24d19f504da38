"""What a scene may hold and how a caption says it.

A scene is a terrain, a time of day, perhaps mountains, and one or two groups of like objects. Captions
leave things out and vary their order, so that the text encoder meets the many ways of asking for the same
scene.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TERRAINS = ("meadow", "desert", "snow", "sea")
TIMES = ("day", "sunset", "night", "dawn")
KINDS = ("house", "tree", "cactus", "flower", "car", "boat", "balloon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
POSITIONS = ("left", "middle", "right")
COUNT_WORDS = {1: "a", 2: "two", 3: "three"}
PLURALS = {
    "house": "houses",
    "tree": "trees",
    "cactus": "cacti",
    "flower": "flowers",
    "car": "cars",
    "boat": "boats",
    "balloon": "balloons",
}

BACKDROP_CLASSES = ("sky", "grass", "sand", "snow", "water", "mountain", "sun", "moon")
CLASSES = BACKDROP_CLASSES + KINDS
"""Semantic class names by id; every id from ``FIRST_OBJECT_CLASS`` on is a countable kind."""
FIRST_OBJECT_CLASS = len(BACKDROP_CLASSES)
GROUND_CLASS = {"meadow": "grass", "desert": "sand", "snow": "snow", "sea": "water"}

_SIX = ("red", "yellow", "green", "blue", "purple", "white")
KIND_COLOURS: dict[str, tuple[str, ...]] = {
    "house": _SIX,
    "car": _SIX,
    "balloon": _SIX,
    "tree": ("green", "orange", "pink"),
    "flower": ("red", "yellow", "blue", "purple", "white"),
    "boat": ("red", "yellow", "green", "purple", "white"),
    "cactus": (),
}
TERRAIN_KINDS = {
    "meadow": ("house", "tree", "flower", "car", "balloon"),
    "desert": ("house", "cactus", "car", "balloon"),
    "snow": ("house", "tree", "car", "balloon"),
    "sea": ("boat", "boat", "balloon"),
}

HELD_OUT = frozenset(
    {
        ("house", "blue", "desert"),
        ("house", "green", "snow"),
        ("house", "purple", "meadow"),
        ("car", "green", "desert"),
        ("car", "purple", "snow"),
        ("car", "white", "meadow"),
        ("balloon", "green", "sea"),
        ("balloon", "purple", "desert"),
        ("balloon", "white", "meadow"),
        ("balloon", "yellow", "snow"),
        ("tree", "orange", "snow"),
        ("boat", "green", "night"),
        ("boat", "purple", "day"),
        ("boat", "yellow", "dawn"),
        ("flower", "blue", "sunset"),
        ("flower", "purple", "dawn"),
        ("flower", "white", "day"),
    }
)
"""(kind, colour, terrain or time) triples that no training scene holds, so evaluation can ask for the unseen.

Each pair within a triple does occur in training: only the whole combination is new.
"""

SLOTS = ("terrain", "time", "mountains", *KINDS)
SLOT_ATTRIBUTES = ("count", "colour", "size", "position")
SLOT_SIZES = (5, len(COLOURS) + 1, 2, len(POSITIONS) + 1)
"""Values a slot's attribute can take; 0 always means "not said"."""

_FILLERS = ("in", "on", "the", "with", "at", "by")
VOCABULARY = (
    *COUNT_WORDS.values(),
    "and",
    "large",
    *COLOURS,
    *PLURALS,
    *PLURALS.values(),
    *POSITIONS,
    *TERRAINS,
    "mountains",
    *TIMES,
)
"""Every word that means something to the model. The small words of ``FILLERS`` are allowed and skipped."""
FILLERS = frozenset(_FILLERS)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Like objects asked for together; `colour`, `size` and `position` are empty where the group has none."""

    kind: str
    count: int
    colour: str = ""
    size: str = ""
    position: str = ""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All the facts of one scene that a caption can state."""

    terrain: str
    time: str
    mountains: bool
    groups: tuple[Group, ...]

    @property
    def held_out(self) -> bool:
        """Whether the scene holds a combination reserved for evaluation."""
        return any(
            (g.kind, g.colour, where) in HELD_OUT for g in self.groups for where in (self.terrain, self.time)
        )


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and what it says: `slots` is (SLOTS, SLOT_ATTRIBUTES) int8, 0 where it is silent."""

    text: str
    slots: NDArray[np.int8]


def _sample_groups(rng: np.random.Generator, terrain: str) -> tuple[Group, ...]:
    groups: list[Group] = []
    free_positions = list(POSITIONS)
    for _ in range(rng.choice([1, 2], p=[0.45, 0.55])):
        kind = str(rng.choice(TERRAIN_KINDS[terrain]))
        if any(group.kind == kind for group in groups):
            continue
        count = int(rng.choice([1, 2, 3], p=[0.52, 0.28, 0.20]))
        if sum(group.count for group in groups) + count > 4:
            count = 1
        colour = str(rng.choice(KIND_COLOURS[kind])) if KIND_COLOURS[kind] else ""
        size = position = ""
        if count == 1:
            size = "large" if rng.random() < 0.3 else ""
            position = free_positions.pop(int(rng.integers(len(free_positions))))
        groups.append(Group(kind=kind, count=count, colour=colour, size=size, position=position))
    return tuple(groups)


def sample_spec(rng: np.random.Generator, *, held_out: bool = False) -> Spec:
    """Draw a scene at random: an allowed one, or with `held_out` one that training never shows."""
    while True:
        terrain = str(rng.choice(TERRAINS, p=[0.34, 0.22, 0.20, 0.24]))
        spec = Spec(
            terrain=terrain,
            time=str(rng.choice(TIMES, p=[0.34, 0.22, 0.24, 0.20])),
            mountains=bool(rng.random() < 0.4),
            groups=_sample_groups(rng, terrain),
        )
        if spec.held_out == held_out:
            return spec


_AN = re.compile(r"\ba(?= [aeiou])")


class _Speaker:
    """Says a spec in words, noting in `slots` what it said."""

    def __init__(self, rng: np.random.Generator, complete: bool) -> None:
        self._rng = rng
        self._complete = complete
        self.slots = np.zeros((len(SLOTS), len(SLOT_ATTRIBUTES)), np.int8)

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def mentions(self, probability: float) -> bool:
        return self._complete or self.chance(probability)

    def _note(self, slot: str, attribute: str, value: int) -> None:
        self.slots[SLOTS.index(slot), SLOT_ATTRIBUTES.index(attribute)] = value

    def group(self, group: Group) -> str:
        words: list[str] = []
        self._note(group.kind, "count", group.count)
        if group.count > 1 or self.mentions(0.94):
            words.append(COUNT_WORDS[group.count])
        if group.size:
            words.append(group.size)
            self._note(group.kind, "size", 1)
        if group.colour and self.mentions(0.93):
            words.append(group.colour)
            self._note(group.kind, "colour", 1 + COLOURS.index(group.colour))
        words.append(PLURALS[group.kind] if group.count > 1 else group.kind)
        if group.position and self.mentions(0.8):
            words.append("in the middle" if group.position == "middle" else f"on the {group.position}")
            self._note(group.kind, "position", 1 + POSITIONS.index(group.position))
        return " ".join(words)

    def setting(self, spec: Spec) -> list[str]:
        phrases: list[str] = []
        if self.mentions(0.94):
            phrases.append(
                {
                    "meadow": "in a meadow",
                    "desert": "in the desert",
                    "snow": "in the snow",
                    "sea": "on the sea",
                }[spec.terrain]
            )
            self._note("terrain", "count", 1 + TERRAINS.index(spec.terrain))
        if spec.mountains:
            phrases.append("with mountains")
            self._note("mountains", "count", 1)
        if self.mentions(0.94):
            phrases.append(
                {"day": "by day", "sunset": "at sunset", "night": "at night", "dawn": "at dawn"}[spec.time]
            )
            self._note("time", "count", 1 + TIMES.index(spec.time))
        return phrases


def caption(spec: Spec, rng: np.random.Generator, *, complete: bool = False) -> Caption:
    """Say `spec` in words; `complete` says everything in the plain order, as evaluation prompts do."""
    speaker = _Speaker(rng, complete)
    groups = list(spec.groups)
    if not complete and speaker.chance(0.5):
        groups.reverse()
    joiner = " and " if complete or speaker.chance(0.75) else str(rng.choice([" with ", ", "]))
    objects = joiner.join(speaker.group(group) for group in groups)
    setting = speaker.setting(spec)
    if not complete and speaker.chance(0.2):
        rng.shuffle(setting)
    if not complete and speaker.chance(0.12):
        text = ", ".join([" ".join(setting), objects] if setting else [objects])
    else:
        text = " ".join([objects, *setting])
    return Caption(text=_AN.sub("an", text), slots=speaker.slots)


def say(spec: Spec, rng: np.random.Generator, *, place: bool = True) -> str:
    """Name the groups of `spec` and, with `place`, where they are; a spec without groups is a bare place."""
    speaker = _Speaker(rng, complete=False)
    things = " and ".join(speaker.group(group) for group in spec.groups)
    return _AN.sub("an", " ".join([*([things] if things else []), *(speaker.setting(spec) if place else [])]))
