"""Stored examples as batches: the dataset, a sampler that can start anywhere, and the loader."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.recipe import Clip, Recipe
from datasets.references import References
from datasets.store import StoredSplit

Batch = dict[str, Tensor]


class StoredExamples(Dataset[Batch]):
    """Fields of a stored split and what belongs to each reference, read a whole batch at a time."""

    def __init__(self, split: StoredSplit, fields: Sequence[str], references: References) -> None:
        self.split, self.fields, self.references = split, tuple(fields), references
        self.owners = different_references(split.recipes)[1]
        self.other_voice = torch.tensor([float(recipe.other_voice) for recipe in split.recipes])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        """Rows -> float32 tensors [B, ...] by field name, whether there is an `other_voice` (1 or 0) [B],
        and what `references` gives."""
        batch = {name: torch.from_numpy(self.split.read_float(name, rows)) for name in self.fields}
        batch["other_voice"] = self.other_voice[list(rows)]
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


def training_batches(
    examples: Dataset[Batch], sampler: Sampler[list[int]] | Sampler[int], workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches in the sampler's order; `workers` 0 reads them in this process."""
    # a generator of its own: a loader draws a seed when it starts, which a resumed run would draw twice
    return iter(
        DataLoader(
            examples,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_signals_alone,
            generator=torch.Generator(),
        )
    )


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C and a scheduler signal the whole group of processes; the trainer decides when workers end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
