"""The picture code: 64 px pictures as 16x16x4 latents, by an auto-encoder that reduces them fourfold."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.dataset import Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

CODE_PX = 64
"""Side of the pictures the code is learnt on: half the data's, so that 32 px crops hold a whole object."""
WIDTH = 32
CROP_PX = 32
_OBJECT_WEIGHT = 5.0
_LATENT_NOISE = 0.03
_TEACHER_WEIGHT, _TEACHER_HOLD, _TEACHER_END = 6.0, 0.15, 0.35
_VALIDATION = 128


def build_autoencoder() -> AutoencoderTiny:
    """An f4 AutoencoderTiny of 0.24 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(n, H, W, 3) uint8 to (n, 3, H, W) float32 in [-1, 1], channels last."""
    tensor = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def half(pictures: Tensor) -> Tensor:
    """Halve the sides of (n, c, H, W) pictures by averaging."""
    return functional.avg_pool2d(pictures, 2).contiguous(memory_format=torch.channels_last)


def importance(classes: NDArray[np.uint8], weight: float = _OBJECT_WEIGHT) -> Tensor:
    """Loss weights, (n, 1, H, W): higher on and around objects, sun and moon, or sky would be all."""
    small = torch.from_numpy(classes >= FIRST_OBJECT_CLASS) | torch.from_numpy(
        classes == CLASSES.index("moon")
    )
    small |= torch.from_numpy(classes == CLASSES.index("sun"))
    return 1 + weight * functional.max_pool2d(small.float()[:, None], 3, 1, 1)


