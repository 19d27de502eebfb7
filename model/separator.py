"""The whole system: waveform and reference -> estimate, built from a configuration or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from config.load import check_config, differences
from config.network_schema import (
    BandSplitNetwork,
    BlindBlstmNetwork,
    EnsembleNetwork,
    FilmBlstmNetwork,
    LiteNetwork,
    Network,
    OnnxNetwork,
    UNetNetwork,
    VoiceFilterNetwork,
)
from config.schema import Config
from model.band_split import BandSplit
from model.blind_blstm import BlindBlstm
from model.embedder import Embedder
from model.ensemble import Ensemble
from model.film_blstm import FilmBlstm
from model.foreign import embedder_from_content
from model.lite import Lite
from model.long_recurrence import LongMixture
from model.mask_network import MaskNetwork
from model.masks import Masking
from model.onnx_network import OnnxMask
from model.reference import trim_silence
from model.shipped import checkpoint_of, shipped_weights
from model.spectral import Spectral
from model.unet import UNet
from model.voicefilter import VoiceFilter
from utils.audio import LARGEST_SAMPLE, resample
from utils.audio_stream import FASTEST, SLOWEST
from utils.checkpoint import load_checkpoint
from utils.device import autocast
from utils.errors import UserError
from utils.overlap import overlap_stream

STREAM_SAMPLES = 320_000
"""Of a causal network's mixture, at most so many at once."""
FORMAT = "voice-separation-1"
CHUNK_SECONDS, OVERLAP_SECONDS, FADE_SECONDS = 24.0, 3.0, 0.25
CHUNKS_AT_ONCE = 8
"""On an accelerator; a CPU is busy with one."""

Samples = TypeVar("Samples", np.ndarray, Tensor)


def build_network(options: Network, bins: int, embedding_dim: int) -> MaskNetwork:
    """The mask network that `options.kind` names: (mixture [B, T, F(, 2)], embedding [B, D]) -> mask."""
    arguments = options.model_dump(exclude={"kind", "embedding", "members"})
    dim = embedding_dim if options.embedding == "reference" else 0
    match options:
        case VoiceFilterNetwork():
            return VoiceFilter(bins, dim, **arguments)
        case FilmBlstmNetwork():
            return FilmBlstm(bins, dim, **arguments)
        case BlindBlstmNetwork():
            return BlindBlstm(bins, dim, **arguments)
        case BandSplitNetwork():
            return BandSplit(bins, dim, **arguments)
        case UNetNetwork():
            return UNet(bins, dim, **arguments)
        case LiteNetwork():
            return Lite(bins, dim, **arguments)
        case EnsembleNetwork():
            members = [build_network(member, bins, embedding_dim) for member in options.members]
            return Ensemble(bins, dim, members, **arguments)
        case OnnxNetwork():
            return OnnxMask(bins, dim, **arguments)
    assert_never(options)


def _learnt(config: Config) -> dict[str, Any]:
    """What weights belong to: the front end and the network without what only inference sees."""
    adaptive = {"suppression", "smoothing", "slope", "offset"}
    return config.model_dump(include={"audio", "network"}, exclude={"network": adaptive})


def as_channels(samples: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Samples [N] or [C, N] of floats -> float32 [C, N]. Raises ValueError for anything else, no samples,
    NaN, infinity, and numbers that are no sound."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        array = (samples.float() if samples.is_floating_point() else samples).numpy()
    else:
        array = np.asarray(samples)
    if array.ndim not in (1, 2) or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{name} {array.dtype} {array.shape}: expected floats in [-1, 1], [N] or [channels, N]"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} samples are NaN or infinite")
    if (peak := float(np.abs(array).max())) > LARGEST_SAMPLE:
        raise ValueError(f"{name}: holds a sample of {peak:.3g}; floats in [-1, 1] are expected")
    channels, count = (1, *array.shape)[-2:]
    if channels > count:
        raise ValueError(f"{name} {array.shape}: {channels} channels of {count} samples; channels come first")
    return np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)


