"""New voices from old ones."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets import warp
from datasets.corpus import index_corpus
from datasets.warp import Warp, draw_warps, warp_voice
from tests.conftest import tone_voice, write_librispeech
from utils.audio import read_mono, write_flac
from utils.errors import UserError

LIMITS = ((0.85, 1.18), (0.75, 1.33))


def test_a_voice_is_drawn_the_same_however_many_there_are() -> None:
    few, many = draw_warps("19", 1, *LIMITS, 0), draw_warps("19", 5, *LIMITS, 0)
    assert many[:1] == few and [w.name for w in many] == [f"19~{k}" for k in range(1, 6)]
    assert len({(w.formants, w.pitch) for w in [*many, *draw_warps("26", 5, *LIMITS, 0)]}) == 10
    assert draw_warps("19", 1, *LIMITS, 1) != few
    for drawn in many:
        assert 0.85 <= drawn.formants <= 1.18 and 0.75 <= drawn.pitch <= 1.33


def test_without_praat_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(UserError, match="pip install praat-parselmouth"):
        warp_voice(tone_voice(0, 1.0, 0), 16000, Warp("a~1", 1.0, 1.2))


def pitch_of(samples: np.ndarray) -> float:
    """Hz, of the strongest period between 70 and 400 Hz, on average over loud stretches."""
    found = []
    for start in range(0, len(samples) - 1600, 1600):
        part = samples[start : start + 1600]
        if np.square(part).mean() > 0.3 * np.square(samples).mean():
            own = np.correlate(part, part, "full")[1599:]
            found.append(16000 / (40 + np.argmax(own[40:229])))
    return float(np.median(found))


def test_pitch_and_formants_change_each_by_themselves(shared_librispeech: Path) -> None:
    pytest.importorskip("parselmouth", reason="praat-parselmouth is not installed")
    voice = read_mono(sorted((shared_librispeech / "train-clean-100/89").rglob("*.flac"))[0], 16000)[:80000]
    higher = warp_voice(voice, 16000, Warp("a", 1.0, 1.25))
    longer = warp_voice(voice, 16000, Warp("a", 0.85, 1.0))
    assert pitch_of(higher) / pitch_of(voice) == pytest.approx(1.25, abs=0.08)
    assert pitch_of(longer) / pitch_of(voice) == pytest.approx(1.0, abs=0.05)
    frequencies = np.fft.rfftfreq(80000, 1 / 16000)

    def centre(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples[:80000], 80000)) ** 0.6
        return float((frequencies * power).sum() / power.sum())

    assert centre(longer) < 0.95 * centre(voice)
    for changed in (higher, longer):
        assert abs(len(changed) - len(voice)) < 1600
        assert np.square(changed).mean() == pytest.approx(np.square(voice).mean(), rel=0.02)


def test_a_corpus_of_new_voices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("parselmouth", reason="praat-parselmouth is not installed")
    for person, name in enumerate(("anna", "ben", "carl")):
        for k in range(2):
            write_flac(tmp_path / f"c/{name}/u{k}.flac", tone_voice(person, 2.0, k), 16000)
    noise = np.random.default_rng(0).standard_normal(32000) * 0.05
    write_flac(tmp_path / "c/ben/hiss.flac", noise, 16000)
    arguments = [str(tmp_path / "c"), "-o", str(tmp_path / "o"), "--without", "carl", "-p", "1"]
    assert warp.main(arguments) == 0
    made = index_corpus([tmp_path / "o"])
    assert sorted(made.by_speaker()) == ["anna~1", "anna~2", "ben~1", "ben~2"]
    with (tmp_path / "o/warp.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["voice"] for row in rows] == ["anna~1", "anna~2", "ben~1", "ben~2"]
    info = soundfile.info(tmp_path / "o/anna~1/anna~1-u0.flac")
    assert (info.samplerate, info.subtype) == (16000, "PCM_16")
    assert "4 voices of 2 people" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.flac")}
    (tmp_path / "o/anna~1/anna~1-u0.flac").unlink()
    assert warp.main(arguments) == 0  # goes on
    assert {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.flac")} == before
    with pytest.raises(UserError, match="holds the voice anna~1 with other factors"):
        warp.main([*arguments, "--seed", "1"])


def test_equal_names_in_other_folders_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warp, "warp_voice", lambda samples, rate, drawn: samples)
    for k, folder in enumerate(("first", "second")):
        write_flac(tmp_path / f"c/anna/{folder}/0001.flac", tone_voice(0, 2.0, k), 16000)
    utterances = index_corpus([tmp_path / "c"]).utterances
    drawn = {"anna": draw_warps("anna", 1, *LIMITS, 0)}
    assert warp.warp_corpus(utterances, drawn, tmp_path / "o", 16000, 1) == []
    made = index_corpus([tmp_path / "o"]).utterances
    assert len(made) == 2 and len({u.digest for u in made}) == 2


def test_new_voices_are_people_beside_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a corpus whose files' names say who speaks."""
    monkeypatch.setattr(warp, "warp_voice", lambda samples, rate, drawn: samples * 10 ** (drawn.pitch - 1.5))
    corpus = write_librispeech(tmp_path / "c", speakers=2, utterances=2)
    utterances = index_corpus([corpus]).utterances
    drawn = {name: draw_warps(name, 2, *LIMITS, 0) for name in ("100", "101")}
    assert warp.warp_corpus(utterances, drawn, tmp_path / "o", 16000, 1) == []
    with pytest.raises(UserError, match="also holds 101~1, 101~2, which would stay"):
        warp.warp_corpus(utterances, {"100": drawn["100"]}, tmp_path / "o", 16000, 1)
    both = index_corpus([corpus, tmp_path / "o"])
    assert len(both.utterances) == 12 and not both.unusable
    assert len(both.by_speaker()) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--voices", "0"], "--voices 0: expected at least 1"),
        (["--pitch", "1.3", "0.7"], "--pitch 1.3 0.7: expected two factors"),
        (["--formants", "0.1", "2"], "--formants 0.1 2"),
        (["--without", "nobody"], "--without nobody: no such speaker"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    pytest.importorskip("parselmouth", reason="praat-parselmouth is not installed")
    write_flac(tmp_path / "c/anna/u.flac", tone_voice(0, 2.0, 0), 16000)
    with pytest.raises(UserError, match=words):
        warp.main([str(tmp_path / "c"), "-o", str(tmp_path / "o"), *arguments])
    assert not (tmp_path / "o").exists()
