"""How near is what: a small GLPN for the drawn world, whose encoder starts as the segmenter's."""

import re
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DPTImageProcessorPil, GLPNConfig, GLPNForDepthEstimation

from training.dataset import IMAGE_PX, Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.pool import Pool
from training.segmenter import DEVIATION, MEAN, load_segmenter, pixel_values, spoil

MODEL, SHARE, BATCH_SIZE = "toyworld-depth", 0.12, 8
CURVE = ("absolute_error", "within_quarter", "edge_error")
_VALIDATION, _SCORED, _SHEET = 96, 512, 12
_EDGE_WEIGHT = 4.0
_EDGE_STEP = 0.04
"""A jump of depth between neighbours that counts as an edge; the ground's own slope is under 0.02."""
_SPOILT_SHARE, _SPOILT_SHARE_AT_LAST, _LAST_PHASE = 0.8, 0.5, 0.75
_LAST_LAYER_RATE = 1e-2
"""The last layer starts at depth 0.5 everywhere, and waits long for the sky at the rate of the rest."""
_FLOOR = 0.02
"""Depths are compared as ratios above this, for the sky has depth 0."""
_NAMES = (
    (r"segformer\.stages\.(\d)\.patch_embeddings\.", r"glpn.encoder.patch_embeddings.\1."),
    (r"segformer\.stages\.(\d)\.blocks\.", r"glpn.encoder.block.\1."),
    (r"segformer\.stages\.(\d)\.layer_norm\.", r"glpn.encoder.layer_norm.\1."),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"mlp\.fc(\d)", r"mlp.dense\1"),
)
"""How SegFormer's encoder names what GLPN's, which is the same network, names otherwise."""


def build_depth_net() -> GLPNForDepthEstimation:
    """A GLPN whose depth comes at twice the picture's sides, in [0, 1], 0 the sky and 1 nearest."""
    config = GLPNConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 2, 2],
        sr_ratios=[8, 4, 2, 1],
        hidden_sizes=[16, 32, 64, 128],
        patch_sizes=[5, 3, 3, 3],
        strides=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 4, 8],
        mlp_ratios=[2, 2, 2, 2],
        drop_path_rate=0.0,
        decoder_hidden_size=24,
        max_depth=1,
    )
    return GLPNForDepthEstimation(config)


def start_from_segmenter(net: GLPNForDepthEstimation, run: Path) -> None:
    """Give `net` the encoder of the segmenter trained in `run`: what is where is half of how near it is."""
    encoder = load_segmenter(run).segformer.state_dict(prefix="segformer.")
    renamed = {}
    for name, value in encoder.items():
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    missing, unexpected = net.load_state_dict(renamed, strict=False)
    if unexpected or any("encoder" in name for name in missing):
        raise ValueError("the segmenter's encoder is not the depth network's")


def depths(net: GLPNForDepthEstimation, pixels: Tensor) -> Tensor:
    """Depths, (n, H, W) float32, of (n, 3, H, W) pixels; the network gives twice the sides."""
    twice = net(pixels).predicted_depth.float()
    return functional.interpolate(twice[:, None], size=pixels.shape[2:], mode="bilinear")[:, 0]


def edges(depth: Tensor) -> Tensor:
    """True where a neighbour of a pixel of (n, H, W) `depth` is nearer or farther by `_EDGE_STEP`."""
    farthest = -functional.max_pool2d(-depth[:, None], 3, stride=1, padding=1)
    nearest = functional.max_pool2d(depth[:, None], 3, stride=1, padding=1)
    return (nearest - farthest > _EDGE_STEP)[:, 0]


class Ranging:
    """The task: the depth of every pixel, from spoilt pictures."""

    def __init__(
        self, net: GLPNForDepthEstimation, train: list[Split], validation: Split, batch_size: int
    ) -> None:
        self._net, self._validation, self._batch_size = net, validation, batch_size
        self._rng = np.random.default_rng()
        self._pool = Pool(train, self._rng)

    def loss(self, fraction: float) -> Tensor:
        spoilt_share = _SPOILT_SHARE if fraction < _LAST_PHASE else _SPOILT_SHARE_AT_LAST
        images, wanted = [], []
        for split, index in self._pool.draw(self._batch_size):
            flip = 1 if self._rng.random() < 0.5 else -1
            image = np.ascontiguousarray(split.images[index][:, ::flip])
            images.append(spoil(image, self._rng) if self._rng.random() < spoilt_share else image)
            wanted.append(split.depth[index][:, ::flip])
        true = torch.from_numpy(np.stack(wanted)).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            read = depths(self._net, pixel_values(np.stack(images)))
        ratio = ((read + _FLOOR) / (true + _FLOOR)).log()
        weights = torch.where(edges(true), _EDGE_WEIGHT, 1.0)
        losses = (read - true).abs() + 0.2 * ratio.abs()
        return (losses * weights).sum() / weights.sum()

    def validate(self) -> Metrics:
        scores = compare(self._net, self._validation, min(_VALIDATION, len(self._validation)))
        return {name: scores[name] for name in (*CURVE, "edge_f1")}


