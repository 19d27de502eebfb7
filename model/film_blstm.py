"""A compact mask network: a linear front layer and bidirectional LSTMs, the embedding entering by FiLM."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FilmBlstm(nn.Module):
    """Recurrent mask network with feature-wise linear modulation (Perez et al. 2018, arXiv 1709.07871).

    The input is the magnitude relative to its root mean square, to the power `compression`, normalised per
    bin; `stack` neighbouring frames share one step of the LSTMs. After the first LSTM every feature is
    scaled and shifted by what the embedding says. Level normalisation and layer norms are what make it
    listen to the reference within minutes (docs/experiments.md).
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        front_dim: int = 256,
        lstm_dim: int = 256,
        lstm_layers: int = 2,
        stack: int = 1,
        compression: float = 0.3,
    ) -> None:
        super().__init__()
        self.bins, self.stack, self.compression = bins, stack, compression
        self.normalize = nn.BatchNorm1d(bins, momentum=0.05)
        self.front = nn.Linear(bins * stack, front_dim)
        self.lstms = nn.ModuleList(
            nn.LSTM(front_dim if i == 0 else 2 * lstm_dim, lstm_dim, batch_first=True, bidirectional=True)
            for i in range(lstm_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(2 * lstm_dim) for _ in range(lstm_layers))
        self.film = nn.Linear(embedding_dim, 4 * lstm_dim)
        self.out = nn.Linear(2 * lstm_dim, bins * stack)
        # a unit vector has small entries: scaled, they are about one
        self.embedding_scale = 10.0

    def forward(self, magnitude: Tensor, embedding: Tensor) -> Tensor:
        """Linear magnitude [B, T, F] and embedding [B, D] -> soft mask [B, T, F] in (0, 1)."""
        batch, frames, bins = magnitude.shape
        level = magnitude.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
        x = (magnitude / level).clamp_min(0) ** self.compression
        x = self.normalize(x.transpose(1, 2)).transpose(1, 2)  # [B, T, F]
        x = nn.functional.pad(x, (0, 0, 0, -frames % self.stack))
        x = x.reshape(batch, -1, self.stack * bins)  # [B, T/stack, stack*F]
        x = torch.relu(self.front(x))
        scale, shift = self.film(embedding * self.embedding_scale)[:, None].chunk(2, dim=-1)
        for i, (lstm, norm) in enumerate(zip(self.lstms, self.norms, strict=True)):
            x = norm(lstm(x)[0])  # [B, T/stack, 2H]
            if i == 0:
                x = x * (1 + scale) + shift
        x = self.out(x).float()
        return torch.sigmoid(x).reshape(batch, -1, bins)[:, :frames]  # [B, T, F]
