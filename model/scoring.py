"""Scores of a whole split, an array an utterance, and their summary; shared by validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from datasets.store import StoredSplit
from model.separator import Separator
from utils.metrics import SILENCE_DB, accepted_share, bootstrap_interval, sdr, si_sdr

METRICS = {"sdr": sdr, "si_sdr": si_sdr}
Scores = dict[str, np.ndarray]


def score_mixtures(split: StoredSplit, batch: int = 20) -> Scores:
    """`sdr` and `si_sdr` (dB, [n]) of the unprocessed mixtures."""
    return _score(split, batch, "score mixtures", lambda mixture, rows: mixture)


@torch.inference_mode()
def score_estimates(
    separator: Separator, split: StoredSplit, embeddings: np.ndarray, batch: int = 20
) -> Scores:
    """`sdr` and `si_sdr` (dB, [n]) of the separator's estimates; leaves it in evaluation mode."""
    separator.eval()
    device = next(separator.network.parameters()).device

    def estimate(mixture: torch.Tensor, rows: list[int]) -> torch.Tensor:
        vectors = torch.from_numpy(embeddings[rows]).to(device)
        return separator(mixture.to(device), vectors).cpu()

    return _score(split, batch, "score estimates", estimate)


def _score(
    split: StoredSplit,
    batch: int,
    label: str,
    process: Callable[[torch.Tensor, list[int]], torch.Tensor],
) -> Scores:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    with tqdm(desc=label, total=len(split), unit="utterance", leave=False) as bar:
        for start in range(0, len(split), batch):
            rows = list(range(start, min(start + batch, len(split))))
            output = process(torch.from_numpy(split.read("mixture_wave", rows)), rows)
            target = torch.from_numpy(split.read("target_wave", rows))
            for name, metric in METRICS.items():
                parts[name].append(metric(output, target).numpy())
            bar.update(len(rows))
    return {name: np.concatenate(values) for name, values in parts.items()}


def summarize(before: Scores, after: Scores, speakers: Sequence[str]) -> dict[str, float]:
    """Mean and median of every metric before, after and improved, with the mean's 95 % interval.

    `speakers`: the target speaker of every utterance, over whom the interval is taken. `silent` counts
    utterances whose target or estimate is silent; their scores are SILENCE_DB.
    """
    summary: dict[str, float] = {"n": len(before["sdr"])}
    silent = (before["si_sdr"] == SILENCE_DB) | (after["si_sdr"] == SILENCE_DB)
    summary["silent"] = int(silent.sum())
    for name in METRICS:
        for label, values in (
            ("before", before[name]),
            ("after", after[name]),
            ("improvement", after[name] - before[name]),
        ):
            summary[f"{name}_{label}_mean"] = float(values.mean())
            summary[f"{name}_{label}_median"] = float(np.median(values))
        low, high = bootstrap_interval(after[name] - before[name], speakers)
        summary[f"{name}_improvement_low"], summary[f"{name}_improvement_high"] = low, high
    summary["accepted_share"] = accepted_share(after["si_sdr"] - before["si_sdr"])
    return summary
