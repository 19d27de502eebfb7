"""Processes that work beside this one, end with it, and fail with one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from utils.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """Cores that we may use, which a container or a batch system may have restricted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(
    processes: int, what: str, prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool that leaves Ctrl-C to this process and whose workers end when this process is killed.

    Each worker first calls `prepare(*arguments)`. Raises UserError, which calls them `what` processes, when
    one is killed while a result is waited for inside the context.
    """
    # spawn: a fork would copy the locks of the threads that the caller has
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (prepare, arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {processes} {what} processes was killed (is the memory full?); what was finished is "
                "kept: run the same command again, with fewer processes if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], processes: int, what: str
) -> Iterator[Result]:
    """`work` of every task, in their order, in up to `processes` processes (1: in this one). Raises UserError
    as `worker_pool`."""
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield from map(work, tasks)
        return
    with worker_pool(processes, what) as pool:
        # few at a time: what is finished and not yet recorded is made again after a kill
        yield from pool.map(work, tasks, chunksize=4)


def _start(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    """A killed parent would leave its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
