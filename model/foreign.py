"""Other projects' checkpoints -> our modules, with the front end that belongs to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.download import fetch
from model.dvector import DVector
from model.embedder import Embedder
from model.onnx_network import OnnxEmbedder
from model.vggm import VggM
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

DOWNLOADS = Path(__file__).parents[1] / "data"

RESEMBLYZER: dict[str, Any] = {
    "n_fft": 400,
    "log_mel": False,
    "hidden": 256,
    "relu": True,
    "window": 160,
    "window_hop": 80,
    "renormalize": True,
    "min_level_db": -30.0,
}
"""Resemblyzer's and Real-Time-Voice-Cloning's, which are one network with one front end."""
MINDSLAB: dict[str, Any] = {"n_fft": 512, "hidden": 768, "window": 80, "window_hop": 40}
"""The public VoiceFilter re-implementation's; the mean over windows keeps its length."""
HARRYVOLEK: dict[str, Any] = {"n_fft": 512, "hidden": 768, "window": 160, "window_hop": 80}
"""The front end and network of the same, but trained on crops of 140 to 180 frames, so heard at 160."""


def load_embedder(name: str) -> Embedder:
    """`resemblyzer` (fetched once, checksummed), or the path of an embedder file; in evaluation mode.

    Files are recognised by their keys and shapes: Resemblyzer's `pretrained.pt` and
    Real-Time-Voice-Cloning's `encoder.pt`, the public VoiceFilter re-implementation's `embedder.pt`,
    HarryVolek's GE2E, ailia's `embedder.onnx`, and this project's checkpoints (a separator's embedder is
    taken). Raises UserError for a missing, unknown or partial file.
    """
    path = fetch("resemblyzer", DOWNLOADS) if name == "resemblyzer" else Path(name)
    embedder: Embedder
    if path.suffix.lower() == ".onnx":
        embedder = OnnxEmbedder.load(path)
    else:
        embedder = embedder_from_content(load_checkpoint(path), str(path))
    for parameter in embedder.parameters():
        parameter.requires_grad_(False)
    return embedder.eval()


CONTAINERS = ("model", "state_dict", "model_state_dict")
"""Where the weights of a separator's file are, if they are not the file."""
WRAPPERS = re.compile(r"^(?:(?:module|model)\.)+")
MARKS = {"conv.0.weight", "conv.1.weight", "lstm.weight_ih_l0", "fc1.weight", "fc2.weight"}
"""Keys of which some are in every separator's layout, and which embedders (but for the LSTM's) lack."""


def separator_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of another project's separator without what wraps their names, or nothing."""
    for candidate in (*(content.get(name) for name in CONTAINERS), content):
        state = unwrapped(candidate)
        if len(MARKS & state.keys()) > 1:
            return state
    return {}


def unwrapped(candidate: object) -> dict[str, Tensor]:
    """The tensors of a dict, their names without `module.` and `model.` in front."""
    items = candidate.items() if isinstance(candidate, Mapping) else ()
    return {WRAPPERS.sub("", str(name)): value for name, value in items if isinstance(value, Tensor)}


