"""A long mixture through a network of bidirectional LSTMs, exactly as in one piece, in memory that does not
grow with its length.

What lies between the LSTMs sees one step at a time, and an LSTM goes on from the state in which it left the
piece before. So layer after layer goes over the pieces, once from the end to the beginning and once from the
beginning to the end; sound and features wait in temporary files meanwhile (at 16 kHz and 20
steps a second 0.13 MB a second and channel for a `film_blstm` of `lstm_dim` 256, 0.38 for a `band_split` of
25 bands of 96), of which the first MEMORY_BYTES of each file stay in memory.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from model.layers import Layer, State
from model.mask_network import LayeredMask, at_level
from model.masks import Masking
from model.spectral import Spectral, stft
from utils.device import autocast
from utils.errors import UserError

PIECE_SECONDS = 24.0
MEMORY_BYTES = 1 << 25


class Rows:
    """Rows [n, C, W] of numbers, appended or overwritten and read again, in a temporary file as soon as they
    are more than MEMORY_BYTES."""

    def __init__(self, channels: int, width: int) -> None:
        self.shape, self.size = (channels, width), 4 * channels * width
        self.file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115
        self.count = 0

    def write(self, start: int, values: Tensor) -> None:
        """Values [C, n, W] as rows from `start` on. Raises OSError, which names the folder, when the disk is
        full, and UserError where there is no folder to write in."""
        rows = values.detach().float().transpose(0, 1).contiguous().cpu().numpy()
        with _naming_the_folder():
            if start * self.size > MEMORY_BYTES:  # from the end on: all that is before it would be filled up
                self.file.rollover()
            self.file.seek(start * self.size)
            self.file.write(rows.tobytes())
        self.count = max(self.count, start + len(rows))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows -> values [C, n, W] in float32. Raises OSError as `write`, of what was still to be written."""
        with _naming_the_folder():
            self.file.seek(start * self.size)
            content = bytearray(self.file.read((stop - start) * self.size))
        values = np.frombuffer(content, np.float32)
        return torch.from_numpy(values.reshape(-1, *self.shape)).transpose(0, 1)

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written is not wanted any more
            self.file.close()


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "what waits of a long recording goes where TMPDIR says"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no temporary file ({error.strerror}); {advice}") from error
        error.filename, error.strerror = tempfile.gettempdir(), f"{error.strerror}; {advice}"
        raise


