"""What a separator learns by: batches -> named scalars."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from config.network_schema import SpeakerLoss
from datasets.dataset import Batch
from datasets.store import WAVEFORMS
from model.blind_blstm import BlindBlstm
from model.features import rest_of, spectra
from model.lite import Lite
from model.losses import Comparison, criteria, noise_type, power_law_errors
from model.separator import Separator
from model.speaker_loss import speaker_criteria
from utils import distributed
from utils.device import autocast


class SeparatorObjective(nn.Module):
    """Batches of mixtures, targets and references -> every criterion, and `loss`, their weighted sum; under
    torchrun their values are those of the ranks' batches together, except for `own_loss`, this rank's.

    `embedder_learns`: embeddings come from the references' waveforms, with gradients to the embedder, which
    stays in evaluation mode, as it is heard at inference.
    """

    def __init__(self, separator: Separator, embedder_learns: bool) -> None:
        super().__init__()
        self.separator, self.config = separator, separator.config
        self.embedder_learns = embedder_learns
        self.weights = self.config.loss.weights
        if isinstance(separator.network, Lite) and not self.weights["noise_type"]:
            # ranks would wait for gradients that never come
            separator.network.noise_type.requires_grad_(False)

    def weights_at(self, step: int, epoch: int) -> dict[str, float]:
        """Of the criteria, with 0 for those that start after this step and this number of epochs."""
        loss = self.config.loss
        weights = dict(loss.weights)
        for name in ("srl", "triplet_srl"):
            option: SpeakerLoss = getattr(loss, name)
            if step < option.start_step or epoch < option.start_epoch:
                weights[name] = 0.0
        return weights

    def train(self, mode: bool = True) -> SeparatorObjective:
        super().train(mode)
        if self.separator.embedder is not None:
            self.separator.embedder.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        values = self.judge(batch)[0]
        # to tell whose examples a loss is of that is no number
        return {**distributed.averaged(values), "own_loss": values["loss"].detach()}

    def judge(self, batch: Batch) -> tuple[dict[str, Tensor], Comparison]:
        """The criteria of this rank's batch, and the comparison of what is heard: in evaluation mode, of
        batches of waveforms, with the estimates' waveforms among it.

        The two differ where suppression is adaptive: its mask learns as it is, and is heard in part.
        """
        network, loss, precision = self.separator.network, self.config.loss, self.config.train.precision
        batch = self.with_spectra(batch)
        asked = self._embedding(batch)
        embedding = asked
        if asked is not None and self.training:
            train = self.config.train
            embedding = blur(mix_embeddings(asked, train.embedding_mix), train.embedding_noise)
        overlap = voices = None
        with autocast(batch["mixture"].device, precision):
            seen = batch["spectrum"] if network.planes == 2 else batch["mixture"]
            if isinstance(network, Lite):
                mask, overlap = network.mask_and_overlap(seen, embedding)
            elif isinstance(network, BlindBlstm) and self.weights["blind"]:
                mask, voices = network.mask_and_voices(seen, embedding)
            else:
                mask = network(seen, embedding)
        compared = self._compare(mask.float(), batch)
        values = criteria(loss, compared)
        if self.weights["noise_type"] and overlap is not None:
            values["noise_type"] = noise_type(overlap, compared, batch["other_voice"])
        if voices is not None:
            values["blind"] = self._blind(voices.float(), batch)
        if self.weights["srl"] or self.weights["triplet_srl"]:
            embedder = self.separator.embedder
            assert embedder is not None and asked is not None  # the configuration was checked
            rate = self.separator.sample_rate
            values |= speaker_criteria(loss, self.weights, embedder, compared, asked, rate)
        values["loss"] = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        if isinstance(network, Lite) and network.suppression == "adaptive" and not self.training:
            assert overlap is not None
            compared = self._compare(network.adapt(mask.float(), overlap)[0], batch)
        return values, compared

    def with_spectra(self, batch: Batch) -> Batch:
        """The batch with what the network and the criteria see of its waveforms, if it has these."""
        if "mixture" in batch:
            return batch
        wanted = {"cosine"} if self.config.loss.needs_phase else set()
        if self.separator.network.planes == 2:
            wanted |= {"cosine", "sine", "spectrum"}
        elif self.needs_waves:
            wanted |= {"spectrum"}
        with torch.no_grad():
            mixture, target = (batch[name] for name in WAVEFORMS)
            return batch | spectra(self.separator.spectral, mixture, target, wanted)

    @property
    def needs_waves(self) -> bool:
        """Whether the estimate's waveform is compared, if there are waveforms."""
        loss = self.config.loss
        return bool(not self.training or loss.needs_embedder or loss.si_sdr or loss.snr)

    def _compare(self, mask: Tensor, batch: Batch) -> Comparison:
        waves = None
        if self.needs_waves and "spectrum" in batch:
            mixture, target = (batch[name] for name in WAVEFORMS)
            spectrum = torch.view_as_complex(batch["spectrum"])
            masked = self.separator.masking(spectrum, mask)
            waves = (self.separator.spectral.inverse(masked, mixture.shape[-1]), target, mixture)
        return Comparison(
            mask,
            batch["mixture"],
            batch["target"],
            batch.get("cosine"),
            batch.get("sine"),
            waves,
            self.separator.network.mask_bound,
        )

    def _blind(self, voices: Tensor, batch: Batch) -> Tensor:
        """The weighted criteria of two voices' masks [B, 2, T, F(, 2)], whose mean it is: one compared with
        the target, the other with the rest of the mixture, in the order that fits the example better."""
        rest = rest_of(batch)
        first, second = voices.unbind(1)
        swapped = self._misfit(first, rest) + self._misfit(second, batch) < (
            self._misfit(first, batch) + self._misfit(second, rest)
        )
        swapped = swapped[(...,) + (None,) * (first.ndim - 1)]
        pairs = (
            (torch.where(swapped, second, first), batch),
            (torch.where(swapped, first, second), rest),
        )
        total = torch.zeros((), device=voices.device)
        for mask, source in pairs:
            values = criteria(self.config.loss, self._compare(mask, source))
            total = total + torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return total / len(pairs)

    @staticmethod
    def _misfit(mask: Tensor, batch: Batch) -> Tensor:
        """Error of what a mask gives, on compressed magnitudes [B]."""
        with torch.no_grad():
            compared = Comparison(mask, batch["mixture"], batch["target"])
            return power_law_errors(compared.estimate, compared.target).mean((1, 2))

    def _embedding(self, batch: Batch) -> Tensor | None:
        embedder = self.separator.embedder
        if embedder is None:
            return None
        if not self.embedder_learns or "embedding" in batch:
            return batch["embedding"]
        samples = batch["reference_samples"].tolist()
        waves = [wave[:n] for wave, n in zip(batch["reference"], samples, strict=True)]
        with autocast(batch["reference"].device, self.config.train.precision):
            return embedder.embed(waves).float()


def blur(embedding: Tensor, noise: float) -> Tensor:
    """Adds a random vector of about `noise` times each embedding's length [B, D] and restores that length."""
    if noise == 0:
        return embedding
    length = embedding.norm(dim=-1, keepdim=True)
    # drawn on the CPU: the same noise on every device
    direction = torch.randn(embedding.shape).to(embedding) / embedding.shape[-1] ** 0.5
    return at_length(embedding + noise * length * direction, length)


def mix_embeddings(embedding: Tensor, most: float) -> Tensor:
    """Draws every embedding [B, D] towards another one of the batch by a share of 0 to `most`; its length is
    kept."""
    if most == 0:
        return embedding
    others = embedding[torch.randperm(len(embedding)).to(embedding.device)]
    share = most * torch.rand(len(embedding), 1).to(embedding)
    return at_length(torch.lerp(embedding, others, share), embedding.norm(dim=-1, keepdim=True))


def at_length(vectors: Tensor, length: Tensor) -> Tensor:
    """Vectors [B, D] with the given lengths [B, 1]."""
    return vectors * (length / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12))
