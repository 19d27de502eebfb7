"""Precomputed examples on disk, read memory-mapped.

STORE/store.json              settings, fingerprints, speakers of every split
STORE/utterances.csv          every recording that recipes may name
STORE/unusable.csv            every file and speaker left out, with the cause
STORE/missing.csv             rows of tuple or recipe lists without audio, if the store was made from lists
STORE/SPLIT/recipes.jsonl     one line an example
STORE/SPLIT/index.json        number of examples, fingerprint of recipes and front end
STORE/SPLIT/shard-00000/      NAME.npy an array a field, shard.json with their sha256
STORE/embeddings-*.npz        d-vectors of the references, one file an embedder

An array is [n, ...], or, where examples differ in length, all of them joined along the first axis.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config.load import differences
from datasets.corpus import Utterance
from datasets.recipe import RecipeFile
from utils.errors import UserError
from utils.files import read_json, sha256_of, write_csv, write_json

SPLITS = ("train", "validation", "test")
WAVEFORMS = ("mixture_wave", "target_wave")
"""Fields of the splits that are scored: the mixture and the target as waveforms [N]."""
COLUMNS = ("kind", "id", "speaker", "path", "frames", "rate", "subset", "sex", "digest", "active", "text")


def open_store(folder: Path, settings: dict[str, Any], report: dict[str, Any]) -> None:
    """Opens a new store, or checks that the one there was made with the same settings.

    Raises UserError that names the differing keys, and for a folder that is no store but not empty.
    """
    path = folder / "store.json"
    own = {"missing.csv"}  # is written even when no example of a list can be rendered
    names = {found.name for found in folder.iterdir()} if folder.is_dir() else set()
    strangers = [name for name in names - own if not name.startswith(".")]
    if strangers and not path.exists():  # unless another rank has just opened it
        raise UserError(f"{folder}: is not empty and no store; name another folder with -o")
    if not path.exists():
        write_json(path, {"settings": settings, **report})
    changes = differences(read_json(path)["settings"], settings)
    if changes:
        raise UserError(
            f"{folder}: this store was made with other settings ({'; '.join(changes)}); "
            "name another folder with -o, or remove it"
        )


def open_split(folder: Path, recipes: str, examples: int, front_end: dict[str, Any]) -> str:
    """Writes a split's index, or checks that the one there is equal; returns the split's fingerprint.

    `recipes`: sha256 of its list. Raises UserError when the list was another one.
    """
    index = {"examples": examples, "recipes": recipes, "front_end": front_end}
    path = folder / "index.json"
    if path.exists():
        if changes := differences(read_json(path), index):
            raise UserError(f"{path}: does not belong to this store ({'; '.join(changes)}); remove {folder}")
    else:
        write_json(path, index)
    return sha256_of(path)[:16]


def write_utterances(path: Path, recordings: dict[str, Sequence[Utterance]]) -> None:
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


def _allow_open_files() -> None:
    """A memory-mapped array holds a file open: allow as many as the system lets this process have."""
    with contextlib.suppress(ImportError):  # where there is no such limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Store:
    """A store on disk. Raises UserError when the folder is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        _allow_open_files()
        if not (self.folder / "store.json").is_file():
            raise UserError(f"{folder}: no store there; make one with generator.py -d CORPUS -o {folder}")
        self.report = read_json(self.folder / "store.json")
        if "splits" not in self.report:
            raise UserError(f"{folder}: was made by an older version of this project; run generator.py again")
        self.settings: dict[str, Any] = self.report["settings"]

    @property
    def splits(self) -> list[str]:
        """The splits that this store has, in the order of SPLITS."""
        return [name for name in SPLITS if name in self.report["splits"]]

    @property
    def live(self) -> bool:
        """Whether the training examples are drawn while training, and not kept here."""
        return bool(self.settings["data"]["mode"] == "live")

    @cached_property
    def recordings(self) -> dict[str, list[Utterance]]:
        """Utterances by kind: speech, noise, music, rirs."""
        return read_utterances(self.folder / "utterances.csv")

    @cached_property
    def utterances(self) -> dict[str, Utterance]:
        """All recordings by id."""
        return {u.id: u for found in self.recordings.values() for u in found}

    def asked_speakers(self, split: StoredSplit) -> list[str]:
        """The person that every example asks for: its reference's."""
        return [self.utterances[recipe.reference.utterance].speaker for recipe in split.recipes]

    def split(self, name: str) -> StoredSplit:
        """Raises UserError when the store has no such split or it is incomplete."""
        if name not in self.splits:
            raise UserError(f"{self.folder}: has no split {name}, only {', '.join(self.splits)}")
        if name == "train" and self.live:
            raise UserError(f"{self.folder}: its training examples are live (data.mode), none are stored")
        return StoredSplit(self.folder / name)


