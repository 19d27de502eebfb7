"""What a training is of: the part of it that differs between separators and embedders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config.embedder_schema import EmbedderConfig
from config.schema import Config
from datasets.corpus import heard_speakers
from datasets.dataset import Batch


@dataclass
class Outcome:
    """Of a validation: the `score` that the best checkpoint is chosen by (higher is better), all figures,
    what to say, pictures uint8 [height, width, 3] and waveforms [N] at `audio_rate` Hz by name."""

    score: float
    summary: dict[str, float]
    sentence: str
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    audio: dict[str, np.ndarray] = field(default_factory=dict)
    audio_rate: int = 0
    bad: tuple[int, ...] = ()
    """The examples, by their place in the split, whose scores are no numbers."""


class Task(ABC):
    """Something that can be trained.

    `objective`: a module from a batch, on its device, to named scalars with `loss` among them; its trained
    weights are those of `groups`. `examples` names what it learns from, so that a resumed run learns from
    the same; all of them are seen in `steps_per_epoch`. `speakers`: whom it has heard in training; (path,
    cause) of files and people `left_out`. `judged_by` names the examples of the validation, where `examples`
    does not.
    """

    config: Config | EmbedderConfig
    objective: nn.Module
    groups: list[dict[str, Any]]
    examples: str
    speakers: set[str]
    judged_by: str = ""
    left_out: Sequence[tuple[str, str]] = ()
    steps_per_epoch: int = 1

    @abstractmethod
    def batches(self, start: int, pin: bool) -> Iterator[Batch]:
        """This rank's batches from step `start` on, `train.accumulate` of them a step, each with the
        numbers of its examples as `example`; `pin`: for a transfer to a CUDA device."""

    @abstractmethod
    def validate(self) -> Outcome:
        """Scores the validation split, shared out over the ranks, all of which have to call it.

        They have the same figures; pictures and waveforms are the first one's. Trained weights stay as they
        were; modules are left in evaluation mode.
        """

    @abstractmethod
    def describe(self, score: float) -> str:
        """The best score, in words."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of it: enough to use it without the YAML."""

    @abstractmethod
    def load(self, content: dict[str, Any]) -> None:
        """The weights of a checkpoint of this run. Raises RuntimeError where they do not fit."""

    @abstractmethod
    def start_from(self, content: dict[str, Any], where: str) -> None:
        """The weights of another run's checkpoint, whose `training_speakers` the caller adds to `speakers`.

        Raises UserError where they do not fit.
        """

    def before_step(self, step: int) -> bool:
        """Called before every step of the optimiser, with the number of those that are over. Returns whether
        its criteria are others than the last step's."""
        return False

    def after_step(self) -> None:  # noqa: B027
        """Called after every step of the optimiser."""

    def state(self) -> dict[str, Tensor]:
        """Weights that are needed to go on training, but not to use what was trained."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """What `state` gave."""


def warn_of_heard(held_out: Sequence[str], trained: Sequence[str], where: str) -> None:
    """Says so if validation speakers were heard in an earlier training, that of `where`."""
    if heard := heard_speakers(held_out, trained):
        print(
            f"WARNING: {len(heard)} of {len(held_out)} validation speakers were heard in the training of "
            f"{where}: the validation flatters"
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
