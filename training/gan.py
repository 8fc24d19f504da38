"""Pictures from noise, crisply: the VAE's painter, taught on by a critic that knows what is where.

A GAN that begins as a VAE (Larsen et al., "Autoencoding beyond pixels", 2016) has every kind of scene from
its first step, and the codes of true scenes stay tied to their latents, so that none is lost. The critic
names the class of each cell, or calls it painted (Schönfeld et al., "You Only Need Adversarial Supervision
for Semantic Image Synthesis", 2021, where the names are the condition; here they teach it what to look at).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from pixelkiln_worker.families.noise_nets import CodePainter, CodePrior
from training.dataset import Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.noise_models import package_sampler, sampler_facts, score_sampler
from training.scene_latents import decoder_alone, load_code, scene_latents
from training.vae import CODE_CHANNELS, WIDTHS, build_prior, load_vae
from training.world.grammar import CLASSES, FIRST_OBJECT_CLASS

MODEL, SHARE, BATCH_SIZE = "toyworld-gan", 0.2, 32
CURVE = ("believed", "recognised", "latent_error")
_PAINTED = len(CLASSES)
_ANCHOR_WEIGHT, _FEATURE_WEIGHT, _PRIOR_WEIGHT, _WHOLE_WEIGHT = 1.0, 2.0, 0.1, 0.5
_OBJECT_WEIGHT = 2.0
_VALIDATION = 256


class Critic(nn.Module):
    """A small U-Net over latents: a class for each cell, of which the last is "painted", and one verdict."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.into = nn.ModuleList(
            [
                nn.Sequential(_conv(4, fine), _act(), _conv(fine, fine), _act()),
                nn.Sequential(_conv(fine, middle, 2), _act(), _conv(middle, middle), _act()),
                nn.Sequential(_conv(middle, coarse, 2), _act(), _conv(coarse, coarse), _act()),
            ]
        )
        self.out = nn.ModuleList(
            [
                nn.Sequential(_conv(coarse + middle, middle), _act()),
                nn.Sequential(_conv(middle + fine, fine), _act()),
            ]
        )
        self.names = nn.Conv2d(fine, len(CLASSES) + 1, 1)
        self.crowd = nn.Sequential(_conv(coarse + 1, coarse), _act())
        self.whole = spectral_norm(nn.Linear(coarse * 16, 1))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return cell logits (n, classes + 1, 16, 16), verdicts (n,), and the features read on the way."""
        features = []
        values = latents
        for block in self.into:
            values = block(values)
            features.append(values)
        # how much the batch varies, which a generator that repeats itself cannot hide (Karras et al., 2018)
        spread = values.std(0).mean().expand(len(values), 1, *values.shape[2:])
        verdict = self.whole(self.crowd(torch.cat([values, spread], 1)).flatten(1))[:, 0]
        for block, skipped in zip(self.out, (features[1], features[0]), strict=True):
            values = functional.interpolate(values, scale_factor=2.0)
            values = block(torch.cat([values, skipped], 1))
            features.append(values)
        return self.names(values), verdict, features


def _of_no_value(loss: Tensor) -> Tensor:
    """Zero, with the gradient of `loss`."""
    return loss - loss.detach()


def _conv(channels: int, width: int, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(channels, width, 3, stride, 1))


def _act() -> nn.Module:
    return nn.LeakyReLU(0.2)


def build_painter() -> CodePainter:
    """The generator's second half, shaped as the VAE's decoder: codes (6, 4, 4) to latents (4, 16, 16)."""
    painter: CodePainter = CodePainter(latent_channels=CODE_CHANNELS, block_out_channels=WIDTHS)
    return painter


class Contest:
    """The task of both sides at once: one loss, whose halves touch only their own side's weights."""

    def __init__(
        self,
        painter: CodePainter,
        prior: CodePrior,
        critic: Critic,
        encoder: AutoencoderKL,
        latents: NDArray[np.float16],
        cells: NDArray[np.uint8],
        validation: NDArray[np.float16],
        batch_size: int,
    ) -> None:
        self._painter, self._prior, self._critic, self._encoder = painter, prior, critic, encoder
        self._latents, self._cells, self._batch_size = latents, cells, batch_size
        self._rng = np.random.default_rng()
        self._weight = torch.ones(_PAINTED + 1)
        self._weight[CLASSES.index("sun") : _PAINTED] = 2.0
        self._true = torch.from_numpy(np.asarray(validation[:_VALIDATION], np.float32))

    def loss(self, fraction: float) -> Tensor:
        """What both sides should do better in any case; its gradient is that of their contest.

        The contest's own value says nothing: what one side wins, the other loses.
        """
        true, cells = self._batch()
        half = len(true) // 2
        with torch.no_grad():
            codes = self._encoder.encode(true[:half]).latent_dist.sample()
        drawn = self._prior(torch.randn(half, codes[0].numel()))
        painted = self._painter(torch.cat([codes, drawn]))
        names, verdict, features = self._critic(true)
        wanted = [feature[:half].detach() for feature in features]
        anchor = self._anchor(painted[:half], true[:half], cells[:half])
        told = functional.cross_entropy(names, cells, self._weight)
        contest = self._persuade(painted, wanted) + self._judge(verdict, painted.detach())
        surprise = -self._prior.log_likelihood(codes).mean() / codes[0].numel()
        wrongly_named = functional.cross_entropy(names[:, :_PAINTED], cells).detach()
        sought = wrongly_named + _ANCHOR_WEIGHT * anchor
        return sought + _of_no_value(told + contest + _PRIOR_WEIGHT * surprise)

    def _batch(self) -> tuple[Tensor, Tensor]:
        chosen = self._rng.integers(len(self._latents), size=self._batch_size)
        latents = torch.from_numpy(self._latents[chosen].astype(np.float32))
        return latents, torch.from_numpy(self._cells[chosen]).long()

    def _anchor(self, painted: Tensor, true: Tensor, cells: Tensor) -> Tensor:
        """How far codes of true scenes are painted from their latents."""
        weight = 1 + _OBJECT_WEIGHT * (cells >= FIRST_OBJECT_CLASS).float()[:, None]
        return ((painted - true).abs() * weight).mean()

    def _persuade(self, painted: Tensor, wanted: list[Tensor]) -> Tensor:
        """The generator's side; `wanted`: what the critic read in the latents that the first should be."""
        self._critic.requires_grad_(False)
        names, verdict, features = self._critic(painted)
        self._critic.requires_grad_(True)
        true_kinds = torch.logsumexp(names[:, :_PAINTED], 1) - torch.logsumexp(names, 1)
        unlike = [(a[: len(b)] - b).abs().mean() for a, b in zip(features, wanted, strict=True)]
        loss: Tensor = _FEATURE_WEIGHT * torch.stack(unlike).mean()
        total: Tensor = loss - true_kinds.mean() - _WHOLE_WEIGHT * verdict.mean()
        return total

    def _judge(self, true_verdict: Tensor, painted: Tensor) -> Tensor:
        """The critic's side, but for the names of true cells."""
        names, verdict, _ = self._critic(painted)
        every_cell = torch.full((len(painted), *names.shape[2:]), _PAINTED)
        whole = functional.relu(1 - true_verdict).mean() + functional.relu(1 + verdict).mean()
        return functional.cross_entropy(names, every_cell) + _WHOLE_WEIGHT * whole

    def validate(self) -> Metrics:
        codes = self._encoder.encode(self._true).latent_dist.mode()
        drawn = self._painter(self._prior(torch.randn(_VALIDATION, codes[0].numel())))
        true_names, _, _ = self._critic(self._true)
        names, _, _ = self._critic(drawn)
        return {
            "believed": float((names.argmax(1) != _PAINTED).float().mean()),
            "recognised": float((true_names.argmax(1) != _PAINTED).float().mean()),
            "latent_error": float((self._painter(codes) - self._true).square().mean()),
        }


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`, from the VAE's run beside it.

    The checkpoint holds ``painter``, ``prior`` and ``critic``.
    """
    torch.manual_seed(0)
    vae, prior = load_vae(folder.parent / "vae")
    painter, critic = build_painter(), Critic()
    painter.decoder.load_state_dict(vae.decoder.state_dict())
    optimizers = [
        torch.optim.AdamW([*painter.parameters()], 8e-4, (0.0, 0.99), weight_decay=0.0),
        torch.optim.AdamW([*prior.parameters()], 1e-4, (0.0, 0.99), weight_decay=0.0),
        torch.optim.AdamW([*critic.parameters()], 1e-3, (0.0, 0.99), weight_decay=0.0),
    ]
    modules = {"painter": painter, "prior": prior.train(), "critic": critic}
    trainer = Trainer(folder, plan, modules, optimizers)
    latents = np.asarray(scene_latents(folder.parent, data, "train"))
    cells = np.asarray(Split.open(data / "train").cells)
    validation = scene_latents(folder.parent, data, "validation")
    task = Contest(
        painter, prior, critic, vae.requires_grad_(False), latents, cells, validation, plan.batch_size
    )
    return trainer.run(task.loss, task.validate)


def load_gan(folder: Path) -> tuple[CodePainter, CodePrior]:
    """The averaged generator of the run in `folder`."""
    painter, prior, critic = build_painter(), build_prior(), Critic()
    load_average(folder, {"painter": painter, "prior": prior, "critic": critic})
    return painter.eval(), prior.eval()


def package(run: Path, folder: Path) -> None:
    """Save the networks of `run` to `folder` in fp16, as the worker's `samplers` family opens them."""
    painter, prior = load_gan(run)
    package_sampler(folder, prior, painter, decoder_alone(load_code(run.parent)))


score, facts = score_sampler, sampler_facts
