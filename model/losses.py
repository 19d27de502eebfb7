"""Criteria that compare an estimate with its target, as named scalars.

Those of spectra work on the estimate's magnitude E = |M| |X|, the target's S and, where the phase matters,
the cosine C of the angle between the two in every bin; all are [B, T, F]. The angle between mixture and
target is enough to know it, because the estimate's phase is the mixture's plus the mask's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from config.network_schema import RECONSTRUCTION, Loss
from utils.distributed import share_of_mean

FLOOR = 1e-4
"""Added to magnitudes before the root, whose slope is infinite at 0 (loudest bins are about 10 to 100)."""
SILENT = 1e-8
"""A target whose power is below this share of the mixture's is silent."""
INACTIVE = 1e-3
"""Share of the mixture's power below which it does not matter what is left of a voice that is not there."""
CLOSEST = 1e-6
"""SI-SDR and SNR saturate at this share of noise, 60 dB."""


@dataclass(frozen=True)
class Comparison:
    """Of a batch: the mask [B, T, F(, 2)] and what it is compared by, in float32.

    `mixture` and `target`: magnitudes [B, T, F]; `cosine` and `sine` of the angle from mixture to target, if
    known (`sine` only matters to a complex mask, whose parts lie within `mask_bound`); `waves`: estimate,
    target and mixture [B, N], if there are waveforms.
    """

    mask: Tensor
    mixture: Tensor
    target: Tensor
    cosine: Tensor | None = None
    sine: Tensor | None = None
    waves: tuple[Tensor, Tensor, Tensor] | None = None
    mask_bound: float = 10.0

    @property
    def complex(self) -> bool:
        return self.mask.ndim == self.mixture.ndim + 1

    @cached_property
    def estimate(self) -> Tensor:
        """E [B, T, F]."""
        if not self.complex:
            return self.mask * self.mixture
        # the square root of exactly nothing has an infinite slope
        return (self.mask.square().sum(-1) + 1e-12).sqrt() * self.mixture

    @cached_property
    def angle(self) -> Tensor:
        """C [B, T, F]. Raises ValueError where the phase is not known."""
        if self.cosine is None:
            raise ValueError("this criterion needs the phase: store.cosine=true")
        if not self.complex:
            return self.cosine
        if self.sine is None:
            raise ValueError("a complex mask needs the sine of the angle, too")
        projected = self.mask[..., 0] * self.cosine + self.mask[..., 1] * self.sine
        return projected / (self.mask.square().sum(-1) + 1e-12).sqrt()

    @cached_property
    def in_phase(self) -> Tensor:
        """S max(C, 0) [B, T, F]: the part of the target that a real mask can give (Erdogan et al. 2015,
        "Phase-sensitive and recognition-boosted speech separation using deep recurrent neural networks").
        Raises ValueError where the phase is not known."""
        if self.cosine is None:
            raise ValueError("loss.target phase_sensitive needs the phase: store.cosine=true")
        return self.target * self.cosine.clamp_min(0)

    @cached_property
    def silent(self) -> Tensor:
        """Whether nothing is asked for [B]."""
        return power(self.target) <= SILENT * power(self.mixture)

    @cached_property
    def powers(self) -> tuple[Tensor, Tensor, Tensor]:
        """<e, e>, <s, s> and <x, x> of estimate, target and mixture [B]: of the waveforms, or of their STFT.

        A masked STFT is no longer that of a waveform, and its inverse drops what does not fit together, which
        is mostly error: the STFT's SI-SDR and SNR are lower than the waveform's, by about 1 dB under an ideal
        ratio mask, less under a smooth one, and not at all under none (tests).
        """
        if self.waves is not None:
            e, s, x = (wave.square().sum(1) for wave in self.waves)
            return e, s, x
        return power(self.estimate), power(self.target), power(self.mixture)

    @cached_property
    def inner(self) -> Tensor:
        """<e, s> of estimate and target [B], as `powers`. Raises ValueError where the phase is not known."""
        if self.waves is not None:
            e, s, _ = self.waves
            return (e * s).sum(1)
        return (_weighted(self.estimate * self.target * self.angle)).sum((1, 2))


def _weighted(values: Tensor) -> Tensor:
    """Bins between 0 and the Nyquist frequency stand for two."""
    weight = torch.full_like(values[:1, :1], 2.0)
    weight[..., 0] = weight[..., -1] = 1.0
    return weight * values


def power(magnitude: Tensor) -> Tensor:
    """Magnitudes [B, T, F] -> [B], as the waveform's up to a constant."""
    return _weighted(magnitude.square()).sum((1, 2))


def criteria(options: Loss, compared: Comparison) -> dict[str, Tensor]:
    """Every criterion of spectra and waveforms that has a weight above 0; scalars.

    `relative` divides all signals by the mixture's root mean square.
    """
    if options.relative:
        compared = _relative(compared)
    weights = options.weights
    return {
        name: _criterion(name, options, compared) for name in (*RECONSTRUCTION, "absent") if weights[name]
    }


def _relative(c: Comparison) -> Comparison:
    scale = c.mixture.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-5)
    waves = None
    if c.waves is not None:
        e, s, x = (wave / scale[:, 0] for wave in c.waves)
        waves = (e, s, x)
    return Comparison(c.mask, c.mixture / scale, c.target / scale, c.cosine, c.sine, waves, c.mask_bound)


