"""Renders recipes: reads what they name, puts it in its room, at its place and level, and adds it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.corpus import Utterance
from datasets.recipe import EQUALIZER_HZ, Clip, Recipe, Source
from datasets.rooms import reverberate, simulate
from utils.audio import read_audio, resample
from utils.codecs import through_codec
from utils.errors import UserError

SILENT_POWER = 1e-10
"""A source of less mean power (-100 dB re full scale) has no level that others could be set against."""


@dataclass(frozen=True)
class Example:
    """Rendered audio, float32 [N] each; mixture = target + interference, sample by sample."""

    mixture: np.ndarray
    target: np.ndarray
    interference: np.ndarray


@dataclass(frozen=True)
class Track:
    """A source on the mixture's time axis, float32 [N]; `wanted`: as much of it as a target would hold.

    `power` is the mean square where it sounds.
    """

    samples: np.ndarray
    wanted: np.ndarray
    power: float


def read_clip(clip: Clip, utterance: Utterance, rate: int) -> np.ndarray:
    """The clip's audio, mono at `rate` Hz: float32 [round(seconds * rate)]. Raises UserError."""
    own_rate = round(utterance.rate * clip.speed)
    parts = []
    for start, frames in clip.stretches:
        samples, _ = read_audio(utterance.path, start, start + frames)
        if samples.shape[1] != frames:
            raise UserError(
                f"{utterance.path}: {samples.shape[1]} samples from {start} on where the index promised "
                f"{frames}; the file has changed or is truncated"
            )
        parts.append(samples.mean(axis=0) if len(samples) > 1 else samples[0])
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    samples = resample(joined, own_rate, rate)
    expected = round(clip.frames * rate / own_rate)
    return np.pad(samples, (0, max(0, expected - len(samples))))[:expected]


def read_response(utterance: Utterance, rate: int) -> np.ndarray:
    """A measured impulse response, its first channel (an average would be none): float64 [N]."""
    samples, own_rate = read_audio(utterance.path)
    return resample(samples[0], own_rate, rate).astype(np.float64)


def render(recipe: Recipe, utterances: Mapping[str, Utterance], rate: int) -> Example:
    """Reads and mixes what the recipe says at `rate` Hz. Raises UserError when audio is missing or short."""
    length = round(recipe.seconds * rate)
    tracks = [_render_source(source, recipe, utterances, length, rate) for source in recipe.sources]
    foremost = tracks[0].power
    target = silence = np.zeros(length, np.float32)
    interference = silence
    for source, track in zip(recipe.sources, tracks, strict=True):
        gain = _gain(source, track, foremost)
        if source is recipe.target:
            target = track.wanted
            if track.wanted is not track.samples:  # late reverberation is not asked for
                interference = track.samples - track.wanted
            continue
        samples = track.samples if gain == 1.0 else (track.samples * gain).astype(np.float32)
        interference = samples if interference is silence else interference + samples
    if recipe.gain_db:
        scale = np.float32(10 ** (recipe.gain_db / 20))
        target, interference = target * scale, interference * scale
    if recipe.reverse:
        target, interference = interference, target
    return Example(target + interference, target, interference)


def _gain(source: Source, track: Track, foremost: float) -> float:
    if source.snr_db is None or min(track.power, foremost) < SILENT_POWER:
        return 1.0
    # rounded, so that the last bit of a sum, which another processor may order differently, does not matter
    return float(f"{np.sqrt(foremost / track.power / 10 ** (source.snr_db / 10)):.9g}")


def _render_source(
    source: Source, recipe: Recipe, utterances: Mapping[str, Utterance], length: int, rate: int
) -> Track:
    at = round(source.at * rate)
    parts = [read_clip(clip, _find(clip.utterance, recipe, utterances), rate) for clip in source.clips]
    samples = parts[0] if len(parts) == 1 else _at_equal_level(parts)
    if source.loop and 0 < len(samples) < length - at:
        samples = np.tile(samples, -(-(length - at) // len(samples)))
    samples = samples[: length - at]
    if source.equalizer:
        samples = equalize(samples, source.equalizer, rate)
    if source.codec and _power(samples) >= SILENT_POWER:  # A-law has no zero
        samples = through_codec(samples, rate, source.codec)
    wanted, sounding = samples, len(samples)
    if source.room is not None:
        room, dry = source.room, np.pad(samples, (0, length - at - sounding))  # it sounds on
        response = (
            read_response(_find(room.rir, recipe, utterances), rate) if room.rir else simulate(room, rate)
        )
        samples = wanted = reverberate(dry, response, rate)
        if source.room.early:
            wanted = reverberate(dry, response, rate, early=True)
    power, placed = _power(samples[:sounding]), _place(samples, at, length)
    return Track(placed, placed if wanted is samples else _place(wanted, at, length), power)


def _power(samples: np.ndarray) -> float:
    return float(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0


def equalize(samples: np.ndarray, gains_db: Sequence[float], rate: int) -> np.ndarray:
    """Samples [N] at `rate` Hz with gains in dB at EQUALIZER_HZ, linear in between over the logarithm of the
    frequency and constant beyond; without delay. Returns float32 [N]."""
    size = len(samples) + rate // 20  # what the filter adds at one end must not come in at the other
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    octaves = np.log2(np.maximum(frequencies, EQUALIZER_HZ[0]))
    gains = 10 ** (np.interp(octaves, np.log2(EQUALIZER_HZ), gains_db) / 20)
    return np.fft.irfft(np.fft.rfft(samples, size) * gains, size)[: len(samples)].astype(np.float32)


def _find(name: str, recipe: Recipe, utterances: Mapping[str, Utterance]) -> Utterance:
    if name not in utterances:
        raise UserError(f"recipe {recipe.index}: utterance {name} is not in the corpus")
    return utterances[name]


def _place(samples: np.ndarray, at: int, length: int) -> np.ndarray:
    if at == 0 and len(samples) == length:
        return samples
    return np.pad(samples, (at, length - at - len(samples)))


def _at_equal_level(parts: list[np.ndarray]) -> np.ndarray:
    """The voices of a babble, added at the level of the first that is not silent."""
    powers = [_power(part) for part in parts]
    reference = next((power for power in powers if power >= SILENT_POWER), 0.0)
    total = np.zeros(max(map(len, parts)), np.float32)
    for part, power in zip(parts, powers, strict=True):
        gain = float(f"{np.sqrt(reference / power):.9g}") if power >= SILENT_POWER else 1.0
        total[: len(part)] += (part * gain).astype(np.float32)
    return total
