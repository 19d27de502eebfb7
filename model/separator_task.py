"""Training a mask network, alone or together with the embedder, on a store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch

from config.load import check_config, differences
from config.schema import Config
from config.schema import Store as StoreOptions
from datasets.dataset import (
    Batch,
    InParts,
    ShuffledBatches,
    StoredExamples,
    different_references,
    training_batches,
)
from datasets.live import FreshBatches, LiveExamples
from datasets.plan import SOUNDS, data_of, drawer_of, require_unchanged
from datasets.recipe import Clip
from datasets.references import EmbeddedReferences, NoReferences, ReadReferences, References
from datasets.remix import Remix
from datasets.store import WAVEFORMS, Store, StoredSplit
from model.embedder import Embedder
from model.features import reference_embeddings
from model.foreign import embedder_from_content, load_embedder
from model.objective import SeparatorObjective
from model.optimization import parameter_group
from model.pages import choose_rows, make_pages
from model.scoring import Scores, score_mixtures, summarize
from model.separator import Separator
from model.task import Outcome, Task, warn_of_heard
from model.validation import ScoredSplit, validate
from utils import distributed
from utils.errors import UserError


class SeparatorTask(Task):
    """A mask network that learns from the store of its configuration."""

    config: Config
    objective: SeparatorObjective

    def __init__(self, config: Config, device: torch.device) -> None:
        require_trainable(config)
        self.store = Store(config.store.folder)
        _check_front_end(config, self.store)
        self.config = config = _with_settings_of(self.store, config)
        roles = [recipe.role for recipe in self.store.split("validation").recipes]
        if "mixture" not in roles[: config.train.validation_examples]:
            of = f" {config.train.validation_examples} examples" if "mixture" in roles else ""
            raise UserError(
                f"{self.store.folder}: its validation split holds no mixture that could be scored"
                + (f" in the first{of} (train.validation_examples)" if of else "")
            )
        embedder = load_embedder(config.embedder) if config.network.embedding == "reference" else None
        joint = config.train.embedder == "joint"
        if embedder is not None and not embedder.differentiable and (joint or config.loss.needs_embedder):
            asks = "train.embedder joint" if joint else "loss.srl and loss.triplet_srl"
            raise UserError(f"{config.embedder}: an ONNX graph gives no gradients, which {asks} needs")
        self.separator = Separator(config, embedder).to(device)
        self.groups = [parameter_group(self.separator.network.parameters())]
        if joint and embedder is not None:
            embedder.requires_grad_(True)
            self.groups.append(parameter_group(embedder.parameters(), config.train.embedder_rate))
        self.objective = SeparatorObjective(self.separator, joint)
        heard = embedder.training_speakers if embedder is not None else ()
        self.speakers = {*self.store.people("train"), *heard}
        if self.store.live:
            self.examples, examples = f"live {self.store.settings['corpus']}", self.config.data.train
        else:
            split = self.store.split("train")
            self.examples, examples = split.fingerprint, len(split)
        self.judged_by = self.validation.fingerprint
        step = config.train.batch_size * config.train.accumulate * distributed.world_size()
        self.steps_per_epoch = max(1, examples // step)
        if config.train.compile:
            self.separator.network.compile_forward()
        self.mixtures: Scores | None = None
        warn_of_heard(self.store.people("validation"), heard, config.embedder)

    def before_step(self, step: int) -> bool:
        now, before = (
            self.objective.weights_at(at, at // self.steps_per_epoch) for at in (step, max(0, step - 1))
        )
        self.objective.weights = now
        return now != before

    # -------------------------------------------------------- weights

    def content(self) -> dict[str, Any]:
        if self.objective.embedder_learns and self.separator.embedder is not None:
            self.separator.embedder.training_speakers = tuple(sorted(self.speakers))
        return self.separator.content()

    def load(self, content: dict[str, Any]) -> None:
        self.separator.network.load_state_dict(content["network"])
        own = self.separator.embedder
        if own is None:
            return
        begun = embedder_from_content(content, "the checkpoint")
        learns = self.objective.embedder_learns
        if begun.options != own.options or not (learns or own.equals(begun)):
            raise UserError(
                f"this run learns with another embedder than {self.config.embedder}; use another -m NAME"
            )
        own.load_state_dict(begun.state_dict())
        own.heard_others = begun.heard_others

    def start_from(self, content: dict[str, Any], where: str) -> None:
        other = Separator.from_content(content, where)
        try:
            network = self.separator.network
            names = network.identities
            untrained = {
                name: value for name, value in network.state_dict().items() if name.startswith(names)
            }
            network.load_state_dict({**untrained, **network.widened(other.network.state_dict())})
        except RuntimeError as error:
            raise UserError(
                f"{where}: its network ({other.config.network}) is not ({self.config.network})"
            ) from error
        there, here = (c.model_dump(include={"audio", "network"}) for c in (other.config, self.config))
        if changes := differences(there, here):
            print(f"NOTE: {where}: its weights were learnt with other settings: {'; '.join(changes)}")
        warn_of_heard(self.store.people("validation"), content.get("training_speakers", ()), where)
        own, learnt = self.separator.embedder, other.embedder
        if own is None or learnt is None or own.equals(learnt):
            return
        if not self.objective.embedder_learns:
            print(f"WARNING: {where}: has learnt to listen to another embedder than {self.config.embedder}")
            return
        if learnt.options != own.options:
            raise UserError(f"{where}: has another embedder ({learnt.options}) than {self.config.embedder}")
        print(f"NOTE: {where}: its embedder is trained on, not {self.config.embedder}")
        own.load_state_dict(learnt.state_dict())
        own.heard_others = learnt.heard_others

    # -------------------------------------------------------- examples

    def batches(self, start: int, pin: bool) -> Iterator[Batch]:
        train, place = self.config.train, (distributed.rank(), distributed.world_size())
        # a step's examples are the same in one batch or several, but for what is remixed
        size = train.batch_size * train.accumulate
        if self.store.live or self.objective.embedder_learns:
            require_unchanged(self.store)
        if self.store.live:
            drawer = drawer_of(self.store, "train")
            clips = drawer.references()
            rate, references = self.separator.sample_rate, self._references(clips)
            live = LiveExamples(drawer, self.store.utterances, rate, clips, references, self._remix)
            fresh = FreshBatches(size, start, *place, seed=train.seed)
            return training_batches(live, InParts(fresh, train.accumulate), train.workers, pin)
        split = self.store.split("train")
        if len(split) < size * place[1]:
            parts = f" x {train.accumulate} batches a step" if train.accumulate > 1 else ""
            raise UserError(
                f"train.batch_size {train.batch_size}{parts} x {place[1]} processes: the store has only "
                f"{len(split)} examples"
            )
        clips, _ = different_references(split.recipes)
        examples = StoredExamples(split, self._fields(split), self._references(clips), self._remix)
        sampler = ShuffledBatches(len(split), size, train.seed, start, *place)
        return training_batches(examples, InParts(sampler, train.accumulate), train.workers, pin)

    @property
    def _remix(self) -> Remix | None:
        train = self.config.train
        if not train.remix:
            return None
        return Remix(train.remix, train.seed, self.store.utterances, train.remix_db)

    def _fields(self, split: StoredSplit) -> list[str]:
        if self.store.settings["store"]["kind"] == "wave":
            return list(WAVEFORMS)
        cosine = self.config.loss.needs_phase
        if cosine and "cosine" not in split.fields:
            raise UserError(
                f"{split.folder}: loss.si_sdr, snr, power_law_complex, noise_type, blind and target "
                "phase_sensitive need store.cosine=true or store.kind=wave"
            )
        return ["mixture", "target", *(["cosine"] if cosine else [])]

    def _references(self, clips: Sequence[Clip]) -> References:
        embedder = self.separator.embedder
        if embedder is None:
            return NoReferences()
        if self.objective.embedder_learns:
            return ReadReferences(clips, self.store.utterances, embedder.sample_rate)
        return EmbeddedReferences(self._embed(clips, embedder))

    def _embed(self, clips: Sequence[Clip], embedder: Embedder) -> np.ndarray:
        folder = None if self.objective.embedder_learns else self.store.folder
        return reference_embeddings(folder, self.store.utterances, clips, embedder)

    # -------------------------------------------------------- validation

    @cached_property
    def validation(self) -> StoredSplit:
        return self.store.split("validation")

    @cached_property
    def _validation_embeddings(self) -> np.ndarray | None:
        if self.separator.embedder is None:
            return None
        clips, owners = different_references(self.validation.recipes)
        return self._embed(clips, self.separator.embedder)[owners]

    def validate(self) -> Outcome:
        train, split = self.config.train, self.validation
        if self.mixtures is None:
            self.mixtures = score_mixtures(split, examples=train.validation_examples)
        if self.objective.embedder_learns:
            self.__dict__.pop("_validation_embeddings", None)  # those of the embedder as it was
        # of a frozen embedder the others find what the first computes and keeps
        with nullcontext() if self.objective.embedder_learns else distributed.in_turn():
            embeddings = self._validation_embeddings
        scored = ScoredSplit(split, embeddings, train.validation_examples)
        scores, losses = validate(self.objective, scored)
        count = len(scores["sdr"])
        roles = [recipe.role for recipe in split.recipes][:count]
        summary = summarize(self.mixtures, scores, self.store.asked_speakers(split)[:count], roles)
        spoken = np.array([role in ("mixture", "alone") for role in roles])
        bad = np.flatnonzero(spoken & ~(np.isfinite(scores["sdr"]) & np.isfinite(scores["si_sdr"])))
        sentence, score = _sentence(losses, summary), summary["sdr_after_mean"]
        score = score if math.isfinite(losses["loss"]) else math.nan
        outcome = Outcome(score, losses | summary, sentence, bad=tuple(bad.tolist()))
        if distributed.rank() == 0:
            for row in choose_rows(self.mixtures, roles, train.pages):
                make_pages(outcome, self.objective, scored, row, (self.mixtures, scores))
        return outcome

    def describe(self, score: float) -> str:
        return f"best validation SDR {score:.2f} dB"


def _sentence(losses: dict[str, float], summary: dict[str, float]) -> str:
    absent = ""
    if summary["absent_n"]:
        absent = f"; {summary['absent_n']:.0f} absent voices at {summary['absent_level_mean']:+.1f} dB"
    return (
        f"validation loss {losses['loss']:.4f}, SDR {summary['sdr_after_mean']:.2f} dB "
        f"({summary['sdr_improvement_mean']:+.2f}), SI-SDR {summary['si_sdr_improvement_mean']:+.2f} dB, "
        f"{100 * summary['accepted_share']:.0f} % of {summary['n']:.0f} improved by more than 1 dB{absent}"
    )


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
    config = config.model_copy(update={"data": data, "store": kept})
    # what the losses and the network need was checked against the YAML's own settings
    return check_config(config.model_dump(), str(store.folder))


def require_trainable(config: Config) -> None:
    """Raises UserError for networks that only run other projects' weights, and options that would do
    nothing."""
    for name in ("remix", "embedding_mix"):
        if getattr(config.train, name) and config.train.batch_size == 1:
            raise UserError(f"train.{name}: takes another example of the batch, and train.batch_size is 1")
    if config.network.kind == "onnx":
        raise UserError("network.kind onnx: a graph can only be run, not trained")
    if config.network.input == "db":
        raise UserError(
            "network.input db: runs other projects' checkpoints; it clips loud bins (an ideal mask loses "
            "a decibel by it), so train with linear, power or log"
        )


def _check_front_end(config: Config, store: Store) -> None:
    """Raises UserError for magnitudes of another front end; waveforms fit every one at their rate."""
    there, here = store.settings["audio"], config.audio.model_dump()
    if store.settings["store"]["kind"] == "wave":
        there, here = ({"sample_rate": audio["sample_rate"]} for audio in (there, here))
    changes = differences(there, here)
    if changes:
        raise UserError(f"{store.folder}: this store has another front end: {'; '.join(changes)}")
