"""Layouts of corpora on small trees of exactly their shape; the check of every file; what is remembered."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datasets import scan
from datasets.corpus import Corpus, Utterance, corpus_fingerprint, index_corpus, index_sounds, split_speakers
from tests.conftest import SHARED, die, tone_voice
from utils.audio_check import examine_audio
from utils.errors import UserError


def put(root: Path, *names: str, seconds: float = 1.5) -> Path:
    """Audio files of these names below `root`, no two alike."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32(name.encode())
        if path.suffix == ".m4a":
            put_m4a(path, seconds, seed)
        else:
            soundfile.write(path, tone_voice(seed % 5, seconds, seed), 16000)
    return root


def put_m4a(path: Path, seconds: float, seed: int) -> None:
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = tone_voice(0, seconds, seed)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        for part in (frame, None):
            container.mux(stream.encode(part))


def put_text(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def ids(corpus: Corpus) -> list[str]:
    return [u.id for u in corpus.utterances]


def causes(corpus: Corpus) -> dict[str, str]:
    return {Path(path).name: cause for path, cause in corpus.unusable}


# ---------------------------------------------------------------- layouts of speech


def test_librispeech_layout_brings_speakers_and_texts(corpus_folder: Path) -> None:
    corpus = index_corpus([corpus_folder])
    assert (len(corpus.by_speaker()), len(corpus.utterances), corpus.unusable) == (8, 24, ())
    assert corpus.utterances[0].id == "100-7-0000"
    assert corpus.utterances[0].text == "WORDS OF 100-7-0000"


@pytest.mark.parametrize("below", ["", "LibriSpeech", "LibriSpeech/train-clean-100"])
def test_librispeech_is_the_same_from_above_and_from_within(
    tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(tmp_path / "LibriSpeech", "train-clean-100/19/198/19-198-0000.flac")
    put_text(root, "SPEAKERS.TXT", "; notes\n19   | F | train-clean-100 | 25.19 | Kara\n")
    corpus = index_corpus([tmp_path / below])
    (only,) = corpus.utterances
    assert (only.id, only.speaker, only.subset, only.sex) == ("19-198-0000", "19", "train-clean-100", "F")
    assert only.text is None and only.active is not None and len(only.digest) == 12
    assert f"{tmp_path / below}: librispeech layout, 1 files\n" in capsys.readouterr().out


def test_libritts_has_the_speakers_of_librispeech(tmp_path: Path) -> None:
    chapter = "dev-clean/84/121123/84_121123_000007_000001"
    root = put(tmp_path, f"{chapter}.wav", "dev-clean/84/121123/84_121123_000008_000000.wav")
    put_text(root, f"{chapter}.normalized.txt", "Go on.\n")
    put_text(root, f"{chapter}.original.txt", "Go on!")
    put_text(root, "dev-clean/84/121123/84_121123_000008_000000.original.txt", "No. 2")
    put_text(root, "speakers.tsv", "READER\tGENDER\tSUBSET\tNAME\n84\tF\tdev-clean\tChristie\n")
    first, second = index_corpus([root]).utterances
    assert (first.id, first.speaker, first.subset, first.sex) == (Path(chapter).name, "84", "dev-clean", "F")
    assert (first.text, second.text) == ("Go on.", "No. 2")


def test_vctk_takes_the_first_microphone_where_there_is_one(tmp_path: Path) -> None:
    names = ["p225/p225_001_mic1", "p225/p225_001_mic2", "p315/p315_004_mic2", "s5/s5_002_mic1"]
    root = put(tmp_path, *(f"wav48_silence_trimmed/{name}.flac" for name in names))
    put_text(root, "txt/p225/p225_001.txt", "Please call Stella.\n")
    info = "ID  AGE  GENDER  ACCENTS  REGION\np225  23  F    English    Southern  England\ns5 30 M British\n"
    put_text(root, "speaker-info.txt", info)
    corpus = index_corpus([root])
    assert ids(corpus) == ["p225_001", "p315_004", "s5_002"]
    assert [u.sex for u in corpus.utterances] == ["F", "", "M"]
    assert [u.text for u in corpus.utterances] == ["Please call Stella.", None, None]
    assert causes(corpus) == {"p225_001_mic2.flac": "second microphone: the first is used"}
    assert "1 second microphone" in corpus.describe()


def test_vctk_of_the_older_edition(tmp_path: Path) -> None:
    root = put(tmp_path / "VCTK-Corpus", "wav48/p225/p225_001.wav", "wav48/p226/p226_001.wav")
    put_text(root, "txt/p226/p226_001.txt", "Please call Stella.")
    put_text(root, "speaker-info.txt", "ID  AGE  GENDER  ACCENTS  REGION\n225  23  F    English\n")
    corpus = index_corpus([tmp_path])
    assert ids(corpus) == ["p225_001", "p226_001"]
    assert [(u.speaker, u.sex) for u in corpus.utterances] == [("p225", "F"), ("p226", "")]


def test_the_two_voxcelebs_share_no_speaker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = put(tmp_path / "1" / "vox1_dev_wav", "wav/id10001/abc/00001.wav", "wav/id10001/abc/00002.wav")
    meta = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J.\tm\tIreland\tdev\n"
    put_text(tmp_path / "1", "vox1_meta.csv", meta)
    second = put(tmp_path / "2", "dev/aac/id00012/xyz/00001.m4a")
    put_text(second, "vox2_meta.csv", "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,f ,dev \n")
    corpus = index_corpus([first, second])
    assert ids(corpus) == ["id00012/xyz/00001", "id10001/abc/00001", "id10001/abc/00002"]
    assert [u.sex + u.subset for u in corpus.utterances] == ["Fdev", "Mdev", "Mdev"]
    out = capsys.readouterr().out
    assert "voxceleb1 layout, 2 files" in out and "voxceleb2 layout, 1 files" in out


def test_acappella_s_tables_name_the_singers(tmp_path: Path) -> None:
    put(tmp_path, "audio/abc.wav", "audio/def_0_07_to_0_09.m4a", "audio/other.wav", seconds=2)
    put(tmp_path, "audio/whole.wav", seconds=6)
    rows = [
        "ID,Link,Singer,Language,Gender,Init,Fin,Set",
        "abc,http://x,Ann,English,Female,0:10,0:12,train",
        "def,http://x,Bob,Hindi,Male,0:07,0:09,test",
        "whole,http://x,Bob,Hindi,Male,0:07,0:09,test",
        "gone,http://x,Ann,English,Female,0:00,1:00,train",
        "abc,http://x,,English,Female,0:00,1:00,train",
    ]
    put_text(tmp_path, "csv/all.csv", "\n".join(rows))
    corpus = index_corpus([tmp_path])
    assert [(u.id, u.speaker, u.sex, u.subset) for u in corpus.utterances] == [
        ("abc", "Ann", "F", "train"),
        ("def_0_07_to_0_09", "Bob", "M", "test"),
    ]
    assert causes(corpus) == {
        "whole.wav": "not cut: 6.0 s, its table says 2.0 s",
        "all.csv:5": "no audio: gone",
        "all.csv:6": "no singer",
        "other.wav": "in no table",
    }


def test_any_folder_of_speakers_is_a_corpus_and_what_is_unusable_is_listed(tmp_path: Path) -> None:
    for speaker in ("ann", "bob"):
        (tmp_path / speaker / "session").mkdir(parents=True)
        soundfile.write(
            tmp_path / speaker / "session" / "a.wav",
            tone_voice(0, 2, ord(speaker[0]), 44100),
            44100,
        )
    (tmp_path / "ann" / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "bob" / "short.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / "loose.wav", np.zeros(32000), 16000)
    shutil.copy(tmp_path / "ann/session/a.wav", tmp_path / "ann/session/a.flac")
    corpus = index_corpus([tmp_path])
    assert ids(corpus) == ["ann/session/a", "bob/session/a"]
    assert {u.speaker for u in corpus.utterances} == {"ann", "bob"}
    assert {name: cause.split(":")[0] for name, cause in causes(corpus).items()} == {
        "text.wav": "unreadable",
        "short.wav": "too short",
        "loose.wav": "no speaker folder",
        "a.wav": "repeated id",
    }


def test_a_manifest_names_every_utterance(tmp_path: Path) -> None:
    put(tmp_path / "audio", "x.wav", "y.wav")
    rows = ["path,speaker,text,id,sex", 'audio/x.wav,ann,"Yes, please",one,f', "audio/y.wav,bob,,,"]
    put_text(tmp_path, "my.csv", "\n".join([*rows, "audio/z.wav,bob", "audio/x.wav,"]))
    corpus = index_corpus([tmp_path / "my.csv"])
    one, two = sorted(corpus.utterances, key=lambda u: u.speaker)
    assert (one.id, one.speaker, one.text, one.sex) == ("one", "ann", "Yes, please", "F")
    assert (two.id, two.text, two.sex) == ("audio/y", None, "")
    assert causes(corpus) == {"z.wav": "no such file", "my.csv:5": "no speaker"}
    assert index_corpus([f"manifest:{tmp_path / 'my.csv'}"]).fingerprint == corpus.fingerprint


def test_a_manifest_without_its_columns_is_refused(tmp_path: Path) -> None:
    put_text(tmp_path, "bad.csv", "path,singer\na.wav,ann\n")
    with pytest.raises(UserError, match=r"bad.csv: no column 'speaker' \(there are path, singer\)"):
        index_corpus([tmp_path / "bad.csv"])
    with pytest.raises(UserError, match=r"gone.csv: no such manifest"):
        index_corpus([tmp_path / "gone.csv"])


def test_a_layout_can_be_forced_and_a_colon_is_no_layout(tmp_path: Path) -> None:
    root = put(tmp_path / "a:b", "19/198/19-198-0000.flac")
    assert ids(index_corpus([root])) == ["19-198-0000"]
    assert ids(index_corpus([f"speakers:{root}"])) == ["19/198/19-198-0000"]
    with pytest.raises(UserError, match="not a VCTK name"):
        index_corpus([f"vctk:{root}"])


def test_equal_folder_names_below_two_roots_are_different_persons(tmp_path: Path) -> None:
    for root in ("one", "two"):
        put(tmp_path / root, "ann/a.wav", seconds=1 + len(root) + ord(root[0]) % 3)
    corpus = index_corpus([tmp_path / "one", tmp_path / "two"])
    assert sorted(corpus.by_speaker()) == ["one/ann", "two/ann"]
    assert corpus.unusable == ()


def test_one_corpus_named_twice_is_listed_with_both_paths(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        put(tmp_path / copy, "19/198/19-198-0000.flac")
    corpus = index_corpus([tmp_path / "one", tmp_path / "two"])
    assert list(corpus.by_speaker()) == ["19"]
    (repeated,) = corpus.unusable
    assert str(tmp_path / "two") in repeated[0] and str(tmp_path / "one") in repeated[1]


def test_corpora_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus folder"):
        index_corpus([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no audio file below it"):
        index_corpus([tmp_path])
    put_text(tmp_path, "a/x.wav", "no audio")
    with pytest.raises(UserError, match="none of 1 files can be used"):
        index_corpus([tmp_path])
    with pytest.raises(UserError, match="check: expected one of full, quick, got 'some'"):
        index_corpus([tmp_path], check="some")


def test_links_are_followed_but_not_in_a_circle_and_hidden_files_are_no_data(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.wav", ".y.wav", "__MACOSX/x.wav")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ann").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere" / "dead.wav").symlink_to(tmp_path / "gone")
    corpus = index_corpus([tmp_path / "root"])
    assert ids(corpus) == ["ann/x"]
    assert causes(corpus) == {"dead.wav": "no such file"}


# ---------------------------------------------------------------- layouts of sounds


def categories(corpus: Corpus) -> dict[str, str]:
    return {u.id: u.speaker for u in corpus.utterances}


def test_musan_is_divided_by_kind(tmp_path: Path) -> None:
    noise, music = "noise/free-sound/noise-free-sound-0000", "music/fma/music-fma-0000"
    root = put(tmp_path / "musan", f"{noise}.wav", f"{music}.wav", "speech/librivox/speech-librivox-0000.wav")
    assert categories(index_sounds([root], "noise")) == {noise: "free-sound"}
    assert categories(index_sounds([root], "music")) == {music: "fma"}
    with pytest.raises(UserError, match="no rir in it"):
        index_sounds([root], "rir")
    with pytest.raises(UserError, match="expected one of noise, music, rir, got 'speech'"):
        index_sounds([root], "speech")


def test_esc50_has_categories_and_wham_has_subsets(tmp_path: Path) -> None:
    esc = put(tmp_path / "ESC-50", "audio/1-100032-A-0.wav", "audio/1-1-A-1.wav", seconds=0.2)
    put_text(esc, "meta/esc50.csv", "filename,fold,target,category\n1-100032-A-0.wav,1,0,dog\n")
    wham = put(tmp_path / "wham_noise", "tr/a_0.1_b_-0.1.wav", "tt/c_0.2_d_-0.2.wav")
    corpus = index_sounds([esc], "noise")
    assert categories(corpus) == {"audio/1-100032-A-0": "dog"}
    assert causes(corpus) == {"1-1-A-1.wav": "in no table"}
    both = index_sounds([esc, wham], "noise")
    assert {u.id: u.subset for u in both.utterances} == {
        "ESC-50/audio/1-100032-A-0": "fold1",
        "wham_noise/tr/a_0.1_b_-0.1": "tr",
        "wham_noise/tt/c_0.2_d_-0.2": "tt",
    }
    assert set(both.by_speaker()) == {"dog", ""}


def test_rirs_noises_holds_responses_and_noises(tmp_path: Path) -> None:
    real = "real_rirs_isotropic_noises"
    small, pointsource = (
        "simulated_rirs/smallroom/Room001/Room001-00001",
        "pointsource_noises/noise-free-sound-0000",
    )
    root = put(tmp_path / "RIRS_NOISES", f"{small}.wav", f"{pointsource}.wav", seconds=0.2)
    put(root, f"{real}/room_a.wav", f"{real}/room_b.wav", seconds=0.2)
    put_text(root, f"{real}/rir_list", f"--rir-id 1 --room-id 2 RIRS_NOISES/{real}/room_a.wav\n")
    put_text(root, f"{real}/noise_list", f"--noise-id iso_1 RIRS_NOISES/{real}/room_b.wav\n")
    assert categories(index_sounds([root], "rir")) == {small: "smallroom", f"{real}/room_a": "real"}
    assert categories(index_sounds([tmp_path], "noise")) == {
        f"RIRS_NOISES/{pointsource}": "pointsource",
        f"RIRS_NOISES/{real}/room_b": "isotropic",
    }


def test_any_folder_is_sounds_and_each_kind_has_its_shortest(tmp_path: Path) -> None:
    put(tmp_path, "rain/a.wav", "loose.wav")
    put(tmp_path, "rain/brief.wav", seconds=0.01)
    assert categories(index_sounds([tmp_path], "noise")) == {"rain/a": "rain", "loose": ""}
    assert causes(index_sounds([tmp_path], "music")) == {"brief.wav": "too short: 0.010 s"}
    assert len(index_sounds([tmp_path], "rir").utterances) == 3


# ---------------------------------------------------------------- the check


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    root = put(
        tmp_path / "damaged",
        "ann/good.wav",
        "ann/fine.ogg",
        "ann/cut.flac",
        "ann/cut.wav",
        "ann/cut.ogg",
        seconds=4,
    )
    put(root, "ann/cut.m4a", seconds=8)
    for name in ("cut.flac", "cut.wav", "cut.m4a", "cut.ogg"):
        content = (root / "ann" / name).read_bytes()
        (root / "ann" / name).write_bytes(content[: len(content) // 2])
    soundfile.write(root / "ann" / "silent.wav", np.zeros(32000), 16000)
    soundfile.write(root / "ann" / "nan.wav", np.full(32000, np.nan), 16000, subtype="FLOAT")
    (root / "ann" / "empty.wav").touch()
    return root


def test_damage_behind_a_good_header_is_found(damaged: Path) -> None:
    corpus = index_corpus([damaged])
    found = causes(corpus)
    assert ids(corpus) == ["ann/fine", "ann/good"]
    assert found["cut.ogg"].startswith("truncated: breaks off after ")
    assert found["cut.wav"] == "truncated: 2.0 of 4.0 s"
    assert found["cut.flac"].startswith("truncated: ") and found["cut.flac"].endswith(" of 4.0 s")
    assert found["cut.m4a"].startswith("truncated: ")
    assert found["nan.wav"] == "NaN or infinite: 32000 samples"
    assert found["silent.wav"] == "silent"
    assert found["empty.wav"].startswith("unreadable: ")
    assert not any(str(damaged) in cause or "Error" in cause for cause in found.values())
    assert "4 truncated" in corpus.describe()


def test_a_quick_check_finds_cut_files_by_their_ends(damaged: Path) -> None:
    corpus = index_corpus([damaged], check="quick")
    found = causes(corpus)
    assert {name for name, cause in found.items() if cause.startswith("truncated")} == {
        "cut.flac",
        "cut.wav",
        "cut.m4a",
        "cut.ogg",
    }
    assert "nan.wav" in found
    assert {u.id: u.active for u in corpus.utterances} == dict.fromkeys(
        ["ann/fine", "ann/good", "ann/silent"]
    )


def test_active_stretches_are_where_the_sound_is(tmp_path: Path) -> None:
    def tone(seconds: float) -> np.ndarray:
        return 0.1 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 8000)) / 8000)

    def pause(seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * 8000))

    parts = [pause(1), tone(1), pause(0.2), tone(1), pause(0.5), tone(0.04), pause(0.5), tone(1.007)]
    soundfile.write(tmp_path / "x.wav", np.concatenate(parts), 8000)
    found = examine_audio(tmp_path / "x.wav")
    # the pause of 0.2 s is closed, the click of 0.04 s is left out, the last frame is not whole
    assert found.active == ((8000, 25600), (33920, found.frames))
    soundfile.write(tmp_path / "click.wav", np.concatenate([pause(1), tone(0.04), pause(1)]), 8000)
    assert examine_audio(tmp_path / "click.wav").active == ((8000, 8320),)


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    root = put(tmp_path / "a", "ann/x.wav", "bob/y.wav")
    before = index_corpus([root])
    shutil.move(root, tmp_path / "b")
    assert index_corpus([tmp_path / "b"]).fingerprint == before.fingerprint
    put(tmp_path / "b", "ann/longer.wav")
    shutil.move(tmp_path / "b/ann/longer.wav", tmp_path / "b/ann/x.wav")
    assert index_corpus([tmp_path / "b"]).fingerprint != before.fingerprint
    one = Utterance("x", "ann", "", 5, 16000)
    assert corpus_fingerprint([one]) != corpus_fingerprint([Utterance("x", "ann", "", 5, 16000, digest="a")])


# ---------------------------------------------------------------- what is remembered


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []
    real: Callable[..., object] = scan.examine_audio

    def spy(path: str, whole: bool) -> object:
        names.append(Path(path).name)
        return real(path, whole)

    monkeypatch.setattr(scan, "examine_audio", spy)
    return names


def test_integers_written_as_floats_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "ann/good.wav", seconds=2)
    soundfile.write(tmp_path / "ann" / "whole.wav", np.full(32000, 3e4), 16000, subtype="FLOAT")
    found = causes(index_corpus([tmp_path]))
    assert found == {"whole.wav": "not sound within [-1, 1]: a sample of 30000"}


def test_a_second_scan_decodes_what_is_new(damaged: Path, tmp_path: Path, looked_at: list[str]) -> None:
    cache = tmp_path / "sub" / "index.sqlite"
    first = index_corpus([damaged], cache=cache)
    assert len(looked_at) == 9
    looked_at.clear()
    assert index_corpus([damaged], cache=cache) == first
    assert looked_at == []
    good = damaged / "ann" / "good.wav"
    os.utime(good, ns=(0, 1))
    assert index_corpus([damaged], cache=cache) == first
    assert looked_at == ["good.wav"]
    index_corpus([damaged], cache=cache, check="quick")
    assert len(looked_at) == 10


def test_an_interrupted_scan_goes_on_where_it_was(
    tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "root", *(f"ann/{i}.wav" for i in range(6)))
    real = scan.check_file

    def dies(path: str, check: str) -> scan.FileCheck:
        if len(looked_at) == 4:
            raise KeyboardInterrupt
        return real(path, check)

    monkeypatch.setattr(scan, "check_file", dies)
    with pytest.raises(KeyboardInterrupt):
        index_corpus([root], cache=tmp_path / "index.sqlite")
    monkeypatch.setattr(scan, "check_file", real)
    assert len(index_corpus([root], cache=tmp_path / "index.sqlite").utterances) == 6
    assert sorted(looked_at) == [f"{i}.wav" for i in range(6)]


def test_a_cache_that_is_none_costs_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(tmp_path / "root", "ann/x.wav")
    expected = index_corpus([root])
    (tmp_path / "index.sqlite").write_text("no database, but something of somebody's\n" * 100)
    (tmp_path / "file").touch()
    for cache in (tmp_path / "index.sqlite", tmp_path / "file" / "index.sqlite"):
        capsys.readouterr()
        assert index_corpus([root], cache=cache) == expected
        assert capsys.readouterr().out.count(f"NOTE: {cache}: cannot be used") == 1
    assert (tmp_path / "index.sqlite").read_text().startswith("no database")


def test_processes_find_what_one_process_finds(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(damaged, *(f"bob/{i}.wav" for i in range(70)))
    alone = index_corpus([damaged], cache=tmp_path / "1", processes=1)
    monkeypatch.setattr(scan, "POOL_SECONDS", 0.0)
    assert index_corpus([damaged], cache=tmp_path / "2", processes=2) == alone

    monkeypatch.setattr(scan, "_check_chunk", die)
    with pytest.raises(UserError, match="one of 2 checking processes was killed"):
        index_corpus([damaged], cache=tmp_path / "3", processes=2)


# ---------------------------------------------------------------- real data, and splits


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real speech at {SHARED}")
def test_the_librispeech_excerpt_indexes_completely() -> None:
    corpus = index_corpus([SHARED / "LibriSpeech"])
    assert (len(corpus.by_speaker()), len(corpus.utterances)) == (256, 665)
    assert corpus.unusable == ()
    sexes = {u.speaker: u.sex for u in corpus.utterances}
    assert sorted(sexes.values()).count("F") == 127 and "" not in sexes.values()
    assert {u.subset for u in corpus.utterances} == {"train-clean-100", "test-other"}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real sounds at {SHARED}")
@pytest.mark.parametrize(
    "folder, kind, count", [("noise", "noise", 5), ("rirs", "rir", 4), ("interference", "noise", 2584)]
)
def test_real_sounds_index_completely(folder: str, kind: str, count: int) -> None:
    corpus = index_sounds([SHARED / folder], kind, check="quick")
    assert (len(corpus.utterances), corpus.unusable) == (count, ())


def test_speakers_are_disjoint_seeded_and_never_fewer_than_two() -> None:
    names = [str(i) for i in range(30)]
    wanted = {"validation": (0.1, None), "test": (0.2, ["3", "4", "5"])}
    splits = split_speakers(names, 1, wanted)
    assert splits == split_speakers(names[::-1], 1, wanted)
    assert splits != split_speakers(names, 2, wanted)
    assert sorted(name for ids in splits.values() for name in ids) == sorted(names)
    assert splits["test"] == ["3", "4", "5"]
    # voices that were made of people are trained on where the person is, and change no draw
    warped = [f"warped/{name}~{voice}" for name in names for voice in (1, 2)]
    more = split_speakers([*names, *warped, "x~1"], 1, wanted)
    assert (more["validation"], more["test"]) == (splits["validation"], splits["test"])
    trained = {f"warped/{name}~{voice}" for name in splits["train"] for voice in (1, 2)}
    assert set(more["train"]) == {*splits["train"], *trained, "x~1"}
    assert len(split_speakers(names, 1, {"test": (0.01, None)})["test"]) == 2
    for bad, words in (({"test": (0.1, ["x"])}, "x: not among"), ({"test": (0.1, names)}, "train 0")):
        with pytest.raises(UserError, match=words):
            split_speakers(names, 1, bad)  # type: ignore[arg-type]


def test_the_same_recordings_are_not_two_people(tmp_path: Path) -> None:
    put(tmp_path, "one/ann/a.wav", "one/bob/b.wav")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    corpus = index_corpus([tmp_path / "one", tmp_path / "two"])
    assert ids(corpus) == ["one/ann/a", "one/bob/b"]
    assert {cause.split(":")[0] for _, cause in corpus.unusable} == {"repeated file"}
    for roots in ([tmp_path / "one", tmp_path / "one"], [tmp_path, tmp_path / "one"]):
        with pytest.raises(UserError, match="the same files as below"):
            index_corpus(roots)
    put(tmp_path, "speech/84/1/84-1-0001.flac", "tts/84/1/84_1_000001_000000.wav")
    with pytest.raises(UserError, match="LibriTTS holds the recordings of LibriSpeech"):
        index_corpus([tmp_path / "speech", tmp_path / "tts"])


def test_a_digest_names_all_of_a_file(tmp_path: Path) -> None:
    put(tmp_path, "ann/a.wav", seconds=9)
    path = tmp_path / "ann/a.wav"
    before = [scan.digest_of(str(path), check) for check in ("full", "quick")]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = [scan.digest_of(str(path), check) for check in ("full", "quick")]
    assert before[0] != after[0] and before[1] == after[1]
    assert before[1].startswith("~") and not before[0].startswith("~")
    assert scan.changed_files({str(path): after[0]}) == []
    assert scan.changed_files({str(path): before[0]}) == [str(path)]


def test_names_and_rows_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "ann/a.wav")
    os.symlink("self", tmp_path / "ann" / "self")
    os.symlink("loop.wav", tmp_path / "ann" / "loop.wav")
    shutil.copy(tmp_path / "ann/a.wav", os.fsencode(tmp_path / "ann") + b"/caf\xe9.wav")
    corpus = index_corpus([tmp_path])
    assert ids(corpus) == ["ann/a"]
    assert sorted(cause for _, cause in corpus.unusable)[0].startswith("its name is no text in UTF-8")
    assert len(corpus.unusable) == 2
    table = tmp_path / "list.csv"
    table.write_text("path,text,speaker\nann/a.wav,YES\u2028SIR,ann\nann/a.wav,YES, SIR,bob\nx\0y.wav,a,cy\n")
    with pytest.raises(UserError, match="holds NUL characters"):
        index_corpus([table])
    table.write_text("path,text,speaker\nann/a.wav,YES\u2028SIR,ann\nann/a.wav,YES, SIR,bob\n")
    corpus = index_corpus([table])
    assert [(u.speaker, u.text) for u in corpus.utterances] == [("ann", "YES\u2028SIR")]
    assert corpus.unusable[0][1] == "too many cells: 4 cells for 3 columns, is a comma not quoted?"
    table.write_text("path,path,speaker\na,b,c\n")
    with pytest.raises(UserError, match="the column 'path' stands twice"):
        index_corpus([table])
    with pytest.raises(UserError, match=r"no such corpus folder \(layouts to name before a colon"):
        index_corpus([f"vtck:{tmp_path}"])


def test_a_part_of_rirs_noises_keeps_its_rooms_together(tmp_path: Path) -> None:
    names = [f"smallroom/Room00{room}/Room00{room}-0000{n}.wav" for room in (1, 2) for n in (1, 2)]
    root = put(tmp_path / "RIRS_NOISES" / "simulated_rirs", *names, seconds=0.2)
    for place in (root, root.parent):
        rooms = {u.id.split("/")[-2]: u.subset for u in index_sounds([place], "rir").utterances}
        assert rooms == {"Room001": "smallroom/Room001", "Room002": "smallroom/Room002"}
