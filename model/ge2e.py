"""Criteria that speaker embedders are trained by: GE2E (arXiv 1710.10467) and a softmax classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.distributed import gather

SMALLEST_SCALE = 1e-3


class GE2E(nn.Module):
    """Generalised end-to-end loss with the learnt similarity scale * cosine + offset, scale > 0.

    `contrast` False: eq. 6 (softmax over the centroids); True: eq. 7 (own centroid against the nearest
    other). `add_up`: the sum over the batch, as in the paper, instead of the mean over its utterances.
    """

    def __init__(
        self, contrast: bool = False, scale: float = 10.0, offset: float = -5.0, add_up: bool = False
    ) -> None:
        super().__init__()
        self.contrast, self.add_up = contrast, add_up
        self.scale, self.offset = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(offset))

    def similarities(self, vectors: Tensor) -> Tensor:
        """Unit vectors [N, M, D] of N speakers x M utterances -> similarity to every centroid [N, M, N].

        The centroid of an utterance's own speaker leaves that utterance out (eq. 8 and 9).
        """
        speakers, utterances, _ = vectors.shape
        if speakers < 2 or utterances < 2:
            raise ValueError(f"{speakers} speakers x {utterances} utterances: at least two of each")
        total = vectors.sum(1, keepdim=True)
        others = nn.functional.normalize(total - vectors, dim=-1)  # the mean's direction, [N, M, D]
        centroids = nn.functional.normalize(total[:, 0], dim=-1)  # [N, D]
        cosine = vectors @ centroids.T  # [N, M, N]
        own = torch.eye(speakers, dtype=torch.bool, device=vectors.device)[:, None, :]
        cosine = torch.where(own, (vectors * others).sum(-1, keepdim=True), cosine)
        return self.scale * cosine + self.offset

    def forward(self, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Vectors [N, M, D] of any length -> `loss`, and the `accuracy` of the nearest centroid.

        Under torchrun, those of all ranks. `labels` are not needed: speakers are told apart by their place.
        """
        unit = gather(nn.functional.normalize(vectors.float(), dim=-1))
        similarity = self.similarities(unit)
        speakers = torch.arange(len(unit), device=unit.device)
        own = similarity[speakers, :, speakers]  # [N, M]
        if self.contrast:
            same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)[:, None, :]
            nearest = similarity.masked_fill(same, -torch.inf).amax(-1)
            losses = 1 - torch.sigmoid(own) + torch.sigmoid(nearest)
        else:
            losses = torch.logsumexp(similarity, -1) - own
        correct = (similarity.argmax(-1) == speakers[:, None]).float()
        return {"loss": losses.sum() if self.add_up else losses.mean(), "accuracy": correct.mean().detach()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps the scale positive; to be called after every step of the optimiser."""
        self.scale.clamp_(min=SMALLEST_SCALE)


class Classifier(nn.Module):
    """Softmax cross-entropy over the training speakers, which the embedder is rid of afterwards."""

    def __init__(self, dim: int, classes: int, add_up: bool = False) -> None:
        super().__init__()
        self.add_up = add_up
        self.output = nn.Linear(dim, classes)

    def forward(self, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Vectors [N, M, D] of any length and the class of each speaker [N] -> `loss` and `accuracy`.

        Under torchrun, those of all ranks.
        """
        logits = self.output(gather(vectors.float())).flatten(0, 1)  # [N * M, classes]
        wanted = gather(labels).repeat_interleave(vectors.shape[1])
        loss = nn.functional.cross_entropy(logits, wanted, reduction="sum" if self.add_up else "mean")
        return {"loss": loss, "accuracy": (logits.argmax(-1) == wanted).float().mean().detach()}

    def clamp(self) -> None:
        pass