class LongMixture:
    """Separates a mixture [C, N] whose samples come in blocks, and of which there is more than a piece, by
    the mean of the networks' masks."""

    def __init__(
        self,
        networks: Sequence[LayeredMask],
        spectral: Spectral,
        masking: Masking,
        precision: str,
        sample_rate: int,
    ) -> None:
        self.networks, self.spectral, self.masking, self.precision = networks, spectral, masking, precision
        self.hop, self.half, self.device = spectral.hop_length, spectral.n_fft // 2, spectral.window.device
        self.planes = networks[0].planes
        self.stack = math.lcm(*(network.stack for network in networks))
        self.length = self.stack * max(1, round(PIECE_SECONDS * sample_rate / (self.hop * self.stack)))

    @torch.inference_mode()
    def __call__(self, blocks: Iterable[Tensor], embedding: Tensor | None) -> Iterator[Tensor]:
        """Blocks [C, n] and an embedding a channel [C, D] -> the estimate's samples [C, m], in pieces.

        The first comes when the last block has been read and all layers have heard it; before that there are
        empty ones, after each of which it may be given up. Raises OSError when the disk is full.
        """
        with ExitStack() as files:
            waves: Rows | None = None
            for block in blocks:
                if waves is None:
                    waves = files.enter_context(Rows(len(block), 1))
                waves.write(waves.count, block[..., None])
            if waves is None:
                return
            nothing = torch.zeros(waves.shape[0], 0)
            frames = -(-waves.count // self.hop) + 1
            pieces = self._pieces(frames)
            last: list[Rows] = []
            for network in self.networks:
                width = max(size for r in network.recurrences() for size in (r.input_size, r.output_size))
                last.append(files.enter_context(Rows(waves.shape[0], width)))
                for _ in self._hear(network, waves, last[-1], pieces, embedding):
                    yield nothing
            for piece in pieces:
                yield self._estimate(waves, last, piece, frames)

    def _hear(
        self,
        network: LayeredMask,
        waves: Rows,
        features: Rows,
        pieces: Sequence[tuple[int, int]],
        embedding: Tensor | None,
    ) -> Iterator[None]:
        """Fills `features` with those behind the network's last LSTM; stops for breath after every piece."""
        powers = []
        for piece in pieces:
            powers.append(network.power(self._seen(self._spectra(waves, *piece))))
            yield
        level = network.level(torch.cat(powers, dim=1), network.level_frames)
        for piece in pieces:
            with autocast(self.device, self.precision):
                levelled = at_level(self._seen(self._spectra(waves, *piece)), _part(level, *piece))
                self._keep(features, piece[0] // network.stack, network.enter(levelled))
            yield
        hidden = max(recurrence.hidden_size for recurrence in network.recurrences())
        with Rows(waves.shape[0], hidden) as backwards:
            for recurrence in network.recurrences():
                yield from self._recur(
                    recurrence, features, backwards, self.length // network.stack, embedding
                )

    def _pieces(self, frames: int) -> list[tuple[int, int]]:
        """First frame and the one behind the last of every piece."""
        return [(start, min(start + self.length, frames)) for start in range(0, frames, self.length)]

    def _spectra(self, waves: Rows, start: int, stop: int) -> Tensor:
        """The frames from `start` to before `stop` of the whole mixture's spectrum, complex [C, t, F]."""
        first, last = start * self.hop - self.half, (stop - 1) * self.hop + self.half
        inside = waves.read(max(0, first), min(waves.count, last))[..., 0]
        padded = nn.functional.pad(inside, (max(0, -first), max(0, last - waves.count)))
        spectral = self.spectral
        return stft(padded.to(self.device), spectral.n_fft, self.hop, spectral.window, False)

    def _seen(self, spectrum: Tensor) -> Tensor:
        return torch.view_as_real(spectrum) if self.planes == 2 else spectrum.abs()

    def _keep(self, rows: Rows, start: int, values: Tensor) -> None:
        rows.write(start, nn.functional.pad(values, (0, rows.shape[1] - values.shape[2])))

    def _recur(
        self, recurrence: Layer, features: Rows, backwards: Rows, steps: int, embedding: Tensor | None
    ) -> Iterator[None]:
        """Puts the recurrence's features in the place of those that it reads, `steps` at a time."""
        forward, backward = recurrence.directions()
        used, hidden = recurrence.input_size, recurrence.hidden_size
        places = [(s, min(s + steps, features.count)) for s in range(0, features.count, steps)]
        state: State | None = None
        for start, stop in reversed(places):
            with autocast(self.device, self.precision):
                x = recurrence.before(self._features(features, start, stop, used), embedding)
                y, state = backward(x.flip(1), state)
            self._keep(backwards, start, y.flip(1))
            yield
        state = None
        for start, stop in places:
            with autocast(self.device, self.precision):
                x = self._features(features, start, stop, used)
                y, state = forward(recurrence.before(x, embedding), state)
                both = torch.cat([y, backwards.read(start, stop)[..., :hidden].to(y)], dim=2)
                self._keep(features, start, recurrence.after(x, both, embedding))
            yield

    def _features(self, features: Rows, start: int, stop: int, used: int) -> Tensor:
        return features.read(start, stop)[..., :used].to(self.device)

    def _estimate(self, waves: Rows, last: Sequence[Rows], piece: tuple[int, int], frames: int) -> Tensor:
        """Samples [C, m] of a piece, with masks of as many frames around it as its samples are in."""
        around = -(-self.spectral.n_fft // (self.hop * self.stack)) * self.stack
        start, stop = max(0, piece[0] - around), min(frames, piece[1] + around)
        masks = []
        for network, features in zip(self.networks, last, strict=True):
            used = list(network.recurrences())[-1].output_size
            with autocast(self.device, self.precision):
                x = self._features(features, start // network.stack, -(-stop // network.stack), used)
                masks.append(network.leave(x)[:, : stop - start].float())
        masked = self.masking(self._spectra(waves, start, stop), torch.stack(masks).mean(0))
        length = (stop - start - 1) * self.hop
        first, behind = piece[0] * self.hop, min(piece[1] * self.hop, waves.count)
        offset = start * self.hop
        return self.spectral.inverse(masked, length)[:, first - offset : behind - offset].cpu()


def _part(level: Tensor, start: int, stop: int) -> Tensor:
    return level if level.shape[1] == 1 else level[:, start:stop]
