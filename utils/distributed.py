"""Processes that torchrun has started: their places, and what they tell each other; alone, all do nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
from torch import Tensor, nn

from utils.errors import UserError

PATIENCE = timedelta(hours=2)
"""How long ranks wait for the first one while it validates."""


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the other ranks while the block runs (NCCL between CUDA devices, else gloo).

    Yields this rank's device: of several CUDA devices its own. Only the first rank prints.
    """
    if world_size() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank()} has no CUDA device: {torch.cuda.device_count()} are here, and torchrun "
                f"started local rank {device.index}; lower --nproc-per-node or use --device cpu"
            )
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        with redirect_stdout(None if rank() else sys.stdout):
            yield device
    finally:
        torch.distributed.destroy_process_group()


def is_alone() -> bool:
    return not torch.distributed.is_initialized()


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with gradients averaged over the ranks, and batch norm over the whole batch.

    Raises UserError for batch norm between processes without CUDA, which torch cannot synchronise.
    """
    if is_alone():
        return module
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms and device.type != "cuda":
        raise UserError("this network has batch norm, which CPU ranks cannot synchronise: use one process")
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return nn.parallel.DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def gather(values: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks, [n, ...] -> [ranks * n, ...]; gradients flow back."""
    if is_alone():
        return values
    import torch.distributed.nn.functional as collective

    return torch.cat(collective.all_gather(values))


def from_first(value: float, device: torch.device) -> float:
    """The first rank's number, on every rank."""
    if is_alone():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, 0)
    return float(shared.item())


def any_rank(value: int, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    if is_alone():
        return value
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared.item())


@contextmanager
def in_turn() -> Iterator[None]:
    """The first rank goes through the block before the others."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def wait() -> None:
    """Until all ranks are here."""
    if not is_alone():
        torch.distributed.barrier()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment has {name}={text}, expected a number as torchrun sets it")
    return int(text)
