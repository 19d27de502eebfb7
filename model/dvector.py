"""The GE2E LSTM d-vector embedder (Wan et al. 2018, arXiv 1710.10467) and its published variants."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from model.embedder import Embedder, mean_by_owner, times_at_once
from model.recurrent import call_lstm
from model.spectral import MelSpectrogram

WINDOWS_AT_ONCE = 64


class DVector(Embedder):
    """Mel frames -> LSTM -> last frame -> linear -> (ReLU) -> unit length, a window at a time.

    An utterance's embedding is the mean over windows of `window` frames every `window_hop` frames, the last
    one ending with the utterance; `renormalize` scales that mean to unit length. `projection` above 0
    projects the output of every LSTM layer to that many values. `min_level_db` raises the level (root mean
    square, dB re full scale) of quieter utterances to that value.
    """

    front: MelSpectrogram
    samples_at_once = 1_000_000

    def __init__(
        self,
        mels: int = 40,
        n_fft: int = 400,
        win_length: int = 400,
        hop_length: int = 160,
        sample_rate: int = 16000,
        log_mel: bool = True,
        hidden: int = 768,
        layers: int = 3,
        dim: int = 256,
        relu: bool = False,
        window: int = 160,
        window_hop: int = 80,
        renormalize: bool = False,
        min_level_db: float | None = None,
        projection: int = 0,
    ) -> None:
        options: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        super().__init__(kind="dvector", **options)
        self.dim, self.sample_rate, self.relu = dim, sample_rate, relu
        self.n_fft, self.hop_length = n_fft, hop_length
        self.window, self.window_hop, self.shortest = window, window_hop, window
        self.unit_length, self.min_level_db = renormalize, min_level_db
        self.front = MelSpectrogram(sample_rate, n_fft, win_length, hop_length, mels, log_mel)
        if projection:  # on a CPU torch computes these without oneDNN, and says so at every length
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        self.lstm = nn.LSTM(mels, hidden, layers, batch_first=True, proj_size=projection)
        self.linear = nn.Linear(projection or hidden, dim)

    def vectors(self, features: Tensor) -> Tensor:
        """Windows of mel frames [W, T, M] -> vectors [W, D] of the last frame."""
        # cuDNN gives an LSTM gradients in training mode only; without dropout the modes are the same
        self.lstm.train(torch.is_grad_enabled())
        output, _ = call_lstm(self.lstm, features)
        vector: Tensor = self.linear(output[:, -1])
        return torch.relu(vector) if self.relu else vector

    def embed_frames(self, features: Tensor, frames: Tensor) -> Tensor:
        owners, starts = self._windows(frames)
        offsets = torch.arange(self.window, device=features.device)
        most = WINDOWS_AT_ONCE * times_at_once(features.device)
        vectors = torch.cat(
            [
                self(features[owner[:, None], start[:, None] + offsets]).float()
                for owner, start in zip(owners.split(most), starts.split(most), strict=True)
            ]
        )
        mean = mean_by_owner(vectors, owners, len(features))
        return nn.functional.normalize(mean, dim=-1) if self.unit_length else mean

    def prepare(self, waveform: Tensor) -> Tensor:
        if self.min_level_db is None:
            return waveform
        # the root of exactly nothing has an infinite slope, and an estimate may be silent
        level = (waveform.square().mean() + 1e-16).sqrt()
        return waveform * (10 ** (self.min_level_db / 20) / level).clamp_min(1.0)

    def _windows(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B] of utterances -> owner (row) and first frame of every window [W]."""
        last = frames - self.window
        counts = -(-last // self.window_hop) + 1
        owners = torch.repeat_interleave(torch.arange(len(frames), device=frames.device), counts)
        first = (counts.cumsum(0) - counts)[owners]
        number = torch.arange(len(owners), device=frames.device) - first
        return owners, torch.minimum(number * self.window_hop, last[owners])
