"""Tiny transformers folders with random weights for the families that look at pictures; see `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    DPTImageProcessorPil,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
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
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    VitDetConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitMatteImageProcessorPil,
)

from pixelkiln_shared.catalogue import Limits, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from tests.tiny_models import clip_tokenizer

CLASSES = ("sky", "grass", "house")
_SQUARE = {"height": 64, "width": 64}
_SHAPE = {"shortest_edge": 64, "longest_edge": 128}
_LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def entry_of(family: str, kind: Kind, folder: Path | str, **fields: Any) -> ModelEntry:
    known: dict[str, Any] = {
        "id": "tiny",
        "family": family,
        "kinds": (kind,),
        "title": "Tiny",
        "source": str(folder),
        "limits": Limits(max_batch=4),
    }
    return ModelEntry(**known | fields)


def task_of(kind: Kind, image: Pixels | None, **fields: Any) -> Task:
    spec = JobSpec(id="job", kind=kind, model="tiny", tenant="t", input={"image": {}} | fields)
    return Task(spec=spec, images={} if image is None else {"image": image})


def outcome(found: Outcome | Exception) -> Outcome:
    assert isinstance(found, Outcome), found
    return found


def spoil(folder: Path, part: str, value: float = np.inf) -> None:
    """Overwrite the tensors whose name holds `part`, in a folder's weights."""
    tensors = load_file(folder / "model.safetensors")
    hit = [name for name in tensors if part in name]
    assert hit, sorted(tensors)
    for name in hit:
        tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose(folder: Path, part: str) -> None:
    """Take the tensors whose name holds `part` out of a folder's weights."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(kept) < len(tensors), sorted(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _save(folder: Path, network: Callable[[], Any], processor: Any) -> Path:
    torch.manual_seed(0)
    network().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _named(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


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
    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=8, output_stride=8, **_named(names))
    processor = MobileNetV2ImageProcessorPil(size={"shortest_edge": 64}, crop_size=_SQUARE)
    return _save(folder, lambda: MobileNetV2ForSemanticSegmentation(config), processor)


def beit(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = BeitConfig(
        hidden_size=16,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        use_auxiliary_head=False,
        **_LAYERS,
        **_named(names),
    )
    processor = BeitImageProcessorPil(size=_SQUARE, do_center_crop=False)
    return _save(folder, lambda: BeitForSemanticSegmentation(config), processor)


def upernet(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = UperNetConfig(
        backbone_config=_swin(), hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, **_named(names)
    )
    processor = SegformerImageProcessorPil(size=_SQUARE)
    return _save(folder, lambda: UperNetForSemanticSegmentation(config), processor)


def _dpt(**fields: Any) -> DPTConfig:
    return DPTConfig(
        hidden_size=16,
        image_size=64,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        use_auxiliary_head=False,
        is_hybrid=False,
        **_LAYERS,
        **fields,
    )


def dpt_semantic(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = _dpt(**_named(names))
    return _save(folder, lambda: DPTForSemanticSegmentation(config), DPTImageProcessorPil(size=_SQUARE))


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
        **_named(names),
    )
    processor = Mask2FormerImageProcessorPil(size=_SHAPE)
    return _save(folder, lambda: Mask2FormerForUniversalSegmentation(config), processor)


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
        **_named(names),
    )
    processor = MaskFormerImageProcessorPil(size=_SHAPE)
    return _save(folder, lambda: MaskFormerForInstanceSegmentation(config), processor)


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
        **_named(names),
    )
    processor = OneFormerProcessor(OneFormerImageProcessorPil(size=_SHAPE), clip_tokenizer())
    return _save(folder, lambda: OneFormerForUniversalSegmentation(config), processor)


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
        **_named(names),
    )
    size = {"shortest_edge": 64, "longest_edge": 64}
    processor = EomtImageProcessorPil(**{"size": size, "do_pad": True} | processing)
    return _save(folder, lambda: EomtForUniversalSegmentation(config), processor)


# ------------------------------------------------------------------------------------------------ depth


def dpt_depth(folder: Path) -> Path:
    config = _dpt()
    return _save(folder, lambda: DPTForDepthEstimation(config), DPTImageProcessorPil(size=_SQUARE))


def depth_anything(folder: Path, **fields: Any) -> Path:
    backbone = Dinov2Config(
        hidden_size=16,
        image_size=56,
        patch_size=14,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        head_hidden_size=8,
        **fields,
    )
    processor = DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    )
    return _save(folder, lambda: DepthAnythingForDepthEstimation(config), processor)


def glpn(folder: Path, max_depth: int = 10) -> Path:
    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=8,
        max_depth=max_depth,
    )
    return _save(folder, lambda: GLPNForDepthEstimation(config), GLPNImageProcessorPil())


# ------------------------------------------------------------------------------------------------ matting


def vitmatte(folder: Path) -> Path:
    backbone = VitDetConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        num_channels=4,
        window_size=0,
        residual_block_indices=[],
        out_features=["stage2"],
    )
    config = VitMatteConfig(
        backbone_config=backbone,
        hidden_size=16,
        convstream_hidden_sizes=[4, 8, 8],
        fusion_hidden_sizes=[8, 8, 8, 4],
    )
    return _save(folder, lambda: VitMatteForImageMatting(config), VitMatteImageProcessorPil())


# ------------------------------------------------------------------------------------------------ classes


def vit(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = ViTConfig(hidden_size=16, image_size=32, patch_size=8, **_LAYERS, **_named(names))
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return _save(folder, lambda: ViTForImageClassification(config), processor)


def _two_towers(**text: Any) -> dict[str, Any]:
    seen = {"hidden_size": 16, "image_size": 32, "patch_size": 8} | _LAYERS
    return {"vision_config": seen, "text_config": {"hidden_size": 16} | _LAYERS | text}


def clip(folder: Path) -> Path:
    words = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(**_two_towers(**words), projection_dim=16)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor, clip_tokenizer())
    return _save(folder, lambda: CLIPModel(config), processor)


def siglip(folder: Path) -> Path:
    config = SiglipConfig(
        **_two_towers(vocab_size=514, projection_size=16, max_position_embeddings=77, pad_token_id=513)
    )
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = SiglipProcessor(image_processor, clip_tokenizer())
    return _save(folder, lambda: SiglipModel(config), processor)
