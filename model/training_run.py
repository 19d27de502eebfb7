"""One training, whatever learns: its loop, where it stands, and what it keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from config.load import differences, with_defaults
from datasets.dataset import Batch
from model.failure import SHOWN, FailedStep
from model.learner import Learner
from model.patience import CRITERIA, can_choose, describe_figure, figure_score
from model.run_folder import RunFolder
from model.task import Outcome, Task
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.device import device_name
from utils.errors import UserError
from utils.files import write_csv
from utils.logger import RunLogger, Speed
from utils.progress import progress_bar
from utils.signals import Interrupted, StopSignals

OTHER_LOSSES = ("loss.", "train.speakers:", "train.utterances:")
OTHER_SCORES = ("train.best:", "train.validation_examples:", "train.ema:", "data.", "it learnt from")
"""Changes of a configuration after which scores cannot be compared."""


class Run:
    """One training: its task, and where it stands."""

    def __init__(self, task: Task, base: Path, name: str, device: torch.device) -> None:
        self.task, self.config, self.device = task, task.config, device
        self.folder = RunFolder(base / "chkpt" / name, self.config.train.keep)
        self.logs = base / "logs" / name
        self.first = distributed.rank() == 0
        self.learner = Learner(task, device, self.folder.path)
        self.objective, self.patience = self.learner.objective, self.learner.patience
        best = self.config.train.best
        if best is not None and not can_choose(best):
            raise UserError(
                f"train.best {best}: says nothing of which checkpoint is better; name a criterion, loss, "
                "a score such as si_sdr_improvement_median, accepted_share, absent_level_mean, eer or min_dcf"
            )
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.validated = 0  # the step of the last validation
        self.all_speakers_known = True  # unless it started from weights that do not say whom they have heard
        self.signals, self.stop_signal = StopSignals(), 0
        self.mark = 0.0
        self.speed = Speed(distributed.world_size())

    # -------------------------------------------------------- state

    def load(self, initial: str | None, allow_changes: bool) -> None:
        """Resumes from `last.pt` if the run has one, else starts from the weights of `initial` if given."""
        found = self.folder.read_last()
        if found is None:
            if initial:
                content = load_checkpoint(initial)
                self.task.start_from(content, initial)
                self._has_heard(content)
                if not self.all_speakers_known:
                    print(f"NOTE: {initial}: does not say whom it has heard; neither will this run")
                self.learner.averages.restart()
            return
        last, content = found
        if initial:
            print(f"{last}: goes on with this run; --checkpoint_path {initial} is for new ones")
        if "config" not in content or "examples" not in content.get("training", ()):
            raise UserError(f"{last}: no checkpoint that a training can go on from; use another -m NAME")
        there = with_defaults(content["config"], str(last))
        changes = differences(there, self.config.model_dump())
        if content["training"]["examples"] != self.task.examples:
            changes.append("it learnt from other examples")
        if content["training"].get("judged_by", self.task.judged_by) != self.task.judged_by:
            changes.append("data.validation: other examples")
        ranks = content["training"].get("ranks", distributed.world_size())
        if ranks != distributed.world_size():
            changes.append(
                f"processes: {ranks} -> {distributed.world_size()}, which makes a step and an epoch another"
            )
        if changes and not allow_changes:
            raise UserError(
                f"{last}: this run was started with another configuration ({'; '.join(changes)}); "
                "use another -m NAME, or --allow_changes to go on with the new one"
            )
        if changes:
            print(f"NOTE: {last}: goes on with another configuration: {'; '.join(changes)}")
        try:
            optimizer = there["train"]["optimizer"]
            if optimizer != self.config.train.optimizer:
                print(f"NOTE: {optimizer} -> {self.config.train.optimizer}: the optimiser begins anew")
            self.learner.load(content, optimizer == self.config.train.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{last}: its weights do not fit another network ({'; '.join(changes) or error})"
            ) from error
        training = content["training"]
        if any(change.startswith(OTHER_LOSSES) for change in changes):
            self.learner.failures.forget()
        self._has_heard(content)
        self.step, self.seconds = training["step"], training["seconds"]
        self.validated = training.get("validated", self.step)
        # a best loss is one of its own terms and weights
        others = (*OTHER_SCORES, "loss.") if self.config.train.best in ("loss", *CRITERIA) else OTHER_SCORES
        if any(change.startswith(others) for change in changes):  # scores so far say nothing
            if self.over:  # and there will be no further ones
                self.validated = min(self.validated, self.step - 1)
            print("NOTE: validations are other ones now: the best checkpoint and patience begin anew")
            self.patience.forget()
        else:
            self.best = training["best"]

    def _has_heard(self, content: Mapping[str, Any]) -> None:
        self.task.speakers |= set(content.get("training_speakers", ()))
        self.all_speakers_known &= "training_speakers" in content

    def save(self, name: str, validation: dict[str, float] | None = None) -> None:
        """Writes a checkpoint: `last.pt` with what a training needs to go on, others to be used. Its weights
        are the averages if there are any."""
        with self.learner.averages.in_use():
            content = self.task.content() | {
                "step": self.step,
                "validation": validation or {},
            }
            if self.all_speakers_known:
                content["training_speakers"] = sorted(self.task.speakers)
            if name != "last.pt":
                self.folder.save(name, content)
                return
            content["training"] = self.learner.state() | {
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "validated": self.validated,
                "ranks": distributed.world_size(),
                "examples": self.task.examples,
                "judged_by": self.task.judged_by,
            }
            regular = self.step % self.config.train.save_every == 0 or self.over
            self.folder.save_last(content, self.step, regular)

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps, epochs or minutes, whichever is furthest; 1 at the
        end."""
        by_time = self.seconds / (60 * self.config.train.minutes) if self.config.train.minutes else 0.0
        return min(1.0, max(self.step / self.last_step, by_time))

    @property
    def over(self) -> bool:
        return self.progress >= 1 or self.patience.given_up

    @property
    def last_step(self) -> int:
        """Steps until the end, unless the minutes are over before."""
        train = self.config.train
        return min(train.steps, (train.epochs or train.steps) * self.task.steps_per_epoch)

    def describe(self) -> str:
        """The best score, in words."""
        name = self.config.train.best
        return self.task.describe(self.best) if name is None else describe_figure(name, self.best)

    # -------------------------------------------------------- the loop

    def train(self) -> int:
        """Steps until the end, validating and saving on the way; returns the exit code."""
        train, folder = self.config.train, self.folder.path
        if self.over and self.validated == self.step:
            why = f", {train.patience} validations without a better score" if self.patience.given_up else ""
            print(f"{folder}: finished at step {self.step}{why}; {self.describe()}")
            return 0
        log = RunLogger(self.logs, self.step, self.validated) if self.first else None
        if log:
            log.describe(self.config.model_dump(), device_name(self.device))
        if log and self.task.left_out:
            write_csv(self.logs / "unusable.csv", ("path", "cause"), self.task.left_out)
            print(f"{self.logs / 'unusable.csv'}: {len(self.task.left_out)} files and people left out")
        with distributed.in_turn():  # what the first computes and keeps, the others find
            batches = self.task.batches(self.step, pin=self.device.type == "cuda")
        batches = self.speed.timed(batches)
        learnt = sum(p.numel() for p in self.learner.parameters)
        print(f"{folder}: {learnt / 1e6:.2f} M parameters, {self.device}, from step {self.step}")
        self.mark = time.monotonic()
        with (
            self.signals.caught(),
            progress_bar(
                desc="train", total=self.last_step, initial=self.step, unit="step", disable=not self.first
            ) as bar,
        ):
            self._loop(batches, log, bar)
        if log:
            log.close()
        if self.stop_signal:
            print(f"stopped at step {self.step}, saved; run the same command again to go on")
            return 128 + self.stop_signal
        if self.patience.given_up:
            print(f"{folder}: stopped after {train.patience} validations without a better score, for good")
        print(f"{folder}: {self.step} steps, {self.describe()}")
        return 0

    def _loop(self, batches: Iterator[Batch], log: RunLogger | None, bar: tqdm[Any]) -> None:
        train = self.config.train
        if self._is_due(self.progress >= 1):  # what a signal left out
            self.task.before_step(max(0, self.step - 1))  # with the criteria that were in then
            self._validate(log, bar)
            self._save_last()
        finished = self.over
        while not (finished or self.stop_signal):
            values = self.take_step(self._next(batches))
            self._agree()
            finished = self.progress >= 1
            bar.update()
            if log and self.step % train.log_every == 0:
                self._log_step(log, bar, values)
            if self._is_due(finished) and not self.stop_signal:
                if not (distributed.is_alone() and self.folder.last.exists()):
                    self._save_last()  # ranks cannot leave a validation, and may be killed in it
                self._validate(log, bar)
                self._agree()
            finished = finished or self.patience.given_up
            if self.step % train.save_every == 0 or finished or self.stop_signal:
                self._save_last()

    def take_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One update from `train.accumulate` batches; returns what is to be logged of it."""
        try:
            values = self.learner.take_step(self.step, self.progress, batches)
        except FailedStep:
            self._save_last()  # the weights are those of the step before
            raise
        self.step += 1
        return values

    def _next(self, batches: Iterator[Batch]) -> list[Batch]:
        try:
            return [next(batches) for _ in range(self.config.train.accumulate)]
        except UserError:  # of a damaged shard, say
            if distributed.is_alone():
                self.save("last.pt")
            raise

    def validate(self, log: RunLogger | None, bar: tqdm[Any]) -> None:
        """Scores the validation split, which the ranks share, and keeps the best weights. Raises Interrupted
        by a signal, unless there are other ranks, which would wait; what it found is written without
        one."""
        with self.speed.paused():
            self.objective.eval()
            with self.signals.interrupting(distributed.is_alone()):
                outcome = self.judged(self.task.validate())
            if log:
                log.scalars(self.step, outcome.summary, "validation")
                for name, image in outcome.pictures.items():
                    log.picture(self.step, image, name)
                for name, wave in outcome.audio.items():
                    log.audio(self.step, wave, outcome.audio_rate, name)
                bar.write(f"step {self.step}: {outcome.sentence}")
            if outcome.score > self.best:
                self.best = outcome.score
                if log:
                    self.save("best.pt", outcome.summary)
            distributed.wait()

    # -------------------------------------------------------- parts

    def judged(self, outcome: Outcome) -> Outcome:
        """The outcome with the score that `train.best` names. Raises UserError where there is no such figure,
        and where the scores are no numbers."""
        name, cause = self.config.train.best, None
        if name is not None and name not in outcome.summary:
            known = ", ".join(sorted(filter(can_choose, outcome.summary)))
            cause = (
                f"train.best {name}: the validation knows {known}; name one of them, and go on with "
                "--allow_changes"
            )
        score = figure_score(name, outcome.summary[name]) if name in outcome.summary else outcome.score
        if not (math.isfinite(score) and math.isfinite(outcome.score)):
            bad = ", ".join(map(str, outcome.bad[:SHOWN])) + (" ..." if len(outcome.bad) > SHOWN else "")
            examples = f"; validation examples {bad}, which may hold what is no number" if bad else ""
            cause = (
                f"step {self.step}: {outcome.sentence}: no number to choose a checkpoint by{examples}; "
                "else the weights have gone astray: start again from an earlier checkpoint, with a lower "
                "train.learning_rate"
            )
        if cause:
            if self.first:
                self.save("last.pt")
            raise UserError(cause)
        return replace(outcome, score=score)

    def _is_due(self, finished: bool) -> bool:
        return (finished or self.step % self.config.train.validate_every == 0) and self.validated < self.step

    def _validate(self, log: RunLogger | None, bar: tqdm[Any]) -> None:
        """Validates, unless a signal comes: then it is done when the run goes on."""
        before = self.best
        with self.learner.averages.in_use():
            try:
                self.validate(log, bar)
            except Interrupted:
                self.best, self.stop_signal = before, self.signals.number
                return
        self.patience.see(distributed.from_first(float(self.best > before), self.device) > 0)
        self.validated = self.step

    def _save_last(self) -> None:
        self._agree()
        if self.first:
            self.save("last.pt")

    def _agree(self) -> None:
        """Adds the time since the last call; all ranks have one clock, and stop when one has been stopped."""
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        self.seconds = distributed.from_first(self.seconds, self.device)
        self.stop_signal = distributed.any_rank(self.signals.number, self.device)

    def _log_step(self, log: RunLogger, bar: tqdm[Any], values: dict[str, float]) -> None:
        best = f"{self.describe()}, " if self.best > -math.inf else ""
        values = values | self.speed.read()
        speed = f"{values['examples_per_second']:.3g} examples/s"
        bar.set_postfix_str(
            f"loss {values['loss']:.4f}, {best}{speed}, {self.progress:.0%} done", refresh=False
        )
        log.scalars(self.step, values, "train")
