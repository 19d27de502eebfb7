"""The VGG-M embedder (Nagrani et al. 2017, VoxCeleb; after Chatfield et al. 2014): a CNN on spectrograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.embedder import Embedder
from model.spectral import HammingSpectrogram

LONGEST = 3000
"""Frames that go through the CNN at once; a longer utterance is divided into equal parts."""


class VggM(Embedder):
    """Magnitudes (Hamming window), every bin at mean 0 and variance 1 -> five convolutions -> fc6 over the
    whole height -> mean over time -> fc7 without activation.

    An utterance's embedding is fc7's output at unit length. Convolutions and fc6 are followed by batch
    norm and ReLU.
    """

    front: HammingSpectrogram
    unit_length = True
    samples_at_once = 100_000

    def __init__(
        self,
        n_fft: int = 1024,
        win_length: int = 400,
        hop_length: int = 160,
        sample_rate: int = 16000,
        dim: int = 512,
    ) -> None:
        options: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        super().__init__(kind="vggm", **options)
        self.dim, self.sample_rate, self.n_fft, self.hop_length = dim, sample_rate, n_fft, hop_length
        self.shortest = 100
        self.front = HammingSpectrogram(n_fft, win_length, hop_length)
        stages = [
            (1, 96, 7, 2, (3, 3), (2, 2)),
            (96, 256, 5, 2, (3, 3), (2, 2)),
            (256, 384, 3, 1, None, None),
            (384, 256, 3, 1, None, None),
            (256, 256, 3, 1, (5, 3), (3, 2)),
        ]
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        self.pools: list[nn.MaxPool2d | None] = []
        height = n_fft // 2 + 1
        for inputs, outputs, kernel, stride, pool, step in stages:
            self.convolutions.append(nn.Conv2d(inputs, outputs, kernel, stride, padding=1))
            self.norms.append(nn.BatchNorm2d(outputs))
            height = (height + 2 - kernel) // stride + 1
            self.pools.append(nn.MaxPool2d(pool, step) if pool else None)
            height = (height - pool[0]) // step[0] + 1 if pool and step else height
        self.fc6 = nn.Conv2d(256, 4096, (height, 1))
        self.norm6 = nn.BatchNorm2d(4096)
        self.fc7 = nn.Linear(4096, dim)

    def vectors(self, features: Tensor) -> Tensor:
        """Magnitudes [W, T, F] -> fc7 [W, D]."""
        return self._vectors(features, None)

    def compute_by(self, vectors: Callable[[Tensor], Tensor]) -> None:
        super().compute_by(vectors)

        def of_each(features: Tensor, frames: Tensor | None) -> Tensor:
            if frames is None:
                return vectors(features)
            return torch.cat([vectors(row[None, :n]) for row, n in zip(features, frames, strict=True)])

        self._vectors = of_each  # type: ignore[method-assign]

    def embed_frames(self, features: Tensor, frames: Tensor) -> Tensor:
        parts = int(frames.max() + LONGEST - 1) // LONGEST
        if parts > 1:
            return torch.cat([self._embed_long(row[:n]) for row, n in zip(features, frames, strict=True)])
        return nn.functional.normalize(self._vectors(features, frames).float(), dim=-1)

    def _embed_long(self, features: Tensor) -> Tensor:
        """One utterance [T, F] in parts of equal length, at most LONGEST frames -> embedding [1, D]."""
        parts = features.chunk(-(-len(features) // LONGEST))
        vectors = torch.cat([self._vectors(part[None], None).float() * len(part) for part in parts])
        return nn.functional.normalize(vectors.sum(0, keepdim=True), dim=-1)

    def _vectors(self, features: Tensor, frames: Tensor | None) -> Tensor:
        """Magnitudes [B, T, F], of which `frames` [B] frames are an utterance's own (None: all) -> fc7."""
        frames = frames if frames is None or int(frames.min()) < features.shape[1] else None
        # [B, 1, F, T], as wide as the image is in the paper
        x = _normalize_bins(features, frames).transpose(1, 2)[:, None]
        for convolution, norm, pool in zip(self.convolutions, self.norms, self.pools, strict=True):
            x = torch.relu(norm(convolution(x)))
            frames = _shrink(frames, convolution)
            if pool is not None:
                x = pool(x)
                frames = _shrink(frames, pool)
            x = _clear(x, frames)
        x = _clear(torch.relu(self.norm6(self.fc6(x))), frames)[:, :, 0]  # [B, 4096, T']
        mean = x.mean(-1) if frames is None else x.sum(-1) / frames[:, None]
        vector: Tensor = self.fc7(mean)
        return vector


def _normalize_bins(features: Tensor, frames: Tensor | None) -> Tensor:
    """Every bin of every utterance [B, T, F] at mean 0 and variance 1 over its own frames, zero behind."""
    if frames is None:
        variance, mean = torch.var_mean(features, 1, correction=0, keepdim=True)
        return (features - mean) / (variance + 1e-10).sqrt()
    own = (torch.arange(features.shape[1], device=features.device) < frames[:, None])[..., None]
    count = frames[:, None, None]
    mean = (features * own).sum(1, keepdim=True) / count
    centred = (features - mean) * own
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + 1e-10).sqrt()


def _shrink(frames: Tensor | None, layer: nn.Module) -> Tensor | None:
    """How many columns a layer makes of `frames` columns."""
    if frames is None:
        return None
    assert isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
    kernel, stride, padding = (
        v[1] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    return (frames + 2 * int(padding) - int(kernel)) // int(stride) + 1


def _clear(x: Tensor, frames: Tensor | None) -> Tensor:
    """Zero behind each utterance's own columns of [B, C, H, T]: what padding would have been there."""
    if frames is None:
        return x
    own = torch.arange(x.shape[-1], device=x.device) < frames[:, None]
    return x * own[:, None, None, :]
