"""Other projects' separators -> ours: recognised by their keys, checked strictly, with the front end that
belongs to them.

Read are the public VoiceFilter re-implementation's checkpoints, its partial-convolution branch and its forks
(the same weights, alone or under another name), VoiceSplit's, and ailia's ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.load import check_config
from config.schema import Config
from model.dvector import DVector
from model.embedder import Embedder
from model.foreign import (
    CONTAINERS,
    MARKS,
    MINDSLAB,
    build_embedder,
    mismatches,
    require_weights,
    separator_weights,
)
from model.foreign_settings import Settings, settings_of
from model.onnx_network import OnnxEmbedder, OnnxGraph, OnnxMask, describe_inputs
from model.separator import FORMAT, Separator
from model.voicefilter import VoiceFilter
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked")
VOICESPLIT = "VoiceSplit"
LAST_CHANNELS = 8
"""Of the last convolution, in all of them."""


@dataclass(frozen=True)
class Foreign:
    """What a file holds: the `family` that it was recognised as, its front end, the options of our network
    and the weights under our names; `assumed` is what neither it nor the caller said."""

    family: str
    where: str
    settings: Settings
    network: dict[str, Any]
    state: dict[str, Any]
    bins: int
    embedding_dim: int
    assumed: tuple[str, ...] = ()

    def build(self, embedder: Embedder | None, name: str = "") -> Separator:
        """A separator of ours, in evaluation mode, with the embedder that the caller brings, and its `name`.

        Raises UserError when the network needs an embedder and there is none, or one of another width.
        """
        config = self.config()
        if name:
            config = config.model_copy(update={"embedder": name})
        if self.embedding_dim and embedder is None:
            raise UserError(f"{self.where}: brings no embedder; name the one it was trained with by -e")
        if self.embedding_dim and embedder and embedder.dim != self.embedding_dim:
            raise UserError(
                f"{self.where}: needs an embedding of {self.embedding_dim} values, the embedder gives "
                f"{embedder.dim}"
            )
        if self.embedding_dim and embedder is not None:
            embedder = self._in_windows(embedder)
        separator = Separator(config, embedder if self.embedding_dim else None)
        separator.network.load_state_dict(self.state)
        return separator.eval()

    def _in_windows(self, embedder: Embedder) -> Embedder:
        """The public re-implementation's embedder in the windows that the file says; any other as it is."""
        windows = self.settings.windows
        if not (windows and isinstance(embedder, DVector) and _is_published(embedder)):
            return embedder
        options = {**embedder.options, "window": windows[0], "window_hop": windows[1]}
        if options == embedder.options:
            return embedder
        other = build_embedder(options)
        other.load_state_dict(embedder.state_dict())
        other.heard_others, other.training_speakers = embedder.heard_others, embedder.training_speakers
        return other.requires_grad_(False).eval()

    def config(self) -> Config:
        """Raises UserError for sizes that do not go together."""
        sizes = dict(self.settings.audio)
        network = {**self.network, "input": "db", "embedding": "reference" if self.embedding_dim else "none"}
        # fp32: the estimates are those of the original code
        audio = {**sizes, "pad_mode": "reflect"}
        tree = {"audio": audio, "network": network, "train": {"precision": "fp32"}}
        config = check_config(tree, self.settings.source)
        if self.bins != sizes["n_fft"] // 2 + 1:
            raise UserError(
                f"{self.where}: its mask has {self.bins} bins, n_fft {sizes['n_fft']} of "
                f"{self.settings.source} gives {sizes['n_fft'] // 2 + 1}"
            )
        return config

    def describe(self, embedder: Embedder | None = None) -> str:
        """What was recognised in two lines, and then what was assumed, and what is unusual about the embedder
        that it is used with."""
        audio, options = self.settings.audio, dict(self.network)
        if options.pop("kind") == "onnx":
            size = f"{sum(len(graph) for graph in self.state.values()):,} bytes"
        else:
            counted = (v for k, v in self.state.items() if not k.endswith(NOT_LEARNT))
            size = f"{sum(v.numel() for v in counted):,} parameters"
        if options.get("lstm") == "none":
            del options["lstm_dim"]
        details = [size, *(f"{k} {v}" for k, v in options.items()), f"embedding of {self.embedding_dim}"]
        fits = self.embedding_dim and (embedder is None or _is_published(embedder))
        windows = self.settings.windows if fits else None
        frames = f", embedder windows of {windows[0]} frames every {windows[1]}" if windows else ""
        notes = []
        if self.assumed:
            notes.append(f"{self.where} does not say, assumed: {', '.join(self.assumed)}")
        if embedder is not None and not self.embedding_dim:
            notes.append(f"{self.where} works without a reference: the embedder is not used")
        unusual = embedder is not None and self.embedding_dim and not _is_published(embedder)
        if unusual and self.family != VOICESPLIT:
            notes.append(
                "the embedder is not of the re-implementation's kind (embedder.pt), which such weights know; "
                "the estimate is worth something only if these were trained with this one"
            )
        return "\n".join(
            [
                f"{self.where}: {self.family} ({', '.join(details)})",
                f"front end: clipped decibels, {audio['sample_rate']} Hz, n_fft {audio['n_fft']}, "
                f"hop {audio['hop_length']}, window {audio['win_length']}{frames}, "
                f"from {self.settings.source}",
                *(f"NOTE: {note}" for note in notes),
            ]
        )


