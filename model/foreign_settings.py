"""What other projects' separators say of their front end: the YAML or dict that a checkpoint carries."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError

PUBLISHED_SIZES = {"sample_rate": 16000, "n_fft": 1200, "hop_length": 160, "win_length": 400}
"""The public re-implementation's defaults, which hold where a file says nothing."""
PUBLISHED = "the published defaults"
LEVELS = {"min_level_db": -100.0, "ref_level_db": 20.0}
"""The only ones that its front end has here (model/spectral.py, to_db)."""
ACTIVATIONS = {"voicefilter": "relu", "voicesplit": "mish"}
"""VoiceSplit's networks by the `model_name` of their configuration, which its first version lacks."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the front end, and what weights do not tell; `windows`: frames of the embedder's, and from one
    to the next. `source`, where they stand, is not compared."""

    source: str = field(default=PUBLISHED, compare=False)
    audio: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED_SIZES))
    activation: str | None = None
    embedding_dim: int | None = None
    windows: tuple[int, int] | None = None

    said: bool = field(default=False, compare=False)
    """Whether a file said the sizes of the front end, at least one of them."""


def settings_of(content: Mapping[str, Any], where: str) -> Settings | None:
    """The settings that a checkpoint brings: `hp_str`, the text of the YAML file (the public
    re-implementation), or `config_str`, the text of a dict (VoiceSplit); None if it has neither.

    Raises UserError for what cannot be read, and for a front end that is not supported.
    """
    for key, read in (("hp_str", _yaml_documents), ("config_str", _dict_text)):
        text = content.get(key)
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        if isinstance(text, str):
            return _settings(read(text, f"{where}: {key}"), f"{where}: {key}")
        if text is not None:
            raise UserError(f"{where}: {key}: holds a {type(text).__name__}, expected text")
    return None


def settings_file(path: Path | str) -> Settings | None:
    """The same out of a YAML file; None if it is in another format than the re-implementation's."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    tree = _yaml_documents(text, str(path))
    audio = tree.get("audio")
    return _settings(tree, str(path)) if isinstance(audio, dict) and "num_freq" in audio else None


def _yaml_documents(text: str, where: str) -> dict[str, Any]:
    """The sections of all documents of a YAML text."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, TypeError, ValueError) as error:  # a date that there is not is a ValueError
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    merged: dict[str, Any] = {}
    for document in documents:
        if not isinstance(document, dict):
            raise UserError(f"{where}: holds a {type(document).__name__}, expected `key: value` lines")
        merged |= document
    return merged


def _dict_text(text: str, where: str) -> dict[str, Any]:
    try:
        tree = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"{where}: not the text of a dict ({type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where}: holds a {type(tree).__name__}, expected a dict")
    return tree


def _settings(tree: dict[str, Any], where: str) -> Settings:
    """Sections audio, model, embedder -> settings. Raises UserError for a front end that we lack."""
    sections = {name: _section(tree, name, where) for name in ("audio", "model", "embedder")}
    audio = sections["audio"]
    if "backend" in audio:
        if (backend := audio["backend"]) != "voicefilter":
            raise UserError(f"{where}: audio.backend {backend!r}: only voicefilter is supported")
        audio = _section(audio, backend, where)
    for key, ours in LEVELS.items():
        if audio.get(key, ours) != ours:
            raise UserError(f"{where}: {key} {audio[key]}: only {ours} is supported")
    sizes = {key: _number(audio, key, where) or size for key, size in PUBLISHED_SIZES.items()}
    bins = _number(audio, "num_freq", where)
    if bins and bins != sizes["n_fft"] // 2 + 1:
        raise UserError(
            f"{where}: num_freq {bins}: n_fft {sizes['n_fft']} has {sizes['n_fft'] // 2 + 1} bins"
        )
    dim = _number(sections["embedder"], "emb_dim", where) or _number(sections["model"], "emb_dim", where)
    window, stride = (_number(sections["embedder"], key, where) for key in ("window", "stride"))
    windows = (window, stride) if window and stride else None
    said = any(audio.get(key) is not None for key in (*PUBLISHED_SIZES, "num_freq"))
    return Settings(where, sizes, _activation(tree, where), dim, windows, said)


def _section(tree: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    section = tree.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{where}: {name}: expected a section, got {section!r}")
    return section


def _activation(tree: dict[str, Any], where: str) -> str | None:
    name = tree.get("model_name")
    if name is not None and (not isinstance(name, str) or name not in ACTIVATIONS):
        raise UserError(f"{where}: model_name {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.get(name) if name is not None else None


def _number(section: dict[str, Any], key: str, where: str) -> int | None:
    value = section.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{where}: {key}: expected a number above 0, got {value!r}")
    return value
