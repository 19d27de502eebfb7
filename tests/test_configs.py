"""Every separator's configuration that is shipped: it loads, builds, steps, and learns real speech."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import generator
import trainer
from config.load import CONFIG_FOLDER, load_config
from model.foreign import load_embedder
from model.objective import SeparatorObjective
from model.optimization import make_optimizer, parameter_group
from model.separator import Separator
from tests.conftest import SHARED, tone_voice

CONFIGS = sorted(CONFIG_FOLDER.glob("*.yaml"))
SHIPPED = {
    "voicefilter", "voicefilter-lstm", "voicefilter-nolstm", "mindslab", "voicesplit", "srl-reference",
    "srl-clean", "triplet-srl-reference", "triplet-srl-clean", "reverse", "denoise", "lite", "unet-singing",
    "compact", "band-split",
}  # fmt: skip
SMALL = {
    "voicefilter": ["network.channels=4", "network.lstm_dim=32", "network.fc1_dim=64"],
    "film_blstm": ["network.lstm_dim=64"],
    "blind_blstm": ["network.lstm_dim=64", "network.choice_dim=32"],
    "band_split": ["network.dim=32", "network.lstm_dim=32", "network.blocks=2"],
    "ensemble": [
        "network.members=[{kind: film_blstm, lstm_dim: 64}, "
        "{kind: band_split, dim: 16, lstm_dim: 16, blocks: 2}]"
    ],
    "lite": ["network.lstm_dim=64", "network.lstm_layers=1"],
    "unet": ["network.channels=[8, 16, 32]"],
}
NOW = ["loss.srl.start_epoch=0", "loss.triplet_srl.start_epoch=0"]
"""What starts after some epochs would raise the loss on its way down."""


def test_all_that_is_promised_is_shipped() -> None:
    assert {path.stem for path in CONFIGS} >= SHIPPED
    for path in CONFIGS:
        headline, lines = [], path.read_text().splitlines()
        while lines and lines[0].startswith("#"):
            headline.append(lines.pop(0))
        assert any("python trainer.py" in line or "make demo" in line for line in headline), path
        (expected,) = [line for line in headline if "Expected:" in line]
        assert re.search(r"day|hour|minute", expected) and re.search(r"\d", expected), path
        assert len([line for line in lines if not line.strip().startswith("#")]) <= 21, path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_steps_at_its_full_size(path: Path, embedder_file: Path) -> None:
    config = load_config(path, [*NOW, "train.precision=fp32"])
    torch.manual_seed(0)
    conditioned = config.network.embedding == "reference"
    separator = Separator(config, load_embedder(str(embedder_file)) if conditioned else None)
    objective = SeparatorObjective(separator, embedder_learns=False).train()
    optimizer = make_optimizer([parameter_group(separator.network.parameters())], config.train)
    rate = config.audio.sample_rate
    target, other = (torch.from_numpy(np.stack([tone_voice(v, 0.5, 0, rate)] * 2)) for v in (0, 3))
    batch = {
        "mixture_wave": target + other,
        "target_wave": target,
        "embedding": torch.nn.functional.normalize(torch.randn(2, 256), dim=1),
        "other_voice": torch.ones(2),
    }
    before = {name: p.detach().clone() for name, p in separator.network.named_parameters()}
    values = objective(batch)
    weights = config.loss.weights
    asked = {name for name in values if name not in ("loss", "own_loss")}
    assert asked == {name for name in weights if weights[name]}
    values["loss"].backward()
    optimizer.step()
    assert all(value.isfinite() for value in values.values())
    for name, parameter in separator.network.named_parameters():
        assert parameter.isfinite().all()
        assert (
            parameter.grad is None or not torch.equal(parameter, before[name]) or not parameter.grad.any()
        ), name
    separator.eval()
    estimate = separator.separate_channels(batch["mixture_wave"][:1].numpy(), batch["embedding"][:1])
    assert estimate.shape == batch["mixture_wave"][:1].shape and np.isfinite(estimate).all()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_twenty_steps_on_real_speech_lower_the_loss(
    path: Path,
    run: Callable[..., tuple[int, str, str]],
    shared_librispeech: Path,
    embedder_file: Path,
    tmp_path: Path,
) -> None:
    """Narrow networks, one batch of the excerpt again and again; their full sizes: docs/experiments.md."""
    config = load_config(path)
    small = [
        "-c", path, "-e", embedder_file, *SMALL[config.network.kind], *NOW, "data.train=2",
        "data.seconds=1.0",
        "data.protocol=crop", "data.validation={examples: 6, speakers: 0.1, speaker_ids: null}",
        "data.test={examples: 1, speakers: 0.1, speaker_ids: null}", "train.batch_size=2", "train.steps=20",
        "train.validate_every=20", "train.log_every=1", "train.warmup_steps=1", "train.schedule=constant",
        "train.decay=null", "train.epochs=null", "data.speeds=[1.0]", "data.paired=false",
        "data.mode=stored", "data.kinds={mixture: 1, target_alone: 0, target_absent: 0}", "train.ema=null",
    ]  # fmt: skip
    small += [f"data.{kind}=[{SHARED / 'noise'}]" for kind in ("noise", "music") if config.data.needs(kind)]
    corpus, store = shared_librispeech / "train-clean-100", tmp_path / "s"
    assert run(generator.main, *small, "-d", corpus, "-o", store, "-p", "1", "--no-embeddings")[0] == 0
    code, _, err = run(trainer.main, *small, "-b", tmp_path, "-m", "m", f"store.folder={store}")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "logs/m/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["group"] == "train"]
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
