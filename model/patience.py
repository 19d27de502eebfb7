"""What becomes of a training that does not get better: a lower learning rate, and in the end a stop."""

from __future__ import annotations

import re
from typing import Any

from config.network_schema import RECONSTRUCTION
from config.options import Training

CRITERIA = (*RECONSTRUCTION, "absent", "noise_type", "blind", "srl", "triplet_srl")
LOW = re.compile(rf"(.*_)?(loss|eer|min_dcf|absent_level_(mean|median))|{'|'.join(CRITERIA)}")
"""Figures of a validation of which less is better: errors, and the criteria of the loss."""
HIGH = re.compile(r".*(_after|_improvement|alone_(sdr|si_sdr))_(mean|median)|accepted_share")
"""Of which more is."""


class Patience:
    """Counts the validations without a better score; a pure function of what they found.

    `scale` is what plateaus have made of the learning rate; `given_up` says that the training is over.
    """

    def __init__(self, train: Training) -> None:
        self.train = train
        self.scale, self.stale, self.flat = 1.0, 0, 0

    def see(self, better: bool) -> None:
        """Takes a validation: whether it was better than all before."""
        self.stale, self.flat = (0, 0) if better else (self.stale + 1, self.flat + 1)
        if self.train.patience_lr is not None and self.flat >= self.train.patience_lr:
            self.scale, self.flat = self.scale * self.train.factor, 0

    @property
    def given_up(self) -> bool:
        return self.train.patience is not None and self.stale >= self.train.patience

    def forget(self) -> None:
        """Begins to count anew; the learning rate stays as low as it is."""
        self.stale = self.flat = 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "stale": self.stale, "flat": self.flat}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale, self.stale, self.flat = state["scale"], state["stale"], state["flat"]


def figure_score(name: str, value: float) -> float:
    """A figure of a validation as a score, of which more is better; also the other way round."""
    return -float(value) if LOW.fullmatch(name) else float(value)


def describe_figure(name: str, score: float) -> str:
    return f"best validation {name} {figure_score(name, score):.4g}"


def can_choose(name: str) -> bool:
    """Whether it says which of two checkpoints is better, as counts and the mixtures' own scores do not."""
    return bool(LOW.fullmatch(name) or HIGH.fullmatch(name))
