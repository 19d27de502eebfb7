"""Writes the examples of a split into shards of fixed-size arrays, in parallel and resumably."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from datasets.corpus import Utterance
from datasets.mixture import Example, render
from datasets.recipe import Recipe, RecipeFile
from utils.errors import UserError
from utils.files import atomic_file, atomic_folder, read_json, sha256_of, write_json
from utils.processes import worker_pool

Features = Callable[[Example], dict[str, np.ndarray]]
"""What to store of an example: name -> array, the same names for all examples of a split."""
HEADER_BYTES = 128
"""Of every array file; written last, when the shape is known."""


@dataclass(frozen=True)
class SplitWriter:
    """Everything a process needs to write any shard of a split.

    `fingerprint` names recipes and front end, and stands in every shard; `rank` of `ranks` machines writes
    every `ranks`-th shard.
    """

    folder: Path
    features: Features
    rate: int
    shard_size: int
    fingerprint: str
    rank: int = 0
    ranks: int = 1

    def shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}"

    def is_written(self, number: int) -> bool:
        """Whether the shard is there; one of other recipes or settings does not count."""
        path = self.shard(number) / "shard.json"
        return path.is_file() and read_json(path).get("fingerprint") == self.fingerprint

    def write(self, number: int, utterances: Mapping[str, Utterance]) -> int:
        """Renders one shard; returns its number of examples."""
        recipes = RecipeFile(self.folder / "recipes.jsonl")
        first = number * self.shard_size
        numbers = range(first, min(first + self.shard_size, len(recipes)))
        shutil.rmtree(self.shard(number), ignore_errors=True)
        with atomic_folder(self.shard(number)) as temporary:
            with ExitStack() as files:
                arrays: dict[str, ArrayFile] = {}
                for row in numbers:
                    for name, value in self.features(render(recipes[row], utterances, self.rate)).items():
                        if name not in arrays:
                            file = files.enter_context((temporary / f"{name}.npy").open("wb"))
                            arrays[name] = ArrayFile(file, value)
                        arrays[name].append(value)
                lengths = {name: array.finish() for name, array in arrays.items()}
            digests = {name: sha256_of(temporary / f"{name}.npy") for name in arrays}
            content = {"examples": len(numbers), "fingerprint": self.fingerprint, "sha256": digests}
            ragged = {name: rows for name, rows in lengths.items() if rows}
            write_json(temporary / "shard.json", content | ({"lengths": ragged} if ragged else {}))
        return len(numbers)


class ArrayFile:
    """An .npy file that grows by one example at a time.

    Examples of equal shape make an array [n, ...]; of unequal lengths, they are joined along the first axis.
    """

    def __init__(self, file: IO[bytes], first: np.ndarray) -> None:
        self.file, self.dtype, self.shape = file, first.dtype, first.shape
        self.lengths: list[int] = []
        file.write(bytes(HEADER_BYTES))

    def append(self, value: np.ndarray) -> None:
        if value.dtype != self.dtype or value.shape[1:] != self.shape[1:]:
            raise ValueError(f"{value.dtype} {value.shape} does not go with {self.dtype} {self.shape}")
        self.lengths.append(value.shape[0])
        self.file.write(np.ascontiguousarray(value).data)  # `tofile` would hide that the disk is full

    def finish(self) -> list[int]:
        """Writes the header; returns the lengths of the examples, nothing if all are equal."""
        equal = len(set(self.lengths)) == 1
        shape = (len(self.lengths), *self.shape) if equal else (sum(self.lengths), *self.shape[1:])
        self.file.seek(0)
        self.file.write(npy_header(self.dtype, shape))
        self.file.flush()
        os.fsync(self.file.fileno())
        return [] if equal else self.lengths


def npy_header(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    """The header of NumPy's file format, version 1.0, padded to HEADER_BYTES."""
    description = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(shape),
    }
    text = repr(description).encode()
    magic = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return magic + text.ljust(HEADER_BYTES - 11) + b"\n"


def write_recipes(path: Path, recipes: Iterable[Recipe], count: int, expected: str | None = None) -> str:
    """Writes the recipes, one a line; returns the file's sha256.

    Raises UserError, and leaves what was there, when that is not the `expected` one.
    """
    with atomic_file(path) as temporary:
        with (
            temporary.open("w", encoding="utf-8", newline="\n") as file,
            tqdm(desc=f"draw {path.parent.name}", total=count, unit="recipe", leave=False) as bar,
        ):
            for recipe in recipes:
                file.write(recipe.to_line() + "\n")
                bar.update()
        digest = sha256_of(temporary)
        if expected not in (None, digest):
            raise UserError(
                f"{path.parent}: its recipes were drawn by another version of this project; "
                "name another folder with -o, or remove it"
            )
    return digest


def write_shards(writer: SplitWriter, workers: Workers) -> int:
    """Writes this rank's shards that are missing; returns how many of the split's shards are still missing.

    An interrupted call leaves complete shards only, and the same call goes on with the missing ones. Raises
    UserError for audio that cannot be read and when a process is killed.
    """
    examples = len(RecipeFile(writer.folder / "recipes.jsonl"))
    shards = range(-(-examples // writer.shard_size))
    own = [number for number in shards if number % writer.ranks == writer.rank]
    for leftover in writer.folder.glob(".shard-*"):  # of a run that was killed
        if int(leftover.name.split("-")[1]) in own:
            shutil.rmtree(leftover, ignore_errors=True)
    missing = [number for number in own if not writer.is_written(number)]
    sizes = {number: min(writer.shard_size, examples - number * writer.shard_size) for number in shards}
    of = f" ({writer.rank + 1} of {writer.ranks})" if writer.ranks > 1 else ""
    total = sum(sizes[number] for number in own)
    with tqdm(desc=f"render {writer.folder.name}{of}", total=total, unit="mixture") as bar:
        bar.update(total - sum(sizes[number] for number in missing))
        for count in workers.write(writer, missing):
            bar.update(count)
    return sum(not writer.is_written(number) for number in shards)


_UTTERANCES: Mapping[str, Utterance] = {}


def _start_worker(utterances: Mapping[str, Utterance]) -> None:
    import torch

    global _UTTERANCES
    _UTTERANCES = utterances
    torch.set_num_threads(1)  # the processes are the parallelism


def _write_in_worker(writer: SplitWriter, number: int) -> int:
    return writer.write(number, _UTTERANCES)


class Workers:
    """The processes that render, started when there is work for more than one of them."""

    def __init__(self, utterances: Mapping[str, Utterance], processes: int) -> None:
        self.utterances, self.processes = utterances, processes
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def write(self, writer: SplitWriter, numbers: Sequence[int]) -> Iterator[int]:
        """Writes these shards; yields the number of examples of each one that is done."""
        if self.processes <= 1 or (len(numbers) <= 1 and self._pool is None):
            for number in numbers:
                yield writer.write(number, self.utterances)
            return
        if self._pool is None:
            pool = worker_pool(self.processes, "rendering", _start_worker, (self.utterances,))
            self._pool = self._stack.enter_context(pool)
        futures = [self._pool.submit(_write_in_worker, writer, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
