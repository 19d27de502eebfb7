"""The optimiser and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from config.options import Training


def learning_rate(train: Training, step: int, progress: float, epoch: int, scale: float = 1.0) -> float:
    """Linear warm-up over `warmup_steps`, then constant, half a cosine to zero at the end, halved again and
    again, or times `decay` for every epoch that is over; all times `scale`, that of the plateaus so far."""
    rate = train.learning_rate * scale
    if train.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * progress))
    if train.halve_every is not None:
        rate *= 0.5 ** (step // train.halve_every)
    if train.decay is not None:
        rate *= train.decay**epoch
    return rate * min(1.0, (step + 1) / max(1, train.warmup_steps))


def parameter_group(parameters: Iterable[torch.nn.Parameter], share: float = 1.0) -> dict[str, Any]:
    """Parameters that learn at `share` times the learning rate."""
    return {"params": list(parameters), "share": share}


def make_optimizer(groups: list[dict[str, Any]], train: Training) -> torch.optim.Optimizer:
    """The optimiser of groups made by `parameter_group`."""
    arguments: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    match train.optimizer:
        case "adam":
            return torch.optim.Adam(groups, **arguments)
        case "adamw":
            return torch.optim.AdamW(groups, **arguments)
        case "sgd":
            return torch.optim.SGD(groups, momentum=train.momentum, **arguments)
        case "adabound":
            return _adabound(groups, arguments, train.final_rate)


def _adabound(
    groups: list[dict[str, Any]], arguments: dict[str, Any], final_rate: float
) -> torch.optim.Optimizer:
    """Imported only where it is asked for: that takes a second."""
    from pytorch_optimizer import AdaBound

    # the weights' decay is part of the gradient, as in the paper's own code and in torch's Adam
    optimizer: torch.optim.Optimizer = AdaBound(
        groups, final_lr=final_rate, weight_decouple=False, **arguments
    )
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
