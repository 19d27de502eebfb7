"""What the configurations of all trainings have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from utils.codecs import CODECS


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def require_switch(options: BaseModel, switch: str, *belonging: str) -> None:
    """Raises ValueError for options that were given while the one that gives them an effect was not, and is
    off."""
    given, fields = options.model_fields_set, type(options).model_fields
    if switch not in given and not getattr(options, switch):
        for name in belonging:
            if name in given and getattr(options, name) != fields[name].default:
                raise ValueError(f"{name} {getattr(options, name)}: has no effect without {switch}")


def _in_order(value: float | list[float]) -> float | list[float]:
    if isinstance(value, list) and (len(value) != 2 or value[0] > value[1]):
        raise ValueError("expected one number or [low, high]")
    if any(abs(level) > 100 for level in (value if isinstance(value, list) else [value])):
        raise ValueError("expected -100 to 100 dB")
    return value


def _known_codec(name: str) -> str:
    if name not in CODECS:
        raise ValueError(f"{name}: expected one of {', '.join(CODECS)}")
    return name


CodecName = Annotated[str, AfterValidator(_known_codec)]
Level = Annotated[float | list[float], AfterValidator(_in_order)]
"""A level or ratio in dB: one number, or a range to draw from uniformly."""


def with_default_kind(tree: Any, kind: str) -> Any:
    """`network.lstm_dim=200` alone speaks of the default network."""
    network = tree.get("network") if isinstance(tree, dict) else None
    if isinstance(network, dict) and "kind" not in network:
        return {**tree, "network": {"kind": kind, **network}}
    return tree


class HeldOut(Options):
    """Speakers that are not trained on: a share of all (at least two), these ids, or these subsets.

    `subsets` are the corpus' own divisions, such as LibriSpeech's `dev-clean`.
    """

    speakers: float = Field(0.1, gt=0, lt=1)
    speaker_ids: list[str] | None = None
    subsets: list[str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> HeldOut:
        if self.speaker_ids is not None and self.subsets is not None:
            raise ValueError("speaker_ids and subsets both choose the speakers: give one of them")
        return self


class Corpora(Options):
    """`corpus`, `noise`, `music` and `rirs` name folders (datasets/layouts.py draws the trees). `check` full
    decodes every file once and knows where it is silent; quick reads headers and ends. `subsets` restricts
    the corpus to some of its own divisions. `seed` decides who is held out, and everything that is drawn."""

    corpus: list[str] = Field(default_factory=list)
    noise: list[str] = Field(default_factory=list)
    music: list[str] = Field(default_factory=list)
    rirs: list[str] = Field(default_factory=list)
    check: Literal["full", "quick"] = "full"
    subsets: list[str] | None = None
    seed: int = Field(0, ge=0)


def check_frames(hop_length: int, win_length: int, n_fft: int) -> None:
    """Raises ValueError unless an STFT of these has overlapping windows that fit into its frames, of even
    length."""
    if n_fft % 2:
        raise ValueError(f"n_fft {n_fft}: expected an even number")
    if not hop_length < win_length <= n_fft:
        raise ValueError(f"hop_length {hop_length} < win_length {win_length} <= n_fft {n_fft} must hold")


class Background(Options):
    """Beside the interferers, a share of the examples has noise or music, or both, behind everything."""

    noise: float = Field(0.0, ge=0, le=1)
    music: float = Field(0.0, ge=0, le=1)
    snr_db: Level = Field(default_factory=lambda: [5.0, 20.0])


class Reverberation(Options):
    """A share of the examples sounds in a room: a measured impulse response, or a simulated shoebox.

    `rt60` in seconds and `size` (length and width; the height is 2.4 to 3.5) in metres are ranges. The
    target keeps its reverberation, or (`target: early`) only the first 50 ms after the direct sound.
    """

    share: float = Field(0.0, ge=0, le=1)
    rooms: Literal["simulated", "measured"] = "simulated"
    rt60: list[Annotated[float, Field(gt=0.05, le=1)]] = Field([0.15, 0.6], min_length=2, max_length=2)
    size: list[Annotated[float, Field(ge=2, le=50)]] = Field([3.0, 8.0], min_length=2, max_length=2)
    target: Literal["reverberant", "early"] = "reverberant"

    @model_validator(mode="after")
    def _in_order(self) -> Reverberation:
        for name in ("rt60", "size"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected [low, high], got {[low, high]}")
        return self


class Equalization(Options):
    """A share of the sources sounds through another microphone: gains drawn from -`range_db` to `range_db` at
    the octaves from 125 Hz, interpolated between them. References stay as they were recorded."""

    share: float = Field(0.0, ge=0, le=1)
    range_db: float = Field(6.0, gt=0, le=40)


class Coding(Options):
    """A share of the sources comes out of a lossy codec (behind its microphone, before its room), drawn from
    `codecs`. References stay as they were recorded."""

    share: float = Field(0.0, ge=0, le=1)
    codecs: list[CodecName] = Field(list(CODECS), min_length=1)

    @model_validator(mode="after")
    def _has_an_effect(self) -> Coding:
        require_switch(self, "share", "codecs")
        return self


def check_sounds(corpora: Corpora, sounds: Iterable[str], room: Reverberation) -> None:
    """Raises ValueError where `sounds` (noise, music) or measured rooms are drawn from no folder."""
    for name in sounds:
        if not getattr(corpora, name):
            raise ValueError(f"{name}: is drawn from, but data.{name} names no folder")
    if room.share and room.rooms == "measured" and not corpora.rirs:
        raise ValueError("reverberation.rooms: measured, but data.rirs names no folder")


class Training(Options):
    """The training loop: it ends after `steps`, `epochs` or `minutes`, whichever comes first, or when
    `patience` validations in a row brought no better score.

    A step sees `accumulate` batches and takes the mean of their gradients. `optimizer` adabound (Luo et al.
    2019, of the package pytorch-optimizer) begins as Adam and ends as SGD with the rate `final_rate`.
    `schedule`: constant, half a cosine down to zero, `halved` every `halve_every` steps, `exponential`:
    times `decay` after every epoch, or `plateau`: times `factor` after `patience_lr` validations without a
    better score. `clip_norm` limits the Euclidean length of the whole step's gradient. `ema`: what is
    validated and used afterwards are averages of the weights, ema * average + (1 - ema) * weights after
    every step.

    `best`: the figure of the validation that best.pt is chosen by (null: SDR or EER); of `loss`, `eer` and
    `min_dcf`, and of the output where nobody is asked for (`absent_level_mean`), the lowest is the best.
    `keep`: how many of the newest last.pt stay as step-NUMBER.pt. `validate_every`, `save_every` and
    `log_every` count steps. `precision` auto is bf16 where it is fast; fp16 (CUDA only) scales the loss.

    A step whose loss or gradient is not finite, or whose loss exceeds the median of the last 100 losses by
    more than `explosion` times their median magnitude (or a hundredth of the first ones', if that is more),
    ends the training; up to `skip_failures` in a row are skipped.
    `seeds`: one training after another with each of them as its `seed`, and a table of what they reach.
    """

    steps: int = Field(200_000, ge=1)
    epochs: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    patience: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adam", "adamw", "sgd", "adabound"] = "adam"
    momentum: float = Field(0.0, ge=0, lt=1)
    final_rate: float = Field(0.1, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "halved", "exponential", "plateau"] = "constant"
    halve_every: int | None = Field(None, ge=1)
    decay: float | None = Field(None, gt=0, le=1)
    patience_lr: int | None = Field(None, ge=1)
    factor: float = Field(0.5, gt=0, lt=1)
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    best: str | None = None
    keep: int = Field(0, ge=0)
    validate_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1)
    log_every: int = Field(20, ge=1)
    skip_failures: int = Field(0, ge=0)
    explosion: float | None = Field(100.0, gt=1)
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _belongs_together(self) -> Training:
        for schedule, name in (
            ("halved", "halve_every"),
            ("exponential", "decay"),
            ("plateau", "patience_lr"),
        ):
            value = getattr(self, name)
            if (self.schedule == schedule) != (value is not None):
                raise ValueError(f"schedule {self.schedule}, {name} {value}: they go together")
        for name, of, wanted in (
            ("factor", "plateau", self.schedule),
            ("final_rate", "adabound", self.optimizer),
        ):
            value = getattr(self, name)
            if wanted != of and value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value}: belongs to {of}, not {wanted}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum {self.momentum}: belongs to sgd, the optimizer is {self.optimizer}")
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} holds a seed twice")
        return self
