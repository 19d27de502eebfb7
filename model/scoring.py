"""Scores of a whole split, an array an utterance, and their summary; shared by validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from datasets.live import RenderedSplit
from datasets.store import StoredSplit
from model.separator import Separator
from utils.errors import UserError
from utils.metrics import SILENCE_DB, accepted_share, bootstrap_interval, level, sdr, si_sdr

METRICS = {"sdr": sdr, "si_sdr": si_sdr}
Scores = dict[str, np.ndarray]
"""Of every utterance [n]: the METRICS in dB, and `level`, the output's in dB re full scale."""


def score_mixtures(split: StoredSplit | RenderedSplit, batch: int = 20) -> Scores:
    """Scores of the unprocessed mixtures."""
    return score_outputs(split, lambda mixture, rows: mixture, "score mixtures", batch)


@torch.inference_mode()
def score_estimates(
    separator: Separator, split: StoredSplit | RenderedSplit, embeddings: np.ndarray | None, batch: int = 20
) -> Scores:
    """Scores of the separator's estimates, `embeddings` [n, D] being those of the references, if it has
    any; leaves it in evaluation mode."""
    separator.eval()
    device = separator.device

    def estimate(mixture: torch.Tensor, rows: list[int]) -> torch.Tensor:
        vectors = None if embeddings is None else torch.from_numpy(embeddings[rows]).to(device)
        return separator(mixture.to(device), vectors).cpu()

    return score_outputs(split, estimate, "score estimates", batch)


def score_outputs(
    split: StoredSplit | RenderedSplit,
    process: Callable[[torch.Tensor, list[int]], torch.Tensor],
    label: str,
    batch: int = 20,
) -> Scores:
    """Scores of what `process` makes of mixtures [B, N] and their row numbers: outputs [B, N]."""
    scores = {name: np.empty(len(split)) for name in (*METRICS, "level")}
    with tqdm(desc=label, total=len(split), unit="utterance", leave=False) as bar:
        for rows in split.batches(batch):
            mixture = torch.from_numpy(split.read_float("mixture_wave", rows))
            target = torch.from_numpy(split.read_float("target_wave", rows))
            output = process(mixture, rows)
            for name, metric in METRICS.items():
                scores[name][rows] = metric(output, target).numpy()
            scores["level"][rows] = level(output).numpy()
            bar.update(len(rows))
    return scores


def summarize(
    before: Scores, after: Scores, speakers: Sequence[str], roles: Sequence[str]
) -> dict[str, float]:
    """Mean and median of every metric before, after and improved, with the mean's 95 % interval.

    `speakers`: the person asked for in every utterance, over whom the interval is taken; `roles` (see
    `Recipe.role`): these figures are of the n mixtures alone. Voices that are `alone` have their metrics
    after; where the voice is `absent`, `absent_level_mean` is the output's level against the mixture's in dB.
    `silent` counts mixtures whose target or estimate is silent; their scores are SILENCE_DB. Raises UserError
    when there is no mixture.
    """
    role = np.asarray(roles)
    chosen = role == "mixture"
    if not chosen.any():
        raise UserError(
            f"none of {len(role)} examples is a mixture with the asked voice in it: nothing to score"
        )
    summary: dict[str, float] = {"n": int(chosen.sum())}
    silent = (before["si_sdr"] == SILENCE_DB) | (after["si_sdr"] == SILENCE_DB)
    summary["silent"] = int((silent & chosen).sum())
    owners = [speaker for speaker, taken in zip(speakers, chosen, strict=True) if taken]
    for name in METRICS:
        gain = (after[name] - before[name])[chosen]
        for label, values in (
            ("before", before[name][chosen]),
            ("after", after[name][chosen]),
            ("improvement", gain),
        ):
            summary[f"{name}_{label}_mean"] = float(values.mean())
            summary[f"{name}_{label}_median"] = float(np.median(values))
        low, high = bootstrap_interval(gain, owners)
        summary[f"{name}_improvement_low"], summary[f"{name}_improvement_high"] = low, high
    summary["accepted_share"] = accepted_share((after["si_sdr"] - before["si_sdr"])[chosen])
    for other in ("alone", "absent"):
        summary[f"{other}_n"] = int((role == other).sum())
    if summary["alone_n"]:
        summary |= {f"alone_{name}_mean": float(after[name][role == "alone"].mean()) for name in METRICS}
    if summary["absent_n"]:
        change = (after["level"] - before["level"])[role == "absent"]
        summary["absent_level_mean"] = float(change.mean())
    return summary
