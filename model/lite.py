"""VoiceFilter-Lite (Wang et al. 2020, arXiv 2009.04323): a causal mask network, a frame at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.mask_network import MaskNetwork, channels_last
from model.recurrent import lstm_in_steps, runs_on_cpu

FEW_FRAMES = 4
"""Up to so many at once PyTorch's LSTM spends its time on the layout of its weights."""


class LiteState(NamedTuple):
    """What a stream carries from frame to frame: the LSTM's hidden and cell [layers, B, H], the share of
    the mask that is applied [B, 1]."""

    hidden: Tensor
    cell: Tensor
    share: Tensor


class Lite(MaskNetwork):
    """Convolutions over frequency alone, a unidirectional LSTM that also sees the embedding, a soft mask,
    and a head that hears whether voices overlap.

    It departs from the paper, which masks stacked filterbank energies for a recogniser: here it is the STFT
    magnitude in linear frequency, so that a voice comes out, and the network is larger for it (7.0 M
    parameters in config/lite.yaml).

    A frame's mask depends on this frame and earlier ones. With adaptive `suppression` the mask
    M counts for a share w: 1 - w * (1 - M), w_t = smoothing * w_(t-1) + (1 - smoothing) * (slope * p_t +
    offset), p_t the probability of overlapped speech, both w and what is averaged within [0, 1]; w starts
    at 0, where nothing is suppressed. Training sees the mask itself. `options` are those of MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        channels: int = 16,
        lstm_dim: int = 512,
        lstm_layers: int = 3,
        noise_type_dim: int = 64,
        suppression: Literal["full", "adaptive"] = "full",
        smoothing: float = 0.9,
        slope: float = 1.0,
        offset: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(bins, embedding_dim, **{"input": "power", **options})
        if self.planes != 1:
            raise ValueError("mask complex: this network gives a soft mask")
        self.suppression, self.smoothing, self.slope, self.offset = suppression, smoothing, slope, offset
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, (1, 7), padding=(0, 3)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), stride=(1, 2), padding=(0, 3)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
        channels_last(self.conv)
        width = 4 * (-(-bins // 2)) + embedding_dim
        self.lstm = nn.LSTM(width, lstm_dim, lstm_layers, batch_first=True)
        self.out = nn.Linear(lstm_dim, bins)
        self.noise_type = nn.Sequential(
            nn.Linear(lstm_dim, noise_type_dim),
            nn.ReLU(),
            nn.Linear(noise_type_dim, noise_type_dim),
            nn.ReLU(),
            nn.Linear(noise_type_dim, 1),
        )

    def compile_forward(self) -> None:
        self._analyse = torch.compile(self._analyse)  # type: ignore[method-assign]

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Magnitude [B, T, F] and embedding [B, D] -> soft mask [B, T, F]."""
        if self.training or self.suppression == "full":
            return self.mask_and_overlap(mixture, embedding)[0]
        return self.stream(mixture, embedding, None)[0]

    def mask_and_overlap(self, mixture: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mask [B, T, F] itself, and the logit of overlapped speech in every frame [B, T]."""
        mask, overlap, _ = self._analyse(mixture, embedding, None)
        return mask, overlap

    def stream(
        self, mixture: Tensor, embedding: Tensor | None, state: LiteState | None
    ) -> tuple[Tensor, LiteState]:
        """The next frames [B, T, F], one or more, and the `state` that the ones before have left (None: the
        first) -> their mask, and the state after them. In any division the same as all at once."""
        share = mixture.new_zeros(len(mixture), 1) if state is None else state.share
        mask, overlap, (hidden, cell) = self._analyse(mixture, embedding, state)
        if self.suppression == "adaptive":
            mask, share = self.adapt(mask, overlap, share)
        return mask, LiteState(hidden, cell, share)

    def adapt(self, mask: Tensor, overlap: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adaptive suppression: the mask [B, T, F] as far as the logits [B, T] ask for it, and the `share` of
        it [B, 1] that the last frame has applied (None: nothing came before)."""
        share = overlap.new_zeros(len(overlap), 1) if share is None else share
        target = (self.slope * torch.sigmoid(overlap) + self.offset).clamp(0, 1)  # [B, T]
        # the recursion written out, s for smoothing: w_t = s^(t + 1) w_-1 + (1 - s) sum_k s^(t - k) x_k
        frames = torch.arange(overlap.shape[1], device=overlap.device)
        ages = frames[:, None] - frames  # [T, T]
        powers = torch.where(ages >= 0, self.smoothing ** ages.clamp(min=0), 0.0)
        shares = (1 - self.smoothing) * target @ powers.T + share * self.smoothing ** (frames + 1)
        return 1 - shares[..., None] * (1 - mask), shares[:, -1:]

    def _analyse(
        self, mixture: Tensor, embedding: Tensor | None, state: LiteState | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        embedding = self.condition(embedding, len(mixture))
        x = self.conv(self.see(mixture))  # [B, 4, T, F/2]
        x = x.transpose(1, 2).flatten(2)  # [B, T, 4*F/2]
        if embedding is not None:
            x = torch.cat([x, embedding[:, None].to(x.dtype).expand(-1, x.shape[1], -1)], dim=2)
        if x.shape[1] <= FEW_FRAMES and runs_on_cpu(x):
            x, left = lstm_in_steps(self.lstm, x, None if state is None else (state.hidden, state.cell))
        else:
            carried = None if state is None else (state.hidden.to(x.dtype), state.cell.to(x.dtype))
            x, left = self.lstm(x, carried)  # [B, T, H]
        return self.to_mask(self.out(x)[:, None]), self.noise_type(x)[..., 0].float(), left
