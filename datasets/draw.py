"""Draws recipes: example `index` of a split as a pure function of (seed, split, index) and the corpora."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from config.schema import Data
from datasets.corpus import Utterance
from datasets.passages import SHORTEST_SECONDS, Voice
from datasets.recipe import EQUALIZER_HZ, Clip, Recipe, Source
from datasets.surroundings import BEHIND, Surroundings, at_level, draw_level
from utils.errors import UserError


class Drawer:
    """Draws the recipes of one split from its speakers and sounds.

    Speakers are drawn uniformly, then their utterances, for training one of the `data.speeds` that the audio
    is long enough for (each makes another voice of every speaker), then offsets. With `data.paired`,
    examples 2k and 2k+1 are one mixture with the two speakers as target in turn. Speakers with too little
    audio are listed in `unusable` as (speaker, cause); `same_utterance` counts those whose target and
    reference come from the two halves of their only utterance.

    `sounds`: the split's recordings of noise, music and rirs; `corpus`: the fingerprint that recipes carry.
    Raises UserError when the split has too few speakers or lacks sounds that are drawn from.
    """

    def __init__(
        self,
        split: str,
        speakers: Mapping[str, Sequence[Utterance]],
        data: Data,
        sounds: Mapping[str, Sequence[Utterance]] | None = None,
        corpus: str = "",
    ) -> None:
        self.data, self.corpus = data, corpus
        self.around = Surroundings(data.background, data.reverberation, data.min_active, sounds or {})
        self.segments = data.protocol == "crop" or split == "train"
        self._key = (data.seed, zlib.crc32(split.encode()))
        self._speeds = sorted(data.speeds) if split == "train" else [1.0]
        seconds = data.seconds if self.segments else SHORTEST_SECONDS
        slowest = self._speeds[0]
        voices = {name: Voice(speakers[name], data, seconds, slowest) for name in sorted(speakers)}
        self.voices = {name: voice for name, voice in voices.items() if voice.passages}
        self.same_utterance = sum(voice.same_utterance for voice in self.voices.values())
        slow = f" (at the slowest of data.speeds, {slowest:g})" if slowest != 1 else ""
        least = data.reference.min_seconds
        needed = f"{seconds * slowest:g} s for the target{slow}, {least:g} s for the reference"
        self.unusable = [
            (name, f"{split} speaker left out: {sum(u.seconds for u in speakers[name]):.1f} s in "
                   f"{len(speakers[name])} utterances, needed are {needed}")
            for name in voices
            if name not in self.voices
        ]  # fmt: skip
        # of speakers who stay: what never is the target
        self.short = [
            (u.path, f"{split}: never the target: {u.seconds:.2f} s, needed are {needed}")
            for voice in self.voices.values()
            for u in voice.short
        ]
        self._names = list(self.voices)
        self._check_speakers(split, len(voices), needed)
        self.around.require_sounds(split, [what for what in BEHIND if data.needs(what)])

    def _check_speakers(self, split: str, indexed: int, needed: str) -> None:
        there, data = len(self._names), self.data
        if there < 2:
            raise UserError(
                f"{split}: {there} of {indexed} speakers have enough audio ({needed}), a mixture needs two"
            )
        each = data.babble_voices if data.interference.babble else int(data.interference.speech > 0)
        most = 1 + (data.kinds.target_absent > 0) + data.interferers[1] * each
        if there < most:
            raise UserError(
                f"{split}: {there} speakers are too few, an example may hold {most} (interferers "
                f"{data.interferers}, babble of {data.babble_voices}: share {data.interference.babble:g}, "
                f"target_absent: share {data.kinds.target_absent:g})"
            )

    def references(self) -> list[Clip]:
        """Every reference that `draw` can name, in a fixed order."""
        passages = [passage for voice in self.voices.values() for passage in voice.passages]
        clips = {clip for passage in passages for clip in passage.references}
        found = {replace(clip, speed=speed) for clip in clips for speed in self._speeds}
        return sorted(found, key=lambda clip: (clip.utterance, clip.stretches, clip.speed))

    def draw(self, index: int) -> Recipe:
        """The recipe of example `index`, whatever was drawn before."""
        if self.data.paired:
            return self._draw_one_of_pair(index)
        data = self.data
        generator = np.random.default_rng([*self._key, index])
        kind = _choose(data.kinds.model_dump(), generator)
        person = self._other([], generator)
        target, reference, begin, seconds = self._target(person, generator)
        taken, found = [person], []
        if kind == "target_absent":
            found.append(self._speech(taken, seconds, begin, generator))
        if kind in ("mixture", "target_absent"):
            for _ in range(int(generator.integers(data.interferers[0], data.interferers[1] + 1))):
                what = _choose(data.interference.model_dump(), generator)
                source = self._interferer(what, taken, seconds, begin, generator)
                found.append(source if data.snr_db is None else at_level(source, data.snr_db, generator))
        if kind == "noise_only":
            found.append(self._only_noise(seconds, generator))
        else:
            found += self.around.draw_background(seconds, generator)
        wanted = target if kind in ("mixture", "target_alone") else None
        return self._finish(Recipe(index, kind, seconds, reference, wanted, tuple(found)), generator)

    def _draw_one_of_pair(self, index: int) -> Recipe:
        generator = np.random.default_rng([*self._key, index // 2])
        first = self._other([], generator)
        sides = [self._target(name, generator) for name in (first, self._other([first], generator))]
        snr_db = None if self.data.snr_db is None else draw_level(self.data.snr_db, generator)
        if index % 2:
            sides.reverse()
            snr_db = None if snr_db is None else -snr_db
        (target, reference, *_), (other, *_) = sides
        interference = (replace(other, snr_db=snr_db),)
        recipe = Recipe(index, "mixture", self.data.seconds, reference, target, interference)
        return self._finish(recipe, generator)

    def _finish(self, recipe: Recipe, generator: np.random.Generator) -> Recipe:
        """Puts everything before its microphone, through its codec, into its room and to its final level."""
        target, interference = recipe.target, recipe.interference
        # sounds of a pair are in the order of its first example, so that both examples have them alike
        swapped = self.data.paired and recipe.index % 2
        if place := self.around.draw_rooms(generator):
            rooms = [place() for _ in recipe.sources]
            rooms = rooms[::-1] if swapped else rooms
            if target:
                early = self.data.reverberation.target == "early"
                target = replace(target, room=replace(rooms.pop(0), early=early))
            interference = tuple(replace(s, room=r) for s, r in zip(interference, rooms, strict=True))
        for name, share, drawn in (
            ("equalizer", self.data.equalization.share, self._equalizer),
            ("codec", self.data.coding.share, self._codec),
        ):
            if not share:
                continue
            values = [drawn(generator) if generator.random() < share else None for _ in recipe.sources]
            values = values[::-1] if swapped else values
            changes: list[dict[str, Any]] = [{} if value is None else {name: value} for value in values]
            if target:
                target = replace(target, **changes.pop(0))
            interference = tuple(replace(s, **c) for s, c in zip(interference, changes, strict=True))
        gain_db = 0.0 if self.data.gain_db is None else draw_level(self.data.gain_db, generator)
        return replace(
            recipe, target=target, interference=interference, gain_db=gain_db,
            reverse=self.data.reverse, corpus=self.corpus,
        )  # fmt: skip

    def _equalizer(self, generator: np.random.Generator) -> tuple[float, ...]:
        """The gains of another microphone."""
        most = self.data.equalization.range_db
        return tuple(draw_level([-most, most], generator) for _ in EQUALIZER_HZ)

    def _codec(self, generator: np.random.Generator) -> str:
        codecs = self.data.coding.codecs
        return codecs[int(generator.integers(len(codecs)))]

    # ---------------------------------------------------------------- speakers

    def _other(self, taken: Sequence[str], generator: np.random.Generator) -> str:
        """A speaker who is not among `taken`."""
        while (name := self._names[generator.integers(len(self._names))]) in taken:
            pass
        return name

    def _target(self, name: str, generator: np.random.Generator) -> tuple[Source, Clip, float, float]:
        """Something that this speaker says, and a reference; also, in seconds, where in the utterance it
        begins and how long the mixture is."""
        passages = self.voices[name].passages
        passage = passages[generator.integers(len(passages))]
        reference = passage.draw_reference(generator)
        if not self.segments:
            clip = passage.clip(passage.stretches)
            return Source("speech", (clip,)), reference, 0.0, clip.frames / passage.utterance.rate
        at, seconds = self._padding(generator)
        clip, begin = passage.draw_segment(seconds, self._speeds, self.data, generator)
        return Source("speech", (clip,), at), replace(reference, speed=clip.speed), begin, self.data.seconds

    def _speech(
        self, taken: list[str], seconds: float, begin: float, generator: np.random.Generator
    ) -> Source:
        """Something that another speaker, who is added to `taken`, says meanwhile.

        `begin`: where in whole utterances (protocol padded) a segment of `seconds` starts.
        """
        taken.append(self._other(taken, generator))
        passages = self.voices[taken[-1]].others
        passage = passages[generator.integers(len(passages))]
        if self.data.protocol == "crop":
            at, part = self._padding(generator)
            clip, _ = passage.draw_segment(part, self._speeds, self.data, generator)
            return Source("speech", (clip,), at)
        speed = self._speeds[generator.integers(len(self._speeds))]
        return Source("speech", (passage.meanwhile(begin, seconds, speed),))

    def _padding(self, generator: np.random.Generator) -> tuple[float, float]:
        """Where a source of the protocol crop begins, and how long it lasts, in seconds."""
        whole = self.data.seconds
        if not self.data.padding:
            return 0.0, whole
        seconds = round(whole * (1 - float(generator.uniform(0, self.data.padding))), 4)
        return round(float(generator.uniform(0, whole - seconds)), 4), seconds

    # ---------------------------------------------------------------- everything else

    def _interferer(
        self, what: str, taken: list[str], seconds: float, begin: float, generator: np.random.Generator
    ) -> Source:
        if what == "speech":
            return self._speech(taken, seconds, begin, generator)
        if what == "babble":
            voices = [self._speech(taken, seconds, begin, generator) for _ in range(self.data.babble_voices)]
            clips = tuple(clip for voice in voices for clip in voice.clips)
            return Source("babble", clips, voices[0].at)
        if self.data.protocol == "padded":
            return self.around.draw_sound(what, seconds, generator)
        at, part = self._padding(generator)
        return replace(self.around.draw_sound(what, part, generator), at=at)

    def _only_noise(self, seconds: float, generator: np.random.Generator) -> Source:
        shares = self.data.interference.model_dump(include={"noise", "music"})
        if not any(shares.values()):
            shares = self.data.background.model_dump(include={"noise", "music"})
        return self.around.draw_sound(_choose(shares, generator), seconds, generator, loop=True)


def _choose(shares: Mapping[str, float], generator: np.random.Generator) -> str:
    """One of the names, with probabilities in proportion to their shares."""
    point = float(generator.random()) * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if share and point < 0:
            return name
    return [name for name, share in shares.items() if share][-1]
