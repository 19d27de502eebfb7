"""Training a speaker embedder on batches of N people x M utterances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config.embedder_schema import EmbedderConfig, EmbedderLoss
from datasets.corpus import Utterance
from datasets.dataset import Batch, training_batches
from datasets.recipe import Clip
from datasets.speakers import SpeakerCrops, Steps, index_speakers
from datasets.trials import Trials, all_pairs, enrolments, read_trials
from model.embedder import Embedder
from model.foreign import build_embedder, embedder_from_content
from model.ge2e import GE2E, Classifier
from model.optimization import parameter_group
from model.task import Outcome, Task, warn_of_heard
from model.verification import Verification, embed_clips, verify
from utils import distributed
from utils.device import autocast
from utils.errors import UserError
from utils.plots import det_figure
from utils.verification import error_rates

FORMAT = "voice-embedder-1"


class EmbedderObjective(nn.Module):
    """Batches of N people x M crops -> the criterion's scalars."""

    def __init__(self, embedder: Embedder, criterion: GE2E | Classifier, precision: str) -> None:
        super().__init__()
        self.embedder, self.criterion, self.precision = embedder, criterion, precision

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`waveform` [N * M, samples], a person's crops after each other, and `label` [N]."""
        waveform, label = batch["waveform"], batch["label"]
        features = self.embedder.crops(waveform)
        with autocast(waveform.device, self.precision):
            vectors = self.embedder.vectors(features)
        scalars: dict[str, Tensor] = self.criterion(vectors.unflatten(0, (len(label), -1)), label)
        return scalars


class EmbedderTask(Task):
    """An embedder that learns from the corpora of its configuration."""

    config: EmbedderConfig
    left_out: list[tuple[str, str]]

    def __init__(self, config: EmbedderConfig, device: torch.device) -> None:
        self.config = config
        if not config.data.corpus:
            raise UserError("the corpus to learn from: name it with -d")
        network = config.network
        self.embedder = build_embedder(network.model_dump()).to(device)
        self.split = index_speakers(config.data)
        self.crops = SpeakerCrops(
            self.split.train,
            config.data,
            config.train,
            self.split.sounds,
            network.sample_rate,
            self.embedder.crop_samples,
            distributed.rank(),
            distributed.world_size(),
        )
        self.criterion = build_criterion(config.loss, self.embedder.dim, self.crops.classes).to(device)
        self.objective = EmbedderObjective(self.embedder, self.criterion, config.train.precision)
        self.groups = _groups(self.embedder, self.criterion, config)
        self.speakers = set(self.crops.names)
        # as many people as there are
        self.steps_per_epoch = max(
            1, len(self.crops.names) // (config.train.speakers * config.train.accumulate)
        )
        self.examples = self.split.fingerprint
        self.left_out = [*self.split.unusable, *self.crops.unusable, *self.crops.short]
        # a set that cannot be scored should be known before the training
        _ = self.held_out

    # -------------------------------------------------------- weights

    def content(self) -> dict[str, Any]:
        self.embedder.training_speakers = tuple(sorted(self.speakers))
        return {
            "format": FORMAT,
            "config": self.config.model_dump(),
            "embedder": self.embedder.content(),
        }

    def load(self, content: dict[str, Any]) -> None:
        self.embedder.load_state_dict(content["embedder"]["state"])
        self.embedder.heard_others = content["embedder"]["heard_others"]

    def start_from(self, content: dict[str, Any], where: str) -> None:
        other = embedder_from_content(content, where)
        if other.options != self.embedder.options:
            raise UserError(f"{where}: its embedder ({other.options}) is not ({self.embedder.options})")
        self.embedder.load_state_dict(other.state_dict())
        self.embedder.heard_others = other.heard_others
        warn_of_heard(sorted(self.split.validation), other.training_speakers, where)

    def state(self) -> dict[str, Tensor]:
        return self.criterion.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.criterion.load_state_dict(state)

    def after_step(self) -> None:
        self.criterion.clamp()

    # -------------------------------------------------------- examples

    def batches(self, start: int, pin: bool) -> Iterator[Batch]:
        train = self.config.train
        return training_batches(self.crops, Steps(start * train.accumulate), train.workers, pin)

    # -------------------------------------------------------- validation

    @cached_property
    def held_out(self) -> dict[str, TrialSet]:
        """What is scored, by name: all pairs of the validation speakers, and the list of trials if named."""
        validation, utterances = self.config.data.validation, _by_id(self.split.validation)
        pairs = enrolments(self.split.validation, validation, self.config.data.seed)
        sets = {"": TrialSet(pairs.clips, pairs.speakers, all_pairs(pairs.speakers), utterances)}
        if pairs.divided:
            print(
                f"validation: {pairs.divided} of {len(self.split.validation)} speakers have one utterance, "
                "pieces of it count as utterances (same session, an easier task)"
            )
        if validation.trials:
            listed = read_trials(validation.trials, utterances, _by_id(self.split.train))
            print(listed.describe(validation.trials))
            name = f"{validation.trials}: line"
            self.left_out += [(f"{name} {row}: {path}", cause) for row, path, cause in listed.missing]
            speakers = [utterances[clip.utterance].speaker for clip in listed.clips]
            sets["trials_"] = TrialSet(listed.clips, speakers, listed.trials, utterances)
        return sets

    def validate(self) -> Outcome:
        embedded = {name: trial_set.embed(self.embedder) for name, trial_set in self.held_out.items()}
        outcome = self._outcome(embedded) if distributed.rank() == 0 else None
        return distributed.what_first_says(outcome)

    def _outcome(self, embedded: Mapping[str, np.ndarray]) -> Outcome:
        found = {name: self.held_out[name].score(vectors) for name, vectors in embedded.items()}
        summary = {f"{name}{key}": v for name, result in found.items() for key, v in result.summary().items()}
        curves = {
            "list of trials" if name else "all pairs": error_rates(result.scores, result.same)[1:]
            for name, result in found.items()
        }
        if isinstance(self.criterion, GE2E):
            summary |= {"scale": self.criterion.scale.item(), "offset": self.criterion.offset.item()}
        parts = [f"{'list of trials: ' if name else ''}{r.sentence()}" for name, r in found.items()]
        return Outcome(
            -found[""].eer,
            summary,
            f"validation {'; '.join(parts)}",
            {"det": det_figure(curves, "validation speakers")},
        )

    def describe(self, score: float) -> str:
        return f"best validation EER {-100 * score:.2f} %"


