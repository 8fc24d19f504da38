"""Teaches the shipped decoder to paint crisply, after its regression: an adversary looks at what it makes.

A decoder trained by differences alone paints the mean of what its 64-fold reduced code allows, which is soft.
Here a small patch critic (Isola et al., arXiv 1611.07004) also judges it, on true codes and on codes that the
generator itself drew, for which there is no true picture; the hinge loss is that of Lim and Ye (arXiv
1705.02894). The encoder is not touched, so the code and the U-Net stay as they are.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from training.autoencoder import choose_crop, cut, importance, picture_loss, psnr, to_tensor
from training.dataset import Split
from training.evaluate import GUIDANCE_SCALE
from training.loop import Metrics, Plan, Trainer, load_average
from training.world.grammar import FIRST_OBJECT_CLASS

FACTOR = 8
DRAWN_STEPS = 14
_CROP_PX = 64
_ADVERSARY_WEIGHT = 0.08
_RAMP = 0.15
"""Share of the budget over which the adversary's word comes to count."""
_VALIDATION = 64
_DRAW_BATCH = 24


class PatchCritic(nn.Module):
    """Says for each patch of about 40 px how real it looks; (n, 3, H, W) to (n, 1, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 96)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], (2, 2, 1, 1), strict=True):
            layers += [spectral_norm(nn.Conv2d(before, after, 4 if stride == 2 else 3, stride, 1))]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.layers(pictures)
        return scores


@torch.no_grad()
def draw_codes(pipeline: StableDiffusionPipeline, captions: list[str], path: Path) -> Tensor:
    """Latents (n, 4, 16, 16) that the generator draws for `captions`, as its decoder gets them.

    They are kept at `path`.
    """
    if not path.exists():
        codes = [
            pipeline(
                captions[start : start + _DRAW_BATCH],
                num_inference_steps=DRAWN_STEPS,
                guidance_scale=GUIDANCE_SCALE,
                output_type="latent",
            ).images
            for start in range(0, len(captions), _DRAW_BATCH)
        ]
        drawn = torch.cat(codes) / pipeline.vae.config.scaling_factor
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, drawn.numpy())
    return torch.from_numpy(np.load(path))


class Crispness:
    """The task: true codes give their pictures, drawn codes give pictures that look as true."""

    def __init__(
        self,
        vae: AutoencoderTiny,
        critic: PatchCritic,
        train: Split,
        validation: Split,
        drawn: Tensor,
        batch_size: int,
    ) -> None:
        self._vae, self._critic, self._train, self._drawn = vae, critic, train, drawn
        self._batch_size = batch_size
        self._rng = np.random.default_rng()
        self._true = to_tensor(validation.images[:_VALIDATION])
        self._objects = torch.from_numpy(validation.classes[:_VALIDATION] >= FIRST_OBJECT_CLASS)
        with torch.no_grad():
            self._code = vae.encode(self._true).latents

    def _true_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        images, classes, corners = [], [], []
        for index in self._rng.integers(len(self._train), size=self._batch_size):
            crop = choose_crop(self._train.classes[index], self._rng, _CROP_PX, FACTOR)
            flip = -1 if crop.mirrored else 1
            images.append(np.ascontiguousarray(self._train.images[index][:, ::flip]))
            classes.append(cut(self._train.classes[index], crop, _CROP_PX))
            corners.append((crop.top, crop.left))
        pictures = to_tensor(np.stack(images))
        with torch.no_grad():
            codes = self._vae.encode(pictures).latents
        true = torch.stack([_window(p, at, 1) for p, at in zip(pictures, corners, strict=True)])
        latents = torch.stack([_window(c, at, FACTOR) for c, at in zip(codes, corners, strict=True)])
        return true, latents, importance(np.stack(classes))

    def _drawn_batch(self) -> Tensor:
        picks = self._rng.integers(len(self._drawn), size=self._batch_size // 2)
        corners = self._rng.integers(0, (self._drawn.shape[-1] - _CROP_PX // FACTOR) + 1, (len(picks), 2))
        windows = [
            _window(self._drawn[pick], tuple(FACTOR * corner), FACTOR)
            for pick, corner in zip(picks.tolist(), corners, strict=True)
        ]
        return torch.stack(windows)

    def loss(self, fraction: float) -> Tensor:
        """One sum for both sides: each term reaches only the network it is meant for."""
        true, latents, weight = self._true_batch()
        inner = _inner(true)
        made = _inner(self._vae.decode(latents).sample)
        drawn = _inner(self._vae.decode(self._drawn_batch()).sample)
        fakes = torch.cat([made, drawn])
        frozen = {name: value.detach() for name, value in self._critic.named_parameters()}
        fooled = -functional_call(self._critic, frozen, fakes).mean()
        critic = (
            functional.relu(1 - self._critic(inner)).mean()
            + functional.relu(1 + self._critic(fakes.detach())).mean()
        )
        pull = _ADVERSARY_WEIGHT * min(1.0, fraction / _RAMP)
        loss: Tensor = picture_loss(made, inner, _inner(weight)) + pull * fooled + critic
        return loss

    def validate(self) -> Metrics:
        made = self._vae.decode(self._code).sample
        return {
            "psnr_db": psnr(made, self._true),
            "object_psnr_db": psnr(made, self._true, self._objects),
            "sharpness": sharpness(made) / sharpness(self._true),
        }


def sharpness(pictures: Tensor) -> float:
    """Mean absolute difference between neighbouring pixels."""
    across, down = pictures.diff(dim=-1).abs().mean(), pictures.diff(dim=-2).abs().mean()
    return float(across + down)


def _window(picture: Tensor, corner: tuple[int, int], reduction: int) -> Tensor:
    top, left, side = corner[0] // reduction, corner[1] // reduction, _CROP_PX // reduction
    return picture[:, top : top + side, left : left + side]


def _inner(crops: Tensor) -> Tensor:
    """The middle of crops: near their edges the decoder lacks what lies beyond."""
    return crops[..., FACTOR:-FACTOR, FACTOR:-FACTOR]


def train_crisp_decoder(
    folder: Path, data: Path, pipeline: StableDiffusionPipeline, plan: Plan, drawn: int = 720
) -> Metrics:
    """Train the decoder of `pipeline` into `folder`; the checkpoint holds ``decoder`` and ``critic``."""
    train = Split.open(data / "train")
    captions = [lines[0] for lines in train.captions[:drawn]]
    codes = draw_codes(pipeline, captions, folder / "drawn.npy")
    vae, critic = pipeline.vae, PatchCritic()
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    optimizers = [
        torch.optim.AdamW(vae.decoder.parameters(), 4e-4, betas=(0.5, 0.99), weight_decay=0),
        torch.optim.AdamW(critic.parameters(), 8e-4, betas=(0.5, 0.99), weight_decay=0),
    ]
    trainer = Trainer(folder, plan, {"decoder": vae.decoder, "critic": critic}, optimizers)
    task = Crispness(vae, critic, train, Split.open(data / "validation"), codes, plan.batch_size)
    return trainer.run(task.loss, task.validate)


def load_crisp_decoder(folder: Path, vae: AutoencoderTiny) -> None:
    """Put the averaged decoder of the run in `folder` into `vae`."""
    load_average(folder, {"decoder": vae.decoder})
