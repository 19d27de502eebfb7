"""The tables that reproduce.py makes: their rows, what is trained for them, and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["full", "tiny", "smallest"]
SCALES: tuple[Scale, ...] = ("full", "tiny", "smallest")


@dataclass(frozen=True)
class TableRow:
    """A row: the network of `config` with `overrides`, scored with `mask`; rows of the same `run` share it.

    `published`: the paper's figures by column.
    """

    label: str
    run: str
    config: str
    overrides: tuple[str, ...] = ()
    mask: str = "org"
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """What is made for a table.

    `columns`: some of COLUMNS. `protocols`: how the test mixtures are cut. `small`: overrides that shrink the
    networks below full scale; `seeds` at every scale. `embedder`: its configuration, where the paper trains
    one of its own. `needs`: sounds besides speech. `words`: word error rates, of the protocol padded. `vctk`:
    the paper tests on people of that corpus.
    """

    title: str
    source: str
    rows: tuple[TableRow, ...]
    columns: tuple[str, ...]
    baseline: Mapping[str, str]
    protocols: tuple[str, ...] = ("padded",)
    small: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    embedder: str | None = None
    needs: tuple[str, ...] = ()
    metrics: str = "sdr,si_sdr,similarity,similarity_other"
    words: bool = False
    note: str = ""
    vctk: bool = False


COLUMNS = {
    "SDR mean": "sdr_after_mean",
    "SDR median": "sdr_after_median",
    "SDR improvement": "sdr_improvement_mean",
    "SI-SDR improvement": "si_sdr_improvement_mean",
    "PESQ improvement": "pesq_wb_improvement_mean",
    "> 1 dB, %": "accepted_share",
    "wrong voice, %": "wrong_voice_share_after",
    "WER clean": "enhanced_clean",
    "WER noisy": "enhanced",
}
BEFORE = {
    "SDR mean": "sdr_before_mean",
    "SDR median": "sdr_before_median",
    "WER clean": "clean",
    "WER noisy": "noisy",
}
"""Of the unprocessed mixture, whose improvements are nothing."""

CNN = ("network.channels=8", "network.lstm_dim=48", "network.fc1_dim=64")
RECALLED = "Word error rates with a * are given as they are remembered of the paper, not looked up again."
VOICEFILTER = (
    ("no LSTM", "voicefilter-nolstm", ("11.9", "9.7", "12.2*", "35.3*")),
    ("LSTM", "voicefilter-lstm", ("15.6", "11.3", "12.2*", "28.2*")),
    ("bi-LSTM", "voicefilter", ("17.9", "12.6", "11.1*", "23.4")),
)
OF_VOICEFILTER = ("SDR mean", "SDR median", "WER clean", "WER noisy")
SRL = {
    "VoiceFilter": (
        "srl-reference",
        ("loss.srl.beta=0", "loss.srl.start_epoch=0"),
        "4.617 +- 0.047",
        "0.526 +- 0.001",
    ),
    "+ SRL, reference anchor": ("srl-reference", (), "4.960 +- 0.031", "0.587 +- 0.002"),
    "+ SRL, clean anchor": ("srl-clean", (), "4.996 +- 0.028", "0.593 +- 0.002"),
    "+ triplet SRL, reference anchor": ("triplet-srl-reference", (), "4.953 +- 0.019", "0.592 +- 0.001"),
    "+ triplet SRL, clean anchor": ("triplet-srl-clean", (), "5.028 +- 0.024", "0.598 +- 0.002"),
}

TABLES = {
    "voicefilter": Table(
        "VoiceFilter on LibriSpeech",
        "arXiv 1810.04826",
        tuple(
            TableRow(label, name, name, published=dict(zip(OF_VOICEFILTER, found, strict=True)))
            for label, name, found in VOICEFILTER
        ),
        OF_VOICEFILTER,
        {"SDR mean": "10.1", "SDR median": "2.5", "WER clean": "10.9*", "WER noisy": "55.9"},
        protocols=("padded", "crop"),
        small=CNN,
        words=True,
        note="The paper's recogniser and training set are Google's own: its word error rates cannot be "
        f"compared, and it trained on 2,338 speakers. Its figures are of the protocol padded. {RECALLED}",
    ),
    "voicefilter-vctk": Table(
        "VoiceFilter, trained and tested on VCTK",
        "arXiv 1810.04826",
        (
            TableRow("bi-LSTM", "voicefilter", "voicefilter",
                     published={"WER clean": "21.1*", "WER noisy": "37.0*"}),
        ),
        OF_VOICEFILTER,
        {"WER clean": "6.1*", "WER noisy": "60.6*"},
        protocols=("padded", "crop"),
        small=CNN,
        words=True,
        vctk=True,
        note="The paper's word error rates for VCTK are of Google's recogniser; it gives no SDR. Trained on "
        f"LibriSpeech, its network has 5.9* and 34.3* there. {RECALLED}",
    ),
    "srl": Table(
        "Speaker representation loss",
        "arXiv 1911.02411",
        tuple(
            TableRow(label, config + ("-plain" if changes else ""), config, changes,
                     published={"SDR improvement": sdr, "PESQ improvement": pesq})
            for label, (config, changes, sdr, pesq) in SRL.items()
        ),
        ("SDR improvement", "PESQ improvement"),
        {},
        protocols=("crop",),
        small=(*CNN, "loss.srl.start_epoch=0", "loss.triplet_srl.start_epoch=0", "train.patience=null"),
        seeds=(1, 2, 3),
        embedder="embedder/vggm",
        metrics="sdr,si_sdr,pesq_wb",
        vctk=True,
        note="Published for VCTK (mixture: SDR 6.001 dB, PESQ 2.059), with an embedder trained on VoxCeleb2.",
    ),
    "reverse": Table(
        "Reverse VoiceFilter: three ways of removing a voice",
        "the reverse fork of the public re-implementation, which published no table",
        (
            TableRow("trained to remove it", "reverse", "reverse"),
            TableRow("trained to keep it, mixture minus estimate (inv_sub)", "forward", "reverse",
                     ("data.reverse=false",), mask="inv_sub"),
            TableRow("trained to keep it, divided by the mask (inv_div)", "forward", "reverse",
                     ("data.reverse=false",), mask="inv_div"),
        ),
        ("SDR mean", "SDR improvement", "SI-SDR improvement", "> 1 dB, %"),
        {},
        protocols=("crop",),
        small=CNN,
    ),
    "identity": Table(
        "Identity-conditioned U-Net for singing voices",
        "AudioIdentitySpeechSeparation, after Y-Net (arXiv 2104.09946)",
        (TableRow("U-Net with FiLM", "unet-singing", "unet-singing"),),
        ("SDR mean", "SDR improvement", "SI-SDR improvement", "> 1 dB, %"),
        {},
        protocols=("crop",),
        small=("network.channels=[8, 16, 32]",),
        note="No figure of this task was published with its code.",
    ),
    "unconditioned": Table(
        "Speech out of noise, music and babble, without a reference",
        "SpeechExtractor",
        (TableRow("the same network without a d-vector", "denoise", "denoise"),),
        ("SDR mean", "SDR improvement", "SI-SDR improvement", "> 1 dB, %"),
        {},
        protocols=("crop",),
        small=(*CNN, "data.babble_voices=3"),
        needs=("noise", "music"),
        metrics="sdr,si_sdr,stoi",
        note="No figure of this task was published with its code.",
    ),
}  # fmt: skip

EXAMPLES: dict[Scale, tuple[int, int]] = {"full": (0, 0), "tiny": (160, 12), "smallest": (12, 4)}
"""Of training and of test mixtures below full scale."""
STEPS: dict[Scale, int] = {"full": 0, "tiny": 60, "smallest": 2}


def shrunk(scale: Scale, table: Table, separator: bool = True) -> Sequence[str]:
    """Overrides of a scale, for the networks of a table or for its embedder."""
    if scale == "full":
        return ()
    steps = STEPS[scale]
    often = [
        f"train.steps={steps}",
        f"train.validate_every={steps}",
        f"train.save_every={max(1, steps // 4)}",
    ]
    if not separator:
        frames = ["train.speakers=4", "train.utterances=1", "train.frames=[100, 100]", "train.workers=0"]
        held_out = "data.validation={speakers: 0.05}"
        return [*often, *frames, held_out, "train.warmup_steps=0", "network.n_fft=512", "network.dim=64"]
    train, test = EXAMPLES[scale]
    seconds = 1.5 if scale == "tiny" else 1.0
    held_out = f"examples: {max(4, test // 2)}, speakers: 0.05"
    return [
        *often, *table.small, f"data.validation={{{held_out}}}", f"data.train={train}",
        f"data.seconds={seconds}", "train.batch_size=4", "store.shard_size=200", "train.pages=0",
        "train.schedule=constant", "train.decay=null", "train.epochs=null", "train.log_every=5",
    ]  # fmt: skip
