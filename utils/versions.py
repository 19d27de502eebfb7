"""What a result was made with: the commit of the code, and the versions of what it stands on."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchaudio", "numpy", "scipy", "librosa", "soundfile", "tensorboardX", "pesq", "pystoi",
    "jiwer", "faster-whisper", "pocketsphinx",
)  # fmt: skip


@lru_cache
def commit() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether tracked files differ from it; None where git does not know."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return head or None, None if head is None or changes is None else bool(changes)


def versions() -> dict[str, Any]:
    """`commit`, `dirty`, and the versions of Python, of the system and of PACKAGES (None: not installed)."""
    head, dirty = commit()
    found: dict[str, Any] = {"commit": head, "dirty": dirty, "python": platform.python_version()}
    found["system"] = platform.platform()
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
