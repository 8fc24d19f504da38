"""Networks that take points, phrases or both, tiny and with random weights; as `tiny_models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
    ViTImageProcessorPil,
)

from tests.tiny_models import clip_tokenizer

_TEXT = {
    "vocab_size": 514,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}


def _lively(net: torch.nn.Module, gain: float = 1.0) -> None:
    """Give a network weights whose answers differ from place to place: those of the library are too timid."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)


def sam(folder: Path, side_px: int = 128) -> Path:
    """Save a SAM 1 for pictures of 128 px, as the embedded one is."""
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side_px,
        patch_size=16,
        mlp_dim=64,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=16, image_size=side_px, patch_size=16, image_embedding_size=side_px // 16
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=2
    )
    net = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    _lively(net)
    net.save_pretrained(folder)
    small = side_px // 4
    SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": side_px},
            pad_size={"height": side_px, "width": side_px},
            mask_size={"longest_edge": small},
            mask_pad_size={"height": small, "width": small},
        )
    ).save_pretrained(folder)
    return folder


def sam2(folder: Path, side_px: int = 64) -> Path:
    """Save a SAM 2; the first block of a stage must not be a global one, or the library divides by zero."""
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[side_px, side_px],
        window_positional_embedding_background_size=[2, 2],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side_px // 4] * 2, [side_px // 8] * 2, [side_px // 16] * 2],
        fpn_hidden_size=16,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=16, image_size=side_px, patch_size=16)
    decoder = Sam2MaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    net = Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )
    _lively(net)
    net.save_pretrained(folder)
    processor = {  # what the library writes; its own class cannot be built without torchvision
        "image_processor_type": "Sam2ImageProcessorFast",
        "size": {"height": side_px, "width": side_px},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def clipseg(folder: Path, side_px: int = 64) -> Path:
    """Save a CLIPSeg."""
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config=_TEXT,
        vision_config=_VISION | {"image_size": side_px},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )
    net = CLIPSegForImageSegmentation(config)
    _lively(net)
    net.save_pretrained(folder)
    pictures = ViTImageProcessorPil(size={"height": side_px, "width": side_px})
    CLIPSegProcessor(pictures, clip_tokenizer()).save_pretrained(folder)
    return folder


def owlvit(folder: Path) -> Path:
    """Save an OWL-ViT."""
    torch.manual_seed(0)
    config = OwlViTConfig(
        text_config=_TEXT | {"max_position_embeddings": 16}, vision_config=_VISION, projection_dim=32
    )
    net = OwlViTForObjectDetection(config)
    _lively(net)
    net.save_pretrained(folder)
    pictures = OwlViTImageProcessorPil(size={"height": 64, "width": 64})
    OwlViTProcessor(pictures, clip_tokenizer()).save_pretrained(folder)
    return folder


def grounding_dino(folder: Path, **fields: Any) -> Path:
    """Save a Grounding DINO, whose special tokens have BERT's own numbers."""
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config={
            "model_type": "bert",
            "vocab_size": 1_100,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        num_queries=12,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        d_model=64,
        **{"max_text_len": 64} | fields,
    )
    net = GroundingDinoForObjectDetection(config)
    net.save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}, do_pad=False)
    GroundingDinoProcessor(pictures, bert_tokenizer()).save_pretrained(folder)
    return folder


def bert_tokenizer() -> BertTokenizer:
    """Letters as word pieces, and BERT's numbers for [CLS], [SEP], full stop and question mark."""
    pieces = {number: f"[unused{number}]" for number in range(1_100)}
    pieces |= {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz"):
        pieces |= {200 + index: letter, 300 + index: f"##{letter}"}
    return BertTokenizer(vocab={piece: number for number, piece in pieces.items()})
