"""How well scores tell trials of one speaker from trials of two: error rates, EER, detection cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FEWEST_SPEAKERS = 5
"""From which on an interval over speakers is drawn."""
THINNED = 1_000_000
"""Trials of a class that a bootstrap looks at; of more, every n-th in the order of the scores."""


class Curve(NamedTuple):
    """Shares of errors [t] at rising thresholds [t]; a trial is accepted if its score is at least that.

    From (no misses, all false alarms) at the lowest score to (all misses, no false alarms) at infinity.
    """

    thresholds: np.ndarray
    misses: np.ndarray
    false_alarms: np.ndarray


def error_rates(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The exact step curve over all scores [n] of trials whose speakers are the `same` [n] or not.

    Equal scores share a threshold. `weights` [n] (None: 1 each) count a trial as that many. Raises
    ValueError when scores are not finite, weights negative, or one of the classes weighs nothing.
    """
    scores, same = np.asarray(scores), np.asarray(same, bool)
    counts = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if not scores.shape == same.shape == counts.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape}, same {same.shape}, weights {counts.shape}: expected [n]")
    if not np.isfinite(scores).all():
        bad = int(scores.size - np.isfinite(scores).sum())
        raise ValueError(f"{bad} of {scores.size} scores are NaN or infinite")
    order = np.argsort(scores)
    first, ordered = _first_of_equal(scores[order]), scores[order]
    misses, false_alarms = _cumulated(counts[order], same[order], first)
    return Curve(np.append(ordered[first], np.inf), misses, false_alarms)


def _first_of_equal(ordered: np.ndarray) -> np.ndarray:
    """Where another value begins in rising values [n]: [t]."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.arange(0)


def _cumulated(weights: np.ndarray, same: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Misses and false alarms [t + 1] of trials in the order of their scores; `first` [t]: thresholds."""
    targets = np.append(0.0, np.cumsum(np.where(same, weights, 0.0)))
    others = np.append(0.0, np.cumsum(np.where(same, 0.0, weights)))
    if (weights.size and weights.min() < 0) or not (targets[-1] > 0 and others[-1] > 0):
        raise ValueError(
            f"trials of one speaker weigh {targets[-1]:g}, of two {others[-1]:g}, the least "
            f"{weights.min(initial=0):g}: expected some of either, and no negative ones"
        )
    ends = np.append(first, len(weights))
    return targets[ends] / targets[-1], 1 - others[ends] / others[-1]


def equal_error_rate(curve: Curve) -> tuple[float, float]:
    """(rate, threshold) at which misses and false alarms are equal, interpolated linearly between steps."""
    excess = curve.misses - curve.false_alarms  # rises from -1 to 1
    after = int(np.searchsorted(excess, 0.0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    low, high = curve.misses[after - 1], curve.misses[after]
    below, above = curve.thresholds[after - 1], curve.thresholds[after]
    threshold = below + share * (above - below) if np.isfinite(above) else below
    return float(low + share * (high - low)), float(threshold)


def min_dcf(curve: Curve, prior: float = 0.01, miss_cost: float = 1.0, alarm_cost: float = 1.0) -> float:
    """The least detection cost over all thresholds (NIST SRE), as a share of that of a constant answer.

    `prior` is the probability that a trial is one of the same speaker; 0 is perfect, 1 of no use.
    """
    miss, alarm = miss_cost * prior, alarm_cost * (1 - prior)
    return float((miss * curve.misses + alarm * curve.false_alarms).min() / min(miss, alarm))


def speaker_interval(
    scores: np.ndarray,
    same: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    draws: int = 200,
    share: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the EER of trials [n] between the speakers `first` and `second` [n].

    Speakers are drawn with replacement, because scores of one voice hang together: with a drawn m_a and b
    drawn m_b times, a trial of the two counts m_a * m_b times, and one within a counts m_a times. The scores
    are sorted once. Draws without trials of either class are left out. None where the draws know nothing
    of the spread: of fewer than FEWEST_SPEAKERS, and without an error. Raises ValueError as `error_rates`
    does.
    """
    whole, _ = equal_error_rate(error_rates(scores, same))
    same = np.asarray(same, bool)
    names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    if len(names) < FEWEST_SPEAKERS or whole == 0:
        return None
    kept = _thinned(np.asarray(scores), same)
    ordered, is_same = np.asarray(scores)[kept], same[kept]
    one, other = numbers[: len(same)][kept], numbers[len(same) :][kept]
    within, steps = one == other, _first_of_equal(ordered)
    rates = []
    for drawn in np.random.default_rng(seed).integers(len(names), size=(draws, len(names))):
        times = np.bincount(drawn, minlength=len(names)).astype(np.float64)
        weights = times[one] * np.where(within, 1.0, times[other])
        if weights[is_same].any() and weights[~is_same].any():
            curve = Curve(np.append(ordered[steps], np.inf), *_cumulated(weights, is_same, steps))
            rates.append(equal_error_rate(curve)[0])
    low, high = np.quantile(rates, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _thinned(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Rows in the order of their scores; of a large class every n-th, which leaves its curve as it is."""
    order = np.argsort(scores, kind="stable")
    kept = np.zeros(len(scores), bool)
    for class_ in (same[order], ~same[order]):
        rows = np.flatnonzero(class_)
        kept[rows[:: -(-len(rows) // THINNED)]] = True
    return order[kept]
