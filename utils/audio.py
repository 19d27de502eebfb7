"""Reading, writing and resampling audio; the only file that touches an audio library."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from utils.errors import UserError
from utils.files import atomic_file

AUDIO_SUFFIXES = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".m4a",
        ".mp4",
        ".aac",
        ".aiff",
        ".aif",
        ".webm",
        ".sph",
    }
)
FRAMES_PER_SECOND = 50  # of the levels that tell sound from silence
RANGE_DB, FLOOR_DB = 40.0, -70.0
CLOSED_GAP, SHORTEST_STRETCH = 0.3, 0.1  # seconds
_WAV_SIZE = re.compile(r"^\s*data\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_OGG_PAGE = 1 << 16  # bytes, at most
_STREAMED = 0x7FFFF000  # a WAV written to a pipe claims at least this many bytes: its writer could not know


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: `rate` in Hz, `frames` samples a channel."""

    rate: int
    frames: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def audio_info(path: Path | str) -> AudioInfo:
    """Reads the header only where libsndfile knows the format, else decodes. Raises UserError."""
    _require_file(path)
    try:
        info = soundfile.info(str(path))
        return AudioInfo(info.samplerate, info.frames, info.channels)
    except soundfile.LibsndfileError:
        samples, rate = _decode(path)
        return AudioInfo(rate, samples.shape[1], samples.shape[0])


def read_audio(path: Path | str, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, int]:
    """Reads samples `start` to `stop` (at the file's own rate) of every channel.

    Returns (samples float32 [channels, N] in [-1, 1], rate in Hz). Formats that libsndfile does not know
    go through PyAV. Raises UserError for a missing, unreadable or empty file and for NaN or infinity in it.
    """
    _require_file(path)
    try:
        samples, rate = soundfile.read(str(path), start=start, stop=stop, dtype="float32", always_2d=True)
        samples = samples.T  # [channels, N]
    except soundfile.LibsndfileError:
        samples, rate = _decode(path)
        samples = samples[:, start:stop]
    if samples.shape[1] == 0:
        raise UserError(f"{path}: holds no samples")
    if not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        raise UserError(f"{path}: {bad} of {samples.size} samples are NaN or infinite")
    return np.ascontiguousarray(samples), int(rate)


def read_mono(path: Path | str, rate: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Like `read_audio`, averaged over channels and resampled to `rate` Hz: float32 [N].

    `start` and `stop` count samples at the file's own rate.
    """
    samples, own_rate = read_audio(path, start, stop)
    return resample(samples.mean(axis=0), own_rate, rate)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling (soxr, high quality) along the last axis: float32 [..., round(N*new/old)]."""
    if rate == new_rate:
        return samples.astype(np.float32, copy=False)
    length = round(samples.shape[-1] * new_rate / rate)
    moved = np.moveaxis(samples, -1, 0)
    out = np.moveaxis(soxr.resample(moved, rate, new_rate, quality="HQ"), 0, -1)
    out = out[..., :length]
    short = length - out.shape[-1]
    if short > 0:
        out = np.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, short)])
    return np.ascontiguousarray(out, dtype=np.float32)


def write_audio(path: Path | str, samples: np.ndarray, rate: int) -> None:
    """Writes float32 samples [N] or [channels, N] as 32-bit float WAV (nothing clips), atomically.

    Raises UserError when the folder cannot be written.
    """
    # encoded in memory: libsndfile would not say that the disk is full
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples, np.float32).T, rate, subtype="FLOAT", format="WAV")
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def active_seconds(
    samples: np.ndarray, rate: int, range_db: float = RANGE_DB, floor_db: float = FLOOR_DB
) -> float:
    """Seconds of speech in a mono signal [N]: 20 ms frames less than `range_db` below the loudest frame.

    Frames under `floor_db` dB re full scale never count, so digital silence and faint hiss give 0.
    """
    size = _frame_size(rate)
    active = _is_active(_frame_levels(samples, size), range_db, floor_db)
    return float(active.sum()) * size / rate


def _frame_size(rate: int) -> int:
    return max(1, rate // FRAMES_PER_SECOND)


def _frame_levels(samples: np.ndarray, size: int) -> np.ndarray:
    """Levels in dB re full scale of the whole frames of a mono signal [N]: [N // size]."""
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)


def _is_active(levels: np.ndarray, range_db: float = RANGE_DB, floor_db: float = FLOOR_DB) -> np.ndarray:
    return levels > max(levels.max(initial=-120.0) - range_db, floor_db)