class TrialSet:
    """Clips [n], who speaks in each, and which of them are compared."""

    def __init__(
        self,
        clips: Sequence[Clip],
        speakers: Sequence[str],
        trials: Trials,
        utterances: Mapping[str, Utterance],
    ) -> None:
        self.clips, self.speakers, self.trials, self.utterances = clips, speakers, trials, utterances

    def embed(self, embedder: Embedder) -> np.ndarray:
        """Embeddings float32 [n, D], on every rank, each of which embeds its share of the clips."""
        own = distributed.shared_out(range(len(self.clips)))
        embeddings = np.zeros((len(self.clips), embedder.dim), np.float32)
        if own:
            embeddings[own] = embed_clips(embedder, [self.clips[row] for row in own], self.utterances)
        return distributed.added_up(embeddings).astype(np.float32)

    def score(self, embeddings: np.ndarray) -> Verification:
        return verify(embeddings, self.trials, self.speakers)


def build_criterion(loss: EmbedderLoss, dim: int, classes: int) -> GE2E | Classifier:
    add_up = loss.reduction == "sum"
    match loss.kind:
        case "ge2e_softmax":
            return GE2E(False, loss.scale, loss.offset, add_up)
        case "ge2e_contrast":
            return GE2E(True, loss.scale, loss.offset, add_up)
        case "cross_entropy":
            return Classifier(dim, classes, add_up)


def _groups(embedder: Embedder, criterion: GE2E | Classifier, config: EmbedderConfig) -> list[dict[str, Any]]:
    """The embedder's weights, the LSTM's projections, and what the criterion learns, at their own rates."""
    projections = [p for name, p in embedder.named_parameters() if ".weight_hr_" in name]
    chosen = {id(p) for p in projections}
    groups = [parameter_group(p for p in embedder.parameters() if id(p) not in chosen)]
    if projections:
        groups.append(parameter_group(projections, config.train.projection_rate))
    if isinstance(criterion, GE2E):
        similarity = parameter_group(criterion.parameters(), config.loss.similarity_rate)
        return [*groups, similarity | {"weight_decay": 0.0}]  # it would pull at the scale
    return [*groups, parameter_group(criterion.parameters())]


def _by_id(speakers: Mapping[str, Sequence[Utterance]]) -> dict[str, Utterance]:
    return {u.id: u for utterances in speakers.values() for u in utterances}
