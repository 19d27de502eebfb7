"""`benchmark.py embedder`: milliseconds that an embedding takes, one by one and batched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from datasets.corpus import Utterance
from model.embedder import Embedder
from model.foreign import load_embedder
from utils.audio import read_mono
from utils.device import autocast, has_fast_bf16


def measure_embedders(
    names: Sequence[str], utterances: Sequence[Utterance], lengths: Sequence[float], device: torch.device
) -> dict[str, Any]:
    """Of every embedder and length in seconds: milliseconds an utterance one by one and batched, in fp32 and,
    where it is fast, in bf16; the utterances are read before the clock starts."""
    rows = []
    for name in names:
        embedder = load_embedder(name).to(device)
        waves = [
            torch.from_numpy(read_mono(utterance.path, embedder.sample_rate)).to(device)
            for utterance in utterances
        ]
        for seconds in lengths:
            cut = [wave[: round(seconds * embedder.sample_rate)] for wave in waves]
            rows.append({"embedder": name, "seconds": seconds, **_times(embedder, cut)})
    return {"utterances": len(utterances), "rows": rows}


@torch.inference_mode()
def _times(embedder: Embedder, waves: list[torch.Tensor]) -> dict[str, float]:
    device = waves[0].device

    def milliseconds(work: Callable[[], object]) -> float:
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start) / len(waves)

    found = {
        "one": milliseconds(lambda: [embedder.embed([wave]) for wave in waves]),
        "batched": milliseconds(lambda: embedder.embed(waves)),
    }
    if has_fast_bf16(device):
        with autocast(device, "bf16"):
            found["one_bf16"] = milliseconds(lambda: [embedder.embed([wave]) for wave in waves])
            found["batched_bf16"] = milliseconds(lambda: embedder.embed(waves))
    return found


def embedder_markdown(figures: dict[str, Any]) -> str:
    """The figures and their machine as a table."""
    names = {"one": "one by one", "batched": "batched", "one_bf16": "one by one, bf16",
             "batched_bf16": "batched, bf16"}  # fmt: skip
    shown = [name for name in names if name in figures["rows"][0]]
    lines = [f"{figures['machine']}; {figures['utterances']} utterances, ms each (x: against fp32 one "
             "by one)", "", f"| embedder | cut to | {' | '.join(names[name] for name in shown)} |",
             "|---|---|" + "---|" * len(shown)]  # fmt: skip
    for row in figures["rows"]:
        cells = [f"{row[name]:.2f} ({row['one'] / row[name]:.1f} x)" for name in shown]
        lines.append(f"| {row['embedder']} | {row['seconds']:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)
