"""Everything that is measured on the signals of one example; runs in worker processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from utils.audio import frame_levels, frame_size, is_active
from utils.metrics import bss_eval, level, sdr, si_sdr
from utils.perception import LONGEST_PESQ, pesq, stoi

CONTENT_DB = 10.0
"""So far below the target a frame has lost its speech."""
SILENCED_DB = 15.0
"""So far below its mixture an output counts as silence, where the asked voice is absent."""
PRESERVED_DB = 20.0
"""SDR from which an output of the target alone counts as the target preserved."""
CLEAN, NOT_FINITE = "clean", "not_finite"


class Metric(NamedTuple):
    """How a score is shown: its name and unit, its decimals, and whether more is better."""

    label: str
    unit: str
    digits: int
    better: int


METRICS = {
    "sdr": Metric("SDR", "dB", 2, 1),
    "si_sdr": Metric("SI-SDR", "dB", 2, 1),
    "sir": Metric("SIR", "dB", 2, 1),
    "sar": Metric("SAR", "dB", 2, 1),
    "pesq_wb": Metric("PESQ wide band", "MOS", 2, 1),
    "pesq_nb": Metric("PESQ narrow band", "MOS", 2, 1),
    "stoi": Metric("STOI", "", 3, 1),
    "estoi": Metric("ESTOI", "", 3, 1),
    "over_suppression": Metric("over-suppressed", "%", 1, -1),
    "similarity": Metric("similarity to the reference", "", 3, 1),
    "similarity_other": Metric("similarity to the other voice", "", 3, -1),
    "level": Metric("level", "dBFS", 1, 0),
}
"""`over_suppression`: the share of the target's 20 ms frames with sound in which the output is more than
CONTENT_DB below the target. The similarities are cosines of embeddings."""
OUTPUT_ONLY = ("sar",)
"""A mixture is made of nothing but its sources, so that what is lost of them cannot be an improvement."""
LISTENED = ("similarity", "similarity_other")
"""Computed by the embedder, not here."""
OF_CLEAN = ("sdr", "si_sdr")
"""What is measured on the output for the target alone."""
SCORES = 2
"""Raised whenever a score is computed in another way, so that earlier rows are not gone on with."""


@dataclass(frozen=True)
class RowAudio:
    """The signals of one example at `rate` Hz, float32 [N] each.

    `outputs`: by system what is scored (the mixture itself is one), and of each the `wanted` metrics;
    `clean`: what a system makes of the target alone. `role`: see `Recipe.role`.
    """

    rate: int
    role: str
    target: np.ndarray
    interference: np.ndarray
    outputs: Mapping[str, np.ndarray]
    wanted: Mapping[str, Collection[str]]
    clean: Mapping[str, np.ndarray]


def score_row(row: RowAudio) -> dict[str, dict[str, float]]:
    """Scores by system and metric; where nobody is asked for, the level alone is defined."""
    scores = {system: _of_output(row, row.wanted[system], output) for system, output in row.outputs.items()}
    names = [system for system in row.outputs if {"sir", "sar"} & set(row.wanted[system])]
    if names and row.role == "mixture":
        # one factorisation of target and interference serves all systems
        outputs = torch.from_numpy(np.stack([row.outputs[name] for name in names]))
        sources = (torch.from_numpy(x).expand_as(outputs) for x in (row.target, row.interference))
        found = bss_eval(outputs, *sources)
        for number, name in enumerate(names):
            values = {key: getattr(found, key)[number].item() for key in ("sdr", "sir", "sar")}
            scores[name] |= {key: value for key, value in values.items() if key in row.wanted[name]}
    for system, output in row.clean.items():
        if row.role != "absent":
            signals = (torch.from_numpy(x) for x in (output, row.target))
            estimate, target = signals
            both = {"sdr": sdr(estimate, target).item(), "si_sdr": si_sdr(estimate, target).item()}
            scores[system] |= {f"{name}_{CLEAN}": both[name] for name in OF_CLEAN}
    return scores


def _of_output(row: RowAudio, wanted: Collection[str], output: np.ndarray) -> dict[str, float]:
    estimate, target = torch.from_numpy(output), torch.from_numpy(row.target)
    scores = {"level": level(estimate).item()} if "level" in wanted else {}
    if row.role == "absent":
        return scores
    with_interference = row.role == "mixture" and {"sir", "sar"} & set(wanted)
    if "sdr" in wanted and not with_interference:
        scores["sdr"] = sdr(estimate, target).item()
    if "si_sdr" in wanted:
        scores["si_sdr"] = si_sdr(estimate, target).item()
    for band in ("wb", "nb"):
        if f"pesq_{band}" in wanted and not is_long(len(output), row.rate):
            scores[f"pesq_{band}"] = pesq(output, row.target, row.rate, band)
    for name in ("stoi", "estoi"):
        if name in wanted:
            scores[name] = stoi(output, row.target, row.rate, extended=name == "estoi")
    if "over_suppression" in wanted:
        scores["over_suppression"] = 100 * over_suppression(output, row.target, row.rate)
    return scores


def is_long(samples: int, rate: int) -> bool:
    """Whether an example is too long for PESQ."""
    return samples > LONGEST_PESQ * rate


def over_suppression(output: np.ndarray, target: np.ndarray, rate: int) -> float:
    """Share of the target's 20 ms frames with sound that are more than CONTENT_DB quieter in the output; 0
    for a target without any."""
    size = frame_size(rate)
    wanted, given = (frame_levels(signal, size) for signal in (target, output))
    sounding = is_active(wanted)
    return float((given < wanted - CONTENT_DB)[sounding].mean()) if sounding.any() else 0.0


def overlap_share(target: np.ndarray, interference: np.ndarray, rate: int) -> float:
    """Share of the target's 20 ms frames with sound in which the interference sounds, too."""
    size = frame_size(rate)
    first, second = (is_active(frame_levels(signal, size)) for signal in (target, interference))
    return float(second[first].mean()) if first.any() else 0.0
