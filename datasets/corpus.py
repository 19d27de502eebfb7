"""Indexers: a folder of speech on disk -> utterances, and the list of what cannot be used."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.audio import AUDIO_SUFFIXES, audio_info
from utils.errors import UserError
from utils.files import write_csv

LIBRISPEECH_NAME = re.compile(r"^(\d+)-(\d+)-(\d+)$")
MIN_SECONDS = 1.0


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker; `frames` samples at `rate` Hz."""

    id: str
    speaker: str
    path: str
    frames: int
    rate: int
    text: str | None = None

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

    def describe(self) -> str:
        minutes = sum(u.seconds for u in self.utterances) / 60
        names = list(self.by_speaker())
        shown = f" ({', '.join(names[:3])} ...)"
        text = f"{len(names)} speakers{shown}, {len(self.utterances)} utterances, {minutes:.0f} minutes"
        causes = Counter(cause.split(":")[0] for _, cause in self.unusable)
        left_out = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
        return f"{text}; left out: {left_out or 'nothing'}"

    def write_unusable(self, path: Path) -> None:
        write_csv(path, ("path", "cause"), self.unusable)


def index_corpus(roots: Sequence[Path | str]) -> Corpus:
    """Indexes one or several corpora, each in one of these layouts (recognised by its file names):

    LibriSpeech (any number of subsets)      any folder of speakers
        ROOT/[SUBSET/]SPEAKER/CHAPTER/           ROOT/SPEAKER/**/NAME.{wav,flac,ogg,opus,mp3,m4a}
            SPEAKER-CHAPTER-NUMBER.flac
            SPEAKER-CHAPTER.trans.txt

    Ids are unique: LibriSpeech's own, else the path below ROOT. Unreadable files and files shorter than
    MIN_SECONDS are listed with their cause. Raises UserError when nothing usable is there.
    """
    found: list[Utterance] = []
    unusable: list[tuple[str, str]] = []
    for number, root in enumerate(map(Path, roots)):
        if not root.is_dir():
            raise UserError(f"{root}: no such corpus folder")
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        if not files:
            raise UserError(f"{root}: no audio file below it ({', '.join(sorted(AUDIO_SUFFIXES))})")
        # equal folder names below two roots are different persons
        prefix = f"{number}-{root.resolve().name}/" if len(roots) > 1 else ""
        utterances, bad = _index_files(root, files, prefix)
        found += utterances
        unusable += bad
    utterances, repeated = _unique(found)
    unusable += repeated
    if not utterances:
        cause = f"; the first: {unusable[0][0]}: {unusable[0][1]}" if unusable else ""
        raise UserError(f"{', '.join(map(str, roots))}: none of {len(unusable)} files can be used{cause}")
    return Corpus(tuple(utterances), tuple(sorted(unusable)), corpus_fingerprint(utterances))


def corpus_fingerprint(utterances: Iterable[Utterance]) -> str:
    """Names the content as far as recipes depend on it: id, speaker, length and rate; not where it lies."""
    digest = hashlib.sha256()
    for u in utterances:
        digest.update(f"{u.id}\t{u.speaker}\t{u.frames}\t{u.rate}\n".encode())
    return digest.hexdigest()[:16]


def _unique(found: list[Utterance]) -> tuple[list[Utterance], list[tuple[str, str]]]:
    kept: dict[str, Utterance] = {}
    repeated = []
    for utterance in found:
        first = kept.setdefault(utterance.id, utterance)
        if first is not utterance:
            repeated.append((utterance.path, f"repeated id: {utterance.id} is also {first.path}"))
    return sorted(kept.values(), key=lambda u: u.id), repeated


def _index_files(root: Path, files: list[Path], prefix: str) -> tuple[list[Utterance], list[tuple[str, str]]]:
    librispeech = [LIBRISPEECH_NAME.match(path.stem) for path in files]
    is_librispeech = sum(m is not None for m in librispeech) > len(files) / 2
    texts = _librispeech_texts(root) if is_librispeech else {}
    utterances, bad = [], []
    with ThreadPoolExecutor(8) as pool:
        infos = pool.map(_info_or_cause, files)
        progress = tqdm(zip(files, librispeech, infos, strict=True), "index", len(files), unit="file")
        for path, match, info in progress:
            if isinstance(info, str):
                bad.append((str(path), info))
                continue
            if is_librispeech and match is None:
                bad.append((str(path), "not a LibriSpeech name"))
                continue
            relative = path.relative_to(root)
            if not is_librispeech and len(relative.parts) < 2:
                bad.append((str(path), "no speaker folder"))
                continue
            speaker = match[1] if is_librispeech and match else prefix + relative.parts[0]
            name = path.stem if is_librispeech else prefix + relative.with_suffix("").as_posix()
            frames, rate = info
            utterances.append(Utterance(name, speaker, str(path), frames, rate, texts.get(name)))
    return utterances, bad


def _info_or_cause(path: Path) -> tuple[int, int] | str:
    try:
        info = audio_info(path)
    except UserError as error:
        return f"unreadable: {str(error).removeprefix(f'{path}: ')}"
    if info.seconds < MIN_SECONDS:
        return f"too short: {info.seconds:.2f} s"
    return info.frames, info.rate


def _librispeech_texts(root: Path) -> dict[str, str]:
    texts = {}
    for path in root.rglob("*.trans.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            texts[name] = text
    return texts


def split_speakers(
    speakers: Sequence[str], seed: int, wanted: dict[str, tuple[float, Sequence[str] | None]]
) -> dict[str, list[str]]:
    """Disjoint speakers of every split: `wanted` maps a split to (share of all speakers, explicit ids).

    Explicit ids come first; a share takes at least two of a seeded shuffle; the rest is `train`.
    Raises UserError when an id is unknown or named twice, or when fewer than two would be left to train.
    """
    named = [name for _, ids in wanted.values() for name in ids or ()]
    unknown = sorted(set(named) - set(speakers))
    if unknown:
        raise UserError(f"speaker_ids: {', '.join(unknown)}: not among the {len(speakers)} speakers indexed")
    if len(set(named)) < len(named):
        twice = [name for name, count in Counter(named).items() if count > 1]
        raise UserError(f"speaker_ids: {', '.join(sorted(twice))}: named in more than one split")
    free = sorted(set(speakers) - set(named))
    np.random.default_rng(seed).shuffle(free)
    splits: dict[str, list[str]] = {}
    for split, (share, ids) in wanted.items():
        count = max(2, round(share * len(speakers)))
        splits[split] = sorted(ids) if ids else sorted(free[:count])
        free = free if ids else free[count:]
    splits["train"] = sorted(free)
    few = [f"{split} {len(ids)}" for split, ids in splits.items() if len(ids) < 2]
    if few:
        raise UserError(
            f"{len(speakers)} speakers are too few: every split needs two, there would be {', '.join(few)}"
        )
    return splits
