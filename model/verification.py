"""Embeds clips and scores trials: how well an embedder tells speakers apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from datasets.corpus import Utterance
from datasets.mixture import read_clip
from datasets.recipe import Clip
from datasets.trials import Trials
from model.embedder import Embedder
from utils import distributed
from utils.device import autocast
from utils.errors import UserError
from utils.progress import progress_bar
from utils.verification import equal_error_rate, error_rates, min_dcf, speaker_interval

TRIALS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Verification:
    """How well cosine similarities tell trials of one speaker (`targets`) from those of two (`impostors`).

    `eer` with its 95 % interval over speakers (None of too few, and without an error) and `min_dcf` (prior
    0.01) are shares; `threshold` is that of the EER. `scores` float32 [t] and `same` bool [t] are the
    trials'. `speakers` and `utterances` count those that are compared.
    """

    eer: float
    eer_low: float | None
    eer_high: float | None
    threshold: float
    min_dcf: float
    targets: int
    impostors: int
    speakers: int
    utterances: int
    scores: np.ndarray
    same: np.ndarray

    def summary(self) -> dict[str, float]:
        """The plain numbers."""
        names = [field.name for field in fields(self) if field.name not in ("scores", "same")]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def interval(self) -> str:
        """` [low, high]` in per cent, or nothing."""
        if self.eer_low is None or self.eer_high is None:
            return ""
        return f" [{100 * self.eer_low:.2f}, {100 * self.eer_high:.2f}]"

    def sentence(self) -> str:
        return (
            f"EER {100 * self.eer:.2f} %{self.interval()}, "
            f"minDCF(0.01) {self.min_dcf:.3f}, threshold {self.threshold:.3f}: {self.targets} trials of one "
            f"speaker, {self.impostors} of two; {self.utterances} utterances of {self.speakers} speakers"
        )


def embed_clips(
    embedder: Embedder,
    clips: Sequence[Clip],
    utterances: Mapping[str, Utterance],
    seconds_at_once: float = 600,
    precision: str = "fp32",
) -> np.ndarray:
    """The embedding of every clip, in order: float32 [n, D], computed on the embedder's device.

    About `seconds_at_once` of audio are in memory together. Raises UserError for a clip that cannot be read,
    or when an embedding is not finite, and ValueError for no clips.
    """

    def waves() -> Iterator[np.ndarray]:
        for clip in clips:
            yield read_clip(clip, utterances[clip.utterance], embedder.sample_rate)

    return embed_waves(embedder, waves(), len(clips), seconds_at_once, precision)


def embed_waves(
    embedder: Embedder,
    waves: Iterator[np.ndarray],
    count: int,
    seconds_at_once: float = 600,
    precision: str = "fp32",
) -> np.ndarray:
    """The same of `count` waveforms float32 [N] at the embedder's rate, which are asked for as needed."""
    device = next(embedder.parameters()).device
    was_training = embedder.training
    most = round(seconds_at_once * embedder.sample_rate)
    vectors = []
    embedder.eval()
    try:
        with (
            torch.inference_mode(),
            autocast(device, precision),
            progress_bar(desc="embed", total=count, unit="utterance", disable=distributed.rank() > 0) as bar,
        ):
            for block in _blocks(waves, most):
                found = embedder.embed([torch.from_numpy(wave).to(device) for wave in block])
                vectors.append(found.float().cpu().numpy())
                bar.update(len(block))
    finally:
        embedder.train(was_training)
    if not vectors:
        raise ValueError("no utterance to embed")
    embeddings = np.concatenate(vectors)
    if not np.isfinite(embeddings).all():
        bad = int((~np.isfinite(embeddings)).any(1).sum())
        raise UserError(f"{bad} of {len(embeddings)} embeddings are NaN or infinite: the embedder is damaged")
    return embeddings


def _blocks(waves: Iterator[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Waveforms in order, of at most `most` samples together, or a longer one by itself."""
    block: list[np.ndarray] = []
    held = 0
    for wave in waves:
        if block and held + len(wave) > most:
            yield block
            block, held = [], 0
        block.append(wave)
        held += len(wave)
    if block:
        yield block


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [n, D] scaled to unit length, float32; one of zeros stays as it is."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def verify(embeddings: np.ndarray, trials: Trials, speakers: Sequence[str]) -> Verification:
    """Scores trials between embeddings [n, D] of clips of the `speakers` [n] by cosine similarity.

    Raises ValueError when trials of one or of two speakers are lacking.
    """
    unit = unit_length(embeddings)
    scores = np.empty(len(trials.same), np.float32)
    for start in range(0, len(scores), TRIALS_AT_ONCE):
        part = slice(start, start + TRIALS_AT_ONCE)
        scores[part] = np.einsum("td,td->t", unit[trials.first[part]], unit[trials.second[part]])
    owners = np.unique(np.asarray(speakers), return_inverse=True)[1].astype(np.int32)
    compared = np.union1d(trials.first, trials.second)
    curve = error_rates(scores, trials.same)
    eer, threshold = equal_error_rate(curve)
    interval = speaker_interval(scores, trials.same, owners[trials.first], owners[trials.second])
    low, high = interval or (None, None)
    targets = int(trials.same.sum())
    return Verification(
        eer=eer,
        eer_low=low,
        eer_high=high,
        threshold=threshold,
        min_dcf=min_dcf(curve),
        targets=targets,
        impostors=len(scores) - targets,
        speakers=len(np.unique(owners[compared])),
        utterances=len(compared),
        scores=scores,
        same=trials.same,
    )


def project(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """Embeddings [n, D] -> points [n, 2] for a picture: t-SNE (van der Maaten and Hinton 2008) of the
    cosine distances, or the two principal components of less than 8."""
    if len(embeddings) < 8:
        centred = unit_length(embeddings) - unit_length(embeddings).mean(0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        return np.pad(left * sizes, ((0, 0), (0, 2)))[:, :2]
    from sklearn.manifold import TSNE  # here: it takes seconds to import

    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    found = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return np.asarray(found.fit_transform(embeddings))
