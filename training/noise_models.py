"""What the two models that paint from noise share: their folder, their scores, their sheet."""

import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, ModelMixin
from numpy.typing import NDArray
from transformers import SegformerForSemanticSegmentation

from pixelkiln_shared.catalogue import Limits, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.device import Device
from pixelkiln_worker.families import samplers
from pixelkiln_worker.families.contract import Nobody, Outcome, Task
from pixelkiln_worker.families.noise_nets import CodePrior
from training.dataset import IMAGE_PX, Split, write_json
from training.judge import patches
from training.scene_latents import save_code
from training.segmenter import classify
from training.world.grammar import CLASSES, KINDS

Pictures = NDArray[np.uint8]

_PICTURES = 512
_BACKDROP_SHARE = 0.05
"""Least part of a picture that counts as its sky, or its ground."""
_GROUND = ("grass", "sand", "snow", "water")
_PAIRS = 4_000
_WALK, _WALKS, _COLUMNS, _SAMPLES = 8, 3, 8, 32
_DEVICE = Device(name="cpu", kind="cpu", memory_bytes=1 << 30, dtype_name="float32", threads=1)


def package_sampler(folder: Path, prior: CodePrior, painter: ModelMixin, code: AutoencoderTiny) -> None:
    """Save the networks to `folder` in fp16, as the worker's `samplers` family opens them."""
    parts: dict[str, Any] = {"prior": prior, "painter": painter, "vae": code}
    index: dict[str, Any] = {"_class_name": samplers.PIPELINE}
    for name, part in parts.items():
        save = save_code if isinstance(part, AutoencoderTiny) else type(part).save_pretrained
        save(part.to(torch.float16), folder / name)
        library = "pixelkiln_worker" if type(part).__module__.startswith("pixelkiln_worker") else "diffusers"
        index[name] = [library, type(part).__name__]
    write_json(folder / "model_index.json", index)


def open_sampler(folder: Path) -> samplers.Sampler:
    """The packaged model as a worker on a CPU loads it."""
    entry = ModelEntry(
        id=folder.name,
        family="samplers",
        kinds=(Kind.GENERATE,),
        title=folder.name,
        source=str(folder),
        options={"interpolate": (True, False), "truncation": (0.7, 1.0)},
        limits=Limits(max_batch=8),
    )
    return samplers.load(entry, _DEVICE)


def draw(model: samplers.Sampler, count: int, seed: int = 0, **options: bool | float) -> Pictures:
    """`count` pictures, (count, 128, 128, 3), of the seeds from `seed` on."""
    fields = {"seed": seed, "count": count, "width": IMAGE_PX, "height": IMAGE_PX, "options": options}
    spec = JobSpec(id="job", kind=Kind.GENERATE, model="sampler", tenant="training", input=fields)
    outcome = model.run([Task(spec=spec)], Nobody())[0]
    assert isinstance(outcome, Outcome), outcome
    return np.stack([picture.pixels for picture in outcome.pictures])


def score_sampler(packaged: Path, data: Path) -> dict[str, Any]:
    """Compare pictures from noise with as many validation scenes; a sheet goes to `packaged`.

    The shipped segmenter reads both. See the card for what each number is.
    """
    model = open_sampler(packaged)
    split = Split.open(data / "validation")
    true = np.asarray(split.images[:_PICTURES])
    started = time.monotonic()
    made = draw(model, len(true))
    seconds = time.monotonic() - started
    shipped = resources.files("pixelkiln_worker") / "embedded" / "toyworld-classes"
    segmenter = SegformerForSemanticSegmentation.from_pretrained(str(shipped), dtype=torch.float32).eval()
    labels, true_labels = (_read(segmenter, pictures) for pictures in (made, true))
    write_sheet(model, packaged / "examples.webp")
    half = len(true) // 2
    return {
        "pictures": len(made),
        "trained_on": json.loads((data / "train" / "split.json").read_text())["count"],
        "seconds_per_picture": round(seconds / len(made), 4),
        "whole_scenes": _scene_share(labels),
        "true_whole_scenes": _scene_share(true_labels),
        "objects": _mean_objects(labels),
        "true_objects": _mean_objects(true_labels),
        "class_distance": _class_distance(labels, true_labels),
        "true_class_distance": _class_distance(true_labels[:half], true_labels[half:]),
        "variety": round(_variety(made) / _variety(true), 4),
        "sharpness": round(_sharpness(made) / _sharpness(true), 4),
    }


def sampler_facts(scores: dict[str, Any]) -> dict[str, object]:
    """What a card says of the scores."""
    return {**scores, "milliseconds": 1_000 * scores["seconds_per_picture"]}


def write_sheet(model: samplers.Sampler, path: Path) -> None:
    """Write the pictures of the first seeds, and below them walks between two seeds, as one image file."""
    tiles = [*draw(model, _SAMPLES)]
    for walk in range(_WALKS):
        tiles += [*draw(model, _WALK, seed=1_000 + 10 * walk, interpolate=True)]
    rows = [np.concatenate(tiles[start : start + _COLUMNS], 1) for start in range(0, len(tiles), _COLUMNS)]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 80])


def _read(segmenter: SegformerForSemanticSegmentation, pictures: Pictures) -> NDArray[np.uint8]:
    return np.concatenate(
        [classify(segmenter, pictures[start : start + 32]) for start in range(0, len(pictures), 32)]
    )


def _scene_share(labels: NDArray[np.uint8]) -> float:
    """Share of class maps with sky, ground and at least one object."""
    whole = []
    for label in labels:
        share = np.bincount(label.ravel(), minlength=len(CLASSES)) / label.size
        ground = sum(share[CLASSES.index(name)] for name in _GROUND)
        backdrop = share[CLASSES.index("sky")] >= _BACKDROP_SHARE and ground >= _BACKDROP_SHARE
        whole.append(backdrop and any(patches(label, kind) for kind in KINDS))
    return round(float(np.mean(whole)), 4)


def _mean_objects(labels: NDArray[np.uint8]) -> float:
    return round(float(np.mean([sum(len(patches(label, kind)) for kind in KINDS) for label in labels])), 3)


def _class_distance(labels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Total variation, 0 to 1, between the classes of all pixels of one set and of the other."""
    shares = [np.bincount(some.ravel(), minlength=len(CLASSES)) / some.size for some in (labels, others)]
    return round(float(np.abs(shares[0] - shares[1]).sum() / 2), 4)


def _variety(pictures: Pictures) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    rng = np.random.default_rng(0)
    first = rng.integers(len(pictures), size=_PAIRS)
    second = (first + rng.integers(1, len(pictures), size=_PAIRS)) % len(pictures)
    small = pictures[:, ::4, ::4].astype(np.float32)
    return float(np.mean([np.abs(small[a] - small[b]).mean() for a, b in zip(first, second, strict=True)]))


def _sharpness(pictures: Pictures) -> float:
    """Mean absolute difference of neighbouring pixels, in grey levels."""
    values = pictures.astype(np.int16)
    return float(np.abs(np.diff(values, axis=1)).mean() + np.abs(np.diff(values, axis=2)).mean())
