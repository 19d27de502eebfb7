"""What lies below a corpus' folder, and the words in which layouts say what they found there."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from utils.audio import AUDIO_SUFFIXES
from utils.errors import UserError

TOO_MANY = "too many cells"


class Found(NamedTuple):
    """A file as a layout names it, not yet opened; `seconds`: the longest it may be, if a table says so."""

    path: str
    id: str
    speaker: str
    text: str | None = None
    subset: str = ""
    sex: str = ""
    seconds: float | None = None


@dataclass
class Listing:
    """What a layout found below one root, and (path, cause) of what it cannot place."""

    found: list[Found] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Tree:
    """The files below `root` (relative, sorted): audio and all others."""

    root: Path
    audio: tuple[str, ...]
    other: tuple[str, ...]
    unnamed: tuple[str, ...] = ()
    """Whose names are no text, with replacement characters."""

    @classmethod
    def of(cls, root: Path) -> Tree:
        files, unnamed = [], []
        for file in sorted(walk_files(root)):
            if is_text(file):
                files.append(file)
            else:
                unnamed.append(os.fsencode(file).decode(errors="replace"))
        others = tuple(file for file in files if not is_audio(file))
        return cls(root, tuple(filter(is_audio, files)), others, tuple(unnamed))

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)

    def tables(self, *names: str) -> list[Path]:
        """Files of these names (whatever their case) below the root or right above it."""
        inside = [Path(self.path(file)) for file in self.other if file.rpartition("/")[2].lower() in names]
        above = self.root.resolve().parent
        if not os.access(above, os.R_OK | os.X_OK):  # the root alone may be open to us
            return inside
        beside = [above / name for name in sorted(os.listdir(above)) if name.lower() in names]
        return inside + [path for path in beside if path.is_file()]

    def share(self, fits: Callable[[str], object]) -> float:
        """The share of audio files that fit."""
        return sum(bool(fits(path)) for path in self.audio) / max(1, len(self.audio))


@dataclass(frozen=True)
class Layout:
    """How a corpus lies on disk. `own_ids`: its ids and speakers are its own wherever it lies."""

    recognises: Callable[[Tree], bool]
    index: Callable[[Tree], Listing]
    own_ids: bool = False


def stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def walk_files(root: Path | str) -> Iterator[str]:
    """Paths of all files below `root` relative to it, with `/`; hidden ones and `__MACOSX` are no data.

    Follows links to folders, but not in a circle; a dead link counts as a file if its name is one of audio,
    so that it is reported. Raises UserError for a folder that cannot be read.
    """
    top = os.stat(root)
    stack = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while stack:
        below, above = stack.pop()
        try:
            entries = list(os.scandir(os.path.join(root, below)))
        except OSError as error:
            raise UserError(f"{Path(root) / below}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = below + entry.name
            if _is(entry.is_dir):
                found = entry.stat()
                folder = (found.st_dev, found.st_ino)
                if folder not in above:
                    stack.append((path + "/", above | {folder}))
            elif (entry.is_symlink() and is_audio(path)) or _is(entry.is_file):
                yield path


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link that leads to itself
        return False


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8 without control characters, as tables and lists can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(character) < 32 for character in name)


def is_audio(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES


def read_text(path: Path | str) -> str:
    """A transcript or a table, with a replacement character for what is no UTF-8. Raises UserError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_columns(path: Path | str) -> tuple[list[str], str]:
    """The columns that the first line of a table names, in lower case, and what parts them."""
    text = read_text(path)
    if "\0" in text:
        raise UserError(f"{path}: not a table in UTF-8, it holds NUL characters")
    first = next(iter(text.splitlines()), "")
    delimiter = max(",;\t", key=first.count)
    return [name.strip(' "').lower() for name in first.split(delimiter)], delimiter


def read_table(path: Path | str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns (lower case) and rows (number of their last line, column -> stripped text) of a table.

    Its first line names the columns; commas, semicolons or tabs part them. A row with more cells than that,
    because a comma is not quoted, has the one column TOO_MANY, which says so. Raises UserError.
    """
    columns, delimiter = read_columns(path)
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{path}: the column '{twice[0]}' stands twice")
    rows = []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        next(reader, None)
        for cells in reader:
            if any(map(str.strip, cells)):
                row = dict(zip(columns, map(str.strip, cells), strict=False))
                if len(cells) > len(columns):
                    row = {TOO_MANY: f"{len(cells)} cells for {len(columns)} columns"}
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise UserError(f"{path}: not a table of comma-separated values ({error})") from error
    return columns, rows


def sex_of(word: str) -> str:
    """F, M or nothing, out of `f`, `Female`, `M` ..."""
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(word.strip().lower(), "")


def read_sexes(tables: Sequence[Path], columns: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Speaker -> sex out of lines that `columns` cuts into (speaker, sex); headers and notes say no sex."""
    sexes = {}
    for table in tables:
        for line in read_text(table).splitlines():
            cells = [cell.strip() for cell in columns(line)]
            if len(cells) >= 2 and sex_of(cells[1]):
                sexes[cells[0]] = sex_of(cells[1])
    return sexes
