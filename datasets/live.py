"""Examples that are rendered when they are asked for: the same recipes, the same samples as in a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datasets.corpus import Utterance
from datasets.dataset import Batch
from datasets.draw import Drawer
from datasets.mixture import Example, render
from datasets.recipe import Clip, Recipe
from datasets.references import References
from datasets.remix import Remix
from datasets.store import WAVEFORMS, equal_lengths
from utils.files import fingerprint


class LiveExamples(Dataset[Batch]):
    """Any number of fresh training examples, drawn and rendered a batch at a time at `rate` Hz.

    `references` gives what belongs to the numbers of `clips`, every reference that the drawer can name.
    """

    def __init__(
        self,
        drawer: Drawer,
        utterances: Mapping[str, Utterance],
        rate: int,
        clips: Sequence[Clip],
        references: References,
        remix: Remix | None = None,
    ) -> None:
        self.drawer, self.utterances, self.rate = drawer, utterances, rate
        self.numbers = {clip: number for number, clip in enumerate(clips)}
        self.references, self.remix = references, remix

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Example numbers -> `mixture_wave` and `target_wave` float32 [B, N], whether there is an
        `other_voice` (1 or 0) [B], their numbers `example` int64 [B], and what `references` gives."""
        recipes = [self.drawer.draw(index) for index in indices]
        examples = [render(recipe, self.utterances, self.rate) for recipe in recipes]
        waves = {
            "mixture_wave": torch.from_numpy(np.stack([example.mixture for example in examples])),
            "target_wave": torch.from_numpy(np.stack([example.target for example in examples])),
            "other_voice": torch.tensor([float(recipe.other_voice) for recipe in recipes]),
            "example": torch.tensor(indices, dtype=torch.int64),
        }
        if self.remix is not None:
            waves = self.remix(waves, recipes)
        return waves | self.references([self.numbers[recipe.reference] for recipe in recipes])


class FreshBatches(Sampler[list[int]]):
    """Endless batches of example numbers, none of them twice; a pure function of the step, shared by
    ranks. Another `seed` begins elsewhere."""

    def __init__(self, batch: int, start: int = 0, rank: int = 0, ranks: int = 1, seed: int = 0) -> None:
        self.batch, self.start, self.rank, self.ranks = batch, start, rank, ranks
        self.first = seed % (1 << 20) << 40

    def __iter__(self) -> Iterator[list[int]]:
        size, step = self.batch * self.ranks, self.start
        while True:
            first = self.first + step * size
            yield list(range(first + self.rank, first + size, self.ranks))
            step += 1


class RenderedSplit:
    """Reads like a `StoredSplit`, but renders its recipes when they are asked for."""

    fields = frozenset(WAVEFORMS)

    def __init__(self, recipes: Sequence[Recipe], utterances: Mapping[str, Utterance], rate: int) -> None:
        self.recipes, self.utterances, self.rate = recipes, utterances, rate
        self.fingerprint = fingerprint([recipe.to_line() for recipe in recipes])
        # both fields of an example are read one after the other
        self._render = lru_cache(maxsize=64)(self._render_now)

    def __len__(self) -> int:
        return len(self.recipes)

    def _render_now(self, row: int) -> Example:
        return render(self.recipes[row], self.utterances, self.rate)

    def read_float(self, field: str, rows: Sequence[int]) -> np.ndarray:
        """`mixture_wave` or `target_wave` of examples of equal length: float32 [len(rows), N]."""
        return np.stack([getattr(self._render(row), field.removesuffix("_wave")) for row in rows])

    def batches(self, size: int) -> Iterator[list[int]]:
        """All rows, at most `size` at a time, those of equal length together."""
        return equal_lengths((round(recipe.seconds * self.rate) for recipe in self.recipes), size)
