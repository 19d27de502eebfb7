"""What is done with a mask: the voice itself, or what the reverse fork of the re-implementation offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.spectral import from_db, to_db

MaskUse = Literal["org", "inv_div", "inv_sub"]
MASK_FLOOR = 0.05
"""Smallest magnitude that `inv_div` divides by: it amplifies by 26 dB at most (times the factor)."""


@dataclass(frozen=True)
class Masking:
    """Spectrum S and mask M -> estimate: `org` S * M; `inv_div` factor * S / M, where M below MASK_FLOOR
    counts as MASK_FLOOR; `inv_sub` S * (1 - M) / factor, with factor 1 what `org` leaves of S.

    A mask is soft [B, T, F], or complex [B, T, F, 2] (real and imaginary part). `db`: a soft mask multiplies
    the clipped decibels of the public re-implementation instead of the magnitude. Raises ValueError for a
    factor that is not above 0, and for a complex mask on decibels.
    """

    use: MaskUse = "org"
    factor: float = 1.0
    db: bool = False

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor {self.factor}: must be above 0")

    def __call__(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Complex spectrum [B, T, F] and mask -> complex estimate [B, T, F]."""
        complex_mask = mask.ndim == spectrum.ndim + 1
        if complex_mask and self.db:
            raise ValueError("a complex mask: decibels have no phase")
        gain = torch.view_as_complex(mask.contiguous()) if complex_mask else mask
        match self.use:
            case "inv_sub":
                gain = (1 - gain) / self.factor
            case "inv_div" if complex_mask:
                gain = torch.polar(self.factor / gain.abs().clamp_min(MASK_FLOOR), -gain.angle())
            case "inv_div":
                gain = self.factor / gain.clamp_min(MASK_FLOOR)
        if not self.db:
            return spectrum * gain
        magnitude = from_db(to_db(spectrum.abs()) * gain)
        return torch.polar(magnitude, spectrum.angle())
