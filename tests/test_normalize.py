"""Normalised folders: the loudness asked for, the layout that was there, work that is never done twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile

from datasets import normalize
from datasets.corpus import index_corpus
from datasets.normalize import RECORD, REPORT, Settings, normalize_tree
from tests.conftest import SHARED, tone_voice, write_librispeech
from utils.audio import integrated_loudness, write_audio, write_flac
from utils.errors import UserError

ROOT = Path(__file__).parents[1]


def loudness(path: Path) -> float:
    samples, rate = soundfile.read(path)
    return float(pyloudnorm.Meter(rate).integrated_loudness(samples))


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {RECORD, REPORT}


def report(target: Path) -> dict[str, dict[str, str]]:
    with (target / REPORT).open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in names(folder)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """VCTK's layout with a text, at several rates, numbers of channels and levels."""
    folder = tmp_path / "source"
    (folder / "txt").mkdir(parents=True)
    (folder / "txt" / "p225_001.txt").write_text("Please call Stella.")
    for number, (rate, channels, level) in enumerate([(48000, 1, 0.1), (16000, 2, 1.0), (22050, 1, 3.0)]):
        samples = level * tone_voice(number, 2.0, number, rate)
        path = folder / "wav48" / f"p{225 + number}" / f"p{225 + number}_001_mic1.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.tile(samples[:, None], (1, channels)), rate)
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_loudness_rate_and_layout(source: Path, tmp_path: Path, processes: int) -> None:
    target = tmp_path / "target"
    said = normalize_tree(source, target, Settings(), processes)
    assert "3 audio files at -23 LUFS and 16000 Hz, 1 other files copied, 0 of them by earlier runs (" in said
    assert names(target) == names(source)
    assert (target / "txt/p225_001.txt").read_text() == "Please call Stella."
    rows = report(target)
    for path in target.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 32000)
        assert loudness(path) == pytest.approx(-23, abs=0.1)
        row = rows[path.relative_to(target).as_posix()]
        assert float(row["loudness before LUFS"]) + float(row["gain dB"]) == pytest.approx(-23, abs=0.011)
        assert row["limited"] == "no" and row["note"] == ""
    assert len(rows) == 3


@pytest.mark.parametrize(("rate", "wanted", "kind"), [(8000, -30.0, "flac"), (22050, -16.0, "wav")])
def test_other_settings(
    source: Path, tmp_path: Path, run: Callable[..., Any], rate: int, wanted: float, kind: str
) -> None:
    target = tmp_path / "target"
    options = ("--rate", rate, "--loudness", wanted, "--format", kind, "-p", 1)
    code, out, _ = run(normalize.main, source, "-o", target, *options)
    assert code == 0 and f"3 audio files at {wanted:g} LUFS and {rate} Hz" in out
    assert names(target) == {name.replace("flac", kind) for name in names(source)}
    for path in target.rglob(f"*.{kind}"):
        assert soundfile.info(path).samplerate == rate
        assert loudness(path) == pytest.approx(wanted, abs=0.1)


