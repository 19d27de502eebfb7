"""The weights that come with this project: what they are, and that they separate."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import inference
from model.presence import Calibration
from model.separator import Separator
from model.shipped import DEFAULT, SHIPPED, STREAMING
from scripts import weights, weights_data
from scripts.commands import command as run_command
from tests.conftest import SHARED
from utils.audio import read_audio, write_audio
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.metrics import si_sdr

Runner = Callable[..., tuple[int, str, str]]
NAMES = ["compact", DEFAULT, STREAMING]


def voices() -> list[list[np.ndarray]]:
    """Of each person of the excerpt of test-other two utterances of 3 s."""
    folder = SHARED / "LibriSpeech/test-other"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    found = []
    for person in sorted(folder.iterdir()):
        signals = (soundfile.read(path, dtype="float32")[0] for path in sorted(person.rglob("*.flac")))
        found.append([signal[:48000] for signal in signals if len(signal) >= 48000][:2])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_they_are_small_and_say_whom_they_heard(name: str) -> None:
    path = SHIPPED / f"{name}.safetensors"
    assert path.stat().st_size <= 25e6 and f"## {name}" in (SHIPPED / "README.md").read_text()
    content = load_checkpoint(path)
    heard = set(content["training_speakers"])
    assert len(heard) > 200 and not heard & {"19", "26", "27"}
    Calibration.from_content(content["presence"], str(path))  # --presence works at once


@pytest.mark.parametrize("name", NAMES)
def test_they_separate_people_whom_they_never_heard(name: str) -> None:
    people = voices()
    path = SHIPPED / f"{name}.safetensors"
    heard = set(load_checkpoint(path)["training_speakers"])
    assert not heard & {path.name for path in (SHARED / "LibriSpeech/test-other").iterdir()}
    separator, gains = Separator.load(path), []
    for (reference, target), (_, other) in itertools.permutations(people, 2):
        mixture = target + other
        estimate = separator.separate(mixture, reference, rate=16000)
        wave = torch.from_numpy(target)
        gains.append(
            (si_sdr(torch.from_numpy(estimate), wave) - si_sdr(torch.from_numpy(mixture), wave)).item()
        )
    # 20 pairs of 3 s, with references of 3 s: +4.8, +4.7 and +2.3 dB
    least = {"voicefilter": 4.1, "compact": 4.0, "lite": 1.9}[name]
    assert np.mean(gains) > least and np.mean(np.array(gains) > 0) > 0.6


def test_a_stream_takes_the_causal_ones(tmp_path: Path) -> None:
    (reference, target), (_, other) = voices()[:2]
    write_audio(tmp_path / "reference.wav", reference, 16000)
    mixture = np.round(0.5 * (target + other * target.std() / other.std()) * 32768).astype("<i2")
    found = subprocess.run(
        [sys.executable, "inference.py", "--stream", "-r", tmp_path / "reference.wav"],
        input=mixture.tobytes(), cwd=SHIPPED.parent, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0 and b"algorithmic latency 40 ms" in found.stderr
    wave = torch.from_numpy(0.5 * target)
    estimate, before = (
        torch.from_numpy(samples.astype(np.float32) / 32768)
        for samples in (np.frombuffer(found.stdout, "<i2"), mixture)
    )
    assert len(estimate) == len(before) and si_sdr(estimate, wave) > si_sdr(before, wave)


def test_make_weights_makes_all_of_them_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[tuple[str, ...]] = []

    def pretend(*words: str) -> None:
        commands.append(words)
        if words[0] == "convert.py":
            Path(words[words.index("-o") + 1]).write_text(" ".join(words))

    monkeypatch.setattr(weights, "command", pretend)
    assert weights.main(["--corpus", str(tmp_path), "--data", str(tmp_path), "-o", str(tmp_path / "o")]) == 0
    for name in NAMES:  # only when all are complete
        assert (tmp_path / f"o/{name}.safetensors").read_text() == (
            tmp_path / f"{name}.safetensors"
        ).read_text()
    commands = [tuple(word.replace(str(tmp_path), "d") for word in words) for words in commands]
    made, trained, written, calibrated = {"d/weights/noise", "d/weights/music"}, set(), [], []
    for words in commands:
        if words[0] == "generator.py":
            made.add(words[words.index("-o") + 1])
        elif "trainer.py" in words:
            words = words[words.index("trainer.py") :]
            assert words[-1].removeprefix("store.folder=") in made and Path(words[2]).is_file()
            start = words[words.index("--checkpoint_path") + 1] if "--checkpoint_path" in words else None
            assert start is None or start in written or Path(start).parts[1] in trained
            trained.add(words[words.index("-m") + 1])
        elif words[0] == "convert.py":
            assert {Path(word).parts[1] for word in words if word.endswith("best.pt")} <= trained
            averaged = "--average" in words
            assert averaged or set(words[1:4:2]) < set(written)
            written.append(words[words.index("-o") + 1])
            parts = "".join(
                Path(word).stem + str(Path(word).parent) for word in words[: 4 if averaged else 2]
            )
            assert sum(name in parts for name in (*NAMES, "bands")) == 1, "the mean of two of one network"
        elif words[0] == "calibrate.py":
            assert words[1] in written and words[3] in made
            calibrated.append(words[1])
    assert calibrated == [f"d/{name}.safetensors" for name in weights.NAMES]
    kept = ("compact-mean", "bands-mean")
    assert set(written) - set(calibrated) == {f"d/weights-{name}.safetensors" for name in kept}


def test_a_command_that_is_told_to_stop_ends_the_whole_with_the_signal_s_code() -> None:
    """torchrun, for one, ends with 1."""
    child = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
"""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_command("-c", child)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(UserError, match=r"stopped: scripts\.weights_data could not go on"):
        run_command("-m", "scripts.weights_data", "--no-such-option")


def test_noises_are_made_alike_every_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights_data, "NOISES", 4)
    monkeypatch.setattr(weights_data, "MACHINES", 2)
    for folder in ("a", "b"):
        weights_data.make_noise(tmp_path / folder)
    made = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert made == [f"machine00{k}.flac" for k in range(2)] + [f"synthetic00{k}.flac" for k in range(4)]
    for name in made:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        sound = read_audio(tmp_path / "a" / name)[0][0]
        assert len(sound) == 8 * 16000 and 0.05 < np.abs(sound).max() <= 0.61


def test_the_default_separates_and_says_whether_the_voice_is_there(run: Runner, tmp_path: Path) -> None:
    (reference, target), (_, other) = voices()[:2]
    write_audio(tmp_path / "mixed.wav", target + other, 16000)
    write_audio(tmp_path / "reference.wav", reference, 16000)
    given = ["-m", tmp_path / "mixed.wav", "-r", tmp_path / "reference.wav", "-o", tmp_path / "out"]
    code, out, _ = run(inference.main, *given, "--presence")
    assert code == 0 and f"weights/{DEFAULT}.safetensors" in out and "the voice is" in out
    assert (tmp_path / "out/estimate.wav").is_file()
