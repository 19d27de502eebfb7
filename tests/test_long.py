"""Recordings of more than a piece: in chunks, or through recurrent layers as if they were in one piece."""

from __future__ import annotations

import errno
import os
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.load import load_config
from model import exported, long_recurrence, presence, recording, separator
from model.dvector import DVector
from model.exported import export_separator, exported_separator, quantize
from model.graph_parts import cut
from model.long_recurrence import Rows
from model.onnx_network import OnnxGraph
from model.presence import Calibration, Listener
from model.recording import Wishes, separate_recording
from model.separator import Separator
from tests.conftest import tone_voice
from utils.audio import resample, write_audio
from utils.errors import UserError


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (separator, recording):
        monkeypatch.setattr(module, "CHUNK_SECONDS", 1.0)
    monkeypatch.setattr(separator, "OVERLAP_SECONDS", 0.4)
    monkeypatch.setattr(long_recurrence, "PIECE_SECONDS", 0.5)
    monkeypatch.setattr(long_recurrence, "MEMORY_BYTES", 10_000)  # files from the beginning


def separator_of(network: dict[str, Any], n_fft: int = 400, hop: int = 160) -> Separator:
    """Untrained; its residual layers are no identities."""
    torch.manual_seed(0)
    audio = {"n_fft": n_fft, "hop_length": hop, "win_length": n_fft}
    built = Separator(
        load_config(
            None, [f"network={network}", f"audio={audio}", "train.precision=fp32", "store.kind=wave"]
        ),
        DVector(hidden=8),
    ).eval()
    for name, weight in built.network.named_parameters():
        if name.startswith("residuals."):
            torch.nn.init.normal_(weight, std=0.3)
    return built


