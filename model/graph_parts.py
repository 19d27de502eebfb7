"""The graph of a network of bidirectional LSTMs, cut into what lies between them and their directions: a long
recording then goes through it as through the network itself (model/long_recurrence.py).

The graph stays one file: export.py gives the tensors at which it is cut their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.layers import Layer, OneWay, State
from model.mask_network import LayeredMask, MaskNetwork
from model.onnx_network import OnnxGraph
from utils.errors import UserError

LSTMS = ("LSTM", "DynamicQuantizeLSTM")
STATE_INPUTS = (5, 6)
"""Of a node in LSTMS: its hidden and cell state."""


class Stages:
    """The names of LayeredMask.stages in a graph, of one network or of a member of several."""

    def __init__(self, layers: int, member: int | None) -> None:
        start = "" if member is None else f"member_{member}_"
        self.levelled, self.mask = f"{start}levelled", f"{start}mask_of_steps"
        self.features = [f"{start}features_{layer}" for layer in range(layers + 1)]

    @property
    def names(self) -> list[str]:
        """In their order."""
        return [self.levelled, *self.features, self.mask]


def stages_of(networks: list[LayeredMask]) -> list[Stages]:
    """The names of each network's stages."""
    alone = len(networks) == 1
    return [
        Stages(sum(1 for _ in network.recurrences()), None if alone else member)
        for member, network in enumerate(networks)
    ]


class Marked(nn.Module):
    """A network that is `layered`, which also gives what its graph is cut at: mixture [B, T, F(, 2)] and
    embedding [B, D] -> (mask [B, T, F(, 2)], *stages of every member)."""

    def __init__(self, network: MaskNetwork) -> None:
        super().__init__()
        self.network = network

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        return [name for stages in stages_of(self.network.layered) for name in stages.names]

    def forward(self, mixture: Tensor, embedding: Tensor | None = None) -> tuple[Tensor, ...]:
        stages = [list(network.stages(mixture, embedding)) for network in self.network.layered]
        masks = [own[-1][:, : mixture.shape[1]] for own in stages]
        mask = masks[0] if len(masks) == 1 else torch.stack(masks).mean(0)
        return mask, *(stage for own in stages for stage in own)


