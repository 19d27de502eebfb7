"""Training embedders by the trainer's command line, and separators together with their embedder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

import evaluate
import generator
import trainer
from config.load import load_any_config
from datasets.corpus import heard_speakers
from datasets.mixture import read_clip
from datasets.store import Store
from model.embedder_task import EmbedderTask
from model.features import reference_embeddings
from model.foreign import load_embedder
from model.separator_task import SeparatorTask
from tests.conftest import RATE, TINY, tone_voice, write_librispeech
from utils.checkpoint import load_checkpoint

Runner = Callable[..., tuple[int, str, str]]
Interrupt = Callable[[Callable[[], int]], int]
ROOT = Path(__file__).parents[1]
SMALL = [
    "task=embedder", "network={kind: dvector, hidden: 12, dim: 8, layers: 2, window: 60, window_hop: 30}",
    "train.speakers=4", "train.utterances=3", "train.frames=[50, 70]", "train.steps=6",
    "train.validate_every=3", "train.save_every=2", "train.log_every=1", "train.precision=fp32",
    "train.learning_rate=0.01", "data.validation={speakers: 0.25}", "data.test={speakers: 0.25}",
]  # fmt: skip


def arguments(base: Path, corpus: Path, *more: str) -> list[str]:
    return ["-m", "e", "-b", str(base), "-d", str(corpus), *SMALL, *more]


@pytest.fixture(scope="module")
def trained(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("embedder-run")
    assert trainer.main(arguments(base, corpus_folder)) == 0
    return base


def weights(base: Path) -> dict[str, torch.Tensor]:
    """The embedder's, the criterion's, and the optimiser's moments."""
    content = load_checkpoint(base / "chkpt/e/last.pt")
    training = content["training"]
    moments = {f"{i}.{k}": v for i, s in training["optimizer"]["state"].items() for k, v in s.items()}
    return {**content["embedder"]["state"], **training["state"], **moments}


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and {"scale", "offset"} <= first.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_leaves_checkpoints_figures_and_the_det_picture(trained: Path, corpus_folder: Path) -> None:
    records = [json.loads(line) for line in (trained / "logs/e/metrics.jsonl").read_text().splitlines()]
    scored = [r for r in records if r["group"] == "validation"]
    assert [r["step"] for r in scored] == [3, 6]
    for record in scored:  # two speakers of three utterances each
        assert (record["targets"], record["impostors"], record["speakers"]) == (6, 9, 2)
        assert 0 <= record["eer"] <= 1 and 0 <= record["min_dcf"] <= 1 and record["scale"] > 0
    assert (trained / "logs/e/det.png").stat().st_size > 5000
    best = load_embedder(str(trained / "chkpt/e/best.pt"))
    assert len(best.training_speakers) == 4
    last = weights(trained)
    assert last["scale"] != 10.0 and abs(float(last["scale"]) - 10) < 6 * 0.01 * 0.01 * 1.1


def test_stopped_and_killed_runs_resume_bit_exactly(
    trained: Path, corpus_folder: Path, tmp_path: Path, interrupt: Interrupt
) -> None:
    assert interrupt(lambda: trainer.main(arguments(tmp_path, corpus_folder))) == 0
    assert_equal_weights(trained, tmp_path)


