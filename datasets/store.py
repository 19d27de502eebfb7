"""Precomputed examples: recipes first, then shards of fixed-size arrays that are read memory-mapped.

STORE/store.json              settings, fingerprints, speakers of every split
STORE/utterances.csv          id, speaker, path, frames, rate
STORE/unusable.csv            every file and speaker left out, with the cause
STORE/SPLIT/recipes.jsonl     one line an example
STORE/SPLIT/shard-00000/      NAME.npy [n, ...] an array a field, shard.json with their sha256
STORE/SPLIT/embeddings-*.npz  d-vectors of the references, one file an embedder
"""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config.load import differences
from datasets.corpus import Utterance
from datasets.mixture import Example, Recipe, render
from utils import distributed
from utils.errors import UserError
from utils.files import atomic_folder, read_json, sha256_of, write_csv, write_json, write_text

SPLITS = ("train", "validation", "test")
WAVEFORMS = ("mixture_wave", "target_wave")
"""Fields of the splits that are scored: the mixture and the target as waveforms, float32 [n, N]."""

Features = Callable[[Example], dict[str, np.ndarray]]
"""What to store of an example: name -> array; the shapes are the same for all examples of a split."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a process needs to write one shard."""

    folder: Path
    recipes: tuple[Recipe, ...]
    features: Features
    rate: int


def write_settings(
    folder: Path, settings: dict[str, Any], utterances: Sequence[Utterance], report: dict[str, Any]
) -> None:
    """Opens a new store, or checks that the one there was made with the same settings.

    Raises UserError that names the differing keys, and for a folder that is no store but not empty.
    """
    path = folder / "store.json"
    if path.exists():
        there = read_json(path)
        changes = differences(there["settings"], settings)
        if not changes and there["fingerprints"] != report["fingerprints"]:
            changes = ["its recipes were drawn by another version of this project"]
        if changes:
            raise UserError(
                f"{folder}: this store was made with other settings ({'; '.join(changes)}); "
                "name another folder with -o, or remove it"
            )
    own = {"utterances.csv", "unusable.csv", "store.json"}
    if (
        folder.is_dir()
        and not path.exists()
        and any(p.name not in own and not p.name.startswith(".") for p in folder.iterdir())
    ):
        raise UserError(f"{folder}: is not empty and no store; name another folder with -o")
    rows = [(u.id, u.speaker, str(Path(u.path).resolve()), u.frames, u.rate) for u in utterances]
    write_csv(folder / "utterances.csv", ("id", "speaker", "path", "frames", "rate"), rows)
    if not path.exists():
        write_json(path, {"settings": settings, **report})


def write_split(
    folder: Path,
    recipes: Sequence[Recipe],
    utterances: Mapping[str, Utterance],
    features: Features,
    rate: int,
    shard_size: int,
    processes: int,
) -> None:
    """Writes the recipes, then every shard that is missing; torchrun ranks share the shards out.

    An interrupted call leaves complete shards only, and the same call goes on with the missing ones.
    """
    split = folder.name
    lines = "".join(recipe.to_line() + "\n" for recipe in recipes)
    path = folder / "recipes.jsonl"
    if distributed.is_main() and (not path.exists() or path.read_text() != lines):
        write_text(path, lines)
    missing = []
    for number, start in enumerate(range(0, len(recipes), shard_size)):
        shard = folder / f"shard-{number:05d}"
        if number % distributed.world_size() == distributed.rank() and not shard.exists():
            _remove_leftovers(shard)
            missing.append(ShardTask(shard, tuple(recipes[start : start + shard_size]), features, rate))
    bar = tqdm(desc=f"render {split}", total=len(recipes), unit="mixture")
    with bar:
        bar.update(len(recipes) - sum(len(task.recipes) for task in missing))
        for count in _run_tasks(missing, utterances, processes):
            bar.update(count)


