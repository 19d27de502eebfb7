"""Unidirectional LSTMs with layer normalisation, told by FiLM whose voice is wanted."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.film_blstm import modulated
from model.recurrent import run_lstm


class FilmLstm(nn.Module):
    """What model.film_blstm.FilmBlstm has between its front and its mask, in one direction: LSTMs, layer
    normalisation behind each, and, behind the first, features scaled and shifted by what the embedding says
    (Perez et al. 2018, arXiv 1709.07871)."""

    def __init__(self, width: int, lstm_dim: int, layers: int, embedding_dim: int) -> None:
        super().__init__()
        self.lstms = nn.ModuleList(
            nn.LSTM(lstm_dim if i else width, lstm_dim, batch_first=True) for i in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(lstm_dim) for _ in range(layers))
        self.film = nn.Linear(embedding_dim, 2 * lstm_dim) if embedding_dim else None

    def forward(
        self, x: Tensor, embedding: Tensor | None, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features [B, T, W], embedding [B, D] and the hidden and cell state [layers, B, H] before (None: the
        first) -> [B, T, H] and the state after them."""
        hidden, cell = [], []
        for i, (lstm, norm) in enumerate(zip(self.lstms, self.norms, strict=True)):
            before = None if state is None else (state[0][i : i + 1], state[1][i : i + 1])
            y, left = run_lstm(cast(nn.LSTM, lstm), x, before)
            x = modulated(norm(y), None if i else self.film, embedding)
            hidden.append(left[0])
            cell.append(left[1])
        return x, (torch.cat(hidden), torch.cat(cell))
