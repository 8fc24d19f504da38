"""The text encoder, taught alone to read captions before it ever meets a picture.

CLIP's text model is causal, so the padding behind a prompt has seen all of it. Each of the last positions
learns to say what one slot (the terrain, the houses, ...) is asked to be; the U-Net's cross-attention then
finds attributes that are already bound to their objects.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from training.loop import Metrics, Plan, Trainer
from training.tokenizer import BOS, EOS, MAX_TOKENS, PAD, SPECIAL, build_tokenizer, encode, sprinkle_unknown
from training.world.grammar import SLOT_SIZES, SLOTS, VOCABULARY, caption, sample_spec

WIDTH = 128
_VALIDATION = 1500


def build_text_encoder() -> CLIPTextModel:
    """A CLIP text model of 0.27 M parameters."""
    config = CLIPTextConfig(
        vocab_size=len(SPECIAL) + len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return CLIPTextModel(config)


class SlotHeads(nn.Module):
    """A linear reader for each slot: (n, slots, WIDTH) hidden states to logits of its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(SLOTS), WIDTH, sum(SLOT_SIZES)) * 0.05)
        self.bias = nn.Parameter(torch.zeros(len(SLOTS), sum(SLOT_SIZES)))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        logits = torch.einsum("nsd,sdk->nsk", hidden, self.weight) + self.bias
        return list(torch.split(logits, list(SLOT_SIZES), dim=-1))


def caption_slots(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids (count, MAX_TOKENS) of fresh captions and what they say, (count, slots, attributes) int64."""
    rng = np.random.default_rng(seed)
    captions = [caption(sample_spec(rng), rng) for _ in range(count)]
    slots = np.stack([said.slots for said in captions])
    slots[::100] = 0  # the empty prompt says nothing
    texts = ["" if index % 100 == 0 else said.text for index, said in enumerate(captions)]
    return encode(build_tokenizer(), texts), torch.from_numpy(slots).long()


class SlotReading:
    """The pre-training task: read the slots from the last positions."""

    def __init__(self, encoder: CLIPTextModel, heads: SlotHeads, count: int, batch_size: int) -> None:
        self._encoder, self._heads, self._batch_size = encoder, heads, batch_size
        self._ids, self._slots = caption_slots(count, seed=11)
        self._validation = caption_slots(min(_VALIDATION, count), seed=12)

    def _logits(self, ids: Tensor) -> list[Tensor]:
        hidden = self._encoder(ids).last_hidden_state[:, -len(SLOTS) :]
        logits: list[Tensor] = self._heads(hidden)
        return logits

    def loss(self, fraction: float) -> Tensor:
        chosen = torch.randint(len(self._ids), (self._batch_size,))
        slots = self._slots[chosen]
        logits = self._logits(sprinkle_unknown(self._ids[chosen], 0.15))
        losses = [
            functional.cross_entropy(part.flatten(0, 1), slots[:, :, k].flatten())
            for k, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    def validate(self) -> Metrics:
        ids, slots = self._validation
        read = torch.stack([part.argmax(-1) for part in self._logits(ids)], dim=-1)
        right = (read == slots).all(-1)
        return {
            "slots_right": float(right.float().mean()),
            "captions_right": float(right.all(1).float().mean()),
        }


def train_text_encoder(folder: Path, plan: Plan, captions: int = 40_000) -> Metrics:
    """Pre-train into ``folder``; the checkpoint holds ``text_encoder`` and ``heads``."""
    torch.manual_seed(0)
    encoder, heads = build_text_encoder(), SlotHeads()
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *heads.parameters()], 2e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    trainer = Trainer(folder, plan, {"text_encoder": encoder, "heads": heads}, [optimizer])
    task = SlotReading(encoder, heads, captions, plan.batch_size)
    return trainer.run(task.loss, task.validate)
