from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config.load import CONFIG_FOLDER, differences, load_any_config, load_config, read_yaml
from model.dvector import DVector
from model.separator import Separator
from utils.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_loads_and_builds(path: Path) -> None:
    separator = Separator(load_config(path), DVector(hidden=8))
    assert sum(p.numel() for p in separator.network.parameters()) > 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lerning_rate=1", ["train.lerning_rate", "did you mean 'train.learning_rate'"]),
        ("train.batch_size=2.5", ["train.batch_size", "integer", "2.5"]),
        ("train.batch_size=0", ["train.batch_size", "greater than or equal to 1", "got 0"]),
        ("train.batch_size=four", ["train.batch_size", "'four'"]),
        (
            "network={kind: unett}",
            [
                "network.kind",
                "band_split, blind_blstm, ensemble, film_blstm, lite, onnx, unet, voicefilter",
                "'unett'",
            ],
        ),
        ("network={kind: film_blstm, lstm_dmi: 3}", ["network.lstm_dmi", "did you mean 'network.lstm_dim'"]),
        ("network.lstm=both", ["network.lstm", "'both'"]),
        ("audio.hop_length=9000", ["hop_length 9000", "win_length 400"]),
        ("data.snr_db=.nan", ["data.snr_db", "finite number"]),
        ("data.seconds=1e-9", ["greater than or equal to 0.1"]),
        ("loss.srl.anchor=clean", ["anchor clean", "no effect without beta"]),
        ("loss.asymmetric_alpha=3", ["asymmetric_alpha 3", "no effect without asymmetric"]),
        ("nonsense", ["train.batch_size=4"]),
        ("trian.steps=3", ["unknown key 'trian'", "did you mean 'train'"]),
        ("train=[1", ["YAML"]),
        ("film_blstm.lstm_dim=64", ["unknown key 'film_blstm'"]),
        ("network.lite.lstm_dim=3", ["unknown key 'network.lite'"]),
        ("store.folder={{DIR}}", ["YAML"]),
        ("store.folder=2024-13-01", ["YAML"]),
        (
            "network={kind: ensemble, members: [{kind: film_blstm}, {kind: lite}]}",
            [
                "network.members.1.kind",
                "expected one of band_split, blind_blstm, film_blstm, unet, voicefilter",
                "got 'lite'",
            ],
        ),
    ],
)
def test_a_wrong_option_is_refused_with_its_key(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["store.kind=wave", "train.best=loss", "loss.srl={beta: 1, start_step: 9}"], "train.best loss"),
        (["data.reverse=true", "network.embedding=none"], "data.reverse"),
    ],
)
def test_options_that_exclude_each_other_are_refused(overrides: list[str], words: str) -> None:
    load_config(None, overrides[:-1])
    with pytest.raises(UserError, match=words):
        load_config(None, overrides)


def test_an_ablation_of_a_shipped_configuration_may_switch_a_criterion_off() -> None:
    config = load_config("config/srl-clean.yaml", ["loss.srl.beta=0"])
    assert not config.loss.needs_embedder and config.loss.srl.anchor == "clean"


def test_scientific_notation_is_a_number_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {learning_rate: 1e-3, batch_size: 2}\n")
    (tmp_path / "child.yaml").write_text("base: base.yaml\ntrain:\n  batch_size: 3\n")
    train = load_config(tmp_path / "child.yaml", ["train.steps=5"]).train
    assert (train.learning_rate, train.batch_size, train.steps) == (0.001, 3, 5)


def test_the_order_of_overrides_does_not_matter() -> None:
    for order in (
        ["network.kind=film_blstm", "network.lstm_dim=64"],
        ["network.lstm_dim=64", "network.kind=film_blstm"],
    ):
        assert load_config("config/voicefilter.yaml", order).network.lstm_dim == 64


def test_the_usual_kind_named_by_an_override_keeps_the_file_s_options(tmp_path: Path) -> None:
    for task, kind, option in (("separator", "voicefilter", "fc1_dim"), ("embedder", "dvector", "hidden")):
        path = tmp_path / f"{task}.yaml"
        path.write_text(f"task: {task}\nnetwork: {{{option}: 10}}\n")
        assert getattr(load_any_config(path, [f"network.kind={kind}"]).network, option) == 10


def test_another_project_s_configuration_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  audio_len: 3.0\n---\naudio:\n  n_fft: 1200\n  num_freq: 601 # n_fft//2 + 1\n")
    with pytest.raises(UserError, match=r"is of the public re-implementation .* config/mindslab.yaml"):
        load_config(path)


def test_another_kind_of_network_drops_the_base_s_options(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("network: {kind: film_blstm, stack: 2}\n")
    (tmp_path / "child.yaml").write_text("base: base.yaml\nnetwork: {kind: voicefilter, fc1_dim: 10}\n")
    assert load_config(tmp_path / "child.yaml").network.kind == "voicefilter"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: self.yaml\n", "leads back"),
        ("base: 3\n", "expected a file name"),
        ("train: {steps: 1}\ntrain: {steps: 2}\n", "stands twice"),
        ("- a\n", "holds a list"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_yaml(path)
    assert "self.yaml" in str(error.value)


def test_a_missing_file_suggests_a_shipped_one() -> None:
    with pytest.raises(UserError, match=r"did you mean 'config/compact.yaml'"):
        load_config("config/compakt.yaml")


def test_differences_are_named_by_dotted_key() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]


def test_defaults_survive_a_round_trip_through_a_checkpoint(tmp_path: Path) -> None:
    separator = Separator(load_config("config/compact.yaml"), DVector(hidden=8))
    torch.save(separator.content(), tmp_path / "x.pt")
    assert Separator.load(tmp_path / "x.pt").config == separator.config


def test_merge_keys_bring_an_anchor_s_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "data:\n  validation: &few {examples: 7, speakers: 0.2}\n  test:\n    <<: *few\n    examples: 9\n"
    )
    config = load_config(path)
    assert (config.data.validation.examples, config.data.test.examples) == (7, 9)
    assert config.data.test.speakers == 0.2


def test_a_section_s_kind_chooses_its_options_only_where_options_depend_on_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("store: {kind: stft, shard_size: 7}\nnetwork: {kind: voicefilter, channels: 3}\n")
    config = load_config(path, ["store.kind=wave", "network.kind=film_blstm"])
    assert (config.store.kind, config.store.shard_size, config.network.kind) == ("wave", 7, "film_blstm")


SIGNALLED = """
import signal
import torch
from config.load import run_script

def main():
    arrived = []
    signal.signal(signal.SIGALRM, lambda *_: arrived.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    lstm = torch.nn.LSTM(40, 256, 2, batch_first=True)
    for frames in range(50, 65):
        lstm(torch.randn(12, frames, 40))[0].sum().backward()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 7 if arrived else 1

run_script(main)
"""


def test_signals_in_a_backward_pass_leave_the_memory_alone() -> None:
    """On a CPU with AVX-512, without a stack of their own, twelve of twelve such runs were aborted."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
