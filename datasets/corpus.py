"""Indexers: folders of speech, noise or room responses -> utterances, and the list of what cannot be used."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.layouts import SPEECH_LAYOUTS
from datasets.scan import FileCheck, scan_files
from datasets.sound_layouts import sound_layouts
from datasets.table_layouts import manifest
from datasets.tree import Found, Layout, Listing, Tree
from utils.audio import AUDIO_SUFFIXES, LARGEST_SAMPLE
from utils.errors import UserError

WARPED = re.compile(r"~\d+$")
"""What datasets/warp.py puts behind a person's name."""

MIN_SECONDS = {"speech": 1.0, "noise": 0.1, "music": 0.1, "rir": 0.005}
MANIFEST = "manifest"


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker; `frames` samples at `rate` Hz.

    `subset`: the corpus' own division (LibriSpeech's `train-clean-100`, WHAM!'s `tr`). `sex`: F, M or empty.
    `digest`: of the file, see `scan.digest_of`. `active`: stretches [start, stop) in samples that are not
    silence; None where nobody looked. Of a sound, `speaker` is the category.
    """

    id: str
    speaker: str
    path: str
    frames: int
    rate: int
    text: str | None = None
    subset: str = ""
    sex: str = ""
    digest: str = ""
    active: tuple[tuple[int, int], ...] | None = None

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


@dataclass(frozen=True)
class Corpus:
    """Utterances in a fixed order (by id), and (path, cause) of every file that was left out."""

    utterances: tuple[Utterance, ...]
    unusable: tuple[tuple[str, str], ...]
    fingerprint: str

    def by_speaker(self) -> dict[str, list[Utterance]]:
        speakers: dict[str, list[Utterance]] = {}
        for utterance in self.utterances:
            speakers.setdefault(utterance.speaker, []).append(utterance)
        return speakers

    def describe(self, people: bool = True) -> str:
        """Counts for the screen; `people` False: of sounds, whose speakers are categories."""
        minutes = sum(u.seconds for u in self.utterances) / 60
        names = [name for name in self.by_speaker() if name]
        shown = f" ({', '.join(names[:3])} ...)" if names else ""
        who = f"{len(names)} {'speakers' if people else 'categories'}{shown}, " if people or names else ""
        what = "utterances" if people else "recordings"
        text = f"{who}{len(self.utterances)} {what}, {minutes:.1f} minutes"
        causes = Counter(cause.split(":")[0] for _, cause in self.unusable)
        left_out = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
        return f"{text}; left out: {left_out or 'nothing'}"


def index_corpus(
    roots: Sequence[Path | str],
    *,
    check: str = "full",
    cache: Path | None = None,
    processes: int | None = None,
    shortest: float | None = None,
) -> Corpus:
    """Indexes one or several corpora of speech and checks every file.

    A root is a folder or a CSV manifest; its layout is the first of `layouts.SPEECH_LAYOUTS` that recognises
    it, or the one named in front of it (`vctk:PATH`). Corpora with ids and speakers of their own keep them;
    other ids are the path below the root and, with several roots, begin with the root's name, as the speakers
    do, because equal names below two roots are different persons. `check`: `full` decodes every
    file, `quick` its header and end. `cache`: an SQLite file of what was found before (None:
    `scan.DEFAULT_CACHE`). `processes`: how many look at files (None: one a core). Files that are unreadable,
    cut, silent or shorter than `shortest` seconds (None: MIN_SECONDS) are listed with their cause. Raises
    UserError when a root is missing or nothing usable is there.
    """
    least = MIN_SECONDS["speech"] if shortest is None else shortest
    return _index(roots, "speech", SPEECH_LAYOUTS, check, cache, processes, least)


def index_sounds(
    roots: Sequence[Path | str],
    kind: str,
    *,
    check: str = "full",
    cache: Path | None = None,
    processes: int | None = None,
) -> Corpus:
    """Indexes corpora of one `kind` of sound: noise, music or rir; the rest is as in `index_corpus`.

    The `speaker` of a sound is its category, such as ESC-50's `dog`, or empty.
    """
    if kind not in MIN_SECONDS or kind == "speech":
        raise UserError(f"kind of sound: expected one of noise, music, rir, got {kind!r}")
    return _index(roots, kind, sound_layouts(kind), check, cache, processes, MIN_SECONDS[kind])


def _index(
    roots: Sequence[Path | str],
    kind: str,
    layouts: Mapping[str, Layout],
    check: str,
    cache: Path | None,
    processes: int | None,
    shortest: float,
) -> Corpus:
    found: list[Found] = []
    unusable: list[tuple[str, str]] = []
    names: set[str] = set()
    for root, prefix in zip(roots, _prefixes(list(map(str, roots)), layouts), strict=True):
        listing, name = _list_root(str(root), kind, layouts, prefix)
        names.add(name)
        if {"librispeech", "libritts"} <= names:
            raise UserError(f"{root}: LibriTTS holds the recordings of LibriSpeech; take one of the two")
        found += listing.found
        unusable += listing.unusable
    checks = scan_files([file.path for file in found], check, cache, processes)
    utterances = []
    for file, checked in zip(found, checks, strict=True):
        cause = checked.cause or _unfit(file, checked, kind, shortest)
        if cause:
            unusable.append((file.path, cause))
        else:
            utterances.append(_utterance(file, checked))
    utterances, repeated = _unique(utterances)
    unusable += repeated
    if not utterances:
        cause = f"; the first: {unusable[0][0]}: {unusable[0][1]}" if unusable else ""
        raise UserError(f"{', '.join(map(str, roots))}: none of {len(unusable)} files can be used{cause}")
    return Corpus(tuple(utterances), tuple(sorted(unusable)), corpus_fingerprint(utterances))


def _forced(root: str, layouts: Mapping[str, Layout]) -> tuple[str, Path]:
    """(layout, path) of `vctk:PATH`; the layout is empty where none is named."""
    name, colon, path = root.partition(":")
    return (name, Path(path)) if colon and name in (*layouts, MANIFEST) else ("", Path(root))


def _prefixes(roots: list[str], layouts: Mapping[str, Layout]) -> list[str]:
    """What tells the ids of several roots apart: the folder's name, numbered where names are equal.

    Raises UserError for a root that stands there twice or inside another.
    """
    paths = [_forced(root, layouts)[1].resolve() for root in roots]
    for number, path in enumerate(paths):
        for other in paths[:number]:
            if path == other or path in other.parents or other in path.parents:
                raise UserError(f"{roots[number]}: the same files as below {other}: name them once")
    if len(roots) == 1:
        return [""]
    named = [path.stem if path.is_file() else path.name for path in paths]
    return [f"{n}/" if named.count(n) == 1 else f"{number}-{n}/" for number, n in enumerate(named)]


def _list_root(root: str, kind: str, layouts: Mapping[str, Layout], prefix: str) -> tuple[Listing, str]:
    """What the layout of one root finds, and its name; ids that are not the corpus' own get the prefix."""
    forced, folder = _forced(root, layouts)
    by_name = kind == "speech" and not forced and folder.suffix.lower() == ".csv" and not folder.is_dir()
    is_table = forced == MANIFEST or by_name
    if is_table and folder.is_file():
        name, listing, own_ids = MANIFEST, manifest(folder), False
    elif is_table or not folder.is_dir():
        known = (
            f" (layouts to name before a colon: {', '.join(layouts)})" if ":" in root and not forced else ""
        )
        raise UserError(f"{folder}: no such {'manifest' if is_table else 'corpus folder'}{known}")
    else:
        tree = Tree.of(folder)
        unnamed = [
            (f"{folder}/{name}", "its name is no text in UTF-8, or holds control characters")
            for name in tree.unnamed
        ]
        if not tree.audio:
            raise UserError(f"{folder}: no audio file below it ({', '.join(sorted(AUDIO_SUFFIXES))})")
        name = forced or next(name for name, layout in layouts.items() if layout.recognises(tree))
        listing, own_ids = layouts[name].index(tree), layouts[name].own_ids
        listing.unusable += unnamed
    if not listing.found and not listing.unusable:
        raise UserError(f"{folder}: no {kind} in it (as a corpus of the {name} layout)")
    print(f"{folder}: {name} layout, {len(listing.found)} files")
    if prefix and not own_ids:
        named = {"speech": lambda speaker: prefix + speaker}.get(kind, str)
        listing.found = [f._replace(id=prefix + f.id, speaker=named(f.speaker)) for f in listing.found]
    return listing, name


