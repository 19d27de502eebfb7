"""Which device and number format to compute in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from utils.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` takes the current CUDA device if there is one. Raises UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: expected auto, cpu or cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu or cuda[:N]")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is available here")
    return device


def device_name(device: torch.device) -> str:
    """What it is called, such as `cuda: NVIDIA H200` or `cpu: AMD EPYC 9V84, 2 threads`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware (AVX-512 BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return any(check() for check in checks if check is not None)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Context for `fp32`, `bf16`, or `auto` (bf16 where it is fast)."""
    if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
