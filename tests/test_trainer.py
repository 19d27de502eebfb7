"""The training loop: what is lost by an interruption (nothing), and what is said when a step fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainer
from config.options import Training
from datasets.dataset import StoredExamples
from datasets.store import Store
from model.averaging import Averages
from model.failure import Failures, KeptBuffers
from model.foreign import build_embedder
from model.learner import Learner
from model.objective import blur
from model.optimization import learning_rate
from model.patience import Patience
from model.run_folder import RunFolder
from model.separator import Separator
from model.separator_task import SeparatorTask
from model.task import Outcome
from tests.conftest import TINY
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.files import locked, read_json
from utils.logger import RunLogger

Runner = Callable[..., tuple[int, str, str]]
Interrupt = Callable[[Callable[[], int]], int]
EVERYTHING = [
    "train.ema=0.9", "train.optimizer=sgd", "train.momentum=0.9", "train.learning_rate=0.05",
    "train.schedule=plateau", "train.patience_lr=1", "train.accumulate=2", "train.batch_size=2",
    "train.clip_norm=1.0", "train.explosion=50", "train.skip_failures=2", "train.best=si_sdr_after_median",
]  # fmt: skip


@pytest.fixture
def arguments(store: Path, embedder_file: Path) -> Callable[..., list[str]]:
    def build(base: Path, *more: str) -> list[str]:
        return ["-m", "m", "-b", str(base), "-e", str(embedder_file), *TINY, f"store.folder={store}", *more]

    return build


Arguments = Callable[..., list[str]]


def records(base: Path, group: str, name: str = "m") -> list[dict[str, Any]]:
    lines = (base / "logs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["group"] == group]


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every tensor and number of nested dicts and lists, by path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in leaves(part, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for n, part in enumerate(value) for k, v in leaves(part, f"{name}.{n}").items()}
    return {name: value}


def assert_same_state(one: Path, other: Path) -> None:
    """All of two last.pt but the time that they took."""
    first, second = (leaves(load_checkpoint(base / "chkpt/m/last.pt")) for base in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same or name == ".training.seconds", name


# ---------------------------------------------------------------- interruptions


def _train(arguments: Sequence[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    trainer.main(arguments)


def test_twenty_kills_lose_nothing(arguments: Arguments, tmp_path: Path) -> None:
    """SIGKILL at random moments, most of them while a checkpoint is written or just before."""
    more = [*EVERYTHING, "train.steps=150", "train.save_every=1", "train.validate_every=40"]
    assert trainer.main(arguments(tmp_path / "straight", *more)) == 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_trainer", "tensorboardX"])
    last, chance, killed = tmp_path / "killed/chkpt/m/last.pt", random.Random(0), 0
    for number in range(20):
        before = last.stat().st_mtime_ns if last.exists() else 0
        child = context.Process(target=_train, args=(arguments(tmp_path / "killed", *more),))
        child.start()
        while child.is_alive() and number % 5:  # a fifth dies before the first step
            if last.exists() and last.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.08))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed == 20 and load_checkpoint(last)["step"] < 150, "the run is too short for its kills"
    assert trainer.main(arguments(tmp_path / "killed", *more)) == 0
    assert_same_state(tmp_path / "straight", tmp_path / "killed")
    best = [load_checkpoint(tmp_path / name / "chkpt/m/best.pt") for name in ("straight", "killed")]
    assert best[0]["step"] == best[1]["step"] and best[0]["validation"] == best[1]["validation"]
    assert not list((tmp_path / "killed/chkpt/m").glob(".*.pt")), "what kills left behind was removed"


@pytest.mark.parametrize(
    "more",
    [
        EVERYTHING,
        ["train.optimizer=adabound", "train.schedule=cosine", "train.ema=0.5"],
        ["train.workers=2", "train.weight_decay=0.1", "train.optimizer=adamw"],
    ],
    ids=["everything", "adabound", "workers"],
)
def test_resumed_is_straight(
    arguments: Arguments, tmp_path: Path, interrupt: Interrupt, more: list[str]
) -> None:
    assert trainer.main(arguments(tmp_path / "a", *more)) == 0
    assert interrupt(lambda: trainer.main(arguments(tmp_path / "b", *more))) == 0
    assert_same_state(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_in_a_validation_ends_it_and_it_is_made_up_for(
    run: Runner, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    more = ["train.ema=0.9", "train.schedule=plateau", "train.patience_lr=1"]
    assert trainer.main(arguments(tmp_path / "a", *more)) == 0
    validate = SeparatorTask.validate

    def signalled(self: SeparatorTask) -> Outcome:
        os.kill(os.getpid(), number)
        return validate(self)

    monkeypatch.setattr(SeparatorTask, "validate", signalled)
    code, out, _ = run(trainer.main, *arguments(tmp_path / "b", *more))
    assert code == 128 + number and "stopped at step 3, saved" in out
    assert load_checkpoint(tmp_path / "b/chkpt/m/last.pt")["step"] == 3
    assert not (tmp_path / "b/chkpt/m/best.pt").exists()
    monkeypatch.undo()
    assert trainer.main(arguments(tmp_path / "b", *more)) == 0
    assert_same_state(tmp_path / "a", tmp_path / "b")
    assert [r["step"] for r in records(tmp_path / "b", "validation")] == [3, 6]


def test_two_trainings_of_one_run_are_refused(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    with locked(tmp_path / "chkpt/m/.lock", "never"):
        code, _, err = run(trainer.main, *arguments(tmp_path))
    assert code == 2 and "another process is training this run" in err
    assert not (tmp_path / "chkpt/m/last.pt").exists()


def test_a_lock_ends_with_its_process_though_a_child_lives(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "never"):
        reader, writer = os.pipe()
        born, birth = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(birth, b"x")
            os.read(reader, 1)
            os._exit(0)
        os.read(born, 1)
    try:
        with locked(tmp_path / "lock", "the child has it"):
            pass
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)


# ---------------------------------------------------------------- checkpoints


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "changed":  # torch alone would not notice
        content[len(content) // 2] ^= 255
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "changed", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run: Runner, arguments: Arguments, tmp_path: Path, how: str
) -> None:
    assert trainer.main(arguments(tmp_path / "a")) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b/chkpt/m"
    damaged(folder / "last.pt", how)
    code, out, _ = run(trainer.main, *arguments(tmp_path / "b"))
    warnings = [line for line in out.splitlines() if line.startswith("WARNING")]
    assert code == 0 and len(warnings) == 1
    assert "last.pt: not a checkpoint" in warnings[0] and "previous.pt, step 4" in warnings[0]
    assert_same_state(tmp_path / "a", tmp_path / "b")
    assert load_checkpoint(folder / "previous.pt")["step"] == 4, "the damaged one has not replaced it"
    for name in ("last.pt", "previous.pt"):
        damaged(folder / name, how)
    code, _, err = run(trainer.main, *arguments(tmp_path / "b"))
    assert code == 2 and "last.pt" in err and "previous.pt" in err and "step" not in err
    assert len(err.strip().splitlines()) == 1


def test_the_newest_are_kept_and_can_be_gone_on_from(arguments: Arguments, tmp_path: Path) -> None:
    assert trainer.main(arguments(tmp_path / "a", "train.keep=2", "train.save_every=1")) == 0
    folder = tmp_path / "a/chkpt/m"
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-00000005.pt", "step-00000006.pt"]
    (tmp_path / "b/chkpt/m").mkdir(parents=True)
    shutil.copy(folder / "step-00000005.pt", tmp_path / "b/chkpt/m/last.pt")
    assert trainer.main(arguments(tmp_path / "b", "train.keep=2", "train.save_every=1")) == 0
    assert_same_state(tmp_path / "a", tmp_path / "b")
    code = load_checkpoint(folder / "best.pt")["code"]
    assert torch.__version__.startswith(code["torch"]) and code.keys() >= {
        "commit",
        "dirty",
        "python",
        "numpy",
    }


def test_a_full_disk_leaves_the_checkpoints_as_they_were(
    run: Runner, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trainer.main(arguments(tmp_path, "train.steps=4")) == 0
    folder = tmp_path / "chkpt/m"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run(trainer.main, *arguments(tmp_path, "--allow_changes"))
    assert code == 2 and "best.pt: the disk is full" in err.splitlines()[-1]
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.undo()
    assert run(trainer.main, *arguments(tmp_path, "--allow_changes"))[0] == 0


def test_best_by_any_figure(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    for name, best_of in (("power_law", min), ("si_sdr", min), ("si_sdr_after_median", max)):
        more = [f"train.best={name}", "train.validate_every=1"]
        code, out, _ = run(trainer.main, *arguments(tmp_path / name, *more))
        found = {r["step"]: r[name] for r in records(tmp_path / name, "validation")}
        best = best_of(found.values())
        assert code == 0 and f"best validation {name} {best:.4g}" in out
        assert found[load_checkpoint(tmp_path / name / "chkpt/m/best.pt")["step"]] == best
    for name in ("sdr", "n", "si_sdr_before_mean", "sdr_improvment_mean"):
        code, _, err = run(trainer.main, *arguments(tmp_path / "x", f"train.best={name}"))
        assert code == 2 and f"train.best {name}: says nothing of which checkpoint" in err
        assert not (tmp_path / "x/chkpt/m/last.pt").exists()
    code, _, err = run(trainer.main, *arguments(tmp_path / "x", "train.best=absent_level_mean"))
    assert code == 2 and "train.best absent_level_mean: the validation knows" in err
    again = arguments(tmp_path / "x", "train.best=sdr_after_mean", "--allow_changes")
    assert run(trainer.main, *again)[0] == 0
    assert [r["step"] for r in records(tmp_path / "x", "train")] == [1, 2, 3, 4, 5, 6]


def test_low_figures_are_best_where_they_should_be(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 5.0, 4.0, 1.5])
    monkeypatch.setattr(
        SeparatorTask, "validate", lambda self: Outcome(0.0, {"loss": next(losses), "n": 1}, "")
    )
    assert trainer.main(arguments(tmp_path, "train.best=loss", "train.validate_every=1")) == 0
    best = load_checkpoint(tmp_path / "chkpt/m/best.pt")
    assert best["step"] == 2 and best["validation"]["loss"] == 1.0


# ---------------------------------------------------------------- optimisation


def test_parts_of_a_batch_are_the_batch(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.BatchNorm1d, "forward", lambda self, x: x)  # it alone sees the batch as a whole
    more = [
        "train.embedding_noise=0",
        "train.embedding_mix=0",
        "train.optimizer=sgd",
        "train.learning_rate=0.1",
        "train.clip_norm=0.5",
    ]
    for name, parts in (("whole", []), ("parts", ["train.batch_size=1", "train.accumulate=4"])):
        assert trainer.main(arguments(tmp_path / name, *more, *parts)) == 0
    whole, parts = (records(tmp_path / name, "train") for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    first, second = (
        load_checkpoint(tmp_path / name / "chkpt/m/last.pt")["network"] for name in ("whole", "parts")
    )
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-6)


def test_averages_follow_their_formula_and_leave_the_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averages = Averages(module, module.parameters(), 0.9)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter += torch.randn_like(parameter)
                expected[name] = 0.9 * expected[name] + 0.1 * parameter
        module(torch.randn(8, 3))
        averages.update()
    own = {name: value.clone() for name, value in module.state_dict().items()}
    with averages.in_use(), averages.in_use():
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])
        assert torch.equal(module[1].running_mean, own["1.running_mean"]), "buffers are not averaged"
        assert all(torch.equal(value, own[name]) for name, value in averages.weights().items())
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())


def test_checkpoints_hold_the_averages_and_last_also_the_weights(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    take_step = Learner.take_step

    def watched(self: Learner, *given: Any) -> dict[str, float]:
        weight = self.task.separator.network.out.weight  # type: ignore[attr-defined]
        seen[:] = seen or [weight.detach().clone()]
        values = take_step(self, *given)
        seen.append(weight.detach().clone())
        return values

    monkeypatch.setattr(Learner, "take_step", watched)
    assert trainer.main(arguments(tmp_path, "train.ema=0.7", "train.validate_every=6")) == 0
    average = seen[0]
    for weight in seen[1:]:
        average = 0.7 * average + 0.3 * weight
    last, best = (load_checkpoint(tmp_path / f"chkpt/m/{name}.pt") for name in ("last", "best"))
    torch.testing.assert_close(best["network"]["out.weight"], average)
    assert torch.equal(last["network"]["out.weight"], best["network"]["out.weight"])
    raw = next(v for name, v in last["training"]["weights"].items() if name.endswith("network.out.weight"))
    assert torch.equal(raw, seen[-1])


def test_patience_lowers_the_rate_and_gives_up() -> None:
    train = Training(schedule="plateau", patience_lr=2, factor=0.5, patience=5)
    patience = Patience(train)
    scales = []
    for better in (True, False, False, False, True, False, False, False, False):
        patience.see(better)
        scales.append(patience.scale)
        assert not patience.given_up
    assert scales == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    again = Patience(train)
    again.load_state(patience.state())
    again.see(False)
    assert again.given_up and again.scale == 0.125
    assert learning_rate(train, 7, 0.5, 0, again.scale) == train.learning_rate / 8


def test_a_training_that_gets_no_better_stops_for_good(
    run: Runner, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 2.0, 2.0, 1.5, 3.0])
    monkeypatch.setattr(SeparatorTask, "validate", lambda self: Outcome(next(scores), {"n": 1}, ""))
    more = ["train.patience=2", "train.validate_every=1", "train.steps=20", "train.save_every=20"]
    more += ["train.schedule=plateau", "train.patience_lr=1", "train.factor=0.1"]
    code, out, _ = run(trainer.main, *arguments(tmp_path, *more))
    assert code == 0 and "stopped after 2 validations without a better score, for good" in out
    rates = [record["learning_rate"] for record in records(tmp_path, "train")]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    assert load_checkpoint(tmp_path / "chkpt/m/best.pt")["step"] == 2
    code, out, _ = run(trainer.main, *arguments(tmp_path, *more))
    assert code == 0 and "finished at step 4, 2 validations without a better score" in out


def test_seeds_run_one_after_the_other_and_are_summed_up(
    run: Runner, arguments: Arguments, tmp_path: Path, interrupt: Interrupt
) -> None:
    seeds = arguments(tmp_path, "train.seeds=[3, 1, 2]")
    assert interrupt(lambda: trainer.main(seeds)) == 0
    summary = json.loads((tmp_path / "chkpt/m/seeds.json").read_text())
    best = [load_checkpoint(tmp_path / f"chkpt/m/seed-{seed}/best.pt") for seed in (3, 1, 2)]
    assert summary["seeds"] == [3, 1, 2]
    values = [content["validation"]["sdr_after_mean"] for content in best]
    figure = summary["validation"]["sdr_after_mean"]
    assert figure["values"] == values and len(set(values)) == 3
    mean = sum(values) / 3
    assert figure["mean"] == pytest.approx(mean)
    assert figure["sd"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    code, out, _ = run(trainer.main, *seeds)
    assert code == 0 and out.count("finished at step 6") == 3
    assert f"sdr_after_mean {mean:12.4g}".split()[1] in out and "+-" in out
    assert best[0]["config"]["train"]["seed"] == 3
    # one of them alone is the same run
    assert trainer.main(arguments(tmp_path / "alone", "train.seed=1")) == 0
    alone = load_checkpoint(tmp_path / "alone/chkpt/m/best.pt")
    assert all(torch.equal(value, alone["network"][key]) for key, value in best[1]["network"].items())


@pytest.mark.parametrize(
    ("options", "at", "share"),
    [
        ({}, (99, 0.5, 3), 1.0),
        ({"warmup_steps": 10}, (4, 0.0, 0), 0.5),
        ({"warmup_steps": 10}, (10, 0.0, 0), 1.0),
        ({"schedule": "cosine"}, (99, 0.25, 0), 0.5 * (1 + 0.5**0.5)),
        ({"schedule": "cosine"}, (99, 1.0, 0), 0.0),
        ({"schedule": "halved", "halve_every": 30}, (99, 0.5, 0), 0.125),
        ({"schedule": "exponential", "decay": 0.9}, (99, 0.5, 2), 0.81),
        ({"schedule": "cosine", "warmup_steps": 200}, (99, 0.5, 0), 0.25),
    ],
)
def test_the_learning_rate_s_course(
    options: dict[str, Any], at: tuple[int, float, int], share: float
) -> None:
    train = Training(learning_rate=2e-3, **options)
    assert learning_rate(train, *at) == pytest.approx(2e-3 * share)


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (["train.steps=2"], 2),
        (["train.steps=50", "train.epochs=1", "train.batch_size=8"], 3),  # of 24 examples
        (["train.steps=50", "train.minutes=1e-5"], 1),  # which are over after the first
    ],
)
def test_a_training_ends_where_it_should(
    arguments: Arguments, tmp_path: Path, end: list[str], last: int
) -> None:
    assert trainer.main(arguments(tmp_path, *end, "train.schedule=cosine")) == 0
    content = load_checkpoint(tmp_path / "chkpt/m/last.pt")
    assert content["step"] == last
    best = load_checkpoint(tmp_path / "chkpt/m/best.pt")
    assert best["validation"], "the end is validated"


def test_fp16_wants_a_cuda_device(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    code, _, err = run(trainer.main, *arguments(tmp_path, "train.precision=fp16", "--device", "cpu"))
    assert code == 2 and "train.precision fp16: needs a CUDA device" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_learns_and_resumes_on_cuda(arguments: Arguments, tmp_path: Path, interrupt: Interrupt) -> None:
    more = ["train.precision=fp16", "train.steps=8"]
    assert interrupt(lambda: trainer.main(arguments(tmp_path, *more))) == 0
    last = load_checkpoint(tmp_path / "chkpt/m/last.pt")
    assert last["training"]["scaler"]["scale"] > 0
    assert all(record["loss_scale"] > 0 for record in records(tmp_path, "train"))
    assert all(value.isfinite().all() for value in last["network"].values())


# ---------------------------------------------------------------- failures


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Lets these examples of the training split be NaN."""
    read = StoredExamples.__getitem__

    def call(bad: set[int]) -> None:
        def spoil(self: StoredExamples, rows: Sequence[int]) -> dict[str, torch.Tensor]:
            batch = read(self, rows)
            for place, row in enumerate(rows):
                if row in bad:
                    batch["mixture"][place] = float("nan")
            return batch

        monkeypatch.setattr(StoredExamples, "__getitem__", spoil)

    return call


