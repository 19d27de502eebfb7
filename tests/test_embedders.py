"""Embedders: their networks, windows, foreign files, and the criteria that train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from config.load import CONFIG_FOLDER, load_any_config, load_config
from model import vggm
from model.dvector import DVector
from model.embedder import Embedder
from model.embedder_task import build_criterion
from model.foreign import HARRYVOLEK, MINDSLAB, RESEMBLYZER, build_embedder, load_embedder
from model.ge2e import GE2E, SMALLEST_SCALE, Classifier
from model.reference import read_reference
from model.spectral import HammingSpectrogram
from model.vggm import VggM
from tests.conftest import RATE, embedder_state, resemblyzer_state, tone_voice
from utils.audio_check import Clipping, clipped_share
from utils.errors import UserError

VOICES = [torch.from_numpy(tone_voice(s, seconds, 0)) for s, seconds in enumerate((0.4, 1.6, 2.7, 6.0, 2.7))]


def small(name: str) -> Embedder:
    torch.manual_seed(0)
    match name:
        case "paper":
            return DVector(hidden=16, projection=8, dim=8, n_fft=512).eval()
        case "mindslab":
            return DVector(**{**MINDSLAB, "hidden": 16}).eval()
        case "resemblyzer":
            return DVector(**{**RESEMBLYZER, "hidden": 16}).eval()
    embedder = VggM(n_fft=512, dim=8).eval()
    for name, buffer in embedder.named_buffers():  # as after a training: batch norm that does something
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn_like(buffer))
    return embedder


KINDS = ["paper", "mindslab", "resemblyzer", "vggm"]

# ---------------------------------------------------------------- embedding


@pytest.mark.parametrize("name", KINDS)
def test_utterances_of_unequal_lengths_embed_as_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = small(name)
    with torch.inference_mode():
        alone = torch.cat([embedder.embed([voice]) for voice in VOICES])
        torch.testing.assert_close(embedder.embed(VOICES), alone, atol=2e-5, rtol=0)
        embedder.samples_at_once = 50_000  # in several groups
        torch.testing.assert_close(embedder.embed(VOICES), alone, atol=2e-5, rtol=0)
    if embedder.unit_length:
        torch.testing.assert_close(alone.norm(dim=1), torch.ones(len(alone)))
    with pytest.raises(ValueError, match="without samples"):
        embedder.embed([torch.zeros(0)])
    with pytest.raises(ValueError, match="no utterance"):
        embedder.embed([])


@pytest.mark.parametrize("name", KINDS)
def test_several_references_of_a_speaker_give_their_mean(name: str) -> None:
    embedder = small(name)
    with torch.inference_mode():
        single = embedder.embed(VOICES)
        mean = embedder.embed_speakers(VOICES, [0, 1, 0, 1, 1])
    expected = torch.stack([single[[0, 2]].mean(0), single[[1, 3, 4]].mean(0)])
    if embedder.unit_length:
        expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(mean, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_short_utterance_is_repeated_and_gradients_reach_the_waveform(name: str) -> None:
    embedder = small(name)
    least = (embedder.shortest - 1) * embedder.hop_length
    short = VOICES[0]
    repeated = short.repeat(10)[:least]
    torch.testing.assert_close(embedder.embed([short]), embedder.embed([repeated]))
    waves = [VOICES[0].clone().requires_grad_(), VOICES[3].clone().requires_grad_()]
    embedder.embed(waves)[:, 0].sum().backward()
    for wave in waves:
        assert wave.grad is not None and wave.grad.isfinite().all() and wave.grad.abs().sum() > 0


@pytest.mark.parametrize("name", KINDS)
def test_crops_have_the_frames_of_their_utterance(name: str) -> None:
    embedder = small(name)
    embedder.min_level_db = None  # the level is that of what is given
    voice = VOICES[3]
    whole = embedder.front(voice[None])[0]
    for start, frames in ((40, 120), (200, 140)):
        first = (start - embedder.margin) * embedder.hop_length
        piece = voice[first : first + embedder.crop_samples(frames)]
        crop = embedder.crops(torch.stack([piece, piece]))
        assert crop.shape == (2, frames, whole.shape[1])
        torch.testing.assert_close(crop[1], whole[start : start + frames], atol=1e-4, rtol=0)


def test_the_paper_s_network_has_projections_in_every_layer() -> None:
    network = load_any_config(CONFIG_FOLDER / "embedder" / "ge2e.yaml").network
    shapes = {k: tuple(v.shape) for k, v in build_embedder(network.model_dump()).state_dict().items()}
    for layer, inputs in enumerate((40, 256, 256)):
        assert shapes[f"lstm.weight_ih_l{layer}"] == (4 * 768, inputs)
        assert shapes[f"lstm.weight_hr_l{layer}"] == (256, 768)
    assert shapes["linear.weight"] == (256, 256)


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "embedder").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_embedder_s_configuration_builds_and_learns_from_a_step(path: Path) -> None:
    config = load_any_config(path)
    embedder = build_embedder(config.network.model_dump())
    criterion = build_criterion(config.loss, embedder.dim, 7)
    vectors = embedder.vectors(embedder.crops(torch.randn(4, embedder.crop_samples(config.train.frames[0]))))
    values = criterion(vectors.unflatten(0, (2, 2)), torch.tensor([3, 5]))
    values["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in embedder.parameters())


def test_a_separator_s_script_refuses_an_embedder_s_configuration() -> None:
    with pytest.raises(UserError, match="trains an embedder"):
        load_config(CONFIG_FOLDER / "embedder" / "ge2e.yaml")
    with pytest.raises(UserError, match=r"did you mean 'train\.utterances'"):
        load_any_config(CONFIG_FOLDER / "embedder" / "ge2e.yaml", ["train.utterence=3"])
    with pytest.raises(UserError, match="GE2E compares at least two"):
        load_any_config(CONFIG_FOLDER / "embedder" / "ge2e.yaml", ["train.utterances=1"])
    with pytest.raises(UserError, match="task: expected one of separator, embedder, got 'embeder'"):
        load_any_config(None, ["task=embeder"])


# ---------------------------------------------------------------- VGG-M


def test_hamming_spectrograms_are_librosa_s() -> None:
    voice = tone_voice(0, 1.3, 0)
    ours = HammingSpectrogram(1024, 400, 160)(torch.from_numpy(voice)[None])[0].numpy()
    spectrum = librosa.stft(voice, n_fft=1024, hop_length=160, win_length=400, window="hamming")
    np.testing.assert_allclose(ours, np.abs(spectrum).T, atol=1e-4)


def test_vggm_has_the_published_layers() -> None:
    embedder = VggM()
    shapes = {k: tuple(v.shape) for k, v in embedder.state_dict().items() if k.endswith("weight")}
    convolutions = [shapes[f"convolutions.{n}.weight"] for n in range(5)]
    assert convolutions == [
        (96, 1, 7, 7), (256, 96, 5, 5), (384, 256, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)
    ]  # fmt: skip
    assert shapes["fc6.weight"] == (4096, 256, 9, 1)  # 9 x 8 columns are left of 3 s, as in the paper
    assert shapes["fc7.weight"] == (512, 4096)


def test_vggm_by_its_formula() -> None:
    embedder = small("vggm")
    voice = VOICES[2]
    x = embedder.front(voice[None])[0].T  # [F, T]
    x = ((x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True))[None, None]
    state = embedder.state_dict()

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance = (state[f"{name}.running_{what}"][:, None, None] for what in ("mean", "var"))
        x = (x - mean) / (variance + 1e-5).sqrt()
        return torch.relu(x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None])

    pools = [((3, 3), (2, 2)), ((3, 3), (2, 2)), None, None, ((5, 3), (3, 2))]
    for n, (stride, pool) in enumerate(zip((2, 2, 1, 1, 1), pools, strict=True)):
        weight, bias = state[f"convolutions.{n}.weight"], state[f"convolutions.{n}.bias"]
        x = normed(torch.conv2d(x, weight, bias, stride, padding=1), f"norms.{n}")
        x = torch.max_pool2d(x, *pool) if pool else x
    x = normed(torch.conv2d(x, state["fc6.weight"], state["fc6.bias"]), "norm6")
    vector = x.mean((2, 3)) @ state["fc7.weight"].T + state["fc7.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(embedder.embed([voice]), vector / vector.norm(), atol=1e-5, rtol=0)


def test_vggm_hears_long_utterances_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = small("vggm")
    with torch.inference_mode():
        whole = embedder.embed([VOICES[3], VOICES[1]])
        monkeypatch.setattr(vggm, "LONGEST", 210)  # three parts of 601 frames
        parts = embedder.embed([VOICES[3], VOICES[1]])
    assert (whole * parts).sum(-1).min() > 0.8
    torch.testing.assert_close(parts[1], whole[1], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- foreign files


def formula(state: dict[str, Tensor], mel: Tensor, lstm: str, linear: str) -> Tensor:
    """Windows of mel frames [W, T, M] -> the last frame's vector at unit length, written out."""
    x = mel
    for layer in range(3):
        w_ih, w_hh = state[f"{lstm}weight_ih_l{layer}"], state[f"{lstm}weight_hh_l{layer}"]
        bias = state[f"{lstm}bias_ih_l{layer}"] + state[f"{lstm}bias_hh_l{layer}"]
        h = c = torch.zeros(len(x), w_hh.shape[1])
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (x[:, t] @ w_ih.T + h @ w_hh.T + bias).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs, dim=1)
    vector = x[:, -1] @ state[f"{linear}weight"].T + state[f"{linear}bias"]
    return vector / vector.norm(dim=1, keepdim=True)