def in_one_piece(system: Separator, mixture: np.ndarray, vectors: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return system(torch.from_numpy(mixture), vectors).numpy()


@given(
    length=st.integers(16_001, 60_000),
    stack=st.integers(1, 4),
    level_frames=st.sampled_from([0, 1, 41]),
    residual_layers=st.integers(0, 2),
    mask=st.sampled_from(["sigmoid", "complex"]),
    front_end=st.sampled_from([(400, 160), (800, 200), (256, 120)]),
    cuts=st.lists(st.integers(1, 60_000), max_size=4),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_recurrent_network_hears_long_mixtures_as_in_one_piece(
    length: int,
    stack: int,
    level_frames: int,
    residual_layers: int,
    mask: str,
    front_end: tuple[int, int],
    cuts: list[int],
) -> None:
    network = {
        "kind": "film_blstm",
        "front_dim": 6,
        "lstm_dim": 8,
        "stack": stack,
        "level_frames": level_frames,
        "residual_layers": residual_layers,
        "mask": mask,
    }
    system = separator_of(network, *front_end)
    mixture = np.random.default_rng(length).standard_normal((2, length)).astype(np.float32) * 0.1
    vectors = torch.randn(2, 256)
    blocks = np.split(mixture, sorted(cuts), axis=1)
    found = np.concatenate(list(system.separate_blocks(blocks, vectors)), axis=1)
    expected = in_one_piece(system, mixture, vectors)
    loudest = max(1.0, float(np.abs(expected).max()))  # a complex mask amplifies, and its rounding with it
    np.testing.assert_allclose(found, expected, atol=1e-5 * loudest)


def test_what_is_written_from_the_end_on_waits_in_a_file() -> None:
    with Rows(1, 1000) as rows:
        tracemalloc.start()
        for start in (50_000, 25_000, 0):  # 200 MB further on
            rows.write(start, torch.full((1, 2, 1000), float(start)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6
        for start in (0, 25_000, 50_000):
            assert rows.read(start, start + 2).unique().tolist() == [start]


BANDS = {"kind": "band_split", "dim": 6, "lstm_dim": 5, "blocks": 3, "level_frames": 9}
LAYERS = {
    "kind": "film_blstm",
    "front_dim": 16,
    "lstm_dim": 8,
    "residual_layers": 1,
    "level_frames": 41,
}
FRAMES = {"kind": "film_blstm", "front_dim": 6, "lstm_dim": 8, "stack": 3, "residual_layers": 1}
BLIND = {"kind": "blind_blstm", "front_dim": 6, "lstm_dim": 8, "stack": 2, "choice_dim": 5}


@pytest.mark.parametrize(
    "network",
    [
        BANDS,
        {**BANDS, "embedding": "none", "level_frames": 0},
        {**BANDS, "stack": 2, "whole_dim": 7, "mask": "complex"},
        {"kind": "ensemble", "members": [FRAMES, {**BANDS, "stack": 2, "whole_dim": 7}, BANDS]},
        {**BLIND, "level_frames": 41},
        {**BLIND, "residual_layers": 1, "choice_layers": 2, "mask": "complex"},
    ],
    ids=["bands", "without a reference", "whole frames", "ensemble", "blind", "blind and deep"],
)
@pytest.mark.parametrize("length", [16_001, 40_000, 51_713])
def test_layers_over_bands_and_ensembles_do_so_too(network: dict[str, Any], length: int) -> None:
    system = separator_of(network)
    mixture = np.random.default_rng(length).standard_normal((2, length)).astype(np.float32) * 0.1
    vectors = None if system.embedder is None else torch.randn(2, 256)
    found = np.concatenate(
        list(system.separate_blocks(np.split(mixture, [7, 9_000], axis=1), vectors)), axis=1
    )
    with torch.inference_mode():
        whole = system(torch.from_numpy(mixture), vectors).numpy()
    assert system.hears_whole
    np.testing.assert_allclose(found, whole, atol=1e-5 * max(1.0, float(np.abs(whole).max())))


def test_an_ensemble_with_a_member_that_hears_pieces_goes_in_chunks() -> None:
    network = {"kind": "ensemble", "members": [FRAMES, {"kind": "unet", "channels": [2, 3]}]}
    assert not separator_of(network).hears_whole


def test_bfloat16_hears_the_same_within_its_rounding() -> None:
    system = separator_of({"kind": "film_blstm", "front_dim": 32, "lstm_dim": 32, "residual_layers": 1})
    system.precision = "bf16"
    mixture, vector = tone_voice(0, 3.0, 0)[None], torch.randn(1, 256)
    found, whole = system.separate_channels(mixture, vector), in_one_piece(system, mixture, vector)
    assert np.square(found - whole).sum() < 1e-4 * np.square(whole).sum()  # -40 dB


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        LAYERS,
        {**LAYERS, "embedding": "none"},
        {**LAYERS, "mask": "complex", "stack": 3},
        BANDS,
        {**BANDS, "stack": 2, "whole_dim": 7, "mask": "complex", "embedding": "none"},
        {"kind": "ensemble", "members": [LAYERS, {**BANDS, "stack": 2, "whole_dim": 7}, BANDS]},
    ],
    ids=["", "without a reference", "complex", "bands", "whole frames", "ensemble"],
)
def test_its_graph_does_too(tmp_path: Path, network: dict[str, Any], small: bool) -> None:
    system = separator_of(network)
    path = export_separator(system, tmp_path)[0]
    if small:
        path = quantize(path, tmp_path / "int8")
        for embedder in tmp_path.glob("embedder.onnx"):
            embedder.rename(path.with_name(embedder.name))
    exported = exported_separator(path, OnnxGraph.load(path))
    assert exported.hears_whole
    mixture = np.random.default_rng(0).standard_normal((2, 39_999)).astype(np.float32) * 0.1
    vectors = None if system.embedder is None else torch.randn(2, 256)
    blocks = np.split(mixture, [5, 20_000], axis=1)
    found = np.concatenate(list(exported.separate_blocks(blocks, vectors)), axis=1)
    with torch.inference_mode():
        whole = exported(torch.from_numpy(mixture), vectors).numpy()
    error = np.square(found - whole).sum() / np.square(whole).sum()
    # activations of 8 bits share one scale a piece
    assert error < (1e-2 if small else 1e-9)
    if not small:
        np.testing.assert_allclose(found, system.separate_channels(mixture, vectors), atol=1e-5)


def test_recordings_at_the_same_time_share_one_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_separator(separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8}), tmp_path)[0]
    network = exported_separator(path, OnnxGraph.load(path)).network
    cuts: list[Any] = []

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)
        cuts.append(given)
        return cut(*given)

    monkeypatch.setattr(exported, "cut", slowly)
    with ThreadPoolExecutor(3) as threads:
        found = [len(one) for one in threads.map(lambda _: network.layered, range(3))]
    assert found == [1, 1, 1] and len(cuts) == 1