def test_a_failing_step_names_its_examples_and_saves_them(
    run: Runner, arguments: Arguments, tmp_path: Path, broken: Callable[[set[int]], None]
) -> None:
    broken({5})
    code, _, err = run(trainer.main, *arguments(tmp_path))
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and sentence.startswith("ERROR: step ") and "the loss is nan" in sentence
    path = next((tmp_path / "chkpt/m").glob("failed-batch-*.pt"))
    assert str(path) in sentence
    (batch,) = load_checkpoint(path)["batches"]
    assert 5 in batch["example"].tolist() and batch["mixture"].isnan().any()
    assert "examples 5, saved as" in sentence
    last = load_checkpoint(tmp_path / "chkpt/m/last.pt")  # what the user goes on from
    assert all(value.isfinite().all() for value in last["network"].values())


def test_failing_steps_are_skipped_and_counted(
    run: Runner, arguments: Arguments, tmp_path: Path, broken: Callable[[set[int]], None]
) -> None:
    broken({5})
    more = ["train.skip_failures=1", "train.steps=12"]  # two epochs: it is met twice
    code, out, err = run(trainer.main, *arguments(tmp_path, *more))
    assert code == 0, err
    assert out.count("WARNING: step") == 2 and records(tmp_path, "train")[-1]["skipped"] == 2
    last = load_checkpoint(tmp_path / "chkpt/m/last.pt")
    assert last["training"]["failures"]["skipped"] == 2 and last["step"] == 12
    assert all(value.isfinite().all() for value in last["network"].values())
    assert last["training"]["optimizer"]["state"][0]["step"] == 10
    broken(set(range(24)))
    code, _, err = run(trainer.main, *arguments(tmp_path / "x", *more))
    assert code == 2 and "step 1: the loss is nan, after 1 skipped in a row" in err


