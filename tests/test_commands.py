"""The scripts as users run them: generator, trainer, evaluate, inference; and what they say to bad input."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import convert
import evaluate
import generator
import inference
import model.shipped
import trainer
from datasets.corpus import split_speakers
from model.embedder import Embedder
from model.separator import Separator
from scripts import demo
from tests.conftest import TINY, die, tone_voice, train_arguments, write_librispeech
from utils.audio import write_audio
from utils.checkpoint import load_checkpoint
from utils.files import sha256_of

Runner = Callable[..., tuple[int, str, str]]
Interrupt = Callable[[Callable[[], int]], int]
ROOT = Path(__file__).parents[1]
WANTED: dict[str, tuple[float, None]] = {"validation": (0.25, None), "test": (0.25, None)}


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    write_audio(tmp_path / "mixed.wav", tone_voice(0, 2.0, 5) + tone_voice(3, 2.0, 5), 16000)
    write_audio(tmp_path / "reference.wav", tone_voice(0, 2.0, 6), 16000)
    return tmp_path


# ---------------------------------------------------------------- the way through


def test_generator_again_renders_nothing_and_verifies(
    run: Runner, store: Path, corpus_folder: Path, embedder_file: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*.np*")}
    code, out, _ = run(generator.main, "-d", corpus_folder, "-o", store, "-p", 2, "-e", embedder_file, *TINY)
    assert code == 0 and "train 24, validation 6, test 6" in out
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*.np*")}
    assert sum("embeddings-" in p.name for p in before) == 1
    assert run(generator.main, "--verify", store)[0] == 0


def test_trainer_writes_checkpoints_logs_and_says_when_it_is_done(
    run: Runner, trained: Path, store: Path, embedder_file: Path
) -> None:
    base = trained.parents[2]
    records = [json.loads(line) for line in (base / "logs/m/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["group"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["n"] for r in records if r["group"] == "validation"] == [6, 6]
    assert list((base / "logs/m").glob("events.*"))
    best = load_checkpoint(trained)
    assert best["validation"]["sdr_after_mean"] == max(r["sdr_after_mean"] for r in records if "n" in r)
    before = trained.stat().st_mtime_ns
    code, out, _ = run(trainer.main, *train_arguments(base, store, embedder_file))
    assert code == 0 and "finished at step 6" in out
    assert trained.stat().st_mtime_ns == before


def weights(base: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(base / "chkpt/m/last.pt")
    optimizer = content["training"]["optimizer"]["state"]
    moments = {f"{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
    return {**content["network"], **moments}


def test_stop_and_resume_equals_a_straight_run(
    trained: Path, store: Path, embedder_file: Path, tmp_path: Path, interrupt: Interrupt
) -> None:
    assert interrupt(lambda: trainer.main(train_arguments(tmp_path, store, embedder_file))) == 0
    straight, resumed = weights(trained.parents[2]), weights(tmp_path)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "logs/m/metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(steps) == [1, 2, 3, 3, 4, 5, 6, 6]


def test_a_changed_configuration_is_shown_and_refused(
    run: Runner, trained: Path, store: Path, embedder_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.parents[2] / "chkpt", tmp_path / "chkpt")
    arguments = train_arguments(tmp_path, store, embedder_file, "train.steps=7")
    code, _, err = run(trainer.main, *arguments)
    assert code == 2 and "train.steps: 6 -> 7" in err
    assert run(trainer.main, *arguments, "--allow_changes")[0] == 0
    assert load_checkpoint(tmp_path / "chkpt/m/last.pt")["step"] == 7


def test_training_starts_from_another_run_s_weights(
    run: Runner, trained: Path, store: Path, embedder_file: Path, tmp_path: Path
) -> None:
    arguments = train_arguments(tmp_path, store, embedder_file, "train.steps=1", "train.learning_rate=1e-12")
    assert run(trainer.main, *arguments, "--checkpoint_path", trained)[0] == 0
    ours, theirs = (load_checkpoint(p)["network"] for p in (tmp_path / "chkpt/m/last.pt", trained))
    torch.testing.assert_close(ours["out.weight"], theirs["out.weight"])
    other = train_arguments(tmp_path / "x", store, embedder_file, "network.lstm_dim=8")
    code, _, err = run(trainer.main, *other, "--checkpoint_path", trained)
    assert code == 2 and "its network" in err
    code, _, err = run(trainer.main, *other, "--checkpoint_path", "compact")
    assert code == 2 and "weights/compact.safetensors: its network" in err
    more = train_arguments(
        tmp_path / "more", store, embedder_file, "train.steps=1", "network.residual_layers=1"
    )
    code, out, _ = run(trainer.main, *more, "--checkpoint_path", trained)
    assert code == 0 and "network.residual_layers: 0 -> 1" in out
    grown = load_checkpoint(tmp_path / "more/chkpt/m/last.pt")["network"]
    torch.testing.assert_close(grown["out.weight"], theirs["out.weight"], atol=0.01, rtol=0)
    assert any(name.startswith("residuals.0.lstm") for name in grown)
    width = load_checkpoint(trained)["config"]["network"]["lstm_dim"]
    wider = train_arguments(
        tmp_path / "wider", store, embedder_file, "train.learning_rate=1e-12", f"network.lstm_dim={2 * width}"
    )
    code, out, _ = run(trainer.main, *wider, "--checkpoint_path", trained)
    assert code == 0 and f"network.lstm_dim: {width} -> {2 * width}" in out
    wide = load_checkpoint(tmp_path / "wider/chkpt/m/last.pt")["network"]
    torch.testing.assert_close(
        wide["out.weight"].unflatten(1, (2, 2, -1)).sum(2).flatten(1), theirs["out.weight"], atol=1e-4, rtol=0
    )
    other = train_arguments(tmp_path / "y", store, embedder_file, "train.steps=1", "network.exponent=0.5")
    code, out, _ = run(trainer.main, *other, "--checkpoint_path", trained)
    assert code == 0 and "its weights were learnt with other settings" in out
    assert "network.exponent: 0.3 -> 0.5" in out


def test_an_embedder_without_gradients_is_refused_at_the_start(
    run: Runner, store: Path, embedder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "differentiable", False)
    arguments = train_arguments(tmp_path, store, embedder_file, "train.embedder=joint")
    code, _, err = run(trainer.main, *arguments)
    assert code == 2 and "gives no gradients, which train.embedder joint needs" in err
    assert run(trainer.main, *train_arguments(tmp_path, store, embedder_file, "train.steps=1"))[0] == 0


def test_evaluate_scores_the_whole_set_and_reuses_its_tables(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    arguments = (trained, "--data", store, "-o", tmp_path, "--save_audio", "best", "--save_audio", 3)
    code, out, _ = run(evaluate.main, *arguments)
    assert code == 0 and "6 mixtures of 2 speakers never heard in training" in out
    folder = tmp_path / "m-best-test"
    summary = json.loads((folder / "summary.json").read_text())
    rows = list(csv.DictReader((folder / "per_utterance.csv").open()))
    assert summary["n"] == len(rows) == 6
    for metric in ("sdr", "si_sdr"):
        gains = [float(r[f"{metric}_after"]) - float(r[f"{metric}_before"]) for r in rows]
        assert summary[f"{metric}_improvement_mean"] == pytest.approx(np.mean(gains), abs=1e-3)
        assert summary[f"{metric}_improvement_median"] == pytest.approx(np.median(gains), abs=1e-3)
        assert f"{metric}_improvement_low" not in summary  # two people say nothing of others
    assert len(list((folder / "audio").rglob("*.wav"))) == 8
    kept = [folder / "rows-0.jsonl", tmp_path / "mixture-test/rows-0.jsonl"]
    before = [path.stat().st_mtime_ns for path in kept]
    assert run(evaluate.main, *arguments)[0] == 0
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_evaluate_scores_what_the_mask_leaves(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    assert run(evaluate.main, trained, "--data", store, "-o", tmp_path)[0] == 0
    code, out, _ = run(evaluate.main, trained, "--data", store, "-o", tmp_path, "--mask", "inv_sub")
    assert code == 0 and "mask inv_sub with factor 1" in out
    voice, rest = (
        list(csv.DictReader((tmp_path / f"m-best-test{use}" / "per_utterance.csv").open()))
        for use in ("", "-inv_sub-1")
    )
    assert [row["si_sdr_before"] for row in voice] == [row["si_sdr_before"] for row in rest]
    assert [row["si_sdr_after"] for row in voice] != [row["si_sdr_after"] for row in rest]


def test_evaluate_and_inference_give_the_same_estimate(
    run: Runner, trained: Path, store: Path, tmp_path: Path
) -> None:
    run(evaluate.main, trained, "--data", store, "-o", tmp_path, "--save_audio", 0)
    audio = tmp_path / "m-best-test/audio/0"
    code, out, _ = run(
        inference.main, "--checkpoint_path", trained, "-m", audio / "mixture.wav",
        "-r", audio / "reference.wav", "--target", audio / "target.wav", "-o", tmp_path, "--plot",
        "--keep", "residual",
    )  # fmt: skip
    assert code == 0 and "SI-SDR" in out
    estimate, residual, mixture, expected = (
        soundfile.read(p, dtype="float32")[0]
        for p in (
            tmp_path / "estimate.wav", tmp_path / "residual.wav",
            audio / "mixture.wav", audio / "estimate.wav",
        )
    )  # fmt: skip
    np.testing.assert_allclose(estimate, expected, atol=1e-5)
    np.testing.assert_allclose(estimate + residual, mixture, atol=1e-6)
    assert (tmp_path / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands_of_the_earlier_repositories(
    run: Runner, trained: Path, embedder_file: Path, voices: Path
) -> None:
    (voices / "old.yaml").write_text(
        "audio: {n_fft: 256, hop_length: 128, win_length: 256}\n"
        "network: {kind: film_blstm, front_dim: 16, lstm_dim: 16, stack: 2}\n"
        "train: {precision: fp32}\n"
    )
    code, _, err = run(
        inference.main, "-c", voices / "old.yaml", "-e", embedder_file, "--checkpoint_path", trained,
        "-m", voices / "mixed.wav", "-r", voices / "reference.wav", "-o", voices / "a",
    )  # fmt: skip
    assert (code, err) == (0, "")
    code, _, _ = run(
        inference.main, "--checkpoint_path", trained, "--input", voices / "mixed.wav",
        "--reference_file", voices / "reference.wav", "-o", voices / "b",
    )  # fmt: skip
    assert code == 0
    first, second = (soundfile.read(voices / name / "estimate.wav")[0] for name in "ab")
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_any_rate_and_channels_come_back_as_they_went_in(run: Runner, trained: Path, voices: Path) -> None:
    stereo = np.stack([tone_voice(0, 1.51, 1, 44100), tone_voice(3, 1.51, 1, 44100)], axis=1)
    soundfile.write(voices / "stereo.flac", stereo, 44100)
    code, _, _ = run(
        inference.main, "--checkpoint_path", trained, "-m", voices / "stereo.flac",
        "-r", voices / "reference.wav", "-o", voices / "out", "--keep", "residual",
    )  # fmt: skip
    assert code == 0
    for name in ("estimate", "residual"):
        info = soundfile.info(voices / f"out/{name}.wav")
        assert (info.samplerate, info.channels, info.frames) == (44100, 2, len(stereo))


def test_the_shipped_weights_are_the_default_else_the_newest_best_checkpoint(
    run: Runner, trained: Path, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("-m", voices / "mixed.wav", "-r", voices / "reference.wav", "-o", voices / "out")
    shipped = voices / "weights/voicefilter.safetensors"
    assert run(convert.main, trained, "-o", shipped)[0] == 0
    monkeypatch.setattr(model.shipped, "SHIPPED", shipped.parent)
    monkeypatch.chdir(trained.parents[2])
    assert f"{shipped}: mixture" in run(inference.main, *arguments)[1]
    assert f"{shipped}: mixture" in run(inference.main, *arguments, "--checkpoint_path", "voicefilter")[1]
    assert Separator.load().config == Separator.load(shipped).config
    run_folder = trained.parents[1] / "voicefilter"
    for name, words in (("seed-3/best.pt", "such as voicefilter/seed-3"), ("last.pt", "has no best.pt yet")):
        (run_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run_folder / name).touch()
        code, _, err = run(inference.main, *arguments, "--checkpoint_path", "voicefilter")
        assert code == 2 and words in err
    shutil.rmtree(run_folder)
    monkeypatch.setattr(model.shipped, "SHIPPED", voices / "none")
    code, out, _ = run(inference.main, *arguments)
    assert code == 0 and "chkpt/m/best.pt" in out
    monkeypatch.chdir(voices)
    code, _, err = run(inference.main, *arguments)
    assert code == 2 and "no trained separator" in err


def test_the_full_size_network_goes_through_the_same_scripts(
    run: Runner, corpus_folder: Path, embedder_file: Path, voices: Path
) -> None:
    small = [
        "data.seconds=1.0", "data.train=4", "store.shard_size=10",
        "data.validation={examples: 2, speakers: 0.25}", "data.test={examples: 2, speakers: 0.25}",
        "train.batch_size=2", "train.steps=1",
    ]  # fmt: skip
    common = ["-c", ROOT / "config/voicefilter.yaml", "-e", embedder_file, *small]
    assert run(generator.main, *common, "-d", corpus_folder, "-o", voices / "store", "-p", 1)[0] == 0
    code, out, _ = run(trainer.main, *common, f"store.folder={voices / 'store'}", "-b", voices, "-m", "full")
    assert code == 0 and "18.88 M parameters" in out
    best = voices / "chkpt/full/best.pt"
    assert load_checkpoint(best)["validation"]["n"] == 2
    code, _, _ = run(
        inference.main, "--checkpoint_path", best, "-m", voices / "mixed.wav",
        "-r", voices / "reference.wav", "-o", voices / "out",
    )  # fmt: skip
    assert code == 0
    assert soundfile.info(voices / "out/estimate.wav").frames == 32000


# ---------------------------------------------------------------- bad input


def bad_inputs(voices: Path, trained: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments of inference.py, and words of the one sentence that must come."""
    soundfile.write(voices / "short.wav", tone_voice(0, 0.31, 0), 16000)
    soundfile.write(voices / "silent.wav", np.zeros(32000), 16000)
    write_audio(voices / "nan.wav", np.full(16000, np.nan), 16000)
    (voices / "text.wav").write_text("no audio")
    (voices / "cut.pt").write_bytes(trained.read_bytes()[:1000])
    torch.save({"a": Path}, voices / "evil.pt")
    torch.save({"weights": torch.ones(1)}, voices / "other.pt")
    good = {"-m": "mixed.wav", "-r": "reference.wav", "--checkpoint_path": str(trained), "-o": "out"}

    def case(**changes: str) -> list[str]:
        names = {"m": "-m", "r": "-r", "checkpoint": "--checkpoint_path", "o": "-o"}
        final = {**good, **{names[key]: value for key, value in changes.items()}}
        return [part for pair in final.items() for part in pair]

    return {
        "no mixture": (case(m="gone.wav"), "gone.wav: no such file"),
        "text": (
            case(m="text.wav"),
            "text.wav: not a readable audio file (Invalid data found when processing input)",
        ),
        "nan": (case(m="nan.wav"), "nan.wav: holds NaN or infinite samples, the first after 0.0 s"),
        "short reference": (case(r="short.wav"), "s of speech, at least 0.4 s is needed"),
        "silent reference": (case(r="silent.wav"), "silent.wav: is silent"),
        "no checkpoint": (case(checkpoint="gone.pt"), "gone.pt: no such checkpoint"),
        "cut checkpoint": (case(checkpoint="cut.pt"), "cut.pt: not a checkpoint that can be read safely"),
        "hostile checkpoint": (
            case(checkpoint="evil.pt"),
            "evil.pt: not a checkpoint that can be read safely",
        ),
        "other checkpoint": (case(checkpoint="other.pt"), "other.pt: no separator checkpoint"),
        "a file as folder": (case(o="cut.pt"), "cut.pt: cannot write there"),
        "target of another length": ([*case(), "--target", "short.wav"], "the mixture has 32000"),
        "unknown device": ([*case(), "--device", "tpu7"], "--device tpu7"),
        "stray override": ([*case(), "a.b=1"], "overrides go with -c"),
        "no arguments": ([], "name what is separated"),
    }