class StoredSplit:
    """The shards of one split; `read` takes any rows of a field. Raises UserError when it is incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "index.json"
        if not index.is_file():
            raise UserError(f"{folder}: no index there; run generator.py again to complete the store")
        self.recipes = RecipeFile(folder / "recipes.jsonl")
        self.fingerprint = sha256_of(index)[:16]
        self._shards = sorted(folder.glob("shard-*"))
        self._contents = [read_json(shard / "shard.json") for shard in self._shards]
        sizes = [int(c["examples"]) for c in self._contents if c["fingerprint"] == self.fingerprint]
        if sum(sizes) != len(self.recipes) or len(sizes) != len(self._shards):
            raise UserError(
                f"{folder}: {sum(sizes)} of {len(self.recipes)} examples are rendered; "
                "run generator.py again to complete the store"
            )
        self._starts = np.cumsum([0, *sizes])
        self._arrays: dict[tuple[int, str], np.ndarray] = {}
        self._offsets: dict[tuple[int, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.recipes)

    @property
    def fields(self) -> set[str]:
        return {path.stem for path in self._shards[0].glob("*.npy")}

    def read_one(self, field: str, row: int) -> np.ndarray:
        """A field of one example, as it is stored; a view into the file."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        local = row - int(self._starts[shard])
        array = self._array(shard, field)
        offsets = self._offsets.get((shard, field))
        return array[local] if offsets is None else array[offsets[local] : offsets[local + 1]]

    def read(self, field: str, rows: Sequence[int]) -> np.ndarray:
        """Rows of a field, in the order asked for: [len(rows), ...], as stored; their lengths must be
        equal."""
        return np.stack([self.read_one(field, row) for row in rows])

    def read_float(self, field: str, rows: Sequence[int]) -> np.ndarray:
        """Like `read`, as float32 in natural units.

        The cosine is a signed byte, 127 steps to one; 16-bit waveforms have a `scale`, their value at 32767.
        """
        values = self.read(field, rows)
        if values.dtype == np.int16:
            scale = self.read("scale", rows).reshape(-1, 1)
            return values * (scale / np.float32(32767))
        return values.astype(np.float32) / np.float32(127 if values.dtype == np.int8 else 1)

    def batches(self, size: int) -> Iterator[list[int]]:
        """All rows, at most `size` at a time, those of equal length together."""
        lengths: dict[int, list[int]] = {}
        for shard, content in enumerate(self._contents):
            count = int(content["examples"])
            ragged = content.get("lengths", {}).get(WAVEFORMS[0])
            for local, length in enumerate(ragged or count * [self._array(shard, WAVEFORMS[0]).shape[1]]):
                lengths.setdefault(length, []).append(int(self._starts[shard]) + local)
        for _, rows in sorted(lengths.items()):
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _array(self, shard: int, field: str) -> np.ndarray:
        key = (shard, field)
        if key not in self._arrays:
            path = self._shards[shard] / f"{field}.npy"
            try:
                self._arrays[key] = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path}: cannot be read ({error}); remove its folder and run generator.py"
                ) from error
            lengths = self._contents[shard].get("lengths", {}).get(field)
            if lengths:
                self._offsets[key] = np.cumsum([0, *lengths])
        return self._arrays[key]

    def verify(self) -> list[str]:
        """Names the arrays whose bytes are not those that were written."""
        bad = []
        for shard, content in tqdm(
            list(zip(self._shards, self._contents, strict=True)), f"verify {self.folder.name}", unit="shard"
        ):
            for name, digest in content["sha256"].items():
                path = shard / f"{name}.npy"
                if not path.is_file() or sha256_of(path) != digest:
                    bad.append(str(path))
        return bad
