"""How well holes are filled: holes around things of true scenes, refilled by the worker's own inpainting."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SegformerForSemanticSegmentation

from pixelkiln_shared.catalogue import Catalogue, Weights
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import diffusion
from pixelkiln_worker.families.contract import Nobody, Outcome, Task
from training.dataset import Split, scene_rng
from training.holes import Hole, around, inside, request
from training.judge import patches
from training.matching import visible_objects
from training.segmenter import classify
from training.sheets import outline
from training.world.grammar import FIRST_OBJECT_CLASS, KINDS, sample_spec

Pictures = NDArray[np.uint8]

_SCENES, _SHOWN = 96, 12
_BATCH = 8
_MARGIN_PX = 10.0
_EDGE_PX = 2


def score_holes(generator: Path, packaged: Path, data: Path) -> dict[str, Any]:
    """Refill holes around things of validation scenes and read what came; a sheet goes to `packaged`."""
    split = Split.open(data / "validation")
    numbers, holes, asked, kinds = _questions(split)
    true = np.asarray(split.images[numbers])
    made = _refill(generator, packaged, true, holes, asked)
    shipped = resources.files("pixelkiln_worker") / "embedded" / "toyworld-classes"
    segmenter = SegformerForSemanticSegmentation.from_pretrained(str(shipped), dtype=torch.float32).eval()
    with torch.no_grad():
        labels = np.concatenate([classify(segmenter, made[i : i + 32]) for i in range(0, len(made), 32)])
    found = [thing(label, hole, kind) for label, hole, kind in zip(labels, holes, kinds, strict=True)]
    cuts = [cut(mask, hole) for mask, hole in zip(found, holes, strict=True) if mask is not None]
    pairs = list(zip(true, made, holes, strict=True))
    write_sheet(packaged / "examples.webp", pairs[:_SHOWN])
    return {
        "trained_on": json.loads((data / "train" / "split.json").read_text())["count"],
        "true_scenes": len(made),
        "there": round(float(np.mean([mask is not None for mask in found])), 4),
        "cut": round(float(np.mean(cuts)) if cuts else 1.0, 4),
        "seam": round(float(np.mean([seam(picture, hole) for _, picture, hole in pairs])), 3),
        "true_seam": round(float(np.mean([seam(picture, hole) for picture, _, hole in pairs])), 3),
    }


def _questions(split: Split) -> tuple[NDArray[np.int64], list[Hole], list[str], list[str]]:
    """Numbers of scenes with things, a hole around one thing of each, what to draw there, and its kind."""
    rng = np.random.default_rng(3)
    numbers, holes, asked, kinds = [], [], [], []
    for number in range(min(_SCENES, len(split))):
        objects = visible_objects(split.classes[number], split.instances[number])
        if not objects:
            continue
        name, mask = objects[rng.integers(len(objects))]
        hole = around(mask, _MARGIN_PX)
        spec = sample_spec(scene_rng("validation", number))
        numbers.append(number)
        holes.append(hole)
        asked.append(request(spec, inside(hole, objects), rng))
        kinds.append(KINDS[name - FIRST_OBJECT_CLASS])
    return np.array(numbers), holes, asked, kinds


def _refill(generator: Path, packaged: Path, true: Pictures, holes: list[Hole], asked: list[str]) -> Pictures:
    """Draw within the holes as a worker with these folders does."""
    companions = {"inpaint": Weights(source=str(packaged))}
    known = Catalogue.load().get("toyworld")
    entry = known.model_copy(update={"source": str(generator), "sha256": {}, "companions": companions})
    threads = torch.get_num_threads()
    device = Device(name="cpu", kind="cpu", memory_bytes=1 << 30, dtype_name="float32", threads=threads)
    model = diffusion.load(entry, device)
    fields = dict(entry.defaults) | {"strength": 1.0, "count": 1}
    tasks = [
        Task(
            spec=JobSpec(
                id=str(seed),
                kind=Kind.EDIT,
                model=entry.id,
                tenant="t",
                input=fields | {"prompt": prompt, "seed": seed},
            ),
            images={"image": image, "mask": hole.astype(np.uint8)[..., None] * np.full(3, 255, np.uint8)},
        )
        for seed, (image, hole, prompt) in enumerate(zip(true, holes, asked, strict=True))
    ]
    outcomes = [
        outcome
        for start in range(0, len(tasks), _BATCH)
        for outcome in model.run(tasks[start : start + _BATCH], Nobody())
    ]
    model.close()
    return np.stack([_picture(outcome) for outcome in outcomes])


def _picture(outcome: Outcome | Exception) -> Pictures:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.pictures[0].pixels


def thing(classes: NDArray[np.uint8], hole: Hole, kind: str) -> Hole | None:
    """The largest piece of a kind in the hole, (H, W), or None where there is none."""
    found = [patch.mask & hole for patch in patches(classes, kind)]
    found = [mask for mask in found if mask.sum() * 2 > _EDGE_PX * 60]
    return max(found, key=np.count_nonzero) if found else None


def cut(mask: Hole, hole: Hole) -> float:
    """The share of a thing's outline at the edge of its hole, the edge of the picture not counted."""
    padded = cv2.copyMakeBorder(
        hole.astype(np.uint8), _EDGE_PX, _EDGE_PX, _EDGE_PX, _EDGE_PX, cv2.BORDER_REPLICATE
    )
    deep = cv2.erode(padded, np.ones((2 * _EDGE_PX + 1,) * 2, np.uint8))[
        _EDGE_PX:-_EDGE_PX, _EDGE_PX:-_EDGE_PX
    ].astype(bool)
    edge = outline(mask)
    return float((edge & ~deep).sum() / max(1, edge.sum()))


def seam(picture: Pictures, hole: Hole) -> float:
    """Mean step of the 8-bit values of neighbouring pixels across the edge of the hole."""
    values = picture.astype(np.float32)
    steps = [np.abs(np.diff(values, axis=axis)).mean(-1)[np.diff(hole, axis=axis)] for axis in (0, 1)]
    across = np.concatenate(steps)
    return float(across.mean()) if len(across) else 0.0


def write_sheet(path: Path, shown: list[tuple[Pictures, Pictures, Hole]]) -> None:
    """True scenes with their holes painted grey, and below each the refilled picture."""
    rows = []
    for start in range(0, len(shown), 6):
        some = shown[start : start + 6]
        holed = [np.where(hole[..., None], np.uint8(128), true) for true, _, hole in some]
        rows += [np.concatenate(holed, 1), np.concatenate([made for _, made, _ in some], 1)]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 85])
