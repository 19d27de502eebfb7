"""Corpora whose files are named by a table: manifests, and the Acappella data set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datasets.tree import TOO_MANY, Found, Listing, Tree, read_columns, read_table, sex_of, stem
from utils.errors import UserError


def manifest(table: Path) -> Listing:
    """A CSV that names every utterance; its paths are relative to its own folder.

    path,speaker[,text][,id][,sex][,subset]
    ann/one.wav,ann,GOOD MORNING,ann-1,F,train

    Without an id it is the path without its suffix, or SPEAKER/NAME for a path that leads out of the folder.
    Raises UserError when `path` or `speaker` is no column; a row without their values is listed as unusable.
    """
    columns, rows = read_table(table)
    for wanted in ("path", "speaker"):
        if wanted not in columns:
            raise UserError(f"{table}: no column '{wanted}' (there are {', '.join(columns) or 'none'})")
    listing = Listing()
    for line, row in rows:
        if TOO_MANY in row:
            listing.unusable.append(
                (f"{table}:{line}", f"{TOO_MANY}: {row[TOO_MANY]}, is a comma not quoted?")
            )
            continue
        blank = [wanted for wanted in ("path", "speaker") if not row.get(wanted)]
        if blank:
            listing.unusable.append((f"{table}:{line}", f"no {blank[0]}"))
            continue
        path, speaker = row["path"], row["speaker"]
        inside = not os.path.isabs(path) and ".." not in Path(path).parts
        name = str(PurePosixPath(path).with_suffix("")) if inside else f"{speaker}/{stem(path)}"
        text, sex = row.get("text") or None, sex_of(row.get("sex", ""))
        found = Found(
            str(table.parent / path), row.get("id") or name, speaker, text, row.get("subset", ""), sex
        )
        listing.found.append(found)
    return listing


def acappella(tree: Tree) -> Listing:
    """Acappella (Montesinos et al., "A cappella: Audio-visual Singing Voice Separation", BMVC 2021).

    ROOT/
        **/*.csv                         columns ID, Singer[, Gender][, Language][, Init][, Fin][, Set]
        **/ID.{wav,m4a,mp4,...}          or ID_0_07_to_2_44.wav: the extracted part from Init to Fin

    An audio file is expected to be the part from Init to Fin, as the data set's own tools extract it. A file
    that is clearly longer is the whole video, in which others may be heard, and is listed as such, because an
    utterance is a whole file. So are rows without audio and audio without a row.
    """
    by_name: dict[str, list[str]] = {}
    for path in tree.audio:
        by_name.setdefault(stem(path), []).append(path)
    listing, taken = Listing(), set()
    for table in _singer_tables(tree):
        for line, row in read_table(table)[1]:
            where, video, singer = f"{table}:{line}", row.get("id", ""), row.get("singer", "")
            audio = _audio_of(row, by_name)
            if not video or not singer:
                listing.unusable.append((where, "no singer" if video else "no id"))
            elif audio is None:
                listing.unusable.append((where, f"no audio: {video}"))
            elif audio not in taken:
                taken.add(audio)
                sex, seconds = sex_of(row.get("gender", "")), _row_seconds(row)
                subset = row.get("set", "")
                listing.found.append(Found(tree.path(audio), stem(audio), singer, None, subset, sex, seconds))
            else:
                listing.unusable.append((where, f"repeated row: {tree.path(audio)} has one"))
    unnamed = sorted(set(tree.audio) - taken)
    listing.unusable += [(tree.path(path), "in no table") for path in unnamed]
    return listing


def is_acappella(tree: Tree) -> bool:
    return bool(_singer_tables(tree))


def _singer_tables(tree: Tree) -> list[Path]:
    tables = [Path(tree.path(path)) for path in tree.other if path.lower().endswith(".csv")]
    return [table for table in tables if {"id", "singer"} <= _columns_of(table)]


def _columns_of(table: Path) -> set[str]:
    """None where it is no table that we can read: any CSV may lie beside recordings."""
    try:
        return set(read_columns(table)[0])
    except UserError:
        return set()


def _audio_of(row: dict[str, str], by_name: dict[str, list[str]]) -> str | None:
    """The file named after a row's part, else after its video; below the singer's folder first."""
    begin, end = (re.sub(r"\W+", "_", row.get(column, "")) for column in ("init", "fin"))
    for name in (f"{row.get('id')}_{begin}_to_{end}", row.get("id", "")):
        paths = sorted(by_name.get(name, ()), key=lambda path: row.get("singer") not in path.split("/"))
        if paths:
            return paths[0]
    return None


def _row_seconds(row: dict[str, str]) -> float | None:
    """Seconds from Init to Fin; None where the table does not say."""
    begin, end = _seconds(row.get("init", "")), _seconds(row.get("fin", ""))
    return end - begin if begin is not None and end is not None and end > begin else None


def _seconds(clock: str) -> float | None:
    """`75`, `1:15` or `0:01:15` in seconds."""
    parts: Sequence[str] = clock.split(":")
    if not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        return None
    return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
