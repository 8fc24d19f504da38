"""Scenes on disk: memory-mapped arrays that every training part reads in place.

A split is a folder of ``.npy`` files of n scenes each, ``captions.txt`` beside them (one line a scene, its
captions separated by tabs):

========== ==================== ===============================================================
images     (n, 128, 128, 3) u8  RGB
classes    (n, 128, 128) u8     ids into ``grammar.CLASSES``
instances  (n, 128, 128) u8     1, 2, ... for the objects of the scene, 0 elsewhere
depth      (n, 128, 128) u8     255 times the scene's depth: 0 the sky, 255 nearest
cells      (n, 16, 16) u8       the class map on the latent grid, objects winning over backdrop
centres    (n, 16, 16) u8       1 in the latent cell of each object's centre
colours    (n, kinds) i8        the colour of each kind, 1 + id into ``grammar.COLOURS``, 0 none
========== ==================== ===============================================================
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.world.grammar import CLASSES, COLOURS, FIRST_OBJECT_CLASS, KINDS, Spec, caption, sample_spec
from training.world.render import Scene, render

IMAGE_PX = 128
LATENT_CELLS = 16
CAPTIONS_PER_SCENE = 3
SPLIT_SEEDS = {"train": 1, "validation": 2, "evaluation": 3, "held-out": 4}
"""``held-out`` has reserved combinations alone: the segmenter, which judges, must know them."""
_ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "images": ((IMAGE_PX, IMAGE_PX, 3), np.uint8),
    "classes": ((IMAGE_PX, IMAGE_PX), np.uint8),
    "instances": ((IMAGE_PX, IMAGE_PX), np.uint8),
    "depth": ((IMAGE_PX, IMAGE_PX), np.uint8),
    "cells": ((LATENT_CELLS, LATENT_CELLS), np.uint8),
    "centres": ((LATENT_CELLS, LATENT_CELLS), np.uint8),
    "colours": ((len(KINDS),), np.int8),
}
_CHUNK = 500


def scene_rng(split: str, index: int) -> np.random.Generator:
    """The random source of scene `index`: scenes depend on nothing but their split and number."""
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def draw_scene(split: str, index: int) -> tuple[Spec, Scene, list[str]]:
    """Scene `index` of `split`: what it holds, its picture and its captions."""
    rng = scene_rng(split, index)
    spec = sample_spec(rng, held_out=split == "held-out")
    texts = [caption(spec, rng).text for _ in range(CAPTIONS_PER_SCENE)]
    return spec, render(spec, rng, IMAGE_PX), texts


def class_cells(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce an (H, W) class map to the latent grid by vote; small things count triple, or few were left."""
    side = classes.shape[0] // LATENT_CELLS
    blocks = (
        classes.reshape(LATENT_CELLS, side, LATENT_CELLS, side).swapaxes(1, 2).reshape(LATENT_CELLS**2, -1)
    )
    votes = (blocks[..., None] == np.arange(len(CLASSES), dtype=np.uint8)).sum(1)
    votes[:, CLASSES.index("sun") :] *= 3
    winners: NDArray[np.uint8] = votes.argmax(1).astype(np.uint8)
    return winners.reshape(LATENT_CELLS, LATENT_CELLS)


def centre_cells(scene: Scene) -> NDArray[np.uint8]:
    """Mark the latent cell in the middle of each object."""
    cells = np.zeros((LATENT_CELLS, LATENT_CELLS), np.uint8)
    for item in scene.objects:
        row = int((item.y - item.h / 2) * LATENT_CELLS)
        column = int(item.x * LATENT_CELLS)
        cells[np.clip(row, 0, LATENT_CELLS - 1), np.clip(column, 0, LATENT_CELLS - 1)] = 1
    return cells


def colour_ids(spec: Spec) -> NDArray[np.int8]:
    """The colour of each kind in the scene, 0 where there is none."""
    ids = np.zeros(len(KINDS), np.int8)
    for group in spec.groups:
        if group.colour:
            ids[KINDS.index(group.kind)] = 1 + COLOURS.index(group.colour)
    return ids


def _fill_chunk(folder: Path, split: str, start: int, stop: int) -> list[str]:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    lines = []
    for index in range(start, stop):
        spec, scene, texts = draw_scene(split, index)
        arrays["images"][index] = scene.image
        arrays["classes"][index] = scene.classes
        arrays["instances"][index] = scene.instances
        arrays["depth"][index] = np.round(scene.depth * 255)
        arrays["cells"][index] = class_cells(scene.classes)
        arrays["centres"][index] = centre_cells(scene)
        arrays["colours"][index] = colour_ids(spec)
        lines.append("\t".join(texts))
    return lines


def build(folder: Path, split: str, count: int, processes: int = 2) -> None:
    """Draw `count` scenes of `split` into `folder`, unless they are there already."""
    done = folder / "split.json"
    if done.exists() and json.loads(done.read_text())["count"] >= count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shape, dtype) in _ARRAYS.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (count, *shape))
    starts = range(0, count, _CHUNK)
    stops = [min(start + _CHUNK, count) for start in starts]
    with ProcessPoolExecutor(processes) as pool:
        chunks = pool.map(_fill_chunk, [folder] * len(stops), [split] * len(stops), starts, stops)
        lines = [line for chunk in chunks for line in chunk]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    write_json(done, {"split": split, "count": count})


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split opened for reading; see the module for shapes."""

    images: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    cells: NDArray[np.uint8]
    centres: NDArray[np.uint8]
    colours: NDArray[np.int8]
    captions: list[list[str]]

    @classmethod
    def open(cls, folder: Path) -> "Split":
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        lines = (folder / "captions.txt").read_text().splitlines()
        return cls(captions=[line.split("\t") for line in lines], **arrays)

    def __len__(self) -> int:
        return len(self.captions)


def object_mask(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where a countable object is."""
    return classes >= FIRST_OBJECT_CLASS


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
