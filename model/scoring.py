"""Scores of a whole split, an array an utterance, and their summary; shared by validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from datasets.live import RenderedSplit
from datasets.store import StoredSplit
from utils import distributed
from utils.errors import UserError
from utils.metrics import SILENCE_DB, accepted_share, bootstrap_interval, level, sdr, si_sdr
from utils.progress import progress_bar
from utils.verification import FEWEST_SPEAKERS

SAMPLES_AT_ONCE = 1_280_000
"""What goes through a network together: 20 examples of 4 s at 16 kHz, or a longer one by itself."""
METRICS = {"sdr": sdr, "si_sdr": si_sdr}
Scores = dict[str, np.ndarray]
"""Of every utterance [n]: the METRICS in dB, and `level`, the output's in dB re full scale."""


def score_mixtures(
    split: StoredSplit | RenderedSplit, batch: int = 20, examples: int | None = None
) -> Scores:
    """Scores of the unprocessed mixtures (see `score_outputs`)."""
    return score_outputs(split, lambda mixture, rows: mixture, "score mixtures", batch, examples)


def score_outputs(
    split: StoredSplit | RenderedSplit,
    process: Callable[[torch.Tensor, list[int]], torch.Tensor],
    label: str,
    batch: int = 20,
    examples: int | None = None,
) -> Scores:
    """Scores of what `process` makes of mixtures [B, N] and their row numbers: outputs [B, N].

    Of the first `examples` alone, if given. Ranks share the batches, and all have the scores of all.
    """
    count = min(len(split), examples or len(split))
    kept = ([row for row in rows if row < count] for rows in split.batches(batch))
    own = distributed.shared_out(rows for rows in kept if rows)
    scores = {name: np.zeros(count) for name in (*METRICS, "level")}
    hidden = distributed.rank() > 0
    with progress_bar(
        desc=label, total=sum(map(len, own)), unit="utterance", leave=False, disable=hidden
    ) as bar:
        for rows in own:
            mixture = torch.from_numpy(split.read_float("mixture_wave", rows))
            target = torch.from_numpy(split.read_float("target_wave", rows))
            step = max(1, SAMPLES_AT_ONCE // max(1, mixture.shape[1]))
            parts = [slice(start, start + step) for start in range(0, len(rows), step)]
            output = torch.cat([process(mixture[part], rows[part]) for part in parts])
            for name, metric in METRICS.items():
                scores[name][rows] = metric(output, target).numpy()
            scores["level"][rows] = level(output).numpy()
            bar.update(len(rows))
    return {name: distributed.added_up(values) for name, values in scores.items()}


def summarize(
    before: Scores, after: Scores, speakers: Sequence[str], roles: Sequence[str]
) -> dict[str, float]:
    """Mean and median of every metric before, after and improved, with the mean's 95 % interval.

    `speakers`: the person asked for in every utterance, over whom the interval is taken; `roles` (see
    `Recipe.role`): these figures are of the n mixtures alone. Voices that are `alone` have their metrics
    after; where the voice is `absent`, `absent_level` is the output's level against the mixture's in dB.
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
            summary |= _middle(f"{name}_{label}", values)
        if len(set(owners)) >= FEWEST_SPEAKERS:  # fewer say nothing of others
            low, high = bootstrap_interval(gain, owners)
            summary[f"{name}_improvement_low"], summary[f"{name}_improvement_high"] = low, high
    summary["accepted_share"] = accepted_share((after["si_sdr"] - before["si_sdr"])[chosen])
    for other in ("alone", "absent"):
        summary[f"{other}_n"] = int((role == other).sum())
    if summary["alone_n"]:
        for name in METRICS:
            summary |= _middle(f"alone_{name}", after[name][role == "alone"])
    if summary["absent_n"]:
        summary |= _middle("absent_level", (after["level"] - before["level"])[role == "absent"])
    return summary


def _middle(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_mean": float(values.mean()), f"{name}_median": float(np.median(values))}
