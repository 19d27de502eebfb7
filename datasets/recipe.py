"""Recipes: everything that is needed to render an example, as one line of JSON."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from datasets.rooms import Room
from utils.codecs import CODECS
from utils.errors import UserError

KINDS = ("mixture", "target_alone", "target_absent", "noise_only")
EQUALIZER_HZ = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
SOURCES = ("speech", "noise", "music", "babble")
VOICES = ("speech", "babble")
"""Sources in which people speak."""
LARGEST_DB, LONGEST_SECONDS = 200.0, 36000.0
T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """Stretches (start, frames) of an utterance, joined; in samples at the utterance's own rate.

    It is played `speed` times as fast, which raises pitch and formants alike: another voice. `digest` names
    the file's content (see datasets/corpus.py).
    """

    utterance: str
    stretches: tuple[tuple[int, int], ...]
    speed: float = 1.0
    digest: str = ""

    @property
    def frames(self) -> int:
        return sum(frames for _, frames in self.stretches)


@dataclass(frozen=True)
class Source:
    """One thing that sounds in the mixture, from `at` seconds on.

    `kind` is speech, noise, music or babble, whose several `clips` sound at once at equal level. `loop`: a
    clip that is too short is repeated. `snr_db`: the level of the foremost source above this one, None
    leaves it as recorded. The foremost source is the target or, where there is none, the first interferer.
    `equalizer`: gains in dB at EQUALIZER_HZ, and `codec`, one of utils.codecs.CODECS: none for the sound as
    it is.
    """

    kind: str
    clips: tuple[Clip, ...]
    at: float = 0.0
    loop: bool = False
    snr_db: float | None = None
    room: Room | None = None
    equalizer: tuple[float, ...] = ()
    codec: str = ""

    @property
    def voices(self) -> tuple[Clip, ...]:
        """What people say in it."""
        return self.clips if self.kind in VOICES else ()


@dataclass(frozen=True)
class Recipe:
    """One example of `seconds`; `kind` is one of KINDS and `corpus` the fingerprint of what it was drawn
    from.

    `target` is what the reference's person says, None where that person is absent. `reverse`: asked for is
    everything else. `gain_db` scales the whole mixture.
    """

    index: int
    kind: str
    seconds: float
    reference: Clip
    target: Source | None
    interference: tuple[Source, ...]
    gain_db: float = 0.0
    reverse: bool = False
    corpus: str = ""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The target, if there is one, and the interference."""
        return (self.target, *self.interference) if self.target else self.interference

    @property
    def same_utterance(self) -> bool:
        """Whether target and reference are parts of one utterance."""
        return self.target is not None and self.target.clips[0].utterance == self.reference.utterance

    @property
    def other_voice(self) -> bool:
        """Whether somebody speaks in the interference."""
        return any(source.voices for source in self.interference)

    @property
    def role(self) -> str:
        """What is asked for: a voice out of a `mixture`, a voice that is `alone`, or one that is `absent`."""
        early = self.target is not None and self.target.room is not None and self.target.room.early
        asked, rest = self.target is not None, bool(self.interference) or early
        if self.reverse:
            asked, rest = rest, asked
        return ("mixture" if rest else "alone") if asked else "absent"

    def to_line(self) -> str:
        """JSON without line breaks; values that are the default are left out."""
        return json.dumps(_brief(self), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str | bytes) -> Recipe:
        """Raises UserError for a line that is no recipe."""
        try:
            tree = json.loads(line)
            tree["reference"] = _clip(tree["reference"])
            tree["target"] = _source(tree["target"]) if tree.get("target") else None
            if not isinstance(tree.get("interference", []), list):
                raise ValueError("interference: expected a list")
            tree["interference"] = tuple(_source(item) for item in tree.get("interference", ()))
            recipe = cls(**tree)
            if recipe.kind not in KINDS or not recipe.sources:
                raise ValueError(f"kind {recipe.kind!r}, {len(recipe.sources)} sources")
            _require("index", recipe.index, 0, 1 << 53, whole=True)
            _require("seconds", recipe.seconds, 1e-3, LONGEST_SECONDS)
            _require("gain_db", recipe.gain_db, -LARGEST_DB, LARGEST_DB)
            for source in recipe.sources:
                _require("at", source.at, 0, recipe.seconds)
            if not isinstance(recipe.reverse, bool) or not isinstance(recipe.corpus, str):
                raise ValueError(f"reverse {recipe.reverse!r}, corpus {recipe.corpus!r}")
            speaks = recipe.target is not None
            if speaks != (recipe.kind in ("mixture", "target_alone")):
                raise ValueError(f"{recipe.kind} {'with' if speaks else 'without'} a target")
            if recipe.target and (recipe.target.kind, len(recipe.target.clips)) != ("speech", 1):
                raise ValueError(f"a target of {len(recipe.target.clips)} clips of {recipe.target.kind}")
            return recipe
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            text = line.decode(errors="replace") if isinstance(line, bytes) else line
            raise UserError(f"not a recipe ({error}): {text.strip()[:80]}") from error


