"""Ideal masks bound what a separator can reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import benchmark
import generator
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
