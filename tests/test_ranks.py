"""Several processes learn what one does with the whole batch: batch norm, losses, validation, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import generator
import trainer
from model import voicefilter
from tests.conftest import TINY, write_librispeech
from utils.batch_norm import SharedBatchNorm, share_batch_norms
from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
KINDS = "data.kinds={mixture: 0.6, target_absent: 0.4}"
# three speakers each: an example with an absent target names three
SPLITS = ["data.validation={examples: 6, speakers: 0.34}", "data.test={examples: 2, speakers: 0.34}"]
PLAIN = [
    *SPLITS,
    KINDS,
    "store.kind=wave",
    "train.embedding_noise=0",
    "train.embedding_mix=0",
    "train.steps=4",
    "train.validate_every=2",
]
# not ReLU, whose edges make a jump of any rounding; and Adam would divide gradients that are rounding alone,
# such as of a bias before batch norm, by themselves
SGD = ["train.optimizer=sgd", "train.learning_rate=0.05", "train.clip_norm=1.0"]
VOICEFILTER = [
    "network={kind: voicefilter, activation: mish, channels: 4, lstm_dim: 8, fc1_dim: 12}",
    "loss={power_law: 1.0, si_sdr: 0.1, absent: 0.1, relative: true}",
]
SPEAKER = [
    "network={kind: film_blstm, front_dim: 16, lstm_dim: 16, stack: 2}",
    "loss={power_law: 1.0, absent: 0.1, srl: {beta: 0.5}, triplet_srl: {beta: 0.5, anchor: clean}}",
]


@pytest.fixture(scope="module")
def store(embedder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "store"
    corpus = write_librispeech(folder.parent / "corpus", speakers=9, utterances=3, seconds=3.5)
    arguments = ["-d", str(corpus), "-o", str(folder), "-p", "1", "-e", str(embedder_file)]
    generator.main([*arguments, *TINY, *PLAIN])
    return folder


def options(base: Path, store: Path, embedder: Path, *more: str) -> list[str]:
    run = ["-m", "m", "-b", str(base), "-e", str(embedder), "--device", "cpu"]
    return [*run, *TINY, *PLAIN, *SGD, f"store.folder={store}", *more]


def two_ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(ROOT / "trainer.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def records(base: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (base / "logs/m/metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- batch norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_shared_batch_norm_alone_is_torch_s(affine: bool, momentum: float | None) -> None:
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    shared = share_batch_norms(nn.Sequential(plain))[0]  # type: ignore[index]
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    assert isinstance(shared, SharedBatchNorm) and shared.state_dict().keys() == plain.state_dict().keys()
    # a mean of a thousand deviations, which a sum of squares would not survive
    values = 1000 + torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    for mode in (True, True, False):
        outputs, gradients = [], []
        for norm in (plain, shared):
            norm.train(mode)
            own = values.clone().requires_grad_()
            output = norm(own)
            (output * torch.arange(6.0)).square().sum().backward()
            outputs.append(output.detach())
            gradients.append(own.grad)
        torch.testing.assert_close(*outputs, atol=2e-3, rtol=0)
        torch.testing.assert_close(*gradients, atol=0.1, rtol=1e-3)
        torch.testing.assert_close(plain.state_dict(), shared.state_dict())
    if affine:
        torch.testing.assert_close(shared.weight.grad, plain.weight.grad, rtol=1e-3, atol=0.1)


def test_shared_batch_norm_s_gradients_are_those_of_its_formula() -> None:
    norm = SharedBatchNorm(2)
    values = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((norm(values) * weights).sum(), values)[0]
    mean, variance = values.mean((0, 2), keepdim=True), values.var((0, 2), keepdim=True, correction=0)
    formula = (values - mean) / (variance + norm.eps).sqrt()
    torch.testing.assert_close(found, torch.autograd.grad((formula * weights).sum(), values)[0])


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("more", [VOICEFILTER, SPEAKER], ids=["voicefilter", "film_blstm"])
def test_two_ranks_learn_what_one_process_does(
    store: Path, embedder_file: Path, tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    result = two_ranks(tmp_path, *options(two, store, embedder_file, *more, "train.batch_size=4"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("4 steps") == 1
    # on a CPU torch's own batch norm adds up channels-last values in float32 and loses digits; in the other
    # layout it is exact, as ours is in both
    monkeypatch.setattr(voicefilter, "channels_last", lambda module: module)
    assert trainer.main(options(one, store, embedder_file, *more, "train.batch_size=8")) == 0
    own, other = (load_checkpoint(base / "chkpt/m/last.pt")["network"] for base in (one, two))
    moved = load_checkpoint(one / "chkpt/m/best.pt")["network"]
    assert own.keys() == other.keys() == moved.keys()
    for key, value in own.items():
        torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    # also what is logged: the whole batch's losses, and a validation that is shared out
    for first, second in zip(records(one), records(two), strict=True):
        assert first.keys() == second.keys()
        assert first["group"] == second["group"]
        for name in set(first) - {"group", "examples_per_second", "input_wait_share"}:
            assert second[name] == pytest.approx(first[name], abs=1e-3, rel=1e-3), name


def test_a_mistake_is_said_once(store: Path, embedder_file: Path, tmp_path: Path) -> None:
    result = two_ranks(tmp_path, *options(tmp_path, store, embedder_file, "train.batch_size=20"))
    said = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    assert result.returncode != 0 and len(said) == 1 and "train.batch_size 20 x 2" in said[0], result.stderr
    assert 'trainer.py", line' not in result.stderr  # no traceback of ours


def test_the_slurm_script_saves_and_asks_for_another_turn(
    store: Path, embedder_file: Path, tmp_path: Path
) -> None:
    """With programs in the place of Slurm's that do what they do on a single node: a SIGTERM makes srun kill
    its tasks, while scancel hands a signal to them."""
    tasks = tmp_path / "tasks"
    send = 'kill -"${1#--signal=}" "$task"; pkill -"${1#--signal=}" -P "$task"; true'
    programs = {
        "srun": f'"$@" & echo $! > {tasks}; trap "kill -KILL $!" TERM; wait $!',
        "scancel": f"task=$(cat {tasks}); {send}",
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@"; fi',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "PORT": str(port)}
    job = subprocess.Popen(
        ["scripts/train.slurm", *options(tmp_path, store, embedder_file, "train.steps=100000")],
        cwd=ROOT,
        env={**os.environ, **slurm, **own, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "chkpt/m/last.pt").exists() and job.poll() is None:
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=100)
    assert job.returncode != 0 and "saved; run the same command again" in said, said[-3000:]
    assert said.strip().endswith("requeue 7")
    step = load_checkpoint(tmp_path / "chkpt/m/last.pt")["step"]
    assert f"stopped at step {step}" in said


def test_the_rank_whose_loss_is_no_number_names_its_examples(
    store: Path, embedder_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    shards = sorted((broken / "train").glob("shard-*"))
    values = np.load(next(shards[1].glob("mixture*.npy")), mmap_mode="r+")
    values[3] = np.nan  # example 13, of the second shard of ten
    values.flush()
    more = ["train.batch_size=4", "train.skip_failures=5", "train.steps=3"]
    result = two_ranks(tmp_path, *options(tmp_path / "run", broken, embedder_file, *more))
    assert result.returncode == 0, result.stderr[-3000:]
    (said,) = [line for line in result.stdout.splitlines() if "skipped: the loss is nan" in line]
    assert said.endswith("examples 13")  # batch norm spreads it to every rank
