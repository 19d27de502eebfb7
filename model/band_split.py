"""A band-split mask network: recurrent layers over time and over bands, whose weights all bands share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.mask_network import EMBEDDING_SCALE, MaskNetwork


class BandSplit(MaskNetwork):
    """Band-split recurrent network (Luo and Yu 2022, arXiv 2209.15174), told by FiLM whose voice is wanted.

    The spectrum is cut into bands: below `fine_share` of all bins they are `band_bins` bins wide, twice that
    up to twice as high, and so on. A linear layer of its own makes `dim` features of each. Every block then
    runs a bidirectional LSTM over time, the same for every band, and one over the bands, the same for every
    frame; the embedding scales and shifts the features of each band before it. What is learnt of one band
    serves all, so that few voices teach it more than a network over whole frames. With a `whole_dim`, every
    other block, from the first on, has an LSTM over whole frames, of so many features, in the place of the
    one over bands: that learns sooner to listen (docs/experiments.md). `stack` neighbouring frames share one
    step.

    The input is the mixture relative to its root mean square over the `level_frames` frames around each
    frame, so that a piece of a recording looks as it does within the whole. `options` are those of
    MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        dim: int = 64,
        lstm_dim: int = 64,
        blocks: int = 4,
        band_bins: int = 5,
        fine_share: float = 0.125,
        level_frames: int = 97,
        stack: int = 1,
        whole_dim: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(bins, embedding_dim, **{"input": "power", **options})
        self.level_frames, self.stack = level_frames, stack
        self.places: Tensor
        self.back: Tensor
        widths = band_widths(bins, band_bins, fine_share)
        self.bands, widest = len(widths), max(widths)
        # where each band's bins are; a narrow band is filled up with a bin that holds zeros
        places = torch.full((self.bands, widest), bins)
        low = 0
        for band, width in enumerate(widths):
            places[band, :width] = torch.arange(low, low + width)
            low += width
        self.register_buffer("places", places, persistent=False)
        back = torch.empty(bins, dtype=torch.long)
        inside = places < bins
        back[places[inside]] = inside.flatten().nonzero()[:, 0]
        self.register_buffer("back", back, persistent=False)
        self.normalize = nn.BatchNorm1d(self.planes * bins, momentum=0.05)
        width = stack * self.planes * widest
        self.split = BandLinear(self.bands, width, dim)
        self.blocks = nn.ModuleList(
            Block(self.bands, embedding_dim, dim, lstm_dim, 0 if index % 2 else whole_dim)
            for index in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.hidden = BandLinear(self.bands, dim, 2 * dim)
        self.out = BandLinear(self.bands, 2 * dim, width)

    @property
    def frame_multiple(self) -> int:
        return self.stack

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        embedding = self.condition(embedding, len(mixture))
        x = self.see(self.levelled(mixture, self.level_frames))  # [B, P, T, F]
        x = self.normalize(x.transpose(2, 3).flatten(1, 2)).unflatten(1, (self.planes, -1))  # [B, P, F, T]
        x = nn.functional.pad(x, (0, 0, 0, 1))[:, :, self.places]  # [B, P, K, W, T]
        frames = x.shape[-1]
        x = nn.functional.pad(x.permute(2, 0, 4, 1, 3).flatten(3), (0, 0, 0, -frames % self.stack))
        x = x.reshape(self.bands, x.shape[1], -1, self.stack * x.shape[3])  # [K, B, S, stack*P*W], S steps
        x = self.split(x.transpose(1, 2))  # [K, S, B, dim]
        for block in self.blocks:
            x = block(x, embedding)
        x = torch.tanh(self.hidden(self.norm(x)))
        x = self.out(x).unflatten(3, (self.stack, self.planes, -1))  # [K, S, B, stack, P, W]
        x = x.permute(2, 4, 1, 3, 0, 5).flatten(4)[..., self.back].flatten(2, 3)  # [B, P, S*stack, F]
        return self.to_mask(x[:, :, :frames])


class Block(nn.Module):
    """Features [K, S, B, dim] and embedding [B, D] -> features of the same shape."""

    def __init__(self, bands: int, embedding_dim: int, dim: int, lstm_dim: int, whole_dim: int) -> None:
        super().__init__()
        self.bands, self.dim = bands, dim
        self.film = nn.Linear(embedding_dim, 2 * bands * dim) if embedding_dim else None
        self.over_time = Layer(dim, lstm_dim)
        self.over_bands = None if whole_dim else Layer(dim, lstm_dim)
        self.over_frames = WholeLayer(bands * dim, whole_dim) if whole_dim else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        if self.film is not None and embedding is not None:
            both = self.film(embedding * EMBEDDING_SCALE).unflatten(1, (2, self.bands, 1, self.dim))
            scale, shift = both.permute(1, 2, 3, 0, 4)  # [K, 1, B, dim] each
            x = x * (1 + scale) + shift
        bands, steps, batch, dim = x.shape
        x = self.over_time(x.transpose(0, 1).flatten(1, 2)).view(steps, bands, batch, dim)
        if self.over_frames is not None:
            x = self.over_frames(x.transpose(1, 2).flatten(2))  # [S, B, K*dim]
            return x.view(steps, batch, bands, dim).permute(2, 0, 1, 3)
        assert self.over_bands is not None
        return self.over_bands(x.transpose(0, 1).flatten(1, 2)).view(bands, steps, batch, dim)


class Layer(nn.Module):
    """A bidirectional LSTM over the first axis [L, S, dim], added to what it reads."""

    def __init__(self, dim: int, lstm_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.lstm = nn.LSTM(dim, lstm_dim, bidirectional=True)
        self.back = nn.Linear(2 * lstm_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.lstm(self.norm(x))[0])


class WholeLayer(nn.Module):
    """A bidirectional LSTM over whole frames [S, B, W], through fewer features, added to what it reads."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.front = nn.Linear(width, dim)
        self.lstm = nn.LSTM(dim, dim, bidirectional=True)
        self.back = nn.Linear(2 * dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.lstm(torch.relu(self.front(self.norm(x))))[0])


class BandLinear(nn.Module):
    """A linear layer for each band, [K, ..., inputs] -> [K, ..., outputs]."""

    def __init__(self, bands: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(bands, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(bands, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.baddbmm(self.bias, x.flatten(1, -2), self.weight)
        return flat.view(*x.shape[:-1], -1)


def band_widths(bins: int, band_bins: int, fine_share: float) -> list[int]:
    """Widths in bins, low to high: `band_bins` up to `fine_share` of the bins, doubled with every octave."""
    widths, width, low, end = [], band_bins, 0, max(1, round(bins * fine_share))
    while low < bins:
        while low >= end:
            end, width = 2 * end, 2 * width
        left = bins - low
        widths.append(width if left >= 1.5 * width else left)  # a narrow rest belongs to the last one
        low += widths[-1]
    return widths