def test_a_dead_link_is_reported_and_the_rest_is_done(source: Path, tmp_path: Path) -> None:
    (source / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert "3 audio files" in normalize_tree(source, tmp_path / "t", Settings(), 1)
    assert report(tmp_path / "t")["gone.wav"]["note"] == "failed: cannot be read (No such file or directory)"


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = tone_voice(1, 1.0, 1)
    (tmp_path / "s").mkdir()
    soundfile.write(tmp_path / "s" / "a.wav", np.stack([2 * samples, 0 * samples], 1), 16000, "FLOAT")
    normalize_tree(tmp_path / "s", tmp_path / "t", Settings(format="wav"), 1)
    made = soundfile.read(tmp_path / "t" / "a.wav")[0]
    assert np.allclose(made / made.std(), samples / samples.std(), atol=1e-4)


def test_a_second_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    normalize_tree(source, target, Settings(), 1)
    before, told = times(target), report(target)
    said = normalize_tree(source, target, Settings(), 1)
    assert "3 audio files" in said and "4 of them by earlier runs" in said
    assert times(target) == before and report(target) == told


def test_only_what_changed_is_made_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    normalize_tree(source, target, Settings(), 1)
    before = times(target)
    one, two, three = sorted(name for name in before if name.endswith(".flac"))
    os.utime(source / one, ns=(1, 1))  # touched
    (target / two).unlink()
    (source / "txt" / "new.txt").write_text("new")
    (source / three).unlink()
    said = normalize_tree(source, target, Settings(), 1)
    assert "2 audio files" in said and "1 of them by earlier runs, 1 kept without a source" in said
    after = times(target)
    assert {name for name in after if after[name] != before.get(name)} == {one, two, "txt/new.txt"}
    assert "is gone or failed" in report(target)[three]["note"]


def test_sources_that_take_turns_under_one_name(tmp_path: Path) -> None:
    folder, target = tmp_path / "s", tmp_path / "t"
    folder.mkdir()
    for number, name in enumerate(("a.flac", "a.wav")):
        soundfile.write(tmp_path / name, tone_voice(number, 1.0, number), 16000)
    made = []
    for name in ("a.flac", "a.wav", "a.flac"):
        (tmp_path / name).rename(folder / name)
        normalize_tree(folder, target, Settings(), 1)
        made.append((target / "a.flac").read_bytes())
        (folder / name).rename(tmp_path / name)
    assert made[0] == made[2] != made[1]


def test_other_settings_into_the_same_folder(source: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    target = tmp_path / "target"
    normalize_tree(source, target, Settings(), 1)
    before = times(target)
    code, _, errors = run(normalize.main, source, "-o", target, "--loudness", -20, "--rate", 8000)
    assert code == 2 and errors.strip().endswith(
        "made with other settings (loudness: -23.0 -> -20.0; rate: 16000 -> 8000), take another folder"
    )
    assert times(target) == before


# ---- files that need care


def test_a_peak_over_full_scale_lowers_the_gain(tmp_path: Path) -> None:
    samples = 0.01 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    samples[9000] = 0.9  # a click: at -23 LUFS it would stand at 6
    (tmp_path / "s").mkdir()
    write_audio(tmp_path / "s" / "click.wav", samples, 16000)
    said = normalize_tree(tmp_path / "s", tmp_path / "flac", Settings(), 1)
    assert "1 with less gain for their peak" in said
    row = report(tmp_path / "flac")["click.flac"]
    made = soundfile.read(tmp_path / "flac" / "click.flac", dtype="float32")[0]
    gain = 10 ** (float(row["gain dB"]) / 20)
    assert row["limited"] == "yes" and "dB short of the loudness" in row["note"]
    assert np.abs(made).max() == pytest.approx(1.0, abs=1e-4) and (np.abs(made) > 0.99).sum() == 1
    assert np.allclose(made, gain * samples, atol=1e-3)  # one gain for all: nothing is bent
    assert loudness(tmp_path / "flac" / "click.flac") < -24
    # 32-bit float has no full scale
    normalize_tree(tmp_path / "s", tmp_path / "wav", Settings(format="wav"), 1)
    assert report(tmp_path / "wav")["click.wav"]["limited"] == "no"
    assert np.abs(soundfile.read(tmp_path / "wav" / "click.wav")[0]).max() > 1
    assert loudness(tmp_path / "wav" / "click.wav") == pytest.approx(-23, abs=0.1)


def test_short_silent_unreadable_and_clashing_files(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    voice = tone_voice(1, 2.0, 1)
    tone = 0.02 * np.sin(np.arange(32000) * 0.4).astype(np.float32)
    write_flac(folder / "tone.flac", tone, 16000)
    write_flac(folder / "short.flac", tone[:1600], 16000)
    write_flac(folder / "silent.flac", 0 * voice, 16000)
    write_flac(folder / "hiss.flac", 1e-4 * voice, 16000)
    write_flac(folder / "same.flac", voice, 16000)
    write_audio(folder / "same.wav", voice, 16000)
    (folder / "broken.mp3").write_text("no audio")
    said = normalize_tree(folder, tmp_path / "t", Settings(), 1)
    assert "5 audio files" in said and "2 silent, 2 failed (" in said
    rows = report(tmp_path / "t")
    assert rows["short.flac"]["note"].startswith("under 0.4 s")
    # a short part of a steady sound gets the gain of the whole
    assert float(rows["short.flac"]["gain dB"]) == pytest.approx(float(rows["tone.flac"]["gain dB"]), abs=0.3)
    for name in ("silent.flac", "hiss.flac"):
        assert rows[name]["gain dB"] == "0.00" and rows[name]["note"] == "silent: nothing over -70 LUFS"
        assert np.array_equal(soundfile.read(folder / name)[0], soundfile.read(tmp_path / "t" / name)[0])
    assert rows["same.wav"]["note"] == "failed: would have the name of same.flac"
    assert rows["broken.mp3"]["note"].startswith("failed: unreadable: not a readable audio file")
    assert names(tmp_path / "t") == {"tone.flac", "short.flac", "silent.flac", "hiss.flac", "same.flac"}
    # failures are tried again, since the cause may be gone
    write_audio(folder / "fine.wav", voice, 16000)
    (folder / "fine.wav").rename(folder / "broken.mp3")
    assert "6 audio files" in normalize_tree(folder, tmp_path / "t", Settings(), 1)


def test_m4a_becomes_flac(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "s").mkdir()
    with av.open(str(tmp_path / "s" / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone_voice(1, 1.0, 1)[None], format="fltp", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    normalize_tree(tmp_path / "s", tmp_path / "t", Settings(), 1)
    assert names(tmp_path / "t") == {"a.flac"}
    assert loudness(tmp_path / "t" / "a.flac") == pytest.approx(-23, abs=0.1)


# ---- folders that are refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "-o", "t"), "nowhere: no such folder"),
        (("empty", "-o", "t"), "empty: no audio file below it"),
        (("source", "-o", "source"), "the result must lie neither in"),
        (("source", "-o", "source/in"), "the result must lie neither in"),
        (("source", "-o", "."), "the result must lie neither in"),
        (("source", "-o", "empty"), "empty: holds files that are not of this command"),
        (("source", "-o", "t", "--rate", "100"), "--rate 100: expected 8000 to 48000 Hz"),
        (("source", "-o", "t", "--loudness", "3"), "--loudness 3: expected more than -70 and at most 0"),
        (("source", "-o", "t", "--loudness", "nan"), "--loudness nan: expected"),
        (("source", "-o", "t", "--format", "mp3"), "--format mp3: expected flac or wav"),
        (("source", "-o", "t", "-p", "0"), "-p 0: expected at least one process"),
    ],
)
def test_refused(
    source: Path,
    tmp_path: Path,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "text").touch()
    before = names(tmp_path)
    code, _, errors = run(normalize.main, *arguments)
    assert code == 2 and errors.startswith("ERROR: ") and said in errors and errors.count("\n") == 1
    assert names(tmp_path) == before


def test_a_record_of_something_else(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / RECORD).write_text("no JSON\n")
    with pytest.raises(UserError, match="not a record of this command"):
        normalize_tree(source, tmp_path / "t", Settings(), 1)


# ---- interruptions


def test_a_full_disk_is_one_sentence(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    written: list[Path] = []

    def write(path: Path, *rest: Any) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_flac(path, *rest)

    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(normalize, "write_flac", write)
        code, _, errors = run(normalize.main, source, "-o", target, "-p", 1)
    last = errors.splitlines()[-1]
    assert code == 2 and last.startswith("ERROR: ") and "the disk is full" in last
    assert len(names(target)) == 2  # a text and the first recording
    assert "2 of them by earlier runs" in normalize_tree(source, target, Settings(), 1)


def test_killed_and_run_again(tmp_path: Path) -> None:
    folder, target = tmp_path / "s", tmp_path / "t"
    write_librispeech(folder, speakers=10, utterances=30, seconds=3.0)
    command = [sys.executable, "-m", "datasets.normalize", str(folder), "-o", str(target), "-p", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(target.rglob("*.flac"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    recorded = len((target / RECORD).read_text().splitlines()) - 1
    assert 10 < recorded < 310 and not (target / REPORT).exists()
    # a kill in the middle of a line, and one before a file was renamed
    (target / "dev-clean/109/7").mkdir(parents=True, exist_ok=True)
    (target / "dev-clean/109/7/.109-7-0029-a1b2c3d4.flac").touch()
    with (target / RECORD).open("a") as file:
        file.write('{"path": "dev-cl')
    said = normalize_tree(folder, target, Settings(), 1)
    assert "300 audio files" in said and f"{recorded} of them by earlier runs" in said
    fresh = tmp_path / "fresh"
    normalize_tree(folder, fresh, Settings(), 2)
    assert names(target) == names(fresh) == names(folder)
    assert all((target / name).read_bytes() == (fresh / name).read_bytes() for name in names(fresh))
    assert report(target) == report(fresh)
    for line in (target / RECORD).read_text().splitlines():
        json.loads(line)


# ---- the loudness itself


def test_loudness_of_a_sine() -> None:
    # BS.1770: 997 Hz at full scale in one channel measures -3.01 LUFS, of which pyloudnorm is 0.04 short
    time_axis = np.arange(5 * 48000) / 48000
    sine = np.sin(2 * np.pi * 997 * time_axis)
    assert integrated_loudness(sine, 48000) == pytest.approx(-3.01, abs=0.1)
    assert integrated_loudness(0.1 * sine, 48000) == pytest.approx(-23.01, abs=0.1)
    assert integrated_loudness(0 * sine, 48000) == -np.inf
    # pauses do not count, as they would for the root mean square
    halved = np.concatenate([sine, 0 * sine])
    assert integrated_loudness(halved, 48000) == pytest.approx(-3.01, abs=0.2)


def test_flac_never_clips(tmp_path: Path) -> None:
    for bits in (16, 24):
        samples = np.array([[1.0, -1.0, 0.25], [0.0, 0.5, -0.5]], np.float32)
        write_flac(tmp_path / "a.flac", samples, 16000, bits)
        made = soundfile.read(tmp_path / "a.flac", dtype="float32")[0].T
        assert np.allclose(made, samples, atol=2.0 ** (1 - bits) * 1.5)
        assert soundfile.info(tmp_path / "a.flac").subtype == f"PCM_{bits}"
    with pytest.raises(ValueError, match="would clip"):
        write_flac(tmp_path / "b.flac", samples * 1.1, 16000)
    assert not (tmp_path / "b.flac").exists()


# ---- real speech


def test_real_speech(tmp_path: Path) -> None:
    folder = SHARED / "LibriSpeech" / "test-other"
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}")
    said = normalize_tree(folder, tmp_path / "t", Settings(), 2)
    assert "50 audio files" in said and names(tmp_path / "t") == names(folder)
    rows = report(tmp_path / "t")
    for name, row in rows.items():
        short = 0.0 if row["limited"] == "no" else float(row["note"].split(" dB")[0])
        assert loudness(tmp_path / "t" / name) == pytest.approx(-23 - short, abs=0.1)
    before, after = index_corpus([folder]), index_corpus([tmp_path / "t"])
    assert [(u.id, u.speaker, u.text, u.frames) for u in after.utterances] == [
        (u.id, u.speaker, u.text, u.frames) for u in before.utterances
    ]
