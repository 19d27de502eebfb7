"""The VoiceFilter mask network (Wang et al. 2019, arXiv 1810.04826, section 2.2 and table 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.mask_network import MaskNetwork, channels_last
from model.recurrent import call_lstm, learns_on_cpu, lstm_with_constant

# kernel in time, kernel in frequency, dilation in time
LAYERS = ((1, 7, 1), (7, 1, 1), (5, 5, 1), (5, 5, 2), (5, 5, 4), (5, 5, 8), (5, 5, 16))


class VoiceFilter(MaskNetwork):
    """Eight convolutions, an LSTM that also sees the embedding in every frame, and two linear layers.

    Parameter names follow the public re-implementation (with `partial_convolution`, its branch of that name),
    so that with 601 bins its weights fit one to one. `options` are those of MaskNetwork.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        channels: int = 64,
        lstm_dim: int = 400,
        lstm: Literal["bidirectional", "unidirectional", "none"] = "bidirectional",
        fc1_dim: int = 600,
        activation: Literal["relu", "mish"] = "relu",
        partial_convolution: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(bins, embedding_dim, **options)
        # batch norm keeps its input, not its output, for the gradient: ReLU may write over that
        actives: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "mish": nn.Mish}
        active = actives[activation]
        layers: list[nn.Module] = []
        for number, (time, frequency, dilation) in enumerate(LAYERS):
            inputs = channels if number else self.planes
            if not partial_convolution:
                layers.append(nn.Identity())  # the re-implementation counts its padding as a layer
            kind = PartialConv2d if partial_convolution else nn.Conv2d
            padding = (time - 1) // 2 * dilation, (frequency - 1) // 2
            layers.append(kind(inputs, channels, (time, frequency), 1, padding, (dilation, 1)))
            layers += [nn.BatchNorm2d(channels), active()]
        layers += [nn.Conv2d(channels, 8, 1), nn.BatchNorm2d(8), active()]
        self.conv = channels_last(nn.Sequential(*layers))
        width = 8 * bins + embedding_dim
        self.lstm: nn.LSTM | None = None
        if lstm != "none":
            self.lstm = nn.LSTM(width, lstm_dim, batch_first=True, bidirectional=lstm == "bidirectional")
            width = lstm_dim * (2 if lstm == "bidirectional" else 1)
        self.fc1 = nn.Linear(width, fc1_dim)
        self.fc2 = nn.Linear(fc1_dim, self.planes * bins)

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        embedding = self.condition(embedding, len(mixture))
        x = self.conv(self.see(mixture))  # [B, 8, T, F]
        x = x.transpose(1, 2).flatten(2)  # [B, T, 8*F]
        if self.lstm is not None and learns_on_cpu(x):
            x = lstm_with_constant(self.lstm, x, embedding)
        else:
            if embedding is not None:
                x = torch.cat([x, embedding[:, None].to(x.dtype).expand(-1, x.shape[1], -1)], dim=2)
            if self.lstm is not None:
                x, _ = call_lstm(self.lstm, x)  # [B, T, (2*)H]
        x = torch.relu(self.fc1(torch.relu(x) if self.lstm is not None else x))
        return self.to_mask(self.split_planes(self.fc2(x)))


class PartialConv2d(nn.Conv2d):
    """A convolution whose zero padding does not count (Liu et al. 2018, arXiv 1811.11718, equation 1).

    The sum over a window that reaches beyond the border is scaled by the window's size over the number of
    values inside; the bias is not. What lies inside is a rectangle: a factor for the row, one for the column.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = self._conv_forward(x, self.weight, None)
        rows, columns = (self._scale(x.shape[2 + axis], out, axis) for axis in (0, 1))
        out = out * (rows[:, None] * columns)
        return out if self.bias is None else out + self.bias[:, None, None].to(out.dtype)

    def _scale(self, length: int, out: Tensor, axis: int) -> Tensor:
        """Taps of the kernel over those within the input's `length`, along one axis of `out`."""
        taps = torch.arange(self.kernel_size[axis], device=out.device) * self.dilation[axis]
        places = (
            torch.arange(out.shape[2 + axis], device=out.device)[:, None] + taps - int(self.padding[axis])
        )
        inside = ((places >= 0) & (places < length)).sum(1)
        return (self.kernel_size[axis] / inside).to(out.dtype)
