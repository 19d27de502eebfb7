"""Other projects' checkpoints -> our modules, with the front end that belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from datasets.download import fetch
from model.dvector import DVector
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

DOWNLOADS = Path(__file__).parents[1] / "data"

RESEMBLYZER: dict[str, Any] = {
    "n_fft": 400,
    "win_length": 400,
    "log_mel": False,
    "hidden": 256,
    "relu": True,
    "window": 160,
    "window_hop": 80,
    "renormalize": True,
    "min_level_db": -30.0,
}
MINDSLAB: dict[str, Any] = {
    "n_fft": 512,
    "win_length": 400,
    "log_mel": True,
    "hidden": 768,
    "window": 80,
    "window_hop": 40,
}


def load_embedder(name: str) -> DVector:
    """`resemblyzer` (fetched once, checksummed), or the path of an embedder file; in evaluation mode.

    Files are recognised by their keys: Resemblyzer's `pretrained.pt`, the public VoiceFilter
    re-implementation's `embedder.pt`, and a separator checkpoint of this project (its embedder is taken).
    Raises UserError for a missing, unknown or partial file.
    """
    path = fetch("resemblyzer", DOWNLOADS) if name == "resemblyzer" else Path(name)
    content = load_checkpoint(path)
    embedder = embedder_from_content(content, str(path))
    for parameter in embedder.parameters():
        parameter.requires_grad_(False)
    return embedder.eval()


def embedder_from_content(content: dict[str, Any], where: str) -> DVector:
    """Builds the embedder that a loaded file holds, by its keys and shapes, strictly."""
    if isinstance(content.get("embedder"), dict):
        embedder = DVector(**content["embedder"]["options"])
        return _load(embedder, content["embedder"]["state"], where)
    state = content.get("model_state", content)
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if "linear.weight" in state and "lstm.weight_ih_l0" in state:
        state = {key: value for key, value in state.items() if not key.startswith("similarity_")}
        return _load(DVector(**RESEMBLYZER), state, where)
    if "proj.linear_layer.weight" in state:
        state = {key.replace("proj.linear_layer.", "linear."): value for key, value in state.items()}
        return _load(DVector(**MINDSLAB), state, where)
    found = ", ".join(sorted(map(str, content))[:5]) or "none"
    raise UserError(
        f"{where}: no known embedder: expected the keys of Resemblyzer (lstm.*, linear.*) or of the public "
        f"re-implementation (lstm.*, proj.linear_layer.*), found {found}"
    )


def _load(embedder: DVector, state: dict[str, Tensor], where: str) -> DVector:
    own = embedder.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or extra or wrong:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unexpected {', '.join(extra)}"] if extra else []
        parts += [f"wrong shape {', '.join(wrong)}"] if wrong else []
        raise UserError(f"{where}: not a complete embedder: {'; '.join(parts)}")
    embedder.load_state_dict(state)
    return embedder
