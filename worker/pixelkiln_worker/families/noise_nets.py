"""The networks between noise and latents that diffusers has no class for.

Both are plain diffusers models: `from_pretrained` reads a `config.json` and a safetensors file.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

_LARGEST_LOG_SCALE = 2.0


class Coupling(nn.Module):
    """Scales and shifts half of a vector by what the other half says."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.reader = nn.Sequential(
            nn.Linear(size // 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def read(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log scale and the shift for the other half, (n, size / 2) each."""
        log_scale, shift = self.reader(half).chunk(2, dim=1)
        return _LARGEST_LOG_SCALE * torch.tanh(log_scale / _LARGEST_LOG_SCALE), shift


class CodePrior(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """An invertible network from Gaussian noise to the codes an auto-encoder gives.

    After Dinh et al., "Density estimation using Real NVP" (2017): couplings, and between them a perfect
    shuffle of the numbers, so that each soon depends on every other.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = 6, side: int = 4, layers: int = 6, width: int = 128) -> None:
        super().__init__()
        self.shape = (channels, side, side)
        self.noise_size = size = channels * side * side
        self.couplings = nn.ModuleList(Coupling(size, width) for _ in range(layers))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, noise: Tensor) -> Tensor:
        """Turn (n, channels * side * side) noise into codes (n, channels, side, side)."""
        values = noise
        for coupling in self._couplings():
            still, moved = values.chunk(2, dim=1)
            log_scale, shift = coupling.read(still)
            values = _shuffle(torch.cat([still, moved * log_scale.exp() + shift], dim=1))
        codes: Tensor = (values * self.log_scale.exp() + self.shift).reshape(-1, *self.shape)
        return codes

    def log_likelihood(self, codes: Tensor) -> Tensor:
        """Return the log density, in nats, (n,), of (n, channels, side, side) codes."""
        values = (codes.flatten(1) - self.shift) * (-self.log_scale).exp()
        log_volume = -self.log_scale.sum().expand(len(codes))
        for coupling in reversed(self._couplings()):
            still, moved = _unshuffle(values).chunk(2, dim=1)
            log_scale, shift = coupling.read(still)
            values = torch.cat([still, (moved - shift) * (-log_scale).exp()], dim=1)
            log_volume = log_volume - log_scale.sum(1)
        gaussian = -0.5 * (values.square() + math.log(2 * math.pi)).sum(1)
        density: Tensor = gaussian + log_volume
        return density

    def _couplings(self) -> list[Coupling]:
        return [coupling for coupling in self.couplings if isinstance(coupling, Coupling)]


class CodePainter(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """The decoder half of an `AutoencoderKL`, by itself: a GAN's generator has no encoder."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 6,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (32, 48, 64),
    ) -> None:
        super().__init__()
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=1,
            norm_num_groups=8,
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Turn codes (n, latent_channels, h, w) into latents (n, out_channels, 4 h, 4 w)."""
        latents: Tensor = self.decoder(codes)
        return latents

    def decode(self, codes: Tensor) -> DecoderOutput:
        """Do the same in the manner of diffusers' auto-encoders."""
        return DecoderOutput(sample=self(codes))


def _shuffle(values: Tensor) -> Tensor:
    """Interleave the halves of (n, size)."""
    return values.reshape(len(values), 2, -1).transpose(1, 2).flatten(1)


def _unshuffle(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1, 2).transpose(1, 2).flatten(1)
