"""A separator as ONNX graphs: written, and run again without PyTorch computing its networks."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config.load import check_config
from config.schema import Config
from model.embedder import Embedder
from model.foreign import build_embedder
from model.graph_parts import Marked, cut
from model.lite import Lite, LiteState
from model.mask_network import LayeredMask, MaskNetwork
from model.onnx_network import OnnxGraph
from model.separator import Separator
from utils.errors import UserError
from utils.files import atomic_file

FORMAT = "voice-separation-onnx-1"
SEPARATOR, EMBEDDER = "separator.onnx", "embedder.onnx"
OPSET = 17


class _StreamedLite(nn.Module):
    """The causal network with its state as tensors, as graphs want it."""

    def __init__(self, network: Lite, states: Sequence[str]) -> None:
        super().__init__()
        self.network, self.states = network, tuple(states)

    def forward(self, mixture: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = len(self.states)
        embedding = rest[0] if len(rest) > count else None
        before = LiteState(**dict(zip(self.states, rest[-count:], strict=True)))
        mask, state = self.network.stream(mixture, embedding, before)
        return mask, *named_state(state).values()


def export_separator(separator: Separator, folder: Path) -> list[Path]:
    """Writes the mask network and the embedder, if there is one, as graphs of any batch and length.

    `separator.onnx`: magnitude `mixture` [B, T, F] (real and imaginary parts [B, T, F, 2] for a complex mask)
    and `embedding` [B, D] to `mask`; the causal network also has its state before and after: `hidden`, `cell`
    [layers, B, H], `share` [B, 1] and, with `network.level_frames`, `level` [B, 2], zeros at the start, and
    what they are then, `hidden_after` and so on. `embedder.onnx`: windows of the embedder's front
    end `features` [B, T, M] to `vectors` [B, D]. Their metadata hold configuration and front end as JSON.
    """
    network, embedder = separator.network, separator.embedder
    if not isinstance(network, MaskNetwork) or separator.config.network.kind == "onnx":
        raise UserError("network.kind onnx: is a graph already")
    if embedder is not None and not embedder.differentiable:
        raise UserError("the embedder is a graph already: export a separator with one of weights")
    mixture, embedding = example(separator, 2, 48)
    inputs, names = [mixture], ["mixture"]
    if embedding is not None:
        inputs, names = [*inputs, embedding], [*names, "embedding"]
    module = alone(network)
    outputs, inside = ["mask"], []
    axes: dict[str, dict[int, str]] = {
        "mixture": {0: "batch", 1: "frames"},
        "mask": {0: "batch", 1: "frames"},
    }
    if embedding is not None:
        axes["embedding"] = {0: "batch"}
    if network.layered:
        module = Marked(network)
        inside = module.names
    elif isinstance(network, Lite):
        states = named_state(empty_state(separator.config, 2))
        module = _StreamedLite(network, list(states))
        inputs += list(states.values())
        names += list(states)
        outputs += [f"{name}_after" for name in states]
        for name in states:
            axes[name] = axes[f"{name}_after"] = {1 if name in ("hidden", "cell") else 0: "batch"}
    notes = {
        "format": FORMAT,
        "config": json.dumps(separator.config.model_dump()),
        "presence": json.dumps(separator.presence, default=_rounded),
    }
    paths = [folder / SEPARATOR]
    _write(module, inputs, paths[0], names, outputs, axes, notes, inside)
    if embedder is not None:
        paths.append(folder / EMBEDDER)
        features = embedder.features(torch.randn(2, embedder.sample_rate * 2))[:, : embedder.shortest]
        axes = {"features": {0: "batch", 1: "frames"}, "vectors": {0: "batch"}}
        notes = {"format": FORMAT, "embedder": json.dumps(embedder.options)}
        _write(_Vectors(embedder), [features], paths[1], ["features"], ["vectors"], axes, notes)
    return paths


def _rounded(tensor: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in tensor.tolist()]


def alone(network: MaskNetwork) -> nn.Module:
    """The network as a module without arguments that are None."""
    return network if network.embedding_dim else _Unconditioned(network)


class _Unconditioned(nn.Module):
    def __init__(self, network: MaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor) -> Tensor:
        mask: Tensor = self.network(mixture, None)
        return mask


class _Vectors(nn.Module):
    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, features: Tensor) -> Tensor:
        return self.embedder.vectors(features)


def example(separator: Separator, batch: int, frames: int) -> tuple[Tensor, Tensor | None]:
    """Random inputs of the mask network: mixture and embedding."""
    planes = (2,) if separator.network.planes == 2 else ()
    mixture = torch.randn(batch, frames, separator.spectral.bins, *planes)
    dim = separator.network.embedding_dim
    return mixture if planes else mixture.abs(), torch.randn(batch, dim) if dim else None


def empty_state(config: Config, batch: int) -> LiteState:
    """The state of the causal network before the first frame."""
    options = config.network
    assert options.kind == "lite"
    hidden = torch.zeros(options.lstm_layers, batch, options.lstm_dim)
    level = torch.zeros(batch, 2) if options.level_frames else None
    return LiteState(hidden, torch.zeros_like(hidden), torch.zeros(batch, 1), level)


def named_state(state: LiteState) -> dict[str, Tensor]:
    """What the state holds, by the names that a graph's inputs have."""
    return {name: value for name, value in state._asdict().items() if value is not None}


