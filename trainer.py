"""Trains a mask network on a precomputed store; the same command again resumes.

    python trainer.py -c config/voicefilter.yaml -m NAME

writes chkpt/NAME/last.pt (to resume), chkpt/NAME/best.pt (by validation SDR) and logs/NAME.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config.load import argument_parser, differences, load_config, parse_arguments, run_script
from config.schema import Config
from config.schema import Store as StoreOptions
from datasets.dataset import Batch, ShuffledBatches, StoredExamples, training_batches
from datasets.live import FreshBatches, LiveExamples
from datasets.plan import SOUNDS, data_of, drawer_of, require_unchanged
from datasets.recipe import Clip
from datasets.store import WAVEFORMS, Store, StoredSplit
from model.features import reference_embeddings, spectra
from model.foreign import load_embedder
from model.losses import criteria
from model.optimization import learning_rate, make_optimizer, parameter_group, set_learning_rate
from model.scoring import Scores, score_estimates, score_mixtures, summarize
from model.separator import FORMAT, Separator
from utils import distributed
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.device import autocast, choose_device
from utils.errors import UserError
from utils.logger import RunLogger


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("-m", "--model", required=True, metavar="NAME", help="name of the run")
    parser.add_argument("-b", "--base_dir", default=".", help="folder that holds chkpt/ and logs/")
    parser.add_argument("-e", "--embedder", help="`resemblyzer` or an embedder file (default: from the YAML)")
    parser.add_argument("--checkpoint_path", metavar="CKPT", help="start a new run from these weights")
    parser.add_argument("--allow_changes", action="store_true", help="resume with a changed configuration")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    if distributed.world_size() > 1:
        raise UserError("trainer.py runs on one process; start it without torchrun")
    config = load_config(options.config, options.overrides)
    if options.embedder:
        config = config.model_copy(update={"embedder": options.embedder})
    run = Run(config, Path(options.base_dir), options.model, choose_device(options.device))
    run.load(options.checkpoint_path, options.allow_changes)
    return run.train()


class Run:
    """One training: what is learnt, what it learns from, and where it stands."""

    def __init__(self, config: Config, base: Path, name: str, device: torch.device) -> None:
        if not name or name in (".", "..") or Path(name).name != name:
            raise UserError(f"-m {name!r}: expected a name without folders")
        self.device = device
        self.folder, self.logs = base / "chkpt" / name, base / "logs" / name
        self.store = Store(config.store.folder)
        _check_front_end(config, self.store)
        self.config = config = _with_settings_of(self.store, config)
        self.speakers = set(self.store.report["splits"]["train"]["speakers"])
        torch.manual_seed(config.train.seed)
        self.separator = Separator(config, load_embedder(config.embedder)).to(device)
        self.network = self.separator.network
        self.optimizer = make_optimizer([parameter_group(self.network.parameters())], config.train)
        self.weights = config.loss.model_dump(exclude={"relative"})
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.examples = (
            f"live {self.store.settings['corpus']}"
            if self.store.live
            else self.store.split("train").fingerprint
        )
        self.mixtures: Scores | None = None
        self.stop_signal = 0

    # -------------------------------------------------------- state

    def load(self, initial: str | None, allow_changes: bool) -> None:
        """Resumes from `last.pt` if the run has one, else starts from the weights of `initial` if given."""
        last = self.folder / "last.pt"
        if last.exists() and initial:
            print(f"{last}: goes on with this run; --checkpoint_path {initial} is for new ones")
        if not last.exists():
            if initial:
                content = load_checkpoint(initial)
                other = Separator.from_content(content, initial)
                self.speakers |= set(content.get("training_speakers", ()))
                try:
                    self.network.load_state_dict(other.network.state_dict())
                except RuntimeError as error:
                    raise UserError(
                        f"{initial}: its network ({other.config.network}) is not ({self.config.network})"
                    ) from error
            return
        content = load_checkpoint(last)
        if content.get("format") != FORMAT or "training" not in content:
            raise UserError(
                f"{last}: no checkpoint that a training can go on from; remove it, or use another -m"
            )
        changes = differences(content["config"], self.config.model_dump())
        if content["training"]["store"] != self.examples:
            changes.append(f"the store {self.store.folder} holds other examples")
        if changes and not allow_changes:
            raise UserError(
                f"{last}: this run was started with another configuration ({'; '.join(changes)}); "
                "use another -m NAME, or --allow_changes to go on with the new one"
            )
        try:
            self.network.load_state_dict(content["network"])
        except RuntimeError as error:
            raise UserError(
                f"{last}: its weights do not fit another network ({'; '.join(changes)})"
            ) from error
        training = content["training"]
        self.speakers |= set(content["training_speakers"])
        self.optimizer.load_state_dict(training["optimizer"])
        torch.set_rng_state(training["random"])
        self.step, self.seconds, self.best = training["step"], training["seconds"], training["best"]

    def save(self, name: str, validation: dict[str, float] | None = None) -> None:
        content = self.separator.content() | {
            "step": self.step,
            "validation": validation or {},
            "training_speakers": sorted(self.speakers),
        }
        if name == "last.pt":
            content["training"] = {
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "store": self.examples,
            }
        save_checkpoint(self.folder / name, content)

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by minutes, whichever is further; 1 at the end."""
        train = self.config.train
        by_time = self.seconds / (60 * train.minutes) if train.minutes else 0.0
        return min(1.0, max(self.step / train.steps, by_time))

    # -------------------------------------------------------- the loop

    def train(self) -> int:
        """Steps until the end, validating and saving on the way; returns the exit code."""
        if self.progress >= 1:
            print(f"{self.folder}: finished at step {self.step}; best validation SDR {self.best:.2f} dB")
            return 0
        train = self.config.train
        if not any(recipe.role == "mixture" for recipe in self.store.split("validation").recipes):
            raise UserError(
                f"{self.store.folder}: its validation split holds no mixture that could be scored"
            )
        log = RunLogger(self.logs, self.step)
        batches = self._batches()
        parameters = sum(p.numel() for p in self.network.parameters())
        print(f"{self.folder}: {parameters / 1e6:.2f} M parameters, {self.device}, from step {self.step}")
        self._catch_signals()
        mark = time.monotonic()
        with tqdm(desc="train", total=train.steps, initial=self.step, unit="step") as bar:
            while self.progress < 1 and not self.stop_signal:
                values = self.take_step(next(batches))
                now = time.monotonic()
                self.seconds, mark = self.seconds + now - mark, now
                bar.update()
                if self.step % train.log_every == 0:
                    self._log_step(log, bar, values)
                if self.step % train.validate_every == 0 or self.progress >= 1:
                    self.validate(log, bar)
                if self.step % train.save_every == 0 or self.progress >= 1 or self.stop_signal:
                    now = time.monotonic()
                    self.seconds, mark = self.seconds + now - mark, now
                    self.save("last.pt")
        log.close()
        if self.stop_signal:
            print(f"stopped at step {self.step}, saved; run the same command again to go on")
            return 128 + self.stop_signal
        print(f"{self.folder}: {self.step} steps, best validation SDR {self.best:.2f} dB")
        return 0

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One update of the network from one batch; returns the criteria and the gradient's norm."""
        self.network.train()
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        if "mixture" not in batch:  # waveforms
            with torch.no_grad():
                mixture, target = (batch[name] for name in WAVEFORMS)
                batch |= spectra(self.separator.spectral, mixture, target, self.needs_cosine)
        set_learning_rate(self.optimizer, learning_rate(self.config.train, self.step, self.progress))
        embedding = blur(batch["embedding"], self.config.train.embedding_noise)
        with autocast(self.device, self.config.train.precision):
            mask = self.network(batch["mixture"], embedding)
        values = criteria(
            self.weights,
            mask,
            batch["mixture"],
            batch["target"],
            batch.get("cosine"),
            self.config.loss.relative,
        )
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        limit = self.config.train.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        if not torch.isfinite(norm):
            raise UserError(
                f"step {self.step}: the gradient is {norm.item()} (loss {values['loss'].item()}); "
                f"lower train.learning_rate ({self.config.train.learning_rate}) or set train.clip_norm"
            )
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in values.items()} | {"gradient_norm": norm.item()}

    def validate(self, log: RunLogger, bar: tqdm[Any]) -> None:
        """Scores the whole validation split and keeps the best network by mean SDR."""
        split, embeddings = self.validation
        if self.mixtures is None:
            self.mixtures = score_mixtures(split)
        scores = score_estimates(self.separator, split, embeddings)
        speakers, roles = self.store.asked_speakers(split), [recipe.role for recipe in split.recipes]
        summary = summarize(self.mixtures, scores, speakers, roles)
        log.scalars(self.step, summary, "validation")
        score = summary["sdr_after_mean"]
        bar.write(
            f"step {self.step}: validation SDR {score:.2f} dB ({summary['sdr_improvement_mean']:+.2f}), "
            f"SI-SDR {summary['si_sdr_improvement_mean']:+.2f} dB, "
            f"{100 * summary['accepted_share']:.0f} % of {summary['n']:.0f} improved by more than 1 dB"
        )
        if score > self.best:
            self.best = score
            self.save("best.pt", summary)

    # -------------------------------------------------------- parts

    @property
    def needs_cosine(self) -> bool:
        return bool(self.config.loss.power_law_complex or self.config.loss.si_sdr)

    def _batches(self) -> Iterator[Batch]:
        train, pin = self.config.train, self.device.type == "cuda"
        if self.store.live:
            require_unchanged(self.store)
            drawer = drawer_of(self.store, "train")
            clips = drawer.references()
            rate = self.config.audio.sample_rate
            live = LiveExamples(drawer, self.store.utterances, rate, clips, self._embed(clips))
            return training_batches(live, FreshBatches(train.batch_size, self.step), train.workers, pin)
        split = self.store.split("train")
        if len(split) < train.batch_size:
            raise UserError(f"train.batch_size {train.batch_size}: the store has only {len(split)} examples")
        examples = StoredExamples(split, self._fields(split), *self._embed_references(split))
        sampler = ShuffledBatches(len(split), train.batch_size, train.seed, start=self.step)
        return training_batches(examples, sampler, train.workers, pin)

    def _fields(self, split: StoredSplit) -> list[str]:
        if self.store.settings["store"]["kind"] == "wave":
            return list(WAVEFORMS)
        if self.needs_cosine and "cosine" not in split.fields:
            raise UserError(
                f"{split.folder}: loss.si_sdr and loss.power_law_complex need store.cosine=true or "
                "store.kind=wave"
            )
        return ["mixture", "target", *(["cosine"] if self.needs_cosine else [])]

    @cached_property
    def validation(self) -> tuple[StoredSplit, np.ndarray]:
        """The validation split and the embedding of every example's reference [n, D]."""
        split = self.store.split("validation")
        vectors, owners = self._embed_references(split)
        return split, vectors[owners]

    def _embed_references(self, split: StoredSplit) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the split's different references [m, D], and which of them each example has [n]."""
        numbers: dict[Clip, int] = {}
        owners = [numbers.setdefault(recipe.reference, len(numbers)) for recipe in split.recipes]
        return self._embed(list(numbers)), np.array(owners)

    def _embed(self, clips: Sequence[Clip]) -> np.ndarray:
        embedder = self.separator.embedder
        return reference_embeddings(self.store.folder, self.store.utterances, clips, embedder)

    def _log_step(self, log: RunLogger, bar: tqdm[Any], values: dict[str, float]) -> None:
        bar.set_postfix(loss=f"{values['loss']:.4f}", best=f"{self.best:.2f} dB", done=f"{self.progress:.0%}")
        rate = learning_rate(self.config.train, self.step, self.progress)
        log.scalars(self.step, values | {"learning_rate": rate}, "train")

    def _catch_signals(self) -> None:
        def stop(number: int, frame: object) -> None:
            self.stop_signal = number

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)