def require_weights(state: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError for tensors that are no weights: complex or whole numbers, NaN, infinity, sparse ones,
    and ones without, or of fewer, values than they say."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UserError(f"{where}: {name} is no dense tensor ({tensor.layout}, {tensor.dtype})")
        if not tensor.numel():
            raise UserError(f"{where}: {name} holds no values")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(f"{where}: {name} {tuple(tensor.shape)} holds fewer values than it says")
        if not (tensor.is_floating_point() or name.endswith("num_batches_tracked")):
            raise UserError(
                f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')} numbers, no weights"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinity")


def build_embedder(options: dict[str, Any]) -> Embedder:
    """The embedder that `kind` (dvector where there is none) and its other options describe, untrained."""
    arguments = {key: value for key, value in options.items() if key != "kind"}
    match options.get("kind", "dvector"):
        case "dvector":
            return DVector(**arguments)
        case "vggm":
            return VggM(**arguments)
        case "onnx":
            return OnnxEmbedder(**arguments)
        case other:
            raise ValueError(f"kind {other!r}: expected dvector, vggm or onnx")


def embedder_from_content(content: dict[str, Any], where: str) -> Embedder:
    """Builds the embedder that a loaded file holds, by its keys and shapes, strictly."""
    if isinstance(content.get("embedder"), dict):
        return _own(content["embedder"], where)
    if separator_weights(content):
        raise UserError(f"{where}: is a separator without its embedder, where an embedder is wanted")
    candidates = (content.get(name) for name in ("model_state", *CONTAINERS))
    state = next(filter(None, map(unwrapped, candidates)), unwrapped(content))
    # where only the LSTM is left of a file, its width tells the families apart
    family = max(FAMILIES, key=lambda f: (len(f.names.keys() & state.keys()), f.hidden == _hidden(f, state)))
    if not family.names.keys() & state.keys():
        found = ", ".join(sorted(state or map(str, content))[:5]) or "none"
        known = "; ".join(f"{f.name}: {f.lstm}*, {f.linear}*" for f in FAMILIES)
        raise UserError(f"{where}: no known embedder: expected the keys of one of {known}; found {found}")
    state = {key: value for key, value in state.items() if key not in family.ignored}
    require_weights(state, where)
    embedder: Embedder = DVector(**{**family.options, **_sizes(family, state)})
    embedder.heard_others = True
    _check_complete(embedder, family.names, state, f"{where} ({family.name})")
    embedder.load_state_dict({own: state[theirs] for theirs, own in family.names.items()})
    return embedder


@dataclass(frozen=True)
class Family:
    """A layout: what its LSTM of three layers and its linear layer are called, and the front end.

    `ignored`: keys of the training.
    """

    name: str
    lstm: str
    linear: str
    options: dict[str, Any]
    ignored: tuple[str, ...] = ()

    @property
    def hidden(self) -> int:
        return int(self.options["hidden"])

    @property
    def names(self) -> dict[str, str]:
        """Their keys -> ours."""
        parts = [f"{what}_l{layer}" for layer in range(3) for what in RECURRENT]
        lstm = {f"{self.lstm}{part}": f"lstm.{part}" for part in parts}
        return lstm | {f"{self.linear}{part}": f"linear.{part}" for part in ("weight", "bias")}


RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
FAMILIES = (
    # Real-Time-Voice-Cloning's encoder is the same
    Family("Resemblyzer", "lstm.", "linear.", RESEMBLYZER, ("similarity_weight", "similarity_bias")),
    Family("mindslab", "lstm.", "proj.linear_layer.", MINDSLAB),
    Family("HarryVolek", "LSTM_stack.", "projection.", HARRYVOLEK),
)


def _hidden(family: Family, state: dict[str, Tensor]) -> int:
    recurrent = state.get(f"{family.lstm}weight_hh_l0")
    return recurrent.shape[-1] if recurrent is not None and recurrent.ndim == 2 else family.hidden


def _sizes(family: Family, state: dict[str, Tensor]) -> dict[str, int]:
    """The widths that the file has, where they are not the published ones."""
    weight = state.get(f"{family.linear}weight")
    dim = weight.shape[0] if weight is not None and weight.ndim == 2 else 256
    return {"hidden": _hidden(family, state), "dim": dim}


def _own(tree: dict[str, Any], where: str) -> Embedder:
    """An embedder of this project out of `Embedder.content()`."""
    try:
        embedder = build_embedder(tree["options"])
        state = tree["state"]
        _check_complete(embedder, {key: key for key in embedder.state_dict()}, state, where)
        embedder.load_state_dict(state)
        embedder.training_speakers = tuple(tree.get("training_speakers", ()))
        embedder.heard_others = bool(tree.get("heard_others", not embedder.training_speakers))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{where}: its embedder is damaged ({type(error).__name__}: {error})") from error
    return embedder


def _check_complete(
    embedder: Embedder, names: Mapping[str, str], state: Mapping[str, Tensor], where: str
) -> None:
    """Raises UserError unless the state has exactly the keys of `names` (theirs -> ours) in our shapes."""
    own = embedder.state_dict()
    if found := mismatches({theirs: own[name] for theirs, name in names.items()}, state):
        raise UserError(f"{where}: not a complete embedder: {found}")


def mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What a state lacks, has beyond the expected tensors, or has in another shape; empty if nothing."""
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        # an ONNX graph is as long as it is
        if key in state and state[key].shape != tensor.shape and not key.endswith("_extra_state")
    ]
    found = (("missing", missing), ("unexpected", extra), ("wrong shape", wrong))
    return "; ".join(f"{what} {_few(names)}" for what, names in found if names)


def _few(names: Sequence[str], most: int = 6) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
