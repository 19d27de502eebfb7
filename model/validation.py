"""A validation of a separator: what its objective and the scores say of the estimates of a split."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets.dataset import Batch
from datasets.store import WAVEFORMS, StoredSplit
from model.losses import Comparison
from model.objective import SeparatorObjective
from model.scoring import Scores, score_outputs
from model.task import to_device
from utils import distributed

LONGEST = 60
"""Seconds. What is longer is separated as a file is at inference, and its first minute is compared."""


class ScoredSplit:
    """The first `examples` of a split (None: all), and the `embeddings` [n, D] of their references, if the
    network has any."""

    def __init__(
        self, split: StoredSplit, embeddings: np.ndarray | None, examples: int | None = None
    ) -> None:
        self.split, self.embeddings, self.examples = split, embeddings, examples

    def batch(self, rows: list[int], samples: int) -> Batch:
        """The first `samples` of the waveforms, and what else the objective asks for."""
        batch = {name: torch.from_numpy(self.split.read_float(name, rows)[:, :samples]) for name in WAVEFORMS}
        voices = [float(self.split.recipes[row].other_voice) for row in rows]
        batch["other_voice"] = torch.tensor(voices)
        if self.embeddings is not None:
            batch["embedding"] = torch.from_numpy(self.embeddings[rows])
        return batch


@torch.inference_mode()
def validate(objective: SeparatorObjective, scored: ScoredSplit) -> tuple[Scores, dict[str, float]]:
    """Scores of the estimates, and `loss` and every criterion as means over the examples that it counts.

    The network computes each estimate once. Ranks share the work, and all have the same figures. Leaves the
    objective in evaluation mode.
    """
    objective.eval()
    losses = _Losses(objective)

    def estimate(mixture: Tensor, rows: list[int]) -> Tensor:
        with distributed.apart():
            values, compared = judge(objective, scored, rows)
        losses.add(values, compared)
        if compared.waves is not None and compared.waves[0].shape == mixture.shape:
            return compared.waves[0].cpu()
        separator = objective.separator
        vectors = None
        if scored.embeddings is not None:
            vectors = torch.from_numpy(scored.embeddings[rows]).to(separator.device)
        return torch.from_numpy(separator.separate_channels(mixture.numpy(), vectors))

    scores = score_outputs(scored.split, estimate, "validate", examples=scored.examples)
    return scores, losses.means()


def judge(
    objective: SeparatorObjective, scored: ScoredSplit, rows: list[int]
) -> tuple[dict[str, Tensor], Comparison]:
    """The objective's criteria of rows of equal length, and what they compare, on its device."""
    separator = objective.separator
    batch = scored.batch(rows, LONGEST * separator.sample_rate)
    return objective.judge(to_device(batch, separator.device))


class _Losses:
    """Adds up the criteria that count at this step, each over the examples that it is a mean of."""

    def __init__(self, objective: SeparatorObjective) -> None:
        self.weights = {name: weight for name, weight in objective.weights.items() if weight}
        self.sums, self.counts = np.zeros(len(self.weights)), np.zeros(len(self.weights))

    def add(self, values: dict[str, Tensor], compared: Comparison) -> None:
        examples, silent = len(compared.silent), int(compared.silent.sum())
        for number, name in enumerate(self.weights):
            of = {"absent": silent, "srl": examples - silent, "triplet_srl": examples - silent}
            count = of.get(name, examples)
            self.sums[number] += count * values[name].item() if count else 0.0
            self.counts[number] += count

    def means(self) -> dict[str, float]:
        """Those of all ranks; a criterion without an example is left out."""
        sums, counts = distributed.added_up(self.sums), distributed.added_up(self.counts)
        values = {
            name: float(total / count)
            for name, total, count in zip(self.weights, sums, counts, strict=True)
            if count
        }
        return {"loss": sum(self.weights[name] * value for name, value in values.items()), **values}
