"""Segmentation of any photograph with no weights: regions, colours, thresholds, and the object in a box.

These methods know no classes: a region is what looks alike, not a thing. The result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import ModelUnavailable
from pixelkiln_shared.kinds import Box, Point
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import colours, grabcut, regions
from pixelkiln_worker.families.contract import Outcome, Pixels, Segmentation, Task
from pixelkiln_worker.families.marks import group_marks, inside
from pixelkiln_worker.families.methods import PictureMethod
from pixelkiln_worker.families.segments import Labels, Part, absorb_specks, assemble, enlarge, keep, shrink

WORK_PX = 1024
"""Longest side the methods see; label maps go back to the picture's size by nearest neighbour."""
_SPECK_SHARE = 1 / 2_500
_MAX_COLOURS = 32
_TONES = {
    2: ("dark", "light"),
    3: ("dark", "middle", "light"),
    4: ("dark", "middle dark", "middle light", "light"),
}

_NOTES = {
    "regions": "regions of like colour; classical methods know no classes",
    "colours": "one mask for each colour; classical methods know no classes",
    "tones": "masks by brightness alone; classical methods know no classes",
    "object": "the object shown by box or points; classical methods know no classes",
}

Warnings = tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a job asks of a method. Marks are in pixels of the picture."""

    regions: int | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Wish:
        """Read the wish from the input of a job."""
        return cls(
            regions=fields.get("regions"),
            boxes=tuple(Box.model_validate(box) for box in fields.get("boxes") or ()),
            points=tuple(Point.model_validate(point) for point in fields.get("points") or ()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One algorithm: what it does to a picture, what its result is made of, and which labels it can give."""

    run: Callable[[Pixels, Wish], Segmentation]
    makes: str
    known: tuple[str, ...] = ()
    max_regions: int = 255


# ------------------------------------------------------------------------------------------------ methods


def _regions_by(cut: Callable[[regions.Lab, int | None], Labels]) -> Callable[[Pixels, Wish], Segmentation]:
    def run(image: Pixels, wish: Wish) -> Segmentation:
        labels = cut(regions.calm_lab(shrink(image, WORK_PX)), wish.regions)
        found = assemble(labels, lambda _, number: Part(label=f"region {number}", category=number))
        return _at_size(found, image)

    return run


def _by_colour(image: Pixels, wish: Wish) -> Segmentation:
    lab = regions.calm_lab(shrink(image, WORK_PX))
    centres = colours.palette(lab, min(wish.regions or 6, _MAX_COLOURS))
    labels = absorb_specks(colours.nearest(lab, centres) + 1, _speck_px(lab))
    names = [colours.name(centre) for centre in centres]
    parts = {
        value: Part(label=name, category=colours.NAMES.index(name) + 1)
        for value, name in enumerate(names, start=1)
    }
    return _at_size(assemble(labels, parts), image)


def _by_tone(image: Pixels, wish: Wish) -> Segmentation:
    lab = regions.calm_lab(shrink(image, WORK_PX))
    tones = _TONES[min(max(wish.regions or 2, 2), max(_TONES))]
    lightness = np.rint(lab[..., 0] * 2.55).astype(np.uint8)
    labels = absorb_specks(
        np.digitize(lightness, _thresholds(lightness, len(tones)), right=True) + 1, _speck_px(lab)
    )
    parts = {value: Part(label=tone, category=value) for value, tone in enumerate(tones, start=1)}
    return _at_size(assemble(labels, parts), image)


def _thresholds(lightness: Pixels, tones: int) -> NDArray[Any]:
    """Return the levels between the tones (Otsu 1979; several at once: Liao et al. 2001)."""
    if len(np.unique(lightness)) <= tones:  # too few greys to choose between: each is a tone of its own
        return np.unique(lightness)[:-1]
    return np.asarray(threshold_multiotsu(lightness, classes=tones))


def _by_marks(image: Pixels, wish: Wish) -> Segmentation:
    boxes = inside(wish.boxes, wish.points, image.shape[1], image.shape[0])
    labels = np.zeros(image.shape[:2], np.uint16)
    objects = group_marks(boxes, wish.points, grabcut.MARGIN)
    masks = [grabcut.cut(image, marks) for marks in objects]
    order = sorted(range(len(masks)), key=lambda index: -int(masks[index].sum()))
    for index in order:  # where objects overlap, the smaller lies on top
        labels[masks[index]] = index + 1
    return assemble(labels, lambda _, __: Part(label="object", category=1))


def _at_size(found: Segmentation, image: Pixels) -> Segmentation:
    ids = enlarge(found.ids, image.shape[0], image.shape[1])
    return Segmentation(ids=np.asarray(ids, np.uint16), segments=found.segments)


def _speck_px(lab: regions.Lab) -> int:
    return max(4, int(lab.shape[0] * lab.shape[1] * _SPECK_SHARE))


METHODS: dict[str, Method] = {
    "felzenszwalb": Method(run=_regions_by(regions.felzenszwalb), makes="regions"),
    "slic": Method(run=_regions_by(regions.slic), makes="regions"),
    "watershed": Method(run=_regions_by(regions.watershed), makes="regions"),
    "kmeans": Method(run=_by_colour, makes="colours", known=colours.NAMES, max_regions=_MAX_COLOURS),
    "otsu": Method(run=_by_tone, makes="tones", known=_TONES[4] + _TONES[3][1:2], max_regions=max(_TONES)),
    "grabcut": Method(run=_by_marks, makes="object", known=("object",)),
}

# ------------------------------------------------------------------------------------------------ the family


class Classical(PictureMethod):
    """One of `METHODS`."""

    def __init__(self, entry: ModelEntry) -> None:
        super().__init__(entry, entry.method)
        self._name = entry.method
        self._method = METHODS[entry.method]

    def answer(self, task: Task, image: Pixels) -> Outcome:
        """Segment a picture."""
        wish = Wish.of(task.spec.input)
        found = self._method.run(image, wish)
        labels = task.spec.input.get("labels") or []
        warnings = _limited(self._name, self._method, wish)
        if labels and self._method.known:
            found, unknown = keep(found, labels, self._method.known)
            warnings += unknown
        elif labels:
            warnings += (_warning("labels_ignored", f"{self._name} knows no classes; `labels` was not used"),)
        if not found.segments:
            warnings += (_warning("nothing_found", "no part of the picture was found"),)
        detail = {
            "method": self._name,
            "note": _NOTES[self._method.makes],
            "labels": [segment.label for segment in found.segments],
        }
        return Outcome(segmentation=found, detail=detail, warnings=warnings)


def load(entry: ModelEntry, device: Device) -> Classical:
    """Return the method that the catalogue entry names; it runs on the CPU whatever the device.

    Raises:
        ModelUnavailable: there is no such method.
    """
    if entry.method not in METHODS:
        raise ModelUnavailable(
            f"model {entry.id}: no classical method {entry.method!r}; there are {', '.join(METHODS)}"
        )
    cv2.setNumThreads(device.threads)
    return Classical(entry)


def _limited(name: str, method: Method, wish: Wish) -> Warnings:
    if wish.regions is None or wish.regions <= method.max_regions:
        return ()
    return (_warning("regions_limited", f"{name} makes at most {method.max_regions} segments"),)


def _warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
