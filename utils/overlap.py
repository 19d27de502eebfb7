"""Long signals in pieces: overlapping chunks, cross-faded, so that memory does not grow with the length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def overlap_add(process: Callable[[Tensor], Tensor], signal: Tensor, chunk: int, overlap: int) -> Tensor:
    """Applies `process` ([C, n] -> [C, n]) to chunks of `signal` [C, N] and cross-fades linearly.

    `chunk` and `overlap` are samples; a signal of at most `chunk` samples goes through in one piece. The
    weights of all chunks sum to one at every sample. Raises ValueError unless 0 <= 2*overlap <= chunk.
    """
    if not 0 <= 2 * overlap <= chunk:
        raise ValueError(f"overlap {overlap} must be between 0 and half of the chunk {chunk}")
    length = signal.shape[-1]
    if length <= chunk:
        return process(signal)
    out = torch.zeros_like(signal)
    total = torch.zeros(length)
    hop = chunk - overlap
    ramp = (torch.arange(overlap) + 0.5) / max(overlap, 1)
    for start in range(0, length - overlap, hop):
        stop = min(start + chunk, length)
        weight = torch.ones(stop - start)
        if start > 0:
            weight[:overlap] = ramp
        if stop < length:
            weight[-overlap or None :] *= ramp.flip(0) if overlap else 1.0
        out[..., start:stop] += process(signal[..., start:stop]) * weight.to(signal)
        total[start:stop] += weight
    assert torch.allclose(total, torch.ones(length), atol=1e-5), "cross-fade weights must sum to one"
    return out