def _is_published(embedder: Embedder) -> bool:
    """Whether it is the public re-implementation's, as a graph too."""
    if isinstance(embedder, OnnxEmbedder):
        return True
    if not isinstance(embedder, DVector) or embedder.unit_length:
        return False
    theirs = {key: MINDSLAB[key] for key in ("n_fft", "hidden")}
    theirs |= {"mels": 40, "log_mel": True, "layers": 3, "projection": 0, "relu": False}
    return all(embedder.options[key] == value for key, value in theirs.items())


def read_foreign(
    path: Path | str, settings: Settings | None = None, activation: str | None = None
) -> Foreign:
    """Recognises another project's separator. `settings` stand in for those that the file lacks, then the
    published defaults; `activation` (relu or mish) says what no weight and no configuration tells.

    Raises UserError for a missing, unknown or partial file, and for what is not supported.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        if activation:
            raise UserError(f"--activation {activation}: {path} is a graph, which has its own")
        return _read_graph(path, settings or Settings())
    return foreign_from_content(load_checkpoint(path), str(path), settings, activation)


def is_foreign(content: Mapping[str, Any]) -> bool:
    """Whether a loaded checkpoint holds the weights of another project's separator."""
    return content.get("format") != FORMAT and bool(separator_weights(content))


def foreign_from_content(
    content: Mapping[str, Any], where: str, settings: Settings | None = None, activation: str | None = None
) -> Foreign:
    """The same for a checkpoint that is loaded."""
    state = separator_weights(content)
    if not state:
        found = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        known = f"{', '.join(sorted(MARKS))}, alone or below {', '.join(CONTAINERS)}"
        raise UserError(f"{where}: no known separator: expected the keys {known}; found {found}")
    if content.get("adapter") is not None:
        raise UserError(f"{where}: its embedding goes through an adapter, which is not supported")
    own = settings_of(content, where)
    settings = own or settings or Settings()
    partial = "conv.0.weight" in state
    options, bins, dim = _sizes(state, partial, settings, where)
    chosen = activation or settings.activation or "relu"
    if activation and own and own.activation and activation != own.activation:
        raise UserError(f"{own.source}: says {own.activation}, not {activation}")
    options |= {"activation": chosen, "partial_convolution": partial}
    require_weights(state, where)
    with torch.device("meta"):
        expected = VoiceFilter(bins, dim, **options).state_dict()
    for key in expected:  # PyTorch before 0.4.1 did not count
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.tensor(0))
    if found := mismatches(expected, state):
        raise UserError(f"{where}: not a complete separator: {found}")
    assumed: tuple[str, ...] = () if settings.said else ("the published front end",)
    if not (activation or settings.activation or "hp_str" in content):
        assumed += (f"activation {chosen} (--activation)",)
    network = {"kind": "voicefilter", **options}
    return Foreign(_family(content, partial), where, settings, network, state, bins, dim, assumed)


def _family(content: Mapping[str, Any], partial: bool) -> str:
    if "config_str" in content:
        return VOICESPLIT
    name = "the public VoiceFilter re-implementation"
    name = name if "hp_str" in content else f"a fork of {name}"
    return f"{name} (partial convolutions)" if partial else name


def _sizes(
    state: Mapping[str, Tensor], partial: bool, settings: Settings, where: str
) -> tuple[dict[str, Any], int, int]:
    """Options of the network, bins and values of the embedding, out of the shapes; where a tensor is missing
    the published ones, for the check that follows to name it."""

    def size(key: str, axis: int, published: int) -> int:
        tensor = state.get(key)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else published

    recurrent = [key for key in state if key.startswith("lstm.")]
    direction = "bidirectional" if any("reverse" in key for key in recurrent) else "unidirectional"
    bins = size("fc2.weight", 0, settings.audio["n_fft"] // 2 + 1)
    options = {
        "channels": size("conv.0.weight" if partial else "conv.1.weight", 0, 64),
        "lstm": direction if recurrent else "none",
        "lstm_dim": size("lstm.weight_hh_l0", 1, 400),
        "fc1_dim": size("fc1.weight", 0, 600),
    }
    features = LAST_CHANNELS * bins
    width = size("lstm.weight_ih_l0" if recurrent else "fc1.weight", 1, features + 256)
    if width < features:
        first = "the LSTM" if recurrent else "fc1 (there is no LSTM)"
        raise UserError(
            f"{where}: not a complete separator: {first} takes {width} values, its {bins} bins alone give "
            f"{features}"
        )
    # one without a reference may still carry the section of an embedder
    dim = settings.embedding_dim or width - features if width > features else 0
    return options, bins, dim


def _read_graph(path: Path, settings: Settings) -> Foreign:
    """ailia's: magnitude [1, T, F] and embedding [1, D] -> mask."""
    graph = OnnxGraph.load(path)
    shapes = {len(shape): shape for _, shape in graph.inputs}
    if set(shapes) not in ({2, 3}, {3}) or len(graph.inputs) != len(shapes):
        raise UserError(
            f"{path}: no known separator: expected the inputs mag (1, T, F) and dvec (1, D), found "
            f"{describe_inputs(graph)}"
        )
    bins, dim = shapes[3][2], shapes[2][1] if 2 in shapes else 0
    bins = bins if isinstance(bins, int) else settings.audio["n_fft"] // 2 + 1
    dim = dim if isinstance(dim, int) else settings.embedding_dim or 256
    network = OnnxMask(bins, dim, input="db").eval()
    network.graph = graph
    try:
        with torch.inference_mode():
            network(torch.ones(1, 100, bins), torch.ones(1, dim))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    state = dict(network.state_dict())
    assumed = () if settings.said else ("the published front end",)
    return Foreign("ONNX mask network", str(path), settings, {"kind": "onnx"}, state, bins, dim, assumed)
