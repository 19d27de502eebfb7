"""A recurrent mask network that separates two voices without a reference, which then chooses between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.film_blstm import FilmBlstm, Recurrence, modulated
from model.widening import SEED

VOICES = 2
NEITHER = -2.0
"""Logit with which an untrained network begins to choose neither voice, those of the voices being 0."""
APART = 0.02
"""By so much of a weight's spread two voices differ that begin as one."""


class BlindBlstm(FilmBlstm):
    """Blind separation, then a choice by the reference, in one network.

    The layers of a FilmBlstm, none of which hears the embedding, give two masks: of the voices in the
    mixture, in an order that nobody knows. `choice_layers` bidirectional LSTMs of `choice_dim` behind them,
    the embedding entering each by FiLM, give every step three shares that sum up to one, of the first voice,
    of the second, and of silence; the mask is the sum of the voices' masks, each times its share. The voices
    learn by permutation-invariant training (`loss.blind`; Kolbaek et al. 2017, arXiv 1703.06284), the shares
    by the loss of the mask.

    A training may begin with a FilmBlstm's weights: what heard the embedding there is left out, and both
    voices begin, nearly, as its mask. `options` are those of FilmBlstm.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        choice_dim: int = 256,
        choice_layers: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(bins, 0, **options)
        self.embedding_dim = embedding_dim
        self.features = self.out.in_features
        self.out = nn.Linear(self.features, VOICES * self.out.out_features)
        self.choices = nn.ModuleList(
            ChoiceLayer(2 * choice_dim if index else self.features, choice_dim, embedding_dim)
            for index in range(choice_layers)
        )
        self.share = nn.Linear(2 * choice_dim, VOICES + 1)
        nn.init.zeros_(self.share.weight)
        with torch.no_grad():
            self.share.bias.copy_(torch.tensor([0.0] * VOICES + [NEITHER]))

    @property
    def identities(self) -> tuple[str, ...]:
        return (*super().identities, "choices.", "share.")

    def widened(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if "share.bias" in state:
            return state
        state = super().widened({name: value for name, value in state.items() if "film." not in name})
        for name in ("out.weight", "out.bias"):
            if name in state and VOICES * len(state[name]) == len(self.out.bias):
                state = state | {name: _twice(state[name])}
        return state

    def recurrences(self) -> Iterator[Recurrence]:
        yield from super().recurrences()
        kept = 0
        for choice in self.choices:
            yield choice.recurrence(kept)  # type: ignore[operator]
            kept = self.features

    def leave(self, x: Tensor) -> Tensor:
        return self._chosen(x, self.voices(x))

    def voices(self, x: Tensor) -> Tensor:
        """The last features [B, S, W] -> the masks of both voices [B, 2, S*stack, F(, 2)]."""
        both = self.out(x[..., : self.features]).chunk(VOICES, dim=-1)
        rows = [one.reshape(x.shape[0], -1, self.planes * self.bins) for one in both]  # [B, T, P*F]
        return torch.stack([self.to_mask(self.split_planes(one)) for one in rows], 1)

    def shares(self, x: Tensor) -> Tensor:
        """The last features [B, S, W] -> of the first voice, the second and silence [B, S*stack, 3]."""
        shares = self.share(x[..., self.features :]).float().softmax(-1)[:, :, None]
        return shares.expand(-1, -1, self.stack, -1).reshape(x.shape[0], -1, VOICES + 1)

    def _chosen(self, x: Tensor, voices: Tensor) -> Tensor:
        shares = self.shares(x)[..., :VOICES].transpose(1, 2)
        return (voices * shares[(...,) + (None,) * (voices.ndim - 3)]).sum(1)

    def compile_forward(self) -> None:
        self.mask_and_voices = torch.compile(self.mask_and_voices)  # type: ignore[method-assign]

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        return self.mask_and_voices(mixture, embedding)[0]

    def mask_and_voices(self, mixture: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)] and both voices' masks
        [B, 2, T, F(, 2)]."""
        embedding = self.condition(embedding, len(mixture))
        x = self.enter(self.levelled(mixture, self.level_frames))
        for recurrence in self.recurrences():
            x = recurrence(x, embedding)
        voices, frames = self.voices(x), mixture.shape[1]
        return self._chosen(x, voices)[:, :frames], voices[:, :, :frames]


class ChoiceLayer(nn.Module):
    """norm(LSTM(FiLM(norm(x)))), a bidirectional LSTM over [B, S, W]."""

    def __init__(self, width: int, choice_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.film = nn.Linear(embedding_dim, 2 * width) if embedding_dim else None
        self.lstm = nn.LSTM(width, choice_dim, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * choice_dim)

    def recurrence(self, kept: int) -> Recurrence:
        """Of features behind `kept` others, which it hands on; with 0 those are kept that it reads."""

        def before(x: Tensor, embedding: Tensor | None) -> Tensor:
            return modulated(self.before(x[..., kept:]), self.film, embedding)

        def after(x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
            return torch.cat([x[..., :kept] if kept else x, self.norm(y)], -1)

        layer = Recurrence(before, self.lstm, after)
        layer.input_size += kept
        layer.output_size += kept or self.lstm.input_size
        return layer


def _twice(rows: Tensor) -> Tensor:
    """One voice's weights or biases [R, ...] -> those of two [2R, ...], the second a little apart."""
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(SEED)).to(rows)
    return torch.cat([rows, rows + APART * rows.float().std().to(rows) * noise])
