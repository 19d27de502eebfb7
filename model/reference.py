"""The recording that says whose voice is wanted: read, converted, and refused where it says nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.audio import active_seconds, frame_levels, frame_size, is_active, resample
from utils.audio_check import clipped_share
from utils.audio_stream import AudioReader
from utils.errors import UserError

MIN_SPEECH_SECONDS = 0.4
CLIPPED_SHARE = 0.001
EDGE_SECONDS = 0.1


def read_reference(path: Path | str, rate: int) -> np.ndarray:
    """A reference of any rate and number of channels -> mono at `rate` Hz, float32 [N].

    What `trim_silence` leaves of it. Clipping is warned of. Raises UserError for a file that cannot be read
    to its end, holds NaN, is silent, or holds less than MIN_SPEECH_SECONDS of speech.
    """
    reader = AudioReader(path)
    samples, own_rate = np.concatenate(list(reader.blocks()), axis=1), reader.rate
    share = clipped_share(samples)
    if share > CLIPPED_SHARE:
        tqdm.write(  # which leaves progress bars whole
            f"WARNING: {path}: is clipped ({100 * share:.1f} % of the samples stand at a limit of "
            f"{np.abs(samples).max():.3f}); another recording of the voice would be better",
            file=sys.stderr,
        )
    return trim_silence(resample(samples.mean(axis=0), own_rate, rate), rate, str(path))


def trim_silence(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """A mono signal [N] without the silence before its first and behind its last sound, except for
    EDGE_SECONDS: windows of silence would have a share in the mean of an embedding.

    Raises UserError, which begins with `name`, unless it holds enough speech.
    """
    seconds = active_seconds(samples, rate)
    if seconds == 0:
        raise UserError(f"{name}: is silent; at least {MIN_SPEECH_SECONDS} s of speech is needed")
    if seconds < MIN_SPEECH_SECONDS:
        raise UserError(f"{name}: {seconds:.2f} s of speech, at least {MIN_SPEECH_SECONDS} s is needed")
    sounding = np.flatnonzero(is_active(frame_levels(samples, frame_size(rate)))) * frame_size(rate)
    edge = round(EDGE_SECONDS * rate)
    return samples[max(0, sounding[0] - edge) : sounding[-1] + frame_size(rate) + edge]
