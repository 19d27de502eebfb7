"""Other projects' separators: every layout against its formulas written out, the commands, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

import convert
import embedder as embedder_command
import inference
from config.load import check_config
from model.foreign import load_embedder
from model.foreign_separators import read_foreign
from model.foreign_settings import settings_file
from model.masks import MASK_FLOOR, Masking
from model.separator import Separator
from model.spectral import MelSpectrogram
from model.voicefilter import VoiceFilter
from tests.conftest import RATE, embedder_state, tone_voice
from utils.audio import write_audio
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

Runner = Callable[..., tuple[int, str, str]]
N_FFT, HOP, WINDOW, BINS, WIDTH = 128, 32, 64, 65, 256
KERNELS = ((1, 7, 1), (7, 1, 1), (5, 5, 1), (5, 5, 2), (5, 5, 4), (5, 5, 8), (5, 5, 16))
HP = f"""
audio:
  n_fft: {N_FFT}
  num_freq: {BINS} # n_fft//2 + 1
  sample_rate: {RATE}
  hop_length: {HOP}
  win_length: {WINDOW}
  min_level_db: -100.0
  ref_level_db: 20.0
  preemphasis: 0.97
  power: 0.30
---
model: {{lstm_dim: 8, fc1_dim: 20, fc2_dim: {BINS}}}
---
embedder: {{num_mels: 40, n_fft: 512, emb_dim: {WIDTH}, window: 80, stride: 40}}
"""


def network_state(
    lstm: str = "bidirectional", partial: bool = False, width: int = WIDTH
) -> dict[str, Tensor]:
    """Random weights under the published names: 4 channels, LSTM 8, FC 20, a mask near 0.9."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(shape, generator=generator)

    state: dict[str, Tensor] = {}
    step, first = (3, 0) if partial else (4, 1)
    places = [first + step * n for n in range(7)] + [21 if partial else 28]
    for n, ((time, frequency, _), place) in enumerate(zip((*KERNELS, (1, 1, 1)), places, strict=True)):
        inputs, outputs = (4 if n else 1), (4 if n < 7 else 8)
        state[f"conv.{place}.weight"] = random(outputs, inputs, time, frequency, scale=0.2)
        state[f"conv.{place}.bias"] = random(outputs)
        for name, mean in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            state[f"conv.{place + 1}.{name}"] = random(outputs, scale=0.2, mean=mean)
        state[f"conv.{place + 1}.running_var"] = random(outputs).square() + 0.5
        state[f"conv.{place + 1}.num_batches_tracked"] = torch.tensor(7)
    hidden = {"bidirectional": 16, "unidirectional": 8, "none": 8 * BINS + width}[lstm]
    for direction in {"bidirectional": ("", "_reverse"), "unidirectional": ("",), "none": ()}[lstm]:
        state[f"lstm.weight_ih_l0{direction}"] = random(32, 8 * BINS + width, scale=0.05)
        state[f"lstm.weight_hh_l0{direction}"] = random(32, 8, scale=0.3)
        state[f"lstm.bias_ih_l0{direction}"] = random(32)
        state[f"lstm.bias_hh_l0{direction}"] = random(32)
    state |= {"fc1.weight": random(20, hidden, scale=0.3), "fc1.bias": random(20)}
    state |= {"fc2.weight": random(BINS, 20, scale=0.2), "fc2.bias": random(BINS, scale=0.3, mean=2.5)}
    return state


# ---------------------------------------------------------------- the original formulas


def lstm_by_hand(x: Tensor, state: dict[str, Tensor], direction: str) -> Tensor:
    """Frames [T, I] -> outputs [T, H] of one direction."""
    w_ih, w_hh = (state[f"lstm.weight_{part}_l0{direction}"] for part in ("ih", "hh"))
    bias = state[f"lstm.bias_ih_l0{direction}"] + state[f"lstm.bias_hh_l0{direction}"]
    h = c = torch.zeros(w_hh.shape[1])
    outputs = []
    for frame in x.flip(0) if direction else x:
        i, f, g, o = (w_ih @ frame + w_hh @ h + bias).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs[::-1] if direction else outputs)


