"""What is compared with what to judge an embedder: clips of speakers, and trials, which are pairs of them."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from config.embedder_schema import ValidationSpeakers
from datasets.corpus import Utterance
from datasets.recipe import Clip
from datasets.stretches import Stretches, cut, total, usable
from utils.audio import AUDIO_SUFFIXES
from utils.errors import UserError

SHORTEST_PIECE = 0.8
"""Seconds; an utterance with less than two such pieces is not divided."""
MOST_TRIALS = 100_000_000
LABELS = {"1": True, "target": True, "0": False, "nontarget": False}


@dataclass(frozen=True)
class TrialClips:
    """Clips and their speakers [n]; `divided`: how many gave pieces of their one utterance."""

    clips: list[Clip]
    speakers: list[str]
    divided: int


@dataclass(frozen=True)
class Trials:
    """Pairs of clips by their rows, `first` and `second` int32 [t], and whether one speaker is to be heard
    in both: `same`, bool [t]."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class ListedTrials:
    """Trials of a list, the clips whose rows they name, and (line, path, cause) of what was left out."""

    clips: list[Clip]
    trials: Trials
    missing: list[tuple[int, str, str]]

    def describe(self, path: Path | str) -> str:
        kept = len(self.trials.same)
        causes = Counter(cause.split(":")[0] for _, _, cause in self.missing)
        left_out = ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))
        rows = kept + len(self.missing)
        return f"{path}: {kept} of {rows} trials can be scored; left out: {left_out or 'nothing'}"


def enrolments(
    speakers: Mapping[str, Sequence[Utterance]], options: ValidationSpeakers, seed: int
) -> TrialClips:
    """At most `options.utterances` of every speaker, a choice that depends on no other speaker.

    An utterance is taken whole, or its first `options.seconds` from the first sound on. A speaker with one
    gives consecutive pieces of equal length, at least `options.piece_seconds` long, or two halves of at least
    SHORTEST_PIECE; who has less than that is compared with the others only. Raises UserError for less than
    two speakers, or when none of them has two clips.
    """
    if len(speakers) < 2:
        raise UserError(f"{len(speakers)} speakers: at least two are needed to tell them apart")
    clips, owners, divided = [], [], 0
    for speaker in sorted(speakers):
        own = sorted(speakers[speaker], key=lambda u: u.id)
        if len(own) == 1:
            found = _pieces(own[0], options)
            divided += len(found) > 1
        else:
            generator = np.random.default_rng([seed, zlib.crc32(speaker.encode())])
            count = min(options.utterances, len(own))
            chosen = generator.choice(len(own), count, replace=False)
            found = [_clip(own[row], _beginning(own[row], options.seconds)) for row in sorted(chosen)]
        clips += found
        owners += [speaker] * len(found)
    if max(Counter(owners).values()) < 2:
        raise UserError(
            f"{len(speakers)} speakers: none has two utterances, or one of at least {2 * SHORTEST_PIECE:g} s "
            "to divide: no two clips of one speaker to compare"
        )
    return TrialClips(clips, owners, divided)


def _clip(utterance: Utterance, stretches: Stretches) -> Clip:
    return Clip(utterance.id, stretches, digest=utterance.digest)


def _beginning(utterance: Utterance, seconds: float | None) -> Stretches:
    if seconds is None:
        return usable(utterance, "none")
    return cut(usable(utterance, "trim"), 0, max(1, round(seconds * utterance.rate)))


def _pieces(utterance: Utterance, options: ValidationSpeakers) -> list[Clip]:
    """Consecutive pieces of the only utterance of a speaker, or all of it where it is too short."""
    stretches = usable(utterance, "trim")
    frames, rate = total(stretches), utterance.rate
    count = min(options.utterances, int(frames / (options.piece_seconds * rate)))
    if count < 2:
        if frames < 2 * SHORTEST_PIECE * rate:
            return [_clip(utterance, _beginning(utterance, options.seconds))]
        count = 2
    length = frames // count
    used = length if options.seconds is None else min(length, round(options.seconds * rate))
    return [_clip(utterance, cut(stretches, number * length, used)) for number in range(count)]


def all_pairs(speakers: Sequence[str]) -> Trials:
    """Every clip with every other one, of the speakers [n]: n (n - 1) / 2 trials.

    Raises UserError for more than MOST_TRIALS.
    """
    count = len(speakers) * (len(speakers) - 1) // 2
    if count > MOST_TRIALS:
        raise UserError(
            f"{len(speakers)} clips make {count} trials, at most {MOST_TRIALS} are compared: "
            "take fewer utterances or speakers"
        )
    owners = np.unique(np.asarray(speakers), return_inverse=True)[1].astype(np.int32)
    first = np.repeat(np.arange(len(speakers), dtype=np.int32), np.arange(len(speakers))[::-1])
    second = np.concatenate(
        [np.arange(row + 1, len(speakers), dtype=np.int32) for row in range(len(speakers))]
    )
    return Trials(first, second, owners[first] == owners[second])


