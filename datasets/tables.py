"""The recordings of a store as a table, and what has changed since it was written."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.corpus import Utterance
from utils.errors import UserError
from utils.files import write_csv

COLUMNS = ("kind", "id", "speaker", "path", "frames", "rate", "subset", "sex", "digest", "active", "text")


def write_utterances(path: Path, recordings: Mapping[str, Sequence[Utterance]]) -> None:
    """Writes what recipes may name: utterances by kind (speech, noise, music, rirs)."""
    rows = [
        (kind, u.id, u.speaker, str(Path(u.path).resolve()), u.frames, u.rate, u.subset, u.sex, u.digest,
         "" if u.active is None else " ".join(f"{start}-{stop}" for start, stop in u.active), u.text or "")
        for kind, utterances in recordings.items()
        for u in utterances
    ]  # fmt: skip
    write_csv(path, COLUMNS, rows)


def read_utterances(path: Path) -> dict[str, list[Utterance]]:
    """What `write_utterances` wrote. Raises UserError when it is damaged."""
    csv.field_size_limit(sys.maxsize)
    recordings: dict[str, list[Utterance]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for r in csv.DictReader(file):
                pairs = (part.split("-") for part in r["active"].split())
                active = tuple((int(start), int(stop)) for start, stop in pairs) or None
                recordings.setdefault(r["kind"], []).append(
                    Utterance(
                        r["id"], r["speaker"], r["path"], int(r["frames"]), int(r["rate"]), r["text"] or None,
                        r["subset"], r["sex"], r["digest"], active,
                    )
                )  # fmt: skip
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run generator.py again") from error
    return recordings


def describe_changes(old: Mapping[str, Sequence[Utterance]], new: Mapping[str, Sequence[Utterance]]) -> str:
    """What differs between two sets of recordings, for people: counts, and the first of each."""
    before, after = (
        {u.id: (u.frames, u.rate, u.digest, u.speaker) for found in recordings.values() for u in found}
        for recordings in (old, new)
    )
    kinds = {
        "new": sorted(after.keys() - before.keys()),
        "gone": sorted(before.keys() - after.keys()),
        "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
    }
    return ", ".join(f"{len(names)} {kind} ({names[0]} ...)" for kind, names in kinds.items() if names)
