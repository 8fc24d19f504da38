"""The picture code of every scene: what the models that paint from noise learn instead of pixels.

Latents, (4, 16, 16) a scene, of the auto-encoder that speaks 128 px. It stands beside them in the same
folder, as it ships with each of those models.
"""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray

from training.autoencoder import to_tensor
from training.borders import teach_borders
from training.dataset import Split, write_json
from training.large_decoder import load_large_autoencoder

SHAPE = (4, 16, 16)
FOLDER = "scene-latents"
_ENCODED_TOGETHER = 50


def load_code(runs: Path) -> AutoencoderTiny:
    """The auto-encoder that gave the latents under `runs`, frozen."""
    code = AutoencoderTiny.from_pretrained(runs / FOLDER, torch_dtype=torch.float32)
    return code.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _make_code(runs: Path, data: Path) -> None:
    """Make it of the auto-encoder trained under `runs`, or of the generator's shipped one where none was."""
    code = _trained_or_shipped(runs)
    teach_borders(code, Split.open(data / "train"))
    save_code(code, runs / FOLDER)


def save_code(code: AutoencoderTiny, folder: Path) -> None:
    """Save an `AutoencoderTiny` without the entry of its configuration that diffusers warns of on reading."""
    code.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("block_out_channels", None)
    write_json(folder / "config.json", config)


def decoder_alone(code: AutoencoderTiny) -> AutoencoderTiny:
    """The same decoder beside an encoder of hardly anything: for folders that only ever paint."""
    config = dict(code.config) | {"encoder_block_out_channels": (1,) * 4, "num_encoder_blocks": (0,) * 4}
    bare = AutoencoderTiny.from_config(config)
    bare.decoder.load_state_dict(code.decoder.state_dict())
    return bare.eval().requires_grad_(False)


def _trained_or_shipped(runs: Path) -> AutoencoderTiny:
    trained = runs / "large-decoder"
    if (trained / "state.json").exists():
        return load_large_autoencoder(trained)
    shipped = resources.files("pixelkiln_worker") / "embedded" / "toyworld" / "vae"
    return AutoencoderTiny.from_pretrained(str(shipped), torch_dtype=torch.float32)


def scene_latents(runs: Path, data: Path, split: str) -> NDArray[np.float16]:
    """The latents of a split, (n, 4, 16, 16), of about unit deviation; encoded once."""
    path = runs / FOLDER / f"{split}.npy"
    if not (runs / FOLDER / "config.json").exists():
        _make_code(runs, data)
    if not path.exists():
        encode_split(load_code(runs), Split.open(data / split), path)
    latents: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return latents


@torch.no_grad()
def encode_split(code: AutoencoderTiny, split: Split, path: Path) -> None:
    """Encode a split to `path`, as a whole or not at all."""
    partial = path.with_suffix(".partial.npy")
    latents = np.lib.format.open_memmap(partial, "w+", np.float16, (len(split), *SHAPE))
    scale = code.config["scaling_factor"]
    for start in range(0, len(split), _ENCODED_TOGETHER):
        pictures = to_tensor(split.images[start : start + _ENCODED_TOGETHER])
        with torch.autocast("cpu", torch.bfloat16):  # five times faster, and fp16 is kept anyway
            made = code.encode(pictures).latents * scale
        latents[start : start + _ENCODED_TOGETHER] = made.float().numpy()
    latents.flush()
    partial.rename(path)