def test_an_explosion_is_measured_by_the_median(tmp_path: Path) -> None:
    failures = Failures(Training(explosion=5.0), tmp_path)
    for number in range(30):
        assert failures.cause(1.0 + number % 3, 1.0) is None
        failures.passed(1.0 + number % 3)
    again = Failures(Training(explosion=5.0), tmp_path)
    again.load_state(failures.state())
    for found in (failures, again):
        assert found.cause(11.9, 1.0) is None
        assert found.cause(12.1, 1.0) == "the loss is 12.1, the median before was 2"
        assert "the gradient is inf" in (found.cause(1.0, float("inf")) or "")
    assert Failures(Training(), tmp_path).cause(1e30, 1.0) is None
    negative = Failures(Training(explosion=5.0), tmp_path)
    for number in range(30):
        negative.passed(-10.0 - number % 3)
    assert negative.cause(40.0, 1.0) is None and negative.cause(50.0, 1.0) is not None
    # learnt by heart: a single mistake
    learnt = Failures(Training(explosion=5.0), tmp_path)
    for number in range(300):
        learnt.passed(4.0 if number < 20 else 1e-4)
    again.load_state(learnt.state())
    assert learnt.cause(0.1, 1.0) is again.cause(0.19, 1.0) is None and again.cause(0.21, 1.0) is not None
    again.forget()
    assert again.cause(1e3, 1.0) is None


