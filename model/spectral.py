"""Waveform <-> spectrum, and the mel front ends of the embedders, as modules with buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def stft(waveform: Tensor, n_fft: int, hop_length: int, window: Tensor, centred: bool = True) -> Tensor:
    """float [B, N] -> complex spectrum [B, N // hop + 1, n_fft / 2 + 1]; the ends are padded with zeros,
    unless frames begin with the signal (`centred` False), and there are n_fft // hop fewer of them."""
    spectrum = torch.stft(
        waveform.float(),
        n_fft,
        hop_length,
        len(window),
        window,
        center=centred,
        pad_mode="constant",
        return_complex=True,
    )
    return spectrum.transpose(1, 2)  # [B, T, F]


class Spectral(nn.Module):
    """Centred Hann STFT, its ends padded with zeros or reflected, and its inverse.

    The signal is padded with zeros to a multiple of the hop, so that every sample lies between two frame
    centres and the inverse is well conditioned to the last one. One that is too short to be reflected is
    padded with zeros.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, win_length: int, pad_mode: str = "constant") -> None:
        super().__init__()
        self.pad_mode = pad_mode
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """float [B, N] -> complex spectrum [B, T, F], T = ceil(N / hop) + 1, F = n_fft / 2 + 1."""
        pad, half = -waveform.shape[-1] % self.hop_length, self.n_fft // 2
        reflected = self.pad_mode == "reflect" and waveform.shape[-1] > half
        if reflected:  # of the signal itself: the zeros come behind
            waveform = nn.functional.pad(waveform, (half, half), mode="reflect")
        waveform = nn.functional.pad(waveform, (0, pad))
        return stft(waveform, self.n_fft, self.hop_length, self.window, not reflected)

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """complex [B, T, F] -> float [B, length]."""
        waveform = torch.istft(
            spectrum.transpose(1, 2),
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            center=True,
        )
        if waveform.shape[-1] < length:
            raise ValueError(f"{spectrum.shape[1]} frames hold {waveform.shape[-1]} samples, not {length}")
        return waveform[:, :length]


class MelSpectrogram(nn.Module):
    """Power mel spectrogram (Slaney scale and norm), optionally log10(x + 1e-6): [B, N] -> [B, T, M].

    Frames of `n_fft` samples, Hann window of `win_length`, centred with zero padding: what librosa's
    `feature.melspectrogram` computes with its defaults (tests compare them).
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, win_length: int, hop_length: int, mels: int, log: bool
    ) -> None:
        super().__init__()
        # here: inference with a stored embedding does not need torchaudio
        from torchaudio.functional import melscale_fbanks

        self.n_fft, self.hop_length, self.log = n_fft, hop_length, log
        filters = melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = stft(waveform, self.n_fft, self.hop_length, self.window)
        mel = (spectrum.real.square() + spectrum.imag.square()) @ self.filters  # [B, T, M]
        return torch.log10(mel + 1e-6) if self.log else mel


class HammingSpectrogram(nn.Module):
    """Magnitudes with a Hamming window, centred with zero padding: [B, N] -> [B, T, n_fft / 2 + 1]."""

    window: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hamming_window(win_length), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = stft(waveform, self.n_fft, self.hop_length, self.window)
        # the magnitude of exactly nothing has no gradient
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


DB_FLOOR, DB_REFERENCE, DB_RANGE = 1e-5, 20.0, 100.0
"""min_level_db -100 and ref_level_db 20 of the public re-implementation, whose floor is -100 dB."""
LOG_FLOOR = 1e-5


def to_db(magnitude: Tensor) -> Tensor:
    """The public re-implementation's decibels, which it clips to [0, 1] (loud bins, too)."""
    level = 20 * torch.log10(magnitude.clamp_min(DB_FLOOR)) - DB_REFERENCE
    return (level / DB_RANGE).clamp(-1, 0) + 1


def from_db(level: Tensor) -> Tensor:
    """Back to magnitudes, between -80 and 20 dB."""
    return 10 ** (((level.clamp(0, 1) - 1) * DB_RANGE + DB_REFERENCE) / 20)


def compressed(magnitude: Tensor, scale: str, exponent: float) -> Tensor:
    """Magnitudes on the scale that a network sees: linear, power, log or db."""
    match scale:
        case "linear":
            return magnitude
        case "power":
            return magnitude.clamp_min(0) ** exponent
        case "log":
            return torch.log(magnitude + LOG_FLOOR)
        case "db":
            return to_db(magnitude)
    raise ValueError(f"scale {scale!r}: expected linear, power, log or db")
