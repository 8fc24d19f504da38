"""Teaches the encoder of the 128 px code what the borders of pictures are: it was trained on crops.

Only editing reads pictures as latents; without this, what it reads has dark frames.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from training.autoencoder import importance, picture_loss, to_tensor
from training.dataset import Split
from training.muon import Muon, split_parameters

_STEPS, _BATCH, _RATE, _WARMUP = 300, 6, 1e-3, 20
_LATENT_NOISE, _LARGEST_LATENT = 0.05, 2.5
_FILE = "encoder.safetensors"


def teach_borders(code: AutoencoderTiny, split: Split) -> None:
    """Train the encoder on whole pictures, the decoder staying as it is: one minute, at most one pass.

    It has learnt from crops, without the cells at their edges, and so gives dark frames: 20 dB there against
    27 within. Afterwards it is 29 and 28.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    code = code.to(memory_format=torch.channels_last).requires_grad_(False)
    code.encoder.requires_grad_(True)
    matrices, others = split_parameters(code.encoder)
    optimizers = [Muon(matrices, lr=_RATE), torch.optim.AdamW(others, _RATE, (0.9, 0.98))]
    steps = min(_STEPS, len(split) // _BATCH)
    for step in range(steps):
        for optimizer in optimizers:
            factor = min(1.0, (step + 1) / _WARMUP) * (1 - step / steps)
            optimizer.param_groups[0]["lr"] = _RATE * factor
            optimizer.zero_grad()
        chosen = np.sort(rng.integers(len(split), size=_BATCH))
        pictures, weight = to_tensor(split.images[chosen]), importance(split.classes[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            latents = code.encode(pictures).latents
            made = code.decode(latents + _LATENT_NOISE * torch.randn_like(latents)).sample
        loss = picture_loss(made.float(), pictures, weight)
        loss = loss + 1e-2 * (latents.float().abs() - _LARGEST_LATENT).clamp(min=0).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def train_borders(folder: Path, data: Path, vae: AutoencoderTiny) -> None:
    """Teach the encoder of `vae` its borders and keep it in `folder`."""
    teach_borders(vae, Split.open(data / "train"))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in vae.encoder.state_dict().items()}
    save_file(tensors, folder / _FILE)


def load_encoder(folder: Path, vae: AutoencoderTiny) -> bool:
    """Put the encoder kept in `folder` into `vae`; says whether there was one."""
    path = folder / _FILE
    if path.exists():
        vae.encoder.load_state_dict(load_file(path))
    return path.exists()
