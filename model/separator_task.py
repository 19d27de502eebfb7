"""Training a mask network, alone or together with the embedder, on a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config.load import differences
from config.schema import Config
from config.schema import Store as StoreOptions
from datasets.dataset import Batch, ShuffledBatches, StoredExamples, training_batches
from datasets.live import FreshBatches, LiveExamples
from datasets.plan import SOUNDS, data_of, drawer_of, require_unchanged
from datasets.recipe import Clip
from datasets.references import EmbeddedReferences, ReadReferences, References
from datasets.store import WAVEFORMS, Store, StoredSplit
from model.features import reference_embeddings, spectra
from model.foreign import load_embedder
from model.losses import criteria
from model.optimization import parameter_group
from model.scoring import Scores, score_estimates, score_mixtures, summarize
from model.separator import Separator
from model.task import Outcome, Task, warn_of_heard
from utils import distributed
from utils.device import autocast
from utils.errors import UserError


class SeparatorObjective(nn.Module):
    """Batches of mixtures, targets and references -> the criteria.

    `embedder_learns`: embeddings come from the references' waveforms, with gradients to the embedder, which
    stays in evaluation mode, as it is heard at inference.
    """

    def __init__(self, separator: Separator, embedder_learns: bool) -> None:
        super().__init__()
        self.separator, self.config = separator, separator.config
        self.weights = self.config.loss.model_dump(exclude={"relative"})
        self.embedder_learns = embedder_learns

    @property
    def needs_cosine(self) -> bool:
        return bool(self.config.loss.power_law_complex or self.config.loss.si_sdr)

    def train(self, mode: bool = True) -> SeparatorObjective:
        super().train(mode)
        self.separator.embedder.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if "mixture" not in batch:  # waveforms
            with torch.no_grad():
                mixture, target = (batch[name] for name in WAVEFORMS)
                batch = batch | spectra(self.separator.spectral, mixture, target, self.needs_cosine)
        embedding = blur(self._embedding(batch), self.config.train.embedding_noise)
        with autocast(batch["mixture"].device, self.config.train.precision):
            mask = self.separator.network(batch["mixture"], embedding)
        return criteria(
            self.weights,
            mask,
            batch["mixture"],
            batch["target"],
            batch.get("cosine"),
            self.config.loss.relative,
        )

    def _embedding(self, batch: Batch) -> Tensor:
        if not self.embedder_learns:
            return batch["embedding"]
        samples = batch["reference_samples"].tolist()
        waves = [wave[:n] for wave, n in zip(batch["reference"], samples, strict=True)]
        with autocast(batch["reference"].device, self.config.train.precision):
            return self.separator.embedder.embed(waves).float()


class SeparatorTask(Task):
    """A mask network that learns from the store of its configuration."""

    config: Config
    objective: SeparatorObjective

    def __init__(self, config: Config, device: torch.device) -> None:
        self.store = Store(config.store.folder)
        _check_front_end(config, self.store)
        self.config = config = _with_settings_of(self.store, config)
        if not any(recipe.role == "mixture" for recipe in self.store.split("validation").recipes):
            raise UserError(
                f"{self.store.folder}: its validation split holds no mixture that could be scored"
            )
        embedder = load_embedder(config.embedder)
        joint = config.train.embedder == "joint"
        self.separator = Separator(config, embedder).to(device)
        self.groups = [parameter_group(self.separator.network.parameters())]
        if joint:
            embedder.requires_grad_(True)
            self.groups.append(parameter_group(embedder.parameters(), config.train.embedder_rate))
        self.objective = SeparatorObjective(self.separator, joint)
        self.speakers = set(self.store.report["splits"]["train"]["speakers"]) | set(
            embedder.training_speakers
        )
        self.examples = (
            f"live {self.store.settings['corpus']}"
            if self.store.live
            else self.store.split("train").fingerprint
        )
        self.mixtures: Scores | None = None
        held_out = self.store.report["splits"]["validation"]["speakers"]
        warn_of_heard(held_out, embedder.training_speakers, config.embedder)

    # -------------------------------------------------------- weights

    def content(self) -> dict[str, Any]:
        if self.objective.embedder_learns:
            self.separator.embedder.training_speakers = tuple(sorted(self.speakers))
        return self.separator.content()

    def load(self, content: dict[str, Any]) -> None:
        self.separator.network.load_state_dict(content["network"])
        self.separator.embedder.load_state_dict(content["embedder"]["state"])

    def start_from(self, content: dict[str, Any], where: str) -> None:
        other = Separator.from_content(content, where)
        try:
            self.separator.network.load_state_dict(other.network.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{where}: its network ({other.config.network}) is not ({self.config.network})"
            ) from error
        own, learnt = self.separator.embedder, other.embedder
        if own.fingerprint() == learnt.fingerprint():
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
        if self.store.live or self.objective.embedder_learns:
            require_unchanged(self.store)
        if self.store.live:
            drawer = drawer_of(self.store, "train")
            clips = drawer.references()
            rate = self.config.audio.sample_rate
            live = LiveExamples(drawer, self.store.utterances, rate, clips, self._references(clips))
            return training_batches(live, FreshBatches(train.batch_size, start, *place), train.workers, pin)
        split = self.store.split("train")
        if len(split) < train.batch_size * place[1]:
            raise UserError(
                f"train.batch_size {train.batch_size} x {place[1]} processes: the store has only "
                f"{len(split)} examples"
            )
        clips, owners = _different_references(split)
        examples = StoredExamples(split, self._fields(split), self._references(clips), owners)
        sampler = ShuffledBatches(len(split), train.batch_size, train.seed, start, *place)
        return training_batches(examples, sampler, train.workers, pin)

    def _fields(self, split: StoredSplit) -> list[str]:
        if self.store.settings["store"]["kind"] == "wave":
            return list(WAVEFORMS)
        cosine = self.objective.needs_cosine
        if cosine and "cosine" not in split.fields:
            raise UserError(
                f"{split.folder}: loss.si_sdr and loss.power_law_complex need store.cosine=true or "
                "store.kind=wave"
            )
        return ["mixture", "target", *(["cosine"] if cosine else [])]

    def _references(self, clips: Sequence[Clip]) -> References:
        if self.objective.embedder_learns:
            return ReadReferences(clips, self.store.utterances, self.config.audio.sample_rate)
        return EmbeddedReferences(self._embed(clips))

    def _embed(self, clips: Sequence[Clip]) -> np.ndarray:
        folder = None if self.objective.embedder_learns else self.store.folder
        return reference_embeddings(folder, self.store.utterances, clips, self.separator.embedder)

    # -------------------------------------------------------- validation

    @cached_property
    def validation(self) -> StoredSplit:
        return self.store.split("validation")

    @cached_property
    def _validation_embeddings(self) -> np.ndarray:
        clips, owners = _different_references(self.validation)
        return self._embed(clips)[owners]

    def validate(self) -> Outcome:
        split = self.validation
        if self.mixtures is None:
            self.mixtures = score_mixtures(split)
        if self.objective.embedder_learns:
            self.__dict__.pop("_validation_embeddings", None)  # those of the embedder as it was
        scores = score_estimates(self.separator, split, self._validation_embeddings)
        speakers, roles = self.store.asked_speakers(split), [recipe.role for recipe in split.recipes]
        summary = summarize(self.mixtures, scores, speakers, roles)
        score = summary["sdr_after_mean"]
        sentence = (
            f"validation SDR {score:.2f} dB ({summary['sdr_improvement_mean']:+.2f}), "
            f"SI-SDR {summary['si_sdr_improvement_mean']:+.2f} dB, "
            f"{100 * summary['accepted_share']:.0f} % of {summary['n']:.0f} improved by more than 1 dB"
        )
        return Outcome(score, summary, sentence)

    def describe(self, score: float) -> str:
        return f"best validation SDR {score:.2f} dB"


def _different_references(split: StoredSplit) -> tuple[list[Clip], np.ndarray]:
    """The split's references, each once [m], and the number of each example's own [n]."""
    numbers: dict[Clip, int] = {}
    owners = [numbers.setdefault(recipe.reference, len(numbers)) for recipe in split.recipes]
    return list(numbers), np.array(owners)


def blur(embedding: Tensor, noise: float) -> Tensor:
    """Adds a random vector of about `noise` times each embedding's length [B, D] and restores that length."""
    if noise == 0:
        return embedding
    length = embedding.norm(dim=-1, keepdim=True)
    # drawn on the CPU: the same noise on every device
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
