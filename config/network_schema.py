"""Options of the mask networks, and of the criteria that train them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from config.options import Options, require_switch


class MaskNetworkOptions(Options):
    """What all mask networks share.

    `input`: the mixture's magnitude as the network sees it: linear, to the `power` of `exponent`, its `log`,
    or `db`, the clipped decibels of the public re-implementation, which exist only to run its checkpoints.
    `mask` sigmoid multiplies the magnitude; complex (tanh times `mask_bound`, real and imaginary part) the
    spectrum, whose two parts the network then sees. `embedding` none: a network without a reference.
    """

    input: Literal["linear", "power", "log", "db"] = "linear"
    exponent: float = Field(0.3, gt=0, le=1)
    mask: Literal["sigmoid", "complex"] = "sigmoid"
    mask_bound: float = Field(10.0, gt=0)
    embedding: Literal["reference", "none"] = "reference"

    @model_validator(mode="after")
    def _has_a_phase(self) -> MaskNetworkOptions:
        if self.mask == "complex" and self.input in ("log", "db"):
            raise ValueError(f"mask complex: sees real and imaginary parts, which have no {self.input}")
        return self


class VoiceFilterNetwork(MaskNetworkOptions):
    """The paper's CNN + LSTM + FC mask network (arXiv 1810.04826, table 1).

    `partial_convolution`: at the borders the convolutions average over what is there.
    """

    kind: Literal["voicefilter"] = "voicefilter"
    channels: int = Field(64, ge=1)
    lstm_dim: int = Field(400, ge=1)
    lstm: Literal["bidirectional", "unidirectional", "none"] = "bidirectional"
    fc1_dim: int = Field(600, ge=1)
    activation: Literal["relu", "mish"] = "relu"
    partial_convolution: bool = False


def _odd(frames: int) -> int:
    if frames and frames % 2 == 0:
        raise ValueError(f"expected an odd number, got {frames}")
    return frames


Around = Annotated[int, Field(ge=0), AfterValidator(_odd)]
"""So many frames around each (odd); 0: all frames."""


class RecurrentNetwork(MaskNetworkOptions):
    """A linear front layer and bidirectional LSTMs, of the sizes of the networks below."""

    input: Literal["linear", "power", "log", "db"] = "power"
    front_dim: int = Field(256, ge=1)
    lstm_dim: int = Field(256, ge=1)
    lstm_layers: int = Field(2, ge=1)
    residual_layers: int = Field(0, ge=0)
    stack: int = Field(1, ge=1)
    level_frames: Around = 0


class FilmBlstmNetwork(RecurrentNetwork):
    """A linear front layer and bidirectional LSTMs, the embedding entering by FiLM.

    `stack` neighbouring frames share a step. The mixture's level is that of the `level_frames` (odd) around
    each frame, so that a piece looks as it does within the whole; 0: of all. `residual_layers` more LSTMs
    begin as identities: `--checkpoint_path` may name a network with fewer of them, or with smaller
    `front_dim` and `lstm_dim`, whose units are then copied.
    """

    kind: Literal["film_blstm"] = "film_blstm"


class BlindBlstmNetwork(RecurrentNetwork):
    """The layers of film_blstm, without the embedding, give two voices' masks, which `loss.blind` trains;
    `choice_layers` LSTMs of `choice_dim` more choose between them by the embedding, moment by moment.

    `--checkpoint_path` may also name a film_blstm, as there; of that everything but its FiLM is used.
    """

    kind: Literal["blind_blstm"] = "blind_blstm"
    choice_dim: int = Field(256, ge=1)
    choice_layers: int = Field(1, ge=1)


class BandSplitNetwork(MaskNetworkOptions):
    """Recurrent layers over time and over bands of frequencies, whose weights all bands share (band-split
    RNN, arXiv 2209.15174), the embedding entering every block by FiLM.

    Bands are `band_bins` wide below `fine_share` of all bins, and twice as wide with every octave above.
    `stack` neighbouring frames share a step. With a `whole_dim`, every other block has an LSTM over whole
    frames, of so many features, in the place of the one over bands. The mixture's level is that of the
    `level_frames` (odd) around each frame.
    """

    kind: Literal["band_split"] = "band_split"
    input: Literal["linear", "power", "log", "db"] = "power"
    dim: int = Field(64, ge=1)
    lstm_dim: int = Field(64, ge=1)
    blocks: int = Field(4, ge=1)
    band_bins: int = Field(5, ge=1)
    fine_share: float = Field(0.125, gt=0, le=1)
    stack: int = Field(1, ge=1)
    whole_dim: int = Field(0, ge=0)
    level_frames: Around = 97


class UNetNetwork(MaskNetworkOptions):
    """A U-Net over time and frequency with FiLM at the bottleneck.

    `channels` of every level, from the outermost to the bottleneck; `bin_step` n: it sees every n-th bin, and
    the n bins from it on share a mask.
    """

    kind: Literal["unet"] = "unet"
    channels: list[Annotated[int, Field(ge=1)]] = Field([32, 64, 128, 256, 512], min_length=2)
    bin_step: int = Field(1, ge=1)


class LiteNetwork(MaskNetworkOptions):
    """VoiceFilter-Lite (arXiv 2009.04323): causal, a frame at a time.

    `channels` of the convolutions over frequency; `noise_type_dim` of the two hidden layers of the head that
    hears whether voices overlap. `suppression`: how much of the mask is applied follows that probability p,
    w_t = smoothing * w_(t-1) + (1 - smoothing) * (slope * p_t + offset), kept within [0, 1].

    Not the paper's: a `front` of one linear layer of `front_dim` instead of the convolutions, an `injection`
    by FiLM with layer normalisation instead of concatenation, and a level followed over about the
    `level_frames` up to each (0: none).
    """

    kind: Literal["lite"] = "lite"
    input: Literal["linear", "power", "log", "db"] = "power"
    mask: Literal["sigmoid"] = "sigmoid"
    channels: int = Field(16, ge=1)
    lstm_dim: int = Field(512, ge=1)
    lstm_layers: int = Field(3, ge=1)
    front: Literal["convolution", "linear"] = "convolution"
    front_dim: int = Field(256, ge=1)
    injection: Literal["concatenation", "film"] = "concatenation"
    level_frames: int = Field(0, ge=0)
    noise_type_dim: int = Field(64, ge=1)
    suppression: Literal["full", "adaptive"] = "full"
    smoothing: float = Field(0.9, ge=0, lt=1)
    slope: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def _refuse_what_the_front_has_not(self) -> LiteNetwork:
        ignored = "channels" if self.front == "linear" else "front_dim"
        if (value := getattr(self, ignored)) != type(self).model_fields[ignored].default:
            raise ValueError(f"{ignored} {value}: a front that is {self.front} has none")
        return self


class OnnxNetwork(MaskNetworkOptions):
    """A mask network as an ONNX graph, magnitude `mag` and embedding `dvec` to mask; it can only be run."""

    kind: Literal["onnx"] = "onnx"
    mask: Literal["sigmoid"] = "sigmoid"


Member = Annotated[
    VoiceFilterNetwork | FilmBlstmNetwork | BlindBlstmNetwork | BandSplitNetwork | UNetNetwork,
    Field(discriminator="kind"),
]


class EnsembleNetwork(MaskNetworkOptions):
    """The mean of the masks of its `members`, networks with options of their own (and a `kind` each).

    `mask` and `embedding` are those of every member; `input` is each member's own affair.
    """

    kind: Literal["ensemble"] = "ensemble"
    input: Literal["linear"] = "linear"
    members: list[Member] = Field(min_length=2)

    @model_validator(mode="after")
    def _members_are_alike(self) -> EnsembleNetwork:
        for index, member in enumerate(self.members):
            for name in ("mask", "embedding"):
                if (found := getattr(member, name)) != (own := getattr(self, name)):
                    raise ValueError(f"members: the {name} of member {index} is {found}, here it is {own}")
            if member.input == "db":
                raise ValueError(f"members: member {index} masks decibels, whose mean is another matter")
        return self


Network = Annotated[
    VoiceFilterNetwork
    | FilmBlstmNetwork
    | BlindBlstmNetwork
    | BandSplitNetwork
    | UNetNetwork
    | LiteNetwork
    | EnsembleNetwork
    | OnnxNetwork,
    Field(discriminator="kind"),
]


class SpeakerLoss(Options):
    """Speaker representation loss ("The sound of my voice"): `beta` times the distance of the estimate's
    embedding from the anchor's, from `start_epoch` (epochs that are over) and `start_step` on.

    The `anchor` is the `reference` audio or the `clean` target.
    """

    beta: float = Field(0.0, ge=0)
    anchor: Literal["reference", "clean"] = "reference"
    start_epoch: int = Field(0, ge=0)
    start_step: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_a_weight(self) -> SpeakerLoss:
        require_switch(self, "beta", "anchor", "start_epoch", "start_step", "alpha")
        return self


class TripletSpeakerLoss(SpeakerLoss):
    """The same with a margin `alpha`, against the embedding of the residual (mixture minus estimate)."""

    alpha: float = Field(1.0, ge=0)


class Loss(Options):
    """Weights of the training criteria; the loss is their weighted sum.

    `relative` divides the magnitudes by the mixture's root mean square, so that quiet examples count alike.
    `exponent` is that of power_law, power_law_complex and asymmetric (1: linear magnitudes);
    `asymmetric_alpha` what too much suppression costs there. `target` phase_sensitive: magnitude_mse,
    power_law and asymmetric compare with the part of the target that is in phase with the mixture. `absent`
    counts only examples whose target is silent. `noise_type` trains the head of the network lite.
    `blind` those of the network blind_blstm: the same criteria of its two voices, one compared with the
    target, the other with the rest of the mixture, whichever way round fits.
    """

    relative: bool = False
    target: Literal["magnitude", "phase_sensitive"] = "magnitude"
    exponent: float = Field(0.3, gt=0, le=1)
    magnitude_mse: float = Field(0.0, ge=0)
    power_law: float = Field(1.0, ge=0)
    power_law_complex: float = Field(0.0, ge=0)
    asymmetric: float = Field(0.0, ge=0)
    asymmetric_alpha: float = Field(10.0, ge=1)
    mask_mse: float = Field(0.0, ge=0)
    si_sdr: float = Field(0.0, ge=0)
    snr: float = Field(0.0, ge=0)
    absent: float = Field(0.0, ge=0)
    noise_type: float = Field(0.0, ge=0)
    blind: float = Field(0.0, ge=0)
    srl: SpeakerLoss = SpeakerLoss()
    triplet_srl: TripletSpeakerLoss = TripletSpeakerLoss()

    @model_validator(mode="after")
    def _some(self) -> Loss:
        require_switch(self, "asymmetric", "asymmetric_alpha")
        if not any(self.weights[name] for name in RECONSTRUCTION):
            raise ValueError(f"one of {', '.join(RECONSTRUCTION)} needs a weight above 0")
        if self.target == "phase_sensitive" and not any(self.weights[name] for name in MAGNITUDES):
            raise ValueError(f"target phase_sensitive: has no effect without one of {', '.join(MAGNITUDES)}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every criterion, those of the speaker's representation being their beta."""
        single = (*RECONSTRUCTION, "absent", "noise_type", "blind")
        speaker = {"srl": self.srl.beta, "triplet_srl": self.triplet_srl.beta}
        return {name: getattr(self, name) for name in single} | speaker

    @property
    def needs_phase(self) -> bool:
        """Whether the angle between target and mixture is needed in every bin."""
        in_phase = self.target == "phase_sensitive"
        two_signals = self.noise_type or self.blind
        return bool(in_phase or self.power_law_complex or self.si_sdr or self.snr or two_signals)

    @property
    def needs_embedder(self) -> bool:
        """Whether the estimate itself is embedded."""
        return bool(self.srl.beta or self.triplet_srl.beta)


MAGNITUDES = ("magnitude_mse", "power_law", "asymmetric")
"""Criteria that compare the estimate's magnitude with the target's, or with what of it is in phase."""
RECONSTRUCTION = (
    *MAGNITUDES,
    "power_law_complex",
    "mask_mse",
    "si_sdr",
    "snr",
)
"""Criteria that compare the estimate with the target."""
