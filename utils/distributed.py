"""Processes that torchrun has started: their places, and what they tell each other; alone, all do nothing.

Gradients are averaged over the ranks (DistributedDataParallel). A loss that is a mean over equally many
values on every rank is then that of the whole batch by itself; one over a count that varies is divided by the
mean count of the ranks (`share_of_mean`), so that the average of the ranks' losses is the whole batch's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from utils.batch_norm import share_batch_norms
from utils.errors import UserError

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other, such as for the first one while it prepares."""
LOST = re.compile("closed by peer|Connection reset|Broken pipe|Connection refused|connectFullMesh")
"""What gloo says when another process is gone."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
_apart = False


def rank() -> int:
    """From 0; 0 of a process that is alone, whatever a launcher has left in the environment."""
    return _number("RANK", 0) if world_size() > 1 else 0


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
    _end_with_torchrun()
    try:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except ValueError as error:
        raise UserError(
            f"rank {rank()} of {world_size()} (RANK, WORLD_SIZE) cannot join the others ({error}); "
            "start them with torchrun"
        ) from error
    try:
        with redirect_stdout(None if rank() else sys.stdout):
            yield device
    except (RuntimeError, torch.distributed.DistError) as error:
        if isinstance(error, torch.distributed.DistError) or LOST.search(str(error)):
            _end_with_the_others()
        raise
    # after an error the others shall not see the connection close before its sentence has been said
    torch.distributed.destroy_process_group()


def is_alone() -> bool:
    return _apart or not torch.distributed.is_initialized()


@contextmanager
def apart() -> Iterator[None]:
    """What happens in the block is this rank's own affair: it is as if it were alone.

    For work that ranks do on different examples, maybe a different number of times.
    """
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with gradients averaged over the ranks, and batch norm over the whole batch."""
    if is_alone():
        return module
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    else:
        module = share_batch_norms(module)
    return nn.parallel.DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def gather(values: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks, [n, ...] -> [ranks * n, ...]; gradients flow back."""
    if is_alone():
        return values
    import torch.distributed.nn.functional as collective

    return torch.cat(collective.all_gather(values))


def share_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of a mean over values that ranks may have different numbers of.

    `total` is the sum of this rank's `count` values (scalars). The average of the ranks' results, as of their
    gradients, is the mean over all values; 0 where there are none.
    """
    if is_alone():
        return total / count.clamp_min(1)
    everywhere = count.detach().to(total.dtype, copy=True)
    torch.distributed.all_reduce(everywhere)
    return total * world_size() / everywhere.clamp_min(1)


def averaged(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars as their averages over the ranks, each with its own rank's gradient."""
    if is_alone():
        return values
    shared = torch.stack([value.detach().float() for value in values.values()])
    torch.distributed.all_reduce(shared)
    means = shared / world_size()
    return {
        name: mean + (value - value.detach())
        for (name, value), mean in zip(values.items(), means, strict=True)
    }


def _end_with_torchrun() -> None:
    """Has the system send SIGTERM when torchrun is gone (Linux): ranks would go on without it, unseen."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def everybody_s(value: Item) -> list[Item]:
    """A value of any kind that can be pickled, of every rank in their order, on every rank."""
    if is_alone():
        return [value]
    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def shared_out(items: Iterable[Item]) -> list[Item]:
    """This rank's share of the items: every n-th."""
    found = list(items)
    return found if is_alone() else found[rank() :: world_size()]


def added_up(array: np.ndarray) -> np.ndarray:
    """The sum of the ranks' arrays (float64), on every rank. Where all but one have zeros: exactly its
    values."""
    if is_alone():
        return array
    on_cuda = torch.distributed.get_backend() == "nccl"
    total = torch.from_numpy(np.asarray(array, np.float64)).to("cuda" if on_cuda else "cpu", copy=True)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


def what_first_says(value: Item | None) -> Item:
    """The first rank's value, on every rank; those of the others do not matter."""
    said = [value]
    if not is_alone():
        torch.distributed.broadcast_object_list(said)
    assert said[0] is not None
    return said[0]


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


# ---------------------------------------------------------------- errors


def first_to_say(sentence: str) -> bool:
    """Whether no other rank has said this sentence before; torchrun's own store knows."""
    store = _store_of_torchrun()
    if store is None:
        return True
    round_ = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store.add(f"errors/{round_}", 1)
    digest = hashlib.sha256(sentence.encode()).hexdigest()[:16]
    return bool(store.add(f"errors/{round_}/{digest}", 1) == 1)


def _end_with_the_others() -> None:
    """Another rank is gone: ends this one with a sentence, or with none if a rank has said what happened."""
    store = _store_of_torchrun()
    round_ = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if store is not None and store.add(f"errors/{round_}", 0):
        sys.exit(2)
    sentence = (
        "another process of this training has ended (killed, or its reason stands above): so do the rest"
    )
    if first_to_say(sentence):
        print(f"ERROR: {sentence}", file=sys.stderr)
    sys.exit(1)


def _store_of_torchrun() -> torch.distributed.TCPStore | None:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not host or not port.isdecimal():
        return None
    try:
        patience = timedelta(seconds=5)
        return torch.distributed.TCPStore(host, int(port), None, False, patience, wait_for_workers=False)
    except (RuntimeError, torch.distributed.DistError):  # torchrun itself is gone
        return None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment has {name}={text}, expected a number as torchrun sets it")
    return int(text)
