"""New mixtures out of those of a batch: each voice against what another example's voice was mixed with.

Remixing the sources of a training set is from Uhlich et al. 2017 ("Improving music source separation based
on deep neural networks through data augmentation and network blending").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.corpus import Utterance
from datasets.recipe import Clip, Recipe


@dataclass(frozen=True)
class Remix:
    """Gives a `share` of a batch's mixtures the interference of other examples of it, at the level of the
    one that it replaces (the levels of what sounds: padding is left out), or up to `within_db` away from it.

    An example keeps its own where the other's holds the voice that it asks for, or where either has none. The
    new mixtures are a pure function of `seed` and of the numbers of the examples that are read together: a
    step that is cut into parts, or shared out to ranks, remixes within each part.
    """

    share: float
    seed: int
    utterances: Mapping[str, Utterance]
    within_db: float = 0.0

    def __call__(self, batch: dict[str, Tensor], recipes: Sequence[Recipe]) -> dict[str, Tensor]:
        """A batch with `mixture_wave` and `target_wave` [B, N], `other_voice` [B] and `example` [B], and its
        recipes [B] -> the batch with other mixtures."""
        generator = np.random.default_rng([self.seed, *batch["example"].tolist()])
        count = len(recipes)
        donors = generator.permutation(count)
        wanted = generator.random(count) < self.share
        voices = [
            {self._speaker(clip) for source in recipe.interference for clip in source.voices}
            for recipe in recipes
        ]
        for row, donor in enumerate(donors):
            wanted[row] &= self._speaker(recipes[row].reference) not in voices[donor]
        mixture, target = batch["mixture_wave"], batch["target_wave"]
        interference = mixture - target
        sounding = interference.count_nonzero(-1).clamp_min(1)
        level = (interference.square().sum(-1) / sounding).sqrt()
        donated, its_level = interference[donors], level[donors]
        exchanged = torch.from_numpy(wanted) & (level > 0) & (its_level > 0)
        gain = torch.where(exchanged, level / its_level, 0.0)
        if self.within_db:
            change = generator.uniform(-self.within_db, self.within_db, count)
            gain = gain * torch.from_numpy(10 ** (change / 20)).float()
        new = target + gain[:, None] * donated
        return batch | {
            "mixture_wave": torch.where(exchanged[:, None], new, mixture),
            "other_voice": torch.where(exchanged, batch["other_voice"][donors], batch["other_voice"]),
        }

    def _speaker(self, clip: Clip) -> str:
        return self.utterances[clip.utterance].speaker
