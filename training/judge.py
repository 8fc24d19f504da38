"""Reads a picture back into the facts a prompt can state, and compares them with what was asked."""

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from transformers import SegformerForSemanticSegmentation

from training.dataset import draw_scene
from training.segmenter import classify
from training.world.grammar import CLASSES, GROUND_CLASS, KINDS, TIMES, Group, Spec

ASPECTS = ("terrain", "time", "mountains", "object", "count", "colour", "position", "nothing_else")
_SMALLEST_SHARE = 0.002
"""Smallest part of the picture that counts as an object: 32 pixels of 128x128."""
_PARTS_SHARE = 0.2
"""A patch smaller than this share of the largest of its kind is a crumb, not one more object."""
_MOUNTAIN_SHARE = 0.006
_LEFT_END, _RIGHT_START = 0.365, 0.635
_COLOUR_ROWS = {
    "house": (0.5, 0.95),
    "tree": (0.0, 0.6),
    "flower": (0.0, 0.55),
    "car": (0.4, 0.85),
    "boat": (0.05, 0.7),
    "balloon": (0.05, 0.7),
    "cactus": (0.0, 1.0),
}
"""The rows of an object's box, 0 top and 1 bottom, where its own colour shows."""

Facts = dict[str, list[bool]]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One connected region of a kind: `mask` is (H, W) bool, `box` (left, top, width, height) in pixels."""

    mask: NDArray[np.bool_]
    box: tuple[int, ...]
    area_px: int
    centre_x: float


def patches(classes: NDArray[np.uint8], kind: str) -> list[Patch]:
    """The objects of `kind` in an (H, W) class map, largest first."""
    mask = (classes == CLASSES.index(kind)).astype(np.uint8)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = [
        Patch(
            mask=labels == index,
            box=tuple(int(value) for value in stats[index, :4]),
            area_px=int(stats[index, cv2.CC_STAT_AREA]),
            centre_x=float(centroids[index, 0]) / classes.shape[1],
        )
        for index in range(1, count)
        if stats[index, cv2.CC_STAT_AREA] >= _SMALLEST_SHARE * classes.size
    ]
    found.sort(key=lambda patch: -patch.area_px)
    return [patch for patch in found if patch.area_px >= _PARTS_SHARE * found[0].area_px]


def body_colour(image: NDArray[np.uint8], kind: str, patch: Patch) -> NDArray[np.float64]:
    """Median RGB of the part of a patch that bears the object's colour."""
    _, top, _, height = patch.box
    first, last = (top + int(share * height) for share in _COLOUR_ROWS[kind])
    rows = np.zeros(image.shape[0], bool)
    rows[first : max(last, first + 1)] = True
    pixels = image[patch.mask & rows[:, None]]
    colour: NDArray[np.float64] = np.median(pixels if len(pixels) else image[patch.mask], axis=0)
    return colour


def sky_colour(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean RGB of the sky in the upper third."""
    upper = slice(0, image.shape[0] // 3)
    pixels = image[upper][classes[upper] == CLASSES.index("sky")]
    return pixels.mean(axis=0) if len(pixels) else np.zeros(3)


class Palette:
    """What colours look like in the drawn world by each time of day, learnt from true renders."""

    def __init__(self, scenes: int = 1500) -> None:
        objects: dict[tuple[str, str, str], list[NDArray[np.float64]]] = defaultdict(list)
        skies: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for index in range(scenes):
            spec, scene, _ = draw_scene("held-out" if index % 3 == 0 else "validation", 100_000 + index)
            skies[spec.time].append(sky_colour(scene.image, scene.classes))
            for group in spec.groups:
                for patch in patches(scene.classes, group.kind)[:1]:
                    colour = body_colour(scene.image, group.kind, patch)
                    objects[group.kind, spec.time, group.colour].append(colour)
        self._objects = {key: np.median(values, axis=0) for key, values in objects.items()}
        self._skies = {time: np.mean(values, axis=0) for time, values in skies.items()}

    def time(self, sky: NDArray[np.float64]) -> str:
        """The time of day whose sky is nearest."""
        return min(TIMES, key=lambda time: float(np.linalg.norm(self._skies[time] - sky)))

    def colour(self, kind: str, time: str, seen: NDArray[np.float64]) -> str:
        """The name of the colour `kind` has, seen at `time`."""
        known = {key[2]: mean for key, mean in self._objects.items() if key[:2] == (kind, time)}
        return min(known, key=lambda name: float(np.linalg.norm(known[name] - seen)))


class Judge:
    """A segmenter and a palette that together check pictures against specs."""

    def __init__(self, segmenter: SegformerForSemanticSegmentation, palette: Palette | None = None) -> None:
        self._segmenter = segmenter
        self._palette = palette or Palette()

    def check(self, images: NDArray[np.uint8], specs: list[Spec]) -> list[Facts]:
        """For each (H, W, 3) picture which of its `ASPECTS` are right; objects have one entry a group."""
        maps = [classify(self._segmenter, images[start : start + 32]) for start in range(0, len(images), 32)]
        classes = np.concatenate(maps)
        return [self._facts(*scene) for scene in zip(images, classes, specs, strict=True)]

    def _facts(self, image: NDArray[np.uint8], classes: NDArray[np.uint8], spec: Spec) -> Facts:
        facts: Facts = {aspect: [] for aspect in ASPECTS}
        areas = np.bincount(classes.ravel(), minlength=len(CLASSES))
        ground = max(GROUND_CLASS, key=lambda terrain: areas[CLASSES.index(GROUND_CLASS[terrain])])
        facts["terrain"].append(ground == spec.terrain)
        facts["time"].append(self._palette.time(sky_colour(image, classes)) == spec.time)
        mountains = areas[CLASSES.index("mountain")] > _MOUNTAIN_SHARE * classes.size
        facts["mountains"].append(bool(mountains) == spec.mountains)
        for group in spec.groups:
            self._add_group(facts, image, classes, spec.time, group)
        asked = {group.kind for group in spec.groups}
        facts["nothing_else"].append(all(not patches(classes, kind) for kind in KINDS if kind not in asked))
        return facts

    def _add_group(
        self, facts: Facts, image: NDArray[np.uint8], classes: NDArray[np.uint8], time: str, group: Group
    ) -> None:
        found = patches(classes, group.kind)
        facts["object"].append(bool(found))
        facts["count"].append(len(found) == group.count)
        if group.colour:
            seen = [self._palette.colour(group.kind, time, body_colour(image, group.kind, p)) for p in found]
            facts["colour"].append(bool(seen) and all(colour == group.colour for colour in seen))
        if group.position:
            facts["position"].append(bool(found) and _side(found[0].centre_x) == group.position)


def _side(x: float) -> str:
    return "left" if x < _LEFT_END else "right" if x > _RIGHT_START else "middle"


def summarize(facts: list[Facts]) -> dict[str, dict[str, float]]:
    """Share right, its standard error and the number judged, for each aspect and for all together."""
    rows = {aspect: [value for fact in facts for value in fact[aspect]] for aspect in ASPECTS}
    rows["all_right"] = [all(all(values) for values in fact.values()) for fact in facts]
    table = {}
    for aspect, values in rows.items():
        share = float(np.mean(values)) if values else 0.0
        error = float(np.sqrt(share * (1 - share) / max(1, len(values))))
        table[aspect] = {"right": round(share, 4), "standard_error": round(error, 4), "n": len(values)}
    return table