def test_the_step_s_gradient_is_as_long_as_it_may_be(
    run: Runner, arguments: Arguments, tmp_path: Path
) -> None:
    more = ["train.optimizer=sgd", "train.learning_rate=0.1", "train.clip_norm=0.01", "train.ema=null"]
    more += [
        "train.schedule=constant",
        "train.momentum=0",
        "train.validate_every=100",
        "train.save_every=1",
        "train.keep=9",
    ]
    assert run(trainer.main, *arguments(tmp_path, "train.steps=2", *more))[0] == 0
    first, second = (
        load_checkpoint(tmp_path / f"chkpt/m/step-0000000{step}.pt")["network"] for step in (1, 2)
    )
    learnt = [name for name, value in first.items() if value.is_floating_point() and "running" not in name]
    moved = torch.cat([(second[name] - first[name]).flatten() for name in learnt])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-2)


def test_noise_on_embeddings_has_the_length_that_it_says() -> None:
    embedding = torch.randn(512, 256)
    blurred = blur(embedding, 0.3)
    assert torch.allclose(blurred.norm(dim=1), embedding.norm(dim=1))
    cosine = nn.functional.cosine_similarity(blurred, embedding).mean()
    assert cosine == pytest.approx(1 / 1.09**0.5, abs=0.02)


