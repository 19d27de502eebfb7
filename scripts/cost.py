"""What trainings cost, estimated from the sizes of their networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config.schema import Config
from model.separator import build_network

EMBEDDING_DIM, FRAMES = 256, 32
CPU_RATE, GPU_RATE = 0.5e12, 40e12
"""Operations a second that a training reaches: measured with bf16 on two cores of an AMD EPYC (the
full-size network, 1.15 s an example); assumed of a GPU, where nothing was measured."""


@dataclass(frozen=True)
class Cost:
    operations: float
    bytes: float

    def describe(self) -> list[str]:
        cpu, gpu = (_duration(self.operations / rate) for rate in (CPU_RATE, GPU_RATE))
        return [
            f"Training: about {self.operations:.1e} operations, {cpu} of two CPU cores (at {CPU_RATE:.2g} a "
            f"second, measured) or {gpu} of a GPU (at {GPU_RATE:.2g}, assumed), and half a minute a "
            "command to start it.",
            f"Disk: about {self.bytes / 1e9:,.2f} GB.",
        ]


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{max(1.0, seconds):,.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"


def hours_and_bytes(runs: Sequence[tuple[Config, int]]) -> Cost:
    """Of runs, each as often as its number of seeds says; early stopping is not foreseen."""
    operations, stored = 0.0, {}
    for config, seeds in runs:
        epochs = config.train.epochs
        steps = config.train.steps
        per_epoch = max(1, config.data.train // (config.train.batch_size * config.train.accumulate))
        steps = min(steps, epochs * per_epoch) if epochs else steps
        examples = steps * config.train.batch_size * config.train.accumulate
        operations += 3 * forward_operations(config) * examples * seeds  # a backward pass costs two forward
        stored[str(config.data.model_dump())] = config.data.train * example_bytes(config)
    return Cost(operations, sum(stored.values()))


def example_bytes(config: Config) -> float:
    """Of a training example in its store; none where they are live."""
    audio, samples = config.audio, config.data.seconds * config.audio.sample_rate
    if config.data.mode == "live":
        return 0.0
    if config.store.kind == "wave":
        return 2 * samples * (2 if config.store.dtype == "int16" else 4)
    bins = (audio.n_fft // 2 + 1) * samples / audio.hop_length
    return bins * (4 + config.store.cosine)


def forward_operations(config: Config) -> float:
    """Operations of the mask network for one example, its LSTMs by their number of weights."""
    audio = config.audio
    bins, frames = (
        audio.n_fft // 2 + 1,
        1 + round(config.data.seconds * audio.sample_rate) // audio.hop_length,
    )
    with torch.device("meta"):
        network = build_network(config.network, bins, EMBEDDING_DIM).eval()
    recurrent = [0.0]

    def count(module: nn.LSTM, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        rows = inputs[0].numel() // inputs[0].shape[-1]
        recurrent[0] += 2.0 * rows * sum(p.numel() for n, p in module.named_parameters() if "weight" in n)

    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.LSTM):
            module.register_forward_hook(count)
    few = min(frames, FRAMES)  # all layers go over time
    shape = (1, few, bins, 2) if network.planes == 2 else (1, few, bins)
    embedding = torch.zeros(1, EMBEDDING_DIM) if network.embedding_dim else None
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(shape), embedding)
    return (float(counter.get_total_flops()) + recurrent[0]) * frames / few
