"""Evaluation: scores of rows, what a stop leaves, word errors, comparisons and the page."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mir_eval
import numpy as np
import pystoi
import pytest
import soundfile
import torch
import torchaudio

import evaluate
import generator
import trainer
from config.load import run_script
from model import evaluation
from model.evaluation import Evaluation
from model.evaluation_page import as_html
from model.evaluation_summary import compare, summarize_rows
from model.recognition import load_recognizer, normalized, recognize, word_error_rate, word_errors
from model.row_scores import LISTENED, METRICS, RowAudio, over_suppression, overlap_share, score_row
from model.test_set import System, Wanted, result_name
from model.test_set import TestSet as Examples
from tests.conftest import SHARED, TINY, resemblyzer_state, tone_voice, train_arguments
from utils.audio import resample
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.metrics import CEILING_DB, SILENCE_DB, bootstrap_interval, sign_flip_p
from utils.perception import WORST_PESQ, missing_packages, pesq, stoi

ROOT = Path(__file__).parents[1]
SIGNAL_METRICS = tuple(name for name in METRICS if name not in (*LISTENED, *missing_packages()))
Runner = Callable[..., tuple[int, str, str]]


# ---------------------------------------------------------------- a row


def row_of(
    target: np.ndarray, interference: np.ndarray, role: str = "mixture", **outputs: np.ndarray
) -> RowAudio:
    wanted = dict.fromkeys(outputs, SIGNAL_METRICS)
    return RowAudio(16000, role, target, interference, outputs, wanted, {})


def speech(seconds: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Two people of the excerpt, which the perceptual scores want; tones where it is absent."""
    files = sorted((SHARED / "LibriSpeech/test-other").glob("*/*/*.flac")) if SHARED.is_dir() else []
    if not files:
        return tone_voice(0, seconds, 0), tone_voice(3, seconds, 0)
    first, second = (soundfile.read(path, dtype="float32")[0] for path in (files[2], files[-1]))
    length = round(seconds * 16000)
    return np.resize(first, length), np.resize(second, length)


def test_a_scores_scores_are_those_of_the_packages() -> None:
    target, other = speech()
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(target)).astype(np.float32)
    estimate = target + 0.2 * other + noise
    scores = score_row(row_of(target, other, mixture=target + other, estimate=estimate))
    assert set(scores) == {"mixture", "estimate"} and set(scores["estimate"]) == set(SIGNAL_METRICS)
    sources, outputs = np.stack([target, other]), np.stack([estimate, estimate])
    expected = mir_eval.separation.bss_eval_sources(sources, outputs, False)
    for name, values in zip(("sdr", "sir", "sar"), expected[:3], strict=True):
        assert scores["estimate"][name] == pytest.approx(values[0], abs=1e-3)
    for name in ("pesq_wb", "pesq_nb", "stoi", "estoi", "sdr", "si_sdr", "sir"):
        if name in scores["estimate"]:
            assert scores["estimate"][name] > scores["mixture"][name], name
    assert scores["mixture"]["sar"] == CEILING_DB
    for name, extended in (("stoi", False), ("estoi", True)):
        np.random.seed(0)
        expected = pystoi.stoi(target, estimate, 16000, extended=extended)
        assert scores["estimate"][name] == pytest.approx(expected, abs=1e-6)
    if "pesq_wb" in SIGNAL_METRICS:
        import pesq as package

        assert scores["estimate"]["pesq_wb"] == pytest.approx(package.pesq(16000, target, estimate, "wb"))
        narrow = package.pesq(8000, resample(target, 16000, 8000), resample(estimate, 16000, 8000), "nb")
        assert scores["estimate"]["pesq_nb"] == pytest.approx(narrow)


