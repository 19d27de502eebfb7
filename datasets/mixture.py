"""Recipes of mixtures: drawn as a pure function of (seed, split, index), then rendered to audio."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from config.schema import Data
from datasets.corpus import Utterance
from utils.audio import read_audio, resample
from utils.errors import UserError


@dataclass(frozen=True)
class Clip:
    """A stretch of an utterance: `start` and `frames` in samples at the utterance's own rate.

    It is played `speed` times as fast, which raises pitch and formants alike: another voice.
    """

    utterance: str
    start: int
    frames: int
    speed: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """All that is needed to render one example; `snr_db` None mixes at the original levels (gain 1)."""

    index: int
    target: Clip
    interference: Clip
    reference: Clip
    snr_db: float | None = None

    def to_line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Recipe:
        """Raises UserError for a line that is no recipe."""
        try:
            fields = json.loads(line)
            clips = {name: Clip(**fields.pop(name)) for name in ("target", "interference", "reference")}
            return cls(fields.pop("index"), **clips, snr_db=fields.pop("snr_db", None))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a recipe ({error}): {line.strip()[:80]}") from error


@dataclass(frozen=True)
class Example:
    """Rendered audio, float32 [N] each; mixture = target + interference, sample by sample."""

    mixture: np.ndarray
    target: np.ndarray
    interference: np.ndarray


class Voice:
    """What one speaker can serve for: stretches to take targets from, each with its possible references."""

    def __init__(self, utterances: Sequence[Utterance], data: Data, slowest: float) -> None:
        self.pairs: list[tuple[Clip, list[Clip], int | None]] = []
        self.slowest = slowest
        self.same_utterance = len(utterances) == 1
        if self.same_utterance:
            rate = utterances[0].rate
            parts = _halves(utterances[0])
            for part, other in (parts, parts[::-1]):
                if other.frames >= data.reference.min_seconds * rate:
                    self._add(part, [_reference(other, rate, data)], rate, data)
            return
        long_enough = [u for u in utterances if u.seconds >= data.reference.min_seconds]
        references = [_reference(_whole(u), u.rate, data) for u in long_enough]  # one list for all targets
        place = {u.id: number for number, u in enumerate(long_enough)}
        for utterance in utterances:
            self._add(_whole(utterance), references, utterance.rate, data, place.get(utterance.id))

    def _add(
        self, stretch: Clip, references: list[Clip], rate: int, data: Data, own: int | None = None
    ) -> None:
        """`own`: the reference that is the target's utterance and is never drawn for it."""
        others = len(references) - (own is not None)
        if others and stretch.frames >= round(data.seconds * round(rate * self.slowest)):
            self.pairs.append((stretch, references, own))


def _whole(utterance: Utterance) -> Clip:
    return Clip(utterance.id, 0, utterance.frames)


def _halves(utterance: Utterance) -> tuple[Clip, Clip]:
    middle = utterance.frames // 2
    return Clip(utterance.id, 0, middle), Clip(utterance.id, middle, utterance.frames - middle)


def _reference(stretch: Clip, rate: int, data: Data) -> Clip:
    frames = min(stretch.frames, round(data.reference.max_seconds * rate))
    return Clip(stretch.utterance, stretch.start, frames)


