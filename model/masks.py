"""What is done with a mask: the voice itself, or what the reverse fork of the re-implementation offers."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from model.spectral import from_db, to_db
from utils.errors import UserError

MaskUse = Literal["org", "inv_div", "inv_sub"]
MASK_FLOOR = 0.05
"""Smallest magnitude that `inv_div` divides by: it amplifies by 26 dB at most (times the factor)."""


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """--mask and --factor, as `chosen_masking` reads them."""
    parser.add_argument(
        "--mask",
        choices=get_args(MaskUse),
        default="org",
        help="mask M and mixture S -> S * M (org), factor * S / M (inv_div), S * (1 - M) / factor (inv_sub); "
        "of other projects' checkpoints on decibels of S",
    )
    parser.add_argument("--factor", type=float, default=1.0, help="of inv_div and inv_sub")


def chosen_masking(masking: Masking, options: argparse.Namespace) -> Masking:
    """What --mask and --factor make of it. Raises UserError for a factor that is not above 0."""
    use, factor = options.mask, options.factor
    if not (math.isfinite(factor) and factor > 0):
        raise UserError(f"--factor {factor}: expected a number above 0")
    if use == "org" and factor != 1:
        print(f"NOTE: --factor {factor} has no effect with --mask org")
    return replace(masking, use=use, factor=factor)


@dataclass(frozen=True)
class Masking:
    """Spectrum S and mask M -> estimate: `org` S * M; `inv_div` factor * S / M, where M below MASK_FLOOR
    counts as MASK_FLOOR; `inv_sub` S * (1 - M) / factor, with factor 1 what `org` leaves of S: the two sum to
    S, but not on decibels.

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
