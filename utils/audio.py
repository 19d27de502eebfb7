"""Reading, writing and resampling audio; with audio_check.py the only file that touches an audio library."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from utils.errors import UserError
from utils.files import atomic_file

AUDIO_SUFFIXES = frozenset(
    [
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
        ".caf",
        ".w64",
        ".rf64",
        ".au",
        ".mka",
        ".mkv",
        ".mov",
        ".wma",
        ".3gp",
        ".ac3",
        ".amr",
        ".ape",
        ".avi",
        ".mp2",
        ".mpg",
        ".nist",
        ".wv",
    ]
)
LARGEST_SAMPLE = 100.0
"""Of sound within [-1, 1] or a little beyond; some write integers as floats, whose level is no voice's."""
FRAMES_PER_SECOND = 50  # of the levels that tell sound from silence
RANGE_DB, FLOOR_DB = 40.0, -70.0


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: `rate` in Hz, `frames` samples a channel."""

    rate: int
    frames: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def system_name(path: Path | str) -> str | bytes:
    """A name as libsndfile opens it: as bytes where names need not be text."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def audio_info(path: Path | str) -> AudioInfo:
    """Reads the header only where libsndfile knows the format, else decodes. Raises UserError."""
    require_file(path)
    try:
        info = soundfile.info(system_name(path))
        return AudioInfo(info.samplerate, info.frames, info.channels)
    except soundfile.LibsndfileError:
        samples, rate = _decode(path)
        return AudioInfo(rate, samples.shape[1], samples.shape[0])


def read_audio(path: Path | str, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, int]:
    """Reads samples `start` to `stop` (at the file's own rate) of every channel.

    Returns (samples float32 [channels, N] in [-1, 1], rate in Hz). Formats that libsndfile does not know
    go through PyAV. Raises UserError for a missing, unreadable or empty file and for NaN or infinity in it.
    """
    require_file(path)
    try:
        samples, rate = soundfile.read(
            system_name(path), start=start, stop=stop, dtype="float32", always_2d=True
        )
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
    size = frame_size(rate)
    active = is_active(frame_levels(samples, size), range_db, floor_db)
    return float(active.sum()) * size / rate


def frame_size(rate: int) -> int:
    return max(1, rate // FRAMES_PER_SECOND)


def frame_levels(samples: np.ndarray, size: int) -> np.ndarray:
    """Levels in dB re full scale of the whole frames of a mono signal [N]: [N // size]."""
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)


def is_active(levels: np.ndarray, range_db: float = RANGE_DB, floor_db: float = FLOOR_DB) -> np.ndarray:
    return levels > max(levels.max(initial=-120.0) - range_db, floor_db)


def level_db(samples: np.ndarray) -> float:
    """Root mean square level in dB re full scale; -120 for digital silence."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


def require_file(path: Path | str) -> None:
    """Raises UserError for a file that is missing, or whose name says that it holds samples of an unknown
    rate."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if Path(path).suffix.lower() == ".raw":
        raise UserError(f"{path}: samples without a header, which says no rate; make a WAV file of it")


def _decode(path: Path | str) -> tuple[np.ndarray, int]:
    """Decodes the first audio stream through PyAV: float32 [channels, N] and its rate in Hz."""
    rate, _ = av_header(path)
    blocks = list(av_blocks(path))
    if not blocks:
        raise UserError(f"{path}: holds no samples")
    return np.concatenate(blocks, axis=1), rate


def _cause(error: Exception) -> str:
    """FFmpeg's words, without its number and the file's name once more."""
    return str(getattr(error, "strerror", None) or error)


def av_header(path: Path | str) -> tuple[int, int]:
    """The rate in Hz and the samples a channel that the container promises (0: it says nothing)."""
    import av  # here: it is slow to import, and only rare formats need it

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path}: holds no audio stream")
            stream = container.streams.audio[0]
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0
            return int(stream.rate), round(seconds * stream.rate)
    except (av.error.FFmpegError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a readable audio file ({_cause(error)})") from error


def av_frames(path: Path | str, rate: int) -> int:
    """Samples a channel at `rate` Hz by the duration of the whole container (0: it says nothing)."""
    import av

    with av.open(str(path)) as container:
        return round((container.duration or 0) / av.time_base * rate)


def has_pictures(path: Path | str) -> bool:
    """Whether a container holds a video, which may last longer than its sound; a cover is none."""
    import av

    with av.open(str(path)) as container:
        cover = av.stream.Disposition.attached_pic
        return not all(stream.disposition & cover for stream in container.streams.video)


def av_blocks(path: Path | str) -> Iterator[np.ndarray]:
    """The first audio stream piece by piece: float32 [channels, n]. Raises UserError where it breaks off."""
    import av

    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="fltp", rate=container.streams.audio[0].rate)
            for frame in container.decode(audio=0):
                yield from (part.to_ndarray() for part in resampler.resample(frame))
    except (av.error.FFmpegError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a readable audio file ({_cause(error)})") from error


# ---- loudness and lossless files


def write_flac(path: Path | str, samples: np.ndarray, rate: int, bits: int = 16) -> None:
    """Writes samples [N] or [channels, N] in [-1, 1] as FLAC with 16 or 24 bits, atomically.

    Raises UserError when the folder cannot be written, ValueError for samples that would clip.
    """
    peak = peak_level(samples)
    if not peak <= 1.0:
        raise ValueError(f"{path}: the peak {peak} would clip, expected at most 1.0")
    with atomic_file(path) as temporary:
        temporary.write_bytes(flac_bytes(samples, rate, bits))


def flac_bytes(samples: np.ndarray, rate: int, bits: int = 16) -> bytes:
    """Samples [N] or [channels, N] in [-1, 1] as a FLAC file: encoded in memory, as libsndfile would not say
    that the disk is full."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples).T, rate, subtype=f"PCM_{bits}", format="FLAC")
    return buffer.getvalue()


LOUDNESS_BLOCK = 0.4  # seconds, ITU-R BS.1770-4


def integrated_loudness(samples: np.ndarray, rate: int) -> float:
    """Gated loudness in LUFS of a mono signal [N] (ITU-R BS.1770-4, EBU R 128); -inf if all is under -70.

    A signal shorter than one block of 0.4 s is repeated until it fills one: the level that it would have
    if it went on, whereas padding with silence would make it seem quieter than it is.
    """
    import pyloudnorm  # here: it imports scipy.signal, which takes a second

    block = math.ceil(LOUDNESS_BLOCK * rate)
    if len(samples) < block:
        samples = np.tile(samples, -(-block // len(samples)))[:block]
    # float64, since the weighting's high-pass at 38 Hz is a recursive filter
    return float(pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64)))


def peak_level(samples: np.ndarray) -> float:
    """The largest magnitude of a signal of any shape; 0 for an empty one."""
    return float(np.abs(samples).max(initial=0.0))
