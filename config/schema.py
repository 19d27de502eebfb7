"""Every option of a separator and its training, typed and checked; defaults live here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from config.network_schema import Loss, Network, VoiceFilterNetwork
from config.options import (
    Background,
    Coding,
    Corpora,
    Equalization,
    HeldOut,
    Level,
    Options,
    Reverberation,
    Training,
    check_frames,
    require_switch,
    with_default_kind,
)


class Audio(Options):
    """Sampling and the STFT front end (centred, Hann); the signal's ends are padded with zeros, or reflected
    (`pad_mode`, as the public re-implementation did)."""

    sample_rate: int = Field(16000, ge=8000)
    n_fft: int = Field(1200, ge=16)
    hop_length: int = Field(160, ge=1)
    win_length: int = Field(400, ge=16)
    pad_mode: Literal["constant", "reflect"] = "constant"

    @model_validator(mode="after")
    def _fits(self) -> Audio:
        check_frames(self.hop_length, self.win_length, self.n_fft)
        return self


class Split(HeldOut):
    """How many examples, and which speakers."""

    examples: int = Field(ge=1)


class Reference(Options):
    """The enrolment audio: at least `min_seconds` of it, at most the first `max_seconds` (null: all)."""

    min_seconds: float = Field(1.6, ge=0.4)
    max_seconds: float | None = Field(6.0, ge=0.4)

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


class Data(Corpora):
    """The corpora, and how mixtures are drawn from them.

    `mode` live renders training examples in the loader's workers.

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
    equalization: Equalization = Equalization()
    coding: Coding = Coding()
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
        if self.kinds.noise_only and not (self.needs("noise") or self.needs("music")):
            raise ValueError("kinds.noise_only: needs noise or music in interference or background")
        return self

    def _can_be_paired(self) -> bool:
        plain = (self.kinds, self.interference, self.background) == (Kinds(), Interference(), Background())
        return plain and self.interferers == [1, 1] and self.protocol == "crop" and not self.padding

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


class Train(Training):
    """How the mask network learns.

    `embedder` frozen: the references' embeddings are computed once; joint: in every step, and the embedder
    learns, too, at `embedder_rate` times the learning rate. `embedding_noise` is the length of the random
    vector added to every unit-length embedding, so that the network cannot know few voices by heart;
    `embedding_mix` the largest share by which an embedding is drawn towards another one of its batch, as a
    person's embeddings of several sessions differ from each other in the ways that voices differ.
    `remix`: the share of a batch's mixtures that get the interference of another example, at the level of
    their own, so that a stored mixture is hardly heard twice (datasets/remix.py), or up to `remix_db` above
    or below it.
    `compile`: the mask network goes through torch.compile.
    `validation_examples`: the first n of the validation split are scored (null: all of it); `pages` of
    them can be heard and seen in the log, from the hardest mixture to the easiest.
    """

    batch_size: int = Field(8, ge=1)
    compile: bool = False
    embedder: Literal["frozen", "joint"] = "frozen"
    embedder_rate: float = Field(0.1, gt=0)
    embedding_noise: float = Field(0.0, ge=0)
    embedding_mix: float = Field(0.0, ge=0, lt=1)
    remix: float = Field(0.0, ge=0, le=1)
    remix_db: float = Field(0.0, ge=0, le=60)
    validation_examples: int | None = Field(None, ge=1)
    pages: int = Field(3, ge=0)

    @model_validator(mode="after")
    def _has_an_effect(self) -> Train:
        require_switch(self, "remix", "remix_db")
        return self


class Config(Options):
    task: Literal["separator"] = "separator"
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
        return with_default_kind(tree, "voicefilter")

    @model_validator(mode="after")
    def _belongs_together(self) -> Config:
        unconditioned, joint = self.network.embedding == "none", self.train.embedder == "joint"
        blurred = self.train.embedding_noise or self.train.embedding_mix
        waves = self.store.kind == "wave" or self.data.mode == "live"
        if unconditioned and (joint or blurred or self.loss.needs_embedder):
            raise ValueError("network.embedding none: has no embedder to train, to blur or to compare with")
        if self.network.mask == "complex" and not waves:
            raise ValueError("network.mask complex: needs the phase, store.kind wave or data.mode live")
        if self.network.mask == "complex" and self.loss.target == "phase_sensitive":
            raise ValueError("loss.target phase_sensitive: a complex mask gives the phase, too")
        if self.loss.needs_embedder and not waves:
            raise ValueError("loss.srl, loss.triplet_srl: need waveforms, store.kind wave or data.mode live")
        if self.loss.needs_embedder and joint:
            raise ValueError("loss.srl, loss.triplet_srl: need a frozen embedder, train.embedder is joint")
        if self.loss.needs_embedder and self.data.reverse:
            raise ValueError(
                "loss.srl, loss.triplet_srl: data.reverse asks for all but the reference's voice"
            )
        if self.train.remix and not waves:
            raise ValueError("train.remix: needs waveforms, store.kind wave or data.mode live")
        early = self.data.reverberation.share and self.data.reverberation.target == "early"
        if self.train.remix and (self.data.reverse or early):
            raise ValueError(
                "train.remix: moves what is not asked for to another example, with data.reverse that is the "
                "voice, with data.reverberation.target early the voice's own room"
            )
        if not joint and self.train.embedder_rate != Train.model_fields["embedder_rate"].default:
            raise ValueError(
                f"train.embedder_rate {self.train.embedder_rate}: belongs to train.embedder joint, not frozen"
            )
        late = [
            s for s in (self.loss.srl, self.loss.triplet_srl) if s.beta and (s.start_epoch or s.start_step)
        ]
        if late and self.train.best == "loss":
            raise ValueError(
                "train.best loss: a speaker loss starts later (start_epoch, start_step) and raises it; "
                "choose by another figure of the validation"
            )
        if unconditioned and self.data.reverse:
            raise ValueError(
                "data.reverse: asks for all but the reference's voice, network.embedding is none"
            )
        if self.loss.noise_type and self.network.kind != "lite":
            raise ValueError(f"loss.noise_type: trains the head of network lite, not {self.network.kind}")
        if self.loss.blind and self.network.kind != "blind_blstm":
            raise ValueError(f"loss.blind: trains the voices of blind_blstm, not {self.network.kind}")
        adaptive = self.network.kind == "lite" and self.network.suppression == "adaptive"
        if adaptive and not self.loss.noise_type:
            raise ValueError("network.suppression adaptive: follows the head that loss.noise_type trains")
        return self
