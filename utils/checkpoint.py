"""Checkpoints: written completely or not at all, read without executing anything."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch

from utils.errors import UserError
from utils.files import atomic_file

_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
"""What NumPy's numbers are made of, such as the best loss that a script saved; nothing that runs."""
SCALE = ":scale"
"""Behind the name of a matrix of 8-bit integers: its rows' scales."""


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


def save_weights(path: Path | str, content: dict[str, Any], bits: Literal[8, 16, 32] = 32) -> None:
    """Writes a checkpoint as a safetensors file, which holds nothing but numbers and a text: what is to be
    handed on. Matrices are stored with so many `bits`: 16 are float16, and with 8 those of `network` are
    integers, scaled row by row, and others float16.

    Raises ValueError for content that is neither tensors nor JSON.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_without_tensors(content, "", tensors, bits))
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"content": tree}))


def save_again(path: Path | str, content: dict[str, Any]) -> None:
    """Writes what was read from a checkpoint, and changed, in the place and in the format of that file."""
    if Path(path).suffix != ".safetensors":
        save_checkpoint(path, content)
        return
    with safetensors.safe_open(str(path), "pt") as file:
        kinds = {file.get_slice(place).get_dtype() for place in file.keys()}  # noqa: SIM118 (it is no dict)
    save_weights(path, content, 8 if "I8" in kinds else 16 if "F16" in kinds else 32)


def _without_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor], bits: int) -> Any:
    """Its dicts and values without the tensors, which are taken by their place, such as network/out.bias."""
    if isinstance(value, dict):
        found = {}
        for key, part in value.items():
            place = f"{name}/{key}" if name else str(key)
            if isinstance(part, torch.Tensor):
                matrix = part.ndim > 1 and part.dtype == torch.float32
                if bits == 8 and matrix and name == "network":
                    part, tensors[place + SCALE] = _as_integers(part)
                elif bits < 32 and matrix:
                    part = part.half()
                tensors[place] = part.contiguous().clone()
            else:
                found[str(key)] = _without_tensors(part, place, tensors, bits)
        return found
    if isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: a tensor outside a dict")
    return value


def _as_integers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix or more [R, ...] -> int8 [R, ...] and float32 [R]: the largest of each row is 127."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1).clamp_min(1e-30) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view(weight.shape), scale


def _read_weights(path: Path | str) -> dict[str, Any]:
    with safetensors.safe_open(str(path), "pt") as file:
        content: dict[str, Any] = json.loads((file.metadata() or {})["content"])
        places = list(file.keys())
        for place in places:
            if place.endswith(SCALE):
                continue
            *folders, key = place.split("/")
            part = content
            for folder in folders:
                part = part.setdefault(folder, {})
            tensor = file.get_tensor(place)
            if place + SCALE in places:
                scale = file.get_tensor(place + SCALE)
                tensor = (tensor.flatten(1) * scale[:, None]).view(tensor.shape)
            part[key] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return content


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
    """Reads a PyTorch file (zip or the older pickle format) onto the CPU with `weights_only=True`, or what
    `save_weights` wrote.

    `verify` compares the checksums of a zip, which torch does not look at. Raises UserError for a missing,
    truncated or unreadable file and for one that would run code.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if Path(path).suffix == ".safetensors":
            return _read_weights(path)
        if verify and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    raise zipfile.BadZipFile(f"its part {bad} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's age
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise UserError(
            f"{path}: not a checkpoint that can be read safely: {_reason(path, error)}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _reason(path: Path | str, error: Exception) -> str:
    """Why a file could not be read, in our words."""
    with Path(path).open("rb") as file:
        start = file.read(8)
    if not start:
        return "it is empty"
    if Path(path).suffix == ".safetensors":
        return "it is cut off, damaged, or another project's"
    if not start.startswith((b"PK", b"\x80")):
        graph = Path(path).suffix.lower() == ".onnx"
        if graph:
            return "an ONNX graph: inference.py runs those of export.py, convert.py reads other projects'"
        return "no PyTorch file"
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"type (\S+) in order", str(error))
    if named:
        return f"it asks for {named[1]}, which would run code, or it is cut off"
    if isinstance(error, UnpicklingError):
        return "it is damaged, or would run code"
    return "it is cut off or damaged"
