"""Is the reference's voice in a recording at all? A probability, calibrated on validation mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.separator import Separator
from utils.audio import active_seconds, resample
from utils.errors import UserError

PIECE_SECONDS = 4.0
"""Estimate and residual are embedded in pieces of this length."""
JUDGED_PIECES = 3
"""Of a longer recording so many pieces after each other are judged at a time, so that a voice that speaks in
a part of it is found."""
LEAST_SECONDS = 0.4
"""A piece in which less than this sounds is not embedded."""
FAINT_DB = -40.0
"""An estimate this far below its mixture says nothing about a voice."""
NUMBERS = ("offset", "examples", "auc", "accuracy")
"""Of a Calibration, beside its weights."""
NEAREST = 50
"""So many voices of the cohort, those most similar to a voice, are what its similarity is compared with."""
SILENT_SCORE = -5.0
"""The normalised similarity where nothing sounds: of nobody."""


@dataclass(frozen=True)
class Evidence:
    """What the probability is a function of: cosine `similarity` of the reference's embedding and that of the
    estimate, the same of the residual (`residual_similarity`), and the estimate's level re the mixture's
    (`level_db`, at least FAINT_DB). A similarity is 0 where nothing sounds. With a cohort there are also both
    similarities normalised by it (`score`, `residual_score`), which take their place."""

    similarity: float
    residual_similarity: float
    level_db: float
    score: float = 0.0
    residual_score: float = 0.0

    def vector(self, normalized: bool) -> list[float]:
        if normalized:
            return [self.score / 5, self.residual_score / 5, self.level_db / 10]
        return [self.similarity, self.residual_similarity, self.level_db / 10]


class Cohort:
    """Embeddings [N, D] of other people, by which similarities are normalised: adaptive symmetric score
    normalisation (Cumani et al. 2011, "Comparison of speaker recognition approaches for real applications";
    Matejka et al. 2017, "Analysis of score normalization in multilingual speaker recognition").

    How similar two embeddings are depends on how ordinary the voices are: from the similarity the mean of
    those to the NEAREST people is taken off, and what is left divided by their standard deviation, once with
    the people nearest to the one voice and once to the other; the score is the mean of both. Raises
    ValueError for fewer than two people.
    """

    def __init__(self, people: Tensor) -> None:
        if len(people) < 2:
            raise ValueError(f"{len(people)} people: a cohort has two or more")
        self.people = nn.functional.normalize(people, dim=1)

    def score(self, one: Tensor, other: Tensor) -> float:
        """Of two embeddings [D]; SILENT_SCORE where the second is of nothing."""
        if not other.any():
            return SILENT_SCORE
        pair = nn.functional.normalize(torch.stack([one, other]), dim=1)
        nearest = (pair @ self.people.T).sort(dim=1).values[:, -NEAREST:]
        normalized = (pair[0] @ pair[1] - nearest.mean(1)) / nearest.std(1).clamp_min(1e-3)
        return float(normalized.mean())


@dataclass(frozen=True)
class Calibration:
    """A logistic regression: weights of Evidence.vector() and an offset, fitted on `examples` stretches of at
    most 12 s, half of them without the voice that was asked for, whose area under the ROC curve is `auc` and
    whose share of right answers at 0.5 is `accuracy` (of recordings that were not fitted). With a `cohort`,
    embeddings [N, D], the similarities are normalised by it."""

    weights: tuple[float, float, float]
    offset: float
    examples: int
    auc: float
    accuracy: float
    cohort: Tensor | None = field(default=None, compare=False)

    def probability(self, evidence: Evidence) -> float:
        vector = evidence.vector(self.cohort is not None)
        logit = float(np.dot(self.weights, vector)) + self.offset
        return float(1 / (1 + np.exp(-logit)))

    def content(self) -> dict[str, Any]:
        cohort = {} if self.cohort is None else {"cohort": self.cohort}
        return {name: getattr(self, name) for name in NUMBERS} | {"weights": list(self.weights), **cohort}

    @classmethod
    def from_content(cls, tree: dict[str, Any] | None, where: str) -> Calibration:
        """Raises UserError where a checkpoint holds none, or a damaged one."""
        if tree is None:
            raise UserError(
                f"{where}: cannot tell whether a voice is present, it was not calibrated; "
                f"python calibrate.py {where} --data STORE does it"
            )
        try:
            numbers = {name: tree[name] for name in NUMBERS}
            cohort = tree.get("cohort")  # a list, where it comes from a graph's notes
            if cohort is not None:
                cohort = torch.as_tensor(cohort).float()
                if cohort.ndim != 2 or len(cohort) < 2 or not cohort.isfinite().all():
                    raise ValueError(f"a cohort {tuple(cohort.shape)}")
            first, second, third = map(float, tree["weights"])
            return cls((first, second, third), **numbers, cohort=cohort)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: its calibration is damaged ({type(error).__name__})") from error


class Listener:
    """Collects the evidence of a recording: estimate and mixture, of which a few numbers a piece are kept."""

    def __init__(self, separator: Separator, embedding: Tensor, cohort: Tensor | None = None) -> None:
        if separator.embedder is None:
            raise ValueError("a network without a reference asks for nobody")
        self.separator, self.embedder = separator, separator.embedder
        self.asked = embedding.reshape(-1)
        self.cohort = None if cohort is None else Cohort(cohort.to(self.asked))
        self.voices: list[Tensor] = []  # of estimate and residual, seconds times embedding [2, D]
        self.powers: list[np.ndarray] = []  # of estimate and mixture [2]
        self.held = np.zeros((2, 0), np.float32)

    def __call__(self, mixture: np.ndarray, estimate: np.ndarray) -> None:
        """The next samples [N] of both at the separator's rate."""
        self.held = np.concatenate([self.held, np.stack([estimate, mixture])], axis=1)
        piece = round(PIECE_SECONDS * self.separator.sample_rate)
        while self.held.shape[1] >= piece:
            self._hear(*self.held[:, :piece])
            self.held = self.held[:, piece:]

    def evidence(self) -> list[Evidence]:
        """Of every JUDGED_PIECES pieces after each other, from the first, the second ... on; of all that
        came, where that is less."""
        if self.held.shape[1]:
            self._hear(*self.held)
            self.held = self.held[:, :0]
        first = range(max(1, len(self.voices) - JUDGED_PIECES + 1))
        return [self._evidence(slice(start, start + JUDGED_PIECES)) for start in first]

    def _evidence(self, pieces: slice) -> Evidence:
        nothing = [torch.zeros(2, len(self.asked), device=self.asked.device)]
        found = torch.stack(self.voices[pieces] or nothing).sum(dim=0)
        similar = nn.functional.cosine_similarity(self.asked, found, dim=1).tolist()
        estimate, mixture = np.sum(self.powers[pieces] or [np.zeros(2)], axis=0)
        level = 10 * np.log10((estimate + 1e-12) / (mixture + 1e-12)) if mixture else FAINT_DB
        score, residual_score = (
            self.cohort.score(self.asked, voice) if self.cohort else 0.0 for voice in found
        )
        level_db = float(np.clip(level, FAINT_DB, 0.0))
        return Evidence(similar[0], similar[1], level_db, score, residual_score)

    @torch.inference_mode()
    def _hear(self, estimate: np.ndarray, mixture: np.ndarray) -> None:
        rate = self.separator.sample_rate
        self.powers.append(np.square([estimate, mixture], dtype=np.float64).sum(axis=1))
        self.voices.append(torch.zeros(2, len(self.asked), device=self.asked.device))
        # what is faint beside the mixture is not heard as a voice
        floor = 10 * np.log10(np.mean(np.square(mixture, dtype=np.float64)) + 1e-12) + FAINT_DB
        for total, signal in zip(self.voices[-1], (estimate, mixture - estimate), strict=True):
            seconds = active_seconds(signal, rate, floor_db=max(floor, -70.0))
            if seconds < LEAST_SECONDS:
                continue
            heard = torch.from_numpy(resample(signal, rate, self.embedder.sample_rate))
            total += seconds * self.embedder.embed([heard.to(total.device)])[0]


