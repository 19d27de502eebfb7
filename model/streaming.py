"""Separation while the sound arrives: blocks of a waveform in, the finished samples of the estimate out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.lite import Lite, LiteState
from model.separator import Separator
from utils.device import autocast


class StreamingSeparator:
    """The causal network's `separator` on blocks of any sizes; the estimates joined are what
    `separator(mixture, embedding)` makes of the whole mixture.

    The window is `win_length` samples within frames of n_fft, the rest of which is zeros: a frame is computed
    as soon as its window is full. `embedding` [B, D] stays the same for the stream (None: the network has
    no reference). Raises ValueError for another network than Lite, which would have to know what comes, for
    a separator in training mode, and for ends that are reflected: the padding at the end would change what
    has been given out.
    """

    _pending: Tensor | None  # [B, n], from the beginning of the next window on
    _state: LiteState | None
    _sum: Tensor  # [B, W - hop], what the windows so far reach beyond the frames, before the division
    _envelope: Tensor  # [W - hop], the sum of their squares

    def __init__(self, separator: Separator, embedding: Tensor | None = None) -> None:
        if not isinstance(separator.network, Lite):
            raise ValueError(
                f"network {separator.config.network.kind} hears the future, a stream needs network lite: "
                "the default of --stream is one, config/weights-lite-1.yaml and lite.yaml train others"
            )
        if separator.training:
            raise ValueError("a stream needs the separator in evaluation mode")
        spectral = separator.spectral
        if spectral.pad_mode != "constant":
            raise ValueError(f"audio.pad_mode {spectral.pad_mode}: a stream's ends are padded with zeros")
        self.separator, self.network, self.spectral = separator, separator.network, spectral
        self.embedding = separator.network.condition(embedding)
        self.hop, self.width = spectral.hop_length, spectral.win_length
        self.margin = (spectral.n_fft - self.width) // 2  # zeros before the window within its frame
        self.lead = spectral.n_fft // 2 - self.margin  # samples of a window before its frame's centre
        self._restart()

    @property
    def latency(self) -> int:
        """Samples that must follow one of the mixture until its estimate is given out, at most.

        A sample is finished by the last window that holds it, which begins no later than the sample and has
        to be full: win_length - 1 more. Between hops a sample waits for less; n_fft plays no part.
        """
        return self.width - 1

    @torch.inference_mode()
    def __call__(self, block: Tensor) -> Tensor:
        """The next samples [B, n], n from 0 -> the samples of the estimate [B, m] that they finish, m from 0.

        Raises ValueError for another number of waveforms than before, or than of embeddings.
        """
        waveforms = self._pending if self.embedding is None else self.embedding
        if block.ndim != 2 or (waveforms is not None and len(waveforms) != len(block)):
            rows = "B" if waveforms is None else len(waveforms)
            raise ValueError(f"a block of {tuple(block.shape)}: expected [{rows}, samples]")
        block = block.to(self.separator.device)
        self._open(block)
        assert self._pending is not None
        self._pending = torch.cat([self._pending, block.float()], dim=1)
        self._received += block.shape[1]
        ready = (self._pending.shape[1] - self.width) // self.hop + 1
        return self._advance(ready) if ready > 0 else block.new_zeros(len(block), 0, dtype=torch.float32)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The rest of the estimate [B, m]: the mixture has ended. The next block begins another one."""
        if self._pending is None:
            rows = 1 if self.embedding is None else len(self.embedding)
            return torch.zeros(rows, 0, device=self.separator.device)
        frames = -(-self._received // self.hop) + 1 - self._frames  # as Spectral counts them
        missing = (frames - 1) * self.hop + self.width - self._pending.shape[1]
        self._pending = nn.functional.pad(self._pending, (0, missing))
        rest = self._received - self._given
        finished = torch.cat([self._advance(frames), self._finish(self._sum, self._envelope)], dim=1)
        self._restart()
        return finished[:, :rest]

    def _restart(self) -> None:
        self._pending = self._state = None
        self._frames = self._received = self._given = 0
        self._before = self.lead  # samples to come that lie before the mixture

    def _open(self, block: Tensor) -> None:
        """Before the first block: the zeros before the first sample, and an overlap-add without frames."""
        if self._pending is None:
            self._pending = block.new_zeros(len(block), self.lead, dtype=torch.float32)
            self._sum = block.new_zeros(len(block), self.width - self.hop, dtype=torch.float32)
            self._envelope = block.new_zeros(self.width - self.hop, dtype=torch.float32)

    def _advance(self, frames: int) -> Tensor:
        """Takes `frames` full windows from what is pending -> the samples [B, m] that they finish."""
        assert self._pending is not None
        windows = self._pending[:, : (frames - 1) * self.hop + self.width].unfold(1, self.width, self.hop)
        self._pending = self._pending[:, frames * self.hop :]
        window = self.spectral.window
        pieces = self._separate(windows * window) * window  # [B, T, W]
        grow = (0, frames * self.hop)
        total, envelope = nn.functional.pad(self._sum, grow), nn.functional.pad(self._envelope, grow)
        for number, piece in enumerate(pieces.unbind(1)):
            place = slice(number * self.hop, number * self.hop + self.width)
            total[:, place] += piece
            envelope[place] += window.square()
        done = frames * self.hop
        self._frames += frames
        self._sum, self._envelope = total[:, done:], envelope[done:]
        return self._finish(total[:, :done], envelope[:done])

    def _finish(self, total: Tensor, envelope: Tensor) -> Tensor:
        """The next sums of windows -> samples of the estimate, without those before the mixture."""
        before = min(self._before, total.shape[1])
        self._before -= before
        self._given += total.shape[1] - before
        return total[:, before:] / envelope[before:]

    def _separate(self, windows: Tensor) -> Tensor:
        """Windowed samples [B, T, W] of the mixture -> of the estimate; the network's state moves on."""
        n_fft = self.spectral.n_fft
        after = n_fft - self.margin - self.width
        spectrum = torch.fft.rfft(nn.functional.pad(windows, (self.margin, after)))  # [B, T, F]
        with autocast(windows.device, self.separator.precision):
            mask, self._state = self.network.stream(spectrum.abs(), self.embedding, self._state)
        estimate = self.separator.masking(spectrum, mask.float())
        return torch.fft.irfft(estimate, n_fft)[..., self.margin : self.margin + self.width]
