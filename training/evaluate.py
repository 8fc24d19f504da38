"""The closed loop: generate pictures from prompts, read them back, compare with what was asked.

Half of the prompts ask for combinations of attributes that no training scene holds. Beside the generator's
score stand the judge's score on true renders of the same prompts (the ceiling), on those renders after the
auto-encoder, and on other prompts' renders (chance).
"""

import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from numpy.typing import NDArray

from training.autoencoder import to_tensor
from training.dataset import IMAGE_PX, SPLIT_SEEDS
from training.judge import Judge, summarize
from training.world.grammar import Spec, caption, sample_spec
from training.world.render import render

STEPS, GUIDANCE_SCALE = 16, 3.0
_BATCH = 24
_TILE_PX, _TEXT_PX = 192, 36

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the spec it states in full, and the seed of its noise."""

    spec: Spec
    prompt: str
    seed: int


def questions(count: int) -> list[Question]:
    """`count` prompts no training run has met: every second one asks for a held-out combination."""
    asked = []
    for index in range(count):
        rng = np.random.default_rng([SPLIT_SEEDS["evaluation"], index])
        spec = sample_spec(rng, held_out=index % 2 == 1)
        asked.append(Question(spec=spec, prompt=caption(spec, rng, complete=True).text, seed=index))
    return asked


def generate(
    pipeline: StableDiffusionPipeline, prompts: list[str], seeds: list[int], batch_size: int = _BATCH
) -> Pictures:
    """Pictures (n, 128, 128, 3) of `prompts`, each from its own seed."""
    made: list[NDArray[np.uint8]] = []
    for start in range(0, len(prompts), batch_size):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]]
        images = pipeline(
            prompts[start : start + batch_size],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=generators,
        ).images
        made.extend(np.asarray(image) for image in images)
    return np.stack(made)


def true_renders(asked: list[Question]) -> Pictures:
    """A drawing of each question."""
    return np.stack([render(q.spec, np.random.default_rng([77, q.seed]), IMAGE_PX).image for q in asked])


@torch.no_grad()
def through_code(vae: AutoencoderTiny, images: Pictures) -> Pictures:
    """`images` after the pipeline's own code: encoded and painted again."""
    painted = []
    for start in range(0, len(images), 32):
        latents = vae.encode(to_tensor(images[start : start + 32])).latents
        made = vae.decode(latents).sample.clamp(-1, 1)
        painted.append(((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(painted)


def ceilings(judge: Judge, vae: AutoencoderTiny, count: int) -> dict[str, Any]:
    """What the judge says of true renders, of renders through the code, and of other prompts' renders."""
    asked = questions(count)
    specs = [question.spec for question in asked]
    truth = true_renders(asked)
    return {
        "ceiling": summarize(judge.check(truth, specs)),
        "ceiling_through_code": summarize(judge.check(through_code(vae, truth), specs)),
        "chance": summarize(judge.check(np.roll(truth, 2, axis=0), specs)),
    }


def evaluate(
    pipeline: StableDiffusionPipeline, judge: Judge, count: int
) -> tuple[dict[str, Any], list[Question], Pictures]:
    """The generator's scores, in all and by whether training held the combination, and the pictures."""
    asked = questions(count)
    started = time.monotonic()
    pictures = generate(pipeline, [q.prompt for q in asked], [q.seed for q in asked])
    seconds = (time.monotonic() - started) / count
    facts = judge.check(pictures, [question.spec for question in asked])
    scores: dict[str, Any] = {
        "prompts": count,
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "seconds_per_picture": round(seconds, 3),
        "generated": summarize(facts),
        "generated_seen_combinations": summarize(facts[0::2]),
        "generated_unseen_combinations": summarize(facts[1::2]),
    }
    return scores, asked, pictures


def contact_sheet(pictures: Pictures, prompts: list[str], path: Path, columns: int = 6) -> None:
    """Write pictures with their prompts beneath as one image file."""
    tiles = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        tile = np.full((_TILE_PX + _TEXT_PX, _TILE_PX, 3), 255, np.uint8)
        tile[:_TILE_PX] = cv2.resize(picture, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_CUBIC)
        for line, text in enumerate(textwrap.wrap(prompt, 36)[:3]):
            at = (3, _TILE_PX + 10 + 11 * line)
            cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.3, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 85])