def _remove_leftovers(shard: Path) -> None:
    for leftover in shard.parent.glob(f".{shard.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


_UTTERANCES: Mapping[str, Utterance] = {}


def _start_worker(utterances: Mapping[str, Utterance]) -> None:
    import signal

    import torch

    global _UTTERANCES
    _UTTERANCES = utterances
    torch.set_num_threads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends the pool


def _write_shard_in_worker(task: ShardTask) -> int:
    return _write_shard(task, _UTTERANCES)


def _run_tasks(tasks: list[ShardTask], utterances: Mapping[str, Utterance], processes: int) -> Iterator[int]:
    processes = min(processes, len(tasks))
    if processes <= 1:
        for task in tasks:
            yield _write_shard(task, utterances)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (utterances,)) as pool:
        futures = [pool.submit(_write_shard_in_worker, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {processes} rendering processes was killed (is the memory full?); try a smaller -p"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """`np.save` by way of `write`, because `tofile` hides that the disk is full."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def _write_shard(task: ShardTask, utterances: Mapping[str, Utterance]) -> int:
    with atomic_folder(task.folder) as temporary:
        arrays: dict[str, np.ndarray] = {}
        for row, recipe in enumerate(task.recipes):
            fields = task.features(render(recipe, utterances, task.rate))
            for name, value in fields.items():
                if row == 0:
                    shape = (len(task.recipes), *value.shape)
                    arrays[name] = np.empty(shape, value.dtype)
                arrays[name][row] = value
        for name, array in arrays.items():
            write_array(temporary / f"{name}.npy", array)
        digests = {name: sha256_of(temporary / f"{name}.npy") for name in arrays}
        write_json(temporary / "shard.json", {"examples": len(task.recipes), "sha256": digests})
    return len(task.recipes)


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
        self.settings: dict[str, Any] = self.report["settings"]

    @cached_property
    def utterances(self) -> dict[str, Utterance]:
        with (self.folder / "utterances.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            r["id"]: Utterance(r["id"], r["speaker"], r["path"], int(r["frames"]), int(r["rate"]))
            for r in rows
        }

    def target_speakers(self, split: StoredSplit) -> list[str]:
        """The target's speaker of every example."""
        return [self.utterances[recipe.target.utterance].speaker for recipe in split.recipes]

    def split(self, name: str) -> StoredSplit:
        return StoredSplit(self.folder / name)


class StoredSplit:
    """The shards of one split; `read` takes any rows of a field. Raises UserError when it is incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            lines = (folder / "recipes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no recipes there; run generator.py again to complete the store"
            ) from None
        self.recipes = [Recipe.from_line(line) for line in lines]
        self._shards = sorted(folder.glob("shard-*"))
        self._sizes = [int(read_json(shard / "shard.json")["examples"]) for shard in self._shards]
        if sum(self._sizes) != len(self.recipes):
            raise UserError(
                f"{folder}: {sum(self._sizes)} of {len(self.recipes)} examples are rendered; "
                "run generator.py again to complete the store"
            )
        self._starts = np.cumsum([0, *self._sizes])
        self._arrays: dict[tuple[int, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.recipes)

    @property
    def fields(self) -> set[str]:
        return {path.stem for path in self._shards[0].glob("*.npy")}

    def read(self, field: str, rows: Sequence[int]) -> np.ndarray:
        """Rows of a field, in the order asked for: [len(rows), ...]."""
        parts = []
        for row in rows:
            shard = int(np.searchsorted(self._starts, row, side="right")) - 1
            parts.append(self._array(shard, field)[row - self._starts[shard]])
        return np.stack(parts)

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
        return self._arrays[key]

    def verify(self) -> list[str]:
        """Names the arrays whose bytes are not those that were written."""
        bad = []
        for shard in tqdm(self._shards, f"verify {self.folder.name}", unit="shard"):
            for name, digest in read_json(shard / "shard.json")["sha256"].items():
                path = shard / f"{name}.npy"
                if not path.is_file() or sha256_of(path) != digest:
                    bad.append(str(path))
        return bad
