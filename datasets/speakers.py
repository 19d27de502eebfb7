"""For training embedders: who is heard, who is held out, and batches of several crops of each person."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from config.embedder_schema import EmbedderData, EmbedderTrain
from datasets.corpus import (
    Corpus,
    Utterance,
    corpus_fingerprint,
    heard_speakers,
    index_corpus,
    split_speakers,
)
from datasets.dataset import Batch
from datasets.mixture import render
from datasets.plan import Recordings, index_recordings, split_sounds, wanted_speakers
from datasets.recipe import Clip, Recipe, Source
from datasets.stretches import active_frames, draw_cut
from datasets.surroundings import Surroundings, draw_level
from utils.errors import UserError
from utils.files import fingerprint

LEAST_SECONDS = 0.4
"""An utterance with less sound says too little of a voice."""
MIN_ACTIVE = 0.5
"""A crop holds as many seconds of sound if the utterance has them."""


@dataclass(frozen=True)
class SpeakerSplit:
    """Utterances by person of `train` and `validation`, the names of the `test` persons, and the `sounds`
    of training by kind.

    `fingerprint` names by 16 hexadecimal digits the content of what training and validation may read;
    (path, cause) of `unusable` files.
    """

    train: dict[str, list[Utterance]]
    validation: dict[str, list[Utterance]]
    test: list[str]
    sounds: dict[str, list[Utterance]]
    fingerprint: str
    unusable: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """A line each for training and validation."""
        lines = []
        for name in ("train", "validation"):
            found = [u for utterances in getattr(self, name).values() for u in utterances]
            minutes = sum(u.seconds for u in found) / 60
            lines.append(
                f"{name}: {len(getattr(self, name))} speakers, {len(found)} utterances, {minutes:.1f} minutes"
            )
        return "\n".join(lines)


def index_speakers(data: EmbedderData, cache: Path | None = None) -> SpeakerSplit:
    """Indexes every folder that `data` names and prints what was found and who serves for what.

    Raises UserError where nothing is found or there are too few speakers.
    """
    part = data.validation
    recordings = index_recordings(data, cache)
    judged = None
    if part.corpus:
        judged = index_corpus(part.corpus, check=data.check, cache=cache)
        print(f"validation corpus: {judged.describe()}")
    split = speaker_split(recordings, data, judged)
    print(split.describe())
    return split


def speaker_split(recordings: Recordings, data: EmbedderData, judged: Corpus | None = None) -> SpeakerSplit:
    """The persons of training, validation and test, as a separator with the same corpora, seed and shares
    has them.

    `judged`: the corpus of `data.validation.corpus`, all of whose speakers are for validation, their ids
    prefixed. Those of `recordings` that validation would have held out are trained on then; test stays
    what it is for the separator. Raises UserError for too few speakers, and for people in both corpora.
    """
    speakers = _by_speaker(recordings.by_kind["speech"])
    names = split_speakers(sorted(speakers), data.seed, wanted_speakers(data, speakers))
    held_out, unusable = {name: speakers[name] for name in names["validation"]}, list(recordings.unusable)
    if judged is not None:
        names["train"] = sorted(speakers.keys() - heard_speakers(speakers, names.get("test", ())))
        _require_strangers(judged, recordings.by_kind["speech"])
        held_out = _by_speaker(replace(u, id=f"validation:{u.id}") for u in judged.utterances)
        unusable += judged.unusable
    train = {name: speakers[name] for name in names["train"]}
    sounds = split_sounds(recordings.by_kind, data)["train"]
    content = [corpus_fingerprint(itertools.chain(*part.values())) for part in (train, held_out, sounds)]
    return SpeakerSplit(
        train, held_out, names.get("test", []), sounds, fingerprint(content), tuple(sorted(unusable))
    )


def _by_speaker(utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    return dict(sorted(speakers.items()))


def _require_strangers(judged: Corpus, known: Sequence[Utterance]) -> None:
    """Raises UserError if somebody of the validation corpus, or a file of it, is in data.corpus as well, or
    if there are not two people."""
    there, speakers = {u.speaker for u in known}, judged.by_speaker()
    if both := sorted(heard_speakers(speakers, there)):
        raise UserError(
            f"data.validation.corpus: {len(both)} of its {len(speakers)} speakers are also in data.corpus "
            f"({', '.join(both[:3])}{' ...' if len(both) > 3 else ''}); who is heard in training cannot judge"
        )
    # a digest with ~ is of a part of the file only
    digests = {u.digest for u in known if not u.digest.startswith("~")} - {""}
    if copies := [u.path for u in judged.utterances if u.digest in digests]:
        raise UserError(
            f"data.validation.corpus: {len(copies)} of its files are also in data.corpus "
            f"(the first: {copies[0]}): their speakers are the same under another name"
        )
    if len(speakers) < 2:
        raise UserError(f"data.validation.corpus: {len(speakers)} speaker, to compare there must be two")


class Steps(Sampler[int]):
    """The numbers of all steps from `start` on, endlessly."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class SpeakerCrops(Dataset[Batch]):
    """Batches of N different people x M crops, all of one length; batch `step` is a pure function of
    (seed, step) and of the corpus' content.

    N is `train.speakers`, M `train.utterances`; a batch's length in frames is drawn from `train.frames`, and
    `crop_samples` says how many samples at `rate` Hz that is. A person is played at one of `data.speeds`,
    each another of the `classes`: label = number in `names` * speeds + number of the speed. Crops are of
    different utterances as far as there are enough, else of different portions of them.

    The batch is shared by `ranks`: person by person in turn. `unusable` lists (speaker, cause) of people who
    are left out, `short` (path, cause) of the others' utterances that are passed over. Raises UserError when
    there are fewer than N people, when `ranks` does not divide N, or when sounds are missing.
    """

    def __init__(
        self,
        speakers: Mapping[str, Sequence[Utterance]],
        data: EmbedderData,
        train: EmbedderTrain,
        sounds: Mapping[str, Sequence[Utterance]],
        rate: int,
        crop_samples: Callable[[int], int],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.train, self.rate, self.rank, self.ranks = data, train, rate, rank, ranks
        # seeds of one training draw other batches; that of 0 alone has the key that there always was
        own = (train.seed,) if train.seed else ()
        self._key = (data.seed, zlib.crc32(b"speakers"), *own)
        # numbers, not the function: it may be bound to a network that workers have no use for
        fewest, most = train.frames
        self._samples = [crop_samples(frames) for frames in range(fewest, most + 1)]
        self.around = Surroundings(data.background, data.reverberation, MIN_ACTIVE, sounds)
        self.around.require_sounds("train")
        self._people: dict[str, list[Utterance]] = {}
        self.unusable: list[tuple[str, str]] = []
        self.short: list[tuple[str, str]] = []
        for name, utterances in sorted(speakers.items()):
            self._admit(name, utterances)
        self.names = list(self._people)
        self.classes = len(self.names) * len(data.speeds)
        self._check_numbers(len(speakers))
        spoken = [u for found in self._people.values() for u in found]
        self.utterances = {u.id: u for u in itertools.chain(spoken, *sounds.values())}

    def _admit(self, name: str, utterances: Sequence[Utterance]) -> None:
        """Takes a person's utterances up, unless there is too little sound in every one."""
        seconds = [_sound(u) / u.rate for u in utterances]
        good = [u for u, long in zip(utterances, seconds, strict=True) if long >= LEAST_SECONDS]
        if not good:
            most = max(seconds, default=0.0)
            cause = f"at most {most:.2f} s of sound in one of {len(utterances)} utterances"
            self.unusable.append((name, f"speaker left out: {cause}, needed are {LEAST_SECONDS:g} s"))
            return
        self._people[name] = good
        self.short += [
            (u.path, f"never heard in training: {long:.2f} s of sound, needed are {LEAST_SECONDS:g} s")
            for u, long in zip(utterances, seconds, strict=True)
            if long < LEAST_SECONDS
        ]

    def _check_numbers(self, indexed: int) -> None:
        wanted, there = self.train.speakers, len(self.names)
        if there < wanted:
            raise UserError(
                f"train.speakers {wanted}: a batch needs as many different people, {there} of {indexed} "
                f"training speakers have an utterance with {LEAST_SECONDS:g} s of sound"
            )
        if wanted % self.ranks:
            raise UserError(f"train.speakers {wanted}: {self.ranks} processes cannot share them equally")

    def draw(self, step: int) -> list[Recipe]:
        """The whole batch, whatever was drawn before: N * M recipes, the M of a person one after the other.

        A recipe shorter than the batch's crops is to be repeated.
        """
        return self._draw(step, range(self.train.speakers))[2]

    def __getitem__(self, step: int) -> Batch:
        """This rank's n = N / ranks people: `waveform` float32 [n * M, samples], as in `draw`, `label`
        int64 [n], and the crops' numbers `example` int64 [n * M]."""
        rows = range(self.rank, self.train.speakers, self.ranks)
        samples, labels, recipes = self._draw(step, rows)
        rendered = [render(recipe, self.utterances, self.rate).mixture for recipe in recipes]
        waveform = np.stack([np.resize(r, samples) for r in rendered])  # repeats what is shorter
        numbers = {"label": labels, "example": [recipe.index for recipe in recipes]}
        return {"waveform": torch.from_numpy(waveform)} | {
            name: torch.tensor(values, dtype=torch.int64) for name, values in numbers.items()
        }

    def _draw(self, step: int, rows: Iterable[int]) -> tuple[int, list[int], list[Recipe]]:
        """Samples of a crop, labels [n] and recipes [n * M] of these rows, n of the batch's N people."""
        generator = np.random.default_rng([*self._key, step])
        wanted, speeds = self.train.speakers, self.data.speeds
        samples = self._samples[generator.integers(len(self._samples))]
        people = generator.choice(len(self.names), wanted, replace=False).tolist()
        played = generator.integers(len(speeds), size=wanted).tolist()
        labels, recipes = [], []
        for row in rows:
            labels.append(people[row] * len(speeds) + played[row])
            # one for each row, so that a rank need not draw what is others' (0 is the step's own)
            own = np.random.default_rng([*self._key, step, row + 1])
            utterances = self._people[self.names[people[row]]]
            first = (step * wanted + row) * self.train.utterances
            for number, (utterance, part, parts) in enumerate(self._turns(utterances, own)):
                clip = _draw_crop(utterance, samples / self.rate, speeds[played[row]], part, parts, own)
                recipes.append(self._surround(first + number, clip, utterance, samples / self.rate, own))
        return samples, labels, recipes

    def _turns(
        self, utterances: Sequence[Utterance], generator: np.random.Generator
    ) -> list[tuple[Utterance, int, int]]:
        """M times (utterance, portion, portions); the portions of an utterance are different."""
        crops, there = self.train.utterances, len(utterances)
        order = generator.choice(there, min(crops, there), replace=False).tolist()
        return [
            (
                utterances[order[n % len(order)]],
                n // len(order),
                len(range(n % len(order), crops, len(order))),
            )
            for n in range(crops)
        ]

    def _surround(
        self, index: int, clip: Clip, utterance: Utterance, seconds: float, generator: np.random.Generator
    ) -> Recipe:
        """The crop with what is behind it, in its room and at its level; one that is too short as it is."""
        own_rate = round(utterance.rate * clip.speed)
        if clip.frames < round(seconds * own_rate):
            seconds = clip.frames / own_rate
        voice, behind = Source("speech", (clip,)), self.around.draw_background(seconds, generator)
        if place := self.around.draw_rooms(generator):
            voice = replace(voice, room=place())
            behind = [replace(source, room=place()) for source in behind]
        level = self.data.gain_db
        gain_db = 0.0 if level is None else draw_level(level, generator)
        return Recipe(index, "target_alone", seconds, clip, voice, tuple(behind), gain_db)


def _sound(utterance: Utterance) -> int:
    """Samples that are not silence."""
    return active_frames(((0, utterance.frames),), utterance.active)


def _draw_crop(
    utterance: Utterance,
    seconds: float,
    speed: float,
    part: int,
    parts: int,
    generator: np.random.Generator,
) -> Clip:
    """`seconds` from a random place in portion `part` of `parts` equal ones, at `speed`; a shorter utterance
    whole.

    A portion that is shorter than the crop goes on behind, or begins earlier, as far as the utterance does;
    one without enough sound is replaced by the whole utterance.
    """
    whole = utterance.frames
    wanted = round(seconds * round(utterance.rate * speed))
    least = round(min(MIN_ACTIVE, seconds) * utterance.rate * speed)
    first, last = whole * part // parts, whole * (part + 1) // parts
    if last - first < wanted:
        first, last = max(0, min(first, whole - wanted)), min(last - 1 + wanted, whole)
    active = utterance.active
    if parts > 1 and active is not None:
        if active_frames(((first, last - first),), active) < least:
            first, last = 0, whole
        else:
            active = tuple(pair for pair in active if pair[0] < last and pair[1] > first)
    stretches = draw_cut(((first, last - first),), min(wanted, whole), active, least, generator)
    return Clip(utterance.id, stretches, speed, utterance.digest)