def blur(embedding: torch.Tensor, noise: float) -> torch.Tensor:
    """Adds a random vector of about `noise` times each embedding's length [B, D] and restores that length."""
    if noise == 0:
        return embedding
    length = embedding.norm(dim=-1, keepdim=True)
    # drawn on the CPU, whose random state the checkpoint keeps
    direction = torch.randn(embedding.shape).to(embedding) / embedding.shape[-1] ** 0.5
    blurred = embedding + noise * length * direction
    return blurred * (length / blurred.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def _with_settings_of(store: Store, config: Config) -> Config:
    """The data and store sections as the store has them: what was rendered is rendered, whatever the YAML
    says."""
    data = data_of(store)
    kept = StoreOptions(folder=config.store.folder, **store.settings["store"])
    own, there = (
        {"data": d.model_dump(exclude={"corpus", *SOUNDS}), "store": s.model_dump()}
        for d, s in ((config.data, config.store), (data, kept))
    )
    if changes := differences(own, there):
        print(f"NOTE: {store.folder} was made with other data settings, which hold: {'; '.join(changes)}")
    return config.model_copy(update={"data": data, "store": kept})


def _check_front_end(config: Config, store: Store) -> None:
    changes = differences(store.settings["audio"], config.audio.model_dump())
    if changes:
        raise UserError(f"{store.folder}: this store has another front end: {'; '.join(changes)}")


if __name__ == "__main__":
    run_script(main)
