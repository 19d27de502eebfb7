"""Scores of a separated voice. Waveforms are [..., N]; every figure is in dB and higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import irfft, next_fast_len, rfft
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular, toeplitz
from threadpoolctl import ThreadpoolController
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


class Decomposition(NamedTuple):
    """SDR, SIR and SAR of BSS eval in dB."""

    sdr: Tensor
    sir: Tensor
    sar: Tensor


FILTER_TAPS = 512
"""Of the distortion that BSS eval forgives."""


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """SDR of BSS eval version 3 (Vincent et al. 2006; 512-tap distortion filter): [..., N] x 2 -> [...].

    In float64; agrees with mir_eval, which is the reference (tests). A silent target or estimate gives
    SILENCE_DB. Raises ValueError when the shapes differ.
    """
    if estimate.shape != target.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and target {tuple(target.shape)} differ in shape")
    (explained,) = _explained(estimate, [target])
    silent = _is_silent(estimate) | _is_silent(target)
    return torch.where(silent, SILENCE_DB, _decibels(explained, 1 - explained))


def bss_eval(estimate: Tensor, target: Tensor, interference: Tensor) -> Decomposition:
    """BSS eval version 3 with a known interference: [..., N] x 3 -> [...] each.

    The estimate is projected onto the target, and onto target and interference together, each filtered with
    512 taps: what the first explains is the target, what the second adds interference, the rest artefacts.
    In float64; agrees with mir_eval, which is the reference (tests). A silent estimate or target gives
    SILENCE_DB, a silent interference a SIR of CEILING_DB. Raises ValueError when the shapes differ.
    """
    if not estimate.shape == target.shape == interference.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (estimate, target, interference))
        raise ValueError(f"estimate, target, interference {shapes} differ in shape")
    of_target, of_both = _explained(estimate, [target, interference])
    ratios = (
        _decibels(of_target, 1 - of_target),
        torch.where(_is_silent(interference), CEILING_DB, _decibels(of_target, of_both - of_target)),
        _decibels(of_both, 1 - of_both),
    )
    silent = _is_silent(estimate) | _is_silent(target)
    return Decomposition(*(torch.where(silent, SILENCE_DB, ratio) for ratio in ratios))


def _explained(estimate: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """Shares [...] of an estimate's energy [..., N] in its projections onto the first source delayed by 0 to
    511 samples, onto the first two, and so on. Silent signals explain nothing."""
    shape, length = estimate.shape[:-1], estimate.shape[-1]
    size = next_fast_len(length + FILTER_TAPS, real=True)
    rows = [_of_energy_1(signal).reshape(-1, length).cpu().numpy() for signal in (estimate, *sources)]
    with _libraries().limit(limits=1, user_api="blas"):  # matrices this small are faster without threads
        energies = [
            _explained_energies(*(rfft(row, size) for row in each), size=size)
            for each in zip(*rows, strict=True)
        ]
    found = torch.from_numpy(np.array(energies).reshape(-1, len(sources)))
    return [energy.clamp(0, 1).reshape(shape).to(estimate.device) for energy in found.unbind(1)]


@lru_cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _explained_energies(mixed: np.ndarray, *spectra: np.ndarray, size: int) -> np.ndarray:
    """The same [sources] for one estimate of energy 1; spectra of `size` samples."""
    count = len(spectra)
    blocks = np.zeros((count, FILTER_TAPS, count, FILTER_TAPS))
    products = np.zeros((count, FILTER_TAPS))
    for i, one in enumerate(spectra):
        if not one.any():  # its block may be any other that is not singular
            blocks[i, :, i] = np.eye(FILTER_TAPS)
            continue
        products[i] = irfft(one.conj() * mixed, size)[:FILTER_TAPS]
        for j in range(i + 1):
            # sum over n of x_i[n] x_j[n + k]; negative lags k stand at the end
            lags = irfft(one.conj() * spectra[j], size)
            blocks[i, :, j] = toeplitz(lags[:FILTER_TAPS], np.append(lags[0], lags[:-FILTER_TAPS:-1]))
    gram, shared = blocks.reshape(2 * (count * FILTER_TAPS,)), products.reshape(-1)
    try:
        # with G = L L', the energy of the projection onto the first k is that of the first k of L^-1 d
        factor = cholesky(gram, lower=True, check_finite=False)  # reads the lower triangle
        parts = solve_triangular(factor, shared, lower=True, check_finite=False)
        return np.square(parts).reshape(count, -1).sum(1).cumsum()
    except LinAlgError:  # singular, as of a sine or of equal sources
        return _by_eigenvalues(gram, shared)


def _by_eigenvalues(gram: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The same for delayed sources that depend on each other."""
    energies = []
    for size in range(FILTER_TAPS, len(shared) + 1, FILTER_TAPS):
        values, vectors = eigh(gram[:size, :size], check_finite=False)  # reads the lower triangle
        kept = values > values[-1] * 1e-12
        products = vectors[:, kept].T @ shared[:size]
        energies.append((np.square(products) / values[kept]).sum())
    return np.array(energies)


def _of_energy_1(signal: Tensor) -> Tensor:
    signal = signal.double()
    silent = _is_silent(signal)[..., None]
    return torch.where(silent, 0.0, signal / signal.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-20))


def _is_silent(signal: Tensor) -> Tensor:
    return signal.double().square().sum(-1) < 1e-12


def _decibels(signal: Tensor, noise: Tensor) -> Tensor:
    ratio = 10 * torch.log10(signal.clamp_min(1e-20) / noise.clamp_min(1e-20))
    return ratio.clamp(SILENCE_DB, CEILING_DB)


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


def sign_flip_p(values: np.ndarray, groups: Sequence[str], draws: int = 20000) -> float:
    """Two-sided p of the mean of paired differences `values` [n] being zero: the share of sign changes of
    whole groups (the speakers) that give a sum at least as far from it, all of them up to 14 groups, else
    `draws` of them, seeded. With few groups no p is small: of five the smallest is 1/16."""
    _, owners = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(owners, np.asarray(values, np.float64))
    count = len(sums)
    if count <= 14:
        signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(draws, count))
        signs[0] = 1.0  # what was observed is one of them
    return float((np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-9)).mean())


def accepted_share(improvement: np.ndarray, threshold: float = 1.0) -> float:
    """Share of utterances whose SI-SDR improves by more than `threshold` dB (WeSep's acceptance rate)."""
    return float((np.asarray(improvement) > threshold).mean())
