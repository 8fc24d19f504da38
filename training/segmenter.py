"""What is where: a small SegFormer for the drawn world, shipped, and judge of the generator."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from training.dataset import IMAGE_PX, Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.pool import Pool
from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

MODEL, SHARE, BATCH_SIZE = "toyworld-classes", 0.12, 8
CURVE = ("mean_iou", "object_iou", "pixels_right")
MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_LOGIT_STRIDE = 2
_VALIDATION, _SHEET = 96, 16
_EDGE_WEIGHT = 4.0
"""Nearly all that a trained segmenter gets wrong lies at edges."""
_SPOILT_SHARE, _SPOILT_SHARE_AT_LAST = 0.8, 0.5
_LAST_PHASE = 0.75
"""Share of the budget after which more pictures stay clean, so that edges settle where they are drawn."""

PAINTS = np.array(
    [
        (112, 160, 235),
        (96, 170, 70),
        (225, 190, 120),
        (235, 240, 250),
        (40, 90, 170),
        (130, 110, 130),
        (255, 230, 60),
        (250, 250, 200),
        (200, 60, 50),
        (20, 100, 40),
        (90, 200, 130),
        (240, 90, 180),
        (60, 60, 60),
        (150, 90, 40),
        (250, 140, 20),
    ],
    np.uint8,
)
"""The colour of each class on sheets."""


def build_segmenter() -> SegformerForSemanticSegmentation:
    """A SegFormer whose logits come at half the picture's sides, fine enough for clean masks at 128 px."""
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 2, 2],
        sr_ratios=[8, 4, 2, 1],
        hidden_sizes=[16, 32, 64, 128],
        patch_sizes=[5, 3, 3, 3],
        strides=[_LOGIT_STRIDE, 2, 2, 2],
        num_attention_heads=[1, 2, 4, 8],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=64,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    return SegformerForSemanticSegmentation(config)


