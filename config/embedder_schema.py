"""Every option of an embedder and its training, typed and checked; defaults live here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from config.options import (
    Background,
    Corpora,
    HeldOut,
    Level,
    Options,
    Reverberation,
    Training,
    check_frames,
    check_sounds,
    with_default_kind,
)


class DVectorNetwork(Options):
    """The LSTM of GE2E (arXiv 1710.10467) on mel frames (centred Hann STFT, Slaney mels of the power).

    `log_mel`: log10(x + 1e-6) of them. `projection` above 0 projects every layer's output to that many
    values. An utterance's embedding is the mean over windows of `window` frames every `window_hop` frames;
    `renormalize` scales that mean to unit length. `min_level_db` raises quieter utterances to that level.
    """

    kind: Literal["dvector"] = "dvector"
    sample_rate: int = Field(16000, ge=8000)
    n_fft: int = Field(512, ge=16)
    win_length: int = Field(400, ge=16)
    hop_length: int = Field(160, ge=1)
    mels: int = Field(40, ge=1)
    log_mel: bool = True
    hidden: int = Field(768, ge=1)
    projection: int = Field(0, ge=0)
    layers: int = Field(3, ge=1)
    dim: int = Field(256, ge=1)
    relu: bool = False
    window: int = Field(160, ge=10)
    window_hop: int = Field(80, ge=1)
    renormalize: bool = True
    min_level_db: float | None = Field(None, ge=-100, le=0)

    @model_validator(mode="after")
    def _fits(self) -> DVectorNetwork:
        check_frames(self.hop_length, self.win_length, self.n_fft)
        if self.projection >= self.hidden:
            raise ValueError(f"projection {self.projection}: must be below hidden {self.hidden}")
        if self.window_hop > self.window:
            raise ValueError(
                f"window_hop {self.window_hop}: must be at most the window, {self.window} frames"
            )
        return self


class VggMNetwork(Options):
    """VGG-M (VoxCeleb, Nagrani et al. 2017) on magnitudes (Hamming window), normalised per bin; mean over
    time."""

    kind: Literal["vggm"] = "vggm"
    sample_rate: int = Field(16000, ge=8000)
    n_fft: int = Field(1024, ge=512)
    win_length: int = Field(400, ge=16)
    hop_length: int = Field(160, ge=1)
    dim: int = Field(512, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> VggMNetwork:
        check_frames(self.hop_length, self.win_length, self.n_fft)
        return self


EmbedderNetwork = Annotated[DVectorNetwork | VggMNetwork, Field(discriminator="kind")]


class ValidationSpeakers(HeldOut):
    """The speakers that the embedder is judged on, or all of another `corpus`.

    At most `utterances` of each are compared with each other; an utterance lasts at most `seconds` (null:
    all of it). A speaker with one utterance gives consecutive pieces of it, of at least `piece_seconds`.
    `trials`: a list of lines `label path path` to be scored as well, its paths below the corpus.
    """

    corpus: list[str] = Field(default_factory=list)
    utterances: int = Field(20, ge=2)
    seconds: float | None = Field(None, ge=0.4)
    piece_seconds: float = Field(3.0, ge=0.4)
    trials: str | None = None


class EmbedderData(Corpora):
    """The corpora, who is held out, and what is done to the crops of the others.

    With the corpora, seed and shares of a separator the same people are held out here and there. `test`
    speakers (null: none) are left alone altogether. `background` and `reverberation` are shares of the crops;
    `gain_db` sets a crop's level off. `speeds`: training voices are played at these factors, each another
    voice.
    """

    validation: ValidationSpeakers = ValidationSpeakers()
    test: HeldOut | None = HeldOut()
    background: Background = Background()
    reverberation: Reverberation = Reverberation()
    gain_db: Level | None = None
    speeds: list[Annotated[float, Field(gt=0.1, lt=10)]] = Field(default_factory=lambda: [1.0], min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> EmbedderData:
        drawn = [name for name in ("noise", "music") if getattr(self.background, name)]
        check_sounds(self, drawn, self.reverberation)
        if self.validation.corpus and (self.validation.speaker_ids or self.validation.subsets):
            raise ValueError(
                "validation: speaker_ids and subsets choose from data.corpus, validation.corpus names "
                "another: give one of them"
            )
        if self.reverberation.target == "early":
            raise ValueError("reverberation.target: an embedder hears what there is; early is for separators")
        if len(set(self.speeds)) < len(self.speeds):
            raise ValueError(f"speeds: {self.speeds} holds a factor twice")
        return self


class EmbedderLoss(Options):
    """`ge2e_softmax` and `ge2e_contrast` (arXiv 1710.10467, eq. 6 and 7), or `cross_entropy` of a classifier
    of the training speakers that is dropped afterwards.

    GE2E's similarity is scale * cosine + offset; both are learnt, from these values, at `similarity_rate`
    times the learning rate. `reduction`: the paper adds up over the batch, mean divides by its utterances.
    """

    kind: Literal["ge2e_softmax", "ge2e_contrast", "cross_entropy"] = "ge2e_softmax"
    scale: float = Field(10.0, gt=0)
    offset: float = -5.0
    similarity_rate: float = Field(0.01, gt=0)
    reduction: Literal["sum", "mean"] = "sum"


class EmbedderTrain(Training):
    """A step sees `speakers` different people, `utterances` crops of each, all of one length of `frames`
    [fewest, most]; `projection_rate`: the learning rate of an LSTM's projections, as a share."""

    speakers: int = Field(64, ge=1)
    utterances: int = Field(10, ge=1)
    frames: list[Annotated[int, Field(ge=20)]] = Field([140, 180], min_length=2, max_length=2)
    clip_norm: float | None = Field(3.0, gt=0)
    projection_rate: float = Field(0.5, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> EmbedderTrain:
        if self.frames[0] > self.frames[1]:
            raise ValueError(f"frames: expected [fewest, most], got {self.frames}")
        return self


class EmbedderConfig(Options):
    task: Literal["embedder"]
    data: EmbedderData = EmbedderData()
    network: EmbedderNetwork = DVectorNetwork()
    loss: EmbedderLoss = EmbedderLoss()
    train: EmbedderTrain = EmbedderTrain()

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, tree: Any) -> Any:
        return with_default_kind(tree, "dvector")

    @model_validator(mode="after")
    def _fits(self) -> EmbedderConfig:
        ge2e = self.loss.kind != "cross_entropy"
        if ge2e and (self.train.speakers < 2 or self.train.utterances < 2):
            raise ValueError(
                f"train.speakers {self.train.speakers}, train.utterances {self.train.utterances}: GE2E "
                "compares at least two of each"
            )
        if self.network.kind == "vggm" and self.train.frames[0] < 100:
            raise ValueError(f"train.frames {self.train.frames}: VGG-M needs at least 100")
        return self
