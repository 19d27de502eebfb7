"""Averages of the weights over the steps (Polyak), which are better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Exponential averages of `parameters` of a module, from the weights they have now.

    average = decay * average + (1 - decay) * weight after every `update`; with a `decay` of None there are
    none, and everything does nothing. Buffers, such as batch norm's, are never averaged: those of the module
    serve with the averages, too.
    """

    def __init__(self, module: nn.Module, parameters: Iterable[nn.Parameter], decay: float | None) -> None:
        self.decay = decay
        chosen = {id(p) for p in parameters}
        self._weights = {name: p for name, p in module.named_parameters() if id(p) in chosen}
        self._averages: dict[str, Tensor] = {}
        self._put_aside: dict[str, Tensor] | None = None  # the weights, while averages are in their place
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """From the present weights on."""
        self._averages = self.weights() if self.decay is not None else {}

    @torch.no_grad()
    def update(self) -> None:
        for name, average in self._averages.items():
            assert self.decay is not None
            average.lerp_(self._weights[name], 1 - self.decay)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights themselves, by name, also while the averages are in use."""
        if self._put_aside is not None:
            return dict(self._put_aside)
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def resume(self, weights: dict[str, Tensor]) -> None:
        """The module holds averages: takes them, and gives it these weights. Raises KeyError or RuntimeError
        for others."""
        self.restart()
        for name, weight in self._weights.items():
            weight.copy_(weights[name])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The module has the averages in the block, and afterwards its own weights, bit for bit."""
        if self.decay is None or self._put_aside is not None:
            yield
            return
        self._put_aside = own = self.weights()
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)
            self._put_aside = None

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._weights[name].copy_(value)