def _brief(value: Any) -> Any:
    """A dataclass as a dict without its defaults, recursively."""
    if isinstance(value, tuple):
        return [_brief(item) for item in value]
    if isinstance(value, Room):
        return {name: part for name, part in asdict(value).items() if part}
    if not hasattr(value, "__dataclass_fields__"):
        return value
    tree = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if field.default is MISSING or part != field.default:
            tree[field.name] = _brief(part)
    return tree


def _require(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Raises ValueError unless the value is a number between the limits."""
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise ValueError(f"{name} {value!r}, expected {low:g} to {high:g}")


def _clip(tree: dict[str, Any]) -> Clip:
    stretches = tuple((start, frames) for start, frames in tree["stretches"])
    if not stretches:
        raise ValueError("no stretches")
    for start, frames in stretches:
        _require("start", start, 0, 1 << 53, whole=True)
        _require("frames", frames, 1, 1 << 53, whole=True)
    clip = Clip(**{**tree, "stretches": stretches})
    _require("speed", clip.speed, 0.1, 10)
    if not isinstance(clip.utterance, str) or not isinstance(clip.digest, str):
        raise ValueError(f"utterance {clip.utterance!r}, digest {clip.digest!r}")
    return clip


def _source(tree: dict[str, Any]) -> Source:
    clips = tuple(_clip(clip) for clip in tree["clips"])
    room = Room.from_dict(tree["room"]) if tree.get("room") else None
    source = Source(**{**tree, "clips": clips, "room": room, "equalizer": tuple(tree.get("equalizer", ()))})
    if source.kind not in SOURCES or not clips or not isinstance(source.loop, bool):
        raise ValueError(f"source {source.kind!r} of {len(clips)} clips, loop {source.loop!r}")
    if source.snr_db is not None:
        _require("snr_db", source.snr_db, -LARGEST_DB, LARGEST_DB)
    if source.equalizer and len(source.equalizer) != len(EQUALIZER_HZ):
        raise ValueError(f"equalizer of {len(source.equalizer)} gains, expected {len(EQUALIZER_HZ)}")
    if source.codec != "" and source.codec not in [*CODECS]:
        raise ValueError(f"codec {source.codec!r}, expected one of {', '.join(CODECS)}")
    for gain in source.equalizer:
        _require("equalizer gain", gain, -LARGEST_DB, LARGEST_DB)
    return source


class RecipeFile(Sequence[Recipe]):
    """The recipes of a file, one a line, parsed when they are asked for, so that a million costs no memory.

    Raises UserError when there is no such file or a line is no recipe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                empty = not file.seek(0, 2)
                self._bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path}: no such list of recipes") from None
        breaks = np.flatnonzero(np.frombuffer(self._bytes, np.uint8) == ord("\n"))
        self._ends = np.append(breaks, len(self._bytes)) if self._bytes[-1:] != b"\n" else breaks
        if not len(self._bytes):
            self._ends = self._ends[:0]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Recipe: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recipe]: ...
    def __getitem__(self, index: int | slice) -> Recipe | list[Recipe]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] + 1 if index else 0
        try:
            return Recipe.from_line(self._bytes[start : self._ends[index]])
        except UserError as error:
            raise UserError(f"{self.path}: line {index + 1}: {error}") from error

    def __iter__(self) -> Iterator[Recipe]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[RecipeFile], tuple[Path]]:
        return RecipeFile, (self.path,)  # worker processes open it themselves
