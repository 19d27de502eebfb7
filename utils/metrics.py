"""Scores of a separated voice. Waveforms are [..., N]; every figure is in dB and higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SILENCE_DB = -60.0
"""Value of SDR and SI-SDR where they are undefined or unbounded below (a silent estimate or target)."""
CEILING_DB = 100.0
"""Largest value returned: an estimate equal to the target."""


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant SDR (Le Roux et al. 2019, eq. 5, zero-mean signals): [..., N] x 2 -> [...].

    A silent target or estimate gives SILENCE_DB; values are limited to SILENCE_DB .. CEILING_DB.
    Raises ValueError when the shapes differ.
    """
    if estimate.shape != target.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} differ in shape")
    estimate = estimate.double() - estimate.double().mean(-1, keepdim=True)
    target = target.double() - target.double().mean(-1, keepdim=True)
    power = target.square().sum(-1, keepdim=True)
    scaled = target * ((estimate * target).sum(-1, keepdim=True) / power.clamp_min(1e-20))
    signal, noise = scaled.square().sum(-1), (estimate - scaled).square().sum(-1)
    ratio = 10 * torch.log10(signal.clamp_min(1e-20) / noise.clamp_min(1e-20))
    silent = (power.squeeze(-1) < 1e-12) | (estimate.square().sum(-1) < 1e-12)
    return torch.where(silent, SILENCE_DB, ratio.clamp(SILENCE_DB, CEILING_DB))


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """SDR of BSS eval version 3 (Vincent et al. 2006; 512-tap distortion filter): [..., N] x 2 -> [...].

    Computed in batches by torchmetrics, in float64; agrees with mir_eval, which is the reference (tests).
    A silent target or estimate gives SILENCE_DB. Raises ValueError when the shapes differ.
    """
    # here: torchmetrics takes a second to import, and inference does not need it
    from torchmetrics.functional.audio import signal_distortion_ratio

    if estimate.shape != target.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} differ in shape")
    estimate, target = estimate.double(), target.double()
    silent = (target.square().sum(-1) < 1e-12) | (estimate.square().sum(-1) < 1e-12)
    # a silent row would make the batched Toeplitz system singular: score any other signal in its place
    filler = torch.zeros_like(target)
    filler[..., 0] = 1.0
    scores = signal_distortion_ratio(
        torch.where(silent[..., None], filler, estimate), torch.where(silent[..., None], filler, target)
    )
    # rounding makes the ratio of equal signals undefined: nothing is left of the error
    scores = scores.double().nan_to_num(nan=CEILING_DB).clamp(SILENCE_DB, CEILING_DB)
    return torch.where(silent, SILENCE_DB, scores)


def level(signal: Tensor) -> Tensor:
    """Root mean square level in dB re full scale, at least -120: [..., N] -> [...]."""
    return 10 * torch.log10(signal.double().square().mean(-1).clamp_min(1e-12))


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[str], draws: int = 2000, share: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [n], seeded.

    Whole groups (the speakers) are drawn with replacement, because scores of one speaker hang together; the
    interval then speaks of other speakers, and one group alone gives no width.
    """
    values = np.asarray(values, np.float64)
    _, owners = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(owners, values), np.bincount(owners)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def accepted_share(improvement: np.ndarray, threshold: float = 1.0) -> float:
    """Share of utterances whose SI-SDR improves by more than `threshold` dB (WeSep's acceptance rate)."""
    return float((np.asarray(improvement) > threshold).mean())