class Drawer:
    """Draws the recipes of one split from its speakers.

    The reference is another utterance than the target; a speaker with one utterance only gives the target
    from one half of it and the reference from the other (`same_utterance` counts such speakers). Speakers
    whose audio is too short for that are listed in `unusable` as (speaker, cause). Speakers are drawn
    uniformly, then utterances, for training one of the `data.speeds` that the audio is long enough for
    (each makes another voice of every speaker), then offsets. With `data.paired`, examples 2k and 2k+1 are
    one mixture with the two speakers as target in turn.
    """

    def __init__(self, split: str, speakers: Mapping[str, Sequence[Utterance]], data: Data) -> None:
        self.data = data
        self._key = (data.seed, zlib.crc32(split.encode()))
        self._rates = {u.id: u.rate for utterances in speakers.values() for u in utterances}
        self._speeds = sorted(data.speeds) if split == "train" else [1.0]
        voices = {
            name: Voice(utterances, data, self._speeds[0]) for name, utterances in sorted(speakers.items())
        }
        self.voices = {name: voice for name, voice in voices.items() if voice.pairs}
        self.same_utterance = sum(voice.same_utterance for voice in self.voices.values())
        needed = f"{data.seconds:g} s for the target and {data.reference.min_seconds:g} s for the reference"
        self.unusable = [
            (name, f"{split} speaker left out: {sum(u.seconds for u in speakers[name]):.1f} s in "
                   f"{len(speakers[name])} utterances, needed are {needed}")
            for name in voices
            if name not in self.voices
        ]  # fmt: skip
        if len(self.voices) < 2:
            raise UserError(
                f"{split}: {len(self.voices)} of {len(voices)} speakers have enough audio "
                f"({needed}), a mixture needs two"
            )
        self._names = list(self.voices)

    def draw(self, index: int) -> Recipe:
        """The recipe of example `index`, whatever was drawn before."""
        data = self.data
        number = index // 2 if data.paired else index
        generator = np.random.default_rng([*self._key, number])
        first, second = generator.choice(len(self._names), size=2, replace=False)
        sides = [self._draw_side(self._names[i], generator) for i in (first, second)]
        snr_db = None
        if data.snr_db is not None:
            low, high = data.snr_db
            snr_db = round(float(generator.uniform(low, high)), 3)
        if data.paired and index % 2:
            sides.reverse()
            snr_db = None if snr_db is None else -snr_db
        (target, reference), (interference, _) = sides
        return Recipe(index, target, interference, reference, snr_db)

    def _draw_side(self, name: str, generator: np.random.Generator) -> tuple[Clip, Clip]:
        pairs = self.voices[name].pairs
        stretch, references, own = pairs[generator.integers(len(pairs))]
        choice = int(generator.integers(len(references) - (own is not None)))
        reference = references[choice + (own is not None and choice >= own)]
        rate = self._rates[stretch.utterance]
        lengths = [round(self.data.seconds * round(rate * speed)) for speed in self._speeds]
        possible = [pair for pair in zip(self._speeds, lengths, strict=True) if pair[1] <= stretch.frames]
        speed, frames = possible[generator.integers(len(possible))]
        offset = int(generator.integers(stretch.frames - frames + 1))
        target = Clip(stretch.utterance, stretch.start + offset, frames, speed)
        return target, replace(reference, speed=speed)


def read_clip(clip: Clip, utterance: Utterance, rate: int) -> np.ndarray:
    """The clip's audio, mono at `rate` Hz: float32 [round(seconds * rate)]."""
    own_rate = round(utterance.rate * clip.speed)
    samples, _ = read_audio(utterance.path, clip.start, clip.start + clip.frames)
    samples = resample(samples.mean(axis=0), own_rate, rate)
    expected = round(clip.frames * rate / own_rate)
    if abs(len(samples) - expected) > 1:
        raise UserError(
            f"{utterance.path}: {len(samples)} samples where the index promised {expected}; "
            "the file has changed or is truncated"
        )
    return np.pad(samples, (0, max(0, expected - len(samples))))[:expected]


def render(recipe: Recipe, utterances: Mapping[str, Utterance], rate: int) -> Example:
    """Reads and mixes what the recipe says at `rate` Hz. Raises UserError when audio is missing or short."""
    for clip in (recipe.target, recipe.interference):
        if clip.utterance not in utterances:
            raise UserError(f"recipe {recipe.index}: utterance {clip.utterance} is not in the corpus")
    target = read_clip(recipe.target, utterances[recipe.target.utterance], rate)
    interference = read_clip(recipe.interference, utterances[recipe.interference.utterance], rate)
    length = min(len(target), len(interference))
    target, interference = target[:length], interference[:length]
    if recipe.snr_db is not None:
        ratio = np.square(target, dtype=np.float64).mean() / max(
            np.square(interference, dtype=np.float64).mean(), 1e-12
        )
        interference = (interference * np.sqrt(ratio / 10 ** (recipe.snr_db / 10))).astype(np.float32)
    return Example(target + interference, target, interference)
