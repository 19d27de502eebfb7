"""A wider recurrent network out of a narrower one's weights, with the same output.

Net2Net (Chen et al. 2016, arXiv 1511.05641): new units are copies of old ones, and what leaves an old unit
is shared out to its copies, unequally, so that they learn different things from then on.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

SEED, SPREAD = 0, 0.4
"""Of the shares: the same narrow weights always become the same wide ones, so that these can be averaged
with what they became by training."""
WIDTHS = ("front_dim", "lstm_dim")
RECURRENT = re.compile(r"(lstms\.\d+|residuals\.\d+\.lstm)\.weight_ih_l0")


class Widening:
    """From one network's widths to another's, which are not smaller: units of the front layer, and of an LSTM
    in one direction."""

    def __init__(self, there: tuple[int, int], here: tuple[int, int]) -> None:
        (old_front, old), (new_front, new) = there, here
        self.front, self.hidden = torch.arange(new_front) % old_front, torch.arange(new) % old
        self.both = torch.cat([self.hidden, self.hidden + old])  # features of both directions
        self.film = torch.cat([self.both, self.both + 2 * old])  # scales and shifts
        self.gates = torch.cat([self.hidden + gate * old for gate in range(4)])

    def __call__(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a FilmBlstm. Layer norms see some features twice: where not every unit has as many
        copies as the others, the output is nearly the same only."""
        self.generator = torch.Generator().manual_seed(SEED)
        new = dict(state)
        for name in ("front.weight", "front.bias"):
            new[name] = state[name][self.front]
        for name in state:
            if match := RECURRENT.fullmatch(name):
                source = self.front if match[1] == "lstms.0" else self.both
                for way in ("", "_reverse"):
                    self._recurrent(new, match[1], way, source)
            elif name.startswith("norms.") or re.match(r"residuals\.\d+\.norm\.", name):
                new[name] = state[name][self.both]
            elif re.fullmatch(r"(residuals\.\d+\.)?film\.(weight|bias)", name):
                new[name] = state[name][self.film]
        new["out.weight"] = self.shared(state["out.weight"], self.both)
        return new

    def _recurrent(self, new: dict[str, Tensor], name: str, way: str, source: Tensor) -> None:
        for kind, units in (("ih", source), ("hh", self.hidden)):
            weight, bias = f"{name}.weight_{kind}_l0{way}", f"{name}.bias_{kind}_l0{way}"
            new[weight] = self.shared(new[weight][self.gates], units)
            new[bias] = new[bias][self.gates]

    def shared(self, weight: Tensor, source: Tensor) -> Tensor:
        """Weights [R, old units] -> [R, new units]: column j is a share of column `source[j]`, whose shares
        sum up to it."""
        rows, old = weight.shape
        copies = torch.bincount(source, minlength=old).to(weight)
        noise = SPREAD * torch.randn(rows, len(source), generator=self.generator).to(weight)
        mean = torch.zeros_like(weight).index_add_(1, source, noise) / copies
        return weight[:, source] * (1 / copies[source] + noise - mean[:, source])
