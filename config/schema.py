"""Every option of the project, typed and checked; defaults live here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _in_order(value: float | list[float]) -> float | list[float]:
    if isinstance(value, list) and (len(value) != 2 or value[0] > value[1]):
        raise ValueError("expected one number or [low, high]")
    if any(abs(level) > 100 for level in (value if isinstance(value, list) else [value])):
        raise ValueError("expected -100 to 100 dB")
    return value


Level = Annotated[float | list[float], AfterValidator(_in_order)]
"""A level or ratio in dB: one number, or a range to draw from uniformly."""


class Audio(Options):
    """Sampling and the STFT front end (centred, Hann)."""

    sample_rate: int = Field(16000, ge=8000)
    n_fft: int = Field(1200, ge=16)
    hop_length: int = Field(160, ge=1)
    win_length: int = Field(400, ge=16)

    @model_validator(mode="after")
    def _fits(self) -> Audio:
        if not self.hop_length < self.win_length <= self.n_fft:
            raise ValueError(
                f"hop_length {self.hop_length} < win_length {self.win_length} <= n_fft {self.n_fft} must hold"
            )
        return self


class Split(Options):
    """How many examples, and which speakers: a share of all (at least two), these ids, or these subsets.

    `subsets` are the corpus' own divisions, such as LibriSpeech's `dev-clean`.
    """

    examples: int = Field(ge=1)
    speakers: float = Field(0.1, gt=0, lt=1)
    speaker_ids: list[str] | None = None
    subsets: list[str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        if self.speaker_ids is not None and self.subsets is not None:
            raise ValueError("speaker_ids and subsets both choose the speakers: give one of them")
        return self


class Reference(Options):
    """The enrolment audio: at least `min_seconds` of it, at most the first `max_seconds` (null: all)."""

    min_seconds: float = Field(1.6, ge=0.8)
    max_seconds: float | None = Field(6.0, ge=0.8)

    @model_validator(mode="after")
    def _in_order(self) -> Reference:
        if self.max_seconds is not None and self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} is above max_seconds {self.max_seconds}")
        return self


class Kinds(Options):
    """Shares of the examples; they are divided by their sum.

    `mixture`; `target_alone`, nobody else speaks; `target_absent`: the reference belongs to nobody in the
    mixture, silence is right; `noise_only`: nobody speaks at all.
    """

    mixture: float = Field(1.0, ge=0)
    target_alone: float = Field(0.0, ge=0)
    target_absent: float = Field(0.0, ge=0)
    noise_only: float = Field(0.0, ge=0)


class Interference(Options):
    """What an interferer is, in shares: another speaker, a sound, or babble (many speakers at equal
    level)."""

    speech: float = Field(1.0, ge=0)
    noise: float = Field(0.0, ge=0)
    music: float = Field(0.0, ge=0)
    babble: float = Field(0.0, ge=0)


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


class Data(Options):
    """The corpora, and how mixtures are drawn from them.

    `corpus`, `noise`, `music` and `rirs` name folders (datasets/layouts.py draws the trees). `check` full
    decodes every file once and knows where it is silent; quick reads headers and ends. `subsets` restricts
    the corpus to some of its own divisions. `mode` live renders training examples in the loader's workers.

    `protocol` crop: target and interference are cut to `seconds`, at a random `offset` or at the first
    sample; padded (the paper's): the interference is cut or zero-padded to the target's length, whole
    utterances where they are scored, segments of `seconds` (at the same time in both) for training. `vad`
    trim leaves out silence at both ends, merge all of it. A stretch that is drawn holds `min_active` seconds
    of sound if the utterance has them.

    `interferers` [fewest, most] of what `interference` says, each at its original level or at an SNR
    (`snr_db`: dB, or a range) to the target; noise and music shorter than the mixture sound once, as
    `background` they repeat; `babble_voices` speakers make a babble. `padding`: up to this
    share of the mixture, target and interference are each silent at their ends. `gain_db` scales the whole
    mixture. `paired`: each mixture serves twice, with each of its speakers as the target (which, with an SNR,
    keeps its level: the second is the first, scaled). `speeds`: training voices are played at these factors.
    `reverse`: the target is everything but the reference's speaker.
    """

    corpus: list[str] = Field(default_factory=list)
    noise: list[str] = Field(default_factory=list)
    music: list[str] = Field(default_factory=list)
    rirs: list[str] = Field(default_factory=list)
    check: Literal["full", "quick"] = "full"
    subsets: list[str] | None = None
    seed: int = Field(0, ge=0)
    mode: Literal["stored", "live"] = "stored"
    protocol: Literal["crop", "padded"] = "crop"
    seconds: float = Field(3.0, ge=0.1, le=3600)
    offset: Literal["random", "first"] = "random"
    vad: Literal["none", "trim", "merge"] = "none"
    min_active: float = Field(0.5, ge=0)
    kinds: Kinds = Kinds()
    interferers: list[Annotated[int, Field(ge=1, le=10)]] = Field([1, 1], min_length=2, max_length=2)
    interference: Interference = Interference()
    babble_voices: int = Field(6, ge=2)
    background: Background = Background()
    snr_db: Level | None = None
    padding: float = Field(0.0, ge=0, lt=1)
    gain_db: Level | None = None
    reverberation: Reverberation = Reverberation()
    paired: bool = False
    reverse: bool = False
    speeds: list[Annotated[float, Field(gt=0.1, lt=10)]] = Field(default_factory=lambda: [1.0], min_length=1)
    train: int = Field(100_000, ge=1)
    validation: Split = Split(examples=500)
    test: Split = Split(examples=1000)
    reference: Reference = Reference()

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.interferers[0] > self.interferers[1]:
            raise ValueError(f"interferers: expected [fewest, most], got {self.interferers}")
        for section in ("kinds", "interference"):
            if not sum(getattr(self, section).model_dump().values()):
                raise ValueError(f"{section}: one of the shares must be above 0")
        if self.vad != "none" and self.check == "quick":
            raise ValueError(f"vad {self.vad}: needs check: full, which finds the silence")
        if self.padding and self.protocol == "padded":
            raise ValueError("padding: belongs to the protocol crop; padded keeps whole utterances")
        if self.paired and not self._can_be_paired():
            raise ValueError(
                "paired: needs mixtures of two speakers and nothing else (kinds, interferers, interference, "
                "background, protocol, padding at their defaults), so that the two can change roles"
            )
        if self.reverse and self.reverberation.share and self.reverberation.target == "early":
            raise ValueError("reverberation.target: early is of one voice, with reverse there may be several")
        self._check_sounds()
        return self

    def _can_be_paired(self) -> bool:
        plain = (self.kinds, self.interference, self.background) == (Kinds(), Interference(), Background())
        return plain and self.interferers == [1, 1] and self.protocol == "crop" and not self.padding

    def _check_sounds(self) -> None:
        for name in ("noise", "music"):
            if self.needs(name) and not getattr(self, name):
                raise ValueError(f"{name}: is drawn from, but data.{name} names no folder")
        if self.kinds.noise_only and not (self.needs("noise") or self.needs("music")):
            raise ValueError("kinds.noise_only: needs noise or music in interference or background")
        if self.reverberation.share and self.reverberation.rooms == "measured" and not self.rirs:
            raise ValueError("reverberation.rooms: measured, but data.rirs names no folder")

    def needs(self, sound: str) -> bool:
        """Whether examples may hold `noise` or `music`."""
        return bool(getattr(self.interference, sound) or getattr(self.background, sound))


class Store(Options):
    """What is kept of the examples that are rendered ahead, in `folder`, `shard_size` examples a shard.

    `kind` stft: magnitudes at the front end of `audio` (float16) and, with `cosine`, the angle between target
    and mixture, which SI-SDR losses need; wave: waveforms as `dtype` (int16: with one scale for mixture and
    target), whose STFT is made in the batch. Splits that are scored keep waveforms as well.
    """

    folder: str = "data/store"
    kind: Literal["stft", "wave"] = "stft"
    dtype: Literal["float32", "int16"] = "float32"
    cosine: bool = True
    shard_size: int = Field(500, ge=1)


class VoiceFilterNetwork(Options):
    """The paper's CNN + LSTM + FC mask network (arXiv 1810.04826, table 1)."""

    kind: Literal["voicefilter"] = "voicefilter"
    channels: int = Field(64, ge=1)
    lstm_dim: int = Field(400, ge=1)
    lstm: Literal["bidirectional", "unidirectional", "none"] = "bidirectional"
    fc1_dim: int = Field(600, ge=1)
    compression: float = Field(1.0, gt=0, le=1)


class FilmBlstmNetwork(Options):
    """A linear front layer and bidirectional LSTMs, the embedding entering by FiLM."""

    kind: Literal["film_blstm"] = "film_blstm"
    front_dim: int = Field(256, ge=1)
    lstm_dim: int = Field(256, ge=1)
    lstm_layers: int = Field(2, ge=1)
    stack: int = Field(1, ge=1)
    compression: float = Field(0.3, gt=0, le=1)


Network = Annotated[VoiceFilterNetwork | FilmBlstmNetwork, Field(discriminator="kind")]


class Loss(Options):
    """Weights of the training criteria; the loss is their weighted sum.

    `relative` divides the magnitudes by the mixture's root mean square, so that quiet examples count alike.
    """

    relative: bool = False
    magnitude_mse: float = Field(0.0, ge=0)
    power_law: float = Field(1.0, ge=0)
    power_law_complex: float = Field(0.0, ge=0)
    si_sdr: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Loss:
        if not (self.magnitude_mse or self.power_law or self.power_law_complex or self.si_sdr):
            raise ValueError("at least one criterion needs a weight above 0")
        return self


class Train(Options):
    """The training loop: it ends after `steps` or `minutes`, whichever comes first.

    `embedding_noise` is the length of the random vector added to every unit-length embedding, so that the
    network cannot know few voices by heart. `validate_every`, `save_every` and `log_every` count steps;
    `precision` auto is bf16 where it is fast.
    """

    batch_size: int = Field(8, ge=1)
    steps: int = Field(200_000, ge=1)
    minutes: float | None = Field(None, gt=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    embedding_noise: float = Field(0.0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1)
    log_every: int = Field(20, ge=1)
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)


class Config(Options):
    audio: Audio = Audio()
    data: Data = Data()
    store: Store = Store()
    embedder: str = "resemblyzer"
    network: Network = VoiceFilterNetwork()
    loss: Loss = Loss()
    train: Train = Train()

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, tree: Any) -> Any:
        """`network.lstm_dim=200` alone speaks of the default network."""
        network = tree.get("network") if isinstance(tree, dict) else None
        if isinstance(network, dict) and "kind" not in network:
            return {**tree, "network": {"kind": "voicefilter", **network}}
        return tree
