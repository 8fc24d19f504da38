"""Folders of real libraries with random weights, of real or of tiny shape: what they compute costs the same.

The tokenizer knows letters only; prompts are padded to 77 tokens all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

Fields = Mapping[str, Any]
_LEVELS = 4  # of a Swin
_GREYS = range(161, 173), range(174, 256), range(256, 324)  # characters of a byte-level tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of the networks, as fields of their configurations, and the sides of the pictures."""

    unet: Fields
    autoencoder: Fields
    text: Fields
    text_2: Fields
    swin: Fields
    queries: Fields
    classes: int
    seen_px: tuple[int, int]
    side_px: int


REAL = Shape(
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1_280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2_048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1_280,
    },
    autoencoder={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1_024},
    text={
        "hidden_size": 768,
        "intermediate_size": 3_072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    text_2={
        "hidden_size": 1_280,
        "intermediate_size": 5_120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1_280,
        "hidden_act": "gelu",
    },
    swin={
        "image_size": 384,
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": 12,
    },
    queries={"num_queries": 200},
    classes=133,
    seen_px=(800, 1_333),
    side_px=1_024,
)
"""stable-diffusion-xl-base-1.0, and mask2former-swin-large-coco-panoptic."""

_SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
}
TINY = Shape(
    unet={
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 1),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "layers_per_block": 1,
    },
    autoencoder={
        "block_out_channels": (16, 16, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    text=_SMALL_TEXT,
    text_2=_SMALL_TEXT,
    swin={
        "image_size": 64,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
    },
    queries={
        "num_queries": 6,
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "num_attention_heads": 2,
        "dim_feedforward": 32,
        "encoder_feedforward_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
    },
    classes=3,
    seen_px=(64, 128),
    side_px=64,
)
"""The same classes, to see that everything works."""


def sdxl(folder: Path, shape: Shape, dtype: torch.dtype, device: str) -> None:
    """Save a text-to-image pipeline of SDXL's build; the numbers are drawn on `device`."""
    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "vae": AutoencoderKL(
                **shape.autoencoder,
                latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                scaling_factor=0.13025,
                force_upcast=False,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shape.text)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**shape.text_2)),
            "unet": UNet2DConditionModel(
                **{"layers_per_block": 2} | dict(shape.unet),
                in_channels=4,
                out_channels=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                addition_embed_type="text_time",
                use_linear_projection=True,
            ),
        }
    StableDiffusionXLPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    ).save_pretrained(folder)


def mask2former(folder: Path, shape: Shape, dtype: torch.dtype, device: str) -> None:
    """Save a Mask2Former on a Swin with its processor; the numbers are drawn on `device`."""
    torch.manual_seed(0)
    names = {index: f"class {index}" for index in range(shape.classes)}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            **shape.swin, patch_size=4, out_features=[f"stage{index + 1}" for index in range(_LEVELS)]
        ),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        **shape.queries,
    )
    with torch.device(device):
        network = Mask2FormerForUniversalSegmentation(config)
    network.to(dtype).save_pretrained(folder)
    shortest, longest = shape.seen_px
    size = {"shortest_edge": shortest, "longest_edge": longest}
    Mask2FormerImageProcessorPil(size=size).save_pretrained(folder)


def _tokenizer() -> CLIPTokenizer:
    letters = [chr(code) for code in (*range(33, 127), *(code for part in _GREYS for code in part))]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