def foreign_file(family: str, path: Path, legacy: bool, prefix: str) -> dict[str, Tensor]:
    """Writes random weights in a family's layout and returns them under its own names."""
    if family in ("resemblyzer", "encoder"):
        state = resemblyzer_state()
    else:
        state = embedder_state(768, "proj.linear_layer", 0.05)
        if family == "harryvolek":
            state = {
                k.replace("lstm.", "LSTM_stack.").replace("proj.linear_layer.", "projection."): v
                for k, v in state.items()
            }
    stored: dict[str, Any] = {f"{prefix}{key}": value for key, value in state.items()}
    if family in ("resemblyzer", "encoder"):
        weights = [torch.nn.Parameter(value.clone()) for value in state.values()]
        optimizer = torch.optim.Adam(weights)
        sum(w.sum() for w in weights).backward()  # type: ignore[union-attr]
        optimizer.step()
        stored = {"step": 7, "model_state": stored, "optimizer_state": optimizer.state_dict()}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    return state


@pytest.mark.parametrize("family", ["mindslab", "harryvolek", "encoder", "resemblyzer"])
@pytest.mark.parametrize(
    ("legacy", "prefix"), [(False, ""), (True, ""), (False, "module."), (True, "module.")]
)
def test_foreign_layouts_load_and_give_what_their_formula_says(
    tmp_path: Path, family: str, legacy: bool, prefix: str
) -> None:
    state = foreign_file(family, tmp_path / "e.pt", legacy, prefix)
    embedder = load_embedder(str(tmp_path / "e.pt"))
    options = {"mindslab": MINDSLAB, "harryvolek": HARRYVOLEK}.get(family, RESEMBLYZER)
    assert {key: embedder.options[key] for key in options} == options
    if family in ("encoder", "resemblyzer") or legacy or prefix:
        return  # the formula of the first two is in test_model.py, one layout of the others is enough
    voice = tone_voice(1, 1.9, 0)
    mel = librosa.feature.melspectrogram(
        y=voice, sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40
    ).T
    mel = torch.from_numpy(np.log10(mel + 1e-6)).float()
    window, hop = (80, 40) if family == "mindslab" else (160, 80)
    starts = sorted({*range(0, len(mel) - window + 1, hop), len(mel) - window})
    lstm, linear = ("lstm.", "proj.linear_layer.") if family == "mindslab" else ("LSTM_stack.", "projection.")
    with torch.inference_mode():
        expected = formula(state, torch.stack([mel[s : s + window] for s in starts]), lstm, linear).mean(0)
        ours = embedder.embed([torch.from_numpy(voice)])[0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert ours.norm() < 0.99999  # the mean of the windows keeps its length


@pytest.mark.parametrize("family", ["mindslab", "harryvolek", "resemblyzer"])
@pytest.mark.parametrize("part", ["l2", "linear", "projection", "weight_ih_l0"])
def test_a_partial_foreign_file_is_refused_with_what_is_missing(
    tmp_path: Path, family: str, part: str
) -> None:
    state = foreign_file(family, tmp_path / "whole.pt", False, "")
    gone = [key for key in state if part in key and "similarity" not in key]
    for key in gone:
        del state[key]
    torch.save(state, tmp_path / "part.pt")
    if not gone:
        return
    with pytest.raises(UserError, match="not a complete embedder: missing") as error:
        load_embedder(str(tmp_path / "part.pt"))
    for key in gone:
        assert key in str(error.value)


def test_an_embedder_of_this_project_keeps_kind_weights_and_speakers(tmp_path: Path) -> None:
    for name in ("paper", "vggm"):
        embedder = small(name)
        embedder.training_speakers = ("b", "a")
        torch.save({"embedder": embedder.content()}, tmp_path / "own.pt")
        again = load_embedder(str(tmp_path / "own.pt"))
        assert (type(again), again.training_speakers) == (type(embedder), ("b", "a"))
        assert again.fingerprint() == embedder.fingerprint()
    content = {"embedder": {**small("paper").content(), "options": {"kind": "unet"}}}
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(UserError, match="damaged"):
        load_embedder(str(tmp_path / "own.pt"))


# ---------------------------------------------------------------- criteria


def by_hand(e: np.ndarray, contrast: bool, scale: float, offset: float) -> float:
    """GE2E as the paper writes it, for vectors [N, M, D] of unit length."""
    speakers, utterances, _ = e.shape
    total = 0.0
    for j in range(speakers):
        for i in range(utterances):
            similarity = []
            for k in range(speakers):
                mean = np.delete(e[j], i, 0).mean(0) if k == j else e[k].mean(0)
                cosine = e[j, i] @ mean / np.linalg.norm(mean)
                similarity.append(scale * cosine + offset)
            if contrast:
                probability = 1 / (1 + np.exp(-np.array(similarity)))
                total += 1 - probability[j] + np.delete(probability, j).max()
            else:
                total += -similarity[j] + np.log(np.exp(similarity).sum())
    return total


@pytest.mark.parametrize("contrast", [False, True])
def test_ge2e_is_the_paper_s(contrast: bool) -> None:
    generator = np.random.default_rng(0)
    e = generator.standard_normal((4, 3, 5))
    unit = e / np.linalg.norm(e, axis=-1, keepdims=True)
    expected = by_hand(unit, contrast, 7.0, -2.0)
    vectors, labels = torch.from_numpy(e).float(), torch.arange(4)
    added = GE2E(contrast, 7.0, -2.0, add_up=True)(vectors, labels)["loss"]
    mean = GE2E(contrast, 7.0, -2.0)(vectors, labels)["loss"]
    assert added.item() == pytest.approx(expected, rel=1e-5)
    assert mean.item() == pytest.approx(expected / 12, rel=1e-5)


def test_the_scale_is_kept_positive_and_both_are_learnt() -> None:
    criterion = GE2E()
    assert (criterion.scale.item(), criterion.offset.item()) == (10.0, -5.0)
    # softmax is indifferent to an offset that all similarities share; the contrast loss is not
    GE2E.forward(criterion, torch.randn(3, 2, 4), torch.arange(3))["loss"].backward()
    assert criterion.scale.grad is not None and criterion.scale.grad.abs() > 0
    with torch.no_grad():
        criterion.scale.fill_(-3.0)
    criterion.clamp()
    assert criterion.scale.item() == pytest.approx(SMALLEST_SCALE)
    with pytest.raises(ValueError, match="at least two of each"):
        criterion(torch.randn(3, 1, 4), torch.arange(3))


def test_equal_vectors_and_zero_vectors_have_finite_gradients() -> None:
    for vectors in (torch.ones(3, 2, 4), torch.zeros(3, 2, 4)):
        vectors.requires_grad_()
        GE2E()(vectors, torch.arange(3))["loss"].backward()
        assert vectors.grad is not None and vectors.grad.isfinite().all()


def test_the_classifier_is_cross_entropy() -> None:
    criterion, vectors = Classifier(4, 6), torch.randn(3, 2, 4)
    labels = torch.tensor([5, 0, 2])
    logits = vectors @ criterion.output.weight.T + criterion.output.bias
    picked = torch.log_softmax(logits, -1)[torch.arange(3), :, labels]
    torch.testing.assert_close(criterion(vectors, labels)["loss"], -picked.mean())


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 1), (16000, 2), (48000, 6)])
def test_references_are_converted(tmp_path: Path, rate: int, channels: int) -> None:
    voice = tone_voice(1, 2.0, 0, rate)
    soundfile.write(tmp_path / "r.wav", np.stack([voice] * channels, 1), rate, subtype="FLOAT")
    samples = read_reference(tmp_path / "r.wav", RATE)
    assert samples.shape == (2 * RATE,)
    direct = tone_voice(1, 2.0, 0)
    assert 0.7 < np.abs(samples).max() / np.abs(direct).max() < 1.3


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(RATE), "is silent; at least 0.4 s"),
        (tone_voice(0, 0.3, 0), r"0\.\d\d s of speech, at least 0.4 s is needed"),
        (np.full(RATE, np.nan), "holds NaN or infinite samples, the first after 0.0 s"),
        (np.zeros(0), "holds no samples"),
    ],
)
def test_a_poor_reference_is_refused(tmp_path: Path, samples: np.ndarray, words: str) -> None:
    soundfile.write(tmp_path / "r.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=words):
        read_reference(tmp_path / "r.wav", RATE)


def test_a_reference_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.wav"
    soundfile.write(path, tone_voice(1, 2.0, 0), RATE)
    path.write_bytes(path.read_bytes()[:32044])
    with pytest.raises(UserError, match=r"is cut off after 1\.0 of 2\.0 s"):
        read_reference(path, RATE)


def test_a_clipped_reference_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    voice = tone_voice(1, 2.0, 0)
    voice = voice / np.abs(voice).max()
    for gain, clipped in ((0.99, False), (1.7, True), (0.03, False)):
        soundfile.write(tmp_path / "r.wav", np.clip(gain * voice, -1, 1), RATE)  # 16 bits
        read_reference(tmp_path / "r.wav", RATE)
        assert ("is clipped" in capfd.readouterr().err) == clipped


def test_clipping_is_told_from_loud_tones_and_silence() -> None:
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 60 * time, dtype=np.float32)[None]
    assert clipped_share(tone) == clipped_share(np.zeros((2, 100))) == clipped_share(tone[:, :2]) == 0
    assert clipped_share(np.clip(tone, -0.5, 0.5)) == pytest.approx(2 / 3, abs=0.01)
    # what stands at a lower limit before the loudest place is not clipped, however the blocks are cut
    quiet, loud = np.clip(tone, -0.3, 0.3), np.clip(tone, -0.9, 0.9)
    whole = np.concatenate([quiet, loud], axis=1)
    for pieces in (1, 7, 40):
        found = Clipping()
        for block in np.array_split(whole, pieces, axis=1):
            found.add(block)
        assert found.share == pytest.approx(clipped_share(loud) / 2, abs=0.01)


