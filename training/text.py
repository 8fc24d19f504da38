"""Masks by phrase: a small CLIPSeg for the drawn world.

The vision tower is a plain transformer, which learns slowly alone; while it trains, more heads read classes,
colours and sides from its tokens, and each picture is asked several phrases for one pass of that tower.
"""

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

from training.dataset import IMAGE_PX, Split, write_json
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.phrases import ABSENT_TYPES, PRESENT_TYPES, Phrase, Teller
from training.pool import Pool
from training.segmenter import DEVIATION, MEAN, full_size, pixel_values, spoil
from training.tokenizer import BOS, EOS, PAD, SPECIAL, SYNONYMS, word_tokenizer
from training.world.grammar import CLASSES, COLOURS, FIRST_OBJECT_CLASS, POSITIONS, VOCABULARY

MODEL, SHARE, BATCH_SIZE = "toyworld-text", 0.3, 8
CURVE = ("phrase_iou", "colour_iou", "false_positives")
PHRASES_PER_PICTURE = 6
MAX_WORDS = 16
MORE_WORDS = ("sky", "sun", "moon")
"""Things to point at that a prompt of `toyworld` has no words for."""
_WORDS = (*SPECIAL[:EOS], VOCABULARY[0], *SPECIAL[EOS + 1 :], *VOCABULARY[1:], *MORE_WORDS, SPECIAL[EOS])
"""The end token is last: CLIPSeg reads the phrase from the token of highest id where that id would be 2."""
_VISION_WIDTH, _TEXT_WIDTH, _PATCH_PX = 128, 96, 8
_VALIDATION, _SCORED = 48, 512
_SPOILT_SHARE = 0.7
_SMALLEST_SHARE = 0.002
"""Part of the picture from which a mask counts as an answer: 32 pixels of 128x128."""
_SHEET, _SHEET_TYPES = 10, ("colour", "position", "backdrop", "wrong_colour")
_SAID = {
    "kind": '"the house"',
    "colour": '"the red house"',
    "position": '"the house on the left"',
    "colour_and_position": '"the red house on the left"',
    "backdrop": '"sky", "snow", "mountains"',
    "wrong_colour": "the kind is there, in another colour",
    "wrong_position": "it is there, on another side",
    "absent_kind": "no such kind is there",
    "absent_backdrop": "no such ground or light is there",
    "unknown": "a word outside the vocabulary",
}
_HEEDED, _UNHEEDED = 0.3, "should choose (colours do, sides hardly do yet: see below)"
_TOKENS = IMAGE_PX // _PATCH_PX
_CLASS_CELLS, _COLOUR_CELLS = 4, 2
_ATTRIBUTE_WEIGHT = 0.3


def build_text_segmenter() -> CLIPSegForImageSegmentation:
    """A CLIPSeg for 128 px pictures whose logits come at half the sides."""
    config = CLIPSegConfig(
        text_config={
            "vocab_size": len(_WORDS),
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 2 * _TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_WORDS,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": len(_WORDS) - 1,
        },
        vision_config={
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": 3 * _VISION_WIDTH,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": IMAGE_PX,
            "patch_size": _PATCH_PX,
        },
        projection_dim=_TEXT_WIDTH,
        extract_layers=[1, 4],
        reduce_dim=64,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        use_complex_transposed_convolution=True,
    )
    model: CLIPSegForImageSegmentation = CLIPSegForImageSegmentation._from_config(
        config,
        attn_implementation="eager",  # on a CPU its gradient comes sooner than the fused one's
    )
    for module in (model.decoder.film_mul, model.decoder.film_add, *model.decoder.reduces):
        module.reset_parameters()  # the library starts these with a deviation of 1
    for layer in model.decoder.transposed_convolution:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.reset_parameters()
    nn.init.ones_(model.decoder.film_mul.bias)  # at first every phrase lets the whole picture through
    return model


