"""The references of a batch of examples: embedded beforehand, or to be embedded in the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.corpus import Utterance
from datasets.mixture import read_clip
from datasets.recipe import Clip

References = Callable[[Sequence[int]], dict[str, Tensor]]
"""Numbers of references -> what a batch holds of them."""


class NoReferences:
    """Numbers -> nothing: for a network without a reference."""

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {}


class EmbeddedReferences:
    """Numbers -> `embedding` float32 [B, D], out of those of all references [m, D]."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {"embedding": torch.from_numpy(self.vectors[list(numbers)])}


class ReadReferences:
    """Numbers -> `reference` float32 [B, N], zero behind the `reference_samples` int64 [B] of each."""

    def __init__(self, clips: Sequence[Clip], utterances: Mapping[str, Utterance], rate: int) -> None:
        self.clips, self.utterances, self.rate = clips, utterances, rate

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        clips = [self.clips[number] for number in numbers]
        waves = [
            torch.from_numpy(read_clip(clip, self.utterances[clip.utterance], self.rate)) for clip in clips
        ]
        return {
            "reference": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
            "reference_samples": torch.tensor([len(wave) for wave in waves]),
        }
