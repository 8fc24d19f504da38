"""The thing under a click or in a box: a small SAM for the drawn world."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamPositionalEmbedding

from training.dataset import IMAGE_PX, Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.matching import visible_objects, visible_segments
from training.muon import Muon, split_parameters
from training.precision import mask_iou
from training.presentations import Companion, Presentations
from training.prompts import Mask, bounding_box, central_pixel, choose, prompt, random_pixel
from training.segmenter import DEVIATION, MEAN, pixel_values
from training.sheets import paint_answer, write_sheet
from training.world.grammar import FIRST_OBJECT_CLASS

MODEL, SHARE, BATCH_SIZE = "toyworld-points", 0.2, 8
CURVE = ("click_iou", "box_iou", "loss")
_WIDTH, _PATCH_PX = 96, 8
_GRID = IMAGE_PX // _PATCH_PX
_MASK_PX = 4 * _GRID
_LAYERS = 4
_PROMPTS_A_SCENE = 3
_VALIDATION, _SCORED = 48, 500
_WAVES = 1.5
"""Spread of the position code's frequencies, in waves across half the picture; SAM's suits 1024 px."""


def build_points() -> SamModel:
    """A SAM whose masks come at half the picture's sides."""
    vision = SamVisionConfig(
        hidden_size=_WIDTH,
        output_channels=_WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=_PATCH_PX,
        mlp_ratio=3.0,
        initializer_range=0.02,
        use_rel_pos=False,
        global_attn_indexes=list(range(_LAYERS)),
        num_pos_feats=_WIDTH // 2,
    )
    prompts = SamPromptEncoderConfig(
        hidden_size=_WIDTH, image_size=IMAGE_PX, patch_size=_PATCH_PX, mask_input_channels=16
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=_WIDTH, mlp_dim=2 * _WIDTH, num_attention_heads=4, iou_head_hidden_dim=_WIDTH
    )
    return SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompts.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )


@torch.no_grad()
def place_codes(model: SamModel) -> None:
    """Give patches the position code that prompts have, and let tokens first attend where they point."""
    code = model.shared_image_embedding.positional_embedding
    code.normal_(std=_WAVES)
    model.vision_encoder.pos_embed.copy_(
        0.3 * model.get_image_wide_positional_embeddings().permute(0, 2, 3, 1)
    )
    # two copies of one constant, for a checkpoint holds no tensor under two names
    model.prompt_encoder.shared_embedding.positional_embedding = nn.Parameter(code.clone())
    transformer = model.mask_decoder.transformer
    attentions = [layer.cross_attn_token_to_image for layer in transformer.layers]
    for attention in (*attentions, transformer.final_attn_token_to_image):
        attention.k_proj.weight.copy_(attention.q_proj.weight)


class Pointing:
    """The task: the mask that a click or a box means, three guesses at it, and how good each guess is."""

    def __init__(
        self, model: SamModel, companion: Companion, train: Presentations, validation: Split, batch_size: int
    ) -> None:
        self._model, self._companion = model, companion
        self._train, self._validation, self._batch_size = train, validation, batch_size

    def loss(self, fraction: float) -> Tensor:
        rng = self._train.rng
        scenes = self._train.draw(self._batch_size)
        segments = [visible_segments(scene.classes, scene.instances) for scene in scenes]
        asked = prompt([choose(parts, _PROMPTS_A_SCENE, rng) for parts in segments], rng)
        with torch.autocast("cpu", torch.bfloat16):
            pixels = pixel_values(np.stack([scene.image for scene in scenes]))
            features = self._model.vision_encoder(pixels).last_hidden_state
            beside = self._companion.loss(features, scenes)
            output = self._model(
                image_embeddings=features,
                input_points=asked.points,
                input_labels=asked.labels,
                input_boxes=asked.boxes,
                multimask_output=bool(rng.random() < 0.75),
            )
        return guess_loss(output.pred_masks, output.iou_scores, asked.masks) + beside

    def validate(self) -> Metrics:
        overlaps = measure(self._model, self._validation, min(_VALIDATION, len(self._validation)))
        return {
            "click_iou": float(np.mean(overlaps["objects", "centre"])),
            "box_iou": float(np.mean(overlaps["objects", "box"])),
            "backdrop_iou": float(np.mean(overlaps["backdrop", "centre"])),
        }


def guess_loss(logits: Tensor, promised: Tensor, masks: NDArray[np.bool_]) -> Tensor:
    """The best guess's loss, a little of the others' so that none idles, and the error of the promised IoU.

    `logits` is (n, p, guesses, 64, 64), `promised` (n, p, guesses), `masks` (n, p, 128, 128).
    """
    n, p = masks.shape[:2]
    step = IMAGE_PX // _MASK_PX
    cells = masks.reshape(n, p, 1, _MASK_PX, step, _MASK_PX, step).mean((4, 6), dtype=np.float32)
    values, target = (
        logits.float().flatten(3),
        torch.from_numpy(cells).flatten(3),
    )  # (n, p, guesses or 1, cells)
    target = target.expand_as(values)
    inside = values.sigmoid()
    covered = functional.binary_cross_entropy_with_logits(values, target, reduction="none").mean(-1)
    dice = 1 - (2 * (inside * target).sum(-1) + 1) / (inside.sum(-1) + target.sum(-1) + 1)
    each = 5 * covered + 5 * dice  # (n, p, guesses)
    with torch.no_grad():
        ours, theirs = values > 0, target > 0.5
        overlap = (ours & theirs).sum(-1) / (ours | theirs).sum(-1).clamp(min=1)
    honesty = functional.mse_loss(promised.float(), overlap)
    return 0.9 * each.min(-1).values.mean() + 0.1 * each.mean() + honesty


