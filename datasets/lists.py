"""Examples that somebody else chose: tuple lists in the official format, and lists of recipes."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config.schema import Data
from datasets.corpus import Utterance
from datasets.passages import SHORTEST_SECONDS, Passage, reference_clip
from datasets.recipe import Clip, Recipe, RecipeFile, Source
from datasets.stretches import total, usable
from datasets.surroundings import draw_level
from utils.errors import UserError

TUPLE_HEADER = ("clean_utterance", "embedding_utterance", "interference_utterance")
"""Of the lists published with VoiceFilter (google/speaker-id, publications/VoiceFilter/dataset)."""
REFERENCE_SECONDS = 0.8
"""A list names its references; only those with less sound than an embedder needs are left out."""


@dataclass(frozen=True)
class Listed:
    """Recipes of a list, and (row, ids, cause) of every row whose audio is missing or cannot be used."""

    recipes: list[Recipe]
    missing: list[tuple[int, str, str]]

    def describe(self, path: Path) -> str:
        rows = len(self.recipes) + len(self.missing)
        causes: dict[str, int] = {}
        for _, _, cause in self.missing:
            kind = cause.split(":")[0]
            causes[kind] = causes.get(kind, 0) + 1
        left_out = ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))
        return (
            f"{path}: {len(self.recipes)} of {rows} rows can be rendered; left out: {left_out or 'nothing'}"
        )


def read_tuples(path: Path) -> list[tuple[str, str, str]]:
    """The rows of a tuple list. Raises UserError for another header or a row that has not three ids."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [tuple(cell.strip() for cell in row) for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such tuple list") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no tuple list, it is no text in CSV format") from error
    if not rows or rows[0] != TUPLE_HEADER:
        found = ",".join(rows[0])[:80] if rows else "nothing"
        raise UserError(f"{path}: expected the header {','.join(TUPLE_HEADER)}, found {found}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 3 or not all(row):
            raise UserError(f"{path}: line {number}: expected three ids, found {','.join(row)[:80]!r}")
    return [(row[0], row[1], row[2]) for row in rows[1:]]


def tuple_recipes(
    path: Path,
    split: str,
    utterances: Mapping[str, Utterance],
    data: Data,
    corpus: str = "",
    unusable: Sequence[tuple[str, str]] = (),
) -> Listed:
    """One mixture a row, by `data`'s protocol, offset, vad, snr_db, seconds, reference.max_seconds, reverse.

    As in draws, the protocol padded takes whole utterances, but for training segments of `seconds`.
    `unusable`: (path, cause) of files that are there, but cannot be used. Rows that are no mixture of two
    people with another utterance for reference are listed, too.
    """
    # VCTK's ids are without the microphone
    bad = {Path(file).stem.removesuffix("_mic2").removesuffix("_mic1"): cause for file, cause in unusable}
    listed = Listed([], [])
    for row, ids in enumerate(read_tuples(path), 1):
        absent = [name for name in dict.fromkeys(ids) if name not in utterances]
        if absent:
            known = [f"{name} ({bad[name]})" for name in absent if name in bad]
            cause = f"unusable audio: {', '.join(known)}" if known else f"missing audio: {' '.join(absent)}"
            listed.missing.append((row, " ".join(ids), cause))
            continue
        clean, reference, interference = (utterances[name] for name in ids)
        generator = np.random.default_rng([data.seed, zlib.crc32(split.encode()), row])
        found = _mixture_of(clean, reference, interference, split, data, generator)
        if isinstance(found, str):
            listed.missing.append((row, " ".join(ids), found))
            continue
        snr_db = None if data.snr_db is None else draw_level(data.snr_db, generator)
        sources = tuple(replace(source, snr_db=snr_db) for source in found.interference)
        listed.recipes.append(
            replace(
                found, index=len(listed.recipes), interference=sources, reverse=data.reverse, corpus=corpus
            )
        )
    return listed


def ignored_by_tuples(data: Data) -> list[str]:
    """Options that are set, but do not matter where a list of tuples says what is mixed."""
    names = ["kinds", "interferers", "interference", "background", "padding", "gain_db", "reverberation"]
    names += ["equalization", "coding", "paired", "speeds"]
    return [f"data.{name}" for name in names if getattr(data, name) != getattr(Data(), name)]


def _mixture_of(
    clean: Utterance,
    spoken: Utterance,
    other: Utterance,
    split: str,
    data: Data,
    generator: np.random.Generator,
) -> Recipe | str:
    """The recipe of three utterances, or why there is none."""
    if clean.id == spoken.id:
        return f"no other reference: {clean.id} is both target and reference"
    if clean.speaker != spoken.speaker or clean.speaker == other.speaker:
        return (
            f"other speakers: {clean.speaker}, its reference {spoken.speaker}, interfered by {other.speaker}"
        )
    wanted = data.reference.model_copy(update={"min_seconds": REFERENCE_SECONDS})
    reference = reference_clip(
        spoken, usable(spoken, data.vad), data.model_copy(update={"reference": wanted})
    )
    if reference is None:
        return f"reference too short: {spoken.id} has less than {REFERENCE_SECONDS:g} s of sound"
    target, interference = (Passage(u, usable(u, data.vad)) for u in (clean, other))
    segments = data.protocol == "crop" or split == "train"
    needed = data.seconds if segments else SHORTEST_SECONDS
    both = (target, interference) if data.protocol == "crop" else (target,)
    for passage in both:
        seconds = total(passage.stretches) / passage.utterance.rate
        if seconds < needed:
            return f"utterance too short: {passage.utterance.id} has {seconds:.2f} of {needed:g} s"
    if data.protocol == "crop":
        clips = [p.draw_segment(data.seconds, [1.0], data, generator)[0] for p in (target, interference)]
        return _two(clips[0], clips[1], reference, data.seconds)
    clip, begin = target.clip(target.stretches), 0.0
    if segments:
        clip, begin = target.draw_segment(data.seconds, [1.0], data, generator)
    seconds = clip.frames / clean.rate
    return _two(clip, interference.meanwhile(begin, seconds), reference, seconds)


def _two(target: Clip, other: Clip, reference: Clip, seconds: float) -> Recipe:
    speech = Source("speech", (target,)), Source("speech", (other,))
    return Recipe(0, "mixture", seconds, reference, speech[0], speech[1:])


def listed_recipes(
    path: Path, utterances: Mapping[str, Utterance], allow_other_audio: bool = False
) -> Listed:
    """The recipes of a file as they stand there, `index` included.

    Raises UserError when audio has another content than where the list was made, unless that is allowed;
    then the recipes name the content that is here.
    """
    listed, other, indices = Listed([], []), [], set[int]()
    for row, recipe in enumerate(RecipeFile(path), 1):
        if recipe.index in indices:
            raise UserError(f"{path}: line {row}: the index {recipe.index} stands there twice")
        indices.add(recipe.index)
        cause, changed = "", ""
        for name, digest, end in _used(recipe):
            utterance = utterances.get(name)
            if utterance is None:
                cause = f"missing audio: {name}"
            elif end > utterance.frames:
                cause = f"utterance too short: {name} has {utterance.frames} of {end} samples"
            elif differ(digest, utterance.digest):
                changed = f"{name} in {utterance.path}"
        if cause:
            ids = " ".join(name for name, _, _ in _used(recipe))
            listed.missing.append((row, ids, cause))
            continue
        other += [changed] if changed else []
        listed.recipes.append(_of_audio_here(recipe, utterances) if changed else recipe)
    if other and not allow_other_audio:
        raise UserError(
            f"{path}: {len(other)} of {len(listed.recipes)} recipes were made with other audio than there is "
            f"here (the first: {other[0]}), so the samples would differ; "
            "generator.py --allow_other_audio renders them all the same"
        )
    return listed


def _of_audio_here(recipe: Recipe, utterances: Mapping[str, Utterance]) -> Recipe:
    def clip(old: Clip) -> Clip:
        return replace(old, digest=utterances[old.utterance].digest)

    def source(old: Source) -> Source:
        room = old.room
        if room is not None and room.rir:
            room = replace(room, digest=utterances[room.rir].digest)
        return replace(old, clips=tuple(map(clip, old.clips)), room=room)

    return replace(
        recipe,
        reference=clip(recipe.reference),
        target=source(recipe.target) if recipe.target else None,
        interference=tuple(map(source, recipe.interference)),
    )


def differ(digest: str, other: str) -> bool:
    """Whether two digests speak of other content; one of a whole file and one of its ends cannot say."""
    return bool(digest and other) and digest != other and digest.startswith("~") == other.startswith("~")


def _used(recipe: Recipe) -> Iterator[tuple[str, str, int]]:
    """(id, digest, last sample) of all that a recipe reads."""
    clips: Sequence[Clip] = [clip for source in recipe.sources for clip in source.clips]
    for clip in (*clips, recipe.reference):
        yield clip.utterance, clip.digest, max(start + frames for start, frames in clip.stretches)
    for source in recipe.sources:
        if source.room is not None and source.room.rir:
            yield source.room.rir, source.room.digest, 0
