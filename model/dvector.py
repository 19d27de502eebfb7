"""The GE2E LSTM d-vector embedder (Wan et al. 2018, arXiv 1710.10467) and its published variants."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.spectral import MelSpectrogram


class DVector(nn.Module):
    """Mel frames -> LSTM -> last frame -> linear -> (ReLU) -> unit length, a window at a time.

    An utterance's embedding is the mean over windows of `window` frames every `window_hop` frames, the last
    one ending with the utterance; `renormalize` scales that mean to unit length. `min_level_db` raises the
    level (root mean square, dB re full scale) of quieter utterances to that value.
    """

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
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        self.dim, self.sample_rate, self.relu = dim, sample_rate, relu
        self.window, self.window_hop = window, window_hop
        self.renormalize, self.min_level_db = renormalize, min_level_db
        self.mel = MelSpectrogram(sample_rate, n_fft, win_length, hop_length, mels, log_mel)
        self.lstm = nn.LSTM(mels, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, dim)

    def forward(self, mel: Tensor) -> Tensor:
        """Windows of mel frames [W, window, M] -> unit vectors [W, D]."""
        output, _ = self.lstm(mel)
        vector = self.linear(output[:, -1])
        if self.relu:
            vector = torch.relu(vector)
        return nn.functional.normalize(vector, dim=-1)

    def embed(self, waveforms: Sequence[Tensor], windows_at_once: int = 256) -> Tensor:
        """Utterances of any lengths, each [N] at `sample_rate` Hz -> embeddings [B, D].

        An utterance shorter than one window is repeated up to its length. Raises ValueError for an empty one.
        """
        shortest = (self.window - 1) * self.mel.hop_length
        prepared = [self._prepare(waveform, shortest) for waveform in waveforms]
        # the STFT pads with zeros, so zeros behind a shorter utterance leave its own frames as they are
        mel = self.mel(nn.utils.rnn.pad_sequence(prepared, batch_first=True))  # [B, T, M]
        owners, starts = self._windows([self.mel.frames(len(p)) for p in prepared])
        owners, starts = owners.to(mel.device), starts.to(mel.device)
        offsets = torch.arange(self.window, device=mel.device)
        vectors = torch.cat(
            [
                self(mel[owner[:, None], start[:, None] + offsets])
                for owner, start in zip(
                    owners.split(windows_at_once), starts.split(windows_at_once), strict=True
                )
            ]
        )
        total = vectors.new_zeros(len(waveforms), self.dim).index_add(0, owners, vectors)
        mean = total / torch.bincount(owners, minlength=len(waveforms))[:, None]
        return nn.functional.normalize(mean, dim=-1) if self.renormalize else mean

    def _prepare(self, waveform: Tensor, shortest: int) -> Tensor:
        if len(waveform) == 0:
            raise ValueError("an utterance without samples has no embedding")
        if len(waveform) < shortest:
            waveform = waveform.repeat(-(-shortest // len(waveform)))[:shortest]
        if self.min_level_db is not None:
            level = waveform.square().mean().sqrt().clamp_min(1e-8)
            waveform = waveform * (10 ** (self.min_level_db / 20) / level).clamp_min(1.0)
        return waveform

    def _windows(self, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Owner (utterance number) and first frame of every window."""
        owners, starts = [], []
        for owner, count in enumerate(frames):
            last = count - self.window
            own = sorted({*range(0, last + 1, self.window_hop), last})
            owners += [owner] * len(own)
            starts += own
        return torch.tensor(owners), torch.tensor(starts)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight or option."""
        digest = hashlib.sha256(repr(sorted(self.options.items())).encode())
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