def level_db(samples: np.ndarray) -> float:
    """Root mean square level in dB re full scale; -120 for digital silence."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def _require_file(path: Path | str) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")


def _decode(path: Path | str) -> tuple[np.ndarray, int]:
    """Decodes the first audio stream through PyAV: float32 [channels, N] and its rate in Hz."""
    rate, _ = _av_header(path)
    blocks = list(_av_blocks(path))
    if not blocks:
        raise UserError(f"{path}: holds no samples")
    return np.concatenate(blocks, axis=1), rate


def _av_header(path: Path | str) -> tuple[int, int]:
    """The rate in Hz and the samples a channel that the container promises (0: it says nothing)."""
    import av  # here: it is slow to import, and only rare formats need it

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path}: holds no audio stream")
            stream = container.streams.audio[0]
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0
            return int(stream.rate), round(seconds * stream.rate)
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: not a readable audio file ({error})") from error


def _av_blocks(path: Path | str) -> Iterator[np.ndarray]:
    """The first audio stream piece by piece: float32 [channels, n]. Raises UserError where it breaks off."""
    import av

    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="fltp", rate=container.streams.audio[0].rate)
            for frame in container.decode(audio=0):
                yield from (part.to_ndarray() for part in resampler.resample(frame))
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: not a readable audio file ({error})") from error


# ---------------------------------------------------------------- is the file what its header says?


class Examined(NamedTuple):
    """What was found by decoding a file, wholly or its end only.

    `frames` samples a channel were decoded (or, looking at the end only, are credible) of `promised` (0: the
    header does not say); `broken`: the decoder gave up before the end; `not_finite`: samples NaN or infinite.
    `active`: stretches [start, stop) in samples that are not silence, None where not all could be looked at.
    """

    rate: int
    frames: int
    promised: int
    broken: bool
    not_finite: int
    peak: float
    active: tuple[tuple[int, int], ...] | None


def examine_audio(path: Path | str, whole: bool = True) -> Examined:
    """Decodes a file second by second, however long it is; `whole=False`: the last quarter of a second only.

    What libsndfile does not know goes through PyAV and is always decoded wholly. Raises UserError for a file
    that is missing, unreadable or holds no samples at all.
    """
    _require_file(path)
    try:
        file = soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError:
        rate, promised = _av_header(path)
        found = _examine(_seconds_of(_av_blocks(path), rate), rate, promised)
    else:
        with file:
            known = 0 < file.frames < 2**48  # else a FLAC written to a pipe
            cut = file.format == "OGG" and not _ogg_ends(path)  # Ogg says its length nowhere else
            promised = _promised(file) if known and not cut else 0
            if known and not whole:
                found = _examine_end(file, promised)
            else:
                found = _examine(_blocks(file), file.samplerate, promised)
            found = found._replace(broken=found.broken or cut)
    if found.frames == 0 and not found.promised:
        raise UserError(f"{path}: holds no samples")
    return found


def _promised(file: soundfile.SoundFile) -> int:
    """Frames by the header; libsndfile itself trusts the size of a WAV more than its header."""
    sizes = _WAV_SIZE.search(file.extra_info)
    if sizes is None or int(sizes[2]) == 0 or int(sizes[1]) >= _STREAMED:
        return file.frames
    return round(file.frames * int(sizes[1]) / int(sizes[2]))


def _ogg_ends(path: Path | str) -> bool:
    """Whether the last page of an Ogg file is marked as the stream's last."""
    with Path(path).open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _OGG_PAGE))
        tail = file.read()
    flags = tail.rfind(b"OggS") + 5  # after the magic and a version
    return flags < len(tail) and bool(tail[flags] & 4)


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Seconds of a file: float32 [n, channels]. Raises UserError where it breaks off."""
    length = _frame_size(file.samplerate) * FRAMES_PER_SECOND
    try:
        while len(block := file.read(length, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise UserError(f"{file.name}: not a readable audio file ({error})") from error


def _seconds_of(parts: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Pieces [channels, n] of any length -> whole seconds [n, channels], and what is left at the end."""
    length = _frame_size(rate) * FRAMES_PER_SECOND
    held: list[np.ndarray] = []
    for part in parts:
        held.append(part.T)
        if sum(map(len, held)) >= length:
            joined = np.concatenate(held)
            whole = len(joined) // length * length
            yield joined[:whole]
            held = [joined[whole:]]
    if held and sum(map(len, held)):
        yield np.concatenate(held)


def _examine(blocks: Iterator[np.ndarray], rate: int, promised: int) -> Examined:
    size = _frame_size(rate)
    frames, not_finite, peak, broken = 0, 0, 0.0, False
    levels: list[np.ndarray] = []
    try:
        for block in blocks:  # [n, channels]
            finite = np.isfinite(block)
            not_finite += block.size - int(finite.sum())
            if not_finite == 0:
                mono = block.mean(axis=1)
                # a file shorter than a frame is one frame
                levels.append(_frame_levels(mono, len(mono) if frames == 0 and len(mono) < size else size))
                peak = max(peak, float(np.abs(block).max()))
            frames += len(block)
    except UserError:
        if frames == 0 and not promised:
            raise
        broken = True
    stretches = None
    if not_finite == 0 and levels:
        stretches = _stretches(_is_active(np.concatenate(levels)), rate, frames)
    return Examined(rate, frames, promised, broken, not_finite, peak, stretches)


def _examine_end(file: soundfile.SoundFile, promised: int) -> Examined:
    length = min(file.frames, max(1, file.samplerate // 4))
    try:
        file.seek(file.frames - length)
        block = file.read(length, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        block = np.zeros((0, 1), np.float32)
    finite = np.isfinite(block)
    broken = len(block) < length
    peak = float(np.abs(block[finite]).max(initial=0.0))
    not_finite = block.size - int(finite.sum())
    return Examined(file.samplerate, file.frames, promised, broken, not_finite, peak, None)


def _stretches(active: np.ndarray, rate: int, frames: int) -> tuple[tuple[int, int], ...]:
    """Runs of active 20 ms frames [T] in samples: short gaps closed, then clicks left out if more is left."""
    size = _frame_size(rate)
    padded = np.concatenate([[False], active, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)  # [runs, 2]
    if len(edges) == 0:
        return ()
    apart = (edges[1:, 0] - edges[:-1, 1]) * size >= CLOSED_GAP * rate
    starts = edges[np.concatenate([[True], apart]), 0]
    stops = edges[np.concatenate([apart, [True]]), 1]
    long = (stops - starts) * size >= SHORTEST_STRETCH * rate
    if long.any():
        starts, stops = starts[long], stops[long]
    # what is left of the last frame goes with the frame before it
    ends = np.where(stops == len(active), frames, stops * size)
    return tuple((int(start) * size, int(end)) for start, end in zip(starts, ends, strict=True))