@cache
def build_phrase_tokenizer() -> PreTrainedTokenizerFast:
    """The world's tokenizer with `MORE_WORDS`; cached, for its rules are slow to compile."""
    synonyms = {
        word: "|".join(said for said in alternatives.split("|") if said not in MORE_WORDS)
        for word, alternatives in SYNONYMS.items()
    }
    return word_tokenizer(_WORDS, synonyms, MAX_WORDS)


@cache
def _ids(text: str) -> tuple[int, ...]:
    ids: list[int] = build_phrase_tokenizer()(text, truncation=True, max_length=MAX_WORDS)["input_ids"]
    return tuple(ids)


def phrase_ids(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (len(texts), longest) int64."""
    rows = [torch.tensor(_ids(text)) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


def answer(model: CLIPSegForImageSegmentation, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Logits (phrases, H/2, W/2) of as many `texts` for each picture, and the last tokens (n, tokens, width).

    The library's own forward cuts the gradient to both towers and takes one phrase a picture.
    """
    vision = model.clip.vision_model(pixel_values=pixels, output_hidden_states=True)
    ids, attention = phrase_ids(texts)
    condition = model.clip.get_text_features(ids, attention_mask=attention).pooler_output
    each = len(texts) // len(pixels)
    kept = [vision.hidden_states[layer + 1].repeat_interleave(each, 0) for layer in model.extract_layers]
    logits: Tensor = model.decoder(kept, condition).logits
    return logits, vision.last_hidden_state[:, 1:]


class TokenHeads(nn.Module):
    """Reads classes, colours and sides from the vision tokens while it trains; not shipped.

    Without the head for colours, or for sides, phrases with such words are answered as if without them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_VISION_WIDTH)
        self.classes = nn.Linear(_VISION_WIDTH, len(CLASSES) * _CLASS_CELLS**2)
        self.colours = nn.Linear(_VISION_WIDTH, len(COLOURS) * _COLOUR_CELLS**2)
        self.sides = nn.Linear(_VISION_WIDTH, len(POSITIONS) * _COLOUR_CELLS**2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, tokens, width) to logits (n, classes, 64, 64), (n, colours, 32, 32) and (n, sides, 32, 32)."""
        grid = self.norm(tokens)
        return (
            _spread(self.classes(grid), _CLASS_CELLS),
            _spread(self.colours(grid), _COLOUR_CELLS),
            _spread(self.sides(grid), _COLOUR_CELLS),
        )


def _spread(values: Tensor, cells: int) -> Tensor:
    image = values.transpose(1, 2).reshape(len(values), -1, _TOKENS, _TOKENS)
    return functional.pixel_shuffle(image, cells)


def colour_map(classes: NDArray[np.uint8], colours: NDArray[np.int8]) -> NDArray[np.int64]:
    """The colour of every pixel's object, (H, W), -1 where nothing coloured is."""
    of_class = np.full(len(CLASSES), -1)
    of_class[FIRST_OBJECT_CLASS:] = colours.astype(int) - 1
    return of_class[classes]


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of (n, H, W) logits, and for phrases that mean something the lost share of overlap."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    meant = masks.flatten(1).any(1)
    read, true = logits.sigmoid()[meant].flatten(1), masks[meant].flatten(1)
    shared = (read * true).sum(1)
    overlap = (shared + 1) / (read.sum(1) + true.sum(1) - shared + 1)
    return 4 * entropy + (1 - overlap).mean()


def _class_loss(logits: Tensor, true: NDArray[np.uint8]) -> Tensor:
    labels = torch.from_numpy(true).long()
    return functional.cross_entropy(full_size(logits.float(), labels.shape[1:]), labels)


def _attribute_loss(logits: Tensor, true: NDArray[np.int64]) -> Tensor:
    """Cross-entropy of (n, values, h, w) logits against the (n, H, W) map, where that is not -1."""
    every = IMAGE_PX // logits.shape[-1]
    wanted = torch.from_numpy(true[:, every // 2 :: every, every // 2 :: every].copy())
    summed = functional.cross_entropy(logits.float(), wanted, ignore_index=-1, reduction="sum")
    return summed / (wanted >= 0).sum().clamp_min(1)


class Pointing:
    """The task: the pixels of several phrases for each of a few spoilt pictures."""

    def __init__(
        self,
        model: CLIPSegForImageSegmentation,
        heads: TokenHeads,
        train: list[Split],
        validation: Split,
        batch_size: int,
    ) -> None:
        self._model, self._heads, self._batch_size = model, heads, batch_size
        self._validation = validation
        self._rng = np.random.default_rng()
        self._pool = Pool(train, self._rng)

    def loss(self, fraction: float) -> Tensor:
        images, classes, colours, sides, phrases = [], [], [], [], []
        for split, index in self._pool.draw(self._batch_size):
            flip = bool(self._rng.random() < 0.5)
            step = -1 if flip else 1
            image = np.ascontiguousarray(split.images[index][:, ::step])
            images.append(spoil(image, self._rng) if self._rng.random() < _SPOILT_SHARE else image)
            classes.append(split.classes[index][:, ::step])
            colours.append(colour_map(classes[-1], split.colours[index]))
            teller = Teller.of(split, index, self._rng, flip=flip)
            sides.append(teller.side_map())
            phrases += teller.tell(PHRASES_PER_PICTURE)
        masks = torch.from_numpy(np.stack([phrase.mask for phrase in phrases])).float()
        with torch.autocast("cpu", torch.bfloat16):
            logits, tokens = answer(
                self._model, pixel_values(np.stack(images)), [phrase.text for phrase in phrases]
            )
            of_class, of_colour, of_side = self._heads(tokens)
        auxiliary = _class_loss(of_class, np.stack(classes)) + _ATTRIBUTE_WEIGHT * (
            _attribute_loss(of_colour, np.stack(colours)) + _attribute_loss(of_side, np.stack(sides))
        )
        return mask_loss(_full(logits.float()), masks) + (1 - 0.8 * fraction) * auxiliary

    def validate(self) -> Metrics:
        results = ask(self._model, self._validation, min(_VALIDATION, len(self._validation)))
        present = [iou for kind in PRESENT_TYPES for iou in results[kind]]
        absent = [wrong for kind in ABSENT_TYPES for wrong in results[kind]]
        coloured = results["colour"] + results["colour_and_position"]
        return {
            "phrase_iou": float(np.mean(present)),
            "colour_iou": float(np.mean(coloured or [0.0])),
            "false_positives": float(np.mean(absent)),
        }


def _full(logits: Tensor) -> Tensor:
    return full_size(logits[:, None], (IMAGE_PX, IMAGE_PX))[:, 0]


@torch.no_grad()
def masks_of(
    model: CLIPSegForImageSegmentation, images: NDArray[np.uint8], texts: list[str]
) -> NDArray[np.bool_]:
    """Masks, (phrases, H, W), of as many `texts` for each of (n, 128, 128, 3) uint8 pictures."""
    logits, _ = answer(model, pixel_values(images), texts)
    return cast("NDArray[np.bool_]", (_full(logits) > 0).numpy())


def ask(model: CLIPSegForImageSegmentation, split: Split, scenes: int) -> dict[str, list[float]]:
    """By type of phrase: the IoU of each phrase, or for what is absent whether a mask came all the same."""
    results: dict[str, list[float]] = defaultdict(list)
    for start in range(0, scenes, 16):
        told: list[Phrase] = []
        indices = range(start, min(start + 16, scenes))
        for index in indices:
            teller = Teller.of(split, index, np.random.default_rng([5, index]))
            told += [teller.phrase(wanted) for wanted in (*PRESENT_TYPES, *ABSENT_TYPES)]
        images = split.images[indices.start : indices.stop]
        for phrase, read in zip(told, masks_of(model, images, [p.text for p in told]), strict=True):
            if phrase.mask.sum() >= _SMALLEST_SHARE * phrase.mask.size:
                union = int((phrase.mask | read).sum())
                results[phrase.type].append(float((phrase.mask & read).sum()) / union)
            elif not phrase.mask.any():
                results[phrase.type].append(float(read.mean() >= _SMALLEST_SHARE))
    return results


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``text_segmenter`` and the ``heads`` that only help it."""
    torch.manual_seed(0)
    model, heads = build_text_segmenter(), TokenHeads()
    matrices, others = split_parameters(model, excluded=("token_embedding", "position_embedding", "film"))
    optimizers = [
        Muon(matrices, lr=3e-3),
        torch.optim.AdamW([*others, *heads.parameters()], 2e-3, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    trainer = Trainer(folder, plan, {"text_segmenter": model, "heads": heads}, optimizers)
    splits = [Split.open(data / "train"), Split.open(data / "held-out")]
    task = Pointing(model, heads, splits, Split.open(data / "validation"), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def package(run: Path, folder: Path) -> None:
    """Save the model of `run` to `folder` in fp16, with the processor for its pictures and phrases."""
    model = build_text_segmenter()
    load_average(run, {"text_segmenter": model})
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    pictures = ViTImageProcessorPil(size=side, image_mean=list(MEAN), image_std=list(DEVIATION))
    CLIPSegProcessor(pictures, build_phrase_tokenizer()).save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    # transformers 5 would write a class name that older readers lack
    named = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(config, named)


def score(packaged: Path, data: Path) -> dict[str, Any]:
    """IoU and false answers by type of phrase over the validation scenes, and a sheet of masks."""
    model = CLIPSegForImageSegmentation.from_pretrained(packaged, dtype=torch.float32).eval()
    split = Split.open(data / "validation")
    scenes = min(_SCORED, len(split))
    results = ask(model, split, scenes)
    _write_sheet(model, split, packaged / "examples.webp")
    return {
        "scenes": scenes,
        "phrases": {name: len(values) for name, values in results.items()},
        "iou": {name: round(float(np.mean(results[name])), 4) for name in PRESENT_TYPES if results[name]},
        "false_positives": {
            name: round(float(np.mean(results[name])), 4) for name in ABSENT_TYPES if results[name]
        },
    }


def _write_sheet(model: CLIPSegForImageSegmentation, split: Split, path: Path) -> None:
    tiles = []
    for index in range(_SHEET):
        teller = Teller.of(split, index, np.random.default_rng([6, index]))
        told = [teller.phrase(wanted) for wanted in _SHEET_TYPES]
        masks = masks_of(model, split.images[index : index + 1], [phrase.text for phrase in told])
        for phrase, mask in zip(told, masks, strict=True):
            tiles.append(_tile(split.images[index], mask, phrase.text))
    columns = 2 * len(_SHEET_TYPES)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 80])


def _tile(image: NDArray[np.uint8], mask: NDArray[np.bool_], text: str) -> NDArray[np.uint8]:
    tile = np.full((IMAGE_PX + 18, IMAGE_PX + 4, 3), 255, np.uint8)
    tile[:IMAGE_PX, :IMAGE_PX] = np.where(mask[..., None], image, image // 4)
    cv2.putText(tile, text, (2, IMAGE_PX + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def facts(scores: dict[str, Any]) -> dict[str, object]:
    """What the card says of the scores."""
    rows = [
        f"| {_SAID[name]} | {scores['phrases'][name]} | {value:.3f} |"
        for table in ("iou", "false_positives")
        for name, value in scores[table].items()
    ]
    split = len(scores["iou"])
    return {
        "validation": scores["scenes"],
        "iou": "\n".join(rows[:split]),
        "false_positives": "\n".join(rows[split:]),
        "smallest": f"{_SMALLEST_SHARE:.1%}",
        "sides": "choose" if scores["false_positives"].get("wrong_position", 1) < _HEEDED else _UNHEEDED,
        "words": ", ".join((*VOCABULARY, *MORE_WORDS)),
    }
