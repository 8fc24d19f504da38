"""An auto-encoder that shares the small one's code but speaks 128 px, at no cost to the U-Net.

Its decoder paints 128 px pictures from the 16x16x4 latents of 64 px ones; its encoder learns to give those
latents from 128 px. As the pipeline's VAE it makes every U-Net step worth four times the pixels.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from training.autoencoder import (
    WIDTH,
    Crop,
    choose_crop,
    cut,
    half,
    importance,
    load_autoencoder,
    picture_loss,
    psnr,
    to_tensor,
)
from training.dataset import IMAGE_PX, Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.world.grammar import FIRST_OBJECT_CLASS

FACTOR = 8
_CROP_PX = 64
_MARGIN_PX = 10
"""Within this of an inner edge a crop lacks context; a loss there teaches pale borders."""
_LATENT_NOISE = 0.05
_ENCODER_EVERY = 3
_VALIDATION = 64
_FROM_SMALL = {0: 0, 2: 2, 3: 3, 6: 5, 7: 6, 10: 8, 11: 9, 15: 10}
"""Decoder layers that start as a layer of the small decoder; the others start as (nearly) nothing."""
_IDENTITY_BLOCKS = (4, 8, 14)
_IDENTITY_CONVOLUTION = 13


def build_large_autoencoder() -> AutoencoderTiny:
    """An f8 AutoencoderTiny of 0.36 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 1, 2),
        num_decoder_blocks=(3, 2, 1, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )


@torch.no_grad()
def start_from_small(large: AutoencoderTiny, small: AutoencoderTiny) -> None:
    """Make the large decoder give what the small one gives, its pixels doubled."""
    layers, small_layers = large.decoder.layers, small.decoder.layers
    for to, source in _FROM_SMALL.items():
        layers[to].load_state_dict(small_layers[source].state_dict())
    for index in _IDENTITY_BLOCKS:
        for parameter in layers[index].conv[-1].parameters():
            parameter.mul_(0.05)
    nn.init.dirac_(layers[_IDENTITY_CONVOLUTION].weight)


def edge_mask(crop: Crop) -> Tensor:
    """Loss weight (1, side, side): 0 near the crop's edges that are not the picture's."""
    mask = torch.ones(1, _CROP_PX, _CROP_PX)
    if crop.top > 0:
        mask[:, :_MARGIN_PX] = 0
    if crop.left > 0:
        mask[:, :, :_MARGIN_PX] = 0
    if crop.top + _CROP_PX < IMAGE_PX:
        mask[:, -_MARGIN_PX:] = 0
    if crop.left + _CROP_PX < IMAGE_PX:
        mask[:, :, -_MARGIN_PX:] = 0
    return mask


class Enlargement:
    """The task: paint 128 px crops from the small code, and give the small code from them."""

    def __init__(
        self, model: AutoencoderTiny, small: AutoencoderTiny, train: Split, validation: Split, batch_size: int
    ) -> None:
        self._model, self._small, self._train, self._batch_size = model, small, train, batch_size
        self._rng = np.random.default_rng()
        self._steps = 0
        self._true = to_tensor(validation.images[:_VALIDATION])
        self._objects = torch.from_numpy(validation.classes[:_VALIDATION] >= FIRST_OBJECT_CLASS)
        self._code = self._encode_small(self._true)

    @torch.no_grad()
    def _encode_small(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self._small.encode(half(pictures)).latents
        return latents

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        images, classes, crops = [], [], []
        for index in self._rng.integers(len(self._train), size=self._batch_size):
            crop = choose_crop(self._train.classes[index], self._rng, _CROP_PX, FACTOR)
            whole = Crop(top=0, left=0, mirrored=crop.mirrored)
            images.append(cut(self._train.images[index], whole, IMAGE_PX))
            classes.append(cut(self._train.classes[index], crop, _CROP_PX))
            crops.append(crop)
        pictures = to_tensor(np.stack(images))
        code = self._encode_small(pictures)
        true = torch.stack([_part(picture, crop, 1) for picture, crop in zip(pictures, crops, strict=True)])
        latents = torch.stack([_part(latent, crop, FACTOR) for latent, crop in zip(code, crops, strict=True)])
        weight = importance(np.stack(classes)) * torch.stack([edge_mask(crop) for crop in crops])
        return true.contiguous(memory_format=torch.channels_last), latents, weight

    def loss(self, fraction: float) -> Tensor:
        true, latents, weight = self._batch()
        made = self._model.decode(latents + _LATENT_NOISE * torch.randn_like(latents)).sample
        loss = picture_loss(made, true, weight)
        self._steps += 1
        if self._steps % _ENCODER_EVERY == 0:
            inner = np.s_[:, :, 1:-1, 1:-1]
            loss = loss + 2 * functional.mse_loss(self._model.encode(true).latents[inner], latents[inner])
        return loss

    def validate(self) -> Metrics:
        made = self._model.decode(self._code).sample
        return {
            "psnr_db": psnr(made, self._true),
            "object_psnr_db": psnr(made, self._true, self._objects),
            "code_error": float(functional.mse_loss(self._model.encode(self._true).latents, self._code)),
        }


def _part(picture: Tensor, crop: Crop, reduction: int) -> Tensor:
    top, left, side = crop.top // reduction, crop.left // reduction, _CROP_PX // reduction
    return picture[:, top : top + side, left : left + side]


def train_large_decoder(folder: Path, data: Path, small_folder: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``autoencoder``."""
    small = load_autoencoder(small_folder)
    model = build_large_autoencoder()
    start_from_small(model, small)
    model = model.to(memory_format=torch.channels_last)
    matrices, others = split_parameters(model)
    optimizers = [Muon(matrices, lr=2e-3), torch.optim.AdamW(others, 2e-3, betas=(0.9, 0.98))]
    trainer = Trainer(folder, plan, {"autoencoder": model}, optimizers)
    task = Enlargement(
        model, small, Split.open(data / "train"), Split.open(data / "validation"), plan.batch_size
    )
    return trainer.run(task.loss, task.validate)


def load_large_autoencoder(folder: Path) -> AutoencoderTiny:
    """The averaged large auto-encoder of the run in `folder`, frozen."""
    model = build_large_autoencoder()
    load_average(folder, {"autoencoder": model})
    return model.eval().requires_grad_(False)
