"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **options: Any) -> Any:
    """tqdm on standard error; where no terminal shows it (a log, a pipe), at most one state every 30 s."""
    seconds = 0.1 if sys.stderr.isatty() else 30.0
    bar: Any = tqdm
    return bar(*args, mininterval=seconds, maxinterval=max(10.0, seconds), **options)