def test_bad_input_gets_one_sentence_and_leaves_nothing(
    run: Runner, voices: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(voices)
    for name, (arguments, words) in bad_inputs(voices, trained).items():
        code, _, err = run(inference.main, *arguments)
        assert code == 2, name
        assert err.startswith("ERROR: ") and words in err, (name, err)
        assert len(err.strip().splitlines()) == 1, (name, err)
        assert not (voices / "out").exists() or not list((voices / "out").iterdir()), name


def test_scripts_refuse_what_is_not_there(
    run: Runner, store: Path, trained: Path, embedder_file: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    cases: list[tuple[Any, list[object], str]] = [
        (generator.main, ["-o", tmp_path / "s"], "no corpus"),
        (
            generator.main,
            ["-d", tmp_path / "gone", "-o", tmp_path / "s", "-e", embedder_file],
            "no such corpus",
        ),
        (generator.main, ["-d", corpus_folder, "-o", tmp_path / "s", "-e", "gone.pt"], "gone.pt: no such"),
        (generator.main, ["-d", corpus_folder, "-p", "0"], "-p 0"),
        (generator.main, ["-c", "gone.yaml"], "gone.yaml: no such configuration"),
        (trainer.main, ["-m", "m", "-e", embedder_file, f"store.folder={tmp_path}"], "no store there"),
        (trainer.main, ["-m", "a/b", f"store.folder={store}"], "without folders"),
        (trainer.main, ["-m", "..", f"store.folder={store}"], "without folders"),
        (
            trainer.main,
            ["-m", "m", "-b", tmp_path, "-e", embedder_file, f"store.folder={store}"],
            "front end",
        ),
        (
            trainer.main,
            train_arguments(tmp_path, store, embedder_file, "train.batch_size=999"),
            "the store has only 24 examples",
        ),
        (evaluate.main, ["gone.pt", "--data", store], "gone.pt: no such checkpoint"),
        (evaluate.main, ["gone.pt", "--data", tmp_path], "no store there"),
        (
            evaluate.main,
            [trained, "--data", store, "-o", tmp_path, "--save_audio", "6"],
            "an index that is there (0 to 5)",
        ),
    ]
    for main, arguments, words in cases:
        code, _, err = run(main, *arguments)
        assert code == 2 and words in err, (arguments, err)


def limit_file_size() -> None:
    """Stands in for a full disk: a write beyond 20 kB fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_failing_write_leaves_nothing_under_a_final_name(voices: Path, trained: Path) -> None:
    arguments = [
        "inference.py", "--checkpoint_path", trained, "-m", voices / "mixed.wav",
        "-r", voices / "reference.wav", "-o", voices / "out",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR: ") and "the disk is full" in done.stderr
    assert not list((voices / "out").iterdir())


def test_a_full_disk_is_one_sentence(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arguments: object) -> int:
        raise OSError(28, "No space left on device", "out/estimate.wav")

    code, _, err = run(full)
    assert code == 2 and err.startswith("ERROR: out/estimate.wav: the disk is full")


def test_a_full_disk_stops_the_generator_and_it_goes_on_later(
    run: Runner, corpus_folder: Path, embedder_file: Path, store: Path, tmp_path: Path
) -> None:
    arguments = ["-d", corpus_folder, "-o", tmp_path / "s", "-p", "1", "-e", embedder_file, *TINY]
    done = subprocess.run(
        [sys.executable, "generator.py", *map(str, arguments)],
        cwd=ROOT, preexec_fn=limit_file_size, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr.strip().splitlines()[-1]
    assert not list((tmp_path / "s" / "train").glob("shard-*"))
    assert run(generator.main, *arguments)[0] == 0
    for path in store.rglob("shard-*/*.npy"):
        assert (tmp_path / "s" / path.relative_to(store)).read_bytes() == path.read_bytes()


def test_a_few_steps_on_real_speech_lower_the_loss(
    run: Runner, shared_librispeech: Path, embedder_file: Path, tmp_path: Path
) -> None:
    small = [
        "-c", ROOT / "config/compact.yaml", "-e", embedder_file, "data.train=160", "store.shard_size=80",
        "data.validation={examples: 10}", "data.test={examples: 10}", "train.batch_size=16", "train.steps=60",
        "train.validate_every=60", "train.log_every=1", "train.warmup_steps=5",
    ]  # fmt: skip
    code, out, _ = run(
        generator.main,
        *small,
        "-d",
        shared_librispeech / "train-clean-100",
        "-o",
        tmp_path / "s",
        "--no-embeddings",
    )
    assert code == 0 and "251 speakers (103, 1034, 1040 ...), 615 utterances" in out
    assert run(trainer.main, *small, "-b", tmp_path, "-m", "m", f"store.folder={tmp_path / 's'}")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "logs/m/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["group"] == "train"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.02


def test_lists_are_scored_without_a_store(
    run: Runner, trained: Path, store: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    assert run(evaluate.main, trained, "--data", store, "-o", tmp_path)[0] == 0
    listed = store / "test" / "recipes.jsonl"
    code, out, _ = run(evaluate.main, trained, "--recipes", listed, "-d", corpus_folder, "-o", tmp_path)
    assert code == 0 and "(recipes, list of recipes)" in out
    tables = [(tmp_path / f"m-best-{name}/per_utterance.csv").read_text() for name in ("test", "recipes")]
    assert tables[0] == tables[1]
    tuples = tmp_path / "t.csv"
    tuples.write_text(
        "clean_utterance,embedding_utterance,interference_utterance\n"
        "100-7-0000,100-7-0001,101-7-0000\n5-5-5,6-6-6,7-7-7\n102-7-0000,102-7-0001,101-7-0000\n"
    )
    code, out, _ = run(evaluate.main, trained, "--tuples", tuples, "-d", corpus_folder, "-o", tmp_path)
    assert code == 0 and "2 mixtures" in out and "whole utterances, 2 of 3 rows" in out
    assert "5-5-5" in (tmp_path / "missing-t.csv").read_text()
    code, _, err = run(evaluate.main, trained, "--tuples", tuples, "--data", store)
    assert code == 2 and "one of --data STORE, --tuples CSV and --recipes JSONL" in err
    code, _, err = run(evaluate.main, trained, "--tuples", tuples)
    assert code == 2 and "name its corpus with -d" in err


def test_absent_and_lone_voices_are_scored_apart(run: Runner, embedder_file: Path, tmp_path: Path) -> None:
    corpus_folder = write_librispeech(tmp_path / "corpus", speakers=10, utterances=2)
    kinds = "data.kinds={mixture: 1.0, target_alone: 1.0, target_absent: 1.0}"
    more = [kinds, "data.test={examples: 20, speakers: 0.2}"]
    arguments = ["-o", tmp_path / "s", "-p", "1", "-e", embedder_file, *TINY, *more]
    code, _, err = run(generator.main, "-d", corpus_folder, *arguments)
    assert code == 2 and "an example may hold 3" in err
    arguments[-1] = "data.test={examples: 20, speakers: 0.3}"
    assert (
        run(generator.main, "-d", corpus_folder, *arguments, "data.validation={examples: 20, speakers: 0.3}")[
            0
        ]
        == 0
    )
    run_arguments = train_arguments(tmp_path, tmp_path / "s", embedder_file, "train.steps=2")
    code, _, err = run(trainer.main, *run_arguments)
    assert code == 0, err
    checkpoint = tmp_path / "chkpt/m/last.pt"
    code, out, _ = run(evaluate.main, checkpoint, "--data", tmp_path / "s", "-o", tmp_path)
    summary = json.loads((tmp_path / "m-last-test/summary.json").read_text())
    assert summary["n"] + summary["alone_n"] + summary["absent_n"] == 20
    assert min(summary["n"], summary["alone_n"], summary["absent_n"]) > 0 == summary["silent"]
    assert "hold the asked voice alone" in out and "the asked voice is absent" in out


@pytest.mark.parametrize(
    "options", [["data.mode=live"], ["store.kind=wave", "store.dtype=int16", "train.remix=0.8"]]
)
def test_live_and_wave_training_resume_too(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path, options: list[str]
) -> None:
    store = tmp_path / "s"
    made = ["-d", corpus_folder, "-o", store, "-p", "1", "-e", embedder_file, *TINY, *options]
    assert run(generator.main, *made)[0] == 0
    cache = next(store.glob("embeddings-*.npz")).stat().st_mtime_ns
    assert run(trainer.main, *train_arguments(tmp_path / "a", store, embedder_file, *options))[0] == 0
    straight = weights(tmp_path / "a")
    short = train_arguments(tmp_path / "b", store, embedder_file, *options)
    assert run(trainer.main, *short, "train.steps=3")[0] == 0
    assert run(trainer.main, *short, "--allow_changes")[0] == 0
    resumed = weights(tmp_path / "b")
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert next(store.glob("embeddings-*.npz")).stat().st_mtime_ns == cache, "nothing was embedded again"


def test_a_store_of_waveforms_serves_every_front_end(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    for kind, store in (("wave", tmp_path / "w"), ("stft", tmp_path / "s")):
        made = ["-d", corpus_folder, "-o", store, "-p", "1", "-e", embedder_file, *TINY, f"store.kind={kind}"]
        assert run(generator.main, *made)[0] == 0
        other = ["audio.hop_length=64", "train.steps=1"]
        arguments = train_arguments(tmp_path / kind, store, embedder_file, *other)
        code, _, err = run(trainer.main, *arguments)
        if kind == "wave":
            assert code == 0, err
        else:
            assert code == 2 and "another front end: hop_length: " in err and "-> 64" in err
    content = load_checkpoint(next((tmp_path / "wave").rglob("last.pt")))
    assert content["config"]["audio"]["hop_length"] == 64


def test_speakers_heard_in_training_are_counted(
    run: Runner, trained: Path, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    arguments = ["-d", corpus_folder, "-o", tmp_path / "s", "-p", "1", "-e", embedder_file, *TINY]
    heard = set(load_checkpoint(trained)["training_speakers"])
    seed = next(
        seed
        for seed in range(1, 50)
        if heard & set(split_speakers([str(100 + i) for i in range(8)], seed, WANTED)["test"])
    )
    assert run(generator.main, *arguments, f"data.seed={seed}")[0] == 0
    code, out, _ = run(evaluate.main, trained, "--data", tmp_path / "s", "-o", tmp_path)
    assert code == 0 and "HEARD IN TRAINING" in out and "never heard" not in out
    shutil.copyfile(trained, tmp_path / "other.pt")
    two = [trained, tmp_path / "other.pt", "--data", tmp_path / "s", "-o", tmp_path, "--metrics", "si_sdr"]
    code, out, _ = run(evaluate.main, *two)
    assert code == 0 and "(HAS HEARD " in out


def test_a_store_drawn_by_other_code_is_refused(
    run: Runner, store: Path, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    arguments = ["-d", corpus_folder, "-o", tmp_path / "s", "-e", embedder_file, *TINY]
    recipes, index = tmp_path / "s/test/recipes.jsonl", tmp_path / "s/test/index.json"
    drawn = recipes.read_text()
    recipes.write_text("damaged")
    assert run(generator.main, *arguments)[0] == 0 and recipes.read_text() == drawn
    other = drawn.replace('"index":0', '"index":7')
    recipes.write_text(other)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"recipes": sha256_of(recipes)}))
    recipes.write_text("damaged")
    code, _, err = run(generator.main, *arguments)
    assert code == 2 and "drawn by another version" in err and recipes.read_text() == "damaged"


def test_the_store_s_data_settings_hold_and_another_front_end_is_refused(
    run: Runner, trained: Path, store: Path, embedder_file: Path, voices: Path
) -> None:
    code, out, _ = run(
        trainer.main, *train_arguments(voices, store, embedder_file, "data.snr_db=[0, 5]", "train.steps=1")
    )
    assert code == 0 and "snr_db: [0.0, 5.0] -> None" in out
    assert load_checkpoint(voices / "chkpt/m/last.pt")["config"]["data"]["snr_db"] is None
    code, _, err = run(
        inference.main, "-c", ROOT / "config/compact.yaml", "--checkpoint_path", trained,
        "-m", voices / "mixed.wav", "-r", voices / "reference.wav", "-o", voices / "out",
    )  # fmt: skip
    assert code == 2 and "audio.hop_length: 128 -> 400" in err


def test_a_result_never_overwrites_its_input(run: Runner, trained: Path, voices: Path) -> None:
    shutil.copy(voices / "mixed.wav", voices / "estimate.wav")
    before = (voices / "estimate.wav").read_bytes()
    code, _, err = run(
        inference.main, "--checkpoint_path", trained, "-m", voices / "estimate.wav",
        "-r", voices / "reference.wav", "-o", voices,
    )  # fmt: skip
    assert code == 2 and "would be overwritten" in err
    assert (voices / "estimate.wav").read_bytes() == before


def test_a_killed_rendering_process_is_named(
    run: Runner, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.shards._write_in_worker", die)
    code, _, err = run(
        generator.main, "-d", corpus_folder, "-o", tmp_path / "s", "-p", 2, "--no-embeddings", *TINY
    )
    assert code == 2 and "was killed" in err


def test_a_damaged_cache_of_embeddings_is_made_again(
    run: Runner, store: Path, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    path = next((tmp_path / "s").glob("embeddings-*.npz"))
    path.write_bytes(b"junk")
    arguments = ["-d", corpus_folder, "-o", tmp_path / "s", "-e", embedder_file, *TINY]
    assert run(generator.main, *arguments)[0] == 0
    original = next(store.glob("embeddings-*.npz"))
    with np.load(path) as again, np.load(original) as before:
        np.testing.assert_allclose(again["vectors"], before["vectors"], atol=1e-6)


def test_the_generator_looks_at_what_cannot_work_first(
    run: Runner, corpus_folder: Path, tmp_path: Path
) -> None:
    arguments = ["-d", corpus_folder, "-o", tmp_path / "store"]
    noisy = ["data.interference={speech: 0.5, noise: 0.5}", "--noise", tmp_path / "absent"]
    for more, words in (([*noisy], "no such folder of noise"), (["network.input=db"], "network.input db")):
        code, out, err = run(generator.main, *arguments, *more)
        assert code == 2 and words in err and "files" not in out
    assert not (tmp_path / "store").exists()


def test_the_demo_ends_with_the_files_that_it_names(
    corpus_folder: Path,
    embedder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mains = {
        "generator.py": generator.main,
        "trainer.py": trainer.main,
        "evaluate.py": evaluate.main,
        "inference.py": inference.main,
    }

    def in_process(script: str, *arguments: str) -> None:
        assert not mains[script](arguments)

    monkeypatch.setattr(demo, "command", in_process)
    monkeypatch.setattr(demo, "CONFIG", str(ROOT / "config/compact.yaml"))
    monkeypatch.chdir(tmp_path)
    given = ["--corpus", str(corpus_folder), *TINY, f"embedder={embedder_file}"]
    assert demo.main(given) == 0
    out = capsys.readouterr().out
    last = out.split("To listen and to look:")[1].splitlines()
    named = [Path(line.strip()) for line in last if line.startswith(" ")]
    assert len(named) == 9 and all(path.is_file() for path in named)
    assert "Beside the weights that come with this project" in out and "voicefilter.safetensors" in out