# ---------------------------------------------------------------- lists


def read_trials(
    path: Path | str,
    utterances: Mapping[str, Utterance],
    elsewhere: Mapping[str, Utterance] | None = None,
) -> ListedTrials:
    """The trials of a list of lines `label path path` (VoxCeleb's; 1 or `target`: one speaker, 0 or
    `nontarget`: two) between whole `utterances`.

    A path is that below the corpus, with or without extension, or an utterance's id. `elsewhere`: utterances
    that are there, but not to be compared. Labels that contradict the corpus are believed, with a warning.
    Raises UserError for another line, when no trial of either label is left, or when most labels contradict.
    """
    rows = _read_rows(Path(path))
    wanted = {name for _, _, names in rows for name in names}
    finder, other = _Finder(utterances, wanted), _Finder(elsewhere or {}, wanted)
    clips: dict[str, int] = {}
    pairs, same, missing = [], [], []
    for line, label, names in rows:
        found = [finder.find(name) for name in names]
        found = [
            "not for validation: its speaker is trained on"
            if isinstance(f, str) and not isinstance(other.find(name), str)
            else f
            for name, f in zip(names, found, strict=True)
        ]
        cause = next(((name, f) for name, f in zip(names, found, strict=True) if isinstance(f, str)), None)
        ids = [f.id for f in found if not isinstance(f, str)]
        if cause:
            missing.append((line, *cause))
        elif ids[0] == ids[1]:
            missing.append((line, names[1], "an utterance with itself"))
        else:
            pairs.append([clips.setdefault(name, len(clips)) for name in ids])
            same.append(label)
    if not pairs or len(set(same)) < 2:
        first = "".join(f"; the first left out, in line {n}: {name}: {why}" for n, name, why in missing[:1])
        raise UserError(
            f"{path}: of {len(rows)} trials {sum(same)} of one speaker and {len(same) - sum(same)} of two "
            f"can be scored, some of either are needed{first}"
        )
    _compare_labels(path, pairs, same, [utterances[name].speaker for name in clips])
    table = np.array(pairs, np.int32)
    whole = [_clip(utterances[name], usable(utterances[name], "none")) for name in clips]
    return ListedTrials(whole, Trials(table[:, 0], table[:, 1], np.array(same)), missing)


def _compare_labels(
    path: Path | str, pairs: Sequence[Sequence[int]], same: Sequence[bool], speakers: Sequence[str]
) -> None:
    """Warns of labels that the corpus' speakers contradict; raises UserError when most are."""
    wrong = sum((speakers[a] == speakers[b]) != label for (a, b), label in zip(pairs, same, strict=True))
    if 2 * wrong > len(pairs):
        raise UserError(
            f"{path}: {wrong} of {len(pairs)} labels contradict the corpus' speakers; 1 means one speaker"
        )
    if wrong:
        print(f"WARNING: {path}: {wrong} of {len(pairs)} labels contradict the corpus' speakers")


def _read_rows(path: Path) -> list[tuple[int, bool, tuple[str, str]]]:
    """(line number, label, the two paths) of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such list of trials") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no list of trials, it is no text in UTF-8") from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[0] not in LABELS:
            raise UserError(
                f"{path}: line {number}: expected `label path path` with one of the labels "
                f"{', '.join(LABELS)}, found {line[:80]!r}"
            )
        rows.append((number, LABELS[words[0]], (words[1], words[2])))
    return rows


class _Finder:
    """Utterances by their id or by the end of their path, as many folders of it as the list names."""

    def __init__(self, utterances: Mapping[str, Utterance], wanted: set[str]) -> None:
        self.utterances = utterances
        depths = {len(_parts(name)) for name in wanted}
        self.ends: dict[str, set[str]] = {}
        for utterance in utterances.values():
            parts = _parts(Path(os.path.abspath(utterance.path)).as_posix())
            for depth in depths:
                if depth <= len(parts):
                    end = "/".join(parts[-depth:])
                    for key in {end, _bare(end)}:
                        self.ends.setdefault(key, set()).add(utterance.id)

    def find(self, name: str) -> Utterance | str:
        """The utterance that a list calls so, or why there is none."""
        if name in self.utterances:
            return self.utterances[name]
        end = "/".join(_parts(name))
        # VoxCeleb 2's lists say .wav of files that are .m4a
        found = self.ends.get(end) or self.ends.get(_bare(end)) or set()
        if len(found) == 1:
            return self.utterances[next(iter(found))]
        if found:
            return f"ambiguous path: {', '.join(sorted(found)[:3])} end with it"
        return "missing audio: nothing in the corpus ends with it"


def _parts(name: str) -> list[str]:
    return [part for part in PurePosixPath(name).parts if part not in ("/", "..")]


def _bare(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in AUDIO_SUFFIXES else path