def pixel_values(images: NDArray[np.uint8]) -> Tensor:
    """(n, H, W, 3) uint8 to the model's (n, 3, H, W) float32."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def full_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(n, classes, h, w) logits at the picture's `size` (H, W), as the library's processor scales them."""
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def spoil(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, speckle, tint or compress a picture, as generators, scalers and JPEG do."""
    if rng.random() < 0.25:
        side = int(rng.integers(48, 112))
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6))).astype(np.uint8)
    if rng.random() < 0.4:
        gain = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.85, 1.15)
        noise = rng.normal(0, rng.uniform(0, 14), image.shape)
        image = np.clip(image * gain + noise + rng.uniform(-12, 12), 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(25, 85)))
        image = np.asarray(Image.open(buffer))
    return image


def confusion(read: NDArray[np.integer], true: NDArray[np.integer]) -> NDArray[np.int64]:
    """Counts of (true, read) class pairs, (classes, classes)."""
    pairs = true.astype(np.int64).ravel() * len(CLASSES) + read.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def intersection_over_union(counts: NDArray[np.int64]) -> dict[str, float]:
    """IoU of each class that occurs."""
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    return {name: float(hits[k] / union[k]) for k, name in enumerate(CLASSES) if union[k]}


def edge_weights(labels: Tensor) -> Tensor:
    """(n, H, W) float32: `_EDGE_WEIGHT` where another class is within a pixel, 1 elsewhere."""
    values = labels[:, None].float()
    highest = functional.max_pool2d(values, 3, stride=1, padding=1)
    lowest = -functional.max_pool2d(-values, 3, stride=1, padding=1)
    return torch.where(highest != lowest, _EDGE_WEIGHT, 1.0)[:, 0]


class Labelling:
    """The segmenter's task: the class of every pixel, from spoilt pictures."""

    def __init__(
        self, model: SegformerForSemanticSegmentation, train: list[Split], validation: Split, batch_size: int
    ) -> None:
        self._model, self._validation, self._batch_size = model, validation, batch_size
        self._rng = np.random.default_rng()
        self._pool = Pool(train, self._rng)

    def loss(self, fraction: float) -> Tensor:
        spoilt_share = _SPOILT_SHARE if fraction < _LAST_PHASE else _SPOILT_SHARE_AT_LAST
        images, labels = [], []
        for split, index in self._pool.draw(self._batch_size):
            flip = 1 if self._rng.random() < 0.5 else -1
            image = np.ascontiguousarray(split.images[index][:, ::flip])
            images.append(spoil(image, self._rng) if self._rng.random() < spoilt_share else image)
            labels.append(split.classes[index][:, ::flip])
        target = torch.from_numpy(np.stack(labels)).long()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._model(pixel_values(np.stack(images))).logits  # (n, classes, H/2, W/2)
        losses = functional.cross_entropy(
            full_size(logits.float(), target.shape[1:]), target, reduction="none"
        )
        weights = edge_weights(target)
        return (losses * weights).sum() / weights.sum()

    def validate(self) -> Metrics:
        counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        for start in range(0, min(_VALIDATION, len(self._validation)), 32):
            read = classify(self._model, self._validation.images[start : start + 32])
            counts += confusion(read, self._validation.classes[start : start + 32])
        scores = intersection_over_union(counts)
        objects = [scores[name] for name in CLASSES[FIRST_OBJECT_CLASS:] if name in scores]
        return {
            "mean_iou": float(np.mean(list(scores.values()))),
            "object_iou": float(np.mean(objects)),
            "pixels_right": float(np.diag(counts).sum() / counts.sum()),
        }


@torch.no_grad()
def classify(model: SegformerForSemanticSegmentation, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class ids, (n, H, W), of (n, H, W, 3) uint8 pictures."""
    logits = model(pixel_values(images)).logits
    return full_size(logits, images.shape[1:3]).argmax(1).numpy().astype(np.uint8)


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``segmenter`` and its batch-norm statistics."""
    torch.manual_seed(0)
    model = build_segmenter()
    matrices, others = split_parameters(model, excluded=("classifier",))
    optimizers = [
        Muon(matrices, lr=3e-3),
        torch.optim.AdamW(others, 2e-3, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    trainer = Trainer(folder, plan, {"segmenter": model}, optimizers)
    train = [Split.open(data / "train"), Split.open(data / "held-out")]
    task = Labelling(model, train, Split.open(data / "validation"), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def package(run: Path, folder: Path) -> None:
    """Save the segmenter of `run` to `folder` in fp16, with the processor that scales pictures for it."""
    load_segmenter(run).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    processor = SegformerImageProcessorPil(size=side, image_mean=list(MEAN), image_std=list(DEVIATION))
    processor.save_pretrained(folder)


def score(packaged: Path, data: Path) -> dict[str, Any]:
    """IoU over the validation scenes, and over the same scenes spoilt; a sheet of masks."""
    model = SegformerForSemanticSegmentation.from_pretrained(packaged, dtype=torch.float32).eval()
    split = Split.open(data / "validation")
    clean, spoilt = (np.zeros((len(CLASSES), len(CLASSES)), np.int64) for _ in range(2))
    for start in range(0, len(split), 32):
        images, true = split.images[start : start + 32], split.classes[start : start + 32]
        rng = np.random.default_rng(start)
        clean += confusion(classify(model, images), true)
        spoilt += confusion(classify(model, np.stack([spoil(image, rng) for image in images])), true)
    _write_sheet(model, split, packaged / "examples.webp")
    scores = intersection_over_union(clean)
    return {
        "scenes": len(split),
        "mean_iou": round(float(np.mean(list(scores.values()))), 4),
        "mean_iou_spoilt": round(float(np.mean(list(intersection_over_union(spoilt).values()))), 4),
        "pixels_right": round(float(np.diag(clean).sum() / clean.sum()), 4),
        "iou": {name: round(value, 4) for name, value in scores.items()},
    }


def _write_sheet(model: SegformerForSemanticSegmentation, split: Split, path: Path) -> None:
    images = split.images[:_SHEET]
    pairs = np.concatenate([images, PAINTS[classify(model, images)]], axis=2)
    rows = [np.concatenate(pairs[start : start + 4], axis=1) for start in range(0, len(pairs), 4)]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 80])


def facts(scores: dict[str, Any]) -> dict[str, object]:
    """What the card says of the scores."""
    worst = sorted(scores["iou"].items(), key=lambda item: item[1])[:3]
    return {
        "classes": len(CLASSES),
        "names": ", ".join(CLASSES),
        "validation": scores["scenes"],
        "mean_iou": scores["mean_iou"],
        "mean_iou_spoilt": scores["mean_iou_spoilt"],
        "worst": "worst " + ", ".join(f"{name} {value:.2f}" for name, value in worst),
    }


def load_segmenter(folder: Path) -> SegformerForSemanticSegmentation:
    """The averaged segmenter of the run in `folder`."""
    model = build_segmenter()
    load_average(folder, {"segmenter": model})
    return model.eval()
