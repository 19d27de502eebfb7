"""VoiceFilter-Lite (Wang et al. 2020, arXiv 2009.04323): a causal mask network, a frame at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.film_lstm import FilmLstm
from model.mask_network import MaskNetwork, at_level, channels_last
from model.recurrent import run_lstm


class LiteState(NamedTuple):
    """What a stream carries from frame to frame: the LSTM's hidden and cell [layers, B, H], the share of
    the mask that is applied [B, 1], and, where the network follows the level, the sums of the frames' powers
    and of their weights [B, 2]."""

    hidden: Tensor
    cell: Tensor
    share: Tensor
    level: Tensor | None = None


class Lite(MaskNetwork):
    """Convolutions over frequency alone, a unidirectional LSTM that also sees the embedding, a soft mask,
    and a head that hears whether voices overlap.

    It departs from the paper, which masks stacked filterbank energies for a recogniser: here it is the STFT
    magnitude in linear frequency, so that a voice comes out, and the network is larger for it (7.0 M
    parameters in config/lite.yaml).

    A frame's mask depends on this frame and earlier ones. With adaptive `suppression` the mask
    M counts for a share w: 1 - w * (1 - M), w_t = smoothing * w_(t-1) + (1 - smoothing) * (slope * p_t +
    offset), p_t the probability of overlapped speech, both w and what is averaged within [0, 1]; w starts
    at 0, where nothing is suppressed. Training sees the mask itself.

    Not the paper's, and what makes it listen to the reference sooner (docs/experiments.md): with
    `level_frames` N the mixture is seen relative to its root mean square up to each frame, older frames
    counting (1 - 1/N) times as much as the next ones (0: as it is); a `front` that is one linear layer; by
    the `injection` film the embedding scales and shifts what the first LSTM gives, and every LSTM is
    followed by layer normalisation. `options` are those of MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        channels: int = 16,
        lstm_dim: int = 512,
        lstm_layers: int = 3,
        front: Literal["convolution", "linear"] = "convolution",
        front_dim: int = 256,
        injection: Literal["concatenation", "film"] = "concatenation",
        level_frames: int = 0,
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
        self.level_frames, self.front = level_frames, front
        if front == "convolution":
            self.conv = convolutions(channels)
            width = 4 * (-(-bins // 2))
        else:
            self.normalize = nn.BatchNorm1d(bins, momentum=0.05)
            self.linear = nn.Linear(bins, front_dim)
            width = front_dim
        self.lstm: nn.LSTM | FilmLstm
        if injection == "film":
            self.lstm = FilmLstm(width, lstm_dim, lstm_layers, embedding_dim)
        else:
            self.lstm = nn.LSTM(width + embedding_dim, lstm_dim, lstm_layers, batch_first=True)
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
        mask, overlap, *_ = self._analyse(mixture, embedding, None)
        return mask, overlap

    def stream(
        self, mixture: Tensor, embedding: Tensor | None, state: LiteState | None
    ) -> tuple[Tensor, LiteState]:
        """The next frames [B, T, F], one or more, and the `state` that the ones before have left (None: the
        first) -> their mask, and the state after them. In any division the same as all at once."""
        share = mixture.new_zeros(len(mixture), 1) if state is None else state.share
        mask, overlap, (hidden, cell), level = self._analyse(mixture, embedding, state)
        if self.suppression == "adaptive":
            mask, share = self.adapt(mask, overlap, share)
        return mask, LiteState(hidden, cell, share, level)

    def adapt(self, mask: Tensor, overlap: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adaptive suppression: the mask [B, T, F] as far as the logits [B, T] ask for it, and the `share` of
        it [B, 1] that the last frame has applied (None: nothing came before)."""
        share = overlap.new_zeros(len(overlap), 1) if share is None else share
        target = (self.slope * torch.sigmoid(overlap) + self.offset).clamp(0, 1)  # [B, T]
        shares = decayed_sums((1 - self.smoothing) * target, self.smoothing, share)
        return 1 - shares[..., None] * (1 - mask), shares[:, -1:]

    def _analyse(
        self, mixture: Tensor, embedding: Tensor | None, state: LiteState | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor | None]:
        embedding = self.condition(embedding, len(mixture))
        mixture, level = self._follow_level(mixture, None if state is None else state.level)
        x = self._enter(mixture)
        carried = None if state is None else (state.hidden, state.cell)
        if isinstance(self.lstm, FilmLstm):
            x, left = self.lstm(x, embedding, carried)
        else:
            if embedding is not None:
                x = torch.cat([x, embedding[:, None].to(x.dtype).expand(-1, x.shape[1], -1)], dim=2)
            x, left = run_lstm(self.lstm, x, carried)
        return self.to_mask(self.out(x)[:, None]), self.noise_type(x)[..., 0].float(), left, level

    def _follow_level(self, mixture: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The mixture relative to its level up to each frame, and the sums [B, 2] to go on with."""
        if not self.level_frames:
            return mixture, None
        power = self.power(mixture)
        counted = torch.stack([power, torch.ones_like(power)], dim=1)  # [B, 2, T]
        before = counted.new_zeros(len(counted), 2) if before is None else before
        sums = decayed_sums(counted, 1 - 1 / self.level_frames, before[..., None])
        level = (sums[:, 0] / sums[:, 1]).clamp_min(1e-12).sqrt()
        return at_level(mixture, level), sums[..., -1]

    def _enter(self, mixture: Tensor) -> Tensor:
        """Magnitude [B, T, F] -> what the LSTM reads of it [B, T, W]."""
        x = self.see(mixture)
        if self.front == "convolution":
            return self.conv(x).transpose(1, 2).flatten(2)  # [B, 4, T, F/2] -> [B, T, 4*F/2]
        return torch.relu(self.linear(self.normalize(x[:, 0].transpose(1, 2)).transpose(1, 2)))


def convolutions(channels: int) -> nn.Sequential:
    """The paper's convolutions over frequency, [B, 1, T, F] -> [B, 4, T, F/2]"""
    layers = nn.Sequential(
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
    return channels_last(layers)


def decayed_sums(values: Tensor, decay: float, before: Tensor) -> Tensor:
    """s_t = decay * s_(t-1) + x_t of values x [..., T], the sums `before` them [..., 1] -> [..., T]; by a
    matrix [T, T], so long sounds come in pieces (a stream's, of some thousand frames)."""
    with torch.autocast(values.device.type, enabled=False):
        # the recursion written out: s_t = decay^(t + 1) s_-1 + sum_k decay^(t - k) x_k
        frames = torch.arange(values.shape[-1], device=values.device)
        ages = frames[:, None] - frames  # [T, T]
        powers = torch.where(ages >= 0, decay ** ages.clamp(min=0), 0.0)
        return values.float() @ powers.T + before.float() * decay ** (frames + 1)
