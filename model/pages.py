"""What can be heard and seen of a few validation examples, the same ones at every validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.objective import SeparatorObjective
from model.scoring import Scores
from model.task import Outcome
from model.validation import ScoredSplit, judge
from utils import distributed
from utils.plots import spectrogram_figure

SECONDS = 10
"""Of every example; the mask is made from all of it."""


def choose_rows(mixtures: Scores, roles: Sequence[str], count: int) -> list[int]:
    """`count` rows whose role is mixture, from the hardest to the easiest by the mixture's SI-SDR in equal
    steps: of three, the hardest, the one in the middle, and the easiest."""
    rows = np.flatnonzero(np.asarray(roles) == "mixture")
    ranked = rows[np.argsort(mixtures["si_sdr"][rows], kind="stable")]
    places = np.linspace(0, len(ranked) - 1, count) if count > 1 else [(len(ranked) - 1) / 2] * count
    return list(dict.fromkeys(int(ranked[round(place)]) for place in places))


@torch.inference_mode()
def make_pages(
    outcome: Outcome,
    objective: SeparatorObjective,
    scored: ScoredSplit,
    row: int,
    scores: tuple[Scores, Scores],
) -> None:
    """Adds the waveforms and the spectrograms of one example to `outcome`; `scores` before and after."""
    separator = objective.separator
    objective.eval()
    with distributed.apart():
        _, compared = judge(objective, scored, [row])
    assert compared.waves is not None  # in evaluation mode there are
    estimate, target, mixture = (wave[:, : SECONDS * separator.sample_rate] for wave in compared.waves)
    waves = {"mixture": mixture, "target": target, "estimate": estimate}
    outcome.audio_rate = separator.sample_rate
    name = f"example-{row}"
    # a mixture may exceed what a sound file can hold
    loudest = max(1.0, *(float(wave.abs().max()) for wave in waves.values()))
    outcome.audio |= {f"{name}/{kind}": (wave[0] / loudest).cpu().numpy() for kind, wave in waves.items()}
    seen = waves | {"error, the estimate minus the target": estimate - target}
    magnitudes = {kind: separator.spectral(wave)[0].abs().cpu().numpy() for kind, wave in seen.items()}
    frames = len(magnitudes["mixture"])
    mask = compared.mask[0, :frames]
    label = "mask"
    if compared.complex:
        mask, label = mask.norm(dim=-1).clamp(max=1), "mask, its magnitude up to 1"
    before, after = (score["si_sdr"][row] for score in scores)
    outcome.pictures[f"pages/{name}"] = spectrogram_figure(
        magnitudes,
        mask.cpu().numpy(),
        separator.sample_rate,
        separator.spectral.hop_length,
        f"validation example {row}: SI-SDR {before:.1f} -> {after:.1f} dB",
        label,
    )
