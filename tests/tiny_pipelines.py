"""More folders of diffusers with random weights: inpainting networks, upscalers, noise to picture, LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.numpy import load_file, save_file

from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families.contract import Pixels, Task
from tests import tiny_models
from tests.tiny_models import SIDE_PX, Steps


class Looks(Steps):
    """A watch that wants a preview of some tasks at every step."""

    def __init__(self, due: Sequence[int]) -> None:
        super().__init__()
        self.previews: list[tuple[int, Pixels]] = []
        self._due = due

    def previews_due(self) -> Sequence[int]:
        return self._due

    def preview(self, index: int, pixels: Pixels) -> None:
        assert index in self._due, "nobody asked for this preview"
        self.previews.append((index, pixels))


def scene(height: int = 48, width: int = 40) -> Pixels:
    """A picture with structure in every channel, HWC."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [5 * rows, 6 * columns, 128 + 100 * np.sin((rows + columns) / 5)]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def mask_picture(height: int = 48, width: int = 40, value: int = 255) -> Pixels:
    """A mask as users draw it: black, with a rectangle in the middle."""
    mask = np.zeros((height, width, 3), np.uint8)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = value
    return mask


def edit_task(prompt: str | None = "a red house", seed: int = 7, **fields: Any) -> Task:
    """A job of image-to-image, or of inpainting where `mask` is given."""
    images = {"image": fields.pop("image", scene())}
    if (mask := fields.pop("mask", None)) is not None:
        images["mask"] = mask
    known = {
        "width": SIDE_PX,
        "height": SIDE_PX,
        "steps": 4,
        "guidance": 3.0,
        "strength": 0.75,
        "negative_prompt": "",
        "count": 1,
    }
    values = known | {"prompt": prompt, "seed": seed} | fields
    spec = JobSpec(id=f"job-{seed}", kind=Kind.EDIT, model="tiny", tenant="t", input=values)
    return Task(spec=spec, images=images)


def upscale_task(image: Pixels | None = None, seed: int = 7, **fields: Any) -> Task:
    known = {
        "prompt": None,
        "negative_prompt": "",
        "seed": seed,
        "steps": 2,
        "guidance": 3.0,
        "scale": None,
    }
    spec = JobSpec(id=f"job-{seed}", kind=Kind.UPSCALE, model="tiny", tenant="t", input=known | fields)
    return Task(spec=spec, images={"image": scene(16, 12) if image is None else image})


def inpainting_network(folder: Path) -> Path:
    """Save a pipeline whose U-Net reads the mask: nine channels."""
    return tiny_models.stable_diffusion(folder, StableDiffusionInpaintPipeline, channels=9)


def upscaler(folder: Path) -> Path:
    """Save a pipeline of the shape of Stable Diffusion's upscaler; this one doubles."""
    torch.manual_seed(0)
    return tiny_models.stable_diffusion(
        folder,
        lambda **parts: StableDiffusionUpscalePipeline(
            **{name: part for name, part in parts.items() if name != "requires_safety_checker"}
        ),
        channels=7,
        unet=tiny_models.conditional_unet(32, in_channels=7, num_class_embeds=100),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
        max_noise_level=50,
    )


def latent_upscaler(folder: Path) -> Path:
    """Save a pipeline of the shape of Stable Diffusion's latent upscaler."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=[32, 32, 64, 64],
        time_cond_proj_dim=128 + 32,  # noise level and pooled prompt
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=32,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )
    known = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return tiny_models.stable_diffusion(
        folder,
        lambda **parts: StableDiffusionLatentUpscalePipeline(**{name: parts[name] for name in known}),
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="sample"),
    )


def unconditional(folder: Path, *, ddim: bool = False) -> Path:
    """Save a pipeline that draws from noise alone."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    if ddim:
        DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    else:
        DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


def lora(
    folder: Path, model: Path, *, component: str = "unet", prefix: str = "", factor: float = 1.0
) -> Path:
    """Save a LoRA of rank 2 for the attention of a pipeline's network, in the library's own format."""
    stored = load_file(next((model / component).glob("*.safetensors")))
    rng = np.random.default_rng(3)
    tensors = {}
    for name, weight in stored.items():
        if name.endswith(("attn2.to_q.weight", "attn.to_q.weight", "attn2.to_v.weight", "attn.to_v.weight")):
            layer = f"{prefix or component}.{name.removesuffix('.weight')}"
            rows, columns = weight.shape
            tensors[f"{layer}.lora_A.weight"] = rng.normal(0, 1, (2, columns)).astype(np.float32)
            tensors[f"{layer}.lora_B.weight"] = (factor * rng.normal(0, 1, (rows, 2))).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    return folder
