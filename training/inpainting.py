"""Pictures continued into a hole: the generator's U-Net taught to see what is around it.

Its first layer gets five more channels, as in Rombach et al., "High-Resolution Image Synthesis with Latent
Diffusion Models" (2022, section 4.5): the mask, and the latents of the picture with the hole painted grey.
Their weights start at zero, so it begins as the generator. What it is given is what diffusers'
`StableDiffusionInpaintPipeline` gives: the mask at every eighth pixel, the grey of 0 in [-1, 1], the
pipeline's own encoder.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.autoencoder import to_tensor
from training.dataset import IMAGE_PX, Split, scene_rng
from training.generator import build_unet
from training.holes import draw_hole, inside, request
from training.loop import Metrics, Plan, Trainer, load_average
from training.matching import visible_objects
from training.muon import Muon, split_parameters
from training.package import open_pipeline
from training.refilled import score_holes
from training.scene_latents import encode_split
from training.tokenizer import build_tokenizer, encode, sprinkle_unknown
from training.world.grammar import sample_spec

MODEL, SHARE, BATCH_SIZE = "toyworld-inpaint", 0.3, 24
CURVE = ("validation_loss", "hole_loss", "prompt_gain")
CHANNELS, FACTOR = 9, 8
_NOT_MUON = ("time_emb", "conv_in", "conv_out")
_EMPTY, _FULL, _UNKNOWN_WORDS = 0.1, 0.25, 0.05
_NOISE = (1.0, 1.2)
_OUTSIDE_WEIGHT = 0.25
_PAINTED, _CODE_NOISE = 0.25, 0.1
"""Share of the pictures that are seen as the decoder paints them, for such pictures will be given too."""
_VALIDATION, _VALIDATION_LEVELS = 160, (0.6, 0.8, 0.95)


def widen(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same U-Net with `CHANNELS` inputs, those beyond its own without effect yet."""
    wide = UNet2DConditionModel.from_config(unet.config, in_channels=CHANNELS)
    weights = unet.state_dict()
    missing = CHANNELS - weights["conv_in.weight"].shape[1]
    weights["conv_in.weight"] = functional.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, missing))
    wide.load_state_dict(weights)
    return wide


@dataclass(frozen=True, kw_only=True)
class Holed:
    """Scenes with holes: clean latents (n, 4, 16, 16), what is seen beside them (n, 5, 16, 16), token ids."""

    clean: Tensor
    beside: Tensor
    ids: Tensor


class HoledScenes:
    """Draws training scenes with holes and requests, and encodes them as the pipeline will."""

    def __init__(self, pipeline: StableDiffusionPipeline, split: Split, latents: NDArray[np.float16]) -> None:
        self._vae = pipeline.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        self._split = split
        self._latents = torch.from_numpy(np.array(latents))  # a copy: the file is not to be written
        self._tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return len(self._latents)

    def draw(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Holed:
        """The scenes of these numbers, each with a hole of its own."""
        holes, texts = zip(*(self.hole(int(index), rng) for index in indices), strict=True)
        mask = torch.from_numpy(np.stack(holes))[:, None]  # (n, 1, 128, 128)
        pictures = to_tensor(self._split.images[indices])
        clean = self._latents[torch.from_numpy(indices)].float()
        scale = self._vae.config["scaling_factor"]
        painted = torch.from_numpy(rng.permutation(len(indices))[: round(_PAINTED * len(indices))])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            if len(painted):
                codes = clean[painted] + _CODE_NOISE * torch.randn(clean[painted].shape)
                pictures[painted] = self._vae.decode(codes / scale).sample.float().clamp(-1, 1)
            around = self._vae.encode(pictures * ~mask).latents.float() * scale
        cells = mask[..., ::FACTOR, ::FACTOR].float()
        return Holed(
            clean=clean,
            beside=torch.cat([cells, around], dim=1),
            ids=encode(self._tokenizer, list(texts)),
        )

    def hole(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], str]:
        """A hole in a scene and the prompt that goes with it."""
        objects = visible_objects(self._split.classes[index], self._split.instances[index])
        hole = draw_hole(objects, IMAGE_PX, rng)
        chance = rng.random()
        if chance < _EMPTY:
            return hole, ""
        if chance < _EMPTY + _FULL:
            captions = self._split.captions[index]
            return hole, captions[rng.integers(len(captions))]
        spec = sample_spec(scene_rng("train", index))
        return hole, request(spec, inside(hole, objects), rng)


