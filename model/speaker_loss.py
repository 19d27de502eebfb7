"""Speaker representation loss: the estimate should sound like the person (Mun, Choe, Huh, Chung, "The sound
of my voice": SRL and triplet SRL)."""

from __future__ import annotations

import torch
from torch import Tensor

from config.network_schema import Loss
from model.embedder import Embedder
from model.losses import Comparison
from utils.distributed import share_of_mean

SHORTEST = 1e-3
"""Embeddings of a length below it, such as of silence, are not stretched to 1, which has no bounded slope."""


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the embeddings [B, D] at unit length: [B], 0 to 2."""
    a, b = (torch.nn.functional.normalize(vectors, dim=-1, eps=SHORTEST) for vectors in (a, b))
    return torch.linalg.vector_norm(a - b, dim=-1)


def srl(anchor: Tensor, estimate: Tensor) -> Tensor:
    """D(anchor, estimate) of embeddings [B, D]: [B]."""
    return distance(anchor, estimate)


def triplet_srl(anchor: Tensor, estimate: Tensor, residual: Tensor, alpha: float) -> Tensor:
    """max(0, D(anchor, estimate) - D(anchor, residual) + alpha) of embeddings [B, D]: [B]."""
    return (distance(anchor, estimate) - distance(anchor, residual) + alpha).clamp_min(0)


def speaker_criteria(
    options: Loss,
    weights: dict[str, float],
    embedder: Embedder,
    compared: Comparison,
    reference: Tensor,
    rate: int,
) -> dict[str, Tensor]:
    """`srl` and `triplet_srl`, those with a weight above 0, as means over the examples (of all
    ranks) whose target is heard.

    Gradients go through the embedder, whose weights do not learn, to the estimate's waveform. `reference`:
    the references' embeddings [B, D]; `rate` of the waveforms in Hz. Raises ValueError without waveforms.
    """
    if compared.waves is None:
        raise ValueError("the speaker representation loss needs waveforms: store.kind=wave")
    chosen = {name: getattr(options, name) for name in ("srl", "triplet_srl") if weights[name]}
    heard = ~compared.silent
    count = heard.sum()
    estimate, target, mixture = (wave[heard] for wave in compared.waves)
    if not len(estimate):  # but other ranks may have some
        return {name: share_of_mean(compared.waves[0].sum() * 0, count) for name in chosen}
    heard_signals = [estimate, mixture - estimate] if "triplet_srl" in chosen else [estimate]
    found = embed_waves(embedder, torch.cat(heard_signals), rate).split(len(estimate))
    anchors = {"reference": reference[heard].float()}
    if any(option.anchor == "clean" for option in chosen.values()):
        with torch.no_grad():
            anchors["clean"] = embed_waves(embedder, target, rate)
    values = {}
    for name, option in chosen.items():
        anchor = anchors[option.anchor]
        if name == "srl":
            distances = srl(anchor, found[0])
        else:
            distances = triplet_srl(anchor, found[0], found[1], option.alpha)
        values[name] = share_of_mean(distances.sum(), count)
    return values


def embed_waves(embedder: Embedder, waves: Tensor, rate: int) -> Tensor:
    """Waveforms [B, N] at `rate` Hz -> embeddings [B, D] in float32, with gradients."""
    with torch.autocast(waves.device.type, enabled=False):
        waves = waves.float()
        if rate != embedder.sample_rate:
            from torchaudio.functional import resample  # slow to import, and only needed here

            waves = resample(waves, rate, embedder.sample_rate)
        return embedder.embed(list(waves))