def test_a_graph_that_somebody_changed_takes_chunks_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export_separator(separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8}), tmp_path)[0]
    graph = onnx.load(path)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "features_1":
                    names[place] = "renamed"
    onnx.save(graph, path)
    exported = exported_separator(path, OnnxGraph.load(path))
    assert exported.separate(tone_voice(0, 0.9, 0), tone_voice(0, 2.0, 1), rate=16000).any()
    capsys.readouterr()
    assert exported.separate(tone_voice(0, 2.0, 0), tone_voice(0, 2.0, 1), rate=16000).any()
    out, err = capsys.readouterr()
    assert not out and err.count("cannot be cut (it has no 'features_1'): long recordings go through it") == 1


@pytest.mark.parametrize("kind", ["film_blstm", "voicefilter"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_long_recordings_are_aligned_with_their_residual(tmp_path: Path, kind: str, rate: int) -> None:
    sizes = {"film_blstm": {"front_dim": 8, "lstm_dim": 8}, "voicefilter": {"channels": 2, "lstm_dim": 4}}
    system = separator_of({"kind": kind, **sizes[kind]})
    mixture = np.stack([tone_voice(0, 3.21, 0, rate), tone_voice(1, 3.21, 0, rate)])
    write_audio(tmp_path / "x.wav", mixture, rate)
    vector = torch.randn(1, 256)
    separate_recording(system, tmp_path / "x.wav", vector, tmp_path / "y.wav", Wishes(residual=True))
    found, rest = (
        soundfile.read(tmp_path / name, always_2d=True)[0].T for name in ("y.wav", "y-residual.wav")
    )
    np.testing.assert_allclose(found + rest, mixture, atol=1e-6)
    expected = system.separate_channels(resample(mixture, rate, 16000), vector)
    np.testing.assert_allclose(found, resample(expected, 16000, rate)[:, : found.shape[1]], atol=1e-4)


def test_a_long_recording_can_be_given_up_before_anything_is_finished(tmp_path: Path) -> None:
    class Soon(Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 20

    system = separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8})
    write_audio(tmp_path / "x.wav", tone_voice(0, 8.0, 0, 44100), 44100)
    soon = Soon()
    with pytest.raises(UserError, match="stopped"):
        separate_recording(
            system, tmp_path / "x.wav", torch.randn(1, 256), tmp_path / "o/y.wav", Wishes(), stopping=soon
        )
    assert soon.asked == 21 and not list((tmp_path / "o").iterdir())


def test_convolutions_hear_chunks_nearly_as_the_whole() -> None:
    system = separator_of({"kind": "voicefilter", "channels": 2, "lstm_dim": 4})
    mixture, vector = tone_voice(0, 4.0, 0)[None], torch.randn(1, 256)
    pieces, whole = system.separate_channels(mixture, vector), in_one_piece(system, mixture, vector)
    assert pieces.shape == whole.shape
    assert np.square(pieces - whole).mean() < 0.05 * np.square(whole).mean()


def test_chunks_have_the_frames_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    system = separator_of(
        {"kind": "unet", "channels": [2, 3]}
    )  # which halves the frames once: chunks begin at even ones
    hop = system.spectral.hop_length
    for name, frames in (("CHUNK_SECONDS", 101), ("OVERLAP_SECONDS", 40), ("FADE_SECONDS", 5)):
        monkeypatch.setattr(f"model.separator.{name}", frames * hop / 16000)
    mixture, vector = tone_voice(0, 4.0, 0)[None], torch.randn(1, 256)
    pieces, whole = system.separate_channels(mixture, vector), in_one_piece(system, mixture, vector)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, OSError, "No space left on device; what waits of a long recording goes where TMPDIR"),
        (errno.ENOENT, UserError, "no temporary file .*TMPDIR"),
    ],
)
def test_rows_that_cannot_be_written_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    class Broken:
        def seek(self, place: int) -> None: ...

        def write(self, data: bytes) -> None:
            raise OSError(number, os.strerror(number))

        read = write

        def close(self) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(long_recurrence.tempfile, "SpooledTemporaryFile", lambda max_size: Broken())
    system = separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8})
    write_audio(tmp_path / "x.wav", tone_voice(0, 3.0, 0), 16000)
    with pytest.raises(kind, match=words) as caught:
        separate_recording(system, tmp_path / "x.wav", torch.randn(1, 256), tmp_path / "o/y.wav", Wishes())
    if kind is OSError:
        assert caught.value.filename == tempfile.gettempdir()  # type: ignore[attr-defined]
    assert not list((tmp_path / "o").iterdir())