class Continuing:
    """The U-Net's task: rectified flow, as the generator's, given the mask and what is around it."""

    def __init__(
        self, unet: UNet2DConditionModel, pipeline: StableDiffusionPipeline, scenes: HoledScenes, plan: Plan
    ) -> None:
        self._unet, self._text_encoder = unet, pipeline.text_encoder.requires_grad_(False)
        self._scenes, self._batch_size = scenes, plan.batch_size
        self._rng = np.random.default_rng()
        count = len(scenes)
        self._training = count - min(_VALIDATION, count // 4)
        self._kept_back = scenes.draw(np.arange(self._training, count), np.random.default_rng(7))

    def _velocity(self, noisy: Tensor, levels: Tensor, beside: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._text_encoder(ids).last_hidden_state  # (n, MAX_TOKENS, WIDTH)
            inputs = torch.cat([noisy, beside], dim=1).contiguous(memory_format=torch.channels_last)
            velocity: Tensor = self._unet(inputs, levels * 1000, hidden, added_cond_kwargs={}).sample
        return velocity.float()

    def loss(self, fraction: float) -> Tensor:
        chosen = self._rng.choice(self._training, self._batch_size, replace=False)
        holed = self._scenes.draw(np.sort(chosen), self._rng)
        mean, deviation = _NOISE
        levels = torch.sigmoid(mean + deviation * torch.randn(len(holed.clean)))
        share = levels[:, None, None, None]
        noise = torch.randn_like(holed.clean)
        noisy = (1 - share) * holed.clean + share * noise
        ids = sprinkle_unknown(holed.ids, _UNKNOWN_WORDS)
        error = (self._velocity(noisy, levels, holed.beside, ids) - (noise - holed.clean)).square()
        weight = _near_hole(holed.beside).clamp(min=_OUTSIDE_WEIGHT).expand_as(error)
        return (error * weight).sum() / weight.sum()

    def validate(self) -> Metrics:
        """Loss on held-back scenes and in their holes, and by how much a wrong request raises the latter."""
        held = self._kept_back
        hole = (held.beside[:, :1] > 0).expand_as(held.clean)
        generator = torch.Generator().manual_seed(5)
        rows = []
        for level in _VALIDATION_LEVELS:
            noise = torch.randn(held.clean.shape, generator=generator)
            noisy, levels = (1 - level) * held.clean + level * noise, torch.full((len(noise),), level)
            target = noise - held.clean
            right = (self._velocity(noisy, levels, held.beside, held.ids) - target).square()
            wrong = (self._velocity(noisy, levels, held.beside, held.ids.roll(1, 0)) - target).square()
            rows.append([right.mean(), right[hole].mean(), wrong[hole].mean() - right[hole].mean()])
        loss, hole_loss, gain = torch.tensor(rows).mean(0).tolist()
        return {"validation_loss": loss, "hole_loss": hole_loss, "prompt_gain": gain}


def _near_hole(beside: Tensor) -> Tensor:
    """1 in the cells of the hole and next to it, whose latents paint its pixels; (n, 1, 16, 16)."""
    return functional.max_pool2d(beside[:, :1], 3, 1, 1)


def _optimizers(unet: UNet2DConditionModel) -> list[torch.optim.Optimizer]:
    matrices, others = split_parameters(unet, excluded=_NOT_MUON)
    adam = torch.optim.AdamW(others, 8e-4, betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(matrices, lr=2e-3, weight_decay=0.01), adam]


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`, from the packaged generator beside it; the checkpoint holds ``unet``."""
    pipeline = open_pipeline(generator_folder(folder.parent / "packaged"))
    torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(4), "big"))
    unet = widen(pipeline.unet).to(memory_format=torch.channels_last)
    trainer = Trainer(folder, plan, {"unet": unet}, _optimizers(unet))
    split = Split.open(data / "train")
    if not (folder / "latents.npy").exists():
        encode_split(pipeline.vae, split, folder / "latents.npy")
    scenes = HoledScenes(pipeline, split, np.load(folder / "latents.npy"))
    task = Continuing(unet, pipeline, scenes, plan)
    return trainer.run(task.loss, task.validate)


def generator_folder(packaged: Path) -> Path:
    """The generator packaged there, or the shipped one where none was."""
    folder = packaged / "toyworld"
    return folder if folder.exists() else Path(str(resources.files("pixelkiln_worker") / "embedded/toyworld"))


def load_inpainting(run: Path) -> UNet2DConditionModel:
    """The averaged U-Net of `run`."""
    unet = widen(build_unet())
    load_average(run, {"unet": unet})
    return unet.eval()


def package(run: Path, folder: Path) -> None:
    """Save the U-Net of `run` to `folder` in fp16."""
    load_inpainting(run).to(torch.float16).save_pretrained(folder, safe_serialization=True)


def score(packaged: Path, data: Path) -> dict[str, Any]:
    """Refill holes in validation scenes, the rest of the pipeline being the generator's."""
    return score_holes(generator_folder(packaged.parent), packaged, data)


def facts(scores: dict[str, Any]) -> dict[str, object]:
    """What the card says of the scores."""
    return scores
