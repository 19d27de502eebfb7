"""A compact mask network: a linear front layer and bidirectional LSTMs, the embedding entering by FiLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.layers import Layer, OneWay, directions_of
from model.mask_network import EMBEDDING_SCALE, LayeredMask
from model.recurrent import call_lstm
from model.widening import Widening

Inward = Callable[[Tensor, Tensor | None], Tensor]
Outward = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Recurrence(Layer):
    """An LSTM between `before`, which makes its input of the features x [B, S, W], and `after`, which makes
    the next features of x and its output."""

    def __init__(self, before: Inward, lstm: nn.LSTM, after: Outward) -> None:
        self._before, self.lstm, self._after = before, lstm, after
        self.input_size, self.hidden_size = lstm.input_size, lstm.hidden_size
        self.output_size = 2 * lstm.hidden_size

    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self._before(x, embedding)

    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        return self._after(x, y, embedding)

    def directions(self) -> tuple[OneWay, OneWay]:
        return directions_of(self.lstm)

    def __call__(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self.after(x, call_lstm(self.lstm, self.before(x, embedding))[0], embedding)


class FilmBlstm(LayeredMask):
    """Recurrent mask network with feature-wise linear modulation (Perez et al. 2018, arXiv 1709.07871).

    The input is the mixture relative to its root mean square (over `level_frames` around each frame; 0:
    all), on the network's scale, normalised per bin; `stack` neighbouring frames share one step of the
    LSTMs. After the first LSTM every feature is scaled and shifted by what the embedding says. Level
    normalisation and layer norms are what make it listen to the reference within minutes
    (docs/experiments.md). Behind the LSTMs come `residual_layers` that begin as identities, so that a
    network without them can be trained on with them; so can a narrower one. `options` are those of
    MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        front_dim: int = 256,
        lstm_dim: int = 256,
        lstm_layers: int = 2,
        residual_layers: int = 0,
        stack: int = 1,
        level_frames: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(bins, embedding_dim, **{"input": "power", **options})
        self.stack, self.level_frames = stack, level_frames
        width = self.planes * bins
        self.normalize = nn.BatchNorm1d(width, momentum=0.05)
        self.front = nn.Linear(width * stack, front_dim)
        self.lstms = nn.ModuleList(
            nn.LSTM(front_dim if i == 0 else 2 * lstm_dim, lstm_dim, batch_first=True, bidirectional=True)
            for i in range(lstm_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(2 * lstm_dim) for _ in range(lstm_layers))
        self.film = nn.Linear(embedding_dim, 4 * lstm_dim) if embedding_dim else None
        self.residuals = nn.ModuleList(ResidualLayer(lstm_dim, embedding_dim) for _ in range(residual_layers))
        self.out = nn.Linear(2 * lstm_dim, width * stack)

    @property
    def identities(self) -> tuple[str, ...]:
        return ("residuals.",)

    def widened(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if not {"front.bias", "lstms.0.weight_hh_l0"} <= state.keys():
            return state
        there = len(state["front.bias"]), state["lstms.0.weight_hh_l0"].shape[1]
        here = self.front.out_features, cast(nn.LSTM, self.lstms[0]).hidden_size
        wider = there != here and there[0] <= here[0] and there[1] <= here[1]
        return Widening(there, here)(state) if wider else state

    def enter(self, levelled: Tensor) -> Tensor:
        x = self.see(levelled).transpose(1, 2).flatten(2)  # [B, T, P*F]
        x = self.normalize(x.transpose(1, 2)).transpose(1, 2)
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % self.stack))
        return torch.relu(self.front(x.reshape(x.shape[0], -1, self.stack * x.shape[2])))

    def recurrences(self) -> Iterator[Recurrence]:
        films = [self.film] + [None] * len(self.lstms)
        for lstm, norm, film in zip(self.lstms, self.norms, films, strict=False):
            yield Recurrence(_as_it_is, cast(nn.LSTM, lstm), _normalized(norm, film))
        for residual in self.residuals:
            yield cast(ResidualLayer, residual).recurrence()

    def leave(self, x: Tensor) -> Tensor:
        x = self.out(x).reshape(x.shape[0], -1, self.planes * self.bins)  # [B, T, P*F]
        return self.to_mask(self.split_planes(x))


def _as_it_is(x: Tensor, embedding: Tensor | None) -> Tensor:
    return x


def _normalized(norm: nn.Module, film: nn.Linear | None) -> Outward:
    def after(x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        return modulated(norm(y), film, embedding)

    return after


class ResidualLayer(nn.Module):
    """x + norm(LSTM(FiLM(x))), a bidirectional LSTM over [B, T, 2H]; untrained it is the identity."""

    def __init__(self, lstm_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding_dim, 4 * lstm_dim) if embedding_dim else None
        self.lstm = nn.LSTM(2 * lstm_dim, lstm_dim, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * lstm_dim)
        nn.init.zeros_(self.norm.weight)
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Features [B, T, 2H] and embedding [B, D] -> [B, T, 2H]"""
        return self.recurrence()(x, embedding)

    def recurrence(self) -> Recurrence:
        return Recurrence(self._before, self.lstm, self._after)

    def _before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return modulated(x, self.film, embedding)

    def _after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        return x + self.norm(y)


def modulated(x: Tensor, film: nn.Linear | None, embedding: Tensor | None) -> Tensor:
    """Features [B, T, W], each scaled and shifted by what the embedding [B, D] says (None: as they are)."""
    if film is None or embedding is None:
        return x
    scale, shift = film(embedding * EMBEDDING_SCALE)[:, None].chunk(2, dim=-1)
    return x * (1 + scale) + shift
