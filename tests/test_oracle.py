"""Benchmarks: ideal masks bound what a separator can reach; a step is timed on any store."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmark
import generator
from scripts import trainer_benchmark
from scripts.memory import Watch, peak_memory
from tests.conftest import TINY
from utils.files import read_json


def test_ideal_masks_are_scored_on_a_store(
    run: Callable[..., tuple[int, str, str]], corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    store, out = tmp_path / "s", tmp_path / "masks.json"
    generator.main(["-d", str(corpus_folder), "-o", str(store), "-p", "1", "--no-embeddings", *TINY])
    code, text, _ = run(benchmark.main, "masks", "--data", store, "-o", out)
    assert code == 0 and text.startswith(f"6 mixtures of {store}, n_fft 256, hop 128")
    mixture, magnitude, ratio, phase, whole, decibels = (row["si_sdr"] for row in read_json(out)["rows"])
    assert whole > phase > magnitude > mixture + 5
    assert magnitude > decibels > mixture and ratio > mixture + 5
    code, _, err = run(benchmark.main, "masks")
    assert code == 2 and "name a store with --data" in err


@pytest.mark.parametrize("more", [[], ["store.kind=wave"], ["data.mode=live"]])
def test_a_step_is_timed_on_any_store(
    run: Callable[..., tuple[int, str, str]],
    corpus_folder: Path,
    embedder_file: Path,
    tmp_path: Path,
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_benchmark, "plain_seconds", lambda *arguments: 1.0)
    monkeypatch.setattr(trainer_benchmark, "MATRIX", 64)
    made = ["-d", str(corpus_folder), "-o", str(tmp_path / "s"), "-p", "1", "-e", str(embedder_file)]
    generator.main([*made, *TINY, *more])
    given = ["--data", tmp_path / "s", "-e", embedder_file, "--steps", 1, "-o", tmp_path / "t.json"]
    code, text, err = run(benchmark.main, "trainer", *given, *TINY, *more)
    assert code == 0 and "batch 4, 189 frames x 129 bins" in text, err
    assert read_json(tmp_path / "t.json")["peak_memory_mb"] > 50
    code, _, err = run(benchmark.main, "trainer", *given, "-o", tmp_path / "s")
    assert code == 2 and "is a folder" in err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")
def test_the_memory_of_a_command_is_its_own() -> None:
    """Not what this process held when it started it."""
    assert peak_memory() > 100e6
    for megabytes in (0, 200):
        code = f"import time; held = b'x' * {megabytes}_000_000; time.sleep(0.5); del held; time.sleep(0.3)"
        with subprocess.Popen([sys.executable, "-c", code]) as child:
            watch = Watch(child.pid, time.perf_counter())
            child.wait()
            watch.stop()
        assert watch.peak is not None and megabytes * 1e6 < watch.peak < (megabytes + 60) * 1e6
        assert watch.curve and max(held for _, held in watch.curve) <= watch.peak
