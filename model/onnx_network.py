"""A mask network that is an ONNX graph, such as ailia's: it can only be run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model.mask_network import MaskNetwork


class OnnxMask(MaskNetwork):
    def __init__(self, bins: int, embedding_dim: int, **options: Any) -> None:
        super().__init__(bins, embedding_dim, **options)

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        raise NotImplementedError