def test_a_changed_corpus_or_configuration_is_refused(
    run: Runner, trained: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run(trainer.main, *arguments(trained, corpus_folder, "loss.kind=ge2e_contrast"))
    assert code == 2 and "loss.kind: ge2e_softmax -> ge2e_contrast" in err
    other = write_librispeech(tmp_path, speakers=8, utterances=2)
    code, _, err = run(trainer.main, *arguments(trained, other))
    assert code == 2 and "other examples" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-e", "resemblyzer"], "trains an embedder of its own"),
        (["train.speakers=9"], "9"),
        (["data.validation={trials: /nowhere.txt}"], "/nowhere.txt"),
        (["data.background.noise=0.5"], "data.noise names no folder"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    run: Runner, corpus_folder: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    code, _, err = run(trainer.main, *arguments(tmp_path, corpus_folder, *more))
    assert code == 2 and words in err.splitlines()[-1] and err.splitlines()[-1].startswith("ERROR: ")
    assert not (tmp_path / "chkpt").exists()


def test_a_corpus_is_needed_and_is_not_for_separators(run: Runner, corpus_folder: Path) -> None:
    code, _, err = run(trainer.main, "-m", "e", *SMALL)
    assert code == 2 and "name it with -d" in err
    code, _, err = run(trainer.main, "-m", "e", "-d", corpus_folder, *TINY)
    assert code == 2 and "learns from a store" in err


@pytest.mark.parametrize(
    "more",
    [
        ["loss.kind=ge2e_contrast", "train.optimizer=sgd", "loss.reduction=sum"],
        ["network={kind: dvector, hidden: 12, projection: 6, dim: 8, layers: 1, window: 60, window_hop: 30}"],
        ["network={kind: vggm, n_fft: 512, dim: 8}", "loss.kind=cross_entropy", "train.frames=[100, 100]",
         "train.utterances=1", "train.steps=2"],
        ["data.background={noise: 1.0, snr_db: 5.0}", "data.speeds=[0.9, 1.0]",
         "data.reverberation={share: 0.5}"],
    ],
)  # fmt: skip
def test_variants_train(run: Runner, corpus_folder: Path, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "noise").mkdir()
    for number in range(3):
        noise = tone_voice(9, 2.0, number)
        soundfile.write(tmp_path / "noise" / f"{number}.wav", noise, RATE)
    code, out, err = run(
        trainer.main, *arguments(tmp_path, corpus_folder, f"data.noise=[{tmp_path / 'noise'}]", *more)
    )
    assert code == 0, err
    assert "best validation EER" in out
    code, out, _ = run(
        trainer.main, *arguments(tmp_path, corpus_folder, f"data.noise=[{tmp_path / 'noise'}]", *more)
    )
    assert code == 0 and "finished" in out


def test_a_list_of_trials_is_scored_beside_all_pairs(
    run: Runner, corpus_folder: Path, tmp_path: Path
) -> None:
    voices = write_librispeech(tmp_path / "other", speakers=2, utterances=2).rename(tmp_path / "judges")
    for path in sorted(voices.rglob("*.flac")):  # other names than those of the training
        path.rename(path.with_name("9" + path.name))
    for path in sorted((voices / "dev-clean").iterdir()):
        path.rename(path.with_name("9" + path.name))
    files = [str(p.relative_to(voices)) for p in sorted(voices.rglob("*.flac"))]
    for path in voices.rglob("*.flac"):  # and another content
        samples, rate = soundfile.read(path)
        soundfile.write(path, 0.9 * samples, rate)
    (tmp_path / "list.txt").write_text(
        f"1 {files[0]} {files[1]}\n0 {files[0]} {files[2]}\n1 {files[2]} {files[3]}\n"
    )
    validation = f"data.validation={{corpus: [{voices}], trials: {tmp_path / 'list.txt'}}}"
    code, _, err = run(trainer.main, *arguments(tmp_path, corpus_folder, validation, "train.steps=2"))
    assert code == 0, err
    record = json.loads((tmp_path / "logs/e/metrics.jsonl").read_text().splitlines()[-1])
    assert (record["trials_targets"], record["trials_impostors"], record["targets"]) == (2, 1, 2)


def test_two_ranks_learn_what_one_process_does(corpus_folder: Path, tmp_path: Path) -> None:
    short = arguments(tmp_path, corpus_folder, "train.steps=3", "train.validate_every=2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(ROOT / "trainer.py"), *short, "--device", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("best validation EER") == 1
    assert trainer.main(arguments(tmp_path / "one", corpus_folder, *short[-2:])) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4)


def test_a_few_steps_tell_voices_apart(corpus_folder: Path) -> None:
    overrides = [*SMALL, f"data.corpus=[{corpus_folder}]", "train.steps=60"]
    config = load_any_config(None, overrides)
    torch.manual_seed(0)
    task = EmbedderTask(config, torch.device("cpu"))  # type: ignore[arg-type]
    optimizer = torch.optim.Adam([p for group in task.groups for p in group["params"]], 0.01)
    batches = task.batches(0, pin=False)
    losses = []
    for _ in range(40):
        values = task.objective(next(batches))
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(values["loss"].item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ---------------------------------------------------------------- joint


@pytest.fixture(scope="module")
def store(corpus_folder: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "store"
    embedder = str(trained / "chkpt/e/best.pt")
    generator.main(["-d", str(corpus_folder), "-o", str(folder), "-p", "1", "-e", embedder, *TINY])
    return folder


def joint(base: Path, store: Path, embedder: Path, *more: str) -> list[str]:
    options = ["-m", "j", "-b", str(base), "-e", str(embedder), *TINY, f"store.folder={store}"]
    return [*options, "train.embedder=joint", *more]


def test_in_the_step_embeddings_are_the_cached_ones(store: Path, trained: Path) -> None:
    embedder = trained / "chkpt/e/best.pt"
    config = load_any_config(
        None, [*TINY, f"store.folder={store}", f"embedder={embedder}", "train.embedder=joint"]
    )
    task = SeparatorTask(config, torch.device("cpu"))  # type: ignore[arg-type]
    batch = next(task.batches(0, pin=False))
    learnt = task.objective._embedding(batch)
    split = Store(str(store)).split("train")
    clips = [recipe.reference for recipe in split.recipes]
    cached = reference_embeddings(store, task.store.utterances, clips, load_embedder(str(embedder)))
    waves = [read_clip(clip, task.store.utterances[clip.utterance], RATE) for clip in clips]
    for row, (wave, samples) in enumerate(zip(batch["reference"], batch["reference_samples"], strict=True)):
        same = [n for n, w in enumerate(waves) if len(w) == samples and (w == wave[:samples].numpy()).all()]
        torch.testing.assert_close(learnt[row].detach(), torch.from_numpy(cached[same[0]]), atol=1e-5, rtol=0)
    task.objective(batch)["loss"].backward()
    for parameter in task.separator.embedder.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_joint_training_moves_keeps_and_resumes_the_embedder(
    run: Runner, store: Path, trained: Path, tmp_path: Path
) -> None:
    embedder = trained / "chkpt/e/best.pt"
    assert run(trainer.main, *joint(tmp_path, store, embedder))[0] == 0
    first = load_checkpoint(tmp_path / "chkpt/j/last.pt")
    before = load_embedder(str(embedder)).state_dict()
    assert all(not torch.equal(before[key], value) for key, value in first["embedder"]["state"].items())
    assert run(trainer.main, *joint(tmp_path / "b", store, embedder, "train.steps=4"))[0] == 0
    again = joint(tmp_path / "b", store, embedder, "--allow_changes")
    assert run(trainer.main, *again)[0] == 0
    second = load_checkpoint(tmp_path / "b/chkpt/j/last.pt")
    for part in (first["embedder"]["state"], first["network"]):
        other = second["embedder"]["state"] if part is first["embedder"]["state"] else second["network"]
        assert all(torch.equal(part[key], other[key]) for key in part)
    # heard by the embedder is heard by the separator
    best = str(tmp_path / "chkpt/j/best.pt")
    code, out, _ = run(evaluate.main, best, "--data", store, "-o", tmp_path / "results")
    assert code == 0 and "never heard in training" in out


def test_joint_training_works_live(
    run: Runner, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    live = [*TINY, "data.mode=live", "train.steps=2", "train.embedder=joint"]
    common = ["-e", str(embedder_file), *live]
    assert run(generator.main, "-d", corpus_folder, "-o", tmp_path / "s", "-p", 1, *common)[0] == 0
    code, _, err = run(trainer.main, "-m", "j", "-b", tmp_path, *common, f"store.folder={tmp_path / 's'}")
    assert code == 0, err


# ---------------------------------------------------------------- who was heard, and signals


def test_a_joint_embedder_says_whom_the_separator_heard(
    run: Runner, store: Path, trained: Path, embedder_file: Path, tmp_path: Path
) -> None:
    both = set(Store(str(store)).report["splits"]["train"]["speakers"])
    for name, own in (("own", trained / "chkpt/e/best.pt"), ("foreign", embedder_file)):
        assert run(trainer.main, *joint(tmp_path / name, store, own, "train.steps=1"))[0] == 0
        embedder = load_embedder(str(tmp_path / name / "chkpt/j/last.pt"))
        assert both <= set(embedder.training_speakers)
        assert embedder.heard_others == (name == "foreign")


def test_starting_weights_that_heard_the_validation_speakers_are_named(
    run: Runner, corpus_folder: Path, trained: Path, tmp_path: Path
) -> None:
    other = arguments(tmp_path, corpus_folder, "data.seed=1", "train.steps=1")
    code, out, _ = run(trainer.main, *other, "--checkpoint_path", trained / "chkpt/e/best.pt")
    config = load_any_config(None, [*SMALL, "data.seed=1", f"data.corpus=[{corpus_folder}]"])
    validation = EmbedderTask(config, torch.device("cpu")).split.validation  # type: ignore[arg-type]
    flattered = heard_speakers(validation, load_embedder(str(trained / "chkpt/e/best.pt")).training_speakers)
    assert code == 0 and flattered
    assert f"{len(flattered)} of 2 validation speakers were heard in the training of" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_resumes(
    trained: Path, corpus_folder: Path, tmp_path: Path, number: int
) -> None:
    endless = [
        "train.steps=100000",
        "train.workers=2",
        "train.save_every=100000",
        "train.validate_every=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "trainer.py"), *arguments(tmp_path, corpus_folder, *endless)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    log = tmp_path / "logs/e/metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= 2:
            break
        time.sleep(0.1)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out[-2000:]
    assert "saved; run the same command again" in out and "Traceback" not in out
    assert load_checkpoint(tmp_path / "chkpt/e/last.pt")["step"] >= 2