@torch.no_grad()
def _write(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    names: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
    notes: dict[str, str],
    inside: Sequence[str] = (),
) -> None:
    """The module's outputs behind `outputs` are values `inside` the graph, which only get their names."""
    import onnx

    with atomic_file(path) as temporary, warnings.catch_warnings():
        # of the exporter's age (its successor cannot yet do all of these networks), of checks of shapes that
        # are not part of a graph, and of LSTMs in batches, which are compared afterwards
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            str(temporary),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[*outputs, *inside],
            dynamic_axes=axes,
        )
        graph = onnx.load(str(temporary))
        del graph.graph.output[len(outputs) :]
        for key, value in notes.items():
            graph.metadata_props.add(key=key, value=value)
        onnx.save(graph, str(temporary))


# ---- and back


class ExportedMask(MaskNetwork):
    """A mask network of ours that runs as a graph."""

    def __init__(self, graph: OnnxGraph, like: MaskNetwork) -> None:
        super().__init__(like.bins, like.embedding_dim, "complex" if like.planes == 2 else "sigmoid")
        self.graph, self._multiple = graph, like.frame_multiple

    @property
    def frame_multiple(self) -> int:
        return self._multiple

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        inputs = {"mixture": mixture}
        if (embedding := self.condition(embedding, len(mixture))) is not None:
            inputs["embedding"] = embedding
        return self.graph.run_named(inputs)[0]


_CUTTING = Lock()
"""Several recordings may go through one graph at the same time: it is cut once."""


class ExportedLayers(ExportedMask):
    """A network of bidirectional LSTMs, or several, as a graph, which long recordings go through layer by
    layer unless somebody, or an older export.py, has made it in another way."""

    def __init__(self, graph: OnnxGraph, like: MaskNetwork) -> None:
        super().__init__(graph, like)
        self._like = like.layered
        self._pieces: list[LayeredMask] | None = None

    @property
    def layered(self) -> list[LayeredMask]:
        with _CUTTING:
            if self._pieces is None:
                self._pieces = self._cut()
                self._like = []  # whose weights nobody needs any more
            return self._pieces

    def _cut(self) -> list[LayeredMask]:
        try:
            return [*cut(self.graph, self._like)]
        except (UserError, ValueError, KeyError, IndexError) as error:
            tqdm.write(  # which leaves progress bars whole
                f"NOTE: this graph cannot be cut ({error}): long recordings go through it in chunks, "
                "which is another estimate; export.py writes one that can be cut",
                file=sys.stderr,
            )
            return []


