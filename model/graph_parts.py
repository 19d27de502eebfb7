"""The graph of a network of bidirectional LSTMs, cut into what lies between them and their directions: a long
recording then goes through it as through the network itself (model/long_recurrence.py).

The graph stays one file: export.py gives the tensors at which it is cut their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.film_blstm import FilmBlstm, State
from model.onnx_network import OnnxGraph
from utils.errors import UserError

LEVELLED, FEATURES, STEPS_MASK = "levelled", "features_{}", "mask_of_steps"
"""The names of FilmBlstm.stages."""
LSTMS = ("LSTM", "DynamicQuantizeLSTM")
STATE_INPUTS = (5, 6)
"""Of a node in LSTMS: its hidden and cell state."""


class Marked(nn.Module):
    """The network, which also gives what its graph is cut at: (mask, *stages)."""

    def __init__(self, network: FilmBlstm) -> None:
        super().__init__()
        self.network = network

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        layers = range(len(list(self.network.recurrences())) + 1)
        return [LEVELLED, *map(FEATURES.format, layers), STEPS_MASK]

    def forward(self, mixture: Tensor, embedding: Tensor | None = None) -> tuple[Tensor, ...]:
        stages = list(self.network.stages(mixture, embedding))
        return stages[-1][:, : mixture.shape[1]], *stages


class GraphRecurrence:
    """A bidirectional LSTM of a graph and what surrounds it, as model.film_blstm.Recurrence."""

    def __init__(self, scissors: _Scissors, number: int) -> None:
        node = scissors.lstms[number]
        here, behind = FEATURES.format(number), FEATURES.format(number + 1)
        x, y = node.input[0], node.output[0]
        self._before = scissors.between([here, *scissors.embedding], x)
        self._after = scissors.between([here, y, *scissors.embedding], behind)
        self._ways = scissors.one_way(node, 0), scissors.one_way(node, 1)
        self._names, self.hidden_size = (here, y), self._ways[0].hidden_size
        self.input_size, self.output_size = scissors.width(node), 2 * self.hidden_size

    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        inputs = {self._names[0]: x, **_given(embedding)}
        return self._before.run_named(inputs)[0].transpose(0, 1)

    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        both = y.unflatten(2, (2, -1)).permute(1, 2, 0, 3)  # [S, 2, B, H]
        inputs = dict(zip(self._names, (x, both), strict=True)) | _given(embedding)
        return self._after.run_named(inputs)[0]

    def directions(self) -> tuple[GraphDirection, GraphDirection]:
        return self._ways


class GraphDirection:
    """A direction of a graph's LSTM: x [B, S, W] and the state before -> (y [B, S, H], the state behind)."""

    def __init__(self, graph: OnnxGraph, hidden_size: int) -> None:
        self.graph, self.hidden_size = graph, hidden_size

    def __call__(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        zeros = torch.zeros(1, len(x), self.hidden_size)
        hidden, cell = state or (zeros, zeros)
        inputs = {"x": x.transpose(0, 1), "hidden": hidden, "cell": cell}
        y, hidden, cell = self.graph.run_named(inputs)
        return y[:, 0].transpose(0, 1), (hidden, cell)


class Parts:
    """What a graph that `Marked` was written to does, layer by layer, as FilmBlstm. Raises UserError for one
    that cannot be cut, because somebody or an older export.py made it another way."""

    def __init__(self, graph: OnnxGraph) -> None:
        scissors = _Scissors(graph)
        layers = range(len(scissors.lstms))
        self._last = FEATURES.format(len(layers))
        self._enter = scissors.between([LEVELLED], FEATURES.format(0))
        self._leave = scissors.between([self._last], STEPS_MASK)
        self._recurrences = [GraphRecurrence(scissors, number) for number in layers]
        scissors.try_all()

    def recurrences(self) -> Iterator[GraphRecurrence]:
        return iter(self._recurrences)

    def enter(self, levelled: Tensor) -> Tensor:
        return self._enter.run_named({LEVELLED: levelled})[0]

    def leave(self, x: Tensor) -> Tensor:
        return self._leave.run_named({self._last: x})[0]


class _Scissors:
    def __init__(self, graph: OnnxGraph) -> None:
        import onnx
        from onnx.utils import Extractor

        self.model = model = onnx.load_from_string(graph.content)
        self.embedding = [name for name, _ in graph.inputs if name == "embedding"]
        self.lstms = [node for node in model.graph.node if node.op_type in LSTMS]
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        ends = {name for node in self.lstms for name in (node.input[0], node.output[0])}
        ends |= {LEVELLED, STEPS_MASK, *(FEATURES.format(i) for i in range(len(self.lstms) + 1))}
        made = {name for node in model.graph.node for name in node.output}
        weights = {node.input[place] for node in self.lstms for place in (1, 2)}
        if missing := sorted((ends - made) | (weights - self._weights.keys())):
            raise UserError(f"it has no {missing[0]!r}")
        del model.graph.value_info[:]
        model.graph.value_info.extend(map(_value, sorted(ends)))
        self._extractor = Extractor(model)
        self._pieces: list[OnnxGraph] = []

    def try_all(self) -> None:
        """Raises UserError where a piece that was cut out cannot be run, such as one of another precision."""
        for piece in self._pieces:
            piece.session(torch.device("cpu"))

    def between(self, inputs: list[str], output: str) -> OnnxGraph:
        """What computes `output` of `inputs`."""
        return self._piece(self._extractor.extract_model(inputs, [output]))

    def _piece(self, model: Any) -> OnnxGraph:
        self._pieces.append(OnnxGraph.of(model.SerializeToString()))
        return self._pieces[-1]

    def one_way(self, node: Any, direction: int) -> GraphDirection:
        """One direction of the node, 0 or 1, which takes its state from outside."""
        import onnx
        from onnx import helper, numpy_helper

        one = onnx.NodeProto()
        one.CopyFrom(node)
        weights = []
        for place, name in enumerate(node.input):
            if name in self._weights and place not in (0, *STATE_INPUTS):  # its first axis are the directions
                part = numpy_helper.to_array(self._weights[name])[direction : direction + 1]
                weights.append(numpy_helper.from_array(part, name))
        for place, name in zip((0, *STATE_INPUTS), ("x", "hidden", "cell"), strict=True):
            one.input[place] = name
        outputs = ["y", "hidden_after", "cell_after"]
        del one.output[:]
        one.output.extend(outputs)
        attributes = {attribute.name: attribute for attribute in one.attribute}
        attributes["direction"].s = b"forward"
        taken, given = ([_value(name) for name in names] for names in (["x", "hidden", "cell"], outputs))
        graph = helper.make_graph([one], "direction", taken, given, weights)
        versions = {"opset_imports": self.model.opset_import, "ir_version": self.model.ir_version}
        return GraphDirection(self._piece(helper.make_model(graph, **versions)), attributes["hidden_size"].i)

    def width(self, node: Any) -> int:
        """Of what a node's LSTM reads. Its weights are [directions, 4H, W], of 8 bits [directions, W, 4H]."""
        axis = 2 if node.op_type == "LSTM" else 1
        return int(self._weights[node.input[1]].dims[axis])


def _value(name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _given(embedding: Tensor | None) -> dict[str, Tensor]:
    return {} if embedding is None else {"embedding": embedding}
