"""From corpora to splits: who and what belongs to training, validation and test, and the drawers of each."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from config.options import Corpora, HeldOut
from config.schema import Data
from datasets.corpus import (
    Corpus,
    Utterance,
    corpus_fingerprint,
    heard_speakers,
    index_corpus,
    index_sounds,
    split_speakers,
)
from datasets.draw import Drawer
from datasets.lists import Listed
from datasets.recipe import Recipe
from datasets.scan import changed_files
from datasets.store import SPLITS, Store
from utils.errors import UserError
from utils.files import fingerprint

SOUNDS = ("noise", "music", "rirs")
SCORED = tuple(name for name in SPLITS if name != "train")
OFFICIAL = {"tr": "train", "cv": "validation", "tt": "test"}
"""WHAM!'s own division, which is kept."""


@dataclass(frozen=True)
class Recordings:
    """Everything that recipes may name, by kind (`speech` and SOUNDS), its fingerprint, and what is
    unusable."""

    by_kind: dict[str, tuple[Utterance, ...]]
    fingerprint: str
    unusable: tuple[tuple[str, str], ...]

    @property
    def by_id(self) -> dict[str, Utterance]:
        return {u.id: u for found in self.by_kind.values() for u in found}


@dataclass(frozen=True)
class SplitPlan:
    """One split before anything is rendered: `count` recipes and the persons asked for.

    (name, cause) of speakers `left_out`, and of utterances too `short` to be a target.
    """

    name: str
    count: int
    recipes: Iterable[Recipe]
    speakers: list[str]
    same_utterance: int
    left_out: list[tuple[str, str]]
    short: list[tuple[str, str]]
    drawer: Drawer | None = None

    def describe(self) -> str:
        parts = [f"{len(self.speakers)} speakers"]
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out (listed in unusable.csv)")
        if self.short:
            parts.append(f"{len(self.short)} utterances too short to be the target (listed, too)")
        if self.same_utterance:
            parts.append(
                f"{self.same_utterance} have one utterance, the reference is its other half (an easier task)"
            )
        return f"{self.name}: {'; '.join(parts)}"


def index_recordings(data: Corpora, cache: Path | None = None) -> Recordings:
    """Indexes every folder that `data` names; prints what was found. Raises UserError where nothing is."""
    speech = index_corpus(data.corpus, check=data.check, cache=cache)
    if data.subsets is not None:
        speech = _only_subsets(speech, data.subsets)
    print(f"corpus: {speech.describe()}")
    by_kind, unusable, prints = {"speech": speech.utterances}, list(speech.unusable), [speech.fingerprint]
    for kind in SOUNDS:
        if folders := getattr(data, kind):
            found = index_sounds(folders, kind.removesuffix("s"), check=data.check, cache=cache)
            print(f"{kind}: {found.describe(people=False)}")
            # a name of their own: an utterance may be called alike
            by_kind[kind] = tuple(replace(u, id=f"{kind}:{u.id}") for u in found.utterances)
            unusable += found.unusable
            prints.append(found.fingerprint)
    name = prints[0] if len(prints) == 1 else fingerprint(prints)
    return Recordings(by_kind, name, tuple(sorted(unusable)))


def _only_subsets(corpus: Corpus, subsets: Sequence[str]) -> Corpus:
    kept = tuple(u for u in corpus.utterances if is_in(u, subsets))
    if not kept:
        known = ", ".join(sorted({u.subset for u in corpus.utterances} - {""})) or "none"
        raise UserError(f"data.subsets: {', '.join(subsets)}: not in this corpus (its subsets: {known})")
    return replace(corpus, utterances=kept, fingerprint=corpus_fingerprint(kept))


def is_in(utterance: Utterance, subsets: Sequence[str]) -> bool:
    """Whether one of the patterns (`dev-clean`, `dev-*`) is the utterance's subset."""
    return any(fnmatch.fnmatchcase(utterance.subset, pattern) for pattern in subsets)


def plan_draws(data: Data, recordings: Recordings) -> dict[str, SplitPlan]:
    """All three splits, their speakers and sounds disjoint. Raises UserError when something is too little."""
    speakers: dict[str, list[Utterance]] = {}
    for utterance in recordings.by_kind["speech"]:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    names = split_speakers(sorted(speakers), data.seed, wanted_speakers(data, speakers))
    counts = {"train": data.train, "validation": data.validation.examples, "test": data.test.examples}
    sounds = split_sounds(recordings.by_kind, data)
    plans = {}
    for split in SPLITS:
        of_split = {name: speakers[name] for name in names[split]}
        drawer = Drawer(split, of_split, data, sounds[split], recordings.fingerprint)
        plans[split] = SplitPlan(
            split, counts[split], _Draws(drawer, counts[split]), sorted(drawer.voices),
            drawer.same_utterance, drawer.unusable, drawer.short, drawer,
        )  # fmt: skip
    return plans


def plan_lists(listed: Mapping[str, Listed], speaker_of: Mapping[str, str]) -> dict[str, SplitPlan]:
    """The splits of lists; people who are both trained on and scored are named in a warning."""
    plans = {split: plan_list(split, listed[split], speaker_of) for split in SPLITS if split in listed}
    trained_on = set(plans["train"].speakers) if "train" in plans else set()
    for split in SCORED:
        both = sorted(heard_speakers(plans[split].speakers, trained_on)) if split in plans else ()
        if both:
            named = ", ".join(both[:10]) + (" ..." if len(both) > 10 else "")
            print(f"WARNING: {len(both)} speakers of {split} are in train as well: {named}")
    return plans


