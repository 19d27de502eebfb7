"""What all mask networks share: how they see the mixture, and how their last layer becomes a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from model.layers import Layer
from model.spectral import compressed

Scale = Literal["linear", "power", "log", "db"]
EMBEDDING_SCALE = 10.0
"""A unit vector has small entries: scaled, they are about one."""
Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module) -> Module:
    """Lets its convolutions compute channels-last, 1.5 times as fast on a CPU: the input follows the weights,
    while an input of one plane has no layout of its own."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def at_level(mixture: Tensor, level: Tensor) -> Tensor:
    """Mixture [B, T, F(, 2)] relative to a level [B, T] or [B, 1]."""
    return mixture / level[(...,) + (None,) * (mixture.ndim - 2)]


class MaskNetwork(nn.Module, ABC):
    """(mixture, embedding) -> mask.

    With a `mask` that is sigmoid, the mixture is its linear magnitude [B, T, F] and the mask [B, T, F] lies
    in (0, 1). With a complex one (Williamson et al. 2016) both are real and imaginary parts [B, T, F, 2], the
    mask's within `mask_bound`. `planes` P is 1 or 2. An `embedding_dim` of 0 makes a network without a
    reference, whose embedding is None. Raises ValueError for a complex mask of a logarithmic input.
    """

    def __init__(
        self,
        bins: int,
        embedding_dim: int,
        mask: Literal["sigmoid", "complex"] = "sigmoid",
        mask_bound: float = 10.0,
        input: Scale = "linear",
        exponent: float = 0.3,
    ) -> None:
        super().__init__()
        if mask == "complex" and input in ("log", "db"):
            raise ValueError(f"mask complex: real and imaginary parts have no {input}")
        self.bins, self.embedding_dim = bins, embedding_dim
        self.planes = 2 if mask == "complex" else 1
        self.mask_bound, self.input, self.exponent = mask_bound, input, exponent

    @property
    def frame_multiple(self) -> int:
        """So many frames are computed as one: pieces of a mixture should begin at a multiple of it."""
        return 1

    @property
    def layered(self) -> list[LayeredMask]:
        """What a long mixture can go through layer by layer (model/long_recurrence.py): the networks whose
        masks' mean is this one's mask, none where it cannot."""
        return []

    @property
    def identities(self) -> tuple[str, ...]:
        """How the names of weights begin that, untrained, change nothing: a training may start from a
        checkpoint without them."""
        return ()

    def widened(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a network like this one, made as wide as it is with (nearly) the same output, where
        that is known how; else as they are."""
        return state

    @abstractmethod
    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)] in float32."""

    def compile_forward(self) -> None:
        """Lets torch.compile make faster code for it; the names of its weights stay."""
        self.compile()

    def require_shape(self, mixture: Tensor) -> None:
        """Raises ValueError for another number of bins or planes, and where there is no frame."""
        expected = (self.bins, 2) if self.planes == 2 else (self.bins,)
        if tuple(mixture.shape[2:]) != expected or mixture.shape[1] == 0:
            names = ", ".join(map(str, expected))
            raise ValueError(f"mixture {tuple(mixture.shape)}: expected [B, T, {names}], T at least 1")

    def see(self, mixture: Tensor) -> Tensor:
        """The mixture on the network's scale [B, P, T, F]. Raises ValueError for another shape."""
        self.require_shape(mixture)
        if self.planes == 1:
            return compressed(mixture, self.input, self.exponent)[:, None]
        x = mixture.permute(0, 3, 1, 2)  # [B, 2, T, F]
        if self.input == "linear":
            return x
        magnitude = (x.square().sum(1, keepdim=True) + 1e-12).sqrt()
        return x * (compressed(magnitude, self.input, self.exponent) / magnitude)

    def levelled(self, mixture: Tensor, frames: int) -> Tensor:
        """The mixture [B, T, F(, 2)] relative to its root mean square over the `frames` (odd) around each
        frame, or, with 0, over all of them. A piece of a recording then looks as it does within the whole,
        half as many frames from its ends."""
        return at_level(mixture, self.level(self.power(mixture), frames))

    def power(self, mixture: Tensor) -> Tensor:
        """Mixture [B, T, F(, 2)] -> mean square of a frame's bins [B, T]."""
        self.require_shape(mixture)
        return self.planes * mixture.float().square().mean(list(range(2, mixture.ndim)))

    @staticmethod
    def level(power: Tensor, frames: int) -> Tensor:
        """Powers [B, T] -> root mean squares, [B, T] over the `frames` around each or, with 0, [B, 1]."""
        if frames:
            half = frames // 2
            around = nn.functional.avg_pool1d(power[:, None], frames, 1, half, count_include_pad=False)[:, 0]
        else:
            around = power.mean(1, keepdim=True)
        # the floor before the root, whose slope is infinite at 0
        return around.clamp_min(1e-12).sqrt()

    def condition(self, embedding: Tensor | None, batch: int | None = None) -> Tensor | None:
        """The embedding, or None where the network has none. Raises ValueError when it is missing or of
        another size, also than the mixtures' `batch`."""
        if not self.embedding_dim:
            return None
        fits = embedding is not None and embedding.ndim == 2 and embedding.shape[1] == self.embedding_dim
        if embedding is None or not fits or batch not in (None, len(embedding)):
            found = "none" if embedding is None else tuple(embedding.shape)
            rows = "B" if batch is None else batch
            raise ValueError(f"embedding {found}: expected [{rows}, {self.embedding_dim}]")
        return embedding

    def to_mask(self, output: Tensor) -> Tensor:
        """The last layer's output [B, P, T, F] -> mask [B, T, F] or [B, T, F, 2]."""
        output = output.float()
        if self.planes == 1:
            return torch.sigmoid(output[:, 0])
        return self.mask_bound * torch.tanh(output).permute(0, 2, 3, 1)

    def split_planes(self, output: Tensor) -> Tensor:
        """[B, T, P*F] -> [B, P, T, F]"""
        return output.unflatten(-1, (self.planes, -1)).transpose(1, 2)


class LayeredMask(MaskNetwork):
    """A mask network of bidirectional LSTMs between which every step is looked at by itself; `stack` frames
    share one step, and the input is the mixture `levelled` over `level_frames`."""

    stack: int
    level_frames: int

    @abstractmethod
    def enter(self, levelled: Tensor) -> Tensor:
        """A levelled mixture [B, T, F(, 2)], from a multiple of `stack` on -> features [B, T/stack, W]."""

    @abstractmethod
    def recurrences(self) -> Iterator[Layer]:
        """Its LSTMs over time, from the first to the last."""

    @abstractmethod
    def leave(self, x: Tensor) -> Tensor:
        """The last features [B, S, W] -> mask [B, S*stack, F(, 2)]."""

    @property
    def frame_multiple(self) -> int:
        return self.stack

    @property
    def layered(self) -> list[LayeredMask]:
        return [self]

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F(, 2)] and embedding [B, D] -> mask [B, T, F(, 2)]."""
        stages = self.stages(mixture, self.condition(embedding, len(mixture)))
        mask = deque(stages, maxlen=1).pop()  # the last one; those before it are not kept
        return mask[:, : mixture.shape[1]]

    def stages(self, mixture: Tensor, embedding: Tensor | None) -> Iterator[Tensor]:
        """Mixture [B, T, F(, 2)] and embedding [B, D] (None: the network has none) -> the levelled mixture,
        the features [B, S, W] before and behind every LSTM, and the mask with the frames that fill up its
        last step [B, S*stack, F(, 2)]. Raises ValueError for another shape."""
        levelled = self.levelled(mixture, self.level_frames)
        yield levelled
        yield (x := self.enter(levelled))
        for recurrence in self.recurrences():
            yield (x := recurrence(x, embedding))
        yield self.leave(x)
