"""embedder.py as users run it: embeddings, verification, and what it says to bad input."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import embedder as command
from datasets.corpus import heard_speakers
from model.foreign import load_embedder
from tests.conftest import tone_voice, write_librispeech
from utils.audio import read_mono, write_audio
from utils.files import read_json

Runner = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def one_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speakers of one utterance."""
    return write_librispeech(tmp_path_factory.mktemp("single"), speakers=3, utterances=1, seconds=8.0)


def assert_picture(path: Path) -> None:
    height, width, _ = matplotlib.image.imread(path).shape
    assert path.read_bytes().startswith(b"\x89PNG") and min(height, width) > 400


def test_files_and_folders_are_embedded(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    for number in range(2):
        write_audio(tmp_path / f"anna/{number}.wav", tone_voice(9, 2.0, number), 22050)
    files = [tmp_path / f"anna/{number}.wav" for number in range(2)]
    out, picture = tmp_path / "made/e.npz", tmp_path / "made/e.png"
    code, text, err = run(
        command.main, "embed", *files, "-o", out, corpus_folder, "-e", embedder_file, "--picture", picture
    )
    assert code == 0 and "| 26 | 9 |" in text, err
    with np.load(out, allow_pickle=False) as found:
        embeddings, similarity = found["embeddings"], found["similarity"]
        assert embeddings.shape == (26, 256) and embeddings.dtype == similarity.dtype == np.float32
        assert found["speakers"][:3].tolist() == ["anna", "anna", "100"]
        assert found["paths"][:2].tolist() == [str(path) for path in files]
        assert str(found["embedder"]) == load_embedder(str(embedder_file)).fingerprint()
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-6)
    alone = load_embedder(str(embedder_file)).embed([torch.from_numpy(read_mono(files[1], 16000))])
    np.testing.assert_allclose(embeddings[1], alone[0].numpy(), atol=1e-5)
    assert_picture(picture)
    code, text, _ = run(command.main, "embed", *files, "-o", out, "-e", embedder_file, "--picture", picture)
    assert code == 0 and "  1 anna/0.wav" in text and "within speakers" in text
    assert run(command.main, "embed", files[0], "-o", out, "-e", embedder_file, "--picture", picture)[0] == 0


def test_a_bad_recording_is_one_sentence_and_writes_nothing(
    run: Runner, embedder_file: Path, tmp_path: Path
) -> None:
    good = tmp_path / "a/good.wav"
    write_audio(good, tone_voice(1, 2.0, 0), 16000)
    write_audio(tmp_path / "a/silent.wav", np.zeros(32000, np.float32), 16000)
    write_audio(tmp_path / "a/short.wav", tone_voice(1, 0.1, 0), 16000)
    write_audio(tmp_path / "a/nan.wav", np.full(32000, np.nan, np.float32), 16000)
    (tmp_path / "a/text.wav").write_text("no audio")
    cases = {
        "silent": "is silent",
        "short": "of speech, at least 0.4 s is needed",
        "nan": "NaN",
        "text": "not a readable",
    }
    cases |= {"gone": "no such file", "good": "is named twice"}
    for name, words in cases.items():
        arguments = ["embed", good, tmp_path / f"a/{name}.wav", "-o", tmp_path / "e.npz", "-e", embedder_file]
        code, _, err = run(command.main, *arguments)
        assert code == 2 and words in err and name in err, (name, err)
        assert err.strip().splitlines()[-1].startswith("ERROR: ")
    both = ("-o", tmp_path / "e", "--picture", tmp_path / "e")
    code, _, err = run(command.main, "embed", good, *both, "-e", embedder_file)
    assert code == 2 and "for the picture" in err
    assert not (tmp_path / "e.npz").exists() and not (tmp_path / "e").exists()
    code, _, err = run(command.main, "emded")
    assert code == 2 and "invalid choice" in err


