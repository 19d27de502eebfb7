"""The VoiceFilter mask network (Wang et al. 2019, arXiv 1810.04826, section 2.2 and table 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class VoiceFilter(nn.Module):
    """Eight convolutions, an LSTM that also sees the embedding in every frame, and two linear layers.

    `compression` is the exponent applied to the magnitude before the first layer (1: as it is). Parameter
    names follow the public re-implementation, so that with 601 bins its weights fit one to one.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        channels: int = 64,
        lstm_dim: int = 400,
        lstm: Literal["bidirectional", "unidirectional", "none"] = "bidirectional",
        fc1_dim: int = 600,
        compression: float = 1.0,
    ) -> None:
        super().__init__()
        self.compression = compression
        layers: list[nn.Module] = []
        # (kernel in time, kernel in frequency, dilation in time)
        for time, frequency, dilation in (
            (1, 7, 1), (7, 1, 1), (5, 5, 1), (5, 5, 2), (5, 5, 4), (5, 5, 8), (5, 5, 16)
        ):  # fmt: skip
            margin_t, margin_f = (time - 1) // 2 * dilation, (frequency - 1) // 2
            layers += [
                nn.ZeroPad2d((margin_f, margin_f, margin_t, margin_t)),
                nn.Conv2d(channels if layers else 1, channels, (time, frequency), dilation=(dilation, 1)),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        layers += [nn.Conv2d(channels, 8, 1), nn.BatchNorm2d(8), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        width = 8 * bins + embedding_dim
        self.lstm: nn.LSTM | None = None
        if lstm != "none":
            self.lstm = nn.LSTM(width, lstm_dim, batch_first=True, bidirectional=lstm == "bidirectional")
            width = lstm_dim * (2 if lstm == "bidirectional" else 1)
        self.fc1 = nn.Linear(width, fc1_dim)
        self.fc2 = nn.Linear(fc1_dim, bins)

    def forward(self, magnitude: Tensor, embedding: Tensor) -> Tensor:
        """Linear magnitude [B, T, F] and embedding [B, D] -> soft mask [B, T, F] in (0, 1)."""
        frames = magnitude.shape[1]
        x = magnitude if self.compression == 1.0 else magnitude.clamp_min(0) ** self.compression
        # channels last: several times faster in bf16 on a CPU
        x = self.conv(x[:, None].contiguous(memory_format=torch.channels_last))  # [B, 8, T, F]
        x = x.transpose(1, 2).flatten(2)  # [B, T, 8*F]
        x = torch.cat([x, embedding[:, None].to(x.dtype).expand(-1, frames, -1)], dim=2)
        if self.lstm is not None:
            x, _ = self.lstm(x)  # [B, T, (2*)H]
        x = torch.relu(self.fc1(torch.relu(x) if self.lstm is not None else x))
        return torch.sigmoid(self.fc2(x).float())
