"""Training criteria as named scalars, and their weighted sum.

All work on the estimate's magnitude E = mask * |X|, the target's magnitude S and, where the phase matters,
the cosine C of the angle between target and mixture in every bin; shapes are [B, T, F]. The estimate has the
mixture's phase, so these three determine every inner product of estimate and target.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENT = 0.3
FLOOR = 1e-4
"""Added to magnitudes before the root, whose slope is infinite at 0 (loudest bins are about 10 to 100)."""


def magnitude_mse(estimate: Tensor, target: Tensor) -> Tensor:
    return (estimate - target).square().mean()


def power_law(estimate: Tensor, target: Tensor) -> Tensor:
    """Power-law compressed reconstruction error (VoiceFilter, section 2.2): mean (S^0.3 - E^0.3)^2."""
    return ((estimate + FLOOR) ** EXPONENT - (target + FLOOR) ** EXPONENT).square().mean()


def power_law_complex(estimate: Tensor, target: Tensor, cosine: Tensor) -> Tensor:
    """The complex term of Wilson et al. 2018: mean |S^0.3 e^(i s) - E^0.3 e^(i x)|^2."""
    e, s = (estimate + FLOOR) ** EXPONENT, (target + FLOOR) ** EXPONENT
    return (e.square() + s.square() - 2 * e * s * cosine).mean()


def negative_si_sdr(estimate: Tensor, target: Tensor, cosine: Tensor) -> Tensor:
    """Mean of -SI-SDR in dB, from inner products of STFT coefficients instead of samples.

    Exact where the squares of the shifted windows sum to a constant; within 0.05 dB for the front ends here.
    A silent target is scored by the estimate's power alone, so that it is pushed to silence.
    """
    weight = torch.full_like(estimate[:1, :1], 2.0)  # bins between 0 and the Nyquist frequency stand for two
    weight[..., 0] = weight[..., -1] = 1.0
    product = (weight * estimate * target * cosine).sum((1, 2)).clamp_min(0)
    power_s = (weight * target.square()).sum((1, 2))
    power_e = (weight * estimate.square()).sum((1, 2))
    signal = product.square() / power_s.clamp_min(1e-8)
    noise = (power_e - signal).clamp_min(0)
    ratio = 10 * torch.log10((noise + 1e-6 * power_e + 1e-8) / (signal + 1e-6 * power_e + 1e-8))
    silent = power_s < 1e-6
    return torch.where(silent, 10 * torch.log10(power_e + 1e-8), ratio).mean()


def criteria(
    weights: dict[str, float],
    mask: Tensor,
    mixture: Tensor,
    target: Tensor,
    cosine: Tensor | None,
    relative: bool = False,
) -> dict[str, Tensor]:
    """Every criterion with a weight above 0, and `loss`, their weighted sum; computed in fp32.

    `mask`, `mixture` and `target` (magnitudes) and `cosine` are [B, T, F]; `relative` divides both magnitudes
    by the mixture's root mean square. Raises ValueError when one needs the cosine and the store has none, or
    when no weight is above 0.
    """
    mixture, target = mixture.float(), target.float()
    if relative:
        scale = mixture.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-5)
        mixture, target = mixture / scale, target / scale
    estimate = mask.float() * mixture
    values: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        if name in ("magnitude_mse", "power_law"):
            values[name] = (magnitude_mse if name == "magnitude_mse" else power_law)(estimate, target)
            continue
        if cosine is None:
            raise ValueError(f"the criterion {name} needs the phase: store.cosine=true")
        function = power_law_complex if name == "power_law_complex" else negative_si_sdr
        values[name] = function(estimate, target, cosine.float())
    if not values:
        raise ValueError("no criterion has a weight above 0")
    values["loss"] = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return values