def test_a_kept_copy_of_a_checkpoint_is_the_user_s(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, keep=1)
    (folder.path / "step-best.pt").write_bytes(b"mine")
    for step in (1, 2, 3):
        folder.save_last({"step": step}, step, True)
    assert sorted(path.name for path in folder.path.glob("step-*")) == ["step-00000003.pt", "step-best.pt"]


def test_a_skipped_step_leaves_the_statistics_of_batch_norm() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(5, 3))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    kept = KeptBuffers(norm)
    norm(torch.full((5, 3), float("nan")))
    kept.restore()
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_a_full_memory_says_what_to_lower(
    run: Runner, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(self: Learner, *given: Any) -> dict[str, float]:
        raise error

    monkeypatch.setattr(Learner, "take_step", fails)
    code, _, err = run(trainer.main, *arguments(tmp_path))
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and sentence.startswith("ERROR: the memory is full: lower train.batch_size (4)")
    assert "train.accumulate" in sentence and "data.seconds" in sentence and "Traceback" not in err
    monkeypatch.setattr(Learner, "take_step", lambda self, *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.main(arguments(tmp_path))


def test_a_corrupt_shard_names_itself_also_from_a_worker(
    run: Runner, arguments: Arguments, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    victim = tmp_path / "s/train/shard-00001/mixture.npy"
    victim.write_bytes(b"damaged" + victim.read_bytes()[7:])  # its size is looked at before
    for workers in (0, 1):
        more = (f"store.folder={tmp_path / 's'}", f"train.workers={workers}")
        base = tmp_path / str(workers)
        code, _, err = run(trainer.main, *arguments(base, *more))
        sentence = err.strip().splitlines()[-1]
        assert code == 2 and sentence.startswith(f"ERROR: {victim}: cannot be read"), err
        assert load_checkpoint(base / "chkpt/m/last.pt")["training"]["step"] < 6  # what was learnt is kept
        assert "Traceback" not in err


def test_what_does_not_go_together_is_said(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    for option, words in (
        ("train.schedule=plateau", "patience_lr None: they go together"),
        ("train.seeds=[1, 1]", "holds a seed twice"),
        ("train.accumulate=9", "the store has only 24 examples"),
    ):
        code, _, err = run(trainer.main, *arguments(tmp_path, option))
        assert code == 2 and words in err, (option, err)


# ---------------------------------------------------------------- changed on purpose, or lost


def edit_training(base: Path, **values: float) -> None:
    path = base / "chkpt/m/last.pt"
    content = load_checkpoint(path)
    content["training"] |= values
    save_checkpoint(path, content)


def test_allowed_changes_are_applied(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    first = ["train.optimizer=sgd", "train.momentum=0.9", "train.steps=2"]
    assert trainer.main(arguments(tmp_path, *first)) == 0
    second = ["train.optimizer=sgd", "train.momentum=0.5", "train.weight_decay=0.1", "train.steps=4"]
    assert trainer.main(arguments(tmp_path, *second, "--allow_changes")) == 0
    (group,) = load_checkpoint(tmp_path / "chkpt/m/last.pt")["training"]["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.1)
    for number, optimizer in enumerate(("adamw", "adabound", "sgd"), 5):
        more = [f"train.optimizer={optimizer}", f"train.steps={number}", "--allow_changes"]
        code, out, _ = run(trainer.main, *arguments(tmp_path, *more))
        assert code == 0 and f"-> {optimizer}: the optimiser begins anew" in out


def test_scores_that_cannot_be_compared_begin_anew(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    assert trainer.main(arguments(tmp_path, "train.steps=3")) == 0
    edit_training(tmp_path, best=1000.0)
    more = ["train.steps=6", "train.validation_examples=2", "--allow_changes"]
    code, out, _ = run(trainer.main, *arguments(tmp_path, *more))
    assert code == 0 and "the best checkpoint and patience begin anew" in out
    assert load_checkpoint(tmp_path / "chkpt/m/best.pt")["step"] == 6
    counts = [record["n"] for record in records(tmp_path, "validation")]
    assert counts[0] > 2 == counts[-1]


def test_another_number_of_processes_is_a_change(run: Runner, arguments: Arguments, tmp_path: Path) -> None:
    assert trainer.main(arguments(tmp_path, "train.steps=2")) == 0
    edit_training(tmp_path, ranks=4)
    code, _, err = run(trainer.main, *arguments(tmp_path, "train.steps=2"))
    assert code == 2 and "processes: 4 -> 1" in err


def test_a_run_without_its_last_checkpoint_loses_nothing(
    run: Runner, arguments: Arguments, tmp_path: Path
) -> None:
    assert trainer.main(arguments(tmp_path, "train.keep=2")) == 0
    folder = tmp_path / "chkpt/m"
    for name in ("last.pt", "previous.pt"):
        (folder / name).unlink()  # it may have other names
        (folder / name).write_bytes(b"damaged")
    code, out, _ = run(trainer.main, *arguments(tmp_path, "train.keep=2"))
    assert code == 0 and "goes on from" in out and "step-00000006.pt" in out
    best = (folder / "best.pt").read_bytes()
    for path in (*folder.glob("step-*.pt"), folder / "last.pt", folder / "previous.pt"):
        path.unlink()
    code, _, err = run(trainer.main, *arguments(tmp_path, "train.keep=2"))
    assert code == 2 and "best.pt: would be lost" in err
    assert (folder / "best.pt").read_bytes() == best


def test_a_lost_tensorboard_does_not_stop_a_training(
    run: Runner, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX import event_file_writer

    write, written = event_file_writer.EventsWriter.write_event, []

    def full(self: object, event: object) -> None:
        written.append(event)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        write(self, event)

    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", full)
    code, _, err = run(trainer.main, *arguments(tmp_path, "train.pages=3"))
    assert code == 0 and err.count("TensorBoard's events cannot be written any more") == 1
    assert "Traceback" not in err and len(records(tmp_path, "train")) == 6


def test_validations_that_are_done_again_are_logged_once(tmp_path: Path) -> None:
    lines = [
        {"step": 7, "group": "train"},
        {"step": 3, "group": "validation"},
        {"step": 7, "group": "validation"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = RunLogger(tmp_path, 7, 3)
    log.scalars(8, {"loss": float("nan")}, "train")
    log.close()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["group"]) for r in found] == [(7, "train"), (3, "validation"), (8, "train")]
    assert found[-1]["loss"] is None


@pytest.mark.parametrize(
    "option", ["train.factor=0.1", "train.final_rate=0.5", "train.embedder_rate=0.5", "train.momentum=0.5"]
)
def test_options_of_what_is_not_chosen_are_refused(
    run: Runner, arguments: Arguments, tmp_path: Path, option: str
) -> None:
    code, _, err = run(trainer.main, *arguments(tmp_path, option))
    assert code == 2 and "belongs to" in err


def test_a_validation_that_is_no_number_ends_the_run_and_names_its_examples(
    run: Runner, arguments: Arguments, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    spoken = [recipe.role == "mixture" for recipe in Store(tmp_path / "s").split("validation").recipes]
    row = spoken.index(True)
    for path in sorted((tmp_path / "s/validation/shard-00000").glob("*.npy")):
        values = np.load(path, mmap_mode="r+")
        lengths = read_json(path.parent / "shard.json").get("lengths", {}).get(path.stem)
        place = sum(lengths[:row]) if lengths else row
        if values.dtype.kind == "f":
            values[place] = np.nan
            values.flush()
    code, _, err = run(trainer.main, *arguments(tmp_path, f"store.folder={tmp_path / 's'}"))
    sentence = err.strip().splitlines()[-1]
    assert code == 2 and "no number to choose a checkpoint by" in sentence and "Traceback" not in err, err
    assert f"validation examples {row}, which" in sentence and (tmp_path / "chkpt/m/last.pt").exists()


def test_shards_that_are_cut_are_named(
    run: Runner, arguments: Arguments, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    victim = tmp_path / "s/train/shard-00001/target.npy"
    victim.write_bytes(victim.read_bytes()[:-100])
    code, _, err = run(trainer.main, *arguments(tmp_path, f"store.folder={tmp_path / 's'}"))
    assert code == 2 and "(shard-00001: damaged, or of other recipes)" in err


def test_changes_that_are_allowed_are_shown_and_a_run_is_found_where_the_runs_are(
    run: Runner, arguments: Arguments, tmp_path: Path
) -> None:
    assert trainer.main(arguments(tmp_path, "train.steps=2")) == 0
    code, out, _ = run(trainer.main, *arguments(tmp_path, "train.steps=3", "--allow_changes"))
    assert code == 0 and "goes on with another configuration: train.steps: 2 -> 3" in out
    other = [*arguments(tmp_path, "train.steps=1", "--checkpoint_path", "m")]
    other[other.index("-m") + 1] = "n"
    assert run(trainer.main, *other)[0] == 0
    assert (tmp_path / "chkpt/n/last.pt").exists()


BLIND = (
    "network={kind: blind_blstm, front_dim: 16, lstm_dim: 16, stack: 2, choice_dim: 8, residual_layers: 1}"
)


def test_a_blind_network_begins_with_one_that_listened_and_is_resumed(
    run: Runner, arguments: Arguments, tmp_path: Path, trained: Path
) -> None:
    more = [BLIND, "loss.blind=1", "--checkpoint_path", str(trained)]
    code, out, err = run(trainer.main, *arguments(tmp_path, *more, "train.steps=4", "-m", "b"))
    assert code == 0 and "network.kind: film_blstm -> blind_blstm" in out, err
    own, other = (load_checkpoint(path)["network"] for path in (tmp_path / "chkpt/b/last.pt", trained))
    assert {name for name in other if "film." not in name} <= own.keys()
    lines = [json.loads(line) for line in (tmp_path / "logs/b/metrics.jsonl").read_text().splitlines()]
    assert all(line["blind"] > 0 for line in lines if line["group"] in ("train", "validation"))
    straight = [BLIND, "loss.blind=1", "train.steps=4", "-m", "straight"]
    assert run(trainer.main, *arguments(tmp_path, *straight))[0] == 0
    for steps in (2, 4):
        part = [BLIND, "loss.blind=1", f"train.steps={steps}", "-m", "parts", "--allow_changes"]
        assert run(trainer.main, *arguments(tmp_path, *part))[0] == 0
    first, second = (
        load_checkpoint(tmp_path / f"chkpt/{m}/last.pt")["network"] for m in ("straight", "parts")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    code, _, err = run(
        trainer.main, *arguments(tmp_path, BLIND.replace("stack: 2", "stack: 3"), *more[1:], "-m", "c")
    )
    assert code == 2 and "its network" in err and "Traceback" not in err


def test_weights_that_have_heard_the_validation_s_people_are_named(
    run: Runner, arguments: Arguments, tmp_path: Path, trained: Path, store: Path
) -> None:
    people = Store(store).people("validation")
    content = load_checkpoint(trained)
    for heard, warned in ((people, True), (content["training_speakers"], False)):
        torch.save(content | {"training_speakers": heard}, tmp_path / "heard.pt")
        more = ["train.steps=1", "--checkpoint_path", str(tmp_path / "heard.pt"), "-m", f"n{warned}"]
        code, out, err = run(trainer.main, *arguments(tmp_path, *more))
        assert code == 0 and (f"heard in the training of {tmp_path / 'heard.pt'}" in out) == warned, out + err
        assert set(heard) <= set(load_checkpoint(tmp_path / f"chkpt/n{warned}/best.pt")["training_speakers"])
    torch.save({k: v for k, v in content.items() if k != "training_speakers"}, tmp_path / "heard.pt")
    more = ["--checkpoint_path", str(tmp_path / "heard.pt"), "-m", "unknown"]
    for steps in (1, 2):  # started, and gone on with
        code, out, err = run(
            trainer.main, *arguments(tmp_path, *more, f"train.steps={steps}", "--allow_changes")
        )
        assert code == 0 and ("does not say whom it has heard" in out) == (steps == 1), err
        for name in ("best", "last"):
            assert "training_speakers" not in load_checkpoint(tmp_path / f"chkpt/unknown/{name}.pt")


def test_a_run_goes_on_with_the_embedder_that_it_began_with(
    run: Runner, arguments: Arguments, tmp_path: Path
) -> None:
    assert trainer.main(arguments(tmp_path, "train.steps=1")) == 0
    for name, options in (("weights", {}), ("front", {"min_level_db": None})):  # the same options, and others
        torch.manual_seed(5)
        other = Separator.load(tmp_path / "chkpt/m/best.pt").embedder
        assert other is not None
        changed = build_embedder({**other.options, **options})
        torch.save({"embedder": changed.content()}, tmp_path / f"{name}.pt")
        given = arguments(tmp_path, "train.steps=2", "--allow_changes")
        given[given.index("-e") + 1] = str(tmp_path / f"{name}.pt")
        code, _, err = run(trainer.main, *given)
        assert code == 2 and "learns with another embedder" in err


def test_an_environment_of_a_launcher_that_is_gone_does_not_matter(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert trainer.main(arguments(tmp_path, "train.steps=1")) == 0
    assert (tmp_path / "chkpt/m/last.pt").exists()


def test_a_store_without_a_training_split_is_named(
    run: Runner, arguments: Arguments, tmp_path: Path, store: Path
) -> None:
    shutil.copytree(store, tmp_path / "s")
    content = json.loads((store / "store.json").read_text())
    content["splits"].pop("train")
    (tmp_path / "s/store.json").write_text(json.dumps(content))
    code, _, err = run(trainer.main, *arguments(tmp_path, f"store.folder={tmp_path / 's'}"))
    assert code == 2 and "has no split train, only validation, test" in err