def plan_list(name: str, listed: Listed, speaker_of: Mapping[str, str]) -> SplitPlan:
    """A split of listed recipes. Raises UserError when none of them can be rendered."""
    if not listed.recipes:
        if not listed.missing:
            raise UserError(f"{name}: the list is empty")
        row, _, cause = listed.missing[0]
        raise UserError(
            f"{name}: none of {len(listed.missing)} listed examples can be rendered (row {row}: {cause})"
        )
    same = {speaker_of[recipe.reference.utterance] for recipe in listed.recipes if recipe.same_utterance}
    named = [recipe.reference for recipe in listed.recipes]
    if name == "train":  # whoever is heard there is no stranger any more
        named += [clip for recipe in listed.recipes for source in recipe.sources for clip in source.voices]
    speakers = sorted({speaker_of[clip.utterance] for clip in named})
    return SplitPlan(name, len(listed.recipes), listed.recipes, speakers, len(same), [], [])


@dataclass(frozen=True)
class _Draws:
    drawer: Drawer
    count: int

    def __iter__(self) -> Iterator[Recipe]:
        return map(self.drawer.draw, range(self.count))


def _held_out(data: Corpora) -> dict[str, HeldOut]:
    """What is not trained on, by the split that it serves; an embedder's test may be None."""
    parts = {split: getattr(data, split) for split in SCORED}
    return {split: part for split, part in parts.items() if part is not None}


def wanted_speakers(
    data: Corpora, speakers: Mapping[str, Sequence[Utterance]]
) -> dict[str, tuple[float, Sequence[str] | None]]:
    """Of every split that is held out, what `split_speakers` takes: a share of all speakers, or their ids."""
    wanted: dict[str, tuple[float, Sequence[str] | None]] = {}
    for name, part in _held_out(data).items():
        ids = part.speaker_ids
        if part.subsets is not None:
            ids = [s for s, found in speakers.items() if any(is_in(u, part.subsets) for u in found)]
            if len(ids) < 2:
                there = ", ".join(sorted({u.subset for found in speakers.values() for u in found} - {""}))
                raise UserError(
                    f"data.{name}.subsets: {len(ids)} speakers in {', '.join(part.subsets)}, two are needed "
                    f"(the corpus' subsets: {there or 'none'})"
                )
        wanted[name] = (part.speakers, ids)
    return wanted


def split_sounds(
    by_kind: Mapping[str, Sequence[Utterance]], data: Corpora
) -> dict[str, dict[str, list[Utterance]]]:
    """Disjoint noises, music and rooms of every split: the corpus' own division, else shares by seed.

    What one subset holds stays together (ESC-50's folds, a room of RIRS_NOISES). Each split gets at least one
    subset or recording; where there are fewer than three, all splits share them, which is said.
    """
    found: dict[str, dict[str, list[Utterance]]] = {split: {} for split in SPLITS}
    for kind in SOUNDS:
        recordings = list(by_kind.get(kind, ()))
        official = {split: [u for u in recordings if OFFICIAL.get(u.subset) == split] for split in SPLITS}
        divided = all(official.values())
        parts = _divide([u for u in recordings if not divided or u.subset not in OFFICIAL], kind, data)
        for split in SPLITS:
            own = [*official[split], *parts[split]] if divided else parts[split]
            found[split][kind] = sorted(own, key=lambda u: u.id)
    return found


def _divide(recordings: Sequence[Utterance], kind: str, data: Corpora) -> dict[str, list[Utterance]]:
    groups: dict[str, list[Utterance]] = {}
    for u in recordings:
        groups.setdefault(u.subset or u.id, []).append(u)
    names = sorted(groups)
    if len(names) < len(SPLITS):
        if names:
            print(f"NOTE: {len(names)} of data.{kind} are too few to divide: all splits share them")
        return {split: list(recordings) for split in SPLITS}
    np.random.default_rng([data.seed, zlib.crc32(kind.encode())]).shuffle(names)
    parts: dict[str, list[Utterance]] = {split: [] for split in SCORED}
    for number, (split, part) in enumerate(_held_out(data).items()):
        wanted = max(1, round(part.speakers * len(recordings)))
        # one group at least is left to every split that comes
        while len(parts[split]) < wanted and len(names) > len(SCORED) - number:
            parts[split] += groups[names.pop()]
    parts["train"] = [u for name in names for u in groups[name]]
    return parts


def drawer_of(store: Store, split: str) -> Drawer:
    """The drawer that the store's recipes came from, or would have come from (data.mode live)."""
    data = data_of(store)
    wanted = set(store.report["splits"][split]["speakers"])
    speakers: dict[str, list[Utterance]] = {}
    for utterance in store.recordings["speech"]:
        if utterance.speaker in wanted:
            speakers.setdefault(utterance.speaker, []).append(utterance)
    sounds = split_sounds(store.recordings, data)[split]
    return Drawer(split, speakers, data, sounds, store.settings["corpus"])


def require_unchanged(store: Store) -> None:
    """Raises UserError when audio that examples may be drawn from is not what it was when it was indexed."""
    digests = {u.path: u.digest for u in store.utterances.values()}
    if changed := changed_files(digests, store.settings["data"]["check"]):
        raise UserError(
            f"{len(changed)} of {len(digests)} recordings of {store.folder} are gone or have changed since "
            f"it was made (the first: {changed[0]}); make another store"
        )


def data_of(store: Store) -> Data:
    """The data section that a store was made with."""
    tree: dict[str, Any] = {**store.settings["data"], **store.report["folders"]}
    return Data(**tree)