@torch.no_grad()
def compare(net: GLPNForDepthEstimation, split: Split, scenes: int) -> dict[str, float]:
    """Errors of depth over the first `scenes` of `split`; the share within a quarter leaves out the sky."""
    sums: dict[str, float] = dict.fromkeys(
        ("pixels", "error", "square", "ground", "within", "edge", "edge_error", "found", "hit", "right"), 0
    )
    for start in range(0, scenes, 32):
        stop = min(start + 32, scenes)
        true = torch.from_numpy(split.depth[start:stop].astype(np.float32)) / 255
        read = depths(net, pixel_values(split.images[start:stop]))
        error, ground, edge, read_edge = (read - true).abs(), true > 0, edges(true), edges(read)
        near = read.clamp_min(1e-3)
        within = (torch.maximum(near / true, true / near) < 1.25) & ground
        for name, values in {
            "pixels": torch.ones_like(true),
            "error": error,
            "square": error.square(),
            "ground": ground,
            "within": within,
            "edge": edge,
            "edge_error": error[edge],
            "found": read_edge,
            "hit": edge & _grown(read_edge),
            "right": read_edge & _grown(edge),
        }.items():
            sums[name] += float(values.sum())
    precision, recall = sums["right"] / max(1, sums["found"]), sums["hit"] / max(1, sums["edge"])
    return {
        "absolute_error": sums["error"] / sums["pixels"],
        "root_mean_square": (sums["square"] / sums["pixels"]) ** 0.5,
        "within_quarter": sums["within"] / sums["ground"],
        "edge_error": sums["edge_error"] / sums["edge"],
        "edge_f1": 2 * precision * recall / max(1e-9, precision + recall),
    }


def _grown(mask: Tensor) -> Tensor:
    return functional.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``depth``. A segmenter's run beside it is where it starts."""
    torch.manual_seed(0)
    net = build_depth_net()
    if (folder.parent / "segmenter" / "state.safetensors").exists():
        start_from_segmenter(net, folder.parent / "segmenter")
    matrices, others = split_parameters(net)
    last = {id(parameter) for parameter in net.head.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in others if id(parameter) not in last]},
        {"params": [parameter for parameter in others if id(parameter) in last], "lr": _LAST_LAYER_RATE},
    ]
    optimizers = [
        Muon(matrices, lr=3e-3),
        torch.optim.AdamW(groups, 2e-3, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
    trainer = Trainer(folder, plan, {"depth": net}, optimizers)
    splits = [Split.open(data / "train"), Split.open(data / "held-out")]
    task = Ranging(net, splits, Split.open(data / "validation"), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def package(run: Path, folder: Path) -> None:
    """Save the depth network of `run` to `folder` in fp16, with a processor that scales pictures for it."""
    net = build_depth_net()
    load_average(run, {"depth": net})
    net.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    processor = DPTImageProcessorPil(size=side, image_mean=list(MEAN), image_std=list(DEVIATION))
    processor.save_pretrained(folder)


def score(packaged: Path, data: Path) -> dict[str, Any]:
    """Errors over the validation scenes, clean; a sheet of picture, true depth, read depth and error."""
    net = GLPNForDepthEstimation.from_pretrained(packaged, dtype=torch.float32).eval()
    split = Split.open(data / "validation")
    scenes = min(_SCORED, len(split))
    _write_sheet(net, split, packaged / "examples.webp")
    scores = {name: round(value, 4) for name, value in compare(net, split, scenes).items()}
    return {"scenes": scenes, **scores}


@torch.no_grad()
def _write_sheet(net: GLPNForDepthEstimation, split: Split, path: Path) -> None:
    images = split.images[:_SHEET]
    true = split.depth[:_SHEET].astype(np.float32) / 255
    read = depths(net, pixel_values(images)).numpy()
    rows = []
    for image, wanted, seen in zip(images, true, read, strict=True):
        shades = [_shade(wanted), _shade(seen), _shade(4 * np.abs(seen - wanted))]
        rows.append(np.concatenate([image, *shades], axis=1))
    half = len(rows) // 2
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half : 2 * half])], axis=1)
    cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 85])


def _shade(depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.clip(depth * 255, 0, 255).astype(np.uint8)
    return cast("NDArray[np.uint8]", np.repeat(grey[..., None], 3, axis=2))


def facts(scores: dict[str, Any]) -> dict[str, object]:
    """What the card says of the scores."""
    return {("validation" if name == "scenes" else name): value for name, value in scores.items()}
