"""A U-Net mask network with FiLM at its bottleneck (Ronneberger et al. 2015, arXiv 1505.04597; identity-
conditioned as in AudioIdentitySpeechSeparation, after Y-Net, Montesinos et al. 2021, arXiv 2104.09946)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from model.mask_network import MaskNetwork, channels_last


class UNet(MaskNetwork):
    """5x5 convolutions with batch norm and LeakyReLU 0.1, halved in time and frequency between the levels,
    and back by bilinear up-sampling, every level beside its equal of the way down.

    At the bottleneck every feature is scaled and shifted by what the embedding says (FiLM). `channels` are
    those of the levels. It sees every `bin_step`-th bin, whose mask counts for the `bin_step` bins from it
    on. `options` are those of MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        bin_step: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(bins, embedding_dim, **options)
        self.bin_step = bin_step
        self.normalize = nn.BatchNorm2d(self.planes)
        inputs = (self.planes, *channels)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise(inputs))
        self.film = nn.Linear(embedding_dim, 2 * channels[-1]) if embedding_dim else None
        widths = tuple(reversed(channels))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairwise(widths))
        self.out = nn.Conv2d(channels[0], self.planes, 1)
        channels_last(self)

    @property
    def frame_multiple(self) -> int:
        return int(2 ** (len(self.down) - 1))

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        embedding = self.condition(embedding, len(mixture))
        x = self.see(mixture)[..., :: self.bin_step]  # [B, P, T, F/step]
        frames, bins = x.shape[2:]
        multiple = self.frame_multiple
        x = nn.functional.pad(self.normalize(x), (0, -bins % multiple, 0, -frames % multiple))
        levels: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if number else x)
            levels.append(x)
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        for block, level in zip(self.up, reversed(levels[:-1]), strict=True):
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, level], dim=1))
        x = self.out(x)[:, :, :frames, :bins]  # [B, P, T, F/step]
        return self.to_mask(x.repeat_interleave(self.bin_step, dim=3)[..., : self.bins])


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=2), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))
