"""A step of a training, and all that it changes: weights, optimiser, averages, counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.dataset import Batch
from model.averaging import Averages
from model.failure import Failures, KeptBuffers
from model.optimization import learning_rate, make_optimizer, set_learning_rate
from model.patience import Patience
from model.task import Task, to_device
from utils import distributed
from utils.device import gradient_scaler

WISHED = ("weight_decay", "momentum", "final_lr", "share")
"""What a configuration says of a group of weights, beside the learning rate."""


class Learner:
    """Learns a task on a device; `folder`: for batches that it fails at."""

    def __init__(self, task: Task, device: torch.device, folder: Path) -> None:
        self.task, self.train, self.device = task, task.config.train, device
        self.scaler = gradient_scaler(device, self.train.precision)
        self.objective = distributed.wrap(task.objective, device)
        self.optimizer = make_optimizer(task.groups, self.train)
        self.parameters = [p for group in task.groups for p in group["params"]]
        self.averages = Averages(task.objective, self.parameters, self.train.ema)
        self.patience, self.failures = Patience(self.train), Failures(self.train, folder)

    def take_step(self, step: int, progress: float, batches: Sequence[Batch]) -> dict[str, float]:
        """One update by the mean gradient of the batches; returns the criteria's means, the gradient's norm
        and the learning rate. Raises UserError when the step fails and must not be skipped."""
        # what is drawn in a step is a function of the step, so that a resumed run draws the same
        key = np.random.SeedSequence([self.train.seed, step, distributed.rank()])
        torch.manual_seed(int(key.generate_state(1)[0]))
        self.objective.train()
        if self.task.before_step(step):
            self.failures.forget()
        epoch = step // self.task.steps_per_epoch
        rate = learning_rate(self.train, step, progress, epoch, self.patience.scale)
        set_learning_rate(self.optimizer, rate)
        buffers = KeptBuffers(self.task.objective)
        found = self._backward(batches)
        self.scaler.unscale_(self.optimizer)
        limit = self.train.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit).item()
        means = {name: torch.stack([values[name] for values in found]).mean() for name in found[0]}
        loss = distributed.gather(means["loss"][None]).mean().item()
        # the first scales are too high for fp16 on purpose; the scaler then lowers its own and takes no step
        overflow = math.isfinite(loss) and not math.isfinite(norm) and self.scaler.get_scale() > 1
        if cause := None if overflow else self.failures.cause(loss, norm):
            own = [values.get("own_loss", values["loss"]).item() for values in found]
            buffers.restore()
            self.failures.met(step, cause, batches, own)
        else:
            self.scaler.step(self.optimizer)
            if not overflow:
                self.task.after_step()
                self.averages.update()
                self.failures.passed(loss)
        self.scaler.update()
        means.pop("own_loss", None)
        return {name: mean.item() for name, mean in means.items()} | self._figures(norm, rate)

    def _figures(self, norm: float, rate: float) -> dict[str, float]:
        figures = {"gradient_norm": norm, "learning_rate": rate}
        if self.scaler.is_enabled():
            figures["loss_scale"] = self.scaler.get_scale()
        if self.train.skip_failures:
            figures["skipped"] = self.failures.skipped
        return figures

    def _backward(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Leaves the gradient of the mean loss in the parameters; returns every batch's scalars."""
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for number, batch in enumerate(batches, 1):
            # ranks tell each other their gradients once a step
            alone = nullcontext if number == len(batches) else getattr(self.objective, "no_sync", nullcontext)
            with alone():
                values = self.objective(to_device(batch, self.device))
                self.scaler.scale(values["loss"] / len(batches)).backward()
            found.append({name: value.detach() for name, value in values.items()})
        return found

    # -------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, beside the weights that a checkpoint is to be used with."""
        averaged = {} if self.averages.decay is None else {"weights": self.averages.weights()}
        return averaged | {
            "state": self.task.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "patience": self.patience.state(),
            "failures": self.failures.state(),
        }

    def load(self, content: dict[str, Any], same_optimizer: bool = True) -> None:
        """Goes on from a checkpoint with that state as `training`; the optimiser only if it is the
        `same_optimizer`. Raises RuntimeError, ValueError or KeyError where it does not fit."""
        training = content["training"]
        self.task.load(content)
        self.task.load_state(training["state"])
        self.averages.restart()
        if "weights" in training:
            self.averages.resume(training["weights"])
        if same_optimizer:
            wished = [{k: group[k] for k in WISHED if k in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(training["optimizer"])
            for group, own in zip(self.optimizer.param_groups, wished, strict=True):
                group.update(own)  # as the configuration has them now, whatever the checkpoint had
        if training.get("scaler"):
            self.scaler.load_state_dict(training["scaler"])
        for name, part in (("patience", self.patience), ("failures", self.failures)):
            if name in training:  # older checkpoints have neither
                part.load_state(training[name])
