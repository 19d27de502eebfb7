"""Steps that went wrong: which examples they were of, and whether the training may go on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from config.embedder_schema import EmbedderConfig
from config.options import Training
from config.schema import Config
from datasets.dataset import Batch
from utils import distributed
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

REMEMBERED, LEAST = 100, 10
"""Losses that the median is taken of; below as few as the second it says nothing."""
EXPLODED = "the median before was"
SHOWN = 32


class FailedStep(UserError):
    """A step that cannot be taken; the weights are those before it."""


class Failures:
    """Finds losses and gradients that are no numbers, and losses that explode; counts the steps skipped.

    The counts and the losses that are remembered belong to the state of a training.
    """

    def __init__(self, train: Training, folder: Path) -> None:
        self.train, self.folder = train, folder
        self.skipped, self.in_a_row = 0, 0
        self.losses: deque[float] = deque(maxlen=REMEMBERED)
        self.start: float | None = None

    def forget(self) -> None:
        """Takes no loss so far as usual: the criteria are others now."""
        self.losses.clear()
        self.start = None

    def cause(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step's loss (the mean over all ranks) and gradient norm; None if nothing."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient is {norm} (loss {loss:g})"
        limit = self.train.explosion
        if limit is None or len(self.losses) < LEAST:
            return None
        usual = median(self.losses)
        # losses may be negative; and where they are nearly 0, a hundredth of the first ones counts instead
        if loss - usual > limit * max(median(map(abs, self.losses)), (self.start or 0.0) / 100):
            return f"the loss is {loss:g}, {EXPLODED} {usual:g}"
        return None

    def passed(self, loss: float) -> None:
        self.in_a_row = 0
        if self.train.explosion is not None:
            self.losses.append(loss)
            if self.start is None and len(self.losses) >= LEAST:
                self.start = median(map(abs, self.losses))

    def met(self, step: int, cause: str, batches: Sequence[Batch], losses: Sequence[float]) -> None:
        """Counts a step that is to be skipped. Raises FailedStep, and saves the batches, when there were too
        many. Named are, of all ranks' `batches`, the examples that hold what is no number, else those of
        batches whose loss is none, else all."""
        damaged = [_damaged(batch) for batch in batches]
        bad = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        if any(distributed.everybody_s(any(damaged))):
            bad = [n for n, examples in enumerate(damaged) if examples]
        elif not any(distributed.everybody_s(bool(bad))):
            bad = list(range(len(losses)))
        own = [x for n in bad for x in damaged[n] or batches[n]["example"].flatten().tolist()]
        numbers = [number for found in distributed.everybody_s(own) for number in found]
        shown = ", ".join(map(str, numbers[:SHOWN])) + (" ..." if len(numbers) > SHOWN else "")
        if self.in_a_row < self.train.skip_failures:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            print(f"WARNING: step {step} skipped: {cause}; examples {shown}")
            return
        rank = f"-rank{distributed.rank()}" if distributed.rank() else ""
        path = self.folder / f"failed-batch-{step}{rank}.pt"
        if bad:
            save_checkpoint(path, {"batches": [batches[n] for n in bad]})
        path = next(filter(None, distributed.everybody_s(path if bad else None)), path)
        before = f", after {self.in_a_row} skipped in a row" if self.in_a_row else ""
        more = f", raise train.explosion ({self.train.explosion:g})" if EXPLODED in cause else ""
        raise FailedStep(
            f"step {step}: {cause}{before}; examples {shown}, saved as {path}; "
            f"lower train.learning_rate ({self.train.learning_rate}), set train.clip_norm{more}, or let "
            "train.skip_failures leave out such steps, and go on with --allow_changes"
        )

    def state(self) -> dict[str, Any]:
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row}
        return {**counts, "losses": list(self.losses), "start": self.start}

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.losses, self.start = deque(state["losses"], REMEMBERED), state.get("start")


def _damaged(batch: Batch) -> list[int]:
    """The examples of a batch that hold NaN or infinity."""
    examples = batch["example"].flatten()
    bad = torch.zeros(len(examples), dtype=torch.bool)
    for value in batch.values():
        if value.is_floating_point() and value.ndim and len(value) == len(bad):
            bad |= ~value.isfinite().reshape(len(bad), -1).all(1).cpu()
    return examples[bad].tolist()


class KeptBuffers:
    """A module's buffers as they were, such as batch norm's statistics, which a failed step must not have
    changed."""

    def __init__(self, module: nn.Module) -> None:
        self._values = [(b, b.clone()) for b in module.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, value in self._values:
            buffer.copy_(value)


def too_large(error: BaseException, config: Config | EmbedderConfig) -> UserError:
    """What to say when the memory is full: what to lower."""
    train = config.train
    if isinstance(config, EmbedderConfig):
        size = f"train.speakers ({config.train.speakers}), train.utterances ({config.train.utterances})"
        advice = f"lower {size} or train.frames ({config.train.frames})"
    else:
        batch = config.train.batch_size
        advice = (
            f"lower train.batch_size ({batch}), with train.accumulate ({train.accumulate}) raised by as much "
            f"for the same step, or data.seconds ({config.data.seconds:g})"
        )
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "out of memory"
    return UserError(f"the memory is full: {advice} ({reason})")
