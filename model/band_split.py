"""A band-split mask network: recurrent layers over time and over bands, whose weights all bands share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.layers import Layer, OneWay, State, directions_of
from model.mask_network import EMBEDDING_SCALE, LayeredMask
from model.recurrent import call_lstm


class BandSplit(LayeredMask):
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

    # Its layers hand on the features of all K bands in rows [B, S, K*dim].

    def enter(self, levelled: Tensor) -> Tensor:
        x = self.see(levelled)  # [B, P, T, F]
        x = self.normalize(x.transpose(2, 3).flatten(1, 2)).unflatten(1, (self.planes, -1))  # [B, P, F, T]
        x = nn.functional.pad(x, (0, 0, 0, 1))[:, :, self.places]  # [B, P, K, W, T]
        x = nn.functional.pad(x.permute(2, 0, 4, 1, 3).flatten(3), (0, 0, 0, -x.shape[-1] % self.stack))
        x = x.reshape(self.bands, x.shape[1], -1, self.stack * x.shape[3])  # [K, B, S, stack*P*W], S steps
        return merge_bands(self.split(x.transpose(1, 2)))

    def recurrences(self) -> Iterator[OverTime | OverFrames]:
        for block in self.blocks:
            yield from block.recurrences()  # type: ignore[operator]

    def leave(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.hidden(self.norm(split_bands(x, self.bands))))
        x = self.out(x).unflatten(3, (self.stack, self.planes, -1))  # [K, S, B, stack, P, W]
        return self.to_mask(x.permute(2, 4, 1, 3, 0, 5).flatten(4)[..., self.back].flatten(2, 3))


class Block(nn.Module):
    """FiLM, an LSTM over time and one over bands or whole frames, of K bands' features [K, S, B, dim]."""

    def __init__(self, bands: int, embedding_dim: int, dim: int, lstm_dim: int, whole_dim: int) -> None:
        super().__init__()
        self.bands, self.dim = bands, dim
        self.film = nn.Linear(embedding_dim, 2 * bands * dim) if embedding_dim else None
        self.over_time = Residual(dim, lstm_dim)
        self.over_bands = None if whole_dim else Residual(dim, lstm_dim)
        self.over_frames = WholeResidual(bands * dim, whole_dim) if whole_dim else None

    def modulated(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Features [K, S, B, dim], scaled and shifted by what the embedding says."""
        if self.film is None or embedding is None:
            return x
        both = self.film(embedding * EMBEDDING_SCALE).unflatten(1, (2, self.bands, 1, self.dim))
        scale, shift = both.permute(1, 2, 3, 0, 4)  # [K, 1, B, dim] each
        return x * (1 + scale) + shift

    def along(self, x: Tensor) -> Tensor:
        """Features [K, S, B, dim] behind the layer over time."""
        rows = x.transpose(0, 1)  # [S, K, B, dim]
        return self.over_time(rows.flatten(1, 2)).view(rows.shape).transpose(0, 1)

    def across(self, x: Tensor) -> Tensor:
        """Features [K, S, B, dim] behind the layer over the bands, where there is one."""
        if self.over_bands is None:
            return x
        return self.over_bands(x.flatten(1, 2)).view(x.shape)

    def recurrences(self) -> Iterator[OverTime | OverFrames]:
        """Its LSTMs over time and over whole frames, in their order."""
        yield OverTime(self)
        if self.over_frames is not None:
            yield OverFrames(self.over_frames)


class Residual(nn.Module):
    """A bidirectional LSTM over the first axis [L, S, dim], added to what it reads."""

    def __init__(self, dim: int, lstm_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.lstm = nn.LSTM(dim, lstm_dim, bidirectional=True)
        self.back = nn.Linear(2 * lstm_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(call_lstm(self.lstm, self.norm(x))[0])


class WholeResidual(nn.Module):
    """A bidirectional LSTM over whole frames [S, B, W], through fewer features, added to what it reads."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.front = nn.Linear(width, dim)
        self.lstm = nn.LSTM(dim, dim, bidirectional=True)
        self.back = nn.Linear(2 * dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(call_lstm(self.lstm, torch.relu(self.front(self.norm(x))))[0])


class OverTime(Layer):
    """A block's LSTM over time, which all bands share, between what looks at every step by itself, such as
    the layer over bands. Features x [B, S, K*dim], outputs of both directions y [B, S, 2*K*H]."""

    def __init__(self, block: Block) -> None:
        self.block, self.layer = block, block.over_time
        self.input_size = self.output_size = block.bands * block.dim
        self.hidden_size = block.bands * self.layer.lstm.hidden_size

    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return merge_bands(self.layer.norm(self.block.modulated(split_bands(x, self.block.bands), embedding)))

    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        x = self.block.modulated(split_bands(x, self.block.bands), embedding)
        y = y.unflatten(2, (2, self.block.bands, -1)).permute(3, 1, 0, 2, 4).flatten(3)  # [K, S, B, 2H]
        return merge_bands(self.block.across(x + self.layer.back(y)))

    def __call__(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        x = self.block.along(self.block.modulated(split_bands(x, self.block.bands), embedding))
        return merge_bands(self.block.across(x))

    def directions(self) -> tuple[OneWay, OneWay]:
        forward, backward = directions_of(self.layer.lstm)
        return self._every_band(forward), self._every_band(backward)

    def _every_band(self, way: OneWay) -> OneWay:
        def run(x: Tensor, state: State | None) -> tuple[Tensor, State]:
            rows = x.unflatten(2, (self.block.bands, -1)).transpose(1, 2)  # [B, K, S, dim]
            y, state = way(rows.flatten(0, 1), state)
            return y.unflatten(0, rows.shape[:2]).transpose(1, 2).flatten(2), state

        return run


class OverFrames(Layer):
    """A block's LSTM over whole frames, in the same way: x [B, S, K*dim], y [B, S, 2*H]."""

    def __init__(self, layer: WholeResidual) -> None:
        self.layer, self.hidden_size = layer, layer.lstm.hidden_size
        self.input_size = self.output_size = layer.front.in_features

    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return torch.relu(self.layer.front(self.layer.norm(x)))

    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        return x + self.layer.back(y)

    def __call__(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        rows: Tensor = self.layer(x.transpose(0, 1))
        return rows.transpose(0, 1)

    def directions(self) -> tuple[OneWay, OneWay]:
        return directions_of(self.layer.lstm)


def merge_bands(x: Tensor) -> Tensor:
    """Features of bands [K, S, B, dim] -> rows [B, S, K*dim]."""
    return x.permute(2, 1, 0, 3).flatten(2)


def split_bands(x: Tensor, bands: int) -> Tensor:
    """Rows [B, S, K*dim] -> features of bands [K, S, B, dim]."""
    # not unflatten: behind it the exporter writes its example's batch into the LSTMs' first states
    return x.reshape(*x.shape[:2], bands, -1).permute(2, 1, 0, 3)


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
