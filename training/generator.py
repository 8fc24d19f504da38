"""Pictures from text: a small U-Net that learns the straight path from noise to latents (rectified flow).

Liu et al., "Flow Straight and Fast" (2022); the noise levels follow a logit-normal law as in Esser et al.,
"Scaling Rectified Flow Transformers" (2024), shifted to high noise, where the layout of a scene is decided.
While it trains, small heads on the U-Net's inner features must also say what is where: that teaches it to
follow the prompt.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from training.dataset import Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.peers import Peers
from training.text_encoder import WIDTH, SlotHeads, build_text_encoder
from training.tokenizer import build_tokenizer, encode, sprinkle_unknown
from training.world.grammar import CLASSES, COLOURS, FIRST_OBJECT_CLASS

LATENT_CHANNELS = 4
_NOT_MUON = ("time_emb", "conv_in", "conv_out")  # thin or scalar-fed layers, where orthogonal updates do harm
_EMPTY_PROMPTS, _UNKNOWN_WORDS = 0.1, 0.05
_LAYOUT_NOISE, _DETAIL_NOISE, _DETAIL_FROM = (1.0, 1.2), (0.2, 1.0), 0.75
_AUXILIARY_WEIGHT = 0.25
_VALIDATION, _VALIDATION_LEVELS = 160, (0.6, 0.8, 0.95)


def build_unet() -> UNet2DConditionModel:
    """A U-Net of 5.7 M parameters for 16x16x4 latents; the time embedding bears the pooled prompt too."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