def test_what_is_degenerate_has_a_documented_value() -> None:
    target, other = speech()
    silence = np.zeros_like(target)
    silent = score_row(row_of(target, other, estimate=silence))["estimate"]
    assert silent["sdr"] == silent["si_sdr"] == silent["sir"] == silent["sar"] == SILENCE_DB
    assert silent["stoi"] == silent["estoi"] == 0.0
    assert silent["over_suppression"] == 100.0 and silent["level"] == -120.0
    nobody = score_row(row_of(silence, other, estimate=target))["estimate"]
    assert nobody["si_sdr"] == SILENCE_DB and nobody["over_suppression"] == 0
    if "pesq_wb" in SIGNAL_METRICS:
        assert silent["pesq_wb"] == silent["pesq_nb"] == nobody["pesq_wb"] == WORST_PESQ
        assert pesq(target[16000:17000], target[16000:17000], 16000, "wb") == WORST_PESQ
    alone = score_row(row_of(target, silence, "alone", estimate=target))["estimate"]
    assert alone["sdr"] > 60 and "sir" not in alone and alone["stoi"] > 0.99
    absent = score_row(row_of(silence, other, "absent", estimate=other))["estimate"]
    assert set(absent) == {"level"}
    short = target[16000:17000]
    found = score_row(row_of(short, other[:1000], estimate=short + other[:1000]))["estimate"]
    assert all(np.isfinite(value) for value in found.values())
    assert stoi(short, short, 16000) == 0.0
    assert stoi(short[:100], short[:100], 16000, extended=True) == 0.0


def test_over_suppression_and_overlap_count_frames() -> None:
    target = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    output = target.copy()
    output[:4000] *= 0.1
    output[4000:8000] *= 0.5  # 6 dB: quieter, but there
    assert over_suppression(output, target, 16000) == pytest.approx(0.25, abs=0.02)
    other = np.zeros_like(target)
    other[8000:] = target[:8000]
    assert overlap_share(target, other, 16000) == pytest.approx(0.5, abs=0.02)
    assert overlap_share(np.zeros(16000), other, 16000) == 0.0


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("spoken", "heard", "expected"),
    [
        ("DON'T STOP", "don\u2019t stop!", (0, 2)),
        ("a well-known man", "A well known, man.", (0, 4)),
        ("one two three", "one three four", (2, 3)),
        ("one two", "", (2, 2)),
        ("", "noise", (1, 0)),
    ],
)
def test_word_errors(spoken: str, heard: str, expected: tuple[int, int]) -> None:
    assert word_errors(spoken, heard) == expected


def test_the_rate_is_of_all_words_together() -> None:
    assert word_error_rate([1, 0], [1, 9]) == 10.0 and word_error_rate([], []) == 0.0
    assert normalized("The  'Quoted' x_y, e\u0301t\u00e9") == "the quoted x y \u00e9t\u00e9"


def test_a_real_recogniser_on_real_speech() -> None:
    folder = SHARED / "LibriSpeech/train-clean-100/19"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    texts = {}
    for path in folder.rglob("*.trans.txt"):
        texts |= dict(line.strip().split(" ", 1) for line in path.read_text().splitlines())
    errors = words = 0
    for path in sorted(folder.rglob("*.flac"))[:40:20]:
        samples, rate = soundfile.read(path, dtype="float32")
        wrong, said = word_errors(texts[path.stem], recognize("pocketsphinx", samples, rate))
        errors, words = errors + wrong, words + said
    assert words > 0 and errors / words < 0.5
    assert recognize("pocketsphinx", np.zeros(16000, np.float32), 16000) == ""


def test_whisper_hears_the_same_every_time_and_does_not_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class WhisperModel:
        def __init__(self, model: str, **options: Any) -> None:
            assert model == "tiny.en"

        def transcribe(self, samples: np.ndarray, **options: Any) -> tuple[list[SimpleNamespace], None]:
            given.update(options, samples=len(samples))
            return [SimpleNamespace(text="one"), SimpleNamespace(text="two")], None

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=WhisperModel))
    hear = load_recognizer.__wrapped__("whisper:tiny.en")
    assert hear(np.zeros(16000, np.float32)) == "one two"
    assert (given["temperature"], given["no_repeat_ngram_size"], given["samples"]) == (0.0, 5, 16000)


