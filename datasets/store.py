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

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from config.load import differences
from config.schema import Audio, Data
from config.schema import Store as StoreOptions
from datasets.corpus import Utterance
from datasets.recipe import RecipeFile
from datasets.shards import read_shard, shard_name
from datasets.tables import read_utterances
from utils.errors import UserError
from utils.files import read_json, sha256_of, write_json
from utils.progress import progress_bar

SPLITS = ("train", "validation", "test")
WAVEFORMS = ("mixture_wave", "target_wave")
"""Fields of the splits that are scored: the mixture and the target as waveforms [N]."""
OPEN_ARRAYS = 512
MISSING = "split,row,utterances,cause\n"
"""The first line of missing.csv."""


def open_store(folder: Path, settings: dict[str, Any], report: dict[str, Any]) -> None:
    """Opens a new store, or checks that the one there was made with the same settings.

    Raises UserError that names the differing keys, and for a folder that is no store but not empty.
    """
    path = folder / "store.json"
    require_ours(folder)
    if not path.exists():
        write_json(path, {"settings": settings, **report})
    changes = differences(_with_defaults(_entry(path, "settings"), settings), settings)
    if changes:
        raise UserError(
            f"{folder}: this store was made with other settings ({'; '.join(changes)}); "
            "name another folder with -o, or remove it"
        )


def _with_defaults(there: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """A store's settings with what options that are newer than the store default to: a default that changes
    what is drawn, or changes later, would be taken for the store's, too (its recipes' digest tells them
    apart)."""
    filled = dict(there)
    for name, options in (("audio", Audio), ("data", Data), ("store", StoreOptions)):
        with suppress(ValidationError, KeyError, TypeError):  # what is strange differs, and is said then
            tree = options(**there[name]).model_dump()
            filled[name] = {key: value for key, value in tree.items() if key in like[name]}
    return filled


def require_ours(folder: Path) -> None:
    """Raises UserError for a folder that holds something and is no store."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder for the store; name another with -o")
    names = {found.name for found in folder.iterdir()} if folder.is_dir() else set()
    # is written even when no example of a list can be rendered
    if names & {"missing.csv"} and (folder / "missing.csv").read_text(errors="replace").startswith(MISSING):
        names.remove("missing.csv")
    strangers = [name for name in names if not name.startswith(".")]
    if strangers and not (folder / "store.json").exists():  # unless another rank has just opened it
        raise UserError(f"{folder}: is not empty and no store; name another folder with -o")


def _entry(path: Path, key: str) -> Any:
    """An entry of a JSON file of ours. Raises UserError when it is damaged."""
    content = read_json(path)
    kinds = {"settings": dict, "splits": dict, "front_end": dict, "recipes": str, "examples": int}
    if not isinstance(content, dict) or not isinstance(content.get(key), kinds[key]) or not content[key]:
        raise UserError(f"{path}: is damaged (it has no '{key}'); remove it and run generator.py again")
    return content[key]


def read_index(path: Path) -> str | None:
    """The sha256 of the recipes that a split was opened with; None where it was not."""
    return str(_entry(path, "recipes")) if path.exists() else None


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


class Store:
    """A store on disk. Raises UserError when the folder is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "store.json").is_file():
            raise UserError(f"{folder}: no store there; make one with generator.py -d CORPUS -o {folder}")
        self.settings: dict[str, Any] = _entry(self.folder / "store.json", "settings")
        _entry(self.folder / "store.json", "splits")
        self.report = read_json(self.folder / "store.json")

    @property
    def splits(self) -> list[str]:
        """The splits that this store has, in the order of SPLITS."""
        return [name for name in SPLITS if name in self.report["splits"]]

    @property
    def live(self) -> bool:
        """Whether the training examples are drawn while training, and not kept here."""
        return bool(self.settings["data"]["mode"] == "live")

    def require_rate(self, rate: int) -> None:
        """Raises UserError where a checkpoint that works at `rate` Hz cannot separate what is stored."""
        if (stored := self.settings["audio"]["sample_rate"]) != rate:
            raise UserError(f"{self.folder}: is at {stored} Hz, the checkpoint at {rate} Hz")

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

    def people(self, split: str) -> list[str]:
        """The speakers of a split. Raises UserError when the store has no such split."""
        self._require(split)
        return list(self.report["splits"][split]["speakers"])

    def _require(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"{self.folder}: has no split {split}, only {', '.join(self.splits)}")

    def split(self, name: str) -> StoredSplit:
        """Raises UserError when the store has no such split or it is incomplete."""
        self._require(name)
        if name == "train" and self.live:
            raise UserError(f"{self.folder}: its training examples are live (data.mode), none are stored")
        return StoredSplit(self.folder / name)