def fit(
    present: Sequence[Sequence[Evidence]],
    absent: Sequence[Sequence[Evidence]],
    cohort: Tensor | None = None,
    folds: int = 5,
) -> Calibration:
    """The calibration by recordings with and without the voice, of each the evidence of its stretches, heard
    with the `cohort`.

    What is said of its quality is of recordings in the other folds. Raises ValueError for fewer than `folds`
    recordings of either.
    """
    if min(len(present), len(absent)) < folds:
        raise ValueError(
            f"{len(present)} with and {len(absent)} without the voice: {folds} of each are needed"
        )
    recordings = [*present, *absent]
    normalized = cohort is not None
    inputs = np.array([evidence.vector(normalized) for stretches in recordings for evidence in stretches])
    labels = np.repeat(
        [*np.ones(len(present)), *np.zeros(len(absent))], [len(stretches) for stretches in recordings]
    )
    numbers = [*range(len(present)), *range(len(absent))]
    fold = np.repeat(np.array(numbers) % folds, [len(stretches) for stretches in recordings])
    held_out = np.zeros(len(labels))
    for number in range(folds):
        weights = _regression(inputs[fold != number], labels[fold != number])
        held_out[fold == number] = inputs[fold == number] @ weights[:-1] + weights[-1]
    positive, negative = held_out[labels == 1], held_out[labels == 0]
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    right = ((held_out > 0) == (labels == 1)).mean()
    weights = _regression(inputs, labels)
    a, b, c = weights[:-1].tolist()
    return Calibration((a, b, c), float(weights[-1]), len(labels), float(above), float(right), cohort)


def _regression(inputs: np.ndarray, labels: np.ndarray, ridge: float = 1.0, steps: int = 50) -> np.ndarray:
    """Logistic regression by Newton's method with a small penalty on the weights: weights and offset."""
    x = np.column_stack([inputs, np.ones(len(inputs))])
    penalty = ridge * np.diag([1.0] * inputs.shape[1] + [0.0])
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - labels) + penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(weights))
        change = np.linalg.solve(hessian, gradient)
        weights -= change
        if np.abs(change).max() < 1e-8:
            break
    return weights
