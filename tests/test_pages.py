"""What a run leaves in its log: pages to look at and to hear, speed, configuration, versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import generator
import trainer
from config.load import load_config
from model import validation
from model.pages import choose_rows
from model.scoring import score_outputs
from model.separator_task import SeparatorTask
from tests.conftest import TINY
from utils.logger import RunLogger, Speed


def test_pages_are_of_the_hardest_the_middle_and_the_easiest_mixture() -> None:
    scores = {"si_sdr": np.array([3.0, -2.0, 9.0, 0.0, 5.0, -99.0])}
    roles = ["mixture"] * 5 + ["absent"]
    assert choose_rows(scores, roles, 3) == [1, 0, 2]
    assert choose_rows(scores, roles, 5) == [1, 3, 0, 4, 2]
    assert choose_rows(scores, roles, 1) == [0]
    assert choose_rows(scores, roles, 0) == []
    assert sorted(choose_rows(scores, roles, 50)) == [0, 1, 2, 3, 4]


def test_a_run_can_be_seen_and_heard(corpus_folder: Path, embedder_file: Path, tmp_path: Path) -> None:
    store = ["-d", str(corpus_folder), "-o", str(tmp_path / "store"), "-p", "1", "-e", str(embedder_file)]
    assert generator.main([*store, *TINY]) == 0
    run = ["-m", "m", "-b", str(tmp_path), "-e", str(embedder_file), *TINY]
    assert trainer.main([*run, f"store.folder={tmp_path / 'store'}", "train.pages=2"]) == 0
    logs = tmp_path / "logs/m"
    board = EventAccumulator(str(logs), size_guidance={"images": 0, "audio": 0})
    board.Reload()
    pages = [tag for tag in board.Tags()["images"] if "example-" in tag]
    assert len(pages) == 2
    assert [event.step for event in board.Images(pages[0])] == [3, 6]  # at every validation
    sounds = board.Tags()["audio"]
    assert len(sounds) == 6 and {tag.split("/")[-1] for tag in sounds} == {"mixture", "target", "estimate"}
    estimate, mixture = (next(t for t in sounds if t.endswith(kind)) for kind in ("estimate", "mixture"))
    assert len(board.Audio(estimate)) == 2 and len(board.Audio(mixture)) == 1  # what does not change, once
    steps = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    training = [record for record in steps if record["group"] == "train"]
    assert len(training) == 6
    for record in training:
        assert record["examples_per_second"] > 0 and 0 <= record["input_wait_share"] <= 1
        assert record["gradient_norm"] > 0 and record["learning_rate"] == 1e-3
    validation = [record for record in steps if record["group"] == "validation"]
    for name in ("loss", "si_sdr", "sdr_after_median", "sdr_improvement_mean", "accepted_share"):
        assert all(np.isfinite(record[name]) for record in validation), name
    config = yaml.safe_load((logs / "config.yaml").read_text())
    assert config["train"]["pages"] == 2 and config["audio"]["n_fft"] == 256
    versions = json.loads((logs / "versions.json").read_text())
    assert len(versions) == 1 and versions[0]["torch"] and versions[0]["device"] and "commit" in versions[0]


def test_a_changed_configuration_is_kept_beside_the_old_one(tmp_path: Path) -> None:
    for step, rate in ((0, 1.0), (7, 1.0), (9, 2.0)):
        log = RunLogger(tmp_path, step)
        log.describe({"rate": rate}, "cpu")
        log.close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"rate": 2.0}
    assert yaml.safe_load((tmp_path / "config-until-9.yaml").read_text()) == {"rate": 1.0}
    assert not (tmp_path / "config-until-7.yaml").exists()


def test_a_record_that_was_cut_is_dropped(tmp_path: Path) -> None:
    whole = [{"step": step, "group": "train", "loss": 0.5} for step in (1, 2, 3)]
    lines = [json.dumps(record) for record in whole]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "gro')
    RunLogger(tmp_path, 2).close()
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 2]


def test_speed_counts_what_all_ranks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("utils.logger.time.monotonic", lambda: now[0])

    def batches():  # type: ignore[no-untyped-def]
        while True:
            now[0] += 1.0  # of reading
            yield {"mixture": np.zeros((4, 2))}

    speed = Speed(ranks=2)
    found = speed.timed(batches())
    for _ in range(3):
        next(found)
        now[0] += 3.0  # of computing
    with speed.paused():
        now[0] += 50.0
    assert speed.read() == pytest.approx({"examples_per_second": 2 * 3 * 4 / 12, "input_wait_share": 3 / 12})


LITE = [
    "network={kind: lite, channels: 2, lstm_dim: 8, noise_type_dim: 4, suppression: adaptive, offset: 0.3}",
    "loss.noise_type=0.1",
]


@pytest.mark.parametrize("network", [[], LITE], ids=["tiny", "lite"])
def test_a_validation_scores_what_an_evaluation_scores(
    network: list[str], corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    store = ["-d", str(corpus_folder), "-o", str(tmp_path), "-p", "1", "-e", str(embedder_file)]
    options = [*(o for o in TINY if not (network and o.startswith("network"))), *network]
    assert generator.main([*store, *options]) == 0
    config = load_config(None, [*options, f"store.folder={tmp_path}", "train.precision=fp32"])
    task = SeparatorTask(config.model_copy(update={"embedder": str(embedder_file)}), torch.device("cpu"))
    validated = task.validate().summary
    split = task.store.split("validation")
    separator, vectors = task.separator, torch.from_numpy(task._validation_embeddings)

    def separate(mixture: torch.Tensor, rows: list[int]) -> torch.Tensor:
        return torch.from_numpy(separator.separate_channels(mixture.numpy(), vectors[rows]))

    scores = score_outputs(split, separate, "evaluate")
    for name in ("sdr", "si_sdr"):
        assert validated[f"{name}_after_mean"] == pytest.approx(float(np.mean(scores[name])), abs=1e-3), name


def test_long_examples_are_validated_as_files_are_separated(
    corpus_folder: Path, embedder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ["-d", str(corpus_folder), "-o", str(tmp_path), "-p", "1", "-e", str(embedder_file)]
    assert generator.main([*store, *TINY]) == 0
    config = load_config(None, [*TINY, f"store.folder={tmp_path}"])
    task = SeparatorTask(config.model_copy(update={"embedder": str(embedder_file)}), torch.device("cpu"))
    whole = task.validate().summary
    monkeypatch.setattr(validation, "LONGEST", 1)  # of 1.5 s
    pieces = task.validate().summary
    for name, value in whole.items():
        if name not in ("loss", "power_law", "si_sdr"):  # of the first part alone
            assert pieces[name] == pytest.approx(value, abs=1e-3), name
    assert pieces["loss"] != whole["loss"]
