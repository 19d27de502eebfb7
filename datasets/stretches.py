"""Arithmetic on stretches: (start, frames) pairs in samples of one recording, in order, taken as one
signal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from datasets.corpus import Utterance

Stretches = tuple[tuple[int, int], ...]


def total(stretches: Stretches) -> int:
    return sum(frames for _, frames in stretches)


def cut(stretches: Stretches, offset: int, frames: int) -> Stretches:
    """`frames` samples from `offset` on, fewer where the signal ends."""
    parts = []
    for start, length in stretches:
        taken = min(length - offset, frames)
        if taken > 0:
            parts.append((start + max(offset, 0), taken))
            frames -= taken
            offset = 0
        else:
            offset -= length
        if frames == 0:
            break
    return tuple(parts)


def usable(utterance: Utterance, vad: str) -> Stretches:
    """The whole utterance, or with `vad` trim without silence at its ends, with merge without any silence."""
    if vad == "none" or not utterance.active:
        return ((0, utterance.frames),)
    if vad == "trim":
        first, last = utterance.active[0][0], utterance.active[-1][1]
        return ((first, last - first),)
    return tuple((start, stop - start) for start, stop in utterance.active)


def before(stretches: Stretches, sample: int) -> int:
    """How many samples of the stretches lie before `sample` of the recording."""
    return sum(min(max(sample - start, 0), frames) for start, frames in stretches)


def halves(stretches: Stretches) -> tuple[Stretches, Stretches]:
    frames = total(stretches)
    return cut(stretches, 0, frames // 2), cut(stretches, frames // 2, frames)


def active_frames(stretches: Stretches, active: Sequence[tuple[int, int]] | None) -> int:
    """Samples of the stretches in which something sounds; all of them where nobody looked (None)."""
    if active is None:
        return total(stretches)
    count = 0
    for start, frames in stretches:
        stop = start + frames
        # active stretches do not overlap: those before the one that may contain `start` do not matter
        first = max(0, bisect_right(active, (start, 1 << 62)) - 1)
        for from_, to in active[first:]:
            if from_ >= stop:
                break
            count += max(0, min(stop, to) - max(start, from_))
    return count


def draw_cut(
    stretches: Stretches,
    frames: int,
    active: Sequence[tuple[int, int]] | None,
    least: int,
    generator: np.random.Generator,
    tries: int = 20,
) -> Stretches:
    """`frames` samples from a random offset, with at least `least` active ones.

    A few offsets are tried, then a few around active stretches; where none has enough, the one with most is
    taken.
    """
    room = total(stretches) - frames
    best: Stretches = ()
    most = -1
    for number in range(2 * tries if room > 0 else 1):
        offset = int(generator.integers(room + 1)) if room > 0 else 0
        if number >= tries and active:
            start, stop = active[int(generator.integers(len(active)))]
            inside = before(stretches, start)
            # the stretch begins in the cut, and as much of it as is needed ends there
            low = inside + min(stop - start, least) - frames
            offset = int(generator.integers(low, inside + 1)) if low < inside else inside
            offset = min(max(offset, 0), room)
        found = cut(stretches, offset, frames)
        count = active_frames(found, active)
        if count >= least:
            return found
        if count > most:
            best, most = found, count
    return best