class LayoutHeads(nn.Module):
    """Read class, colour and object centres from the U-Net's first two upward blocks (8x8, 16x16 cells)."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        outputs = len(CLASSES) + len(COLOURS) + 1
        widths = list(reversed(unet.config["block_out_channels"]))[:2]
        self.readers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, outputs, 1))
            for width in widths
        )
        self._features: dict[int, Tensor] = {}
        for index in range(len(widths)):
            unet.up_blocks[index].register_forward_hook(self._keeper(index))

    def _keeper(self, index: int):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._features[index] = output

        return keep

    def loss(self, cells: Tensor, centres: Tensor, colours: Tensor) -> Tensor:
        """Cross-entropy of the maps, given (n, 16, 16) class ids and centres and (n, kinds) colours."""
        losses = []
        for index, reader in enumerate(self.readers):
            features = self._features[index].float()
            side = features.shape[-1]
            logits = reader(features).split([len(CLASSES), len(COLOURS), 1], dim=1)
            classes = cells if side == cells.shape[-1] else coarser_cells(cells)
            losses.append(functional.cross_entropy(logits[0], classes))
            losses.append(_colour_loss(logits[1], classes, colours))
            pooled = functional.max_pool2d(centres[:, None], cells.shape[-1] // side)
            positive = torch.tensor(8.0)  # a centre is one cell in a hundred
            losses.append(functional.binary_cross_entropy_with_logits(logits[2], pooled, pos_weight=positive))
        return torch.stack(losses).sum()


def coarser_cells(cells: Tensor) -> Tensor:
    """Halve an (n, H, W) class map; object ids are the largest, so the maximum keeps objects."""
    return functional.max_pool2d(cells.float()[:, None], 2)[:, 0].long()


def _colour_loss(logits: Tensor, classes: Tensor, colours: Tensor) -> Tensor:
    per_class = functional.pad(colours, (FIRST_OBJECT_CLASS, 0)) - 1  # -1 where a class has no colour
    targets = per_class.gather(1, classes.flatten(1)).reshape(classes.shape)
    if not bool((targets >= 0).any()):
        return logits.sum() * 0
    return functional.cross_entropy(logits, targets, ignore_index=-1)


class FlowMatching:
    """The U-Net's task: from a noisy latent and a caption, the direction from picture to noise."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        heads: LayoutHeads,
        split: Split,
        latents: NDArray[np.float16],
        batch_size: int,
    ) -> None:
        self._unet, self._text_encoder, self._heads = unet, text_encoder, heads
        self._split, self._batch_size = split, batch_size
        self._latents = torch.from_numpy(np.asarray(latents))
        self._rng = np.random.default_rng()
        tokenizer = build_tokenizer()
        choices = len(split.captions[0])
        self._ids = torch.stack(
            [encode(tokenizer, [c[k] for c in split.captions]) for k in range(choices)], dim=1
        )
        self._empty = encode(tokenizer, [""])[0]
        self._training = len(latents) - min(_VALIDATION, len(latents) // 4)

    def _velocity(self, noisy: Tensor, levels: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._text_encoder(ids).last_hidden_state  # (n, MAX_TOKENS, WIDTH)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            velocity: Tensor = self._unet(noisy, levels * 1000, hidden, added_cond_kwargs={}).sample
        return velocity.float()

    def _prompts(self, chosen: Tensor) -> Tensor:
        variants = torch.randint(self._ids.shape[1], (len(chosen),))
        ids = sprinkle_unknown(self._ids[chosen, variants], _UNKNOWN_WORDS)
        return torch.where((torch.rand(len(chosen)) < _EMPTY_PROMPTS)[:, None], self._empty, ids)

    def loss(self, fraction: float) -> Tensor:
        indices = np.sort(self._rng.choice(self._training, self._batch_size, replace=False))
        chosen = torch.from_numpy(indices)
        clean = self._latents[chosen].float()  # (n, 4, 16, 16)
        mean, deviation = _LAYOUT_NOISE if fraction < _DETAIL_FROM else _DETAIL_NOISE
        levels = torch.sigmoid(mean + deviation * torch.randn(len(clean)))
        share = levels[:, None, None, None]
        noise = torch.randn_like(clean)
        velocity = self._velocity((1 - share) * clean + share * noise, levels, self._prompts(chosen))
        layout = self._heads.loss(
            torch.from_numpy(self._split.cells[indices]).long(),
            torch.from_numpy(self._split.centres[indices]).float(),
            torch.from_numpy(self._split.colours[indices]).long(),
        )
        return (
            functional.mse_loss(velocity, noise - clean) + _AUXILIARY_WEIGHT * (1 - 0.8 * fraction) * layout
        )

    def validate(self) -> Metrics:
        """Loss on held-back scenes and their objects, and by how much a wrong caption raises the latter."""
        chosen = torch.arange(self._training, len(self._latents))
        clean, ids = self._latents[chosen].float(), self._ids[chosen, 0]
        cells = self._split.cells[self._training :]
        objects = torch.from_numpy(cells >= FIRST_OBJECT_CLASS)[:, None].expand_as(clean)
        generator = torch.Generator().manual_seed(5)
        rows = []
        for level in _VALIDATION_LEVELS:
            noise = torch.randn(clean.shape, generator=generator)
            noisy, levels = (1 - level) * clean + level * noise, torch.full((len(clean),), level)
            right = (self._velocity(noisy, levels, ids) - (noise - clean)).square()
            wrong = (self._velocity(noisy, levels, ids.roll(1, 0)) - (noise - clean)).square()
            rows.append([right.mean(), right[objects].mean(), wrong[objects].mean() - right[objects].mean()])
        loss, object_loss, gain = torch.tensor(rows).mean(0).tolist()
        return {"validation_loss": loss, "object_loss": object_loss, "prompt_gain": gain}


def _optimizers(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, heads: LayoutHeads
) -> list[torch.optim.Optimizer]:
    matrices, others = split_parameters(unet, excluded=_NOT_MUON)
    groups = [
        {"params": [*others, *heads.parameters()], "lr": 1.3e-3},
        {"params": list(text_encoder.parameters()), "lr": 4e-4},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(matrices, lr=4e-3, weight_decay=0.01), adam]


def train_generator(
    folder: Path, data: Path, latents: Path, text_encoder_folder: Path, plan: Plan, peers: Peers | None = None
) -> Metrics:
    """Train into `folder`, alone or with `peers`; it will hold ``unet``, ``text_encoder`` and ``heads``."""
    split = Split.open(data)
    torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(4), "big"))
    text_encoder = build_text_encoder()
    load_average(text_encoder_folder, {"text_encoder": text_encoder, "heads": SlotHeads()})
    unet = build_unet().to(memory_format=torch.channels_last)
    heads = LayoutHeads(unet)
    modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder, "heads": heads}
    trainer = Trainer(folder, plan, modules, _optimizers(unet, text_encoder, heads), peers)
    task = FlowMatching(unet, text_encoder, heads, split, np.load(latents), plan.batch_size)
    return trainer.run(task.loss, task.validate)


def load_generator(folder: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged U-Net and text encoder of the run in `folder`."""
    unet, text_encoder = build_unet(), build_text_encoder()
    load_average(folder, {"unet": unet, "text_encoder": text_encoder})
    return unet.eval(), text_encoder.eval()