def test_wav2vec2_is_read_by_the_best_letter_of_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the same shape that says one thing, because weights would have to be fetched."""
    bundle = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H
    labels = bundle.get_labels()
    said = torch.tensor([labels.index(letter) for letter in "HHE-L-LLO|-|MEE--"])
    heard: list[torch.Size] = []

    class Network(torch.nn.Module):
        def forward(self, waves: torch.Tensor) -> tuple[torch.Tensor, None]:
            heard.append(waves.shape)
            return torch.nn.functional.one_hot(said, len(labels))[None].float(), None

    monkeypatch.setattr(type(bundle), "get_model", lambda self: Network())
    load_recognizer.cache_clear()
    name = "wav2vec2:WAV2VEC2_ASR_BASE_960H"
    assert recognize(name, np.full(44100, 0.1, np.float32), 44100).split() == ["HELLO", "ME"]
    recognize(name, np.full(20, 0.1, np.float32), 16000)
    load_recognizer.cache_clear()
    assert heard == [(1, 16000), (1, 1600)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sphinx", "recogniser 'sphinx': expected one of pocketsphinx, whisper:MODEL"),
        ("wav2vec2:NONE", "no such bundle, torchaudio has WAV2VEC2_ASR_BASE_100H"),
        ("file:gone.csv", "gone.csv: expected a CSV of index, condition and text"),
    ],
)
def test_recognisers_that_are_not_there(
    run: Runner, trained: Path, store: Path, tmp_path: Path, name: str, words: str
) -> None:
    given = [trained, "--data", store, "-o", tmp_path, "--metrics", "si_sdr", "-p", 1]
    code, _, err = run(evaluate.main, *given, "--recognizer", name)
    assert code == 2 and words in err


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def two(trained: Path, store: Path, embedder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint, trained a little longer."""
    folder = tmp_path_factory.mktemp("two")
    arguments = train_arguments(folder, store, embedder_file, "train.steps=9")
    arguments[arguments.index("-m") + 1] = "longer"
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: trainer.main([str(a) for a in arguments]))
    assert not ended.value.code
    return folder / "chkpt/longer/best.pt"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_utterance.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_stopped_evaluation_goes_on_and_workers_change_nothing(
    run: Runner, trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [trained, "--data", store, "--clean", "--recognizer", "pocketsphinx"]
    assert run(evaluate.main, *given, "-o", tmp_path / "a", "-p", 1)[0] == 0
    expected = (tmp_path / "a/m-best-test/per_utterance.csv").read_text()
    assert run(evaluate.main, *given, "-o", tmp_path / "b", "-p", 2)[0] == 0
    assert (tmp_path / "b/m-best-test/per_utterance.csv").read_text() == expected
    # two of six rows were finished when it was stopped, one of them half written
    for name in ("m-best-test", "mixture-test"):
        source, target = tmp_path / "a" / name, tmp_path / "c" / name
        target.mkdir(parents=True)
        lines = (source / "rows-0.jsonl").read_text().splitlines()
        (target / "rows-0.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])
    measured: list[list[int]] = []
    measure = Evaluation._measure
    monkeypatch.setattr(
        Evaluation,
        "_measure",
        lambda self, rows, *more: (measured.append(rows), measure(self, rows, *more))[1],
    )
    assert run(evaluate.main, *given, "-o", tmp_path / "c", "-p", 1)[0] == 0
    assert (tmp_path / "c/m-best-test/per_utterance.csv").read_text() == expected and measured
    measured.clear()
    assert run(evaluate.main, *given, "-o", tmp_path / "c", "-p", 1)[0] == 0 and not measured
    # more metrics are added to what is there, another mask begins anew
    assert run(evaluate.main, *given[:3], "-o", tmp_path / "d", "--metrics", "sdr", "-p", 1)[0] == 0
    assert run(evaluate.main, *given, "-o", tmp_path / "d", "-p", 1)[0] == 0
    assert (tmp_path / "d/m-best-test/per_utterance.csv").read_text() == expected


def test_two_processes_of_torchrun_score_what_one_does(trained: Path, store: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = [
        str(ROOT / "evaluate.py"),
        str(trained),
        "--data",
        str(store),
        "-p",
        "1",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # what one has begun, both go on with
    for name, how, metrics in (("one", [], "sdr,stoi"), ("both", [], "sdr"), ("both", launch, "sdr,stoi")):
        done = subprocess.run(
            [sys.executable, *how, *given, "--metrics", metrics, "-o", str(tmp_path / name)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("6 mixtures") == 1
    tables = [(tmp_path / name / "m-best-test/per_utterance.csv").read_text() for name in ("one", "both")]
    assert tables[0] == tables[1]


def test_checkpoints_are_compared_pair_by_pair(
    run: Runner, trained: Path, two: Path, store: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, out, err = run(
        evaluate.main, trained, two, "--data", store, "-o", tmp_path, "--html", page, "-p", 1
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "comparison-test.json").read_text())
    by_metric = {row["metric"]: row for row in rows}
    assert {"sdr", "si_sdr"} <= set(by_metric) and "level" not in by_metric
    first, second = (table(tmp_path / f"{name}-best-test") for name in ("m", "longer"))
    gains = [float(b["sdr_after"]) - float(a["sdr_after"]) for a, b in zip(first, second, strict=True)]
    row = by_metric["sdr"]
    assert row["n"] == 6 and row["mean"] == pytest.approx(np.mean(gains), abs=1e-3)
    assert row["low"] is row["high"] is row["p"] is None  # of two people
    assert by_metric["accepted_share"]["n"] == 6
    assert "Paired differences" in out and "| mixture |" in out
    summary = json.loads((tmp_path / "longer-best-test/summary.json").read_text())
    assert {"data_fingerprint", "versions", "protocol", "checkpoint_sha256"} <= set(summary)
    for name in METRICS:
        if f"{name}_after_mean" in summary:
            assert f"{name}_after_low" not in summary and summary[f"{name}_after_std"] >= 0
    text = page.read_text()
    assert text.count("<audio") == 2 * 6 * 4 and "src='http" not in text and "<table>" in text


def test_words_are_scored_where_targets_are_whole(
    run: Runner, trained: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuples = tmp_path / "t.csv"
    tuples.write_text(
        "clean_utterance,embedding_utterance,interference_utterance\n"
        "100-7-0000,100-7-0001,101-7-0000\n102-7-0000,102-7-0001,101-7-0000\n"
    )
    heard = tmp_path / "heard.csv"
    corpus_folder = Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))
    for path in corpus_folder.rglob("*-0000.flac"):
        chapter = path.stem.rsplit("-", 1)[0]
        path.with_name(f"{chapter}.trans.txt").write_text(f"{path.stem} ONE TWO THREE FOUR\n")
    rows = [(0, "clean", "one two three four"), (1, "clean", "One, two; three four."), (0, "noisy", "")]
    with heard.open("w", newline="") as file:
        csv.writer(file).writerows([("index", "condition", "text"), *rows])
    given = [trained, "--tuples", tuples, "-d", corpus_folder, "-o", tmp_path, "--metrics", "si_sdr", "-p", 1]
    code, out, err = run(evaluate.main, *given, "--recognizer", f"file:{heard}")
    assert code == 0, err
    words = json.loads((tmp_path / "m-best-t/summary.json").read_text())["word_errors"]
    assert words["clean"]["wer"] == 0 and words["clean"]["n"] == 2
    assert words["noisy"]["wer"] == 100 and "Word error rate" in out and "(n 1)" in out
    assert table(tmp_path / "m-best-t")[1]["heard_clean"] == "One, two; three four."
    monkeypatch.setattr(evaluation, "recognize", lambda name, samples, rate: "one two three")
    code, out, err = run(evaluate.main, *given, "--recognizer", "pocketsphinx", "--clean")
    assert code == 0, err
    words = json.loads((tmp_path / "m-best-t/summary.json").read_text())["word_errors"]
    assert set(words) == {"clean", "noisy", "enhanced", "enhanced_clean"}
    assert {condition["wer"] for condition in words.values()} == {25.0}
    assert "heard_enhanced_clean" in table(tmp_path / "m-best-t")[0]


def test_metrics_that_nobody_knows_are_refused(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    given = [trained, "--data", store, "-o", tmp_path]
    for more, words in (
        (["--metrics", "sdrr"], "--metrics sdrr: expected all or some of sdr, si_sdr"),
        (["-p", 0], "-p 0: expected at least 1"),
    ):
        code, _, err = run(evaluate.main, *given, *more)
        assert code == 2 and words in err


def test_a_missing_package_leaves_its_column_out(
    run: Runner, trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "missing_packages", lambda: {"pesq_wb": "pesq", "pesq_nb": "pesq"})
    code, _, err = run(evaluate.main, trained, "--data", store, "-o", tmp_path, "-p", 1)
    assert code == 0 and err.count("left out: the package pesq is not installed") == 1
    assert "pesq_wb_after" not in table(tmp_path / "m-best-test")[0]
    code, _, err = run(evaluate.main, trained, "--data", store, "-o", tmp_path, "--metrics", "pesq_wb")
    assert code == 2 and "needs the package pesq (pip install pesq)" in err


def test_only_what_is_asked_for_is_shown_and_nothing_of_a_part_of_the_rows(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    given = [trained, "--data", store, "-o", tmp_path, "-p", 1]
    assert run(evaluate.main, *given, "--clean")[0] == 0
    for name in ("m-best-test", "mixture-test"):
        path = tmp_path / name / "rows-0.jsonl"
        path.write_text("\n".join(path.read_text().splitlines()[:4]) + "\n")
    code, out, _ = run(evaluate.main, *given, "--metrics", "sdr, si_sdr")
    text = (tmp_path / "m-best-test/summary.json").read_text()
    assert code == 0 and "NaN" not in text and "nan" not in out
    assert not {"stoi_after_mean", "sdr_clean_mean", "verification_eer_after"} & json.loads(text).keys()
    assert {"by_person", "worse_share"} <= json.loads(text).keys() and "by the person who is asked for" in out
    assert "STOI" not in out and "stoi_after" not in table(tmp_path / "m-best-test")[0]


def test_estimates_that_are_no_numbers_are_scored_as_silence_and_counted(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(trained)
    content["network"]["out.bias"][:] = float("nan")
    broken = tmp_path / "broken/best.pt"
    save_checkpoint(broken, content)
    given = [broken, trained, "--data", store, "-o", tmp_path, "--metrics", "sdr,level", "-p", 1]
    code, out, err = run(evaluate.main, *given, "--html", tmp_path / "r.html", "--save_audio", "best")
    assert code == 0, err
    summary = json.loads((tmp_path / "broken-best-test/summary.json").read_text())
    assert summary["not_finite"] == 6 and summary["sdr_after_mean"] == SILENCE_DB
    assert "6 ESTIMATES ARE NaN OR INFINITE" in out and summary["level_after_mean"] == -120.0


def test_what_has_no_effect_is_refused(run: Runner, trained: Path, store: Path, tmp_path: Path) -> None:
    given = [trained, "--data", store, "-o", tmp_path, "--metrics", "si_sdr", "-p", 1]
    (tmp_path / "file").write_text("")
    (tmp_path / "heard.csv").write_text("index,condition,text\n99,clean,one\n")
    for more, words in (
        (["--protocol", "crop"], "--protocol: has no effect with --data"),
        (["--noise", "x"], "--noise: has no effect with --data"),
        (["-d", "x"], "--corpus: has no effect with --data"),
        (["--save_audio", "loudest"], "expected best, median, worst or an index that is there (0 to 5)"),
        (["--save_audio", "6"], "expected best, median, worst or an index that is there (0 to 5)"),
        (["-o", tmp_path / "file"], "cannot write there"),
        (["--recognizer", f"file:{tmp_path / 'heard.csv'}"], "index 99 is no row"),
        ([trained, "--recognizer", f"file:{tmp_path / 'heard.csv'}"], "of one system"),
    ):
        code, _, err = run(evaluate.main, *given, *more)
        assert code == 2 and words in err, (more, err)
    code, _, err = run(evaluate.main, *given, "--recognizer", "pocketsphinx")
    assert code == 0 and "no word error rate, --recognizer pocketsphinx has no effect" in err
    code, _, err = run(evaluate.main, trained, "--tuples", "x", "-d", "y", "--split", "test")
    assert code == 2 and "--split: has no effect with --tuples" in err


def test_a_mask_turned_round_is_scored_against_the_rest(
    run: Runner, trained: Path, store: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    tuples = tmp_path / "t.csv"
    tuples.write_text(
        "clean_utterance,embedding_utterance,interference_utterance\n100-7-0000,100-7-0001,101-7-0000\n"
    )
    given = [trained, "--tuples", tuples, "-d", corpus_folder, "--metrics", "si_sdr", "-p", 1]
    before = []
    for mask in ("org", "inv_sub", "inv_div"):
        code, _, err = run(evaluate.main, *given, "-o", tmp_path / mask, "--mask", mask)
        assert code == 0 and "WARNING" not in err
        (folder,) = (tmp_path / mask).glob("m-best-*")
        before.append(float(table(folder)[0]["si_sdr_before"]))
    assert before[0] == pytest.approx(-before[1], abs=0.5) and before[1] == before[2]
    # a list of recipes, too, is asked for what the checkpoint gives
    recipes = tmp_path / "r.jsonl"
    recipes.write_text((store / "test/recipes.jsonl").read_text())
    given = [trained, "--recipes", recipes, "-d", corpus_folder, "--metrics", "si_sdr", "-p", 1]
    found = {}
    for mask, name in (("org", "m-best-r"), ("inv_sub", "m-best-r-inv_sub-1")):
        code, _, err = run(evaluate.main, *given, "-o", tmp_path / "r", "--mask", mask)
        assert code == 0 and "WARNING" not in err
        folder = tmp_path / "r" / name
        found[mask] = [float(row["si_sdr_before"]) for row in table(folder)]
    assert np.allclose(found["org"], -np.array(found["inv_sub"]), atol=1.0)


def test_another_judge_costs_only_what_it_hears(
    run: Runner, trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pt"
    state = {name: 1.1 * value.flip(0) for name, value in resemblyzer_state().items()}
    torch.save({"step": 1, "model_state": state, "optimizer_state": {}}, other)
    given = [trained, "--data", store, "-o", tmp_path, "--metrics", "si_sdr,similarity", "-p", 1]
    assert run(evaluate.main, *given)[0] == 0
    before = table(tmp_path / "m-best-test")
    monkeypatch.setattr("model.row_scores.si_sdr", None)  # would be called again
    assert run(evaluate.main, *given, "-e", other)[0] == 0
    after = table(tmp_path / "m-best-test")
    assert [row["si_sdr_after"] for row in before] == [row["si_sdr_after"] for row in after]
    assert all(a["similarity_after"] != b["similarity_after"] for a, b in zip(before, after, strict=True))


def test_scores_of_another_run_of_that_name_are_not_lost(
    run: Runner, trained: Path, two: Path, store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere/chkpt/m/best.pt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(two.read_bytes())
    given = ["--data", store, "-o", tmp_path / "r", "--metrics", "si_sdr", "-p", 1]
    assert run(evaluate.main, trained, *given)[0] == 0
    scores = (tmp_path / "r/m-best-test/rows-0.jsonl").read_bytes()
    code, _, err = run(evaluate.main, copy, *given)
    assert code == 2 and f"holds scores of {trained}, not of {copy}" in err
    assert (tmp_path / "r/m-best-test/rows-0.jsonl").read_bytes() == scores
    copy.write_bytes(trained.read_bytes())  # moved, that is
    assert run(evaluate.main, copy, *given)[0] == 0
    assert (tmp_path / "r/m-best-test/rows-0.jsonl").read_bytes() == scores


def test_a_precision_asked_for_is_computed_and_what_made_scores_is_said(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    given = [trained, "--data", store, "-o", tmp_path, "--metrics", "si_sdr", "-p", 1]
    found = {}
    for precision in ("fp32", "bf16"):
        assert run(evaluate.main, *given, "--precision", precision)[0] == 0
        found[precision] = [row["si_sdr_after"] for row in table(tmp_path / "m-best-test")]
    assert found["fp32"] != found["bf16"]
    for name in ("m-best-test", "mixture-test"):
        rows = tmp_path / name / "rows-0.jsonl"
        head, *rest = rows.read_text().splitlines()
        content = json.loads(head)
        content["made_with"]["numpy"] = "0.1"
        rows.write_text("\n".join([json.dumps(content), *rest]) + "\n")
        _, out, _ = run(evaluate.main, *given, "--precision", "bf16")
        assert "Some scores are of earlier runs, which differed in numpy: 0.1 -> " in out
        rows.write_text("\n".join([head, *rest]) + "\n")
    assert "earlier runs" not in run(evaluate.main, *given, "--precision", "bf16")[1]


def test_pesq_is_left_out_where_its_package_writes_beyond_its_memory() -> None:
    pytest.importorskip("pesq")
    for seconds, there in ((3.0, True), (37.0, False)):
        target, other = speech(seconds)
        found = score_row(row_of(target, other, a=target + 0.1 * other))["a"]
        assert ("pesq_wb" in found) == there and "level" in found


def test_voices_are_not_judged_where_everything_else_is_asked_for(
    run: Runner, trained: Path, store: Path, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "reverse"
    assert generator.main(
        ["-d", str(corpus_folder), "-o", str(other), "-p", "1", "-e", str(embedder_file), *TINY[:8],
         "data.reverse=true"]
    ) == 0  # fmt: skip
    code, out, _ = run(
        evaluate.main, trained, "--data", other, "-o", tmp_path, "--mask", "inv_sub", "-p", 1,
        "--save_audio", "worst",
    )  # fmt: skip
    assert code == 0 and "SDR" in out
    scores = (tmp_path / "m-best-test-inv_sub-1/rows-0.jsonl").read_bytes()
    code, _, err = run(evaluate.main, trained, "--data", store, "-o", tmp_path, "--mask", "inv_sub", "-p", 1)
    assert code == 2 and "holds scores of other data" in err
    assert (tmp_path / "m-best-test-inv_sub-1/rows-0.jsonl").read_bytes() == scores
    assert "resembles" not in out and "Speaker verification" not in out and "sexes" not in out
    assert (tmp_path / "m-best-test-inv_sub-1/audio/worst/estimate.wav").exists()


# ---------------------------------------------------------------- figures


def test_a_page_shows_tables_and_text() -> None:
    found = as_html("a < b\n\n| x | y |\n|---|---|\n| 1 |  |")
    assert (
        found == "<p>a &lt; b</p>\n<table><tr><th>x</th><th>y</th></tr><tr><td>1</td><td></td></tr></table>"
    )


def test_the_page_opens_in_a_browser(run: Runner, trained: Path, store: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here")
    page = tmp_path / "report.html"
    given = [trained, "--data", store, "-o", tmp_path, "--metrics", "sdr", "-p", 1, "--html", page]
    assert run(evaluate.main, *given)[0] == 0
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.count("<audio") == 24 and done.stdout.count("<img") == 7
    assert "CONSOLE" not in done.stderr


def test_every_seed_s_results_have_a_folder_of_their_own() -> None:
    assert result_name("chkpt/A/best.pt", "test") == "A-best-test"
    assert result_name("chkpt/A/seed-1/best.pt", "test", "inv_sub") == "A-seed-1-best-test-inv_sub-1"


def six_people() -> tuple[Examples, list[str], np.ndarray]:
    """18 mixtures of six people and six examples without the asked voice; who is asked for, and which are
    the mixtures."""
    people = [f"p{row % 6}" for row in range(24)]
    roles = ["absent" if row % 4 == 3 else "mixture" for row in range(24)]
    recipes = [
        SimpleNamespace(
            index=row, role=role, kind=role, reverse=False, seconds=3.0, target=None,
            reference=SimpleNamespace(utterance=f"{person}-r"),
            interference=[
                SimpleNamespace(kind="speech", clips=[SimpleNamespace(utterance=f"p{(row + 1) % 6}-r")])
            ],
        )
        for row, (person, role) in enumerate(zip(people, roles, strict=True))
    ]  # fmt: skip
    utterances = {
        f"p{n}-r": SimpleNamespace(speaker=f"p{n}", sex="FM"[n % 2], text=None, frames=1) for n in range(6)
    }
    split: Any = SimpleNamespace(recipes=recipes)
    known: Any = utterances
    data = Examples("list", "test", split, known, 16000, "crop", Path())
    return data, people, np.flatnonzero(np.array(roles) == "mixture")


def test_the_figures_of_a_system_are_numpy_s() -> None:
    data, people, mixtures = six_people()
    random = np.random.default_rng(0)
    before, first, second = (System(name, Path(), name, "d") for name in ("mixture", "a", "b"))
    for row in range(24):
        there = data.recipes[row].role == "mixture"
        for number, system in enumerate((before, first, second)):
            system.rows[row] = {
                "level": -20.0 - 10 * number,
                "similarity": random.uniform(0.6, 0.9) - 0.5 * (not there),
            }
            if there:
                system.rows[row] |= {
                    "si_sdr": random.normal(3 * number, 2),
                    "similarity_other": random.uniform(0.5, 0.8),
                }
                system.rows[row] |= {"impostors": [0.1] * 10 if number else [0.95] * 10}
    wanted = Wanted(("si_sdr", "similarity", "similarity_other", "level"))
    found = summarize_rows(data, before, first, wanted)
    own, changed = (np.array([s.rows[row]["si_sdr"] for row in mixtures]) for s in (before, first))
    who = [people[row] for row in mixtures]
    assert (found["n"], found["speakers"], found["absent_n"]) == (18, 6, 6)
    assert found["si_sdr_improvement_mean"] == pytest.approx((changed - own).mean())
    assert found["si_sdr_after_median"] == pytest.approx(np.median(changed))
    assert found["si_sdr_before_std"] == pytest.approx(own.std(ddof=1))
    limits = found["si_sdr_improvement_low"], found["si_sdr_improvement_high"]
    assert limits == bootstrap_interval(changed - own, who)
    assert found["accepted_share"] == pytest.approx((changed - own > 1).mean())
    assert found["worse_share"] == pytest.approx((changed < own).mean())
    for person, figures in found["by_person"].items():
        gains = (changed - own)[[name == person for name in who]]
        assert figures["n"] == len(gains) and figures["mean"] == pytest.approx(gains.mean())
    pairs = ["".join("FM"[int(name[1]) % 2]) + "-" + "MF"[int(name[1]) % 2] for name in who]
    assert {pair: figures["n"] for pair, figures in found["by_sex"].items()} == {
        pair: pairs.count(pair) for pair in set(pairs)
    }
    wrong = [
        s.rows[row]["similarity_other"] > s.rows[row]["similarity"]
        for s in (before, first)
        for row in mixtures
    ]
    assert found["wrong_voice_share_before"] == pytest.approx(np.mean(wrong[:18]))
    assert found["wrong_voice_share_after"] == pytest.approx(np.mean(wrong[18:]))
    assert (found["verification_eer_before"], found["verification_eer_after"]) == (1, 0)
    assert found["verification_trials"] == 18 * 11
    assert found["claimed_eer_after"] == 0, "who is absent is less like the estimate"
    assert (found["absent_level_mean"], found["absent_silenced_share"]) == (-10, 0)

    rows = {row["metric"]: row for row in compare(data, before, first, second, wanted)}
    later = np.array([second.rows[row]["si_sdr"] for row in mixtures])
    row = rows["si_sdr"]
    assert row["mean"] == pytest.approx((later - changed).mean()) and row["mean"] > 1
    assert (row["low"], row["high"]) == bootstrap_interval(later - changed, who)
    assert row["p"] == sign_flip_p(later - changed, who) and row["p"] < 0.05
    assert row["better_share"] == pytest.approx((later > changed).mean())
    shares = [100 * (scores - own > 1).mean() for scores in (changed, later)]
    assert rows["accepted_share"]["mean"] == pytest.approx(shares[1] - shares[0])
    # the less like the other voice the better
    assert rows["similarity_other"]["better_share"] == pytest.approx(
        np.mean([second.rows[r]["similarity_other"] < first.rows[r]["similarity_other"] for r in mixtures])
    )
