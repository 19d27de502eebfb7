"""Any recording: lengths, rates, channels, folders, lists, pipes, streams; and whether a voice is there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Literal

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import calibrate
import generator
import inference
from config.load import load_config
from model.dvector import DVector
from model.exported import export_separator, exported_separator
from model.jobs import Finished, Job, folder_jobs, listed_jobs, run_jobs
from model.onnx_network import OnnxGraph
from model.pcm import stream_pcm
from model.presence import JUDGED_PIECES, NEAREST, Calibration, Cohort, Evidence, Listener, fit
from model.recording import Wishes, residual_path, separate_recording
from model.separator import Separator
from tests.conftest import TINY, tone_voice
from utils.audio import read_audio, resample, write_audio
from utils.audio_stream import LARGEST_WAV, AudioReader, audio_writer, resampled
from utils.checkpoint import load_checkpoint, save_again, save_checkpoint, save_weights
from utils.errors import UserError
from utils.overlap import overlap_stream

Runner = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1]
TINY_NETWORK = "network={kind: film_blstm, front_dim: 8, lstm_dim: 8, stack: 2}"
TINY_LITE = "network={kind: lite, channels: 3, lstm_dim: 8, noise_type_dim: 5}"


def separator_of(network: str = TINY_NETWORK, *overrides: str) -> Separator:
    torch.manual_seed(0)
    config = load_config(None, [network, "train.precision=fp32", "audio.n_fft=400", *overrides])
    return Separator(config, DVector(hidden=8)).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "chkpt/run/best.pt", separator_of().content())
    return tmp_path / "chkpt/run/best.pt"


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "chkpt/lite/best.pt", separator_of(TINY_LITE).content())
    return tmp_path / "chkpt/lite/best.pt"


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    write_audio(tmp_path / "mixed.wav", tone_voice(0, 2.0, 5) + tone_voice(3, 2.0, 5), 16000)
    write_audio(tmp_path / "reference.wav", tone_voice(0, 2.0, 6), 16000)
    return tmp_path


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


# ---------------------------------------------------------------- pieces of long signals


@given(
    length=st.integers(1, 400),
    chunk=st.integers(4, 90),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 1)),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=5),
    at_once=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_pieces_of_anything_join_to_what_they_were(
    length: int, chunk: int, shares: tuple[float, float], sizes: list[int], at_once: int
) -> None:
    overlap = int(shares[0] * chunk)
    fade = int(shares[1] * overlap)
    signal = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    blocks, start = [], 0
    while start < length:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(signal[:, start : start + size])
        start += size
    seen: list[tuple[int, ...]] = []

    def process(pieces: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(pieces.shape))
        return 2 * pieces

    out = torch.cat(list(overlap_stream(process, blocks, chunk, overlap, fade, at_once)), dim=1)
    torch.testing.assert_close(out, 2 * signal, atol=1e-6, rtol=0)
    assert all(rows <= at_once and n <= chunk for rows, _, n in seen)


def test_context_outside_the_fade_is_not_heard() -> None:
    """What a chunk gets wrong near its ends, within the overlap, does not reach the result."""
    signal = torch.ones(1, 990)

    def process(piece: torch.Tensor) -> torch.Tensor:
        out = piece.clone()
        if piece.shape[-1] == 100:
            out[..., :15] = out[..., -15:] = 99.0
        return out

    out = torch.cat(list(overlap_stream(process, [signal], 100, 40, 10)), dim=1)
    torch.testing.assert_close(out[:, 15:], signal[:, 15:])


@pytest.mark.parametrize("rates", [(16000, 16000), (44100, 16000), (8000, 48000), (16000, 16384)])
@pytest.mark.parametrize("sizes", [[1, 700, 33], [5000]])
def test_resampling_in_blocks_equals_resampling_at_once(rates: tuple[int, int], sizes: list[int]) -> None:
    signal = np.random.default_rng(0).standard_normal((2, 9000)).astype(np.float32)
    edges = np.cumsum(np.tile(sizes, 9000))
    blocks = np.split(signal, edges[edges < 9000], axis=1)
    joined = np.concatenate(list(resampled(iter(blocks), *rates)), axis=1)
    np.testing.assert_array_equal(joined, resample(signal, *rates))


def test_a_file_in_blocks_is_the_file(tmp_path: Path) -> None:
    signal = np.stack([tone_voice(k, 3.3, 0) for k in range(3)])
    with audio_writer(tmp_path / "a.wav", 16000, 3, 0) as write:
        for block in np.array_split(signal, 7, axis=1):
            write(block)
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), signal)
    np.testing.assert_array_equal(
        np.concatenate(list(AudioReader(tmp_path / "a.wav").blocks(0.7)), 1), signal
    )
    with audio_writer(tmp_path / "huge.wav", 16000, 1, LARGEST_WAV) as write:
        write(signal[:1])
    assert soundfile.info(tmp_path / "huge.wav").format == "RF64"
    with pytest.raises(ValueError, match="no"), audio_writer(tmp_path / "b.wav", 16000, 1, 0) as write:
        write(signal[:1])
        raise ValueError("no")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "huge.wav"]


def test_a_full_disk_is_said_by_the_writer() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    from utils.audio_stream import AudioWriter, _Watched

    with open("/dev/full", "wb+", buffering=0) as raw:
        watched = _Watched(raw)
        watched.write(b"12")
        with (
            soundfile.SoundFile(io.BytesIO(), "w", 16000, 1, "FLOAT", format="WAV") as file,
            pytest.raises(OSError, match="No space left"),
        ):
            AudioWriter(file, watched)(np.zeros((1, 5)))


# ---------------------------------------------------------------- one recording


@given(
    samples=st.integers(1, 30_000),
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    channels=st.integers(1, 7),
    subtype=st.sampled_from(["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8", "ULAW"]),
    mono=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_recording_comes_back_at_its_rate_and_length(
    tmp_path: Path, samples: int, rate: int, channels: int, subtype: str, mono: bool
) -> None:
    separator = separator_of()
    noise = np.random.default_rng(samples).uniform(-1, 1, (samples, channels))
    soundfile.write(tmp_path / "x.wav", noise, rate, subtype)
    wishes = Wishes(residual=True, mono=mono)
    report = separate_recording(
        separator, tmp_path / "x.wav", torch.randn(1, 256), tmp_path / "y.wav", wishes
    )
    info = soundfile.info(tmp_path / "y.wav")
    assert (info.samplerate, info.frames, info.channels) == (rate, samples, 1 if mono else channels)
    mixture, estimate = read(tmp_path / "x.wav"), read(tmp_path / "y.wav")
    mixture = mixture.mean(0, keepdims=True) if mono else mixture
    np.testing.assert_allclose(estimate + read(tmp_path / "y-residual.wav"), mixture, atol=1e-6)
    assert np.isfinite(estimate).all() and report.seconds == pytest.approx(samples / rate)


def test_a_recording_in_blocks_is_what_the_api_gives(tmp_path: Path) -> None:
    separator = separator_of()
    mixture = np.stack([tone_voice(0, 5.01, 0, 44100), tone_voice(1, 5.01, 0, 44100)])
    write_audio(tmp_path / "x.wav", mixture, 44100)
    reference = tone_voice(0, 2.0, 3, 22050)
    by_api = separator.separate(mixture, reference, rate=44100, reference_rate=22050)
    embedding = separator.embed(resample(reference, 22050, 16000))
    separate_recording(separator, tmp_path / "x.wav", embedding, tmp_path / "y.wav", Wishes())
    np.testing.assert_allclose(by_api, read(tmp_path / "y.wav"), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_strength_leaves_in_so_much_of_the_rest(tmp_path: Path, strength: float) -> None:
    separator, embedding = separator_of(), torch.randn(1, 256)
    write_audio(tmp_path / "x.wav", tone_voice(0, 1.0, 0), 16000)
    separate_recording(separator, tmp_path / "x.wav", embedding, tmp_path / "estimate.wav", Wishes())
    wishes = Wishes(strength=strength, residual=True)
    separate_recording(separator, tmp_path / "x.wav", embedding, tmp_path / "y.wav", wishes)
    mixture, estimate, found = (read(tmp_path / name) for name in ("x.wav", "estimate.wav", "y.wav"))
    np.testing.assert_allclose(found, mixture + strength * (estimate - mixture), atol=1e-6)
    assert residual_path(tmp_path / "estimate.wav").name == "residual.wav"


def test_what_cannot_be_finished_leaves_nothing(tmp_path: Path, voices: Path) -> None:
    separator, embedding = separator_of(), torch.randn(1, 256)
    good = (voices / "mixed.wav").read_bytes()
    (voices / "cut.wav").write_bytes(good[: len(good) // 2])
    signal = tone_voice(0, 3.0, 0)
    soundfile.write(voices / "whole.flac", signal, 16000)
    flac = (voices / "whole.flac").read_bytes()
    (voices / "cut.flac").write_bytes(flac[: len(flac) // 2])
    signal[40000] = np.nan
    write_audio(voices / "nan.wav", signal, 16000)
    soundfile.write(voices / "empty.wav", np.zeros(0), 16000)
    signal[40000] = 1e30
    write_audio(voices / "huge.wav", signal, 16000)
    stopping = Event()
    stopping.set()
    cases = (
        ("cut.wav", "is cut off after 1.0 of 2.0 s", None),
        ("cut.flac", "cut.flac", None),
        ("nan.wav", "holds NaN or infinite samples, the first after 2.0 s", None),
        ("empty.wav", "holds no samples", None),
        ("huge.wav", r"holds a sample of 1e\+30; floats in", None),
        ("mixed.wav", "stopped", stopping),
    )
    for name, words, event in cases:
        with pytest.raises(UserError, match=words):
            separate_recording(
                separator, voices / name, embedding, voices / "out/y.wav", Wishes(), stopping=event
            )
        assert not list((voices / "out").iterdir())


def test_weights_that_give_nan_leave_nothing(voices: Path) -> None:
    separator = separator_of()
    separator.network.out.bias.data[0] = torch.nan  # type: ignore[union-attr]
    with pytest.raises(UserError, match="NaN or infinite; the weights are damaged"):
        separate_recording(separator, voices / "mixed.wav", torch.ones(1, 256), voices / "o/y.wav", Wishes())
    assert not list((voices / "o").iterdir())


# ---------------------------------------------------------------- the Python interface


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_the_api_gives_back_what_it_was_given(
    kind: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parents[2])
    separator = Separator.load("run")
    mixture, reference = tone_voice(0, 1.5, 0), tone_voice(1, 2.0, 0)
    expected = separator.separate(mixture, reference, rate=16000)
    assert expected.shape == mixture.shape
    if kind == "tensor":
        found = separator.separate(torch.from_numpy(mixture), [torch.from_numpy(reference)], rate=16000)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)
    stereo = separator.separate(np.stack([mixture, 0 * mixture]), [reference, reference], rate=16000)
    np.testing.assert_allclose(stereo[0], expected, atol=1e-6)
    for wrong, words in (
        (np.zeros((2, 3, 4), np.float32), "expected floats"),
        (np.zeros(0, np.float32), "expected floats"),
        (np.zeros(9, np.int16), "expected floats"),
        (np.full(9, np.inf, np.float32), "9 samples are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=words):
            separator.separate(wrong, reference, rate=16000)
    with pytest.raises(ValueError, match="whose voice is wanted"):
        separator.separate(mixture, None, rate=16000)
    with pytest.raises(UserError, match="reference: is silent"):
        separator.separate(mixture, np.zeros(16000, np.float32), rate=16000)


def test_threads_do_not_disturb_each_other() -> None:
    separator = separator_of()
    signals = [tone_voice(k, 1.0 + 0.2 * k, k) for k in range(6)]
    reference = tone_voice(0, 2.0, 3)
    alone = [separator.separate(signal, reference, rate=16000) for signal in signals]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: separator.separate(s, reference, rate=16000), signals * 3))
    for number, estimate in enumerate(together):
        np.testing.assert_array_equal(estimate, alone[number % 6])


# ---------------------------------------------------------------- many recordings


def test_a_folder_is_separated_and_a_rerun_does_what_is_missing(
    run: Runner, checkpoint: Path, voices: Path
) -> None:
    inside = voices / "in/deeper"
    inside.mkdir(parents=True)
    for name in ("a.wav", "deeper/b.flac", "deeper/b.ogg"):
        soundfile.write(voices / "in" / name, tone_voice(len(name), 1.0, 0), 16000)
    (inside / "bad.wav").write_text("no audio")
    (inside / "notes.txt").write_text("nothing")
    options = ["--checkpoint_path", checkpoint, "-m", voices / "in", "-r", voices / "reference.wav"]
    options += ["-o", voices / "out", "-p", 2, "--report", "--keep", "residual"]
    code, out, err = run(inference.main, *options)
    assert code == 3 and "3 of 4 recordings separated" in out
    assert "ERROR: " in err and "bad.wav: not a readable audio file" in err
    names = {p.relative_to(voices / "out").as_posix() for p in (voices / "out").rglob("*.wav")}
    expected = {"a.wav", "deeper/b.flac.wav", "deeper/b.ogg.wav"}
    assert names == expected | {name.replace(".wav", "-residual.wav") for name in expected}
    report = json.loads((voices / "out/report.json").read_text())["recordings"]
    assert len(report) == 4 and sum("error" in entry for entry in report) == 1
    assert report[0]["rate"] == 16000 and report[0]["seconds"] == 1.0

    before = {p: p.stat().st_mtime_ns for p in (voices / "out").rglob("*.wav")}
    soundfile.write(inside / "bad.wav", tone_voice(1, 1.0, 0), 16000)
    (voices / "out/a.wav").unlink()
    code, out, _ = run(inference.main, *options)
    assert code == 0 and "4 of 4 recordings separated, 2 of them before" in out
    after = {p: p.stat().st_mtime_ns for p in (voices / "out").rglob("*.wav")}
    same = {p.name for p in before if after[p] == before[p]}
    assert same == {f"b.{kind}{rest}.wav" for kind in ("flac", "ogg") for rest in ("", "-residual")}
    code, out, _ = run(inference.main, *options, "--strength", 0.5)
    assert code == 0 and "of them before" not in out


def test_a_list_names_mixtures_references_and_results(
    run: Runner, checkpoint: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_audio(voices / "other.wav", tone_voice(3, 2.0, 8), 16000)
    (voices / "list.csv").write_text(
        "mixture,reference,output\n"
        "mixed.wav,reference.wav,first.wav\n"
        "mixed.wav,reference.wav;other.wav,sub/second.wav\n"
        "mixed.wav,,third.wav\n"
    )
    options = ["--checkpoint_path", checkpoint, "--batch", voices / "list.csv", "-o", voices / "out"]
    code, out, err = run(inference.main, *options)
    assert code == 3 and "asks whose voice is wanted" in err and "2 of 3" in out
    code, out, _ = run(inference.main, *options, "-r", voices / "other.wav")
    assert code == 0 and "3 of 3 recordings separated, 2 of them before" in out
    (voices / "elsewhere").mkdir()
    write_audio(voices / "elsewhere/mixed.wav", tone_voice(1, 1.0, 5), 16000)
    monkeypatch.chdir(voices / "elsewhere")
    code, _, err = run(inference.main, *options, "-r", voices / "other.wav")
    assert code == 2 and "elsewhere/mixed.wav or " in err and "the list has to say which" in err
    first, second = (read(voices / "out" / name) for name in ("first.wav", "sub/second.wav"))
    assert np.abs(first - second).max() > 0
    single = ["--checkpoint_path", checkpoint, "-m", voices / "mixed.wav", "-r", voices / "reference.wav"]
    assert run(inference.main, *single, "-o", voices / "one.wav")[0] == 0
    np.testing.assert_array_equal(read(voices / "one.wav"), first)


def test_lists_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone_voice(0, 1.0, 0), 16000)
    cases = (
        ("", "expected a header and rows with mixture, reference, output; found nothing"),
        ("file,voice\na.wav,b.wav\n", "found file, voice"),
        ("mixture\n\n ,\n", "line 2: names no mixture"),
        ("mixture,output\na.wav,x.flac\n", "results are WAV files"),
    )
    for text, words in cases:
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            listed_jobs(tmp_path / "list.csv", [], tmp_path / "out")
    with pytest.raises(UserError, match="holds no recordings"):
        folder_jobs(tmp_path / "out", [], tmp_path / "more")
    with pytest.raises(UserError, match="is the folder of the mixtures"):
        folder_jobs(tmp_path, [], tmp_path / "out/..")


def test_an_interruption_stops_what_runs_and_keeps_what_is_finished(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{k}", (), tmp_path / f"{k}.wav") for k in range(5)]
    stopped: list[str] = []

    def work(job: Job, stopping: Event) -> dict[str, object]:
        if job.mixture.name == "1":
            raise KeyboardInterrupt
        if job.mixture.name == "2":
            assert stopping.wait(20)
            stopped.append(job.mixture.name)
        return {"files": [], "output": str(job.output)}

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, work, Finished(tmp_path), "x", 3)
    assert stopped == ["2"]
    (tmp_path / "finished.jsonl").open("a").write('{"key": "cut o')
    again = run_jobs(
        jobs, lambda job, stopping: {"files": [], "output": str(job.output)}, Finished(tmp_path), "x", 2
    )
    assert all(outcome.report is not None for outcome in again)


# ---------------------------------------------------------------- pipes and streams


def command(*arguments: object, data: bytes) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "inference.py", *map(str, arguments)]
    return subprocess.run(words, input=data, capture_output=True, cwd=ROOT, timeout=120, check=False)


def test_wav_in_and_wav_out(checkpoint: Path, voices: Path, run: Runner) -> None:
    given = ["--checkpoint_path", checkpoint, "-r", voices / "reference.wav"]
    found = command(*given, "-m", "-", "-o", "-", data=(voices / "mixed.wav").read_bytes())
    assert found.returncode == 0, found.stderr
    estimate, rate = soundfile.read(io.BytesIO(found.stdout), dtype="float32")
    assert run(inference.main, *given, "-m", voices / "mixed.wav", "-o", voices / "out")[0] == 0
    assert rate == 16000
    np.testing.assert_allclose(estimate, read(voices / "out/estimate.wav")[0], atol=1e-6)
    broken = command(*given, "-m", "-", "-o", "-", data=b"no wav")
    assert broken.returncode == 2 and not broken.stdout and b"Traceback" not in broken.stderr
    assert b"standard input: " in broken.stderr
    good = (voices / "mixed.wav").read_bytes()
    cut = command(*given[:3], voices / "mixed.wav", "-m", "-", "-o", "-", data=good[: len(good) // 2])
    assert cut.returncode == 2 and b"ERROR: standard input: is cut off after" in cut.stderr


def test_a_stream_gives_what_the_file_gives(lite: Path, voices: Path, run: Runner) -> None:
    samples = np.round(read(voices / "mixed.wav")[0] * 32768).astype("<i2")
    write_audio(voices / "pcm.wav", samples.astype(np.float32) / 32768, 16000)
    given = ["--checkpoint_path", lite, "-r", voices / "reference.wav"]
    found = command(*given, "--stream", data=samples.tobytes() + b"x")
    assert found.returncode == 0 and b"algorithmic latency 25 ms" in found.stderr
    estimate = np.frombuffer(found.stdout, "<i2")
    assert len(estimate) == len(samples)
    assert run(inference.main, *given, "-m", voices / "pcm.wav", "-o", voices / "out")[0] == 0
    whole = np.round(read(voices / "out/estimate.wav")[0] * 32768)
    assert np.abs(estimate - whole).max() <= 1


@pytest.mark.parametrize("how", [["--stream"], ["-m", "-", "-o", "-"]])
def test_who_reads_may_have_had_enough(lite: Path, voices: Path, how: list[str]) -> None:
    given = ["--checkpoint_path", str(lite), "-r", str(voices / "reference.wav"), *how]
    reading, writing = os.pipe()
    os.close(reading)
    with (voices / "mixed.wav").open("rb") as source, os.fdopen(writing, "wb") as sink:
        words = [sys.executable, "inference.py", *given]
        found = subprocess.run(
            words, stdin=source, stdout=sink, stderr=subprocess.PIPE, cwd=ROOT, timeout=120, check=False
        )
    assert found.returncode == 0 and b"BrokenPipe" not in found.stderr, found.stderr


def test_a_stream_comes_out_while_it_goes_in() -> None:
    separator = separator_of(TINY_LITE)

    class Source(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert sink.tell() >= 2 * (self.given - 400)  # behind by no more than the latency
            self.given += size // 2
            return b"" if self.given > 16000 else b"\x00\x10" * (size // 2)

    sink = io.BytesIO()
    assert stream_pcm(separator, torch.randn(1, 256), Source(), sink) == 16000  # type: ignore[arg-type]
    assert len(sink.getvalue()) == 32000

    class Stopped(Source):
        def read(self, size: int = -1) -> bytes:
            if self.given >= 8000:
                raise KeyboardInterrupt
            return super().read(size)

    sink = io.BytesIO()  # nothing that was said before Ctrl-C is lost
    assert stream_pcm(separator, torch.randn(1, 256), Stopped(), sink) == 8000  # type: ignore[arg-type]
    assert len(sink.getvalue()) == 16000


def test_options_that_do_not_go_together_are_refused(
    run: Runner, checkpoint: Path, lite: Path, voices: Path
) -> None:
    given = ["--checkpoint_path", checkpoint, "-r", voices / "reference.wav"]
    mixture = ["-m", voices / "mixed.wav"]
    cases: list[tuple[list[object], str]] = [
        ([*given, "--stream"], "hears the future, a stream needs network lite"),
        ([*given, "--stream", *mixture], "without --mixed_file"),
        ([*given, *mixture, "--batch", "x.csv", "-o", "out"], "one of -m MIXED, --batch CSV and --stream"),
        ([*given, *mixture], "name the folder for the results with -o"),
        ([*given, *mixture, "-o", voices / "out", "--strength", 1.5], "--strength 1.5: expected 0 to 1"),
        ([*given, *mixture, "-o", voices / "out", "--presence"], "python calibrate.py"),
        ([*given, *mixture, "-o", voices / "out", "--microphone"], "belongs to --stream"),
        ([*given, *mixture, "-o", voices / "out", "-p", 0], "-p 0: expected at least 1"),
        ([*given, *mixture, "-o", voices / "out", "-p", 2], "-p 2: is for many recordings"),
        ([*given, *mixture, "-o", voices / "out", "--threshold", 0.9], "--threshold 0.9: has no effect"),
        ([*given, *mixture, "-o", voices / "out", "--backend", "onnx", "--precision", "bf16"], "in fp32"),
        ([*given, "-m", voices, "-o", "-"], "-o -: is for a single recording"),
        (
            [*given, "-m", voices, "-o", voices / "out.wav"],
            "out.wav: is for a single recording",
        ),
        ([*given, *mixture, "-o", voices / "out", "--device", "mps"], "no Apple GPU"),
        ([*given, *mixture, "-o", voices / "mixed.wav/out"], "cannot write there"),
        ([*given, *mixture, "-o", voices / "o", "--report", voices], "is a folder; name a file"),
    ]
    for arguments, words in cases:
        code, _, err = run(inference.main, *arguments)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, (words, err)
        assert not (voices / "out").exists()


# ---------------------------------------------------------------- is the voice there?


def test_the_calibration_finds_what_tells_the_two_apart() -> None:
    random = np.random.default_rng(0)

    def some(similar: float, count: int, stretches: int = 1) -> list[list[Evidence]]:
        rows = random.normal([similar, 0.5, -5.0], [0.1, 0.1, 3.0], (count, stretches, 3))
        return [[Evidence(*map(float, row)) for row in recording] for recording in rows]

    calibration = fit(some(0.8, 150, 2), some(0.5, 150, 2))
    assert calibration.auc > 0.95 and calibration.accuracy > 0.85 and calibration.examples == 600
    assert calibration.weights[0] > 5 * abs(calibration.weights[1])
    chances = [calibration.probability(Evidence(s, 0.5, -5.0)) for s in (0.4, 0.65, 0.9)]
    assert chances[0] < 0.1 and 0.2 < chances[1] < 0.8 and chances[2] > 0.9
    # calibrated: among those with about 70 %, about 70 % are right
    fresh = [(e, label) for label, s in ((1, 0.8), (0, 0.5)) for (e,) in some(s, 3000)]
    near = [label for e, label in fresh if 0.6 < calibration.probability(e) < 0.8]
    assert len(near) > 30 and 0.5 < float(np.mean(near)) < 0.9
    assert Calibration.from_content(calibration.content(), "x") == calibration
    nothing = fit(some(0.5, 200), some(0.5, 200))
    assert 0.4 < nothing.auc < 0.6
    with pytest.raises(ValueError, match="5 of each are needed"):
        fit(some(0.8, 4), some(0.5, 300))
    with pytest.raises(UserError, match="damaged"):
        Calibration.from_content({"weights": [1.0]}, "x.pt")


def test_evidence_is_the_similarity_of_estimate_and_residual() -> None:
    separator = separator_of()
    assert separator.embedder is not None
    voice, other = tone_voice(0, 3.0, 0), tone_voice(4, 3.0, 0)
    asked = separator.embed(tone_voice(0, 3.0, 9))
    listener = Listener(separator, asked)
    for start in range(0, 48000, 7000):
        piece = slice(start, start + 7000)
        listener((voice + other)[piece], voice[piece])
    (found,) = listener.evidence()
    for signal, similarity in ((voice, found.similarity), (other, found.residual_similarity)):
        with torch.inference_mode():
            vector = separator.embedder.embed([torch.from_numpy(signal)])[0]
        expected = torch.nn.functional.cosine_similarity(vector, asked[0], dim=0).item()
        assert similarity == pytest.approx(expected, abs=1e-4)
    power = 10 * np.log10(np.square(voice).mean() / np.square(voice + other).mean())
    assert found.level_db == pytest.approx(power, abs=0.01)
    silent = Listener(separator, asked)
    silent(voice, np.zeros_like(voice))
    (nothing,) = silent.evidence()
    assert (nothing.similarity, nothing.level_db) == (0.0, -40.0)


def test_similarities_are_normalised_by_the_nearest_of_a_cohort() -> None:
    random = np.random.default_rng(0)
    people, one, other = random.normal(size=(80, 16)), random.normal(size=16), random.normal(size=16)

    def similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found: np.ndarray = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=-1)
        return found

    expected = 0.0
    for voice in (one, other):
        nearest = np.sort(similar(voice, people))[-NEAREST:]
        expected += 0.5 * (similar(one, other) - nearest.mean()) / nearest.std(ddof=1)
    cohort = Cohort(torch.from_numpy(people))
    found = cohort.score(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected, abs=1e-6) and NEAREST < 80
    assert cohort.score(torch.from_numpy(one), torch.zeros(16).double()) == -5.0
    with pytest.raises(ValueError, match="1 people: a cohort has two or more"):
        Cohort(torch.ones(1, 16))


def test_a_calibration_by_scores_keeps_its_cohort(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    present, absent = (
        [[Evidence(0.5, 0.5, -5.0, *random.normal([mean, 0.0], 1.0))] for _ in range(100)] for mean in (3, 0)
    )
    assert fit(present, absent).auc < 0.6
    calibration = fit(present, absent, torch.randn(20, 256))
    assert calibration.auc > 0.95 and calibration.weights[0] > 0
    separator = separator_of()
    separator.presence = calibration.content()
    save_weights(tmp_path / "x.safetensors", separator.content(), 16)
    (graph, *_) = export_separator(separator, tmp_path)
    for presence in (
        load_checkpoint(tmp_path / "x.safetensors")["presence"],
        exported_separator(graph, OnnxGraph.load(graph)).presence,
    ):
        again = Calibration.from_content(presence, "x")
        assert again == calibration and again.cohort is not None and calibration.cohort is not None
        torch.testing.assert_close(again.cohort, calibration.cohort, rtol=1e-2, atol=1e-3)
    for damaged in (torch.ones(3), torch.ones(1, 256), torch.full((9, 256), torch.nan), "people"):
        with pytest.raises(UserError, match="damaged"):
            Calibration.from_content(calibration.content() | {"cohort": damaged}, "x")


def test_a_voice_in_a_part_of_a_recording_is_found_there_whatever_the_blocks() -> None:
    separator = separator_of()
    voice, other = tone_voice(0, 8.0, 0), tone_voice(4, 24.0, 0)
    mixture = np.concatenate([other, voice, other])
    estimate = np.concatenate([0 * other, voice, 0 * other])
    found = []
    for size in (7000, 400_000):
        listener = Listener(separator, separator.embed(tone_voice(0, 3.0, 9)))
        for start in range(0, len(mixture), size):
            listener(mixture[start : start + size], estimate[start : start + size])
        found.append(listener.evidence())
    assert found[0] == found[1]
    assert len(found[0]) == 14 - JUDGED_PIECES + 1  # 56 s in pieces of 4
    similarities = [evidence.similarity for evidence in found[0]]
    assert int(np.argmax(similarities)) in (4, 5, 6, 7) and similarities[0] == 0.0


def test_calibrating_keeps_the_format_of_the_file(run: Runner, store: Path, tmp_path: Path) -> None:
    bits: Literal[8, 16, 32]
    for bits in (32, 16, 8):
        path = tmp_path / f"{bits}.safetensors"
        save_weights(path, separator_of().content(), bits)
        size = path.stat().st_size
        before = load_checkpoint(path)
        save_again(path, before | {"presence": {"weights": [1.0]}})
        after = load_checkpoint(path)
        assert after["presence"] == {"weights": [1.0]} and abs(path.stat().st_size - size) < 500
        for name, tensor in before["network"].items():
            torch.testing.assert_close(after["network"][name], tensor, rtol=0, atol=0)


def test_samples_beyond_sound_are_refused_by_the_interface() -> None:
    separator, reference = separator_of(), tone_voice(0, 2.0, 0)
    for bad in (np.full(16000, 1e300), np.full(16000, 1e7, np.float32)):
        with pytest.raises(ValueError, match="floats in \\[-1, 1\\] are expected"):
            separator.separate(bad, reference, rate=16000)


def test_silent_ends_of_a_reference_matter_nowhere() -> None:
    separator, mixture = separator_of(), tone_voice(0, 2.0, 3)
    reference = tone_voice(0, 2.0, 0)
    silence = np.zeros(64000, np.float32)
    plain = separator.separate(mixture, reference, rate=16000)
    framed = separator.separate(mixture, np.concatenate([silence, reference, silence]), rate=16000)
    assert 10 * np.log10(np.square(plain - framed).sum() / np.square(plain).sum()) < -20


def test_the_level_reported_is_that_of_what_is_written(run: Runner, voices: Path, checkpoint: Path) -> None:
    given = ["--checkpoint_path", checkpoint, "-m", voices / "mixed.wav", "-r", voices / "reference.wav"]
    for strength in (1.0, 0.3):
        code, _, _ = run(inference.main, *given, "-o", voices / "out", "--strength", strength, "--report")
        report = json.loads((voices / "out/report.json").read_text())["recordings"][0]
        level = 10 * np.log10(np.square(read(voices / "out/estimate.wav"), dtype=np.float64).mean())
        assert code == 0 and report["estimate_db"] == pytest.approx(level, abs=0.01)


def test_a_named_pipe_and_a_wav_of_unknown_length_are_read(
    run: Runner, voices: Path, checkpoint: Path, tmp_path: Path
) -> None:
    whole = (voices / "mixed.wav").read_bytes()
    at = whole.index(b"data") + 4
    unknown = whole[:4] + bytes(4) + whole[8:at] + bytes(4) + whole[at + 4 :]
    expected = None
    for content in (whole, unknown):
        pipe = tmp_path / f"pipe-{len(list(tmp_path.iterdir()))}"
        os.mkfifo(pipe)
        writer = Thread(target=pipe.write_bytes, args=(content,), daemon=True)
        writer.start()
        code, _, _ = run(
            inference.main, "--checkpoint_path", checkpoint, "-m", pipe, "-r", voices / "reference.wav",
            "-o", voices / "out",
        )  # fmt: skip
        writer.join(10)
        estimate = read(voices / "out/estimate.wav")
        assert code == 0 and len(estimate) == len(read(voices / "mixed.wav"))
        expected = estimate if expected is None else expected
        np.testing.assert_array_equal(estimate, expected)
    silent = voices / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    for mixture in (voices / "mixed.wav", voices):  # one, and many
        pipe = tmp_path / f"pipe-{len(list(tmp_path.iterdir()))}"
        os.mkfifo(pipe)
        Thread(target=pipe.write_bytes, args=(silent.read_bytes(),), daemon=True).start()
        code, _, err = run(
            inference.main, "--checkpoint_path", checkpoint, "-m", mixture, "-r", pipe, "-o", voices / "out"
        )
        assert code == 2 and f"ERROR: {pipe}: is silent" in err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_names_that_are_no_text(checkpoint: Path, voices: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.wav")
    shutil.copyfile(voices / "mixed.wav", odd)
    given = ["--checkpoint_path", checkpoint, "-r", voices / "reference.wav", "-m"]
    done = command(*given, odd, "-o", tmp_path / "out", "--report", data=b"")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["recordings"][0]["mixture"] == str(odd)
    done = command(*given, tmp_path, "-o", tmp_path / "many", data=b"")
    assert done.returncode == 0 and (tmp_path / "many" / odd.name).exists(), done.stderr
    done = command(*given, tmp_path / os.fsdecode(b"\xfe.wav"), "-o", tmp_path / "none", data=b"")
    assert done.returncode == 2 and b"\xfe.wav: no such file" in done.stderr
    assert not (tmp_path / "none").exists()


def test_an_exchanged_embedder_is_no_reason_to_keep_results(
    run: Runner, voices: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recordings = tmp_path / "in"
    recordings.mkdir()
    shutil.copyfile(voices / "mixed.wav", recordings / "a.wav")
    given = [
        "--checkpoint_path",
        checkpoint,
        "-e",
        tmp_path / "e.pt",
        "-m",
        recordings,
        "-o",
        tmp_path / "out",
    ]
    given += ["-r", voices / "reference.wav"]
    for seed, words in (
        (0, "1 recordings separated;"),
        (0, "1 of them before"),
        (1, "1 recordings separated;"),
    ):
        if seed or not (tmp_path / "e.pt").exists():
            torch.manual_seed(seed)
            content = {"format": "embedder", "embedder": DVector(hidden=8).content()}
            save_checkpoint(tmp_path / "e.pt", content)
        code, out, _ = run(inference.main, *given)
        assert code == 0 and words in out.replace("1 of 1 ", "1 "), out


@pytest.mark.parametrize("cohort", [False, True])
def test_calibrated_presence_decides_what_is_written(
    run: Runner,
    corpus_folder: Path,
    embedder_file: Path,
    tmp_path: Path,
    voices: Path,
    cohort: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cohort:
        monkeypatch.setattr(calibrate, "LEAST_COHORT", 2)
    options = [o.replace("examples: 6, speakers: 0.25}", "examples: 12, speakers: 0.4}") for o in TINY[:7]]
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    store = ["-d", str(corpus), "-o", str(tmp_path / "store"), "-p", "1", "-e", str(embedder_file)]
    assert generator.main([*store, *options]) == 0
    path = tmp_path / "c.pt"
    save_checkpoint(path, separator_of().content())
    code, out, _ = run(calibrate.main, path, "--data", tmp_path / "store")
    assert code == 0 and "mixtures with the voice and of" in out
    assert ("; no cohort)" in out) != cohort and ("a cohort of" in out) == cohort
    given = ["--checkpoint_path", path, "-m", voices / "mixed.wav", "-r", voices / "reference.wav"]
    given += ["-o", voices / "out", "--presence", "--report", "--keep", "residual"]
    mixture = read(voices / "mixed.wav")
    for threshold, absent, expected in (
        (0, "silence", None),
        (1, "silence", 0 * mixture),
        (1, "mixture", mixture),
    ):
        code, out, _ = run(inference.main, *given, "--threshold", threshold, "--absent", absent)
        assert code == 0 and ("is present" in out) == (threshold == 0)
        report = json.loads((voices / "out/report.json").read_text())["recordings"][0]
        assert report["present"] == (threshold == 0) and 0 <= report["presence"] <= 1
        assert ("score" in report) == cohort == ("; normalised, estimate" in out)
        assert report["written"] == (absent if threshold else "estimate")
        estimate = read(voices / "out/estimate.wav")
        np.testing.assert_allclose(estimate + read(voices / "out/residual.wav"), mixture, atol=1e-6)
        if expected is not None:
            np.testing.assert_array_equal(estimate, expected)
    assert read_audio(voices / "out/estimate.wav")[1] == 16000
    code, out, err = run(inference.main, *given, "-e", embedder_file)
    assert code == 2 and "c.pt was not calibrated with the embedder of -e" in err
    code, out, err = run(inference.main, *given, "-e", path)  # the same one
    assert code == 0 and "the voice is" in out, err
    if cohort:
        # nobody of the training split is there any more: what was stored does
        people = json.loads((tmp_path / "store/store.json").read_text())["splits"]["train"]["speakers"]
        for person in people:
            for folder in (tmp_path / "corpus").rglob(person):
                shutil.rmtree(folder)
        code, out, _ = run(calibrate.main, path, "--data", tmp_path / "store")
        count = len(people)
        assert code == 0 and f"of {count} training speakers' recordings {count} are gone" in out
        assert "; no cohort)" in out


# ---------------------------------------------------------------- nothing is overwritten


def test_results_never_overwrite_inputs_or_each_other(
    run: Runner, checkpoint: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(voices)
    write_audio(voices / "y-residual.wav", tone_voice(0, 2.0, 3), 16000)
    write_audio(voices / "in/a.wav", tone_voice(0, 1.0, 0), 16000)
    write_audio(voices / "in/a-residual.wav", tone_voice(0, 1.0, 0), 16000)
    lists = {
        "residual": "mixed.wav,y-residual.wav,../y.wav",
        "twice": "mixed.wav,reference.wav,x.wav\nmixed.wav,reference.wav,x.wav",
        "input": "mixed.wav,reference.wav,../mixed.wav",
    }
    for name, rows in lists.items():
        (voices / f"{name}.csv").write_text(f"mixture,reference,output\n{rows}\n")
    before = {path: path.read_bytes() for path in voices.rglob("*") if path.is_file()}
    given = ["--checkpoint_path", checkpoint, "-r", "reference.wav"]
    cases: list[tuple[list[object], str]] = [
        (["--batch", "residual.csv", "-o", "out", "--keep", "residual"], "y-residual.wav: is an input"),
        (["--batch", "twice.csv", "-o", "out"], "x.wav: would be the result of mixed.wav and of mixed.wav"),
        (["--batch", "input.csv", "-o", "out"], "mixed.wav: is an input"),
        (["-m", "in", "-o", "out", "--keep", "residual"], "a-residual.wav: would be the result of"),
        (["-m", "in", "-o", "in"], "is the folder of the mixtures"),
        (["-m", "mixed.wav", "-o", "out", "--report", "mixed.wav"], "mixed.wav: is an input"),
        (["-m", "mixed.wav", "-o", "out.flac"], "the result is a WAV file"),
        (["-m", "mixed.wav", "-o", "-", "--keep", "residual"], "only the estimate goes there"),
        (["-m", "mixed.wav", "-o", "out", "--presence", "--mask", "inv_sub"], "listens to the voice itself"),
        (["-m", "in", "-o", "mixed.wav"], "mixed.wav: is for a single recording; name a folder for many"),
        (["--stream", "--strength", "0.5"], "without --strength"),
        (["--stream", "--report"], "without --report"),
    ]
    for arguments, words in cases:
        code, _, err = run(inference.main, *given, *arguments)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, (arguments, err)
    assert before == {path: path.read_bytes() for path in voices.rglob("*") if path.is_file()}
    code, _, err = run(inference.main, *given[:2], "-m", "in", "-r", "gone.wav", "-o", "out")
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_what_another_run_has_overwritten_is_done_again(run: Runner, checkpoint: Path, voices: Path) -> None:
    write_audio(voices / "in/a.wav", tone_voice(0, 1.0, 0), 16000)
    given = ["--checkpoint_path", checkpoint, "-m", voices / "in", "-r", voices / "reference.wav"]
    given += ["-o", voices / "out"]
    found = []
    for more in ([], ["--strength", 0.2], []):
        code, out, _ = run(inference.main, *given, *more)
        assert code == 0 and "before" not in out
        found.append(read(voices / "out/a.wav"))
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-4
    (voices / "out/a.wav").write_bytes(b"x")
    assert "before" not in run(inference.main, *given)[1]
    code, out, _ = run(
        inference.main, *given[:-1], voices, "--report", "-"
    )  # the folder's parent is no result
    assert code == 0 and json.loads(out[out.index("{") :])["recordings"][0]["seconds"] == 1.0


def test_samples_without_a_header_are_refused(run: Runner, voices: Path) -> None:
    (voices / "call.raw").write_bytes(bytes(32000))
    for mixed, reference in (("call.raw", "reference.wav"), ("mixed.wav", "call.raw")):
        given = ("-m", voices / mixed, "-r", voices / reference, "-o", voices / "out")
        code, _, err = run(inference.main, *given)
        assert code == 2 and "call.raw: samples without a header" in err


def test_a_name_may_be_as_long_as_there_are(tmp_path: Path) -> None:
    path = tmp_path / (125 * "ä" + ".wav")  # 254 bytes
    write_audio(path, np.zeros(10, np.float32), 16000)
    assert path.is_file() and len(list(tmp_path.iterdir())) == 1


def test_an_unfinished_container_is_refused(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        samples = (tone_voice(0, 20.0, 0)[None] * 32767).astype(np.int16)
        for block in np.array_split(samples, 100, axis=1):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="s16", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert sum(block.shape[1] for block in AudioReader(tmp_path / "x.mkv").blocks()) == 320000
    whole = (tmp_path / "x.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut"):
        list(AudioReader(tmp_path / "cut.mkv").blocks())


def test_arrays_of_other_kinds(tmp_path: Path) -> None:
    separator, reference = separator_of(), tone_voice(1, 2.0, 0)
    mixture = tone_voice(0, 1.0, 0)
    expected = separator.separate(mixture, reference, rate=16000)
    backwards = separator.separate(mixture[::-1][::-1], reference, rate=16000)
    np.testing.assert_array_equal(backwards, expected)
    assert separator.separate(torch.from_numpy(mixture).bfloat16(), reference, rate=16000).isfinite().all()
    with pytest.raises(ValueError, match="channels come first"):
        separator.separate(np.stack([mixture, mixture], axis=1), reference, rate=16000)
    for rates in ({"rate": 0}, {"rate": 16000, "reference_rate": 0}):
        with pytest.raises(ValueError, match="0 Hz: expected a rate from 100 to 10000000"):
            separator.separate(mixture, reference, **rates)


def test_starting_does_not_wait_for_what_only_some_options_need() -> None:
    """Of which each costs a tenth to half a second: scores, graphs, pictures, corpora."""
    heavy = ["scipy", "onnx", "onnxruntime", "matplotlib", "librosa", "torchaudio", "pandas", "sklearn"]
    code = f"import sys, inference; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr[-500:]