def _criterion(name: str, options: Loss, c: Comparison) -> Tensor:
    target = c.in_phase if options.target == "phase_sensitive" else c.target
    match name:
        case "magnitude_mse":
            return magnitude_mse(c.estimate, target)
        case "power_law":
            return power_law(c.estimate, target, options.exponent)
        case "power_law_complex":
            return power_law_complex(c.estimate, c.target, c.angle, options.exponent)
        case "asymmetric":
            return asymmetric(c.estimate, target, options.asymmetric_alpha, options.exponent)
        case "mask_mse":
            return mask_mse(c)
        case "si_sdr":
            return torch.where(c.silent, inactive(c), negative_si_sdr(c)).mean()
        case "snr":
            return torch.where(c.silent, inactive(c), negative_snr(c)).mean()
        case "absent":
            return share_of_mean((inactive(c) * c.silent).sum(), c.silent.sum())
    raise ValueError(f"criterion {name!r}: unknown")


def magnitude_mse(estimate: Tensor, target: Tensor) -> Tensor:
    return (estimate - target).square().mean()


def power_law(estimate: Tensor, target: Tensor, exponent: float = 0.3) -> Tensor:
    """Power-law compressed reconstruction error (VoiceFilter, section 2.2): mean (S^0.3 - E^0.3)^2."""
    return power_law_errors(estimate, target, exponent).mean()


def power_law_errors(estimate: Tensor, target: Tensor, exponent: float = 0.3) -> Tensor:
    """(S^0.3 - E^0.3)^2 in every bin."""
    return ((estimate + FLOOR) ** exponent - (target + FLOOR) ** exponent).square()


def power_law_complex(estimate: Tensor, target: Tensor, angle: Tensor, exponent: float = 0.3) -> Tensor:
    """The complex term of Wilson et al. 2018: mean |S^0.3 e^(i s) - E^0.3 e^(i x)|^2."""
    e, s = (estimate + FLOOR) ** exponent, (target + FLOOR) ** exponent
    return (e.square() + s.square() - 2 * e * s * angle).mean()


def asymmetric(estimate: Tensor, target: Tensor, alpha: float = 10.0, exponent: float = 0.3) -> Tensor:
    """Asymmetric L2 of VoiceFilter-Lite (Wang et al. 2020) on compressed magnitudes: too much suppression
    costs `alpha` times the error before it is squared."""
    error = (target + FLOOR) ** exponent - (estimate + FLOOR) ** exponent
    return torch.where(error <= 0, error, alpha * error).square().mean()


def mask_mse(c: Comparison) -> Tensor:
    """Mean over bins of log1p(|X|) |M - M*|^2, M* being the target over the mixture, within the mask's
    bounds (identity-conditioned U-Net): its magnitude for a soft mask, both parts for a complex one."""
    ratio = c.target / c.mixture.clamp_min(1e-8)
    if c.complex:
        if c.cosine is None or c.sine is None:
            raise ValueError("mask_mse of a complex mask needs the phase")
        ideal = (ratio[..., None] * torch.stack([c.cosine, c.sine], -1)).clamp(-c.mask_bound, c.mask_bound)
        error = (c.mask - ideal).square().sum(-1)
    else:
        error = (c.mask - ratio.clamp(0, 1)).square()
    return (torch.log1p(c.mixture) * error).mean()


def negative_si_sdr(c: Comparison) -> Tensor:
    """-SI-SDR in dB (Le Roux et al. 2019) [B]."""
    power_e, power_s, _ = c.powers
    signal = c.inner.square() / power_s.clamp_min(1e-8)
    noise = (power_e - signal).clamp_min(0) + CLOSEST * power_e
    return 10 * torch.log10((noise + 1e-8) / (signal + CLOSEST * power_e + 1e-8))


def negative_snr(c: Comparison) -> Tensor:
    """-SNR in dB [B], the noise being all in which the estimate differs from the target."""
    power_e, power_s, _ = c.powers
    noise = (power_e + power_s - 2 * c.inner).clamp_min(0) + CLOSEST * power_s
    return 10 * torch.log10((noise + 1e-8) / (power_s + 1e-8))


def inactive(c: Comparison) -> Tensor:
    """Where nothing is asked for: the estimate's power over the mixture's in dB [B], the smaller the less
    it matters below -30 dB (Wisdom et al. 2021, "What's all the fuss", equation 2)."""
    power_e, _, power_x = c.powers
    return 10 * torch.log10((power_e + INACTIVE * power_x + 1e-8) / (power_x + 1e-8))


# ---------------------------------------------------------------- noise type

ACTIVE = 1e-4
"""Of the loudest frame's power: above it, the interference sounds."""


def noise_type(logit: Tensor, c: Comparison, other_voice: Tensor) -> Tensor:
    """Binary cross-entropy of the logits [B, T] of overlapped speech, frame by frame.

    `other_voice` [B]: 1 where the interference is speech; in its frames less than 40 dB below the loudest.
    Raises ValueError where the phase between mixture and target is not known.
    """
    if c.cosine is None:
        raise ValueError("noise_type needs the phase: store.cosine=true")
    rest = c.mixture.square() + c.target.square() - 2 * c.mixture * c.target * c.cosine
    level = rest.sum(-1)  # [B, T]
    sounds = level > ACTIVE * level.amax(1, keepdim=True) + 1e-8
    label = (sounds & (other_voice > 0)[:, None]).float()
    return torch.nn.functional.binary_cross_entropy_with_logits(logit.float(), label)