def test_an_embedder_kept_in_16_bits_is_the_same(embedder_file: Path) -> None:
    one, other, changed = (load_embedder(str(embedder_file)) for _ in range(3))
    other.load_state_dict({name: value.half().float() for name, value in one.state_dict().items()})
    assert one.equals(other) and other.equals(one) and one.fingerprint() != other.fingerprint()
    changed.load_state_dict({name: 1.01 * value for name, value in one.state_dict().items()})
    assert not one.equals(changed)


def test_what_is_no_weight_is_refused_by_name(tmp_path: Path) -> None:
    name = "lstm.weight_hh_l0"
    good = resemblyzer_state()
    cases = {
        "holds NaN or infinity": torch.full_like(good[name], torch.nan),
        "holds complex64 numbers": good[name].to(torch.complex64),
        "holds int32 numbers": good[name].int(),
        "is no dense tensor": good[name].to_sparse(),
        "holds fewer values than it says": torch.ones(1, 1).expand(10**6, 10**6),
    }
    for number, (words, tensor) in enumerate(cases.items()):
        torch.save({"model_state": {**good, name: tensor}}, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match=f"{number}.pt: {name} .*{words}"):
            load_embedder(str(tmp_path / f"{number}.pt"))
    for container in ("state_dict", "model"):
        wrapped = {f"module.{key}": value for key, value in good.items()}
        torch.save({container: wrapped, "step": 3}, tmp_path / "wrapped.pt")
        assert load_embedder(str(tmp_path / "wrapped.pt")).dim == 256
