"""What all speaker embedders have in common: waveforms of any lengths in, one vector an utterance out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Embedder(nn.Module, ABC):
    """A front end and a network over its frames; an utterance is embedded by its windows.

    `options` rebuild it (`kind` says as what), `dim` is D, `shortest` the fewest frames that the network
    takes, `unit_length` whether embeddings have it, `samples_at_once` how much padded audio goes through
    a CPU together (more of it leaves the caches), `differentiable` whether gradients go through it,
    `training_speakers` whom it was trained on, and
    `heard_others` whether there are more of whom nothing is known.
    """

    front: nn.Module
    dim: int
    sample_rate: int
    hop_length: int
    n_fft: int
    shortest: int
    unit_length: bool
    samples_at_once: int
    differentiable = True

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.training_speakers: tuple[str, ...] = ()
        self.heard_others = False

    @abstractmethod
    def vectors(self, features: Tensor) -> Tensor:
        """Windows of frames [W, T, M] -> vectors [W, D], of any length."""

    @abstractmethod
    def embed_frames(self, features: Tensor, frames: Tensor) -> Tensor:
        """Utterances [B, T, M], of which `frames` [B] frames are their own -> embeddings [B, D]."""

    def forward(self, features: Tensor) -> Tensor:
        """Windows of frames [W, T, M] -> unit vectors [W, D]."""
        return nn.functional.normalize(self.vectors(features), dim=-1)

    def prepare(self, waveform: Tensor) -> Tensor:
        """A waveform [N] at the level that the embedder wants."""
        return waveform

    def embed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Utterances of any lengths, each [N] at `sample_rate` Hz -> embeddings [B, D].

        An utterance shorter than `shortest` frames is repeated up to them. Utterances of similar length go
        through together; how they are grouped does not change the result beyond rounding. Gradients reach
        waveforms and weights. Raises ValueError for an utterance without samples.
        """
        if not len(waveforms):
            raise ValueError("no utterance to embed")
        least = (self.shortest - 1) * self.hop_length
        prepared = [repeat_to(self.prepare(waveform), least) for waveform in waveforms]
        parts, rows = [], []
        most = self.samples_at_once * times_at_once(prepared[0].device)
        for group in _similar_lengths([len(p) for p in prepared], most):
            # the STFT pads with zeros, so zeros behind a shorter utterance leave its own frames as they are
            padded = nn.utils.rnn.pad_sequence([prepared[row] for row in group], batch_first=True)
            frames = torch.tensor([len(prepared[row]) // self.hop_length + 1 for row in group])
            parts.append(self.embed_frames(self.features(padded), frames.to(padded.device)))
            rows += group
        order = torch.empty(len(rows), dtype=torch.long)
        order[torch.tensor(rows)] = torch.arange(len(rows))
        return torch.cat(parts)[order.to(parts[0].device)]

    def embed_speakers(self, waveforms: Sequence[Tensor], speakers: Sequence[int]) -> Tensor:
        """Several references of each speaker -> their mean embeddings [S, D].

        `speakers` numbers the speaker of every waveform from 0 to S - 1. The mean has unit length where an
        utterance's embedding has.
        """
        embeddings = self.embed(waveforms)
        owners = torch.tensor(speakers, device=embeddings.device)
        mean = mean_by_owner(embeddings, owners, max(speakers) + 1)
        return nn.functional.normalize(mean, dim=-1) if self.unit_length else mean

    def compute_by(self, vectors: Callable[[Tensor], Tensor]) -> None:
        """Lets something else, such as a graph, compute what `vectors` does."""
        self.vectors = vectors  # type: ignore[method-assign, assignment]

    def features(self, waveforms: Tensor) -> Tensor:
        """The front end [B, N] -> [B, T, M], always in float32."""
        with torch.autocast(waveforms.device.type, enabled=False):
            features: Tensor = self.front(waveforms)
        return features

    @property
    def margin(self) -> int:
        """Frames at either end of a piece of an utterance that would see beyond it."""
        return -(-self.n_fft // 2 // self.hop_length)

    def crop_samples(self, frames: int) -> int:
        """Samples from which `crops` makes `frames` frames."""
        return (frames - 1 + 2 * self.margin) * self.hop_length

    def crops(self, waveforms: Tensor) -> Tensor:
        """Pieces of utterances [B, N] -> the frames [B, T, M] that they have within their utterance."""
        features = self.features(torch.stack([self.prepare(waveform) for waveform in waveforms]))
        return features[:, self.margin : features.shape[1] - self.margin]

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight or option."""
        digest = hashlib.sha256(repr(sorted(self.options.items())).encode())
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def equals(self, other: Embedder) -> bool:
        """Whether both make the same of an utterance, but for weights that were kept in 16 bits."""
        own, others = self.state_dict(), other.state_dict()
        return self.options == other.options and all(
            torch.equal(value.half().cpu(), others[name].half().cpu()) for name, value in own.items()
        )

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "options": self.options,
            "state": self.state_dict(),
            "training_speakers": list(self.training_speakers),
            "heard_others": self.heard_others,
        }


def times_at_once(device: torch.device) -> int:
    """How much more than a CPU an accelerator wants to compute together."""
    return 1 if device.type == "cpu" else 16


def repeat_to(waveform: Tensor, samples: int) -> Tensor:
    """A waveform [N], repeated if it is shorter than `samples`. Raises ValueError for one without samples."""
    if len(waveform) == 0:
        raise ValueError("an utterance without samples has no embedding")
    if len(waveform) >= samples:
        return waveform
    return waveform.repeat(-(-samples // len(waveform)))[:samples]


def mean_by_owner(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Means of the rows [n, D] that belong to each owner, a number [n] below `count`: [count, D]."""
    total = values.new_zeros(count, values.shape[1]).index_add(0, owners, values)
    return total / torch.bincount(owners, minlength=count)[:, None]


def _similar_lengths(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Row numbers in order of length, as many at once as stay within `most` samples when padded."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[row] > most:
            yield group
            group = []
        group.append(row)
    yield group
