"""Is an audio file what its header says, and where in it does something sound?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from utils.audio import (
    FRAMES_PER_SECOND,
    av_blocks,
    av_header,
    frame_levels,
    frame_size,
    is_active,
    require_file,
    system_name,
)
from utils.errors import UserError

CLOSED_GAP, SHORTEST_STRETCH = 0.3, 0.1  # seconds
_WAV_SIZE = re.compile(r"^\s*data\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_OGG_PAGE = 1 << 16  # bytes, at most
_STREAMED = 0x7FFFF000  # a WAV written to a pipe claims at least this many bytes: its writer could not know


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
    require_file(path)
    try:
        file = soundfile.SoundFile(system_name(path))
    except soundfile.LibsndfileError:
        rate, promised = av_header(path)
        found = _examine(_seconds_of(av_blocks(path), rate), rate, promised)
    else:
        with file:
            known = 0 < file.frames < 2**48  # else a FLAC written to a pipe
            cut = file.format == "OGG" and not _ogg_ends(path)  # Ogg says its length nowhere else
            promised = promised_frames(file) if known and not cut else 0
            if known and not whole:
                found = _examine_end(file, promised)
            else:
                found = _examine(_blocks(file), file.samplerate, promised)
            found = found._replace(broken=found.broken or cut)
    if found.frames == 0 and not found.promised:
        raise UserError(f"{path}: holds no samples")
    return found


def promised_frames(file: soundfile.SoundFile) -> int:
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
    length = frame_size(file.samplerate) * FRAMES_PER_SECOND
    try:
        while len(block := file.read(length, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise UserError(f"{file.name}: not a readable audio file ({error})") from error


def _seconds_of(parts: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Pieces [channels, n] of any length -> whole seconds [n, channels], and what is left at the end."""
    length = frame_size(rate) * FRAMES_PER_SECOND
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
    size = frame_size(rate)
    frames, not_finite, peak, broken = 0, 0, 0.0, False
    levels: list[np.ndarray] = []
    try:
        for block in blocks:  # [n, channels]
            finite = np.isfinite(block)
            not_finite += block.size - int(finite.sum())
            if not_finite == 0:
                mono = block.mean(axis=1)
                # a file shorter than a frame is one frame
                levels.append(frame_levels(mono, len(mono) if frames == 0 and len(mono) < size else size))
                peak = max(peak, float(np.abs(block).max()))
            frames += len(block)
    except UserError:
        if frames == 0 and not promised:
            raise
        broken = True
    stretches = None
    if not_finite == 0 and levels:
        stretches = _stretches(is_active(np.concatenate(levels)), rate, frames)
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
    size = frame_size(rate)
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


def clipped_share(samples: np.ndarray) -> float:
    """Share of the samples [channels, N] that stand at a limit: three or more equal ones after each other,
    within 1 % of the channel's largest magnitude, which is at least 0.05."""
    found = Clipping()
    found.add(samples)
    return found.share


class Clipping:
    """The `share` of a recording's samples that stand at a limit (see `clipped_share`), block by block."""

    def __init__(self) -> None:
        self.peak, self.clipped, self.count = np.zeros((1, 1)), np.zeros(1), 0

    def add(self, block: np.ndarray) -> None:
        """The next samples [channels, n]."""
        peak = np.abs(block).max(axis=-1, keepdims=True, initial=0.0)
        same_limit = (peak <= 1.01 * self.peak)[:, 0]  # else what stood at a lower one was not clipped
        self.peak = np.maximum(peak, self.peak)
        self.clipped = np.where(same_limit, self.clipped, 0) + _at_limit(block, self.peak).sum(axis=1)
        self.count += block.size

    @property
    def share(self) -> float:
        return float(self.clipped.sum() / max(1, self.count))


def _at_limit(samples: np.ndarray, peak: np.ndarray) -> np.ndarray:
    """Which of the samples [channels, N] stand at the limit `peak` [channels, 1]."""
    high = (np.abs(samples) >= 0.99 * peak) & (peak >= 0.05)
    same = (samples[:, 1:] == samples[:, :-1]) & high[:, 1:]
    run = same[:, 1:] & same[:, :-1]  # the third of a run, and all that follow
    clipped = np.zeros(samples.shape, bool)
    for shift in range(3):
        clipped[:, shift : shift + run.shape[1]] |= run
    return clipped
