"""Checkpoints: written completely or not at all, read without executing anything."""

from __future__ import annotations

import io
import os
import pickle
import platform
import shutil
import subprocess
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_file


def save_checkpoint(
    path: Path | str, content: dict[str, Any], previous: Path | None = None, copy: Path | None = None
) -> None:
    """Writes tensors, numbers, text, lists and dicts under a temporary name, flushes, renames.

    What stood there before is kept as `previous`; `copy` is a second name of the new file. Whenever this is
    interrupted, `path` is complete, the old one or the new one.
    """
    # serialised in memory: torch's own writer turns a full disk into a RuntimeError without a cause
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        if previous is not None and Path(path).exists():
            name_also(Path(path), previous)
    if copy is not None:
        name_also(Path(path), copy)


def name_also(path: Path, other: Path) -> None:
    """Gives a file a second name, at once, in the place of what had it; a copy where there are no hard
    links."""
    with atomic_file(other) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def load_checkpoint(path: Path | str, verify: bool = False) -> dict[str, Any]:
    """Reads a PyTorch file (zip or the older pickle format) onto the CPU with `weights_only=True`.

    `verify` compares the checksums of a zip, which torch does not look at. Raises UserError for a missing,
    truncated or unreadable file and for one that would run code.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if verify and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    raise zipfile.BadZipFile(f"its part {bad} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        OSError,
    ) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path}: not a checkpoint that can be read safely ({reason[0] if reason else 'truncated'})"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


@lru_cache
def code_version(folder: Path) -> dict[str, Any]:
    """The git `commit` of the code in `folder` and whether it is `changed` since (None: no git), and the
    versions of python, torch and numpy."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "commit": commit,
        "changed": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    return None
