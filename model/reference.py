"""The recording that says whose voice is wanted: read, converted, and refused where it says nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from utils.audio import active_seconds, read_audio, resample
from utils.audio_check import clipped_share
from utils.errors import UserError

MIN_SPEECH_SECONDS = 0.4
CLIPPED_SHARE = 0.001


def read_reference(path: Path | str, rate: int) -> np.ndarray:
    """A reference of any rate and number of channels -> mono at `rate` Hz, float32 [N].

    Clipping is warned of. Raises UserError for a file that cannot be read, holds NaN, is silent, or holds
    less than MIN_SPEECH_SECONDS of speech.
    """
    samples, own_rate = read_audio(path)
    share = clipped_share(samples)
    if share > CLIPPED_SHARE:
        print(
            f"WARNING: {path}: is clipped ({100 * share:.1f} % of the samples stand at a limit of "
            f"{np.abs(samples).max():.3f}); another recording of the voice would be better",
            file=sys.stderr,
        )
    mono = resample(samples.mean(axis=0), own_rate, rate)
    require_speech(mono, rate, str(path))
    return mono


def require_speech(samples: np.ndarray, rate: int, name: str) -> None:
    """Raises UserError, which begins with `name`, unless a mono signal [N] holds enough speech."""
    seconds = active_seconds(samples, rate)
    if seconds == 0:
        raise UserError(f"{name}: is silent; at least {MIN_SPEECH_SECONDS} s of speech is needed")
    if seconds < MIN_SPEECH_SECONDS:
        raise UserError(f"{name}: {seconds:.2f} s of speech, at least {MIN_SPEECH_SECONDS} s is needed")
