from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch

from config.load import load_config
from model.dvector import DVector
from model.foreign import MINDSLAB, RESEMBLYZER, load_embedder
from model.separator import Separator
from model.spectral import MelSpectrogram, Spectral
from tests.conftest import embedder_state, resemblyzer_state, tone_voice
from utils.errors import UserError

# ---------------------------------------------------------------- front ends


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1200, 160, 400), (800, 400, 800), (512, 128, 400)])
@pytest.mark.parametrize("length", [1, 399, 48000, 47999])
def test_the_inverse_undoes_the_stft(n_fft: int, hop: int, win: int, length: int) -> None:
    spectral, waveform = Spectral(n_fft, hop, win), torch.randn(2, length)
    spectrum = spectral(waveform)
    assert spectrum.shape == (2, -(-length // hop) + 1, n_fft // 2 + 1)
    torch.testing.assert_close(spectral.inverse(spectrum, length), waveform, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [640, 700, 1599])
def test_reflected_ends_are_librosa_s(length: int) -> None:
    """Those of the signal itself, whose last frames may come before the zeros behind it."""
    wave = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    ours = Spectral(256, 100, 200, "reflect")(torch.from_numpy(wave)[None])[0]
    theirs = librosa.stft(wave, n_fft=256, hop_length=100, win_length=200, pad_mode="reflect").T
    np.testing.assert_allclose(ours[: len(theirs)].numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize(("n_fft", "log"), [(400, False), (512, True)])
def test_mel_front_ends_are_librosa_s(n_fft: int, log: bool) -> None:
    voice = tone_voice(0, 1.3, 0)
    ours = MelSpectrogram(16000, n_fft, 400, 160, 40, log)(torch.from_numpy(voice)[None])[0].numpy()
    theirs = librosa.feature.melspectrogram(
        y=voice, sr=16000, n_fft=n_fft, win_length=400, hop_length=160, n_mels=40
    ).T
    np.testing.assert_allclose(ours, np.log10(theirs + 1e-6) if log else theirs, atol=1e-4)


# ---------------------------------------------------------------- embedders


def resemblyzer_formula(state: dict[str, torch.Tensor], voice: torch.Tensor) -> torch.Tensor:
    """Written out: level, power mel, LSTM, linear, ReLU, unit length, mean over windows, unit length."""
    voice = voice * max(1.0, float(10 ** (-30 / 20) / voice.square().mean().sqrt()))
    mel = librosa.feature.melspectrogram(y=voice.numpy(), sr=16000, n_fft=400, hop_length=160, n_mels=40).T
    starts = list(range(0, len(mel) - 159, 80))
    if starts[-1] != len(mel) - 160:
        starts.append(len(mel) - 160)
    x = torch.from_numpy(np.stack([mel[s : s + 160] for s in starts])).float()
    for layer in range(3):
        w_ih, w_hh = state[f"lstm.weight_ih_l{layer}"], state[f"lstm.weight_hh_l{layer}"]
        bias = state[f"lstm.bias_ih_l{layer}"] + state[f"lstm.bias_hh_l{layer}"]
        h = c = torch.zeros(len(x), 256)
        outputs = []
        for t in range(160):
            i, f, g, o = (x[:, t] @ w_ih.T + h @ w_hh.T + bias).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs, dim=1)
    vector = torch.relu(x[:, -1] @ state["linear.weight"].T + state["linear.bias"])
    vector = vector / vector.norm(dim=1, keepdim=True)
    mean = vector.mean(0)
    return mean / mean.norm()


def test_resemblyzer_s_file_gives_what_its_formula_says(embedder_file: Path) -> None:
    embedder = load_embedder(str(embedder_file))
    assert embedder.options["hidden"] == 256
    quiet, loud = (torch.from_numpy(g * tone_voice(1, 3.1, 0)) for g in (0.01, 8.0))
    state = resemblyzer_state()
    expected = torch.stack([resemblyzer_formula(state, voice) for voice in (quiet, loud)])
    with torch.inference_mode():
        torch.testing.assert_close(embedder.embed([quiet, loud]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_public_reimplementation_s_embedder_loads(tmp_path: Path, legacy: bool) -> None:
    state = {f"module.{key}": value for key, value in embedder_state(768, "proj.linear_layer", 0.05).items()}
    torch.save(state, tmp_path / "embedder.pt", _use_new_zipfile_serialization=not legacy)
    embedder = load_embedder(str(tmp_path / "embedder.pt"))
    assert {key: embedder.options[key] for key in MINDSLAB} == MINDSLAB
    voice = torch.from_numpy(tone_voice(1, 2.0, 0))
    mel = embedder.front(voice[None])[0]
    windows = [mel[s : s + 80] for s in (*range(0, len(mel) - 79, 40), len(mel) - 80)]
    unit = embedder(torch.stack(windows))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))
    torch.testing.assert_close(embedder.embed([voice])[0], unit.mean(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("linear.bias"), "missing linear.bias"),
        (lambda s: s.update({"lstm.weight_hh_l3": torch.ones(1)}), "unexpected lstm.weight_hh_l3"),
        (lambda s: s.update({"linear.bias": torch.ones(3)}), r"wrong shape linear.bias \(3,\)"),
        (lambda s: s.clear(), "no known embedder"),
    ],
)
def test_a_partial_or_unknown_embedder_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    state = resemblyzer_state()
    change(state)
    torch.save({"model_state": state}, tmp_path / "e.pt")
    with pytest.raises(UserError, match=words):
        load_embedder(str(tmp_path / "e.pt"))


def test_a_batch_of_lengths_embeds_as_one_by_one() -> None:
    embedder = DVector(**{**RESEMBLYZER, "hidden": 16}).eval()
    voices = [torch.from_numpy(tone_voice(s, seconds, 0)) for s, seconds in enumerate((0.4, 1.6, 2.7, 6.0))]
    with torch.inference_mode():
        alone = torch.cat([embedder.embed([voice]) for voice in voices])
        torch.testing.assert_close(embedder.embed(voices), alone)
    with pytest.raises(ValueError, match="without samples"):
        embedder.embed([torch.zeros(0)])


def test_fingerprint_follows_weights_and_options() -> None:
    torch.manual_seed(0)
    first = DVector(hidden=8)
    second = DVector(hidden=8, window_hop=40)
    second.load_state_dict(first.state_dict())
    third = DVector(hidden=8)
    assert len({first.fingerprint(), second.fingerprint(), third.fingerprint()}) == 3
    third.load_state_dict(first.state_dict())
    assert third.fingerprint() == first.fingerprint()


# ---------------------------------------------------------------- the separator


def tiny_separator() -> Separator:
    torch.manual_seed(0)
    config = load_config(None, ["network={kind: film_blstm, front_dim: 8, lstm_dim: 8}", "audio.n_fft=400"])
    return Separator(config, DVector(hidden=8)).eval()


def test_estimates_have_the_mixture_s_length_and_channels_are_independent() -> None:
    separator = tiny_separator()
    mixture = np.stack([tone_voice(0, 2.01, 0), tone_voice(1, 2.01, 0)])
    vector = separator.embed(tone_voice(0, 3.0, 1))
    both = separator.separate_channels(mixture, vector)
    assert both.shape == mixture.shape
    np.testing.assert_allclose(both[:1], separator.separate_channels(mixture[:1], vector), atol=1e-5)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (np.zeros(16000, np.float32), "is silent"),
        (tone_voice(0, 0.3, 0), r"0\.\d\d s of speech, at least 0.4 s is needed"),
    ],
)
def test_a_poor_reference_is_refused_with_its_length(reference: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_separator().embed(reference, "r.wav")
