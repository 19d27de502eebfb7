"""Graphs for other runtimes compute what PyTorch computes, and bring along what they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import export
import generator
import inference
from config.load import load_config
from datasets.store import Store
from model.dvector import DVector
from model.embedder import Embedder
from model.exported import export_separator, exported_separator, through_graphs
from model.onnx_network import OnnxGraph
from model.separator import Separator
from model.streaming import StreamingSeparator
from model.vggm import VggM
from tests.conftest import TINY, tone_voice
from utils.audio import write_audio
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

Runner = Callable[..., tuple[int, str, str]]
NETWORKS = {
    "film_blstm": ["network={kind: film_blstm, front_dim: 8, lstm_dim: 8, stack: 2}"],
    "blind_blstm": ["network={kind: blind_blstm, front_dim: 8, lstm_dim: 8, stack: 2, choice_dim: 5}"],
    "voicefilter": ["network={kind: voicefilter, channels: 2, lstm_dim: 4, fc1_dim: 6, activation: mish}"],
    "partial": [
        "network={kind: voicefilter, channels: 2, lstm: none, fc1_dim: 6, partial_convolution: true}"
    ],
    "band_split": ["network={kind: band_split, dim: 6, lstm_dim: 5, blocks: 2, level_frames: 9}"],
    "ensemble": [
        "network={kind: ensemble, members: [{kind: film_blstm, front_dim: 6, lstm_dim: 5, level_frames: 9}, "
        "{kind: band_split, dim: 6, lstm_dim: 5, blocks: 1, level_frames: 9}]}"
    ],
    "whole": ["network={kind: band_split, dim: 6, lstm_dim: 5, blocks: 3, stack: 2, whole_dim: 7}"],
    "unet": ["network={kind: unet, channels: [2, 3, 4], bin_step: 2}"],
    "complex": ["network={kind: unet, channels: [2, 3], mask: complex}", "store.kind=wave"],
    "unconditioned": ["network={kind: film_blstm, front_dim: 8, lstm_dim: 8, embedding: none}"],
    "lite": [
        "network={kind: lite, channels: 2, lstm_dim: 8, noise_type_dim: 4, suppression: adaptive}",
        "loss.noise_type=0.1",
    ],
    "lite_film": [
        "network={kind: lite, lstm_dim: 8, front: linear, front_dim: 6, injection: film, level_frames: 9}"
    ],
}


def separator_of(name: str) -> Separator:
    torch.manual_seed(0)
    frames = ["audio.n_fft=256", "audio.hop_length=64", "audio.win_length=256", "train.precision=fp32"]
    return Separator(load_config(None, [*NETWORKS[name], *frames]), DVector(hidden=8)).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_is_the_network_at_any_length(name: str, tmp_path: Path) -> None:
    separator = separator_of(name)
    paths = export_separator(separator, tmp_path)
    exported = exported_separator(paths[0], OnnxGraph.load(paths[0]))
    assert export.compare(separator, exported)  # raises where they differ
    mixture = np.stack([tone_voice(k, 1.33, k) for k in range(2)])
    reference = None if separator.embedder is None else tone_voice(0, 2.0, 7)
    ours, theirs = (s.separate(mixture, reference, rate=22050) for s in (separator, exported))
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert np.abs(ours).max() > 1e-3
    # it stands alone: names, free axes and the whole configuration are in the file
    session = onnxruntime.InferenceSession(paths[0])
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["config"])["audio"]["n_fft"] == 256
    shapes = {node.name: node.shape for node in session.get_inputs()}
    assert shapes["mixture"][:2] == ["batch", "frames"] and ("embedding" in shapes) == (
        name != "unconditioned"
    )


@pytest.mark.parametrize("name", ["lite", "lite_film"])
def test_the_causal_graph_carries_its_state(name: str, tmp_path: Path) -> None:
    separator = separator_of(name)
    exported = through_graphs(separator_of(name))
    mixture, embedding = torch.randn(2, 5000), torch.randn(2, 256)
    with torch.inference_mode():
        whole = separator(mixture, embedding)
    stream = StreamingSeparator(exported, embedding)
    parts = [stream(block) for block in mixture.split([1, 64, 700, 4235], dim=1)]
    torch.testing.assert_close(torch.cat([*parts, stream.flush()], dim=1), whole, atol=2e-5, rtol=0)


def test_vgg_m_is_exported_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    separator = Separator(load_config(None, NETWORKS["film_blstm"]), VggM()).eval()
    exported = through_graphs(separator)
    assert exported.embedder is not None
    features = torch.rand(2, 210, 513)
    with torch.inference_mode():
        found = exported.embedder.vectors(features)
        expected = VggM.vectors(separator.embedder, features)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("embedder", [VggM, partial(DVector, hidden=8)])
def test_references_are_embedded_by_the_graph(embedder: Callable[[], Embedder], tmp_path: Path) -> None:
    """Also in another process, which knows nothing but the files."""
    torch.manual_seed(0)
    separator = Separator(load_config(None, NETWORKS["film_blstm"]), embedder()).eval()
    waves = [torch.randn(16000), torch.randn(30000), torch.randn(20000)]
    assert separator.embedder is not None
    with torch.inference_mode():
        expected = separator.embedder.embed(waves)
    path = export_separator(separator, tmp_path)[0]
    prints = set()
    for _ in range(2):  # a batch that goes on knows the embedder again
        exported = exported_separator(path, OnnxGraph.load(path)).embedder
        assert exported is not None
        prints.add(exported.fingerprint())
        with torch.inference_mode():
            torch.testing.assert_close(exported.embed(waves), expected, atol=1e-4, rtol=1e-3)
    assert len(prints) == 1


def test_graphs_that_are_not_ours_or_not_whole_are_refused(tmp_path: Path, run: Runner) -> None:
    separator = separator_of("film_blstm")
    export_separator(separator, tmp_path)
    with pytest.raises(UserError, match="is the graph of an embedder"):
        exported_separator(tmp_path / "embedder.onnx", OnnxGraph.load(tmp_path / "embedder.onnx"))
    (tmp_path / "embedder.onnx").unlink()
    with pytest.raises(UserError, match=r"embedder\.onnx: no such ONNX file"):
        exported_separator(tmp_path / "separator.onnx", OnnxGraph.load(tmp_path / "separator.onnx"))


def test_the_command_exports_and_inference_runs_it(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    store = ["-d", str(corpus_folder), "-o", str(tmp_path / "store"), "-p", "1", "-e", str(embedder_file)]
    kinds = "data.kinds={mixture: 0.5, target_alone: 0.5, target_absent: 0}"
    assert generator.main([*store, *TINY, kinds]) == 0
    roles = [recipe.role for recipe in Store(tmp_path / "store").split("validation").recipes]
    assert 0 < (mixtures := roles.count("mixture")) < 6
    torch.manual_seed(0)
    separator = Separator(load_config(None, TINY), DVector(hidden=8)).eval()
    save_checkpoint(tmp_path / "c.pt", separator.content())
    code, out, _ = run(export.main, tmp_path / "c.pt", "-o", tmp_path / "x", "--int8")
    assert code == 2 and not (tmp_path / "x").exists()
    code, _, err = run(export.main, tmp_path / "c.pt", "-o", tmp_path / "c.pt")
    assert code == 2 and "cannot write there" in err
    code, out, err = run(
        export.main, tmp_path / "c.pt", "-o", tmp_path / "x", "--int8", "--data", tmp_path / "store",
        "--torchscript",
    )  # fmt: skip
    assert code == 0 and "largest differences from PyTorch: mask" in out, err
    assert f"8 bits, {mixtures} validation mixtures" in out, "of voices alone or absent there is no mixture"
    names = {p.relative_to(tmp_path / "x").as_posix() for p in (tmp_path / "x").rglob("*.*")}
    assert names == {
        "separator.onnx", "embedder.onnx", "separator.ts", "int8/separator.onnx", "int8/embedder.onnx"
    }  # fmt: skip
    traced = torch.jit.load(tmp_path / "x/separator.ts")  # type: ignore[no-untyped-call]
    magnitude, embedding = torch.rand(1, 33, 129), torch.randn(1, 256)
    with torch.inference_mode():
        torch.testing.assert_close(traced(magnitude, embedding), separator.network(magnitude, embedding))

    write_audio(tmp_path / "mixed.wav", tone_voice(0, 2.0, 5) + tone_voice(3, 2.0, 5), 16000)
    write_audio(tmp_path / "reference.wav", tone_voice(0, 2.0, 6), 16000)
    results = []
    for number, given in enumerate(
        (["c.pt"], ["c.pt", "--backend", "onnx"], ["x/separator.onnx"], ["x/int8/separator.onnx"])
    ):
        code, _, err = run(
            inference.main, "--checkpoint_path", tmp_path / given[0], *given[1:],
            "-m", tmp_path / "mixed.wav",
            "-r", tmp_path / "reference.wav", "-o", tmp_path / f"{number}.wav",
        )  # fmt: skip
        assert (code, err) == (0, "")
        results.append(np.frombuffer((tmp_path / f"{number}.wav").read_bytes()[-4 * 32000 :], "<f4"))
    np.testing.assert_allclose(results[1], results[0], atol=2e-5)
    np.testing.assert_array_equal(results[2], results[1])
    error = np.square(results[3] - results[0]).mean() / np.square(results[0]).mean()
    assert 0 < error < 0.01
    code, _, err = run(
        inference.main, "--checkpoint_path", tmp_path / "x/separator.onnx", "-e", embedder_file,
        "-m", tmp_path / "mixed.wav", "-r", tmp_path / "reference.wav", "-o", tmp_path / "no",
    )  # fmt: skip
    assert code == 2 and "brings all that it needs" in err