def _unfit(file: Found, checked: FileCheck, kind: str, shortest: float) -> str:
    """Why a sound file is of no use as this kind; empty if it is."""
    seconds = checked.frames / checked.rate
    if seconds < shortest:
        return f"too short: {seconds:.{2 if kind == 'speech' else 3}f} s"
    # a room response may be faint throughout: its level means nothing
    if checked.active == () and (kind != "rir" or checked.peak == 0):
        return "silent"
    if kind != "rir" and checked.peak > LARGEST_SAMPLE:
        return f"not sound within [-1, 1]: a sample of {checked.peak:g}"
    if file.seconds is not None and seconds > 1.05 * file.seconds + 1:
        return f"not cut: {seconds:.1f} s, its table says {file.seconds:.1f} s"
    return ""


def _utterance(file: Found, checked: FileCheck) -> Utterance:
    return Utterance(
        file.id,
        file.speaker,
        file.path,
        checked.frames,
        checked.rate,
        file.text,
        file.subset,
        file.sex,
        checked.digest,
        checked.active,
    )


def corpus_fingerprint(utterances: Iterable[Utterance]) -> str:
    """Names the content as far as examples depend on it, by 16 hexadecimal digits; not where it lies."""
    digest = hashlib.sha256()
    for u in utterances:
        digest.update(f"{u.id}\t{u.speaker}\t{u.frames}\t{u.rate}\t{u.digest}\n".encode())
    return digest.hexdigest()[:16]