class GraphLayer(Layer):
    """A bidirectional LSTM of a graph and what surrounds it, with the sizes of the layer that it is `like`.

    The LSTM may have several rows for one of features, such as one a band: [S, B*K, W] for [B, S, K*W].
    """

    def __init__(self, scissors: _Scissors, here: str, behind: str, like: Layer) -> None:
        self.input_size, self.hidden_size = like.input_size, like.hidden_size
        self.output_size = like.output_size
        node = scissors.first_lstm(here, behind)
        x, y = node.input[0], node.output[0]
        self._before = scissors.between([here, *scissors.embedding], x)
        self._after = scissors.between([here, y, *scissors.embedding], behind)
        self._ways = scissors.one_way(node, 0), scissors.one_way(node, 1)
        self._names, self._hidden = (here, y), self._ways[0].hidden_size

    def before(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        rows = self._before.run_named({self._names[0]: x, **_given(embedding)})[0]
        return rows.unflatten(1, (len(x), -1)).transpose(0, 1).flatten(2)

    def after(self, x: Tensor, y: Tensor, embedding: Tensor | None) -> Tensor:
        both = y.unflatten(2, (2, -1, self._hidden)).permute(1, 2, 0, 3, 4).flatten(2, 3)  # [S, 2, B*K, H]
        inputs = dict(zip(self._names, (x, both), strict=True)) | _given(embedding)
        return self._after.run_named(inputs)[0]

    def directions(self) -> tuple[OneWay, OneWay]:
        return self._ways


class GraphDirection:
    """A direction of a graph's LSTM: x [B, S, K*W] and the state before -> (y [B, S, K*H], the state behind),
    its K rows beside one another."""

    def __init__(self, graph: OnnxGraph, width: int, hidden_size: int) -> None:
        self.graph, self.width, self.hidden_size = graph, width, hidden_size

    def __call__(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        rows = x.transpose(0, 1).unflatten(2, (-1, self.width))  # [S, B, K, W]
        zeros = torch.zeros(1, rows.shape[1] * rows.shape[2], self.hidden_size)
        hidden, cell = state or (zeros, zeros)
        inputs = {"x": rows.flatten(1, 2), "hidden": hidden, "cell": cell}
        y, hidden, cell = self.graph.run_named(inputs)
        return y[:, 0].unflatten(1, rows.shape[1:3]).flatten(2).transpose(0, 1), (hidden, cell)


class GraphMember(LayeredMask):
    """A network, or a member of several, cut out of a graph that `Marked` was written to, layer by layer."""

    def __init__(self, scissors: _Scissors, stages: Stages, like: LayeredMask) -> None:
        mask = "complex" if like.planes == 2 else "sigmoid"
        super().__init__(like.bins, like.embedding_dim, mask)  # type: ignore[arg-type]
        self.stack, self.level_frames, self._names = like.stack, like.level_frames, stages
        self._enter = scissors.between([stages.levelled], stages.features[0])
        self._leave = scissors.between([stages.features[-1]], stages.mask)
        self._layers = [
            GraphLayer(scissors, here, behind, layer)
            for here, behind, layer in zip(
                stages.features, stages.features[1:], like.recurrences(), strict=False
            )
        ]

    def enter(self, levelled: Tensor) -> Tensor:
        return self._enter.run_named({self._names.levelled: levelled})[0]

    def recurrences(self) -> Iterator[GraphLayer]:
        return iter(self._layers)

    def leave(self, x: Tensor) -> Tensor:
        return self._leave.run_named({self._names.features[-1]: x})[0]


def cut(graph: OnnxGraph, like: list[LayeredMask]) -> list[GraphMember]:
    """The networks of a graph that `Marked` was written to, which are `like` these, in pieces. Raises
    UserError for one that cannot be cut, because somebody or an older export.py made it another way."""
    stages = stages_of(like)
    scissors = _Scissors(graph, [name for own in stages for name in own.names])
    members = [GraphMember(scissors, *pair) for pair in zip(stages, like, strict=True)]
    scissors.try_all()
    return members


class _Scissors:
    """Cuts pieces out of a graph that has values of these names."""

    def __init__(self, graph: OnnxGraph, names: list[str]) -> None:
        import onnx
        from onnx.utils import Extractor

        self.model = model = onnx.load_from_string(graph.content)
        self.embedding = [name for name, _ in graph.inputs if name == "embedding"]
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        if missing := [name for name in names if name not in self._makers]:
            raise UserError(f"it has no {missing[0]!r}")
        lstms = [node for node in model.graph.node if node.op_type in LSTMS]
        ends = {*names, *(name for node in lstms for name in (node.input[0], node.output[0]))}
        del model.graph.value_info[:]
        model.graph.value_info.extend(map(_value, sorted(ends)))
        self._extractor = Extractor(model)
        self._pieces: list[OnnxGraph] = []

    def try_all(self) -> None:
        """Raises UserError where a piece that was cut out cannot be run, such as one of another precision."""
        for piece in self._pieces:
            piece.session(torch.device("cpu"))

    def first_lstm(self, here: str, behind: str) -> Any:
        """Of the nodes between two values the LSTM that reads nothing of another one. Raises UserError where
        there is none, or one whose weights are not part of the graph."""
        seen, waiting = {here}, [behind]
        while waiting:
            name = waiting.pop()
            if name not in seen and name in self._makers:
                waiting.extend(self._makers[name].input)
            seen.add(name)
        between = (node for node in self.model.graph.node if node.op_type in LSTMS and node.output[0] in seen)
        node = next(between, None)  # a graph's nodes are in the order in which they read of one another
        if node is None:
            raise UserError(f"it has no LSTM between {here!r} and {behind!r}")
        if missing := [name for name in node.input[1:3] if name not in self._weights]:
            raise UserError(f"its weights {missing[0]!r} are no constants")
        return node

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
        # weights [directions, 4H, W], of 8 bits [directions, W, 4H]
        axis = 2 if node.op_type == "LSTM" else 1
        width = int(self._weights[node.input[1]].dims[axis])
        piece = self._piece(helper.make_model(graph, **versions))
        return GraphDirection(piece, width, attributes["hidden_size"].i)


def _value(name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _given(embedding: Tensor | None) -> dict[str, Tensor]:
    return {} if embedding is None else {"embedding": embedding}