def test_a_file_that_changes_under_its_reader_is_refused(tmp_path: Path) -> None:
    system = separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8})
    write_audio(tmp_path / "x.wav", tone_voice(0, 3.0, 0), 16000)

    class Meanwhile(Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            if self.asked == 10:
                write_audio(tmp_path / "x.wav", tone_voice(1, 3.0, 0), 16000)
            return False

    place = tmp_path / "o/y.wav"
    with pytest.raises(UserError, match="was changed while it was read"):
        separate_recording(
            system, tmp_path / "x.wav", torch.randn(1, 256), place, Wishes(), stopping=Meanwhile()
        )
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize("mono", [False, True])
def test_presence_in_a_long_recording_is_judged_by_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mono: bool
) -> None:
    """Mixture and estimate, which are read at different times, belong to the same moments."""
    for module in (presence, recording):
        monkeypatch.setattr(module, "PIECE_SECONDS", 1.0)
    system = separator_of({"kind": "film_blstm", "front_dim": 8, "lstm_dim": 8, "level_frames": 41})
    for parameter in system.parameters():
        parameter.data.mul_(4)  # what is heard differs from piece to piece
    rate = 44100
    mixture = np.stack([tone_voice(0, 6.3, 0, rate), 0.3 * tone_voice(1, 6.3, 0, rate)])
    mixture[:, : 2 * rate] *= 0.02
    write_audio(tmp_path / "x.wav", mixture, rate)
    vector = torch.randn(1, 256)
    heard = resample(mixture.mean(0, keepdims=True) if mono else mixture, rate, 16000)
    listener = Listener(system, vector)
    listener(heard.mean(0), system.separate_channels(heard, vector).mean(0))
    found, weights = listener.evidence(), (300.0, -200.0, 2.0)
    offset = -float(np.mean([np.dot(weights, evidence.vector(False)) for evidence in found]))
    calibration = Calibration(weights, offset, 10, 0.9, 0.9)
    probabilities = [calibration.probability(evidence) for evidence in found]
    best = int(np.argmax(probabilities))
    assert len(found) == 5 and max(probabilities) - min(probabilities) > 0.05
    wishes = Wishes(mono=mono, calibration=calibration)
    report = separate_recording(system, tmp_path / "x.wav", vector, tmp_path / "y.wav", wishes)
    assert report.presence == pytest.approx(probabilities[best], abs=0.02) and report.heard_at == best
    assert report.similarity == pytest.approx(found[best].similarity, abs=1e-4)
    assert report.residual_similarity == pytest.approx(found[best].residual_similarity, abs=1e-4)
    strict = Wishes(mono=mono, calibration=calibration, threshold=1.0, absent="silence")
    report = separate_recording(system, tmp_path / "x.wav", vector, tmp_path / "z.wav", strict)
    silence, _ = soundfile.read(tmp_path / "z.wav", always_2d=True)
    assert report.written == "silence" and report.present is False
    assert silence.shape == (mixture.shape[1], 1 if mono else 2) and not silence.any()
