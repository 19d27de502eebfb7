"""Several mask networks that answer together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.mask_network import LayeredMask, MaskNetwork


class Ensemble(MaskNetwork):
    """The mean of its members' masks, each of which sees the same mixture and embedding.

    As every mask multiplies the same spectrum, this is the mean of their estimates: what they have in common
    stays, and where they err each in its own way the errors become smaller. Trained members may be joined
    (`convert.py --ensemble`), or learn together by the loss of the mean. Raises ValueError for fewer than
    two, for an ensemble among them, and for members of another number of bins, planes or dimensions of the
    embedding.
    """

    def __init__(self, bins: int, embedding_dim: int, members: Sequence[MaskNetwork], **options: Any) -> None:
        super().__init__(bins, embedding_dim, **options)
        if len(members) < 2:
            raise ValueError(f"{len(members)} members: an ensemble has two or more")
        own = (bins, self.planes, embedding_dim)
        for index, member in enumerate(members):
            if isinstance(member, Ensemble):  # whose members would count for less, or for more
                raise ValueError(f"member {index} is an ensemble: take its members")
            if (found := (member.bins, member.planes, member.embedding_dim)) != own:
                raise ValueError(f"member {index}: bins, planes and embedding are {found}, expected {own}")
        self.members = nn.ModuleList(members)

    @property
    def frame_multiple(self) -> int:
        return math.lcm(*(member.frame_multiple for member in self.parts))

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(
            f"members.{index}.{name}" for index, member in enumerate(self.parts) for name in member.identities
        )

    @property
    def layered(self) -> list[LayeredMask]:
        found = [member.layered for member in self.parts]
        return [network for own in found for network in own] if all(found) else []

    @property
    def parts(self) -> list[MaskNetwork]:
        return [member for member in self.members if isinstance(member, MaskNetwork)]

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        return torch.stack([member(mixture, embedding) for member in self.parts]).mean(0)
