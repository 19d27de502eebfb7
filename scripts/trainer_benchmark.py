"""`benchmark.py trainer`: the speed of a training step, beside the earlier implementation's and the machine's
floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from config.schema import Config
from model.dvector import DVector
from model.foreign import MINDSLAB
from model.optimization import make_optimizer
from model.separator_task import SeparatorTask
from model.task import to_device
from scripts.memory import peak_memory
from utils.device import autocast, keep_memory

MATRIX = 4096
"""Rows and columns of the product by which the machine's rate is measured."""


class PlainVoiceFilter(nn.Module):
    """The earlier implementation's network, as it computed it: contiguous, the embedding repeated in every
    frame of the LSTM's input."""

    def __init__(self, bins: int, embedding_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for time_, frequency, dilation in (
            (1, 7, 1), (7, 1, 1), (5, 5, 1), (5, 5, 2), (5, 5, 4), (5, 5, 8), (5, 5, 16)
        ):  # fmt: skip
            inner, outer = frequency // 2, time_ // 2 * dilation
            convolution = nn.Conv2d(64 if layers else 1, 64, (time_, frequency), dilation=(dilation, 1))
            layers += [nn.ZeroPad2d((inner, inner, outer, outer)), convolution, nn.BatchNorm2d(64), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(64, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.lstm = nn.LSTM(8 * bins + embedding_dim, 400, batch_first=True, bidirectional=True)
        self.fc1, self.fc2 = nn.Linear(800, 600), nn.Linear(600, bins)

    def forward(self, magnitude: Tensor, embedding: Tensor) -> Tensor:
        x = self.conv(magnitude[:, None]).transpose(1, 2).contiguous()  # [B, T, 8, F]
        x = x.view(x.shape[0], x.shape[1], -1)
        x = torch.cat([x, embedding[:, None].repeat(1, x.shape[1], 1)], dim=2)
        x = torch.relu(self.lstm(x)[0])
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(x))))


def plain_seconds(batch: int, frames: int, bins: int, steps: int, device: torch.device) -> float:
    """Seconds of the earlier implementation's step, in a process of its own: without what our trainer has
    set up, and without its memory in our peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_plain_seconds, batch, frames, bins, steps, device).result()


def _plain_seconds(batch: int, frames: int, bins: int, steps: int, device: torch.device) -> float:
    return seconds_of(plain_step(batch, frames, bins, device), steps, device)


def plain_step(batch: int, frames: int, bins: int, device: torch.device) -> Callable[[], None]:
    """The earlier implementation's step: fp32, the references embedded one by one, MSE, Adam."""
    network = PlainVoiceFilter(bins, 256).to(device)
    embedder = DVector(**MINDSLAB).to(device).eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    mixture, target = torch.rand(2, batch, frames, bins, device=device)
    references = [torch.randn(48000, device=device) for _ in range(batch)]

    def step() -> None:
        with torch.no_grad():
            embedding = torch.cat([embedder.embed([reference]) for reference in references])
        loss = nn.functional.mse_loss(network(mixture, embedding) * mixture, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds a step after one to warm up."""
    step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a large matrix product in the step's precision."""
    with autocast(device, precision):
        a, b = torch.randn(2, MATRIX, MATRIX, device=device)
        a, b = (x.to((a @ a[:, :1]).dtype) for x in (a, b))
    return 2 * MATRIX**3 / seconds_of(lambda: a @ b, 5, device)


def operations(task: SeparatorTask, batch: dict[str, Tensor]) -> float:
    """Floating point operations of a step, forwards and backwards."""
    network, recurrent = task.separator.network, [0.0]

    def count(module: nn.LSTM, inputs: tuple[Tensor, ...], output: object) -> None:
        rows = inputs[0].numel() // inputs[0].shape[-1]
        recurrent[0] += 6.0 * rows * sum(p.numel() for n, p in module.named_parameters() if "weight" in n)

    # the counter does not see into recurrent layers (but into model/recurrent.py, which calls none)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.LSTM)]
    with FlopCounterMode(display=False) as counter:
        task.objective(batch)["loss"].backward()
    for hook in hooks:
        hook.remove()
    return float(counter.get_total_flops()) + recurrent[0]


def measure_trainer(config: Config, steps: int, plain_steps: int, device: torch.device) -> dict[str, Any]:
    """Examples a second of our step and the plain one, the share of waiting, the floor, peak memory."""
    keep_memory()
    task = SeparatorTask(config, device)
    batches = task.batches(0, pin=device.type == "cuda")
    objective, optimizer = task.objective.train(), make_optimizer(task.groups, config.train)
    waited = 0.0

    def step() -> None:
        nonlocal waited
        start = time.perf_counter()
        batch = to_device(next(batches), device)
        waited += time.perf_counter() - start
        optimizer.zero_grad(set_to_none=True)
        objective(batch)["loss"].backward()
        optimizer.step()

    step()
    waited = 0.0
    ours = seconds_of(step, steps, device)
    cuda = device.type == "cuda"
    size, memory = config.train.batch_size, torch.cuda.max_memory_allocated(device) if cuda else peak_memory()
    batch = task.objective.with_spectra(to_device(next(batches), device))
    frames, bins = batch["mixture"].shape[1:]
    plain = plain_seconds(size, frames, bins, plain_steps, device)
    flops, rate = operations(task, batch), matrix_rate(device, config.train.precision)
    return {
        "batch": size, "frames": frames, "bins": bins, "device": str(device),
        "precision": config.train.precision,
        "examples_per_second": size / ours, "seconds_per_example": ours / size,
        "plain_seconds_per_example": plain / size, "ratio": plain / ours,
        "wait_share": waited / (ours * (steps + 1)), "peak_memory_mb": memory / 1e6,
        "gflop_per_example": flops / size / 1e9, "matrix_gflops": rate / 1e9,
        "floor_seconds_per_example": flops / size / rate,
    }  # fmt: skip


def trainer_markdown(figures: dict[str, Any]) -> str:
    f = figures
    return "\n".join(
        [
            f"{f['machine']}, {f['device']}, precision {f['precision']}: batch {f['batch']}, "
            f"{f['frames']} frames x {f['bins']} bins",
            "",
            "| | seconds an example | examples/s |",
            "|---|---|---|",
            f"| plain step (fp32, contiguous, references embedded one by one) | "
            f"{f['plain_seconds_per_example']:.3f} | {1 / f['plain_seconds_per_example']:.2f} |",
            f"| this trainer | {f['seconds_per_example']:.3f} | {f['examples_per_second']:.2f} |",
            f"| floor: {f['gflop_per_example']:.0f} GFLOP at {f['matrix_gflops']:.0f} GFLOP/s of a matrix "
            f"product | {f['floor_seconds_per_example']:.3f} | {1 / f['floor_seconds_per_example']:.2f} |",
            "",
            f"{f['ratio']:.1f} times the plain step; {100 * f['wait_share']:.1f} % of the time waiting for "
            f"data; peak memory {f['peak_memory_mb']:.0f} MB.",
        ]
    )
