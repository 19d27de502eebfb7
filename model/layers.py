"""Bidirectional LSTMs as layers that a long mixture can go through one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from model.recurrent import call_lstm

State = tuple[Tensor, Tensor]
"""Of an LSTM in one direction, hidden and cell [1, B, H]."""
OneWay = Callable[[Tensor, State | None], tuple[Tensor, State]]
"""Such an LSTM: x [B, S, W] and the state before -> (y [B, S, H], the state behind)."""


class Layer(ABC):
    """A bidirectional LSTM of one layer, between what looks at every step by itself.

    It makes features [B, S, output_size] of features [B, S, input_size] and an embedding [B, D];
    `hidden_size` is H, the width of what one direction gives.
    """

    input_size: int
    hidden_size: int
    output_size: int

    @abstractmethod
    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The features x -> what the LSTM reads [B, S, W]."""

    @abstractmethod
    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        """The features x and the LSTM's output y [B, S, 2H], forwards before backwards -> the next ones."""

    @abstractmethod
    def directions(self) -> tuple[OneWay, OneWay]:
        """The LSTM forwards, and backwards, which reads its steps from the last to the first."""

    def __call__(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The features x -> the next ones, over all steps at once."""
        read = self.before(x, embedding)
        forward, backward = self.directions()
        y = torch.cat([forward(read, None)[0], backward(read.flip(1), None)[0].flip(1)], dim=2)
        return self.after(x, y, embedding)


def directions_of(lstm: nn.LSTM) -> tuple[OneWay, OneWay]:
    """The two directions of a bidirectional LSTM, each with its weights: (forwards, backwards)."""
    ways = []
    for suffix in ("", "_reverse"):
        one = nn.LSTM(lstm.input_size, lstm.hidden_size, batch_first=True, device="meta")
        for name in list(one._parameters):
            weight = getattr(lstm, name + suffix)
            if weight.is_cuda and not torch.is_grad_enabled():
                # cuDNN moves weights into one buffer a layer, which would take these out of `lstm`'s own
                weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
            setattr(one, name, weight)
        ways.append(partial(call_lstm, one.train(lstm.training)))
    forward, backward = ways
    return forward, backward