class Separator(nn.Module):
    """Spectral front end, embedder and mask network; the mixture's phase is reused.

    A network without a reference has no `embedder`. `masking` says what is done with the mask.
    """

    def __init__(self, config: Config, embedder: Embedder | None) -> None:
        super().__init__()
        self.config = config
        audio = config.audio
        self.sample_rate = audio.sample_rate
        self.spectral = Spectral(audio.n_fft, audio.hop_length, audio.win_length, audio.pad_mode)
        conditioned = config.network.embedding == "reference"
        if conditioned and embedder is None:
            raise ValueError("network.embedding reference: needs an embedder")
        self.embedder = embedder if conditioned else None
        dim = self.embedder.dim if self.embedder else 0
        self.network = build_network(config.network, self.spectral.bins, dim)
        self.masking = Masking(db=config.network.input == "db")
        self.precision = config.train.precision
        self.presence: dict[str, Any] | None = None
        """The calibration by which it says whether a voice is there (model/presence.py), if there is one."""

    @property
    def device(self) -> torch.device:
        return self.spectral.window.device

    @property
    def reference_rate(self) -> int:
        """Samples a second of the references, in Hz: the embedder's, which need not be the mixture's."""
        return self.embedder.sample_rate if self.embedder else self.sample_rate

    def forward(self, mixture: Tensor, embedding: Tensor | None) -> Tensor:
        """Waveforms [B, N] and embeddings [B, D] -> estimates [B, N]."""
        return self.separate_with_mask(mixture, embedding)[0]

    def separate_with_mask(self, mixture: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Waveforms [B, N] and embeddings [B, D] -> (estimates [B, N], masks [B, T, F(, 2)])."""
        spectrum = self.spectral(mixture)
        seen = torch.view_as_real(spectrum) if self.network.planes == 2 else spectrum.abs()
        with autocast(mixture.device, self.precision):
            mask = self.network(seen, embedding)
        return self.spectral.inverse(self.masking(spectrum, mask.float()), mixture.shape[-1]), mask.float()

    @torch.inference_mode()
    def embed(self, reference: np.ndarray | Tensor, name: str = "reference") -> Tensor:
        """Reference [N] at `reference_rate` Hz -> embedding [1, D]. Raises UserError for too little speech,
        ValueError for what is no sound."""
        return self.embed_references([as_channels(reference, name).mean(axis=0)], [name])

    @torch.inference_mode()
    def embed_references(self, references: Sequence[np.ndarray], names: Sequence[str]) -> Tensor:
        """Several references [N] of one voice, without their silent ends -> the mean of their embeddings
        [1, D]. Raises UserError, which begins with its name, for one with too little speech."""
        if self.embedder is None:
            raise ValueError("this network has no reference")
        trimmed = [
            trim_silence(reference, self.reference_rate, name)
            for reference, name in zip(references, names, strict=True)
        ]
        waves = [torch.from_numpy(reference).to(self.device) for reference in trimmed]
        return self.embedder.embed_speakers(waves, [0] * len(waves))

    def separate(
        self,
        mixture: Samples,
        reference: np.ndarray | Tensor | Sequence[np.ndarray | Tensor] | None,
        *,
        rate: int,
        reference_rate: int | None = None,
    ) -> Samples:
        """The estimate of the reference's voice in a mixture, as long as the mixture, at its rate and in its
        channels, on its device.

        `mixture` [N] or [C, N] and `reference` [N] or [C, N] (several: a list, of which the mean is taken;
        None where the network has none) are floats in [-1, 1] at `rate` and `reference_rate` Hz (None: the
        same). Channels are separated each, those of a reference averaged. May be called from several threads.
        Raises ValueError for other shapes and numbers, UserError for a reference with too little speech.
        """
        other = rate if reference_rate is None else reference_rate
        for named in (rate, other):
            if not SLOWEST <= named <= FASTEST:
                raise ValueError(f"{named} Hz: expected a rate from {SLOWEST} to {FASTEST}")
        samples = as_channels(mixture, "mixture")
        embedding = None
        if self.embedder is not None:
            several = reference if isinstance(reference, Sequence) else [reference]
            monos = [
                resample(as_channels(r, "reference").mean(axis=0), other, self.reference_rate)
                for r in several
                if r is not None
            ]
            if not monos:
                raise ValueError("reference None: this network asks whose voice is wanted")
            embedding = self.embed_references(monos, ["reference"] * len(monos))
        own = resample(samples, rate, self.sample_rate)
        if own.shape[1]:  # else it is shorter than a sample at our rate
            estimate = resample(self.separate_channels(own, embedding), self.sample_rate, rate)
        else:
            estimate = np.zeros_like(samples)
        length = samples.shape[1]  # of which rounding may have taken a sample
        estimate = np.pad(estimate, ((0, 0), (0, max(0, length - estimate.shape[1]))))[:, :length]
        estimate = estimate.reshape(mixture.shape)
        return torch.from_numpy(estimate).to(mixture.device) if isinstance(mixture, Tensor) else estimate

    @torch.inference_mode()
    def separate_channels(self, mixture: np.ndarray, embedding: Tensor | None) -> np.ndarray:
        """Mixture [C, N] at `sample_rate` Hz and an embedding [1, D], or one a channel [C, D] (None: there is
        none) -> estimate [C, N], as of `separate_blocks`."""
        return np.concatenate(list(self.separate_blocks([mixture], embedding)), axis=1)

    def separate_blocks(self, blocks: Iterable[np.ndarray], embedding: Tensor | None) -> Iterator[np.ndarray]:
        """The same for a mixture that comes in blocks [C, n] of any sizes: the estimate's samples [C, m] as
        they are finished (none, while a long one is being heard).

        Every channel is separated by itself; long signals go through in overlapping, cross-faded chunks, or,
        where the network is causal, as a stream, or, where it `hears_whole`, layer by layer, which are exact.
        """
        if isinstance(self.network, Lite) and self.spectral.pad_mode == "constant":
            yield from self._stream(blocks, embedding)
            return
        unit = self.spectral.hop_length * self.network.frame_multiple  # chunks have the frames of the whole
        chunk, overlap = (round(s * self.sample_rate / unit) * unit for s in (CHUNK_SECONDS, OVERLAP_SECONDS))
        fade = round(FADE_SECONDS * self.sample_rate)

        def process(pieces: Tensor) -> Tensor:  # [K, C, n]
            rows = pieces.flatten(0, 1)
            vectors = None
            if embedding is not None:
                vectors = embedding.expand(pieces.shape[1], -1).repeat(len(pieces), 1)
            parts = range(0, len(rows), at_once)  # of many channels not all at the same time, for the memory
            with torch.inference_mode():
                estimates = [
                    self(
                        rows[i : i + at_once].to(self.device),
                        None if vectors is None else vectors[i : i + at_once],
                    ).cpu()
                    for i in parts
                ]
            return torch.cat(estimates).unflatten(0, pieces.shape[:2])

        at_once = 1 if self.device.type == "cpu" else CHUNKS_AT_ONCE
        coming = (torch.from_numpy(block) for block in blocks)
        held: list[Tensor] = []
        waiting = 0
        for block in coming:
            held.append(block)
            waiting += block.shape[1]
            if waiting > chunk:
                break
        else:
            if waiting:
                yield process(torch.cat(held, dim=1)[None])[0].numpy()
            return
        signal = chain(held, coming)
        if self.hears_whole:
            networks = self.network.layered
            long = LongMixture(networks, self.spectral, self.masking, self.precision, self.sample_rate)
            vectors = None if embedding is None else embedding.expand(len(held[0]), -1)
            finished = long(signal, vectors)
        else:
            finished = overlap_stream(process, signal, chunk, overlap, fade, at_once)
        for done in finished:
            yield done.numpy()

    @property
    def hears_whole(self) -> bool:
        """Whether `separate_blocks` takes the last block before it gives the first of a long mixture."""
        return self.spectral.pad_mode == "constant" and bool(self.network.layered)

    def _stream(self, blocks: Iterable[np.ndarray], embedding: Tensor | None) -> Iterator[np.ndarray]:
        from model.streaming import StreamingSeparator  # which has a separator

        stream = None
        for block in blocks:
            if stream is None:
                stream = StreamingSeparator(
                    self, None if embedding is None else embedding.expand(len(block), -1)
                )
            for piece in torch.from_numpy(block).split(STREAM_SAMPLES, dim=1):
                yield stream(piece.to(self.device)).cpu().numpy()
        if stream is not None:
            yield stream.flush().cpu().numpy()

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of the system: enough to rebuild it without the YAML."""
        return {
            "format": FORMAT,
            "config": self.config.model_dump(),
            "network": self.network.state_dict(),
            "embedder": self.embedder.content() if self.embedder else None,
            **({"presence": self.presence} if self.presence else {}),
        }

    @classmethod
    def from_content(cls, content: dict[str, Any], where: str, config: Config | None = None) -> Separator:
        """Rebuilds what `content()` described. Raises UserError when it is something else."""
        if content.get("format") != FORMAT:
            keys = ", ".join(sorted(map(str, content))[:6])
            if isinstance(content.get("embedder"), dict):
                raise UserError(f"{where}: is an embedder; a separator is wanted")
            raise UserError(
                f"{where}: no separator checkpoint of this project (it holds {keys or 'nothing'}); "
                "nor another project's that is known"
            )
        try:
            own = check_config(content["config"], where)
            if config is not None:
                there, here = (_learnt(c) for c in (own, config))
                if changes := differences(there, here):
                    raise UserError(f"{where}: was trained with another configuration ({'; '.join(changes)})")
                adaptive = config.network.kind == "lite" and config.network.suppression == "adaptive"
                if adaptive and not own.loss.noise_type:
                    raise UserError(
                        f"{where}: network.suppression adaptive follows a head that was not trained there "
                        "(loss.noise_type 0)"
                    )
            conditioned = own.network.embedding == "reference"
            separator = cls(config or own, embedder_from_content(content, where) if conditioned else None)
            separator.network.load_state_dict(content["network"])
            separator.presence = content.get("presence")
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"{where}: a damaged separator checkpoint ({type(error).__name__})") from error
        return separator

    @classmethod
    def load(cls, path: Path | str | None = None, config: Config | None = None) -> Separator:
        """Reads a checkpoint in evaluation mode: a file, the best one of the run of that name, or weights of
        that name that come with this project; without a `path` its `voicefilter`, whatever runs are called.

        Raises UserError (missing, truncated, of another kind).
        """
        path = shipped_weights() if path is None else checkpoint_of(path)
        return cls.from_content(load_checkpoint(path), str(path), config).eval()
