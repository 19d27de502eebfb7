"""Stored examples as batches: the dataset, a sampler that can start anywhere, and the loader."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.recipe import Clip, Recipe
from datasets.references import References
from datasets.remix import Remix
from datasets.store import StoredSplit
from utils import signals
from utils.errors import UserError

Batch = dict[str, Tensor]


class StoredExamples(Dataset[Batch]):
    """Fields of a stored split and what belongs to each reference, read a whole batch at a time."""

    def __init__(
        self, split: StoredSplit, fields: Sequence[str], references: References, remix: Remix | None = None
    ) -> None:
        self.split, self.fields, self.references, self.remix = split, tuple(fields), references, remix
        self.owners = different_references(split.recipes)[1]
        self.other_voice = torch.tensor([float(recipe.other_voice) for recipe in split.recipes])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        """Rows -> float32 tensors [B, ...] by field name, whether there is an `other_voice` (1 or 0) [B],
        the numbers of the rows, `example` int64 [B], and what `references` gives."""
        batch = {name: torch.from_numpy(self.split.read_float(name, rows)) for name in self.fields}
        batch["example"] = torch.tensor(rows, dtype=torch.int64)
        batch["other_voice"] = self.other_voice[list(rows)]
        if self.remix is not None:
            batch = self.remix(batch, [self.split.recipes[row] for row in rows])
        return batch | self.references(self.owners[list(rows)].tolist())


def different_references(recipes: Iterable[Recipe]) -> tuple[list[Clip], np.ndarray]:
    """The recipes' references, each once [m], and the number of each example's own [n]."""
    numbers: dict[Clip, int] = {}
    owners = [numbers.setdefault(recipe.reference, len(numbers)) for recipe in recipes]
    return list(numbers), np.array(owners)


class ShuffledBatches(Sampler[list[int]]):
    """Endless batches of example numbers; every epoch is a permutation of its own, from (seed, epoch).

    A pure function of the step, so that a resumed run goes on with `start` and draws what an uninterrupted
    one would have. Ranks take turns inside the global batch; an incomplete last batch is left out.
    """

    def __init__(
        self, examples: int, batch: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.examples, self.batch, self.seed, self.start = examples, batch, seed, start
        self.rank, self.ranks = rank, ranks
        self.per_epoch = max(1, examples // (batch * ranks))

    def __iter__(self) -> Iterator[list[int]]:
        step, epoch, order = self.start, -1, np.empty(0, np.int64)
        size = self.batch * self.ranks
        while True:
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
            first = step % self.per_epoch * size
            yield order[first : first + size][self.rank :: self.ranks].tolist()
            step += 1


class InParts(Sampler[list[int]]):
    """Every batch of a sampler as `parts` smaller ones, one after the other; their sizes are equal."""

    def __init__(self, batches: Iterable[list[int]], parts: int) -> None:
        self.batches, self.parts = batches, parts

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.batches:
            size = len(rows) // self.parts
            for first in range(0, size * self.parts, size):
                yield rows[first : first + size]


def training_batches(
    examples: Dataset[Batch], sampler: Sampler[list[int]] | Sampler[int], workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches in the sampler's order; `workers` 0 reads them in this process.

    Raises UserError for examples that cannot be read, and when a worker is killed.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if workers:
        _end_workers_at_exit()
    # a generator of its own: a loader draws a seed when it starts, which a resumed run would draw twice
    loader = iter(
        DataLoader(
            _Told(examples),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_signals_alone,
            generator=torch.Generator(),
        )
    )
    if workers:
        # PyTorch's handler raises wherever this process is when a worker is killed; without it the loader
        # finds that out when it waits for the next batch
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return _checked(loader, workers)


class _Told(Dataset["Batch | UserError"]):
    """Gives a user's error back instead of raising it: a loader would put its worker's traceback into it."""

    def __init__(self, examples: Dataset[Batch]) -> None:
        self.examples = examples

    def __getitem__(self, index: Any) -> Batch | UserError:
        try:
            return self.examples[index]
        except UserError as error:
            return error


def _checked(loader: Iterator[Batch | UserError], workers: int) -> Iterator[Batch]:
    while True:
        try:
            batch = next(loader)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" in str(error) or "Pin memory thread" in str(error):
                raise UserError(
                    f"one of {workers} loader processes was killed (is the memory full?); lower train.workers"
                ) from error
            raise
        if isinstance(batch, UserError):
            raise batch
        yield batch


@lru_cache
def _end_workers_at_exit() -> None:
    """An error may keep a loader until the end, where Python would wait for workers that it has asked to
    stop by a signal, which they ignore."""

    def end() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's own handler would report them
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


def _leave_signals_alone(worker: int) -> None:
    """The trainer decides when workers end."""
    signals.ignore()