class ExportedLite(Lite):
    """The causal network as a graph with its state."""

    def __init__(self, graph: OnnxGraph, like: Lite, config: Config) -> None:
        MaskNetwork.__init__(self, like.bins, like.embedding_dim)
        self.graph, self._config = graph, config
        self.suppression, self.level_frames = like.suppression, like.level_frames

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        return self.stream(mixture, embedding, None)[0]

    def stream(
        self, mixture: Tensor, embedding: Tensor | None, state: LiteState | None
    ) -> tuple[Tensor, LiteState]:
        inputs = {"mixture": mixture}
        if (embedding := self.condition(embedding, len(mixture))) is not None:
            inputs["embedding"] = embedding
        state = empty_state(self._config, len(mixture)) if state is None else state
        inputs |= named_state(state)
        mask, *left = self.graph.run_named(inputs)
        return mask, LiteState(**dict(zip(named_state(state), left, strict=True)))


def with_graphs(
    separator: Separator, separator_graph: OnnxGraph, embedder_graph: OnnxGraph | None
) -> Separator:
    """The separator with graphs in the place of its networks."""
    network = separator.network
    if isinstance(network, Lite):
        separator.network = ExportedLite(separator_graph, network, separator.config)
    elif network.layered:
        separator.network = ExportedLayers(separator_graph, network)
    else:
        separator.network = ExportedMask(separator_graph, network)
    if separator.embedder is not None and embedder_graph is not None:
        graph = embedder_graph
        separator.embedder.compute_by(lambda features: graph.run_named({"features": features})[0])
    return separator.eval()


def is_exported(graph: OnnxGraph) -> bool:
    return graph.notes.get("format") == FORMAT


def exported_separator(path: Path, graph: OnnxGraph) -> Separator:
    """What `export_separator` wrote, with the embedder's graph beside it. Raises UserError where it is
    incomplete."""
    if "config" not in graph.notes:
        raise UserError(f"{path}: is the graph of an embedder; a separator is wanted")
    config = check_config(_note(graph, "config", path) or {}, str(path))
    embedder, embedder_graph = None, None
    if config.network.embedding == "reference":
        beside = path.with_name(EMBEDDER)
        embedder_graph = OnnxGraph.load(beside)
        options = _note(embedder_graph, "embedder", beside)
        if options is None:
            raise UserError(f"{beside}: is no embedder that export.py wrote")
        embedder = build_embedder(options).eval()
        for parameter in embedder.parameters():  # the graph has the weights; the same in every process
            parameter.data.zero_()
    separator = Separator(config, embedder)
    separator.presence = _note(graph, "presence", path)
    return with_graphs(separator, graph, embedder_graph)


def _note(graph: OnnxGraph, name: str, path: Path) -> dict[str, Any] | None:
    """The note of that name, if there is one. Raises UserError for what export.py does not write."""
    text = graph.notes.get(name, "null")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, dict | None):
        raise UserError(f"{path}: a damaged note {name!r} ({text[:40]!r})")
    return value


def through_graphs(separator: Separator) -> Separator:
    """The same separator, its networks run as graphs."""
    with TemporaryDirectory() as folder:
        separator_graph, *rest = map(OnnxGraph.load, export_separator(separator, Path(folder)))
    return with_graphs(separator, separator_graph, rest[0] if rest else None)


def quantize(path: Path, folder: Path) -> Path:
    """Writes the graph with weights of 8 bits (matrix products and LSTMs; activations as they come) below
    `folder`, under its name."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(parents=True, exist_ok=True)
    small = folder / path.name
    quantize_dynamic(
        path, small, op_types_to_quantize=["MatMul", "Gemm", "LSTM"], weight_type=QuantType.QInt8
    )
    return small