@torch.no_grad()
def answer(
    model: SamModel,
    features: Tensor,
    points: list[tuple[int, int]] | None,
    boxes: list[NDArray[np.float32]] | None,
) -> list[Mask]:
    """The mask most promised for each click, or each box, on one picture of (1, width, 16, 16) features."""
    output = model(
        image_embeddings=features,
        input_points=torch.tensor(points, dtype=torch.float32)[None, :, None] if points else None,
        input_boxes=torch.from_numpy(np.stack(boxes))[None] if boxes else None,
    )
    best = output.iou_scores[0].argmax(-1)
    logits = output.pred_masks[0][torch.arange(len(best)), best]  # (prompts, 64, 64)
    full = functional.interpolate(logits[None], size=(IMAGE_PX, IMAGE_PX), mode="bilinear")[0]
    return list((full > 0).numpy())


Overlaps = dict[tuple[str, str], list[float]]


def measure(model: SamModel, split: Split, count: int) -> Overlaps:
    """IoU of the answers to clicks in the middle or anywhere and to boxes: ``objects`` and ``backdrop``."""
    overlaps: Overlaps = defaultdict(list)
    rng = np.random.default_rng(0)
    for index in range(count):
        features = model.get_image_embeddings(pixel_values(split.images[index : index + 1]))
        segments = visible_segments(split.classes[index], split.instances[index])
        masks = [mask for _, mask in segments]
        answers = {
            "centre": answer(model, features, [central_pixel(mask) for mask in masks], None),
            "anywhere": answer(model, features, [random_pixel(mask, rng) for mask in masks], None),
            "box": answer(model, features, None, [bounding_box(mask) for mask in masks]),
        }
        for form, given in answers.items():
            for (name, mask), ours in zip(segments, given, strict=True):
                place = "objects" if name >= FIRST_OBJECT_CLASS else "backdrop"
                overlaps[place, form].append(mask_iou(ours, mask))
    return overlaps


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``points`` and the ``companion`` of its training."""
    torch.manual_seed(0)
    model, companion = build_points(), Companion(_WIDTH, _GRID)
    place_codes(model)
    model.set_attn_implementation(
        "eager"
    )  # a third faster here: few tokens, and the fused one is slow backwards
    matrices, others = split_parameters(model, excluded=("embed", "token"))
    codes = {
        id(module.positional_embedding)
        for module in model.modules()
        if isinstance(module, SamPositionalEmbedding)
    }
    others = [parameter for parameter in others if id(parameter) not in codes]
    optimizers = [
        Muon(matrices, lr=3e-3),
        torch.optim.AdamW([*others, *companion.parameters()], 2e-3, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    trainer = Trainer(folder, plan, {"points": model, "companion": companion}, optimizers)
    train = Presentations([Split.open(data / "train"), Split.open(data / "held-out")])
    task = Pointing(model, companion, train, Split.open(data / "validation"), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def package(run: Path, folder: Path) -> None:
    """Save the model of `run` to `folder` in fp16, with the processor of its pictures and prompts."""
    load_points(run).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    images = SamImageProcessorPil(
        size={"longest_edge": IMAGE_PX},
        pad_size={"height": IMAGE_PX, "width": IMAGE_PX},
        mask_size={"longest_edge": _MASK_PX},
        mask_pad_size={"height": _MASK_PX, "width": _MASK_PX},
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )
    SamProcessor(images).save_pretrained(folder)


def load_points(folder: Path) -> SamModel:
    """The averaged model of the run in `folder`."""
    model = build_points()
    load_average(folder, {"points": model})
    return model.eval()


def score(packaged: Path, data: Path) -> dict[str, Any]:
    """Mean IoU of the answers to each form of prompt over validation scenes."""
    model = SamModel.from_pretrained(packaged, dtype=torch.float32).eval()
    split = Split.open(data / "validation")
    count = min(_SCORED, len(split))
    overlaps = measure(model, split, count)
    _write_examples(packaged / "examples.webp", model, split)
    scores: dict[str, Any] = {"scenes": count}
    for (place, form), values in overlaps.items():
        scores[f"{place}_{form}_iou"] = round(float(np.mean(values)), 4)
    return scores


def _write_examples(path: Path, model: SamModel, split: Split) -> None:
    """Answers to clicks above answers to boxes."""
    clicked, boxed = [], []
    for index in range(8):
        image, objects = split.images[index], visible_objects(split.classes[index], split.instances[index])
        mask = objects[0][1]
        click, box = central_pixel(mask), bounding_box(mask)
        features = model.get_image_embeddings(pixel_values(image[None]))
        clicked.append(paint_answer(image, answer(model, features, [click], None)[0], click=click))
        boxed.append(paint_answer(image, answer(model, features, None, [box])[0], box=box))
    write_sheet(path, [clicked, boxed])


def facts(scores: dict[str, Any]) -> dict[str, object]:
    """What the card says of the scores."""
    return {"validation": scores["scenes"]} | {name: scores[name] for name in scores if name.endswith("_iou")}
