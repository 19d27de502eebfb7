"""Audio of any length piece by piece: read, resampled and written without holding it in memory."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import soundfile
import soxr

from utils.audio import (
    LARGEST_SAMPLE,
    av_blocks,
    av_frames,
    av_header,
    has_pictures,
    peak_level,
    require_file,
    system_name,
)
from utils.audio_check import promised_frames
from utils.errors import UserError
from utils.files import atomic_file

LARGEST_WAV = 2**32 - 2**16
"""Bytes of samples that a WAV file can hold; beyond it is written as RF64."""
SMALLEST_SHARE = 0.999
"""Of the samples that a header promises, fewer of which make a file cut off."""


SMALLEST_SHARE_OF_CONTAINERS = 0.95
"""The same of containers, which count the padding of their codec, or round."""


SLOWEST, FASTEST = 100, 10_000_000
"""Samples a second of what may be sound, in Hz."""


class AudioReader:
    """A recording of any format that libsndfile or PyAV knows: its `rate` in Hz, its number of `channels`.

    `frames`: the samples a channel that its header promises, 0 where it does not say; `expected`: about as
    many as there will be, 0 where nobody knows. Raises UserError for a
    file that is missing or no audio, or says a rate that no sound has.
    """

    def __init__(self, path: Path | str) -> None:
        require_file(path)
        self.path, self._state = path, _state(path)
        try:
            with soundfile.SoundFile(system_name(path)) as file:
                self.rate, self.channels = int(file.samplerate), int(file.channels)
                self.expected = self.frames = promised_frames(file) if 0 < file.frames < 2**48 else 0
            self._by_sndfile = True
        except soundfile.LibsndfileError:
            self._by_sndfile = False
            self.rate, self.frames = av_header(path)
            self.expected = self.frames or av_frames(path, self.rate)
            self.frames = self.frames or (0 if has_pictures(path) else self.expected)
            first = next(av_blocks(path), None)
            if first is None:
                raise UserError(f"{path}: holds no samples") from None
            self.channels = len(first)
        if not SLOWEST <= self.rate <= FASTEST:
            raise UserError(f"{path}: {self.rate} Hz; expected {SLOWEST} to {FASTEST}")

    def blocks(self, seconds: float = 1.0) -> Iterator[np.ndarray]:
        """All samples, float32 [C, n], about `seconds` at a time. Raises UserError where the file breaks off
        or ends before its header says (Ogg's do not say), for NaN, infinity and numbers that are no sound,
        for a file without samples, and for one that is not what it was when it was opened."""
        if _state(self.path) != self._state:
            raise UserError(f"{self.path}: was changed while it was read")
        count = 0
        parts = self._read(max(1, round(seconds * self.rate))) if self._by_sndfile else av_blocks(self.path)
        for block in parts:
            if not np.isfinite(block).all():
                at = count / self.rate
                raise UserError(f"{self.path}: holds NaN or infinite samples, the first after {at:.1f} s")
            if (peak := peak_level(block)) > LARGEST_SAMPLE:
                raise UserError(f"{self.path}: holds a sample of {peak:.3g}; floats in [-1, 1] are expected")
            count += block.shape[1]
            yield block
        if not count:
            raise UserError(f"{self.path}: holds no samples")
        least = SMALLEST_SHARE if self._by_sndfile else SMALLEST_SHARE_OF_CONTAINERS
        if count < least * self.frames:
            raise UserError(
                f"{self.path}: is cut off after {count / self.rate:.1f} of {self.frames / self.rate:.1f} s"
            )

    def _read(self, length: int) -> Iterator[np.ndarray]:
        try:
            with soundfile.SoundFile(system_name(self.path)) as file:
                while len(block := file.read(length, dtype="float32", always_2d=True)):
                    yield np.ascontiguousarray(block.T)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{self.path}: not a readable audio file ({error})") from error


def _state(path: Path | str) -> tuple[int, ...]:
    """By which a file is the same as before."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


class AudioWriter:
    """Takes blocks [C, n] for a WAV file of 32-bit floats (nothing clips)."""

    def __init__(self, file: soundfile.SoundFile, watched: _Watched) -> None:
        self._file, self._watched = file, watched

    def __call__(self, block: np.ndarray) -> None:
        """Raises OSError when the disk is full."""
        try:
            self._file.write(np.asarray(block, np.float32).T)
        except (RuntimeError, AssertionError):
            self._watched.check()
            raise
        self._watched.check()


@contextmanager
def audio_writer(path: Path | str, rate: int, channels: int, frames: int) -> Iterator[AudioWriter]:
    """Opens a WAV file, which has its name when the block ends without an exception; `frames`: how many
    samples a channel are expected (0: not known). Raises UserError when the folder cannot be written."""
    form = "WAV" if 0 < 4 * channels * frames <= LARGEST_WAV else "RF64"
    with atomic_file(path) as temporary, temporary.open("wb+") as raw:
        watched = _Watched(raw)
        file = soundfile.SoundFile(watched, "w", rate, channels, "FLOAT", format=form)
        try:
            yield AudioWriter(file, watched)
        finally:
            file.close()
        watched.check()
        raw.flush()


class _Watched:
    """A file for libsndfile that remembers why it could not be written, which libsndfile does not say."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None  # type: BinaryIO, OSError | None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            return 0

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def standard_bytes() -> BinaryIO:
    """Standard input. Raises UserError where it is closed."""
    if sys.stdin is None:
        raise UserError("standard input is closed; it is where the sound should come from")
    return sys.stdin.buffer


def standard_output(stream: TextIO | None) -> BinaryIO:
    """The bytes of standard output. Raises UserError where it is closed."""
    if stream is None:
        raise UserError("standard output is closed; it is where the sound should go")
    return stream.buffer


@contextmanager
def reader_may_leave(stream: BinaryIO) -> Iterator[None]:
    """What reads a pipe may have had enough: that ends the block, and no error comes later from what is still
    in the buffer, which Python writes when it ends."""
    try:
        yield
    except BrokenPipeError:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class Spool:
    """Keeps what comes from pipes in temporary files until it is closed: readers of audio want to look around
    in it. Errors that leave its context name the pipe."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._names: dict[str, str] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._files.close()
        if isinstance(error, UserError) and self.shown(str(error)) != str(error):
            raise UserError(self.shown(str(error))) from error

    def shown(self, text: str) -> str:
        """A text with the names of the pipes for those of the temporary files."""
        for name, shown in self._names.items():
            text = text.replace(name, shown)
        return text

    def take(self, source: BinaryIO, name: str) -> Path:
        """The file of what comes from an open pipe that is called `name`."""
        file = self._files.enter_context(tempfile.NamedTemporaryFile(prefix="piped-", suffix=".wav"))  # noqa: SIM115
        shutil.copyfileobj(source, file)
        file.flush()
        _fill_in_length(file.name)
        self._names[file.name] = name
        return Path(file.name)

    def __call__(self, path: Path | str) -> Path:
        """The file to read: of a named pipe, such as the shell's <(...), its content, else `path` itself."""
        path = Path(path)
        if not path.is_fifo():
            return path
        with path.open("rb") as source:
            return self.take(source, str(path))


def _fill_in_length(path: str) -> None:
    """Writes the length of a WAV whose writer, who did not know it, left 0 in its last header."""
    with open(path, "rb+") as file:
        head = file.read(4096)
        at = head.find(b"data\0\0\0\0") + 4
        if head[:4] == b"RIFF" and at > 4 and (left := file.seek(0, os.SEEK_END) - at - 4) > 0:
            file.seek(at)
            file.write(min(left, 2**32 - 1).to_bytes(4, "little"))


def resampled(blocks: Iterator[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Blocks [C, n] at `rate` Hz -> blocks [C, m] at `new_rate` Hz, in all round(N * new / old) samples a
    channel: what `utils.audio.resample` makes of the whole."""
    if rate == new_rate:
        yield from blocks
        return
    stream: soxr.ResampleStream | None = None
    came = given = 0
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(rate, new_rate, len(block), quality="HQ")
            nothing = block[:, :0]
        came += block.shape[1]
        out = stream.resample_chunk(np.ascontiguousarray(block.T), last=False).T
        given += out.shape[1]
        if out.shape[1]:
            yield np.ascontiguousarray(out)
    if stream is not None:
        missing = round(came * new_rate / rate) - given
        out = stream.resample_chunk(np.ascontiguousarray(nothing.T), last=True).T[:, :missing]
        yield np.pad(out, ((0, 0), (0, missing - out.shape[1])))
