"""Model folders of the real libraries, tiny and with random weights: the code path of a real checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pixelkiln_shared.catalogue import Limits, ModelEntry
from pixelkiln_shared.jobs import JobSpec
from pixelkiln_shared.kinds import Kind
from pixelkiln_worker.device import Device
from pixelkiln_worker.families.contract import Pixels, Task
from pixelkiln_worker.families.noise_nets import CodePainter, CodePrior

CPU = Device(name="cpu", kind="cpu", memory_bytes=1 << 30, dtype_name="float32", threads=1)
CPU.settle()  # such small layers gain nothing from a second thread, and wait for it when the machine is busy
SIDE_PX = 32


class Steps:
    """A watch that remembers what it was told, and raises where it is asked to."""

    def __init__(self, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.seen: list[tuple[int, int]] = []
        self._fail_at, self._error = fail_at, error

    def step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))
        if self._error is not None and step == self._fail_at:
            raise self._error

    def left(self) -> Sequence[int]:
        return ()

    def previews_due(self) -> Sequence[int]:
        return ()

    def preview(self, index: int, pixels: Pixels) -> None:
        raise AssertionError("nobody asked for a preview")


def generator_entry(folder: Path, **fields: Any) -> ModelEntry:
    known: dict[str, Any] = {
        "id": "tiny",
        "family": "diffusion",
        "kinds": (Kind.GENERATE,),
        "title": "Tiny",
        "source": str(folder),
        "defaults": {"width": SIDE_PX, "height": SIDE_PX, "steps": 3, "guidance": 3.0},
        "limits": Limits(max_batch=4),
    }
    return ModelEntry(**known | fields)


def generate_task(prompt: str | None = "a red house", seed: int = 7, **fields: Any) -> Task:
    shape = {
        "width": SIDE_PX,
        "height": SIDE_PX,
        "steps": 3,
        "guidance": 3.0,
        "negative_prompt": "",
        "count": 1,
    }
    values = shape | {"prompt": prompt, "seed": seed} | fields
    return Task(spec=JobSpec(id=f"job-{seed}", kind=Kind.GENERATE, model="tiny", tenant="t", input=values))


def segmenter_entry(folder: Path, **fields: Any) -> ModelEntry:
    known: dict[str, Any] = {
        "id": "tiny",
        "family": "segmentation",
        "kinds": (Kind.SEGMENT,),
        "title": "Tiny",
        "source": str(folder),
        "limits": Limits(max_batch=4),
    }
    return ModelEntry(**known | fields)


def segment_task(image: Pixels | None, **fields: Any) -> Task:
    spec = JobSpec(id="job", kind=Kind.SEGMENT, model="tiny", tenant="t", input={"image": {}} | fields)
    return Task(spec=spec, images={} if image is None else {"image": image})


# ------------------------------------------------------------------------------------------------ parts


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-level tokenizer with no merges, made in memory: one token a letter, 77 at most."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    letters += [chr(256 + index) for index in range(256 - len(letters))]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77
    )


def _text_config(width: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _autoencoder(channels: int = 4, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=8,
        shift_factor=shift,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )


def conditional_unet(cross: int, **fields: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=8,
        norm_num_groups=8,
        **fields,
    )


def stable_diffusion(
    folder: Path, pipeline: Any = StableDiffusionPipeline, channels: int = 4, **parts: Any
) -> Path:
    """Save a pipeline of Stable Diffusion's shape; `channels` go into its U-Net."""
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "vae": _autoencoder(),
        "text_encoder": CLIPTextModel(_text_config()),
        "tokenizer": clip_tokenizer(),
        "unet": conditional_unet(32, in_channels=channels),
        "scheduler": EulerDiscreteScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipeline(**made | parts).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Save a pipeline of SDXL's shape: two text encoders, size conditioning."""
    torch.manual_seed(0)
    unet = conditional_unet(
        64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    """Save a pipeline of SD3's shape whose T5 and image encoder were left out, as many people save it."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(channels=16, shift=0.0),
        text_encoder=CLIPTextModelWithProjection(_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def flux(folder: Path) -> Path:
    """Save a pipeline of FLUX's shape: distilled guidance, CLIP and a T5 that reads longer prompts."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pieces = ["<pad>", "</s>", "<unk>", *(chr(code) for code in range(32, 127)), "▁"]
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(shift=0.0),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4)
        ),
        tokenizer_2=T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=512),
    ).save_pretrained(folder)
    return folder


def noise_sampler(folder: Path, *, painter: str = "CodePainter") -> Path:
    """Save a sampler of 32 px pictures: a GAN's generator, or with `painter="AutoencoderKL"` a VAE."""
    torch.manual_seed(0)
    prior = CodePrior(channels=4, side=4, layers=2, width=16)
    for coupling in prior.couplings:
        torch.nn.init.normal_(coupling.reader[-1].weight, std=0.3)  # new ones change nothing
    torch.nn.init.normal_(prior.shift)  # codes of trained models have a mean, which truncation goes to
    painters = {
        "CodePainter": CodePainter(latent_channels=4, block_out_channels=(8, 16)),
        "AutoencoderKL": AutoencoderKL(
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
        ),
    }
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    painters[painter].decoder.conv_out.weight.data.mul_(8)  # or all pictures look alike
    vae.decoder.layers[-1].weight.data.mul_(4)
    prior.save_pretrained(folder / "prior")
    painters[painter].save_pretrained(folder / "painter")
    vae.save_pretrained(folder / "vae")
    index = {
        "_class_name": "NoiseSampler",
        "prior": ["pixelkiln_worker", "CodePrior"],
        "painter": ["diffusers" if painter == "AutoencoderKL" else "pixelkiln_worker", painter],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def segformer(folder: Path, names: Sequence[str] = ("sky", "grass", "house"), **fields: Any) -> Path:
    """Save a SegFormer with random weights and its image processor."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    SegformerForSemanticSegmentation(SegformerConfig(**config | fields)).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def photo_like(side_px: int = 200) -> tuple[Pixels, dict[str, Any]]:
    """Two discs on a gradient, with grain; and the true mask of each by name."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:side_px, 0:side_px] / side_px
    image = np.stack([60 + 50 * rows, 90 + 60 * rows, 150 - 40 * columns], -1)
    masks = {
        "red": (rows - 0.35) ** 2 + (columns - 0.3) ** 2 < 0.17**2,
        "white": (rows - 0.65) ** 2 + (columns - 0.7) ** 2 < 0.2**2,
    }
    image[masks["red"]] = (200, 40, 40)
    image[masks["white"]] = (235, 230, 225)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8), masks
