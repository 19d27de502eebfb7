"""Which device and number format to compute in."""

from __future__ import annotations

import ctypes
import os
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
        raise UserError(f"--device {name}: expected auto, cpu, mps or cuda[:N]") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: expected auto, cpu, mps or cuda[:N]")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: no Apple GPU is available here")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is available here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: {torch.cuda.device_count()} are here, the first is cuda:0")
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # ranks have a device of their own each
    if device.type == "cuda" and device.index is not None and alone:
        torch.cuda.set_device(device)  # for what asks for the current one, such as pinned memory
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
    """Context for `fp32`, `bf16`, `fp16`, or `auto` (bf16 where it is fast).

    Without a CUDA device fp16 is fp32: a network that has learnt in it can be used everywhere.
    """
    if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "fp16" and device.type == "cuda":
        return torch.autocast(device.type, torch.float16)
    return nullcontext()


def used_precision(device: torch.device, precision: str) -> str:
    """`fp32`, `bf16` or `fp16`: what `autocast` makes of a precision there."""
    context = autocast(device, precision)
    if not isinstance(context, torch.autocast):
        return "fp32"
    return "bf16" if context.fast_dtype == torch.bfloat16 else "fp16"


def keep_memory() -> None:
    """Lets glibc keep what tensors on the CPU have freed, for the next ones (other systems: nothing).

    By default a block above 32 MiB at most goes back to the kernel when it is freed, which maps the next one
    page by page and fills it with zeros: 44 % of a full-size training step (docs/experiments.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # malloc.h: no mapped blocks, nothing trimmed from the heap's end, one heap for all threads
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):
        mallopt(option, value)


def large_pages() -> None:
    """Asks the kernel for pages of 2 MB for tensors on the CPU (Linux): those of a long chunk are mapped in a
    third of the time. For what runs once; where the same sizes come again and again `keep_memory` is
    faster."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the loss for fp16, whose gradients would vanish, and does nothing for other formats.

    Raises UserError for fp16 without CUDA.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"train.precision fp16: needs a CUDA device, this is {device}; use auto, bf16 or fp32"
        )
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate memory, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory"))
    )