def _unique(found: list[Utterance]) -> tuple[list[Utterance], list[tuple[str, str]]]:
    """Every id and every content once: a copy under another name would be another person or utterance."""
    kept: dict[str, Utterance] = {}
    contents: dict[str, Utterance] = {}
    repeated = []
    for utterance in found:
        first = kept.setdefault(utterance.id, utterance)
        if first is not utterance:
            repeated.append((utterance.path, f"repeated id: {utterance.id} is also {first.path}"))
            continue
        whole = utterance.digest if not utterance.digest.startswith("~") else utterance.id
        same = contents.setdefault(whole, utterance)
        if same is not utterance:
            del kept[utterance.id]
            repeated.append((utterance.path, f"repeated file: equal to {same.path}"))
    return sorted(kept.values(), key=lambda u: u.id), repeated


def heard_speakers(names: Iterable[str], trained: Iterable[str]) -> set[str]:
    """Those of `names` who are among the `trained` speakers.

    Of several corpora a speaker's name may begin with the corpus' folder: `voices/anna` and `anna` count as
    one person, and so do equal names anywhere, because a person taken for a stranger would be worse. Voices
    that datasets/warp.py has made of a person (`anna~1`) count as that person.
    """
    known = {name for speaker in trained for name in (speaker, _warped_of(speaker))}
    ends = {name.partition("/")[2] for name in known}

    def is_known(name: str) -> bool:
        return name in known or name in ends or name.partition("/")[2] in known

    return {name for name in names if is_known(name) or is_known(_warped_of(name))}


def _warped_of(speaker: str) -> str:
    """The person of whom datasets/warp.py has made a voice; the speaker itself of any other."""
    return WARPED.sub("", speaker)


def split_speakers(
    speakers: Sequence[str], seed: int, wanted: dict[str, tuple[float, Sequence[str] | None]]
) -> dict[str, list[str]]:
    """Disjoint speakers of every split: `wanted` maps a split to (share of all speakers, explicit ids).

    Explicit ids come first; a share takes at least two of a seeded shuffle; the rest is `train`. Voices that
    datasets/warp.py has made are only trained on, and not even that where the person is held out.
    Raises UserError when an id is unknown or named twice, or when fewer than two would be left to train.
    """
    named = [name for _, ids in wanted.values() for name in ids or ()]
    unknown = sorted(set(named) - set(speakers))
    if unknown:
        raise UserError(f"speaker_ids: {', '.join(unknown)}: not among the {len(speakers)} speakers indexed")
    if len(set(named)) < len(named):
        twice = [name for name, count in Counter(named).items() if count > 1]
        raise UserError(f"speaker_ids: {', '.join(sorted(twice))}: named in more than one split")
    made = {name: _warped_of(name).rpartition("/")[2] for name in speakers if WARPED.search(name)}
    free = sorted(set(speakers) - set(named) - set(made))
    np.random.default_rng(seed).shuffle(free)
    splits: dict[str, list[str]] = {}
    for split, (share, ids) in wanted.items():
        count = max(2, round(share * (len(speakers) - len(made))))
        splits[split] = sorted(ids) if ids else sorted(free[:count])
        free = free if ids else free[count:]
    held_out = {name.rpartition("/")[2] for ids in splits.values() for name in ids}
    warped = [name for name, person in made.items() if not held_out & {name.rpartition("/")[2], person}]
    splits["train"] = sorted(free + warped)
    few = [f"{split} {len(ids)}" for split, ids in splits.items() if len(ids) < 2]
    if few:
        raise UserError(
            f"{len(speakers)} speakers are too few: every split needs two, there would be {', '.join(few)}"
        )
    return splits
