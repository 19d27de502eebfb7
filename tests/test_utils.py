from __future__ import annotations

import itertools
from pathlib import Path

import mir_eval
import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import tone_voice
from utils.audio import active_seconds, audio_info, read_audio, read_mono, resample, write_audio
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.device import choose_device
from utils.errors import UserError
from utils.files import atomic_file, atomic_folder
from utils.metrics import (
    CEILING_DB,
    SILENCE_DB,
    Decomposition,
    bootstrap_interval,
    bss_eval,
    sdr,
    si_sdr,
    sign_flip_p,
)
from utils.overlap import overlap_stream


def test_sdr_is_mir_eval_s() -> None:
    generator = np.random.default_rng(0)
    target = np.stack([tone_voice(s, 1.5, 0) for s in range(4)])
    noise = 0.03 * generator.standard_normal(target.shape)
    estimate = 0.7 * target + noise
    expected = [
        mir_eval.separation.bss_eval_sources(t, e)[0][0] for t, e in zip(target, estimate, strict=True)
    ]
    scores = sdr(torch.from_numpy(estimate), torch.from_numpy(target))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_sdr_sir_and_sar_are_mir_eval_s() -> None:
    generator = np.random.default_rng(0)
    target, other = (np.stack([tone_voice(s + k, 1.5, 0) for s in range(2)]) for k in (0, 3))
    target, other = (x + 0.01 * generator.standard_normal(x.shape) for x in (target, other))
    echo = 0.3 * np.pad(target, ((0, 0), (100, 0)))[:, : target.shape[1]]
    estimate = 0.7 * target + echo + 0.2 * other + 0.03 * generator.standard_normal(target.shape)
    expected = [
        [
            score[0]
            for score in mir_eval.separation.bss_eval_sources(np.stack([t, o]), np.stack([e, e]), False)
        ]
        for t, o, e in zip(target, other, estimate, strict=True)
    ]
    found = bss_eval(*(torch.from_numpy(x) for x in (estimate, target, other)))
    np.testing.assert_allclose(torch.stack(found, 1), np.array(expected)[:, :3], atol=1e-6)
    torch.testing.assert_close(found.sdr, sdr(torch.from_numpy(estimate), torch.from_numpy(target)))


def test_what_bss_eval_cannot_divide_has_a_value() -> None:
    voice, other = (torch.from_numpy(tone_voice(s, 1.0, 0)) for s in (0, 3))
    silence = torch.zeros_like(voice)
    assert bss_eval(voice + other, voice, silence).sir == CEILING_DB
    assert torch.stack(bss_eval(silence, voice, other)).tolist() == 3 * [SILENCE_DB]
    assert torch.stack(bss_eval(voice, silence, other)).tolist() == 3 * [SILENCE_DB]
    sine = torch.sin(0.1 * torch.arange(8000.0))
    same = bss_eval(sine, sine, sine)  # delayed sines are each other's sums
    assert same.sdr > 60 and same.sar > 60 and torch.isfinite(same.sir)
    with pytest.raises(ValueError, match="differ in shape"):
        bss_eval(voice, voice, voice[:-1])


def test_no_batch_changes_a_score() -> None:
    target, other = (
        torch.from_numpy(np.stack([tone_voice(s + k, 1.0, 0) for s in range(3)])) for k in (0, 3)
    )
    estimate = target + 0.3 * other
    together = bss_eval(estimate[None], target[None], other[None])
    alone = [bss_eval(*row) for row in zip(estimate, target, other, strict=True)]
    for name in Decomposition._fields:
        values = getattr(together, name)
        assert values.shape == (1, 3) and values[0].tolist() == [getattr(one, name).item() for one in alone]


