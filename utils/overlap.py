"""Long signals in pieces: overlapping chunks, cross-faded, so that memory does not grow with the length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def overlap_stream(
    process: Callable[[Tensor], Tensor],
    blocks: Iterable[Tensor],
    chunk: int,
    overlap: int,
    fade: int | None = None,
    at_once: int = 1,
) -> Iterator[Tensor]:
    """Applies `process` ([K, C, n] -> [K, C, n]) to chunks of a signal that comes in `blocks` [C, n] of any
    sizes, and gives the finished samples [C, m], in all as many as came.

    Two neighbouring chunks of `chunk` samples share `overlap`. In its middle one fades linearly into the
    other during `fade` samples (None: the whole overlap); what lies outside only gives the chunk its context.
    Up to `at_once` chunks of equal length go through together; a signal of at most `chunk` samples goes
    through in one piece. Raises ValueError unless 0 <= fade <= overlap <= chunk / 2.
    """
    fade = overlap if fade is None else fade
    if not 0 <= fade <= overlap <= chunk / 2:
        raise ValueError(
            f"fade {fade}, overlap {overlap}, chunk {chunk}: 0 <= fade <= overlap <= chunk / 2 must hold"
        )
    join = _Join(overlap, fade)
    hop, held, waiting = chunk - overlap, [], 0
    for block in blocks:
        held.append(block)
        waiting += block.shape[-1]
        while waiting > (at_once - 1) * hop + chunk:  # there is more behind, so none of these is the last
            signal = torch.cat(held, dim=-1)
            for piece in process(signal.unfold(-1, chunk, hop)[:, :at_once].transpose(0, 1)):
                yield join(piece, last=False)
            held = [signal[:, at_once * hop :]]
            waiting -= at_once * hop
    if not waiting:
        return
    signal = torch.cat(held, dim=-1)
    while signal.shape[-1] > chunk:
        yield join(process(signal[None, :, :chunk])[0], last=False)
        signal = signal[:, hop:]
    yield join(process(signal[None])[0], last=True)


class _Join:
    """Fades each chunk's end into the beginning of the next."""

    def __init__(self, overlap: int, fade: int) -> None:
        self.margin, self.fade = (overlap - fade) // 2, fade
        self.rest = overlap - fade - self.margin  # context behind the fade
        self.ramp = (torch.arange(fade) + 0.5) / max(fade, 1)
        self.fading: Tensor | None = None

    def __call__(self, piece: Tensor, last: bool) -> Tensor:
        """The next chunk's result [C, n] -> what is finished with it."""
        ramp = self.ramp.to(piece)
        if self.fading is not None:
            piece = piece[:, self.margin :].clone()
            piece[:, : self.fade] = piece[:, : self.fade] * ramp + self.fading * (1 - ramp)
        if last:
            return piece
        stop = piece.shape[-1] - self.rest
        self.fading = piece[:, stop - self.fade : stop]
        return piece[:, : stop - self.fade]