def mask_by_hand(
    state: dict[str, Tensor], level: Tensor, vector: Tensor | None, mish: bool, partial: bool
) -> Tensor:
    """Decibels [T, F] between 0 and 1 and embedding [D] -> mask [T, F]."""
    x = level[None, None]
    step, first = (3, 0) if partial else (4, 1)
    places = [first + step * n for n in range(7)] + [21 if partial else 28]
    for (time, frequency, dilation), place in zip((*KERNELS, (1, 1, 1)), places, strict=True):
        weight, bias = state[f"conv.{place}.weight"], state[f"conv.{place}.bias"][:, None, None]
        geometry: dict[str, Any] = {
            "padding": (time // 2 * dilation, frequency // 2),
            "dilation": (dilation, 1),
        }
        ones = functional.conv2d(torch.ones_like(x[:, :1]), torch.ones(1, 1, time, frequency), **geometry)
        x = functional.conv2d(x, weight, None, **geometry)
        x = (x * (time * frequency / ones) if partial else x) + bias
        mean, variance, scale, shift = (
            state[f"conv.{place + 1}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        x = x * torch.tanh(torch.log(1 + torch.exp(x))) if mish else x.clamp_min(0)
    frames = x[0].transpose(0, 1).reshape(len(level), -1)  # index = channel * F + bin
    if vector is not None:
        frames = torch.cat([frames, vector.expand(len(frames), -1)], 1)
    directions = [d for d in ("", "_reverse") if f"lstm.weight_hh_l0{d}" in state]
    if directions:
        frames = torch.cat([lstm_by_hand(frames, state, d) for d in directions], 1)
    hidden = frames.clamp_min(0) if directions else frames
    hidden = (hidden @ state["fc1.weight"].T + state["fc1.bias"]).clamp_min(0)
    return 1 / (1 + torch.exp(-(hidden @ state["fc2.weight"].T + state["fc2.bias"])))


def estimate_by_hand(wave: np.ndarray, mask_of: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The published front end around a mask: librosa, reflected ends, clipped decibels."""
    sizes: dict[str, Any] = {"hop_length": HOP, "win_length": WINDOW}
    spectrum = librosa.stft(wave, n_fft=N_FFT, pad_mode="reflect", **sizes)
    level = np.clip((20 * np.log10(np.maximum(1e-5, np.abs(spectrum))) - 20) / 100, -1, 0) + 1
    mask = mask_of(torch.from_numpy(level.T).float()).numpy().T
    level = (np.clip(level * mask, 0, 1) - 1) * 100 + 20
    return librosa.istft(10 ** (level * 0.05) * np.exp(1j * np.angle(spectrum)), n_fft=N_FFT, **sizes)


# ---------------------------------------------------------------- layouts


def voicesplit_config(model_name: str | None, backend: str = "voicefilter") -> str:
    audio: dict[str, Any] = {
        "n_fft": N_FFT,
        "num_mels": 40,
        "num_freq": BINS,
        "sample_rate": RATE,
        "hop_length": HOP,
    }
    audio |= {"win_length": WINDOW, "min_level_db": -100.0, "ref_level_db": 20.0, "preemphasis": 0.97}
    tree: dict[str, Any] = {
        "model": {"lstm_dim": 8, "emb_dim": WIDTH},
        "train_config": {"reinit_layers": None},
    }
    tree["audio"] = {"backend": backend, "mel_spec": False, "voicefilter": audio, "waveglow": {}}
    return str({"model_name": model_name, **tree} if model_name else tree)


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "num_batches" not in key}


def checkpoint(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
    return {"model": state, "optimizer": optimizer, "step": 55000, **more}


STATE, PARTIAL = network_state(), network_state(partial=True)
# name -> content, weights, legacy pickle, file name, Mish
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Tensor], bool, str, bool]] = {
    "release": (checkpoint(STATE, hp_str=HP), STATE, False, "chkpt_55000.pt", False),
    "legacy": (checkpoint(prefixed(without_counts(STATE)), hp_str=HP), STATE, True, "chkpt_1.pt", False),
    "best": (
        checkpoint(STATE, epoch=3, best_val_loss=np.float64(0.5), adapter=None), STATE, False, "b.pt", False
    ),
    "state_dict": ({"state_dict": prefixed(STATE)}, STATE, False, "best_model.pt", False),
    "model_state_dict": ({"model_state_dict": STATE, "epoch": 1}, STATE, False, "best_model.pt", False),
    "bare": (dict(STATE), STATE, True, "best_model.pt", False),
    "partial": (checkpoint(PARTIAL, hp_str=HP), PARTIAL, False, "chkpt_9.pt", False),
    "voicesplit": (
        checkpoint(STATE, config_str=voicesplit_config("voicesplit")), STATE, False, "split.pt.pt", True
    ),
    "voicesplit's voicefilter": (
        checkpoint(STATE, config_str=voicesplit_config("voicefilter")), STATE, True, "filter.pt", False
    ),
    "voicesplit's first": (
        checkpoint(STATE, config_str=voicesplit_config(None)), STATE, False, "s.pt", False
    ),
}  # fmt: skip


def write_layout(folder: Path, name: str) -> Path:
    content, _, legacy, file, _ = LAYOUTS[name]
    torch.save(content, folder / file, _use_new_zipfile_serialization=not legacy)
    return folder / file


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yaml") / "default.yaml"
    path.write_text(HP)
    return path


WAVE = 4 * (tone_voice(0, 0.8, 5) + tone_voice(3, 0.8, 5))
VECTOR = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), dim=0)


def estimate(separator: Separator, vector: Tensor | None = VECTOR) -> np.ndarray:
    with torch.inference_mode():
        return separator(torch.from_numpy(WAVE)[None], None if vector is None else vector[None])[0].numpy()


def assert_same_voice(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_estimate_of_its_formulas(
    tmp_path: Path, name: str, embedder_file: Path, yaml_file: Path
) -> None:
    _, state, _, _, mish = LAYOUTS[name]
    foreign = read_foreign(write_layout(tmp_path, name), settings_file(yaml_file))
    separator = foreign.build(load_embedder(str(embedder_file)))
    expected = estimate_by_hand(WAVE, lambda s: mask_by_hand(state, s, VECTOR, mish, name == "partial"))
    assert_same_voice(estimate(separator), expected)
    other = estimate_by_hand(WAVE, lambda s: mask_by_hand(state, s, VECTOR, not mish, name == "partial"))
    assert np.abs(other - expected).max() > 1e-3  # it matters which activation there is


@pytest.mark.parametrize(
    ("lstm", "width"), [("unidirectional", WIDTH), ("none", WIDTH), ("bidirectional", 0)]
)
def test_variants_are_known_by_their_shapes(
    tmp_path: Path, lstm: str, width: int, embedder_file: Path
) -> None:
    state = network_state(lstm, width=width)
    torch.save(checkpoint(state, hp_str=HP), tmp_path / "c.pt")
    foreign = read_foreign(tmp_path / "c.pt")
    assert (foreign.network["lstm"], foreign.embedding_dim) == (lstm, width)
    vector = VECTOR if width else None
    separator = foreign.build(load_embedder(str(embedder_file)) if width else None)
    expected = estimate_by_hand(WAVE, lambda s: mask_by_hand(state, s, vector, False, False))
    assert_same_voice(estimate(separator, vector), expected)


def test_a_fork_s_mish_is_named_by_the_user(tmp_path: Path, embedder_file: Path) -> None:
    path = write_layout(tmp_path, "release")
    separator = read_foreign(path, activation="mish").build(load_embedder(str(embedder_file)))
    assert_same_voice(
        estimate(separator), estimate_by_hand(WAVE, lambda s: mask_by_hand(STATE, s, VECTOR, True, False))
    )
    with pytest.raises(UserError, match="says mish, not relu"):
        read_foreign(write_layout(tmp_path, "voicesplit"), activation="relu")


def test_the_published_sizes_hold_where_a_file_says_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VoiceFilter(601, 256).state_dict().items()}
    state = {key: torch.zeros(shape) for key, shape in shapes.items() if "num_batches" not in key}
    assert shapes["conv.25.weight"] == (64, 64, 5, 5) and shapes["conv.28.weight"] == (8, 64, 1, 1)
    assert shapes["lstm.weight_ih_l0_reverse"] == (1600, 5064) and shapes["fc2.weight"] == (601, 600)
    torch.save(checkpoint(state), tmp_path / "chkpt_55000.pt")
    foreign = read_foreign(tmp_path / "chkpt_55000.pt")
    assert "18,876,001 parameters" in foreign.describe()
    audio = foreign.config().audio
    assert (audio.sample_rate, audio.n_fft, audio.hop_length, audio.win_length) == (16000, 1200, 160, 400)
    assert audio.pad_mode == "reflect" and foreign.config().network.input == "db"


# ---------------------------------------------------------------- ONNX


def save_graph(
    path: Path, nodes: list[Any], inputs: dict[str, list[Any]], out: list[Any], **weights: np.ndarray
) -> Path:
    """A graph whose last node gives `out`, as an exporter writes it."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, out)
    constants = [
        numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", values, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


GENERATOR = np.random.default_rng(0)
W, V = 0.05 * GENERATOR.standard_normal((BINS, BINS)), 0.5 * GENERATOR.standard_normal((WIDTH, BINS))
OFFSET = np.full(BINS, 2.5)
PROJECTION = GENERATOR.standard_normal((40, WIDTH))


def mask_graph(path: Path, frames: Any = "T", bins: Any = BINS) -> Path:
    """sigmoid(mag @ W + dvec @ V + offset)"""
    nodes = [
        helper.make_node("MatMul", ["mag", "w"], ["a"]),
        helper.make_node("MatMul", ["dvec", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "offset"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["out"]),
    ]
    inputs = {"mag": [1, frames, bins], "dvec": [1, WIDTH]}
    return save_graph(path, nodes, inputs, [1, frames, BINS], w=W, v=V, offset=OFFSET)


def embedder_graph(path: Path, mels: int = 40, projection: np.ndarray = PROJECTION) -> Path:
    """tanh(mean over frames of the mel @ projection)"""
    nodes = [
        helper.make_node("ReduceMean", ["dvec_mel"], ["a"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["a", "p"], ["b"]),
        helper.make_node("Tanh", ["b"], ["out"]),
    ]
    return save_graph(path, nodes, {"dvec_mel": [mels, "T"]}, [projection.shape[1]], p=projection)


def test_a_graph_with_fixed_windows_gets_as_many_frames_as_they_span(tmp_path: Path) -> None:
    """An exporter that does not follow the utterance's length leaves the windows of its example."""
    nodes = [
        helper.make_node("Slice", ["dvec_mel", "zero", "frames", "one"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),  # fails with fewer
        helper.make_node("ReduceMean", ["b"], ["c"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["c", "p"], ["out"]),
    ]
    whole = {"zero": [0], "frames": [120], "one": [1], "shape": [40, 120]}
    constants = {name: np.array(value, dtype=np.int64) for name, value in whole.items()}
    path = save_graph(tmp_path / "e.onnx", nodes, {"dvec_mel": [40, "T"]}, [WIDTH], p=PROJECTION, **constants)
    embedder = load_embedder(str(path))
    assert (embedder.shortest, embedder.dim) == (160, WIDTH)
    with torch.inference_mode():
        assert embedder.embed([torch.from_numpy(tone_voice(0, 0.5, 0))]).shape == (1, WIDTH)


def onnx_mask_by_hand(level: Tensor) -> Tensor:
    w, v, offset = (torch.from_numpy(x).float() for x in (W, V, OFFSET))
    return torch.sigmoid(level @ w + VECTOR @ v + offset)


def test_the_onnx_pair_gives_the_estimate_of_its_formulas(tmp_path: Path, yaml_file: Path) -> None:
    embedder = load_embedder(str(embedder_graph(tmp_path / "embedder.onnx")))
    separator = read_foreign(mask_graph(tmp_path / "model.onnx"), settings_file(yaml_file)).build(embedder)
    assert_same_voice(estimate(separator), estimate_by_hand(WAVE, onnx_mask_by_hand))

    voice = tone_voice(1, 1.9, 0)
    mel = librosa.feature.melspectrogram(
        y=voice, sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, pad_mode="constant"
    )
    expected = np.tanh(np.log10(mel + 1e-6).mean(1) @ PROJECTION)
    with torch.inference_mode():
        ours = embedder.embed([torch.from_numpy(voice), torch.from_numpy(tone_voice(2, 0.4, 0))])
        short = embedder.embed([torch.from_numpy(tone_voice(2, 0.4, 0))])
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(ours[1:], short, atol=1e-5, rtol=0)


def test_a_graph_travels_in_our_checkpoint(tmp_path: Path, yaml_file: Path) -> None:
    embedder = load_embedder(str(embedder_graph(tmp_path / "embedder.onnx")))
    separator = read_foreign(mask_graph(tmp_path / "model.onnx"), settings_file(yaml_file)).build(embedder)
    save_checkpoint(tmp_path / "own.pt", separator.content())
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "embedder.onnx").unlink()
    again = Separator.load(tmp_path / "own.pt")
    np.testing.assert_array_equal(estimate(again), estimate(separator))
    assert again.embedder is not None and again.embedder.fingerprint() == embedder.fingerprint()
    assert load_embedder(str(tmp_path / "own.pt")).heard_others
    other = load_embedder(str(embedder_graph(tmp_path / "other.onnx", projection=2 * PROJECTION)))
    assert other.fingerprint() != embedder.fingerprint()


def test_a_graph_gives_no_gradient_and_says_so(tmp_path: Path) -> None:
    embedder = load_embedder(str(embedder_graph(tmp_path / "embedder.onnx")))
    with pytest.raises(UserError, match="gives no gradients"):
        embedder.embed([torch.from_numpy(tone_voice(0, 1.0, 0)).requires_grad_()])
    config = check_config({"network": {"kind": "onnx"}}, "test")
    separator = Separator(config, embedder)
    with pytest.raises(UserError, match="can only be run, not trained"):
        separator(torch.zeros(1, 16000), torch.zeros(1, WIDTH))


def test_graphs_of_another_kind_are_refused(tmp_path: Path, yaml_file: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    for read in (read_foreign, lambda path: load_embedder(str(path))):
        with pytest.raises(UserError, match=r"text\.onnx: no ONNX graph that can be run"):
            read(tmp_path / "text.onnx")
        with pytest.raises(UserError, match=r"gone\.onnx: no such"):
            read(tmp_path / "gone.onnx")
    embedder, network = embedder_graph(tmp_path / "e.onnx"), mask_graph(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"expected the inputs mag .*, found dvec_mel \(40, T\)"):
        read_foreign(embedder, settings_file(yaml_file))
    with pytest.raises(UserError, match=r"one input of mel frames .*, found mag \(1, T, 65\), dvec"):
        load_embedder(str(network))
    with pytest.raises(UserError, match=r"found dvec_mel \(20, T\)"):
        load_embedder(str(embedder_graph(tmp_path / "e20.onnx", 20, PROJECTION[:20])))
    with pytest.raises(
        UserError, match="its mask has 65 bins, n_fft 1200 of the published defaults gives 601"
    ):
        read_foreign(network).build(load_embedder(str(embedder)))
    with pytest.raises(UserError, match=r"300fr\.onnx: the ONNX graph does not take .* Expected: 300"):
        read_foreign(mask_graph(tmp_path / "300fr.onnx", frames=300), settings_file(yaml_file))


# ---------------------------------------------------------------- refusals


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {**STATE, **{key.replace("_at_", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


def test_what_is_not_complete_or_not_supported_is_refused_in_one_sentence(
    tmp_path: Path, embedder_file: Path
) -> None:
    lstm = {key: None for key in STATE if key.startswith("lstm.") and "reverse" not in key}
    cases: list[tuple[dict[str, Any], str]] = [
        (checkpoint(changed(conv_at_5_at_bias=None), hp_str=HP),
         "not a complete separator: missing conv.5.bias"),
        (checkpoint({k: v for k, v in STATE.items() if k not in lstm}, hp_str=HP), "missing lstm.bias_hh_l0"),
        (checkpoint(changed(fc2_at_weight=None), hp_str=HP), "missing fc2.weight"),
        (checkpoint(changed(fc3_at_weight=torch.ones(2)), hp_str=HP), "unexpected fc3.weight"),
        (checkpoint(changed(conv_at_9_at_weight=torch.ones(4, 4, 3, 3)), hp_str=HP),
         "wrong shape conv.9.weight (4, 4, 3, 3) instead of (4, 4, 5, 5)"),
        (checkpoint(changed(lstm_at_weight_ih_l0=torch.ones(32, 700)), hp_str=HP),
         "wrong shape lstm.weight_ih_l0 (32, 700) instead of (32, 776)"),
        (checkpoint(STATE), "its mask has 65 bins, n_fft 1200 of the published defaults gives 601"),
        (checkpoint(STATE, hp_str=HP.replace("-100.0", "-80.0")),
         "min_level_db -80.0: only -100.0 is supported"),
        (checkpoint(STATE, hp_str=HP.replace("20.0", "10.0")), "ref_level_db 10.0: only 20.0 is supported"),
        (checkpoint(STATE, hp_str=HP.replace(f"num_freq: {BINS}", "num_freq: 64")),
         "num_freq 64: n_fft 128 has 65 bins"),
        (checkpoint(STATE, hp_str=HP.replace("n_fft: 128", "n_fft: many")), "n_fft: expected a number"),
        (checkpoint(STATE, hp_str="audio: [1"), "hp_str: not valid YAML"),
        (checkpoint(STATE, hp_str="!!python/object/apply:os.system ['true']"), "hp_str: not valid YAML"),
        (checkpoint(STATE, hp_str="just words"), "hp_str: holds a str"),
        (checkpoint(STATE, config_str="__import__('os').getcwd()"), "config_str: not the text of a dict"),
        (checkpoint(STATE, config_str=voicesplit_config("voicesplit", "waveglow")),
         "audio.backend 'waveglow': only voicefilter is supported"),
        (checkpoint(STATE, config_str=voicesplit_config("voicejoin")),
         "model_name 'voicejoin': expected one of"),
        (checkpoint(STATE, config_str="{'audio': 3}"), "audio: expected a section, got 3"),
        (checkpoint(STATE, hp_str="audio: my-backend"), "audio: expected a section, got 'my-backend'"),
        (checkpoint(STATE, config_str="{'model_name': ['x']}"), "model_name ['x']: expected one of"),
        (checkpoint(changed(lstm_at_weight_hh_l0=torch.ones(32, 0)), hp_str=HP),
         "lstm.weight_hh_l0 holds no values"),
        (checkpoint(changed(fc2_at_weight=torch.ones(BINS, 12, dtype=torch.complex64)), hp_str=HP),
         "fc2.weight holds complex64 numbers"),
        (checkpoint(changed(fc2_at_weight=torch.full((BINS, 20), torch.nan)), hp_str=HP),
         "fc2.weight holds NaN or infinity"),
        (checkpoint(changed(fc2_at_weight=torch.ones(BINS, 20).to_sparse()), hp_str=HP),
         "fc2.weight is no dense tensor"),
        (checkpoint(STATE, hp_str=[1]), "hp_str: holds a list, expected text"),
        (checkpoint(STATE, hp_str=HP, adapter={"w": torch.ones(1)}), "an adapter, which is not supported"),
        ({"weights": torch.ones(1)}, "no known separator: expected the keys conv.0.weight"),
    ]  # fmt: skip
    embedder = load_embedder(str(embedder_file))
    for number, (content, words) in enumerate(cases):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(UserError) as error:
            read_foreign(tmp_path / f"{number}.pt").build(embedder)
        assert words in str(error.value) and "\n" not in str(error.value), (words, str(error.value))
        assert str(error.value).startswith(str(tmp_path / f"{number}.pt")), str(error.value)
    torch.save({"model": STATE, "optimizer": Path}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"not a checkpoint that can be read safely: .* run code"):
        read_foreign(tmp_path / "evil.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_one_sentence_wherever_it_is_cut(tmp_path: Path, legacy: bool) -> None:
    path, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save(checkpoint(STATE, hp_str=HP), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in (0, 1, 2, 20, 200, len(whole) // 2, len(whole) - 5):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.pt: not a checkpoint .* (empty|cut off|damaged|PyTorch)"):
            load_checkpoint(cut)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, 2000, 5):
            damaged[place] = rng.integers(256)
        cut.write_bytes(damaged)
        try:
            load_checkpoint(cut)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and "weights_only" not in str(error)
    cut.write_text("no pickle at all")
    with pytest.raises(UserError, match="no PyTorch file"):
        load_checkpoint(cut)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(UserError, match=r"an ONNX graph: inference"):
        load_checkpoint(tmp_path / "model.onnx")


def test_a_separator_is_not_taken_for_an_embedder(tmp_path: Path) -> None:
    for name in ("release", "fork"):
        path = tmp_path / f"{name}.pt"
        torch.save(checkpoint(STATE, hp_str=HP) if name == "release" else STATE, path)
        with pytest.raises(UserError, match="is a separator without its embedder"):
            load_embedder(str(path))


def test_a_list_of_missing_keys_is_short(tmp_path: Path) -> None:
    torch.save({k: v for k, v in STATE.items() if "conv.1" not in k}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"missing conv\.\d+.* and \d+ more") as error:
        read_foreign(tmp_path / "c.pt", settings_file(_yaml(tmp_path)))
    assert len(str(error.value)) < 600


def _yaml(folder: Path) -> Path:
    (folder / "theirs.yaml").write_text(HP)
    return folder / "theirs.yaml"


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "fork.pt")
    settings = settings_file(_yaml(tmp_path))
    assert settings is not None
    told = read_foreign(tmp_path / "fork.pt", settings, "mish")
    assert told.assumed == () and "NOTE" not in told.describe()
    untold = read_foreign(tmp_path / "fork.pt", settings)
    assert untold.assumed == ("activation relu (--activation)",) and "NOTE" in untold.describe()
    assert "the published front end" in read_foreign(tmp_path / "fork.pt").assumed
    torch.save(checkpoint(STATE, hp_str=HP), tmp_path / "release.pt")
    assert read_foreign(tmp_path / "release.pt").assumed == ()
    torch.save(checkpoint(STATE, hp_str="train: {batch_size: 8}"), tmp_path / "silent.pt")
    assert read_foreign(tmp_path / "silent.pt").assumed == ("the published front end",)


def test_another_embedder_than_the_weights_listen_to_is_said(tmp_path: Path, embedder_file: Path) -> None:
    torch.save(checkpoint(STATE, hp_str=HP), tmp_path / "release.pt")
    torch.save(checkpoint(STATE, config_str=voicesplit_config("voicesplit")), tmp_path / "split.pt")
    torch.save(embedder_state(768, "proj.linear_layer", 0.1), tmp_path / "embedder.pt")
    own, other = (load_embedder(str(path)) for path in (tmp_path / "embedder.pt", embedder_file))
    release, split = (read_foreign(tmp_path / name) for name in ("release.pt", "split.pt"))
    assert "embedder windows of 80" in release.describe(own) and "NOTE" not in release.describe(own)
    assert "embedder windows" not in release.describe(other) and "NOTE" in release.describe(other)
    assert "NOTE" not in split.describe(other)
    assert release.build(own, "embedder.pt").config.embedder == "embedder.pt"


def test_the_embedder_hears_the_windows_that_the_checkpoint_says(tmp_path: Path) -> None:
    """The first release had windows of 160 frames every 80, later ones 80 every 40, with the same keys."""
    torch.save(embedder_state(768, "proj.linear_layer", 0.1), tmp_path / "embedder.pt")
    embedder = load_embedder(str(tmp_path / "embedder.pt"))
    assert (embedder.options["window"], embedder.options["window_hop"]) == (80, 40)
    first = HP.replace("window: 80, stride: 40", "window: 160, stride: 80")
    for name, text, expected in (("later", HP, (80, 40)), ("first", first, (160, 80))):
        torch.save(checkpoint(STATE, hp_str=text), tmp_path / f"{name}.pt")
        used = read_foreign(tmp_path / f"{name}.pt").build(embedder).embedder
        assert used is not None
        assert (used.options["window"], used.options["window_hop"]) == expected
        for name, weight in embedder.state_dict().items():
            torch.testing.assert_close(used.state_dict()[name], weight, atol=0, rtol=0)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    write_audio(tmp_path / "mixed.wav", tone_voice(0, 1.6, 5) + tone_voice(3, 1.6, 5), RATE)
    write_audio(tmp_path / "reference.wav", tone_voice(0, 1.6, 6), RATE)
    return tmp_path


def arguments(voices: Path, checkpoint: Path, *more: object, out: str = "out") -> list[object]:
    wanted = ["-m", voices / "mixed.wav", "-r", voices / "reference.wav", "-o", voices / out]
    return ["--checkpoint_path", checkpoint, *wanted, *more]


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("name", [*LAYOUTS, "onnx"])
def test_every_layout_separates_and_converts_from_the_command_line(
    run: Runner, voices: Path, name: str, embedder_file: Path, yaml_file: Path
) -> None:
    if name == "onnx":
        path = mask_graph(voices / "model.onnx")
        embedder = embedder_graph(voices / "embedder.onnx")
    else:
        path, embedder = write_layout(voices, name), embedder_file
    carried = {"hp_str", "config_str"} & set(LAYOUTS[name][0]) if name in LAYOUTS else set()
    config = [] if carried else ["-c", yaml_file]
    code, _, err = run(
        inference.main, *arguments(voices, path, "-e", embedder, *config, "--plot", "--keep", "residual")
    )
    assert (code, err) == (0, "")
    first, residual = read(voices / "out/estimate.wav"), read(voices / "out/residual.wav")
    np.testing.assert_allclose(first + residual, read(voices / "mixed.wav"), atol=1e-6)
    assert first.std() > 1e-4

    code, out, err = run(convert.main, path, "-e", embedder, *config, "-o", voices / "converted.pt")
    assert (code, err) == (0, "") and "clipped decibels, 16000 Hz, n_fft 128" in out
    path.unlink()
    code, _, err = run(inference.main, *arguments(voices, voices / "converted.pt", out="again"))
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(read(voices / "again/estimate.wav"), first)


def test_a_separator_without_a_reference_needs_none(run: Runner, voices: Path, embedder_file: Path) -> None:
    torch.save(checkpoint(network_state(width=0), hp_str=HP), voices / "c.pt")
    code, out, _ = run(inference.main, *arguments(voices, voices / "c.pt"))
    assert code == 0 and "works without a reference" in out
    without = ["--checkpoint_path", voices / "c.pt", "-m", voices / "mixed.wav", "-o", voices / "b", "--plot"]
    code, out, _ = run(inference.main, *without)
    assert code == 0 and "NOTE" not in out
    np.testing.assert_array_equal(read(voices / "b/estimate.wav"), read(voices / "out/estimate.wav"))
    assert run(convert.main, voices / "c.pt", "-o", voices / "own.pt")[0] == 0
    code, out, _ = run(inference.main, *arguments(voices, voices / "own.pt", "-e", embedder_file))
    assert code == 0 and "has no embedder" in out


def test_the_commands_say_what_is_missing(
    run: Runner, voices: Path, embedder_file: Path, yaml_file: Path, tmp_path: Path
) -> None:
    path = write_layout(voices, "release")
    wide = load_embedder(str(embedder_graph(voices / "e.onnx", projection=PROJECTION[:, :80])))
    torch.save({"embedder": wide.content()}, voices / "wide.pt")
    e = ("-e", embedder_file)
    cases: list[tuple[list[object], str]] = [
        (arguments(voices, path), "brings no embedder; name the one it was trained with by -e"),
        ([*arguments(voices, path)[:4], "-o", voices / "out", *e], "asks whose voice is wanted"),
        (arguments(voices, path, "-e", voices / "wide.pt"),
         "needs an embedding of 256 values, the embedder gives 80"),
        (arguments(voices, path, *e, "a.b=1"), "overrides go with -c"),
        (arguments(voices, path, *e, "-c", yaml_file, "a.b=1"), "is another project's, without overrides"),
        (arguments(voices, path, *e, "--mask", "inv_div", "--factor", "0"), "--factor 0.0: expected"),
        (arguments(voices, path, *e, "--mask", "inv_div", "--factor", "nan"), "expected a number above 0"),
    ]  # fmt: skip
    for given, words in cases:
        code, _, err = run(inference.main, *given)
        assert code == 2 and words in err and len(err.splitlines()) == 1, (words, err)
        assert not (voices / "out").exists() or not list((voices / "out").iterdir())


def test_another_configuration_beside_a_foreign_checkpoint_is_noted(
    run: Runner, voices: Path, embedder_file: Path, yaml_file: Path
) -> None:
    path = write_layout(voices, "release")
    (voices / "ours.yaml").write_text("train: {precision: fp32}\n")
    (voices / "other.yaml").write_text(HP.replace(f"hop_length: {HOP}", "hop_length: 16"))
    for config in (voices / "other.yaml", voices / "ours.yaml"):
        code, out, _ = run(inference.main, *arguments(voices, path, "-e", embedder_file, "-c", config))
        assert code == 0 and out.count("NOTE") == 2 and "is not used" in out  # and one of the embedder
    for config in ([], ["-c", yaml_file]):  # the second says the same as the checkpoint
        code, out, _ = run(inference.main, *arguments(voices, path, "-e", embedder_file, *config))
        assert code == 0 and out.count("NOTE") == 1


def test_a_graph_is_an_embedder_like_any_other(run: Runner, voices: Path) -> None:
    path = embedder_graph(voices / "embedder.onnx")
    code, _, err = run(
        embedder_command.main, "embed", voices / "reference.wav", "-e", path, "-o", voices / "e.npz"
    )
    assert code == 0, err
    expected = load_embedder(str(path)).embed([torch.from_numpy(read(voices / "reference.wav"))])[0]
    with np.load(voices / "e.npz") as content:
        np.testing.assert_allclose(content["embeddings"][0], expected.numpy(), atol=0.05)


def test_convert_takes_embedders_and_never_its_input(
    run: Runner, voices: Path, embedder_file: Path, yaml_file: Path
) -> None:
    torch.save(embedder_state(768, "proj.linear_layer", 0.05), voices / "embedder.pt")
    for path in (voices / "embedder.pt", embedder_graph(voices / "embedder.onnx")):
        code, out, err = run(convert.main, path, "-o", voices / "mine.pt")
        assert (code, err) == (0, "") and "an embedder" in out
        own, foreign = load_embedder(str(voices / "mine.pt")), load_embedder(str(path))
        assert own.fingerprint() == foreign.fingerprint() and own.heard_others
    release = write_layout(voices, "release")
    before = release.read_bytes()
    cases: list[tuple[list[object], str]] = [
        ([release, "-e", embedder_file, "-o", release], "would be overwritten"),
        ([release, "-e", embedder_file, "-o", embedder_file], "would be overwritten"),
        ([release, "-o", voices / "x.pt"], "brings no embedder"),
        ([voices / "embedder.pt", "-e", embedder_file, "-o", voices / "x.pt"], "no separator of another"),
        ([voices / "mine.pt", "-o", voices / "x.pt"], "is a checkpoint of this project already"),
        ([release, "-e", embedder_file, "-c", voices / "own.yaml", "-o", voices / "x.pt"], "not a YAML file"),
        ([voices / "gone.pt", "-o", voices / "x.pt"], "no such checkpoint"),
    ]  # fmt: skip
    (voices / "own.yaml").write_text("audio: {n_fft: 256}\n")
    for given, words in cases:
        code, _, err = run(convert.main, *given)
        assert code == 2 and words in err and len(err.splitlines()) == 1, (words, err)
        assert not (voices / "x.pt").exists()
    assert release.read_bytes() == before
    code, out, _ = run(
        convert.main,
        release,
        "-e",
        embedder_file,
        "-c",
        yaml_file,
        "--activation",
        "mish",
        "-o",
        voices / "x.pt",
    )
    assert code == 0 and "activation mish" in out and out.count("NOTE") == 1  # of the embedder
    assert load_checkpoint(voices / "x.pt")["config"]["network"]["activation"] == "mish"


# ---------------------------------------------------------------- what is done with a mask


def test_masks_from_the_command_line(run: Runner, voices: Path, embedder_file: Path) -> None:
    """What is taken and what is left are the mixture, where the mask multiplies the magnitude itself."""
    embedder = load_embedder(str(embedder_file))
    audio = {"n_fft": N_FFT, "hop_length": HOP, "win_length": WINDOW}
    network = {"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8}
    config = check_config({"audio": audio, "network": network, "train": {"precision": "fp32"}}, "test")
    torch.manual_seed(0)
    save_checkpoint(voices / "own.pt", Separator(config, embedder).content())
    mixture, results = read(voices / "mixed.wav"), {}
    for mask, factor in (("org", 1), ("inv_sub", 1), ("inv_sub", 2), ("inv_div", 0.7)):
        given = arguments(voices, voices / "own.pt", "--mask", mask, "--factor", factor, "--keep", "residual")
        code, out, _ = run(inference.main, *given)
        assert code == 0 and "NOTE" not in out
        results[mask, factor] = read(voices / "out/estimate.wav")
        left = read(voices / "out/residual.wav")
        np.testing.assert_allclose(results[mask, factor] + left, mixture, atol=1e-6)
    np.testing.assert_allclose(results["org", 1] + results["inv_sub", 1], mixture, atol=1e-4)
    np.testing.assert_allclose(2 * results["inv_sub", 2], results["inv_sub", 1], atol=1e-5)
    assert np.abs(results["inv_div", 0.7]).max() > np.abs(mixture).max()
    code, out, _ = run(inference.main, *arguments(voices, voices / "own.pt", "--factor", 2))
    assert code == 0 and "--factor 2.0 has no effect" in out
    np.testing.assert_array_equal(read(voices / "out/estimate.wav"), results["org", 1])


@pytest.mark.parametrize("db", [False, True])
def test_a_mask_of_zero_divides_nothing_by_zero(db: bool) -> None:
    spectrum = torch.randn(1, 5, 9, dtype=torch.complex64)
    result = Masking("inv_div", 0.5, db)(spectrum, torch.zeros(1, 5, 9))
    assert torch.view_as_real(result).isfinite().all()
    if not db:
        torch.testing.assert_close(result, spectrum * 0.5 / MASK_FLOOR)


def test_a_complex_mask_is_drawn_by_its_magnitude(run: Runner, voices: Path, embedder_file: Path) -> None:
    audio = {"n_fft": N_FFT, "hop_length": HOP, "win_length": WINDOW}
    network = {"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8, "mask": "complex"}
    tree = {"audio": audio, "network": network, "store": {"kind": "wave"}}
    separator = Separator(check_config(tree, "test"), load_embedder(str(embedder_file)))
    save_checkpoint(voices / "own.pt", separator.content())
    code, _, err = run(inference.main, *arguments(voices, voices / "own.pt", "--plot"))
    assert (code, err) == (0, "")
    assert (voices / "out/spectrograms.png").read_bytes().startswith(b"\x89PNG")


def test_the_front_end_of_a_graph_is_the_re_implementation_s(tmp_path: Path) -> None:
    embedder = load_embedder(str(embedder_graph(tmp_path / "embedder.onnx")))
    assert isinstance(embedder.front, MelSpectrogram) and embedder.front.log
    assert (embedder.n_fft, embedder.hop_length, embedder.shortest) == (512, 160, 80)


# ---------------------------------------------------------------- ours, to be handed on


def test_weights_are_handed_on_without_their_training(run: Runner, trained: Path, tmp_path: Path) -> None:
    whole, half, eighth = (tmp_path / f"{name}.safetensors" for name in "abd")
    assert run(convert.main, trained, "-o", whole)[0] == 0
    assert run(convert.main, trained, "-o", half, "--half")[0] == 0
    assert run(convert.main, trained, "-o", eighth, "--int8")[0] == 0
    assert half.stat().st_size < 0.6 * whole.stat().st_size < trained.stat().st_size
    assert eighth.stat().st_size < half.stat().st_size  # the embedder is most of it
    ours, exact, near, nearly = (Separator.load(path) for path in (trained, whole, half, eighth))
    for key, value in ours.state_dict().items():
        assert torch.equal(exact.state_dict()[key], value), key
        for other, tolerance in ((near, 1e-3), (nearly, 1e-3 if key.startswith("embedder") else 1 / 250)):
            own = other.state_dict()[key]
            assert own.dtype == value.dtype
            largest = float(value.abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(own, value, atol=1e-4 + tolerance * largest, rtol=1e-3)
    content = load_checkpoint(whole)
    assert content["training_speakers"] == load_checkpoint(trained)["training_speakers"]
    config = ours.config.model_dump()
    assert config["store"]["folder"] != content["config"]["store"].pop("folder")
    config["store"].pop("folder")
    config["data"]["corpus"] = []
    config["embedder"] = Path(config["embedder"]).name
    assert "training" not in content and content["config"] == config
    assert str(trained.parents[2]).encode() not in whole.read_bytes()
    again = tmp_path / "c.safetensors"  # what was handed on can be handed on
    assert run(convert.main, whole, "-o", again)[0] == 0 and again.read_bytes() == whole.read_bytes()


def test_the_mean_of_two_trainings_is_handed_on(run: Runner, trained: Path, tmp_path: Path) -> None:
    content = load_checkpoint(trained)
    moved = {
        name: value + (0.5 if value.is_floating_point() else 3) for name, value in content["network"].items()
    }
    later, mean = tmp_path / "later.pt", tmp_path / "mean.safetensors"
    torch.save(
        content | {"network": moved, "training_speakers": ["z"], "presence": {"is": "left out"}}, later
    )
    assert run(convert.main, later, "--average", trained, "-o", mean)[0] == 0
    written = load_checkpoint(mean)
    assert not {"presence", "step", "validation"} & written.keys()
    assert written["training_speakers"] == sorted({*content["training_speakers"], "z"})
    unknown = {name: value for name, value in content.items() if name != "training_speakers"}
    torch.save(unknown, tmp_path / "unknown.pt")
    assert run(convert.main, later, "--average", tmp_path / "unknown.pt", "-o", mean)[0] == 0
    assert "training_speakers" not in load_checkpoint(mean), "nobody knows all of them"
    for option, value in (("-e", later), ("-c", "config/mindslab.yaml"), ("--activation", "mish")):
        code, _, err = run(convert.main, later, option, value, "-o", tmp_path / "x.safetensors")
        assert code == 2 and f"{option} {value} has no effect on it" in err
    for name, value in content["network"].items():
        expected = value + (0.25 if value.is_floating_point() else 3)
        torch.testing.assert_close(written["network"][name], expected, msg=name)
    config = content["config"]
    width = config["network"]["lstm_dim"]
    wide_config = config | {"network": config["network"] | {"lstm_dim": 2 * width}}
    wide = Separator(check_config(wide_config, ""), Separator.load(trained).embedder)
    state = wide.network.widened(content["network"])
    torch.save(content | {"config": wide_config, "network": state}, tmp_path / "wide.pt")
    assert run(convert.main, tmp_path / "wide.pt", "--average", trained, "-o", mean)[0] == 0
    for name, value in load_checkpoint(mean)["network"].items():
        torch.testing.assert_close(value, state[name], msg=name)
    code, _, err = run(convert.main, later, "--average", trained, "-o", tmp_path / "mean.pt")
    assert code == 2 and "--average: is for a file named .safetensors" in err
    content["config"]["network"]["exponent"] = 0.7
    torch.save(content, tmp_path / "different.pt")
    code, _, err = run(
        convert.main, later, "--average", tmp_path / "different.pt", "-o", tmp_path / "m.safetensors"
    )
    assert code == 2 and "cannot be averaged" in err and "exponent: 0.7 -> 0.3" in err
    assert not (tmp_path / "m.safetensors").exists()


OTHERS: list[dict[str, Any]] = [
    {"network": {"kind": "band_split", "dim": 6, "lstm_dim": 5, "blocks": 1}},
    {
        "network": {"kind": "blind_blstm", "front_dim": 8, "lstm_dim": 8, "choice_dim": 5},
        "loss": {"blind": 1.0},
    },
]


@pytest.mark.parametrize("options", OTHERS, ids=["band_split", "blind_blstm"])
def test_separators_are_joined_to_one(
    run: Runner, trained: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    ours = Separator.load(trained)
    config = ours.config.model_dump() | options
    other = Separator(check_config(config, ""), ours.embedder).eval()
    torch.save(other.content() | {"training_speakers": ["z"]}, tmp_path / "other.pt")
    two, three = tmp_path / "two.safetensors", tmp_path / "three.safetensors"
    assert run(convert.main, trained, "--ensemble", tmp_path / "other.pt", "-o", two)[0] == 0
    assert run(convert.main, two, "--ensemble", trained, "-o", three)[0] == 0
    written = load_checkpoint(two)
    assert not {"presence", "step", "validation"} & written.keys()
    assert written["training_speakers"] == sorted({*load_checkpoint(trained)["training_speakers"], "z"})
    turned = tmp_path / "turned.safetensors"
    assert run(convert.main, tmp_path / "other.pt", "--ensemble", trained, "-o", turned)[0] == 0
    mixture, embedding = torch.randn(2, 8000), torch.randn(2, 256)
    with torch.inference_mode():
        first, second = (separator(mixture, embedding) for separator in (ours, other))
        half, third = (first + second) / 2, (2 * first + second) / 3
        for path, expected in ((two, half), (turned, half), (three, third)):
            torch.testing.assert_close(Separator.load(path)(mixture, embedding), expected, atol=1e-5, rtol=0)
    small = tmp_path / "small.safetensors"
    assert run(convert.main, two, "-o", small, "--int8")[0] == 0 and small.stat().st_size < two.stat().st_size
    Separator.load(small)
    config["audio"]["hop_length"] = 80
    torch.save(Separator(check_config(config, ""), ours.embedder).content(), tmp_path / "finer.pt")
    code, _, err = run(
        convert.main, trained, "--ensemble", tmp_path / "finer.pt", "-o", tmp_path / "x.safetensors"
    )
    assert code == 2 and "cannot be joined" in err and "hop_length" in err
    code, _, err = run(convert.main, trained, "--ensemble", tmp_path / "other.pt", "-o", tmp_path / "x.pt")
    assert code == 2 and "--ensemble: is for a file named .safetensors" in err
    config["network"]["mask"], config["audio"]["hop_length"] = "complex", ours.config.audio.hop_length
    config["store"]["kind"] = "wave"
    torch.save(Separator(check_config(config, ""), ours.embedder).content(), tmp_path / "complex.pt")
    code, _, err = run(
        convert.main, trained, "--ensemble", tmp_path / "complex.pt", "-o", tmp_path / "x.safetensors"
    )
    assert code == 2 and "the mask of member 1 is complex, here it is sigmoid" in err
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("damage", ["cut", "other", "text", "empty"])
def test_damaged_weights_are_refused(run: Runner, trained: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    assert run(convert.main, trained, "-o", path)[0] == 0
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "other":
        save_file({"x": torch.zeros(2)}, path)
    else:
        path.write_text("no weights" if damage == "text" else "")
    with pytest.raises(UserError, match=r"cut off, damaged, or another|it is empty"):
        Separator.load(path)


def test_only_weights_have_16_bits(run: Runner, trained: Path, tmp_path: Path) -> None:
    code, _, err = run(convert.main, trained, "-o", tmp_path / "x.pt", "--half")
    assert code == 2 and "--half: is for a file named .safetensors" in err
    code, _, err = run(convert.main, trained, "-o", tmp_path / "x.pt", "--int8")
    assert code == 2 and "--int8: is for a file named .safetensors" in err
    code, _, err = run(convert.main, trained, "-o", tmp_path / "x.pt")
    assert code == 2 and "is a checkpoint of this project already" in err


@pytest.mark.parametrize("prefix", ["model.", "module.module.", "model.module."])
def test_names_may_be_wrapped_and_settings_be_bytes(prefix: str, tmp_path: Path) -> None:
    wrapped = {f"{prefix}{name}": value for name, value in STATE.items()}
    torch.save({"state_dict": wrapped, "hp_str": HP.encode()}, tmp_path / "w.pt")
    foreign = read_foreign(tmp_path / "w.pt")
    assert foreign.state.keys() == STATE.keys() and foreign.settings.audio["n_fft"] == N_FFT


def test_a_file_that_is_not_known_says_what_it_holds(
    run: Runner, tmp_path: Path, embedder_file: Path
) -> None:
    torch.save({"model": {"encoder.weight": torch.ones(2)}}, tmp_path / "x.pt")
    code, _, err = run(convert.main, tmp_path / "x.pt", "-e", embedder_file, "-o", tmp_path / "y.pt")
    assert code == 2 and "no separator of another project" in err and "it holds encoder.weight" in err
    (tmp_path / "folder.pt").mkdir()
    state = write_layout(tmp_path, "release")
    code, _, err = run(convert.main, state, "-e", embedder_file, "-o", tmp_path / "folder.pt")
    assert code == 2 and f"{tmp_path / 'folder.pt'}: is a folder" in err