def test_embedders_are_compared_side_by_side(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    content = load_embedder(str(embedder_file)).content()
    content["training_speakers"] = ["100", "101", "unknown"]
    torch.save({"embedder": content}, tmp_path / "own.pt")
    arguments = ["verify", "-d", corpus_folder, "-e", embedder_file, "-e", tmp_path / "own.pt"]
    code, out, err = run(command.main, *arguments, "-o", tmp_path / "r")
    assert code == 0 and "24 utterances of 8 speakers: 24 trials of one speaker, 252 of two" in out, err
    assert "2 of 8 speakers" in out and "crops of one utterance" not in out
    summary = read_json(tmp_path / "r/verification.json")
    first, second = (summary["embedders"][str(name)] for name in (embedder_file, tmp_path / "own.pt"))
    assert (first["heard_speakers"], first["heard_others"], second["heard_speakers"]) == (0, True, 2)
    assert "| unknown |" in out and "| at least 2 of 8 speakers |" in out
    assert {**first, "heard_speakers": 2} == second
    assert 0 <= first["eer_low"] <= first["eer_high"] <= 1 and 0 <= first["min_dcf"] <= 1
    assert_picture(tmp_path / "r/det.png")
    with gzip.open(tmp_path / "r/trials.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 276 and sum(row["same"] == "1" for row in rows) == 24
    assert {
        row["first"].split("-")[0] == row["second"].split("-")[0] for row in rows if row["same"] == "1"
    } == {True}
    code, out, _ = run(command.main, *arguments, "--unheard", "--seconds", "1", "-o", tmp_path / "r")
    assert code == 0 and "18 utterances of 6 speakers" in out and "without 2 speakers heard" in out
    assert "first 1 s of each" in json.loads((tmp_path / "r/verification.json").read_text())["protocol"]


def test_crops_of_one_utterance_are_named(
    run: Runner, one_each: Path, embedder_file: Path, tmp_path: Path
) -> None:
    code, out, err = run(command.main, "verify", "-d", one_each, "-e", embedder_file, "-o", tmp_path)
    assert code == 0, err
    assert "3 of them have one utterance: crops of one utterance count as utterances" in out
    with gzip.open(tmp_path / "trials.csv.gz", "rt") as file:
        names = {row["first"] for row in csv.DictReader(file)}
    assert all("[" in name for name in names)


def test_a_list_of_trials(run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path) -> None:
    trials = tmp_path / "t.txt"
    trials.write_text(
        "1 100/7/100-7-0000.flac 100/7/100-7-0001.flac\n0 100-7-0000.wav 101/7/101-7-0002\n0 9/9 9/8\n"
    )
    arguments = ["verify", "-d", corpus_folder, "-e", embedder_file, "-o", tmp_path, "--trials", trials]
    code, out, err = run(command.main, *arguments)
    assert code == 0 and "2 of 3 trials can be scored; left out: 1 missing audio" in out, err
    assert "9/9" in (tmp_path / "missing.csv").read_text()
    cases = [
        ([*arguments, "--seconds", "2"], "go without"),
        (["verify", "-d", corpus_folder, "--utterances", "1"], "expected at least 2"),
        (["verify", "-d", corpus_folder, "--seconds", "0.1"], "expected at least 0.4"),
        (["verify", "-d", corpus_folder, "-e", "a", "-e", "a"], "named twice"),
        (["verify", "-d", corpus_folder, "-e", embedder_file, "--subset", "test"], "its subsets: dev-clean"),
        (["verify", "-d", tmp_path / "gone", "-e", embedder_file], "no such corpus folder"),
        (["verify", "-e", embedder_file], "-d/--corpus"),
        ([*arguments[:-1], tmp_path / "gone.txt"], "no such list"),
    ]
    for wrong, words in cases:
        code, _, err = run(command.main, *wrong)
        assert code == 2 and words in err, (wrong, err)


def test_a_flat_folder_is_one_speaker_and_its_poor_files_are_listed(
    run: Runner, embedder_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "anna"
    for number, seconds in enumerate((2.0, 0.5, 0.2)):
        write_audio(folder / f"{number}.wav", tone_voice(0, seconds, number), 16000)
    (folder / "text.wav").write_text("no audio")
    code, out, err = run(command.main, "embed", folder, "-o", tmp_path / "e.npz", "-e", embedder_file)
    assert code == 0, err
    with np.load(tmp_path / "e.npz", allow_pickle=False) as found:
        assert found["speakers"].tolist() == ["anna", "anna"]
    assert "2.wav: 0." in out + err and "text.wav" in out + err


def test_a_result_never_takes_the_place_of_what_is_read(
    run: Runner, embedder_file: Path, tmp_path: Path
) -> None:
    write_audio(tmp_path / "a" / "x.wav", tone_voice(0, 2.0, 0), 16000)
    before = (tmp_path / "a/x.wav").read_bytes()
    for result in (["-o", tmp_path / "a/x.wav"], ["-o", embedder_file],
                   ["-o", tmp_path / "e.npz", "--picture", tmp_path / "a/x.wav"]):  # fmt: skip
        for named in (tmp_path / "a", tmp_path / "a/x.wav"):
            code, _, err = run(command.main, "embed", named, "-e", embedder_file, *result)
            assert code == 2 and "would be overwritten" in err
    assert (tmp_path / "a/x.wav").read_bytes() == before


@pytest.mark.parametrize("what", ["embed", "verify"])
def test_where_nothing_can_be_written_nothing_is_computed(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path, what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "embed_waves" if what == "embed" else "embed_clips", None)
    (tmp_path / "file").touch()
    named = [corpus_folder] if what == "embed" else ["-d", corpus_folder]
    code, _, err = run(command.main, what, *named, "-e", embedder_file, "-o", tmp_path / "file/x")
    assert code == 2 and "cannot write there" in err


def test_speakers_are_known_again_beside_other_corpora() -> None:
    assert heard_speakers(["anna", "voices/bert", "carl"], ["voices/anna", "bert"]) == {"anna", "voices/bert"}
    assert heard_speakers(["voices/anna"], ["others/anna"]) == set()
    # of voices made of people, the people are known
    assert heard_speakers(["40", "41", "warped/42~1"], ["warped/40~2", "42"]) == {"40", "warped/42~1"}
