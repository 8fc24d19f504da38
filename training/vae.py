"""Pictures from noise, softly: a variational auto-encoder of scene latents whose prior is learnt too.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014). Its prior is an invertible network instead of a
plain Gaussian (as in Chen et al., "Variational Lossy Autoencoder", 2017): a code drawn from a Gaussian is
seldom one that the encoder would give, and paints nonsense.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from pixelkiln_worker.families.noise_nets import CodePrior
from training.dataset import Split
from training.loop import Metrics, Plan, Trainer, load_average
from training.muon import Muon, split_parameters
from training.noise_models import package_sampler, sampler_facts, score_sampler
from training.scene_latents import load_code, scene_latents
from training.world.grammar import FIRST_OBJECT_CLASS

MODEL, SHARE, BATCH_SIZE = "toyworld-vae", 0.1, 64
CURVE = ("latent_error", "code_nats")
CODE_CHANNELS, CODE_SIDE = 6, 4
WIDTHS = (32, 48, 64)
_NOISE_VARIANCE = 0.07
"""Of the latents given the code: what the decoder may leave unsaid."""
_OBJECT_WEIGHT = 3.0
_FIRST_BETA, _BETA_FULL = 0.1, 0.4
_PRIOR_FROM, _PRIOR_BATCH = 0.65, 512
"""From this share of the budget the auto-encoder rests, and the prior alone learns its codes: cheap steps."""
_VALIDATION = 512


def build_vae() -> AutoencoderKL:
    """An AutoencoderKL of 0.8 M parameters: latents (4, 16, 16) to codes (6, 4, 4) and back."""
    return AutoencoderKL(
        in_channels=4,
        out_channels=4,
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        latent_channels=CODE_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_prior() -> CodePrior:
    """The invertible network of codes, 0.2 M parameters."""
    prior: CodePrior = CodePrior(channels=CODE_CHANNELS, side=CODE_SIDE)
    return prior


class Variation:
    """The task: give back latents from a code that costs few nats."""

    def __init__(
        self,
        vae: AutoencoderKL,
        prior: CodePrior,
        latents: NDArray[np.float16],
        cells: NDArray[np.uint8],
        validation: NDArray[np.float16],
        batch_size: int,
    ) -> None:
        self._vae, self._prior, self._batch_size = vae, prior, batch_size
        self._latents, self._cells = latents, cells
        self._rng = np.random.default_rng()
        self._posteriors: tuple[Tensor, Tensor] | None = None
        self._true = torch.from_numpy(np.asarray(validation[:_VALIDATION], np.float32))

    def loss(self, fraction: float) -> Tensor:
        return self._code_loss() if fraction >= _PRIOR_FROM else self._latent_loss(fraction)

    def _latent_loss(self, fraction: float) -> Tensor:
        chosen = self._rng.integers(len(self._latents), size=self._batch_size)
        true = torch.from_numpy(self._latents[chosen].astype(np.float32))
        objects = torch.from_numpy(self._cells[chosen] >= FIRST_OBJECT_CLASS).float()[:, None]
        posterior = self._vae.encode(true).latent_dist
        code = posterior.sample()
        error = (self._vae.decode(code).sample - true).square() * (1 + _OBJECT_WEIGHT * objects)
        beta = min(1.0, _FIRST_BETA + (1 - _FIRST_BETA) * fraction / _BETA_FULL)
        nats = self._nats(posterior, code).mean() / true[0].numel()
        loss: Tensor = error.mean() / (2 * _NOISE_VARIANCE) + beta * nats
        return loss

    def _code_loss(self) -> Tensor:
        """The prior's surprise, in nats a number, at codes of the auto-encoder as it is now."""
        if self._posteriors is None:
            self._posteriors = self._encode_all()
        mean, deviation = self._posteriors
        chosen = torch.from_numpy(self._rng.integers(len(mean), size=_PRIOR_BATCH))
        code = mean[chosen] + deviation[chosen] * torch.randn_like(mean[chosen])
        return -self._prior.log_likelihood(code).mean() / code[0].numel()

    @torch.no_grad()
    def _encode_all(self) -> tuple[Tensor, Tensor]:
        """Means and deviations, (n, 6, 4, 4) each, of the codes of all training scenes."""
        means, deviations = [], []
        for start in range(0, len(self._latents), 250):
            latents = torch.from_numpy(self._latents[start : start + 250].astype(np.float32))
            posterior = self._vae.encode(latents).latent_dist
            means.append(posterior.mean)
            deviations.append(posterior.std)
        return torch.cat(means), torch.cat(deviations)

    def _nats(self, posterior: Any, code: Tensor) -> Tensor:
        """The code's cost, (n,): its log density under the encoder less that under the prior."""
        nats: Tensor = -posterior.nll(code) - self._prior.log_likelihood(code)
        return nats

    def validate(self) -> Metrics:
        posterior = self._vae.encode(self._true).latent_dist
        code = posterior.sample()
        made = self._vae.decode(code).sample
        return {
            "latent_error": float((made - self._true).square().mean()),
            "code_nats": float(self._nats(posterior, code).mean()),
        }


def train(folder: Path, data: Path, plan: Plan) -> Metrics:
    """Train into `folder`; the checkpoint holds ``vae`` and ``prior``."""
    torch.manual_seed(0)
    vae, prior = build_vae(), build_prior()
    rest = [*prior.parameters()]
    matrices, others = split_parameters(vae, excluded=("conv_in", "conv_out"))
    optimizers = [Muon(matrices, lr=3e-3), torch.optim.AdamW([*others, *rest], 2e-3, betas=(0.9, 0.98))]
    trainer = Trainer(folder, plan, {"vae": vae, "prior": prior}, optimizers)
    train = scene_latents(folder.parent, data, "train")
    cells = Split.open(data / "train").cells
    task = Variation(
        vae,
        prior,
        np.asarray(train),
        np.asarray(cells),
        scene_latents(folder.parent, data, "validation"),
        plan.batch_size,
    )
    return trainer.run(task.loss, task.validate)


def load_vae(folder: Path) -> tuple[AutoencoderKL, CodePrior]:
    """The averaged networks of the run in `folder`."""
    vae, prior = build_vae(), build_prior()
    load_average(folder, {"vae": vae, "prior": prior})
    return vae.eval(), prior.eval()


def package(run: Path, folder: Path) -> None:
    """Save the networks of `run` to `folder` in fp16, as the worker's `samplers` family opens them."""
    vae, prior = load_vae(run)
    package_sampler(folder, prior, vae, load_code(run.parent))


score, facts = score_sampler, sampler_facts
