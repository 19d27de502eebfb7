"""What becomes of a training that does not get better: a lower learning rate, and in the end a stop."""

from __future__ import annotations

from typing import Any

from config.options import Training

LOWER_IS_BETTER = ("loss", "eer", "min_dcf", "absent_level_mean", "absent_level_median")


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
        if self.flat == self.train.patience_lr:
            self.scale, self.flat = self.scale * self.train.factor, 0

    @property
    def given_up(self) -> bool:
        return self.train.patience is not None and self.stale >= self.train.patience

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "stale": self.stale, "flat": self.flat}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale, self.stale, self.flat = state["scale"], state["stale"], state["flat"]


def figure_score(name: str, value: float) -> float:
    """A figure of a validation as a score, of which more is better; also the other way round."""
    return -float(value) if _is_low_best(name) else float(value)


def describe_figure(name: str, score: float) -> str:
    return f"best validation {name} {figure_score(name, score):.4g}"


def _is_low_best(name: str) -> bool:
    return any(name == word or name.endswith(f"_{word}") for word in LOWER_IS_BETTER)
