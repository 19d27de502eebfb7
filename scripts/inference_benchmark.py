"""`benchmark.py inference`: real-time factor and peak memory of inference.py, as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from config.schema import Config
from model.foreign import load_embedder
from model.separator import Separator
from scripts.memory import Watch, maxrss_bytes
from scripts.trainer_benchmark import PlainVoiceFilter, seconds_of
from utils.audio_stream import audio_writer
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.plots import memory_figure

ROOT = Path(__file__).parents[1]
WAYS = {
    "auto": ["--precision", "auto"],
    "fp32": ["--precision", "fp32"],
    "ONNX Runtime": ["--backend", "onnx"],
}
LONGEST_OF_ALL = 300.0
"""Seconds up to which every way is measured; longer recordings only with the default precision."""


def measure_inference(
    config: Config, lengths: Sequence[float], device: torch.device, embedder: str | None
) -> dict[str, Any]:
    """Wall time and peak memory of whole commands, on noise, with random weights of the configured network.

    `startup` is the time of a recording of a tenth of a second (the fastest of three); it is taken off for
    the real-time factors.
    """
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        place = Path(folder)
        conditioned = config.network.embedding == "reference"
        network = load_embedder(embedder or config.embedder) if conditioned else None
        torch.manual_seed(0)
        save_checkpoint(place / "network.pt", Separator(config, network).content())
        write_noise(place / "reference.wav", 5.0, config.audio.sample_rate)
        for way, options in WAYS.items():
            chosen = [s for s in lengths if way == "auto" or s <= LONGEST_OF_ALL]
            starts = [run(place, 0.1, config.audio.sample_rate, options, device)[0] for _ in range(3)]
            start = min(starts)  # the first reads everything from the disk
            for seconds in chosen:
                wall, memory, curve = run(place, seconds, config.audio.sample_rate, options, device)
                rows.append(
                    {
                        "way": way, "seconds": seconds, "wall": wall, "startup": start, "memory_mb": memory,
                        "factor": (wall - start) / seconds, "memory_curve": curve,
                    }
                )  # fmt: skip
    return {
        "device": str(device),
        "network": config.network.kind,
        "rows": rows,
        "plain": plain_factor(config),
    }


def write_noise(path: Path, seconds: float, rate: int) -> None:
    chance = np.random.default_rng(0)
    with audio_writer(path, rate, 1, round(seconds * rate)) as write:
        left = round(seconds * rate)
        while left:
            block = chance.standard_normal((1, min(left, 10 * rate))).astype(np.float32)
            write(0.1 * block)
            left -= block.shape[1]


def run(
    place: Path, seconds: float, rate: int, options: Sequence[str], device: torch.device
) -> tuple[float, float, list[list[float]]]:
    """Wall time in seconds, peak memory in MB (10^6 bytes) and, where the system tells it, the memory as it
    went, pairs of seconds and MB, of one command. Raises UserError when it fails."""
    mixture = place / f"mixture-{seconds:g}.wav"
    if not mixture.exists():
        write_noise(mixture, seconds, rate)
    command = [sys.executable, "inference.py", "--checkpoint_path", str(place / "network.pt")]
    command += ["-m", str(mixture), "-r", str(place / "reference.wav"), "-o", str(place / "out.wav")]
    begin = time.perf_counter()
    with subprocess.Popen(
        [*command, "--device", str(device), *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:
        watch = Watch(child.pid, begin)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        watch.stop()
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            assert child.stderr is not None
            raise UserError(
                f"inference.py ended with {child.returncode}: {child.stderr.read().decode()[-300:]}"
            )
    peak = watch.peak or maxrss_bytes(usage)
    return wall, peak / 1e6, [[seconds, held / 1e6] for seconds, held in watch.curve]


def memory_picture(figures: dict[str, Any]) -> np.ndarray:
    """The memory over time of every recording that was measured with the default precision."""
    curves = {
        f"{row['seconds']:g} s": np.array(row["memory_curve"])
        for row in figures["rows"]
        if row["way"] == "auto" and row["memory_curve"]
    }
    return memory_figure(curves, f"inference.py, network {figures['network']}")


def plain_factor(config: Config) -> float | None:
    """Real-time factor of the earlier implementation's forward, for its network: fp32, contiguous, 3 s."""
    if config.network.kind != "voicefilter":
        return None
    network = PlainVoiceFilter(config.audio.n_fft // 2 + 1, 256).eval()
    frames = 3 * config.audio.sample_rate // config.audio.hop_length + 1
    magnitude, embedding = torch.rand(1, frames, config.audio.n_fft // 2 + 1), torch.randn(1, 256)
    with torch.inference_mode():
        return seconds_of(lambda: network(magnitude, embedding), 3, torch.device("cpu")) / 3.0


def inference_markdown(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['machine']}, {figures['device']}, network {figures['network']}",
        "",
        "| recording | | seconds | real-time factor | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        lines.append(
            f"| {row['seconds']:g} s | {row['way']} | {row['wall']:.2f} | {row['factor']:.4f} | "
            f"{row['memory_mb']:.0f} |"
        )
    starts = {row["way"]: row["startup"] for row in figures["rows"]}
    lines += ["", "Start-up, taken off: " + ", ".join(f"{way} {s:.2f} s" for way, s in starts.items()) + "."]
    if figures["plain"] is not None:
        lines.append(f"The earlier implementation's forward alone, fp32, 3 s: {figures['plain']:.3f}.")
    return "\n".join(lines)
