"""A recording of any length: read, separated, judged and written piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
from torch import Tensor

from model.presence import PIECE_SECONDS, Calibration, Listener
from model.separator import CHUNK_SECONDS, Separator
from utils.audio_check import Clipping
from utils.audio_stream import AudioReader, AudioWriter, audio_writer, resampled
from utils.errors import UserError

Absent = Literal["estimate", "silence", "mixture"]
SILENCE_DB = -120.0


@dataclass(frozen=True)
class Wishes:
    """What is done with a separated recording.

    `strength` 1 leaves nothing of the rest in the estimate, 0 all of it; `mono` averages the channels first;
    `residual` writes what is left (mixture minus estimate), too. With a `calibration` it is judged whether
    the voice is there (probability of at least `threshold`), and `absent` says what is written where it is
    not.
    """

    strength: float = 1.0
    mono: bool = False
    residual: bool = False
    calibration: Calibration | None = None
    threshold: float = 0.5
    absent: Absent = "estimate"


@dataclass
class Report:
    """Of one recording: `rate` in Hz, its length, levels in dB re full scale of the mixture and of what is
    written as its estimate, the share of the mixture's samples that are clipped, and what was heard of the
    voice (None: it was not asked), most clearly `heard_at` seconds; `score` is the normalised similarity of
    model.presence.Evidence (None: without a cohort)."""

    mixture: str
    output: str
    rate: int
    channels: int
    seconds: float = 0.0
    mixture_db: float = SILENCE_DB
    estimate_db: float = SILENCE_DB
    clipped: float = 0.0
    presence: float | None = None
    present: bool | None = None
    similarity: float | None = None
    residual_similarity: float | None = None
    score: float | None = None
    heard_at: float | None = None
    written: str = "estimate"
    files: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        rounded = {key: round(v, 4) if isinstance(v, float) else v for key, v in vars(self).items()}
        return {key: value for key, value in rounded.items() if value is not None}


def separate_recording(
    separator: Separator,
    mixture: Path,
    embedding: Tensor | None,
    output: Path,
    wishes: Wishes,
    name: str | None = None,
    stopping: Event | None = None,
) -> Report:
    """Writes the estimate of a recording (and its residual, beside it) at its own rate, length and channels,
    in memory that does not grow with its length; `name` is what the report calls the recording. It
    ends early when `stopping` is set.

    Raises UserError for a recording that cannot be read to its end, and for an estimate that is not finite;
    then nothing has been written.
    """
    reader = AudioReader(mixture)
    channels = 1 if wishes.mono else reader.channels
    report = Report(name or str(mixture), str(output), reader.rate, channels)
    listener = None
    if wishes.calibration is not None and embedding is not None:
        listener = Listener(separator, embedding, wishes.calibration.cohort)

    def go_on() -> None:
        if stopping is not None and stopping.is_set():
            raise UserError(f"{report.mixture}: stopped")

    powers, count, clipping = np.zeros(2), 0, Clipping()
    names = [output, *([residual_path(output)] if wishes.residual else [])]
    with suppress(_Discard), _writers(names, reader, channels) as writers:
        for mixed, estimate in separated(separator, reader, embedding, wishes.mono, listener, go_on):
            if not np.isfinite(estimate).all():
                raise UserError(f"{report.mixture}: the estimate is NaN or infinite; the weights are damaged")
            kept = mixed + wishes.strength * (estimate - mixed)
            powers += _powers(mixed, kept)
            count += mixed.shape[1]
            clipping.add(mixed)
            for write, samples in zip(writers, (kept, mixed - kept), strict=False):
                write(samples)
        if listener is not None:
            _judge(report, listener, wishes)
        if report.present is False and wishes.absent != "estimate":
            raise _Discard
    if report.present is False and wishes.absent != "estimate":
        report.written, powers = wishes.absent, np.zeros(2)
        with _writers(names, reader, channels) as writers:
            for mixed in _blocks(reader, wishes.mono):
                go_on()
                kept = mixed if wishes.absent == "mixture" else np.zeros_like(mixed)
                powers += _powers(mixed, kept)
                for write, samples in zip(writers, (kept, mixed - kept), strict=False):
                    write(samples)
    report.seconds, report.clipped = count / reader.rate, clipping.share
    levels = 10 * np.log10(powers / (count * channels) + 1e-12)
    report.mixture_db, report.estimate_db = (float(level) for level in levels)
    report.files = [str(path) for path in names]
    return report


def residual_path(output: Path) -> Path:
    """Beside estimate.wav residual.wav, beside any other NAME.wav NAME-residual.wav."""
    name = "residual" if output.stem == "estimate" else f"{output.stem}-residual"
    return output.with_name(f"{name}{output.suffix}")


def _powers(mixed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.array([np.square(signal, dtype=np.float64).sum() for signal in (mixed, kept)])


def _judge(report: Report, listener: Listener, wishes: Wishes) -> None:
    """By the part in which the voice is heard most clearly."""
    assert wishes.calibration is not None
    found = listener.evidence()
    probabilities = [wishes.calibration.probability(evidence) for evidence in found]
    best = int(np.argmax(probabilities))
    evidence, report.presence, report.heard_at = found[best], probabilities[best], best * PIECE_SECONDS
    report.present = report.presence >= wishes.threshold
    report.similarity = evidence.similarity
    report.residual_similarity = evidence.residual_similarity
    report.score = evidence.score if wishes.calibration.cohort is not None else None


def separated(
    separator: Separator,
    reader: AudioReader,
    embedding: Tensor | None,
    mono: bool = False,
    listener: Listener | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mixture and estimate [C, n], block by block at the recording's own rate, sample-aligned and of its
    length. A `listener` hears both at the separator's rate, averaged over the channels. `go_on` is called
    before every block, and raises what should end it."""

    def at_own_rate() -> Iterator[np.ndarray]:
        for block in _blocks(reader, mono):
            go_on()
            yield block

    def at_separator_rate(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        return resampled(blocks, reader.rate, separator.sample_rate)

    short = 0 < reader.expected <= CHUNK_SECONDS * reader.rate
    again = not short and separator.hears_whole  # so that nothing of it has to be kept
    mixed, seen = (
        _Parts(at_own_rate if again else None),
        _Parts((lambda: at_separator_rate(at_own_rate())) if again else None),
    )

    def estimates() -> Iterator[np.ndarray]:
        heard = at_separator_rate(mixed.passing(at_own_rate()))
        if listener is not None:
            heard = seen.passing(heard)
        for block in separator.separate_blocks(heard, embedding):
            go_on()
            if listener is not None and block.shape[1]:
                listener(seen.take(block.shape[1]).mean(axis=0), block.mean(axis=0))
            yield block

    for block in resampled(estimates(), separator.sample_rate, reader.rate):
        part = mixed.take(block.shape[1])
        if part.shape[1]:
            yield part, block[:, : part.shape[1]]
    while (rest := mixed.take(reader.rate)).shape[1]:  # of rounding
        yield rest, np.zeros_like(rest)


def _blocks(reader: AudioReader, mono: bool) -> Iterator[np.ndarray]:
    for block in reader.blocks():
        yield block.mean(axis=0, keepdims=True) if mono else block


class _Parts:
    """Samples [C, n] in the order in which they passed, or in which they are read `again`."""

    def __init__(self, again: Callable[[], Iterator[np.ndarray]] | None) -> None:
        self.again, self.waiting = again, deque[np.ndarray]()
        self.reading: Iterator[np.ndarray] | None = None

    def passing(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            if self.again is None:
                self.waiting.append(block)
            yield block

    def take(self, length: int) -> np.ndarray:
        """The next `length` samples, or as many as there are."""
        taken, missing = [], length
        while missing and (part := self._next()) is not None:
            taken.append(part[:, :missing])
            if part.shape[1] > missing:
                self.waiting.appendleft(part[:, missing:])
            missing -= taken[-1].shape[1]
        return np.concatenate(taken, axis=1) if taken else np.zeros((1, 0), np.float32)

    def _next(self) -> np.ndarray | None:
        if self.waiting:
            return self.waiting.popleft()
        if self.again is None:
            return None
        self.reading = self.reading or self.again()
        return next(self.reading, None)


class _Discard(Exception):
    """What has been written is not wanted."""


@contextmanager
def _writers(names: Sequence[Path], reader: AudioReader, channels: int) -> Iterator[list[AudioWriter]]:
    """Files that get their names together at the end, or, after an exception, not at all."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(audio_writer(path, reader.rate, channels, reader.expected)) for path in names
        ]
