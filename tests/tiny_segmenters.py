"""Tiny transformers folders with random weights for the segmenting families; see `tiny_models`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessorPil,
    DetrConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessorPil,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessorPil,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2ImageProcessorPil,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessorPil,
    OneFormerProcessor,
    SegformerImageProcessorPil,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from tests.tiny_models import clip_tokenizer
from tests.tiny_vision_models import CLASSES, LAYERS, SQUARE, dpt, named, save

_SHAPE = {"shortest_edge": 64, "longest_edge": 128}


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


# ------------------------------------------------------------------------------------------------ semantic


def mobilenet_deeplab(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    """Save a DeepLabV3 on MobileNetV2, whose processor cuts out the middle of a picture as the real one's."""
    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=8, output_stride=8, **named(names))
    processor = MobileNetV2ImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE)
    return save(folder, lambda: MobileNetV2ForSemanticSegmentation(config), processor)


def beit(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = BeitConfig(
        hidden_size=16,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        use_auxiliary_head=False,
        **LAYERS,
        **named(names),
    )
    processor = BeitImageProcessorPil(size=SQUARE, do_center_crop=False)
    return save(folder, lambda: BeitForSemanticSegmentation(config), processor)


def upernet(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = UperNetConfig(
        backbone_config=_swin(), hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, **named(names)
    )
    processor = SegformerImageProcessorPil(size=SQUARE)
    return save(folder, lambda: UperNetForSemanticSegmentation(config), processor)


def dpt_semantic(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = dpt(**named(names))
    return save(folder, lambda: DPTForSemanticSegmentation(config), DPTImageProcessorPil(size=SQUARE))


# ------------------------------------------------------------------------------------------------ universal

_HEADS = {"num_attention_heads": 2, "dim_feedforward": 32, "hidden_dim": 32, "num_queries": 6}
_ENCODER = {"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2}


def mask2former(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        **_HEADS,
        **_ENCODER,
        **named(names),
    )
    processor = Mask2FormerImageProcessorPil(size=_SHAPE)
    return save(folder, lambda: Mask2FormerForUniversalSegmentation(config), processor)


def maskformer(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    decoder = DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
    )
    config = MaskFormerConfig(
        backbone_config=_swin(),
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=decoder,
        **named(names),
    )
    processor = MaskFormerImageProcessorPil(size=_SHAPE)
    return save(folder, lambda: MaskFormerForInstanceSegmentation(config), processor)


def oneformer(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = OneFormerConfig(
        backbone_config=_swin(),
        conv_dim=32,
        mask_dim=32,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=514,
        text_encoder_context_length=77,
        text_encoder_n_ctx=2,
        query_dec_layers=1,
        is_training=False,
        **_HEADS,
        **_ENCODER,
        **named(names),
    )
    processor = OneFormerProcessor(OneFormerImageProcessorPil(size=_SHAPE), clip_tokenizer())
    return save(folder, lambda: OneFormerForUniversalSegmentation(config), processor)


def eomt(folder: Path, names: Sequence[str] = CLASSES, **processing: Any) -> Path:
    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_queries=6,
        num_blocks=1,
        num_upscale_blocks=1,
        num_register_tokens=1,
        **named(names),
    )
    size = {"shortest_edge": 64, "longest_edge": 64}
    processor = EomtImageProcessorPil(**{"size": size, "do_pad": True} | processing)
    return save(folder, lambda: EomtForUniversalSegmentation(config), processor)
