"""The optimiser and the learning rate's course."""

from __future__ import annotations

import math
from typing import Any

import torch

from config.schema import Train


def learning_rate(train: Train, step: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, then constant or half a cosine to zero at the end."""
    rate = train.learning_rate
    if train.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    return rate * min(1.0, (step + 1) / max(1, train.warmup_steps))


def make_optimizer(network: torch.nn.Module, train: Train) -> torch.optim.Optimizer:
    arguments: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    match train.optimizer:
        case "adam":
            return torch.optim.Adam(network.parameters(), **arguments)
        case "adamw":
            return torch.optim.AdamW(network.parameters(), **arguments)
