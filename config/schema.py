"""Every option of the project, typed and checked; defaults live here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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
    """How many examples, and which speakers: a share of all (at least two), or these ids."""

    examples: int = Field(ge=1)
    speakers: float = Field(0.1, gt=0, lt=1)
    speaker_ids: list[str] | None = None


class Reference(Options):
    """The enrolment audio: at least `min_seconds` of speech, at most the first `max_seconds` of it."""

    min_seconds: float = Field(1.6, ge=0.8)
    max_seconds: float = Field(6.0, ge=0.8)


class Data(Options):
    """The corpora, and how mixtures are drawn from them.

    `corpus` folders, `store` where rendered examples lie; `train` examples of `seconds` each. Voices are
    mixed at their original levels, or at an SNR drawn uniformly from `snr_db` [low, high]. `paired`: each
    mixture serves twice, with each of its speakers as the target. `speeds`: training voices are played at
    these factors. `cosine`: also store the angle between target and mixture, which SI-SDR losses need.
    """

    corpus: list[str] = Field(default_factory=list)
    store: str = "data/store"
    seed: int = Field(0, ge=0)
    protocol: Literal["crop"] = "crop"
    seconds: float = Field(3.0, gt=0)
    snr_db: list[float] | None = Field(None, min_length=2, max_length=2)
    paired: bool = False
    speeds: list[Annotated[float, Field(gt=0.1, lt=10)]] = Field(default_factory=lambda: [1.0], min_length=1)
    shard_size: int = Field(500, ge=1)
    cosine: bool = True
    train: int = Field(100_000, ge=1)
    validation: Split = Split(examples=500)
    test: Split = Split(examples=1000)
    reference: Reference = Reference()

    @model_validator(mode="after")
    def _snr_in_order(self) -> Data:
        if self.snr_db is not None and self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"snr_db: expected [low, high], got {self.snr_db}")
        return self


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
