"""Tables of papers: their plans, and one of them from the data to the figures."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reproduce
from config.load import load_config
from scripts.cost import example_bytes, forward_operations, hours_and_bytes
from scripts.tables import COLUMNS, TABLES, Table
from tests.conftest import write_librispeech

ROOT = Path(__file__).parents[1]
Runner = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("scale", ["full", "tiny", "smallest"])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_plan(run: Runner, tmp_path: Path, name: str, scale: str) -> None:
    sounds = [part for kind in TABLES[name].needs for part in (f"--{kind}", tmp_path)]
    out = tmp_path / "out"
    code, plan, err = run(
        reproduce.main, name, "-d", tmp_path, *sounds, "--scale", scale, "-o", out, "--dry-run"
    )
    assert code == 0, err
    table = TABLES[name]
    assert not out.exists() and " of a GPU" in plan and "GB" in plan
    assert plan.count("python evaluate.py") == len(table.rows) * len(table.protocols) * max(
        1, len(table.seeds)
    )
    assert plan.count("python trainer.py") == len({row.run for row in table.rows}) + bool(table.embedder)
    assert ("train.seeds=[1, 2, 3]" in plan) == bool(table.seeds)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_columns_are_known(table: Table) -> None:
    assert set(table.columns) <= set(COLUMNS)
    for row in table.rows:
        assert set(row.published) <= set(table.columns)


def test_costs_are_those_of_the_sizes() -> None:
    config = load_config(
        None,
        [
            "network={kind: film_blstm, front_dim: 8, lstm_dim: 4, lstm_layers: 1}",
            "train.steps=10",
            "data.train=7",
        ],
    )
    frames, bins = 301, 601
    weights = bins * 8 + 8 * bins + 2 * 4 * 4 * (8 + 4)  # front, out, an LSTM of two directions
    film = 2 * 256 * 16
    assert forward_operations(config) == pytest.approx(2 * frames * weights + film, rel=0.02)
    cost = hours_and_bytes([(config, 3)])
    assert cost.operations == pytest.approx(3 * 3 * 80 * forward_operations(config))
    assert cost.bytes == pytest.approx(7 * example_bytes(config)) and example_bytes(config) == pytest.approx(
        5 * 300 * 601
    )


def test_what_cannot_be_made_is_refused(run: Runner, tmp_path: Path) -> None:
    heard = tmp_path / "heard.csv"
    heard.write_text("index,condition,text\n0,noisy,one\n")
    sounds = ["--noise", tmp_path, "--music", tmp_path]
    for arguments, words in (
        (["unconditioned", "-d", tmp_path], "name a folder of it with --noise"),
        (["reverse", "-d", tmp_path / "gone"], "gone: no such folder"),
        (["reverse", "-d", tmp_path, "network.lstm_dmi=3", "--dry-run"], "network.lstm_dmi"),
        (["voicefilter", "-d", tmp_path, "--tuples", tmp_path / "t.csv", "--dry-run"], "no such tuple list"),
        (["voicefilter", "-d", tmp_path, "--recognizer", "bogus", "--dry-run"], "recogniser 'bogus'"),
        (["voicefilter", "-d", tmp_path, "--recognizer", f"file:{heard}", "--dry-run"], "of one system"),
        (["voicefilter", "-d", tmp_path, "--device", "cuda:99", "--dry-run"], "cuda"),
        (["unconditioned", "-d", tmp_path, *sounds, "--tuples", heard, "--dry-run"], "has none"),
    ):
        code, _, err = run(reproduce.main, *arguments)
        assert code == 2 and words in err


def test_a_table_is_made_and_goes_on_after_a_kill(embedder_file: Path, tmp_path: Path) -> None:
    corpus = write_librispeech(tmp_path / "corpus", speakers=12, utterances=3)
    given = [
        sys.executable, str(ROOT / "reproduce.py"), "reverse", "-d", str(corpus), "--scale", "smallest",
        "-o", str(tmp_path / "out"), "-e", str(embedder_file),
        "data.validation.speakers=0.2", "data.test.speakers=0.2",
    ]  # fmt: skip
    options: dict[str, Any] = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE}
    folder = tmp_path / "out/reverse-smallest"
    with subprocess.Popen(
        given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as first:
        deadline = time.monotonic() + 240
        while len(list(folder.glob("done/*"))) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=60)[0]
    finished = len(list(folder.glob("done/*")))
    assert first.returncode == 143 and 2 <= finished < 8 and not (folder / "table.md").exists(), said
    again = subprocess.run(given, stderr=subprocess.PIPE, timeout=400, **options)
    assert again.returncode == 0, again.stderr
    assert "[1/8]" not in again.stdout and f"[{finished + 1}/8]" in again.stdout
    table = (folder / "table.md").read_text()
    assert table.count("| trained to") == 3 and "4 mixtures of" in table and "nothing else" in table
    assert f"Corpus {corpus}" in table and "have one utterance" not in table
    third = subprocess.run(given, timeout=100, **options)
    assert third.returncode == 0 and "[" not in third.stdout.splitlines()[0]
    assert table in third.stdout
