"""Small corpora and embedders that the tests make themselves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if not os.environ.get("TEST_CUDA"):  # what is promised bit for bit is promised of a CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["no_proxy"] = "*"  # the tests' servers are here

import numpy as np
import pytest
import soundfile
import torch

from config.load import run_script
from datasets import scan

torch.set_num_threads(1)  # bit for bit the same, however busy the machine is
SHARED = Path(__file__).parents[2] / "shared" / "data"
RATE = 16000


def tone_voice(speaker: int, seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Something like speech: harmonics of the speaker's own pitch in bursts, with a little noise."""
    generator = np.random.default_rng([speaker, seed])
    time = np.arange(round(seconds * rate)) / rate
    pitch = 90 + 35 * speaker + 3 * np.sin(2 * np.pi * 3 * time + generator.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    bursts = 0.55 + 0.45 * np.sign(np.sin(2 * np.pi * (1.3 + 0.2 * generator.random()) * time))
    return (0.05 * tone * bursts + 0.001 * generator.standard_normal(len(time))).astype(np.float32)


def write_librispeech(root: Path, speakers: int, utterances: int, seconds: float = 4.0) -> Path:
    """A tree in LibriSpeech's layout with a transcript per chapter."""
    for speaker in range(speakers):
        folder = root / "dev-clean" / str(100 + speaker) / "7"
        folder.mkdir(parents=True)
        lines = []
        for number in range(utterances):
            name = f"{100 + speaker}-7-{number:04d}"
            soundfile.write(folder / f"{name}.flac", tone_voice(speaker, seconds, number), RATE)
            lines.append(f"{name} WORDS OF {name}\n")
        (folder / f"{100 + speaker}-7.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session", autouse=True)
def _index_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Findings of the tests' own files stay out of the user's index."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("index") / "index.sqlite"
        patch.setattr(scan, "DEFAULT_CACHE", cache)
        patch.setenv(scan.CACHE_VARIABLE, str(cache))  # of the processes that they start
        yield


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_librispeech(tmp_path_factory.mktemp("corpus"), speakers=8, utterances=3)


def embedder_state(hidden: int, linear: str, scale: float, *scalars: str) -> dict[str, torch.Tensor]:
    """Random weights of three LSTM layers and a linear one, under the names of an embedder's file."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(scalars, (1,))
    for layer in range(3):
        shapes[f"lstm.weight_ih_l{layer}"] = (4 * hidden, 40 if layer == 0 else hidden)
        shapes[f"lstm.weight_hh_l{layer}"] = (4 * hidden, hidden)
        shapes[f"lstm.bias_ih_l{layer}"] = shapes[f"lstm.bias_hh_l{layer}"] = (4 * hidden,)
    shapes |= {f"{linear}.weight": (256, hidden), f"{linear}.bias": (256,)}
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def die(*arguments: object) -> None:
    """In the place of a worker's function: what the system does when the memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def resemblyzer_state() -> dict[str, torch.Tensor]:
    return embedder_state(256, "linear", 0.1, "similarity_weight", "similarity_bias")


@pytest.fixture(scope="session")
def embedder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedder") / "random.pt"
    torch.save({"step": 1, "model_state": resemblyzer_state(), "optimizer_state": {}}, path)
    return path


TINY = [
    "audio.n_fft=256", "audio.hop_length=128", "audio.win_length=256",
    "data.seconds=1.5", "data.train=24", "store.shard_size=10",
    "data.validation={examples: 6, speakers: 0.25}", "data.test={examples: 6, speakers: 0.25}",
    "network={kind: film_blstm, front_dim: 16, lstm_dim: 16, stack: 2}",
    "loss={power_law: 1.0, si_sdr: 0.1, relative: true}",
    "train.batch_size=4", "train.steps=6", "train.validate_every=3", "train.save_every=2",
    "train.log_every=1", "train.precision=fp32", "train.pages=0",
    "train.embedding_noise=0.1", "train.embedding_mix=0.2",
]  # fmt: skip
"""Overrides that make everything small enough for seconds."""


@pytest.fixture(scope="session")
def store(corpus_folder: Path, embedder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "store"
    import generator

    generator.main(["-d", str(corpus_folder), "-o", str(folder), "-p", "1", "-e", str(embedder_file), *TINY])
    return folder


@pytest.fixture(scope="session")
def trained(store: Path, embedder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    import trainer

    trainer.main([*train_arguments(base, store, embedder_file)])
    return base / "chkpt" / "m" / "best.pt"


def train_arguments(base: Path, store: Path, embedder: Path, *more: str) -> list[str]:
    return ["-m", "m", "-b", str(base), "-e", str(embedder), *TINY, f"store.folder={store}", *more]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a script's main as the command line does: (exit code, standard output, standard error)."""

    def call(main: Callable[[Sequence[str]], int | None], *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run_script(lambda: main([str(a) for a in arguments]))
        out, err = capfd.readouterr()
        return int(exit_info.value.code or 0), out, err

    return call


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Runs a training that is stopped by SIGTERM after step 3, dies without saving after step 5 (it falls
    back to what it saved last) and then goes on to its end: its exit code."""
    import trainer

    take_step, killed = trainer.Run.take_step, False

    def stops(self: trainer.Run, batch: Any) -> dict[str, float]:
        values = take_step(self, batch)
        if self.step == 5 and killed:
            raise MemoryError
        if self.step == 3 and not killed:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    def call(train: Callable[[], int]) -> int:
        nonlocal killed
        monkeypatch.setattr(trainer.Run, "take_step", stops)
        assert train() == 128 + signal.SIGTERM
        killed = True
        with pytest.raises(MemoryError):
            train()
        monkeypatch.undo()
        return train()

    return call


@pytest.fixture(scope="session")
def shared_librispeech() -> Path:
    path = SHARED / "LibriSpeech"
    if not path.is_dir():
        pytest.skip(f"no real speech at {path}")
    return path
