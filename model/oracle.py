"""Ideal masks: what a separator could reach at most with a front end and a kind of mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datasets.live import RenderedSplit
from datasets.store import StoredSplit
from model.masks import Masking
from model.scoring import Scores, score_outputs
from model.spectral import Spectral, to_db

SMALLEST = 1e-8


def _magnitude(x: Tensor, s: Tensor) -> Tensor:
    return (s.abs() / x.abs().clamp_min(SMALLEST)).clamp(0, 1)


def _ratio(x: Tensor, s: Tensor) -> Tensor:
    own, rest = s.abs().square(), (x - s).abs().square()
    return (own / (own + rest).clamp_min(SMALLEST**2)).sqrt()


def _phase_sensitive(x: Tensor, s: Tensor) -> Tensor:
    return ((s * x.conj()).real / x.abs().square().clamp_min(SMALLEST**2)).clamp(0, 1)


def _complex(x: Tensor, s: Tensor) -> Tensor:
    ratio = s * x.conj() / x.abs().square().clamp_min(SMALLEST**2)
    return torch.view_as_real(ratio).clamp(-10, 10)


def _decibels(x: Tensor, s: Tensor) -> Tensor:
    return (to_db(s.abs()) / to_db(x.abs()).clamp_min(SMALLEST)).clamp(0, 1)


IDEAL_MASKS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Masking]] = {
    "magnitude, S/X within 0 and 1": (_magnitude, Masking()),
    "ratio, the root of S^2 / (S^2 + N^2)": (_ratio, Masking()),
    "phase-sensitive, S cos / X within 0 and 1": (_phase_sensitive, Masking()),
    "complex, both parts within 10": (_complex, Masking()),
    "of clipped decibels": (_decibels, Masking(db=True)),
}
"""Mask of the spectra [B, T, F] of mixture X and target S, N being the rest, and how it is applied."""


def score_ideal_masks(split: StoredSplit | RenderedSplit, spectral: Spectral) -> dict[str, Scores]:
    """Scores of every ideal mask on a split at a front end."""
    scores = {}
    for name, (ideal, masking) in IDEAL_MASKS.items():

        def separate(
            mixture: Tensor,
            rows: list[int],
            ideal: Callable[[Tensor, Tensor], Tensor] = ideal,
            masking: Masking = masking,
        ) -> Tensor:
            target = torch.from_numpy(split.read_float("target_wave", rows))
            x, s = spectral(mixture), spectral(target)
            return spectral.inverse(masking(x, ideal(x, s)), mixture.shape[-1])

        scores[name] = score_outputs(split, separate, name)
    return scores
