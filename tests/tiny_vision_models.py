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
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    VitDetConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitMatteImageProcessorPil,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessorPil,
)

from pixelkiln_shared.catalogue import Limits, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.families.contract import Outcome, Pixels, Task
from tests.tiny_models import clip_tokenizer

CLASSES = ("sky", "grass", "house")
SQUARE = {"height": 64, "width": 64}
LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


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


def save(folder: Path, network: Callable[[], Any], processor: Any) -> Path:
    torch.manual_seed(0)
    network().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def named(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


# ------------------------------------------------------------------------------------------------ depth


def dpt(**fields: Any) -> DPTConfig:
    return DPTConfig(
        hidden_size=16,
        image_size=64,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        use_auxiliary_head=False,
        is_hybrid=False,
        **LAYERS,
        **fields,
    )


def dpt_depth(folder: Path, **processing: Any) -> Path:
    config = dpt()
    processor = DPTImageProcessorPil(**{"size": SQUARE} | processing)
    return save(folder, lambda: DPTForDepthEstimation(config), processor)


def zoedepth(folder: Path) -> Path:
    backbone = BeitConfig(
        hidden_size=16,
        image_size=64,
        patch_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
        **LAYERS,
    )
    config = ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        num_attractors=[4, 2, 2, 1],
        bin_embedding_dim=8,
        patch_transformer_hidden_size=16,
        patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    processor = ZoeDepthImageProcessorPil(size=SQUARE)
    return save(folder, lambda: ZoeDepthForDepthEstimation(config), processor)


def _dinov2() -> Dinov2Config:
    return Dinov2Config(
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


def padded_dpt(folder: Path) -> Path:
    """Save a DPT that sees pictures at their own size, filled up to whole patches on all sides."""
    config = DPTConfig(
        backbone_config=_dinov2(),
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
        reassemble_hidden_size=16,
        hidden_size=16,
        is_hybrid=False,
    )
    processor = DPTImageProcessorPil(do_resize=False, do_pad=True, size_divisor=14)
    return save(folder, lambda: DPTForDepthEstimation(config), processor)


def depth_anything(folder: Path, **fields: Any) -> Path:
    config = DepthAnythingConfig(
        backbone_config=_dinov2(),
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
    return save(folder, lambda: DepthAnythingForDepthEstimation(config), processor)


def glpn(folder: Path, max_depth: int = 10) -> Path:
    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=8,
        max_depth=max_depth,
    )
    return save(folder, lambda: GLPNForDepthEstimation(config), GLPNImageProcessorPil())


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
    return save(folder, lambda: VitMatteForImageMatting(config), VitMatteImageProcessorPil())


# ------------------------------------------------------------------------------------------------ classes


def vit(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    config = ViTConfig(hidden_size=16, image_size=32, patch_size=8, **LAYERS, **named(names))
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, lambda: ViTForImageClassification(config), processor)


def _two_towers(**text: Any) -> dict[str, Any]:
    seen = {"hidden_size": 16, "image_size": 32, "patch_size": 8} | LAYERS
    return {"vision_config": seen, "text_config": {"hidden_size": 16} | LAYERS | text}


def clip(folder: Path) -> Path:
    words = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(**_two_towers(**words), projection_dim=16)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor, clip_tokenizer())
    return save(folder, lambda: CLIPModel(config), processor)


def siglip(folder: Path) -> Path:
    config = SiglipConfig(
        **_two_towers(vocab_size=514, projection_size=16, max_position_embeddings=77, pad_token_id=513)
    )
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = SiglipProcessor(image_processor, clip_tokenizer())
    return save(folder, lambda: SiglipModel(config), processor)
