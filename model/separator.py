"""The whole system: waveform and reference -> estimate, built from a configuration or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from config.load import check_config, differences
from config.schema import Config, FilmBlstmNetwork, Network, VoiceFilterNetwork
from model.embedder import Embedder
from model.film_blstm import FilmBlstm
from model.foreign import embedder_from_content
from model.reference import require_speech
from model.spectral import Spectral
from model.voicefilter import VoiceFilter
from utils.checkpoint import load_checkpoint
from utils.device import autocast
from utils.errors import UserError
from utils.overlap import overlap_add

FORMAT = "voice-separation-1"
CHUNK_SECONDS, OVERLAP_SECONDS = 20.0, 2.0


def build_network(options: Network, bins: int, embedding_dim: int) -> nn.Module:
    """The mask network that `options.kind` names: (magnitude [B, T, F], embedding [B, D]) -> mask."""
    arguments = options.model_dump(exclude={"kind"})
    match options:
        case VoiceFilterNetwork():
            return VoiceFilter(bins, embedding_dim, **arguments)
        case FilmBlstmNetwork():
            return FilmBlstm(bins, embedding_dim, **arguments)
    assert_never(options)


class Separator(nn.Module):
    """Spectral front end, embedder and mask network; the mixture's phase is reused."""

    def __init__(self, config: Config, embedder: Embedder) -> None:
        super().__init__()
        self.config = config
        audio = config.audio
        if embedder.sample_rate != audio.sample_rate:
            raise UserError(
                f"the embedder needs {embedder.sample_rate} Hz, audio.sample_rate is {audio.sample_rate} Hz"
            )
        self.sample_rate = audio.sample_rate
        self.spectral = Spectral(audio.n_fft, audio.hop_length, audio.win_length)
        self.network = build_network(config.network, self.spectral.bins, embedder.dim)
        self.embedder = embedder
        self.precision = config.train.precision

    def forward(self, mixture: Tensor, embedding: Tensor) -> Tensor:
        """Waveforms [B, N] and embeddings [B, D] -> estimates [B, N]."""
        return self.separate_with_mask(mixture, embedding)[0]

    def separate_with_mask(self, mixture: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, N] and embeddings [B, D] -> (estimates [B, N], masks [B, T, F])."""
        spectrum = self.spectral(mixture)
        with autocast(mixture.device, self.precision):
            mask = self.network(spectrum.abs(), embedding)
        return self.spectral.inverse(spectrum * mask.float(), mixture.shape[-1]), mask.float()

    @torch.inference_mode()
    def embed(self, reference: np.ndarray, name: str = "reference") -> Tensor:
        """Reference [N] at `sample_rate` Hz -> embedding [1, D]. Raises UserError for too little speech."""
        return self.embed_references([reference], [name])

    @torch.inference_mode()
    def embed_references(self, references: Sequence[np.ndarray], names: Sequence[str]) -> Tensor:
        """Several references [N] of one voice -> the mean of their embeddings [1, D]."""
        for reference, name in zip(references, names, strict=True):
            require_speech(reference, self.sample_rate, name)
        device = next(self.network.parameters()).device
        waves = [torch.from_numpy(reference).to(device) for reference in references]
        return self.embedder.embed_speakers(waves, [0] * len(waves))

    @torch.inference_mode()
    def separate(self, mixture: np.ndarray, embedding: Tensor) -> np.ndarray:
        """Mixture [C, N] at `sample_rate` Hz and one embedding [1, D] -> estimate [C, N].

        Every channel is separated by itself; long signals go through in overlapping, cross-faded chunks.
        """
        device = embedding.device

        def process(piece: Tensor) -> Tensor:
            return self(piece.to(device), embedding.expand(len(piece), -1)).cpu()

        chunk, overlap = (round(s * self.sample_rate) for s in (CHUNK_SECONDS, OVERLAP_SECONDS))
        return overlap_add(process, torch.from_numpy(mixture), chunk, overlap).numpy()

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of the system: enough to rebuild it without the YAML."""
        return {
            "format": FORMAT,
            "config": self.config.model_dump(),
            "network": self.network.state_dict(),
            "embedder": self.embedder.content(),
        }

    @classmethod
    def from_content(cls, content: dict[str, Any], where: str, config: Config | None = None) -> Separator:
        """Rebuilds what `content()` described. Raises UserError when it is something else."""
        if content.get("format") != FORMAT:
            keys = ", ".join(sorted(map(str, content))[:6])
            raise UserError(
                f"{where}: no separator checkpoint of this project (it holds {keys or 'nothing'})"
            )
        try:
            own = check_config(content["config"], where)
            separator = cls(own, embedder_from_content(content, where))
            separator.network.load_state_dict(content["network"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{where}: a damaged separator checkpoint ({type(error).__name__})") from error
        if config is not None:
            there, here = (c.model_dump(include={"audio", "network"}) for c in (own, config))
            if changes := differences(there, here):
                raise UserError(f"{where}: was trained with another configuration ({'; '.join(changes)})")
            separator.config, separator.precision = config, config.train.precision
        return separator

    @classmethod
    def load(cls, path: Path | str, config: Config | None = None) -> Separator:
        """Reads a checkpoint, in evaluation mode. Raises UserError (missing, truncated, of another kind)."""
        return cls.from_content(load_checkpoint(path), str(path), config).eval()
