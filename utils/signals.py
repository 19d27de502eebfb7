"""Being told to stop: at once where nothing would be lost, else after what is being done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
"""Slurm sends the last one, if asked to, before it takes a machine away."""


class Interrupted(BaseException):
    """A signal has ended what can be done again later; no library takes it for an error of its own."""


class StopSignals:
    """Remembers the `number` of the last signal; 0 while there was none."""

    def __init__(self) -> None:
        self.number = 0
        self._interruptible = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within the block the signals of STOPPING end nothing."""
        before = {number: signal.signal(number, self._stop) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupting(self, wanted: bool) -> Iterator[None]:
        """Within the block a signal raises Interrupted, if that is `wanted`."""
        self._interruptible = wanted
        try:
            if wanted and self.number:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _stop(self, number: int, frame: object) -> None:
        self.number = number
        if self._interruptible:
            self._interruptible = False  # once
            raise Interrupted


def ignore() -> None:
    """For processes that another one ends: Ctrl-C and schedulers signal all of a group."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
