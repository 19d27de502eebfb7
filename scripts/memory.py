"""How much memory a process has held."""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from pathlib import Path

SECONDS = 0.1
"""Between two looks at another process."""


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    # on Linux what getrusage tells includes what the parent process held when it started this one
    return _of("self", "VmHWM") or maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF))


def maxrss_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _of(process: int | str, entry: str) -> int | None:
    """An entry of a process' status in bytes; None where it has ended, or the system has no /proc."""
    try:
        found = re.search(rf"^{entry}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Watch:
    """Looks at a process' memory every SECONDS: `curve`, pairs of seconds since `begin` and bytes, and the
    `peak` in bytes; nothing where the system has no /proc."""

    def __init__(self, pid: int, begin: float) -> None:
        self.pid, self.begin = pid, begin
        self.curve: list[tuple[float, int]] = []
        self.peak: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(SECONDS):
            now, peak = _of(self.pid, "VmRSS"), _of(self.pid, "VmHWM")
            if now and peak:
                self.curve.append((round(time.perf_counter() - self.begin, 2), now))
                self.peak = max(self.peak or 0, peak, now)  # the two are counted apart, and differ a little

    def stop(self) -> None:
        """Ends the looking."""
        self._over.set()
        self._thread.join()
