"""Trains a separator on a store, or an embedder on a corpus; the same command again resumes.

    python trainer.py -c config/voicefilter.yaml -m NAME
    python trainer.py -c config/embedder/ge2e.yaml -d CORPUS -m NAME

writes chkpt/NAME/last.pt (to resume), chkpt/NAME/best.pt (by validation SDR or EER) and logs/NAME.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config.embedder_schema import EmbedderConfig
from config.load import (
    argument_parser,
    differences,
    load_any_config,
    parse_arguments,
    run_script,
    with_defaults,
)
from config.schema import Config
from datasets.dataset import Batch
from model.embedder_task import EmbedderTask
from model.optimization import learning_rate, make_optimizer, set_learning_rate
from model.separator_task import SeparatorTask
from model.task import Task, to_device
from utils import distributed
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.device import choose_device, device_name
from utils.errors import UserError
from utils.files import write_csv
from utils.logger import RunLogger, Speed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "")
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="NAME", help="name of the run")
    add("-b", "--base_dir", default=".", help="folder that holds chkpt/ and logs/")
    add("-d", "--corpus", action="append", metavar="DIR", help="corpus that an embedder learns from")
    add("-e", "--embedder", help="`resemblyzer` or an embedder file (default: from the YAML)")
    add("--checkpoint_path", metavar="CKPT", help="start a new run from these weights")
    add("--allow_changes", action="store_true", help="resume with a changed configuration")
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    name = options.model
    if not name or name in (".", "..") or Path(name).name != name:
        raise UserError(f"-m {name!r}: expected a name without folders")
    config = _with_options(load_any_config(options.config, options.overrides), options)
    with distributed.process_group(choose_device(options.device)) as device:
        torch.manual_seed(config.train.seed)  # the first weights
        with distributed.in_turn():
            task = build_task(config, device)
        run = Run(task, Path(options.base_dir), name, device)
        run.load(options.checkpoint_path, options.allow_changes)
        return run.train()


def _with_options(config: Config | EmbedderConfig, options: argparse.Namespace) -> Config | EmbedderConfig:
    """The configuration with what `-d` and `-e` name. Raises UserError where they have no meaning."""
    if isinstance(config, EmbedderConfig):
        if options.embedder:
            raise UserError(f"-e {options.embedder}: this configuration trains an embedder of its own")
        if options.corpus:
            data = config.data.model_copy(update={"corpus": options.corpus})
            config = config.model_copy(update={"data": data})
        return config
    if options.corpus:
        raise UserError(
            f"-d {options.corpus[0]}: a separator learns from a store, {config.store.folder} (store.folder); "
            "-d goes with generator.py, or with an embedder's configuration"
        )
    return config.model_copy(update={"embedder": options.embedder}) if options.embedder else config


def build_task(config: Config | EmbedderConfig, device: torch.device) -> Task:
    if isinstance(config, EmbedderConfig):
        return EmbedderTask(config, device)
    return SeparatorTask(config, device)


class Run:
    """One training: its task, and where it stands."""

    def __init__(self, task: Task, base: Path, name: str, device: torch.device) -> None:
        self.task, self.config, self.device = task, task.config, device
        self.folder, self.logs = base / "chkpt" / name, base / "logs" / name
        self.first = distributed.rank() == 0
        self.objective = distributed.wrap(task.objective, device)
        self.optimizer = make_optimizer(task.groups, self.config.train)
        self.parameters = [p for group in task.groups for p in group["params"]]
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.signal = self.stop_signal = 0
        self.mark = 0.0

    # -------------------------------------------------------- state

    def load(self, initial: str | None, allow_changes: bool) -> None:
        """Resumes from `last.pt` if the run has one, else starts from the weights of `initial` if given."""
        last = self.folder / "last.pt"
        if not last.exists():
            if initial:
                content = load_checkpoint(initial)
                self.task.start_from(content, initial)
                self.task.speakers |= set(content.get("training_speakers", ()))
            return
        if initial:
            print(f"{last}: goes on with this run; --checkpoint_path {initial} is for new ones")
        content = load_checkpoint(last)
        if "config" not in content or "examples" not in content.get("training", ()):
            raise UserError(
                f"{last}: no checkpoint that a training can go on from; remove it, or use another -m"
            )
        there = with_defaults(content["config"], str(last))
        changes = differences(there, self.config.model_dump())
        if content["training"]["examples"] != self.task.examples:
            changes.append("it learnt from other examples")
        if changes and not allow_changes:
            raise UserError(
                f"{last}: this run was started with another configuration ({'; '.join(changes)}); "
                "use another -m NAME, or --allow_changes to go on with the new one"
            )
        training = content["training"]
        try:
            self.task.load(content)
            self.task.load_state(training["state"])
            self.optimizer.load_state_dict(training["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{last}: its weights do not fit another network ({'; '.join(changes) or error})"
            ) from error
        self.task.speakers |= set(content["training_speakers"])
        self.step, self.seconds, self.best = training["step"], training["seconds"], training["best"]

    def save(self, name: str, validation: dict[str, float] | None = None) -> None:
        content = self.task.content() | {
            "step": self.step,
            "validation": validation or {},
            "training_speakers": sorted(self.task.speakers),
        }
        if name == "last.pt":
            content["training"] = {
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "state": self.task.state(),
                "optimizer": self.optimizer.state_dict(),
                "examples": self.task.examples,
            }
        save_checkpoint(self.folder / name, content)

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps, epochs or minutes, whichever is furthest; 1 at the
        end."""
        by_time = self.seconds / (60 * self.config.train.minutes) if self.config.train.minutes else 0.0
        return min(1.0, max(self.step / self.last_step, by_time))

    @property
    def last_step(self) -> int:
        """Steps until the end, unless the minutes are over before."""
        train = self.config.train
        return min(train.steps, (train.epochs or train.steps) * self.task.steps_per_epoch)

    # -------------------------------------------------------- the loop

    def train(self) -> int:
        """Steps until the end, validating and saving on the way; returns the exit code."""
        if self.progress >= 1:
            print(f"{self.folder}: finished at step {self.step}; {self.task.describe(self.best)}")
            return 0
        train = self.config.train
        log = RunLogger(self.logs, self.step) if self.first else None
        if log:
            log.describe(self.config.model_dump(), device_name(self.device))
        self.speed = Speed(distributed.world_size())
        if log and self.task.left_out:
            write_csv(self.logs / "unusable.csv", ("path", "cause"), self.task.left_out)
            print(f"{self.logs / 'unusable.csv'}: {len(self.task.left_out)} files and people left out")
        with distributed.in_turn():  # what the first computes and keeps, the others find
            batches = self.task.batches(self.step, pin=self.device.type == "cuda")
        batches = self.speed.timed(batches)
        self._catch_signals()
        learnt = sum(p.numel() for p in self.parameters)
        print(f"{self.folder}: {learnt / 1e6:.2f} M parameters, {self.device}, from step {self.step}")
        self.mark, finished = time.monotonic(), False
        with tqdm(
            desc="train", total=self.last_step, initial=self.step, unit="step", disable=not self.first
        ) as bar:
            while not (finished or self.stop_signal):
                values = self.take_step(next(batches))
                self._agree()
                finished = self.progress >= 1
                bar.update()
                if log and self.step % train.log_every == 0:
                    self._log_step(log, bar, values)
                if self.step % train.validate_every == 0 or finished:
                    self.validate(log, bar)
                if self.step % train.save_every == 0 or finished or self.stop_signal:
                    self._agree()
                    if self.first:
                        self.save("last.pt")
        if log:
            log.close()
        if self.stop_signal:
            print(f"stopped at step {self.step}, saved; run the same command again to go on")
            return 128 + self.stop_signal
        print(f"{self.folder}: {self.step} steps, {self.task.describe(self.best)}")
        return 0

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One update from one batch; returns the criteria and the gradient's norm."""
        # what is drawn in a step is a function of the step, so that a resumed run draws the same
        key = np.random.SeedSequence([self.config.train.seed, self.step, distributed.rank()])
        torch.manual_seed(int(key.generate_state(1)[0]))
        self.objective.train()
        self.task.before_step(self.step)
        epoch = self.step // self.task.steps_per_epoch
        rate = learning_rate(self.config.train, self.step, self.progress, epoch)
        set_learning_rate(self.optimizer, rate)
        values = self.objective(to_device(batch, self.device))
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        limit = self.config.train.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        if not torch.isfinite(norm):
            raise UserError(
                f"step {self.step}: the gradient is {norm.item()} (loss {values['loss'].item()}); "
                f"lower train.learning_rate ({self.config.train.learning_rate}) or set train.clip_norm"
            )
        self.optimizer.step()
        self.task.after_step()
        self.step += 1
        scalars = {name: value.item() for name, value in values.items()}
        return scalars | {"gradient_norm": norm.item(), "learning_rate": rate}

    def validate(self, log: RunLogger | None, bar: tqdm[Any]) -> None:
        """Scores the validation split, which the ranks share, and keeps the best weights."""
        with self.speed.paused():
            self.objective.eval()
            outcome = self.task.validate()
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

    def _agree(self) -> None:
        """Adds the time since the last call; all ranks have one clock, and stop when one has been stopped."""
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        self.seconds = distributed.from_first(self.seconds, self.device)
        self.stop_signal = distributed.any_rank(self.signal, self.device)

    def _log_step(self, log: RunLogger, bar: tqdm[Any], values: dict[str, float]) -> None:
        best = f"{self.task.describe(self.best)}, " if self.best > -math.inf else ""
        values = values | self.speed.read()
        speed = f"{values['examples_per_second']:.3g} examples/s"
        bar.set_postfix_str(f"loss {values['loss']:.4f}, {best}{speed}, {self.progress:.0%} done")
        log.scalars(self.step, values, "train")

    def _catch_signals(self) -> None:
        def stop(number: int, frame: object) -> None:
            self.signal = number

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)


if __name__ == "__main__":
    run_script(main)
