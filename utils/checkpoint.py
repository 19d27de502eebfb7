"""Checkpoints: written completely or not at all, read without executing anything."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import atomic_file


def save_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Writes tensors, numbers, text, lists and dicts under a temporary name, flushes, renames."""
    # serialised in memory: torch's own writer turns a full disk into a RuntimeError without a cause
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a PyTorch file (zip or the older pickle format) onto the CPU with `weights_only=True`.

    Raises UserError for a missing, truncated or unreadable file and for one that would run code.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
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
