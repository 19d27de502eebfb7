"""ONNX graphs as a mask network and as an embedder: they can be run, not trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.embedder import Embedder
from model.mask_network import MaskNetwork
from model.spectral import MelSpectrogram
from utils.errors import UserError

Shape = Sequence[int | str | None]
LENGTHS = (80, 160, 320, 640, 1280)
"""Frames that an embedder's graph is tried with: one whose windows were fixed when it was exported takes no
fewer than they span."""


class OnnxGraph(nn.Module):
    """A graph as a module; its bytes are part of the state, so checkpoints carry it.

    It runs on a CPU, or on a CUDA device where onnxruntime was built for one. Its only parameter holds
    nothing: whoever asks a network's parameters for their device gets an answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self._graph = torch.empty(0, dtype=torch.uint8)
        self._sessions: dict[str, Any] = {}

    @classmethod
    def load(cls, path: Path) -> OnnxGraph:
        """Raises UserError for a file that is missing or no graph that can be run."""
        if not path.is_file():
            raise UserError(f"{path}: no such ONNX file")
        graph = cls.of(path.read_bytes())
        try:
            graph.session(torch.device("cpu"))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return graph

    @classmethod
    def of(cls, content: bytes) -> OnnxGraph:
        """The graph of a file's content, not looked at yet."""
        graph = cls()
        # a buffer of no bytes is refused by torch, one zero by onnxruntime
        graph.set_extra_state(torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8))
        return graph

    @property
    def content(self) -> bytes:
        return self._graph.numpy().tobytes()

    def get_extra_state(self) -> Tensor:
        return self._graph

    def set_extra_state(self, state: Tensor) -> None:
        self._graph, self._sessions = state.cpu(), {}

    def __getstate__(self) -> dict[str, Any]:
        """Sessions cannot be copied; whoever has the bytes makes its own."""
        return {**self.__dict__, "_sessions": {}}

    @property
    def inputs(self) -> list[tuple[str, Shape]]:
        """Name and shape of every input; an axis of any length has a name or None."""
        return [(node.name, tuple(node.shape)) for node in self.session(torch.device("cpu")).get_inputs()]

    def session(self, device: torch.device) -> Any:
        """What runs the graph on a device. Raises UserError when there is no graph, or a broken one."""
        if not len(self._graph):
            raise UserError("network.kind onnx: comes from an ONNX file and can only be run, not trained")
        # here: only who runs a graph needs it
        import onnxruntime

        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        key = ",".join(providers)
        if key not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 4  # what goes wrong is raised, too
            try:
                self._sessions[key] = onnxruntime.InferenceSession(
                    self.content, options, [*providers, "CPUExecutionProvider"]
                )
            except _errors() as error:
                raise UserError(f"no ONNX graph that can be run ({_one_line(error)})") from error
        return self._sessions[key]

    def run(self, *inputs: Tensor) -> Tensor:
        """Tensors, each for the input with as many axes -> the first output, on the device of the first.

        Raises UserError for tensors that the graph does not take, and when gradients are asked for.
        """
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            raise UserError("an ONNX graph gives no gradients; take an embedder or network with weights")
        by_rank = {tensor.ndim: tensor for tensor in inputs}
        named = {name: by_rank.get(len(shape)) for name, shape in self.inputs}
        return self.run_named({name: tensor for name, tensor in named.items() if tensor is not None})[0]

    def run_named(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Tensors by the names of the inputs -> all outputs, on the device of the first. Raises UserError as
        `run`."""
        device = next(iter(inputs.values())).device
        feed = {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in inputs.items()}
        try:
            outputs = self.session(device).run(None, feed)
        except _errors() as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.values())
            raise UserError(f"the ONNX graph does not take {shapes} ({_one_line(error)})") from error
        return [torch.from_numpy(output).float().to(device) for output in outputs]

    @property
    def notes(self) -> dict[str, str]:
        """The texts that its maker has put into the file."""
        return dict(self.session(torch.device("cpu")).get_modelmeta().custom_metadata_map)


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises, which has no common class of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    named = [getattr(state, name) for name in dir(state)]
    own = [value for value in named if isinstance(value, type) and issubclass(value, Exception)]
    return (RuntimeError, ValueError, *own)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class OnnxMask(MaskNetwork):
    """A graph of magnitude [1, T, F] and embedding [1, D] to mask [1, T, F], such as ailia's."""

    def __init__(self, bins: int, embedding_dim: int, **options: Any) -> None:
        super().__init__(bins, embedding_dim, **options)
        self.graph = OnnxGraph()

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Mixture [B, T, F] and embedding [B, D] -> mask [B, T, F]. Raises UserError, see OnnxGraph.run."""
        embedding = self.condition(embedding)
        seen = self.see(mixture)  # [B, 1, T, F]
        rows = zip(seen) if embedding is None else zip(seen, embedding[:, None], strict=True)
        # one by one: an exported graph often takes a single example
        mask = torch.cat([self.graph.run(*row) for row in rows])
        if mask.shape != mixture.shape:
            raise UserError(
                f"the ONNX graph gives a mask of {tuple(mask.shape)} for a mixture of {tuple(mixture.shape)}"
            )
        return mask


class OnnxEmbedder(Embedder):
    """A graph of an utterance's mel frames [M, T] to its embedding [D], which cuts the windows itself.

    The front end is the public VoiceFilter re-implementation's, from which such graphs were exported.
    """

    front: MelSpectrogram
    samples_at_once = 1_000_000
    unit_length = False
    differentiable = False

    def __init__(
        self,
        dim: int = 256,
        mels: int = 40,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        sample_rate: int = 16000,
        shortest: int = 80,
    ) -> None:
        options: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        super().__init__(kind="onnx", **options)
        self.dim, self.sample_rate, self.n_fft = dim, sample_rate, n_fft
        self.hop_length, self.shortest = hop_length, shortest
        self.front = MelSpectrogram(sample_rate, n_fft, win_length, hop_length, mels, log=True)
        self.graph = OnnxGraph()

    @classmethod
    def load(cls, path: Path) -> OnnxEmbedder:
        """Raises UserError unless the file holds a graph that embeds mel frames."""
        graph = OnnxGraph.load(path)
        mels = cls().options["mels"]
        shape = graph.inputs[0][1] if len(graph.inputs) == 1 else ()
        if len(shape) != 2 or (isinstance(shape[0], int) and shape[0] != mels):
            raise UserError(
                f"{path}: no known embedder: expected one input of mel frames ({mels}, any length), "
                f"found {describe_inputs(graph)}"
            )
        dim, shortest = _first_answer(graph, mels, path)
        embedder = cls(dim=dim, shortest=shortest)
        embedder.graph = graph
        embedder.heard_others = True
        return embedder

    def vectors(self, features: Tensor) -> Tensor:
        return torch.stack([self.graph.run(window.T).flatten() for window in features])

    def embed_frames(self, features: Tensor, frames: Tensor) -> Tensor:
        own = zip(features, frames.tolist(), strict=True)
        return torch.stack([self.graph.run(utterance[:count].T).flatten() for utterance, count in own])


def _first_answer(graph: OnnxGraph, mels: int, path: Path) -> tuple[int, int]:
    """Values of the embedding, and the fewest frames of LENGTHS that the graph takes."""
    for frames in LENGTHS:
        try:
            return graph.run(torch.full((mels, frames), -6.0)).numel(), frames  # of silence
        except UserError as error:
            refusal = error
    raise UserError(f"{path}: {refusal}") from refusal


def describe_inputs(graph: OnnxGraph) -> str:
    """Such as `mag (1, T, 601), dvec (1, 256)`."""
    return ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in graph.inputs)
