"""Writes the examples of a split into shards of fixed-size arrays, in parallel and resumably."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.corpus import Utterance
from datasets.mixture import Example, render
from datasets.recipe import Recipe, RecipeFile
from datasets.tables import read_utterances
from utils.errors import UserError
from utils.files import atomic_file, atomic_folder, read_json, sha256_of, write_json
from utils.processes import worker_pool
from utils.progress import progress_bar

Features = Callable[[Example], dict[str, np.ndarray]]
"""What to store of an example: name -> array, the same names for all examples of a split."""
WRITE_BYTES = 1 << 24
"""Are written at once; an example at a time takes the system several times as long."""
HEADER_BYTES = 128
"""Of every array file, so that the shape can be written when it is known."""
WAITING = 32
"""Examples that may wait to be written, so that memory does not grow where the disk is slow."""


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def read_shard(folder: Path, fingerprint: str, examples: int) -> dict[str, Any] | None:
    """shard.json of a shard that is there and whole as far as lengths tell; None for any other."""
    try:
        content: dict[str, Any] = read_json(folder / "shard.json")
        sizes = {name: (folder / f"{name}.npy").stat().st_size for name in content["sha256"]}
        whole = content["fingerprint"] == fingerprint and content["bytes"] == sizes
        whole = whole and content["examples"] == examples and content["fields"] == sorted(sizes)
        ragged = content.get("lengths", {}).values()
        return content if whole and all(len(lengths) == examples for lengths in ragged) else None
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None


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
        return self.folder / shard_name(number)

    def is_written(self, number: int, examples: int) -> bool:
        """Whether the shard is there with so many examples, its arrays as long as they were.

        One of other recipes does not count.
        """
        return read_shard(self.shard(number), self.fingerprint, examples) is not None

    def write(self, number: int, utterances: Mapping[str, Utterance]) -> int:
        """Renders one shard; returns its number of examples."""
        recipes = RecipeFile(self.folder / "recipes.jsonl")
        first = number * self.shard_size
        numbers = range(first, min(first + self.shard_size, len(recipes)))
        shutil.rmtree(self.shard(number), ignore_errors=True)
        with atomic_folder(self.shard(number)) as temporary:
            with Arrays(temporary, len(numbers)) as arrays:
                for row in numbers:
                    arrays.append(self.features(render(recipes[row], utterances, self.rate)))
            content: dict[str, Any] = {"examples": len(numbers), "fingerprint": self.fingerprint}
            content["sha256"], content["fields"] = arrays.digests, sorted(arrays.digests)
            content["bytes"] = {name: (temporary / f"{name}.npy").stat().st_size for name in arrays.digests}
            if ragged := {name: lengths for name, lengths in arrays.lengths.items() if lengths}:
                content["lengths"] = ragged
            write_json(temporary / "shard.json", content)
        return len(numbers)


class Arrays:
    """The array files of one shard; they are written by a thread, while the next examples are rendered."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.digests: dict[str, str] = {}
        self.lengths: dict[str, list[int]] = {}
        self._files: dict[str, ArrayFile] = {}
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Arrays:
        return self

    def append(self, fields: dict[str, np.ndarray]) -> None:
        """One example. Raises what an earlier one met while it was written."""
        self._waiting.append(self._thread.submit(self._write, fields))
        if len(self._waiting) > WAITING:
            self._waiting.popleft().result()

    def _write(self, fields: dict[str, np.ndarray]) -> None:
        for name, value in fields.items():
            if name not in self._files:
                self._files[name] = ArrayFile(self.folder / f"{name}.npy", value, self.rows)
            self._files[name].append(value)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)
        try:
            if kind is None:
                for waiting in self._waiting:
                    waiting.result()
                for name, file in self._files.items():
                    self.lengths[name], self.digests[name] = file.finish()
        finally:
            for file in self._files.values():
                file.close()


class ArrayFile:
    """An .npy file that grows by one example at a time.

    Examples of equal shape make an array [rows, ...]; of unequal lengths, they are joined along the first
    axis.
    """

    def __init__(self, path: Path, first: np.ndarray, rows: int) -> None:
        self.path, self.dtype, self.shape, self.rows = path, first.dtype, first.shape, rows
        self.lengths: list[int] = []
        self._digest = hashlib.sha256()
        self._file = path.open("wb", WRITE_BYTES)
        self._write(npy_header(self.dtype, (rows, *self.shape)))

    def _write(self, content: bytes | memoryview) -> None:
        try:
            self._file.write(content)  # `tofile` would hide that the disk is full
        except OSError as error:
            error.filename = str(self.path.parent.parent)
            raise
        self._digest.update(content)

    def append(self, value: np.ndarray) -> None:
        if value.dtype != self.dtype or value.shape[1:] != self.shape[1:]:
            raise ValueError(f"{value.dtype} {value.shape} does not go with {self.dtype} {self.shape}")
        self.lengths.append(value.shape[0])
        self._write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    def finish(self) -> tuple[list[int], str]:
        """Completes the file; returns the lengths of the examples, none if all are equal, and its sha256."""
        ragged = len(set(self.lengths)) > 1
        if ragged:
            self._file.seek(0)
            self._file.write(npy_header(self.dtype, (sum(self.lengths), *self.shape[1:])))
        self._file.flush()
        os.fsync(self._file.fileno())
        return (self.lengths, sha256_of(self.path)) if ragged else ([], self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


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
            progress_bar(desc=f"draw {path.parent.name}", total=count, unit="recipe", leave=False) as bar,
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
        if leftover.name.split("-")[1] in {f"{number:05d}" for number in own}:
            shutil.rmtree(leftover, ignore_errors=True)
    sizes = {number: min(writer.shard_size, examples - number * writer.shard_size) for number in shards}
    missing = [number for number in own if not writer.is_written(number, sizes[number])]
    of = f" ({writer.rank + 1} of {writer.ranks})" if writer.ranks > 1 else ""
    total = sum(sizes[number] for number in own)
    with progress_bar(desc=f"render {writer.folder.name}{of}", total=total, unit="mixture") as bar:
        bar.update(total - sum(sizes[number] for number in missing))
        for count in workers.write(writer, missing):
            bar.update(count)
    return sum(not writer.is_written(number, sizes[number]) for number in shards)


_UTTERANCES: Mapping[str, Utterance] = {}


def _start_worker(table: Path) -> None:
    import torch

    global _UTTERANCES
    recordings = read_utterances(table)
    _UTTERANCES = {u.id: u for found in recordings.values() for u in found}
    torch.set_num_threads(1)  # the processes are the parallelism


def _write_in_worker(writer: SplitWriter, number: int) -> int:
    return writer.write(number, _UTTERANCES)


class Workers:
    """The processes that render, started when there is work for more than one of them."""

    def __init__(self, table: Path, utterances: Mapping[str, Utterance], processes: int) -> None:
        """`table` holds the utterances as a file: a pickle of many would block a process that starts."""
        self.table, self.utterances, self.processes = table, utterances, processes
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
            pool = worker_pool(self.processes, "rendering", _start_worker, (self.table,))
            self._pool = self._stack.enter_context(pool)
        futures = [self._pool.submit(_write_in_worker, writer, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
