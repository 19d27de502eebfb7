"""What a speaker's recordings can serve for: passages to take targets from, references, interference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config.schema import Data
from datasets.corpus import Utterance
from datasets.recipe import Clip
from datasets.stretches import Stretches, active_frames, before, cut, draw_cut, halves, total, usable

SHORTEST_SECONDS = 1.0
"""A whole utterance that is the target (protocol padded) lasts at least this long."""


@dataclass(frozen=True)
class Passage:
    """A part of an utterance, and the references for targets out of it; `own`: the one that is never
    drawn."""

    utterance: Utterance
    stretches: Stretches
    references: Sequence[Clip] = ()
    own: int | None = None

    @property
    def choices(self) -> int:
        return len(self.references) - (self.own is not None)

    def clip(self, stretches: Stretches, speed: float = 1.0) -> Clip:
        return Clip(self.utterance.id, stretches, speed, self.utterance.digest)

    def meanwhile(self, begin: float, seconds: float, speed: float = 1.0, least: float = 0.1) -> Clip:
        """What a whole utterance holds, or less, while a segment of another one lasts (protocol padded).

        One that has ended by then, or holds less than `least` seconds of sound there, is taken from its first
        sound on, so that a mixture is one.
        """
        rate = round(self.utterance.rate * speed)
        offset = round(begin * rate)
        found = cut(self.stretches, offset, round(seconds * rate))
        if active_frames(found, self.utterance.active) < least * rate:
            sounds = [before(self.stretches, start) for start, _ in self.utterance.active or ()]
            found = cut(self.stretches, sounds[0] if sounds else 0, round(seconds * rate))
        return self.clip(found, speed)

    def draw_reference(self, generator: np.random.Generator) -> Clip:
        choice = int(generator.integers(self.choices))
        return self.references[choice + (self.own is not None and choice >= self.own)]

    def draw_segment(
        self, seconds: float, speeds: Sequence[float], data: Data, generator: np.random.Generator
    ) -> tuple[Clip, float]:
        """`seconds` of it at one of the speeds that it is long enough for, and where they begin in
        seconds."""
        rate = self.utterance.rate
        frames = [_frames(seconds, rate, speed) for speed in speeds]
        possible = [pair for pair in zip(speeds, frames, strict=True) if pair[1] <= total(self.stretches)]
        speed, wanted = possible[generator.integers(len(possible))]
        if data.offset == "first":
            stretches = cut(self.stretches, 0, wanted)
        else:
            least = round(min(data.min_active, seconds) * rate * speed)
            stretches = draw_cut(self.stretches, wanted, self.utterance.active, least, generator)
        return self.clip(stretches, speed), before(self.stretches, stretches[0][0]) / round(rate * speed)


class Voice:
    """One speaker's `passages` for targets, and `others`, which are long enough to interfere.

    The reference is another utterance than the target. Where only one utterance can serve, the target comes
    from one half of it and the reference from the other (`same_utterance`). `shortest`: seconds that a
    passage must have when it is played at `speed`; `short`: utterances that are never the target.
    """

    def __init__(
        self, utterances: Sequence[Utterance], data: Data, shortest: float, speed: float = 1.0
    ) -> None:
        whole = [Passage(u, usable(u, data.vad)) for u in utterances]
        clips = [reference_clip(p.utterance, p.stretches, data) for p in whole]
        references = [clip for clip in clips if clip]  # one list for all targets
        place = {clip.utterance: number for number, clip in enumerate(references)}
        passages = [Passage(p.utterance, p.stretches, references, place.get(p.utterance.id)) for p in whole]
        self.passages = [p for p in passages if p.choices and _lasts(p, shortest, speed)]
        self.same_utterance = False
        if not self.passages:
            longest = max(whole, key=lambda p: total(p.stretches) / p.utterance.rate)
            self.passages = [p for p in _halves(longest, data) if _lasts(p, shortest, speed)]
            self.same_utterance = bool(self.passages)
        targets = {p.utterance.id for p in self.passages}
        self.short = [u for u in utterances if u.id not in targets]
        self.others = [p for p in whole if _lasts(p, shortest if data.protocol == "crop" else 0.0, speed)]


def _halves(passage: Passage, data: Data) -> list[Passage]:
    first, second = halves(passage.stretches)
    active, least = passage.utterance.active, min(data.min_active, data.seconds) * passage.utterance.rate
    found = [
        (part, reference_clip(passage.utterance, other, data))
        for part, other in ((first, second), (second, first))
        if part and other and active_frames(part, active) >= least
    ]
    return [Passage(passage.utterance, part, [clip]) for part, clip in found if clip]


def _frames(seconds: float, rate: int, speed: float) -> int:
    """Samples of a recording that last so long when it is played at `speed`."""
    return round(seconds * round(rate * speed))


def _lasts(passage: Passage, seconds: float, speed: float) -> bool:
    return total(passage.stretches) >= _frames(seconds, passage.utterance.rate, speed)


def reference_clip(utterance: Utterance, stretches: Stretches, data: Data) -> Clip | None:
    """Enrolment audio: from the first sound on, at most `max_seconds`; None if it has under `min_seconds`."""
    sounds = [max(start, stretches[0][0]) for start, stop in utterance.active or () if stop > stretches[0][0]]
    offset = before(stretches, sounds[0]) if sounds else 0
    limit = data.reference.max_seconds
    frames = total(stretches) if limit is None else round(limit * utterance.rate)
    clip = cut(stretches, offset, frames)
    if active_frames(clip, utterance.active) < data.reference.min_seconds * utterance.rate:
        return None
    return Clip(utterance.id, clip, digest=utterance.digest)