def picture_loss(made: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1, squared error and L1 of the differences between neighbours, which keeps edges sharp."""
    error = made - true
    across = (error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]
    down = (error[:, :, 1:] - error[:, :, :-1]).abs() * weight[:, :, 1:]
    return (
        (error.abs() * weight).mean() + 0.5 * (error.square() * weight).mean() + across.mean() + down.mean()
    )


def psnr(made: Tensor, true: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio, in dB, of pictures in [-1, 1]; within a (n, H, W) `mask` if given."""
    error = ((made.clamp(-1, 1) - true) / 2).square().mean(1)
    return -10 * math.log10(float((error if mask is None else error[mask]).mean()))


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Where a square crop begins, in pixels of the 128 px picture, and whether it is mirrored first."""

    top: int
    left: int
    mirrored: bool


def choose_crop(classes: NDArray[np.uint8], rng: np.random.Generator, side_px: int, step_px: int) -> Crop:
    """A crop of `side_px` whose corner is a multiple of `step_px`; three in four hold part of an object."""
    mirrored = bool(rng.random() < 0.5)
    room = classes.shape[0] - side_px
    rows, columns = np.nonzero(classes[::4, ::4] >= FIRST_OBJECT_CLASS)
    if len(rows) and rng.random() < 0.75:
        pick = rng.integers(len(rows))
        column = classes.shape[1] - 1 - 4 * columns[pick] if mirrored else 4 * columns[pick]
        corner = np.clip([4 * rows[pick] - rng.integers(side_px), column - rng.integers(side_px)], 0, room)
    else:
        corner = rng.integers(0, room + 1, 2)
    top, left = (int(value) // step_px * step_px for value in corner)
    return Crop(top=top, left=left, mirrored=mirrored)


def cut(image: NDArray[np.uint8], crop: Crop, side_px: int) -> NDArray[np.uint8]:
    """The crop of an (H, W, ...) array."""
    seen = image[:, ::-1] if crop.mirrored else image
    return seen[crop.top : crop.top + side_px, crop.left : crop.left + side_px]


def teacher_kernel(split: Split) -> Tensor:
    """A fixed linear code, (4, 3, 4, 4): mean colour, and the main pattern of objects about their mean.

    Pulling the young latents towards it gives them colour at once, which costs minutes to find otherwise.
    """
    pictures = half(to_tensor(split.images[:400]))
    patches = functional.unfold(pictures, 4, stride=4).reshape(len(pictures), 3, 16, -1)
    residual = (patches - patches.mean(2, keepdim=True)).permute(0, 3, 1, 2)
    on_objects = torch.from_numpy(split.cells[:400] >= FIRST_OBJECT_CLASS).flatten(1)
    samples = residual[on_objects].reshape(-1, 48)[::3]
    pattern = torch.linalg.svd(samples.T @ samples)[0][:, 0].reshape(1, 3, 4, 4)
    pattern = pattern * 0.6 / functional.conv2d(pictures, pattern, stride=4).std()
    mean_colour = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16 * 1.6
    return torch.cat([mean_colour, pattern])


class Reconstruction:
    """The auto-encoder's task: give back crops of pictures."""

    def __init__(self, model: AutoencoderTiny, train: Split, validation: Split, batch_size: int) -> None:
        self._model, self._train, self._batch_size = model, train, batch_size
        self._rng = np.random.default_rng()
        self._teacher = teacher_kernel(train)
        self._true = half(to_tensor(validation.images[:_VALIDATION]))
        self._objects = torch.from_numpy(validation.classes[:_VALIDATION, ::2, ::2] >= FIRST_OBJECT_CLASS)

    def _batch(self) -> tuple[Tensor, Tensor]:
        images, classes = [], []
        for index in self._rng.integers(len(self._train), size=self._batch_size):
            labels = self._train.classes[index]
            crop = choose_crop(labels, self._rng, 2 * CROP_PX, 2)
            images.append(cut(self._train.images[index], crop, 2 * CROP_PX))
            classes.append(cut(labels, crop, 2 * CROP_PX)[::2, ::2])
        return half(to_tensor(np.stack(images))), importance(np.stack(classes))

    def loss(self, fraction: float) -> Tensor:
        true, weight = self._batch()
        latents = self._model.encode(true).latents
        made = self._model.decode(latents + _LATENT_NOISE * torch.randn_like(latents)).sample
        loss: Tensor = (
            picture_loss(made, true, weight) + 1e-3 * (latents.abs() - 1.8).clamp(min=0).square().mean()
        )
        if fraction < _TEACHER_END:
            pull = min(1.0, (_TEACHER_END - fraction) / (_TEACHER_END - _TEACHER_HOLD))
            loss = loss + _TEACHER_WEIGHT * pull * functional.mse_loss(
                latents, functional.conv2d(true, self._teacher, stride=4)
            )
        return loss

    def validate(self) -> Metrics:
        latents = self._model.encode(self._true).latents
        made = self._model.decode(latents).sample
        return {
            "psnr_db": psnr(made, self._true),
            "object_psnr_db": psnr(made, self._true, self._objects),
            "latent_std": float(latents.std()),
        }


def train_autoencoder(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train the f4 auto-encoder into `folder`; the checkpoint holds ``autoencoder``."""
    torch.manual_seed(0)
    model = build_autoencoder().to(memory_format=torch.channels_last)
    matrices, others = split_parameters(model)
    optimizers = [
        Muon(matrices, lr=4e-3),
        torch.optim.AdamW(others, 2e-3, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    trainer = Trainer(folder, plan, {"autoencoder": model}, optimizers)
    task = Reconstruction(model, Split.open(data / "train"), Split.open(data / "validation"), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def load_autoencoder(folder: Path) -> AutoencoderTiny:
    """The averaged auto-encoder of the run in `folder`, frozen."""
    model = build_autoencoder().to(memory_format=torch.channels_last)
    load_average(folder, {"autoencoder": model})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def cache_latents(model: AutoencoderTiny, split: Split, path: Path, batch_size: int = 100) -> float:
    """Encode `split` to ``path`` as (n, 4, 16, 16) float16 of unit deviation; returns the scale used."""
    sample = model.encode(half(to_tensor(split.images[:500]))).latents
    scale = 1 / float(sample.std())
    latents = np.lib.format.open_memmap(path, "w+", np.float16, (len(split), *sample.shape[1:]))
    for start in range(0, len(split), batch_size):
        pictures = half(to_tensor(split.images[start : start + batch_size]))
        latents[start : start + batch_size] = (model.encode(pictures).latents * scale).numpy()
    latents.flush()
    return scale
