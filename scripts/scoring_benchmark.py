"""`benchmark.py scoring`: milliseconds that scores take, beside mir_eval."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from utils.metrics import bss_eval, sdr
from utils.processes import cores, worker_pool

RATE, SECONDS = 16000, (3.0, 10.0)
COUNT = 16


def measure_scoring() -> dict[str, Any]:
    """Of coloured noise of several lengths: SDR alone, and SDR, SIR and SAR of a mixture and its estimate,
    which share a factorisation; one process, and as many as there are cores. `difference`: the largest
    from mir_eval's, in dB."""
    rows = []
    for seconds in SECONDS:
        signals = [_signals(seconds, number) for number in range(COUNT)]
        ours, theirs = ([work(*row) for row in signals] for work in (score, score_by_mir_eval))
        difference = float(np.abs(np.array(ours) - np.array(theirs)).max())
        times = {
            "sdr": _milliseconds(score_sdr, signals),
            "sdr_mir_eval": _milliseconds(score_sdr_by_mir_eval, signals),
            "all": _milliseconds(score, signals),
            "all_mir_eval": _milliseconds(score_by_mir_eval, signals),
            "all_processes": _in_processes(signals),
        }
        rows.append({"seconds": seconds, "difference": difference, **times})
    return {"rows": rows, "processes": cores()}


def _signals(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target, interference and estimate, with the slope of speech."""
    generator = np.random.default_rng(seed)
    length = round(seconds * RATE)
    spectrum = 1 / (1 + np.arange(length // 2 + 1) / (seconds * 500))
    target, other = (
        np.fft.irfft(np.fft.rfft(generator.standard_normal(length)) * spectrum, length) for _ in range(2)
    )
    return target, other, target + 0.3 * other + 0.01 * generator.standard_normal(length)


def score_sdr(target: np.ndarray, other: np.ndarray, estimate: np.ndarray) -> float:
    """SDR in dB of an estimate [N], by this project."""
    return float(sdr(torch.from_numpy(estimate), torch.from_numpy(target)))


def score_sdr_by_mir_eval(target: np.ndarray, other: np.ndarray, estimate: np.ndarray) -> float:
    """The same by mir_eval."""
    return float(_mir_eval(target[None], estimate[None])[0][0])


def score(target: np.ndarray, other: np.ndarray, estimate: np.ndarray) -> list[float]:
    """SDR, SIR, SAR in dB of the estimate [N] (those of the mixture are computed, too), by this project."""
    outputs = torch.from_numpy(np.stack([estimate, target + other]))
    found = bss_eval(outputs, *(torch.from_numpy(x).expand_as(outputs) for x in (target, other)))
    return [float(values[0]) for values in found]


def score_by_mir_eval(target: np.ndarray, other: np.ndarray, estimate: np.ndarray) -> list[float]:
    """The same by mir_eval."""
    sources = np.stack([target, other])
    _mir_eval(sources, np.stack([target + other] * 2))
    return [float(values[0]) for values in _mir_eval(sources, np.stack([estimate] * 2))]


def _mir_eval(sources: np.ndarray, estimates: np.ndarray) -> list[np.ndarray]:
    import mir_eval

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its separation module is deprecated
        return list(mir_eval.separation.bss_eval_sources(sources, estimates, False)[:3])


def _milliseconds(work: Callable[..., Any], signals: Sequence[tuple[np.ndarray, ...]]) -> float:
    work(*signals[0])
    start = time.perf_counter()
    for row in signals:
        work(*row)
    return 1000 * (time.perf_counter() - start) / len(signals)


def _in_processes(signals: Sequence[tuple[np.ndarray, ...]]) -> float:
    rounds = []
    with worker_pool(cores(), "scoring", torch.set_num_threads, (1,)) as pool:
        for _ in range(5):  # while the first rounds run, processes are still starting
            start = time.perf_counter()
            for future in [pool.submit(score, *row) for row in signals]:
                future.result()
            rounds.append(time.perf_counter() - start)
    return 1000 * min(rounds) / len(signals)


def scoring_markdown(figures: dict[str, Any]) -> str:
    """The figures and their machine as a table."""
    lines = [
        f"Milliseconds an utterance, {figures['machine']}:",
        "",
        "| | SDR | mir_eval | SDR, SIR, SAR of mixture and estimate | mir_eval "
        f"| the same in {figures['processes']} processes | difference, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        lines.append(
            f"| {row['seconds']:g} s | {row['sdr']:.1f} | {row['sdr_mir_eval']:.1f} | {row['all']:.1f} | "
            f"{row['all_mir_eval']:.1f} | {row['all_processes']:.1f} | {row['difference']:.1g} |"
        )
    return "\n".join(lines)