def equal_lengths(lengths: Iterable[int], size: int) -> Iterator[list[int]]:
    """Rows [n], at most `size` at a time, those of equal length together, the shortest first."""
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_of.setdefault(length, []).append(row)
    for _, rows in sorted(rows_of.items()):
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


class StoredSplit:
    """The shards of one split; `read` takes any rows of a field. Raises UserError when it is incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "index.json"
        if not index.is_file():
            raise UserError(f"{folder}: no index there; run generator.py again to complete the store")
        self.recipes = RecipeFile(folder / "recipes.jsonl")
        self.fingerprint = sha256_of(index)[:16]
        if sha256_of(self.recipes.path) != _entry(index, "recipes"):
            raise UserError(f"{self.recipes.path}: is damaged; run generator.py again, which restores it")
        self._contents, self._shards = self._read_shards(_entry(index, "front_end")["shard_size"])
        self._starts = np.cumsum([0, *(content["examples"] for content in self._contents)])
        self._arrays: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self._offsets: dict[tuple[int, str], np.ndarray] = {}

    def _read_shards(self, shard_size: int) -> tuple[list[dict[str, Any]], list[Path]]:
        sizes = shard_sizes(len(self.recipes), shard_size)
        shards = [self.folder / shard_name(number) for number in range(len(sizes))]
        contents = [
            read_shard(shard, self.fingerprint, size) for shard, size in zip(shards, sizes, strict=True)
        ]
        found = [content for content in contents if content]
        if len(found) < len(shards):
            count = sum(content["examples"] for content in found)
            broken = [
                s.name for s, content in zip(shards, contents, strict=True) if not content and s.exists()
            ]
            damaged = f" ({', '.join(broken[:8])}: damaged, or of other recipes)" if broken else ""
            raise UserError(
                f"{self.folder}{damaged}: {count} of {len(self.recipes)} examples are rendered; "
                "run generator.py again to complete the store"
            )
        return found, shards

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
        """Rows of a field, in the order asked for: [len(rows), ...], as stored. Raises UserError where their
        lengths differ."""
        values = [self.read_one(field, row) for row in rows]
        if len(found := {len(value) for value in values}) > 1:
            raise UserError(
                f"{self.folder}: examples of {min(found)} and of {max(found)} do not fit into one batch "
                f"({field}); training needs segments of one length"
            )
        return np.stack(values)

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
        lengths: list[int] = []
        for shard, content in enumerate(self._contents):
            ragged = content.get("lengths", {}).get(WAVEFORMS[0])
            equal = 0 if ragged else self._array(shard, WAVEFORMS[0]).shape[1]
            lengths += ragged or content["examples"] * [equal]
        return equal_lengths(lengths, size)

    def _array(self, shard: int, field: str) -> np.ndarray:
        """A mapped array; only the latest OPEN_ARRAYS stay open, because each one holds a file."""
        key = (shard, field)
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        path = self._shards[shard] / f"{field}.npy"
        try:
            self._arrays[key] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); see generator.py --verify") from error
        if lengths := self._contents[shard].get("lengths", {}).get(field):
            self._offsets[key] = np.cumsum([0, *lengths])
        if len(self._arrays) > OPEN_ARRAYS:
            self._arrays.popitem(last=False)
        return self._arrays[key]


def shard_sizes(examples: int, shard_size: int) -> list[int]:
    """Examples of every shard of a split."""
    return [min(shard_size, examples - start) for start in range(0, examples, shard_size)]


def verify_split(folder: Path) -> list[Path]:
    """What of a split is missing or has other bytes than were written: shards, and its recipes."""
    index = folder / "index.json"
    recipes = folder / "recipes.jsonl"
    if not index.exists():  # the generator was stopped before it
        return [index]
    whole = recipes.exists() and sha256_of(recipes) == _entry(index, "recipes")
    size, examples = _entry(index, "front_end")["shard_size"], _entry(index, "examples")
    fingerprint, bad = sha256_of(index)[:16], [] if whole else [recipes]
    sizes = shard_sizes(examples, size)
    for number, count in enumerate(progress_bar(sizes, f"verify {folder.name}", unit="shard")):
        shard = folder / shard_name(number)
        content = read_shard(shard, fingerprint, count)
        digests = content["sha256"] if content else {"": ""}
        if content is None or any(sha256_of(shard / f"{name}.npy") != d for name, d in digests.items()):
            bad.append(shard)
    return bad