def test_si_sdr_is_its_formula_and_ignores_scale() -> None:
    target, noise = torch.randn(2, 800), torch.randn(2, 800)
    target, noise = (x - x.mean(-1, keepdim=True) for x in (target, noise))
    estimate = target + 0.5 * noise
    scale = (estimate * target).sum(-1) / target.square().sum(-1)
    projected = scale[:, None] * target
    expected = 10 * torch.log10(projected.square().sum(-1) / (estimate - projected).square().sum(-1))
    torch.testing.assert_close(si_sdr(estimate, target), expected.double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(si_sdr(-3 * estimate, target), expected.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("metric", [sdr, si_sdr])
def test_silence_has_a_defined_score_and_shapes_must_agree(metric) -> None:  # type: ignore[no-untyped-def]
    voice, silence = torch.from_numpy(tone_voice(0, 1.0, 0)), torch.zeros(16000)
    batch = metric(torch.stack([voice, silence, voice]), torch.stack([silence, voice, voice]))
    assert batch[:2].tolist() == [SILENCE_DB, SILENCE_DB]
    assert batch[2] > 50
    with pytest.raises(ValueError, match="differ in shape"):
        metric(voice, silence[:-1])


def test_signs_of_people_are_changed_together() -> None:
    values, owners = np.array([1.0, 2.0, 1.5, 0.5, 2.5, 1.0]), list("aabcde")
    assert sign_flip_p(values, owners) == 2 / 2**5  # five people, all of one mind
    values[3] = -3.0  # of c: the sums are 3, 1.5, -3, 2.5, 1
    sums = np.array([3.0, 1.5, -3.0, 2.5, 1.0])
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    assert sign_flip_p(values, owners) == pytest.approx((abs(signs @ sums) >= abs(sums.sum())).mean())
    assert sign_flip_p(np.zeros(20), [str(i) for i in range(20)]) == 1.0
    many = np.random.default_rng(0).normal(0.5, 1, 40)
    from scipy.stats import ttest_1samp

    drawn = sign_flip_p(many, [str(i) for i in range(40)])
    assert drawn == pytest.approx(ttest_1samp(many, 0).pvalue, rel=0.5, abs=1e-3)


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2, 1, 200)
    alone = [str(i) for i in range(200)]
    low, high = bootstrap_interval(values, alone)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values, alone)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.1)
    # ten copies of each value are no more evidence than one
    copies = bootstrap_interval(np.repeat(values, 10), np.repeat(alone, 10).tolist())
    assert copies == pytest.approx((low, high), abs=1e-9)


def test_the_sdr_of_a_mixture_with_silence_is_the_ceiling() -> None:
    speech = np.concatenate([tone_voice(0, 1.0, 0), np.zeros(32000, np.float32)])
    signal = torch.from_numpy(np.stack([speech, np.roll(speech, 777), 1e-3 * speech]))
    assert (sdr(signal, signal) > 60).all()


@pytest.mark.parametrize(
    ("length", "chunk", "overlap"), [(1000, 300, 100), (999, 300, 150), (50, 300, 0), (700, 100, 0)]
)
def test_overlap_add_of_nothing_changes_nothing(length: int, chunk: int, overlap: int) -> None:
    signal = torch.randn(2, length)
    pieces = list(overlap_stream(lambda x: x, [signal], chunk, overlap))
    torch.testing.assert_close(torch.cat(pieces, dim=-1), signal)


def test_an_overlap_of_more_than_half_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap <= chunk / 2"):
        next(overlap_stream(lambda x: x, [torch.zeros(1, 10)], 10, 6))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_stereo_at_another_rate_becomes_mono_at_ours(tmp_path: Path, suffix: str) -> None:
    voice = tone_voice(1, 2.0, 0, rate=44100)
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, np.stack([voice, 0.5 * voice], axis=1), 44100)
    assert audio_info(path).channels == 2
    mono = read_mono(path, 16000)
    assert mono.dtype == np.float32
    assert mono.shape == (32000,)
    expected = resample(0.75 * voice, 44100, 16000)
    assert np.sqrt(np.mean((mono - expected) ** 2)) < 0.1 * np.sqrt(np.mean(expected**2))


def test_m4a_goes_through_pyav(tmp_path: Path) -> None:
    import av

    path, voice = tmp_path / "x.m4a", tone_voice(1, 1.0, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(voice[None], format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples, rate = read_audio(path)
    assert (rate, samples.shape[0]) == (16000, 1)
    assert abs(samples.shape[1] - 16000) <= 2048


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.wav", None, "no such file"),
        ("text.wav", b"this is no audio", "not a readable audio file"),
        ("empty.wav", b"", "not a readable audio file"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_audio(path)
    assert name in str(error.value)


def test_nan_and_no_samples_are_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "nan.wav", np.array([0.0, np.nan, np.inf]), 16000)
    with pytest.raises(UserError, match="2 of 3 samples are NaN or infinite"):
        read_audio(tmp_path / "nan.wav")
    write_audio(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(UserError, match="holds no samples"):
        read_audio(tmp_path / "none.wav")


def test_active_seconds_counts_speech_only() -> None:
    voice = tone_voice(0, 1.0, 0)
    assert active_seconds(np.zeros(16000), 16000) == 0
    assert active_seconds(np.concatenate([voice, np.zeros(32000, np.float32)]), 16000) == pytest.approx(
        1, abs=0.1
    )


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "good.pt", {"x": torch.ones(2), "name": "a"})
    assert load_checkpoint(tmp_path / "good.pt")["name"] == "a"
    torch.save({"x": Path}, tmp_path / "evil.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:300])
    for name, words in (
        ("evil", "read safely"),
        ("cut", "read safely"),
        ("list", "list"),
        ("gone", "no such"),
    ):
        with pytest.raises(UserError, match=words):
            load_checkpoint(tmp_path / f"{name}.pt")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:0") == torch.device("cuda:0") and choose_device() == torch.device("cuda")
    with pytest.raises(UserError, match=r"--device cuda:1: 1 are here, the first is cuda:0"):
        choose_device("cuda:1")
    assert current == [torch.device("cuda:0")]
