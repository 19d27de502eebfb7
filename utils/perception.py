"""Scores that model a listener: PESQ and STOI, by the packages that the field reports them with.

Waveforms are NumPy arrays [N]; a score that is not defined has the value of the worst.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import numpy as np

from utils.audio import resample

PESQ_RATES = {"wb": 16000, "nb": 8000}
WORST_PESQ = 1.0
"""Of a mean opinion score."""
SHORTEST_PESQ, SHORTEST_STOI = 0.25, 0.4
"""Seconds that they want."""
LONGEST_PESQ = 36.0
"""Seconds, which LibriSpeech's utterances do not have. The package has room for 50 stretches of speech
between pauses and writes beyond it where there are more (https://github.com/ludlows/PESQ/issues/18)."""


def missing_packages() -> dict[str, str]:
    """Which of the scores here cannot be computed, and the package that is missing."""
    needed = {"pesq_wb": "pesq", "pesq_nb": "pesq", "stoi": "pystoi", "estoi": "pystoi"}
    return {score: package for score, package in needed.items() if importlib.util.find_spec(package) is None}


def pesq(estimate: np.ndarray, target: np.ndarray, rate: int, band: Literal["wb", "nb"]) -> float:
    """Mean opinion score by ITU-T P.862.2 (wide band, 16 kHz) or P.862 with P.862.1 (narrow band, 8 kHz).

    Waveforms at `rate` Hz. WORST_PESQ where the target holds no speech that PESQ can find, the estimate is
    silent, or both are shorter than a quarter of a second.
    """
    import pesq as package

    if not (np.abs(estimate).max(initial=0) > 1e-6 and np.abs(target).max(initial=0) > 1e-6):
        return WORST_PESQ
    if len(target) < SHORTEST_PESQ * rate:
        return WORST_PESQ
    wanted = PESQ_RATES[band]
    degraded, reference = (resample(x, rate, wanted) for x in (estimate, target))
    try:
        score = float(package.pesq(wanted, reference, degraded, band))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return WORST_PESQ
    return score if np.isfinite(score) else WORST_PESQ


def stoi(estimate: np.ndarray, target: np.ndarray, rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility (Taal et al. 2011; extended: Jensen and Taal 2016), at most 1.

    Waveforms at `rate` Hz. 0 where the estimate or the target is silent, or less than 0.4 s of the target
    sound.
    """
    import warnings

    import pystoi

    if not (np.abs(estimate).max(initial=0) > 1e-6 and np.abs(target).max(initial=0) > 1e-6):
        return 0.0
    if len(target) < SHORTEST_STOI * rate:
        return 0.0
    with warnings.catch_warnings():
        # too few frames: the package warns and gives 1e-5
        warnings.simplefilter("ignore", RuntimeWarning)
        np.random.seed(0)  # of the noise that it adds, 1e-16
        score = float(pystoi.stoi(target, estimate, rate, extended=extended))
    return score if np.isfinite(score) and score != 1e-5 else 0.0
