"""Rooms that examples sound in: impulse responses, measured or of simulated shoeboxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from config.schema import Reverberation

Point = tuple[float, float, float]
WALL_METRES = 0.5
"""Microphone and voices keep this distance from the walls and from each other."""
EARLY_SECONDS = 0.05


@dataclass(frozen=True)
class Room:
    """What one source sounds like from the microphone: a measured response, or a place in a shoebox.

    `rir` is the id of a measured impulse response and `digest` its file's. Otherwise `size` (length, width,
    height), `source` and `microphone` are metres, and `rt60` seconds. `early`: the target that is asked for
    holds only the first EARLY_SECONDS after the direct sound.
    """

    rir: str = ""
    digest: str = ""
    size: Point | None = None
    rt60: float = 0.0
    source: Point | None = None
    microphone: Point | None = None
    early: bool = False

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Room:
        points = {name: tuple(tree[name]) for name in ("size", "source", "microphone") if tree.get(name)}
        room = cls(**{**tree, **points})
        if not isinstance(room.rir, str) or not isinstance(room.digest, str):
            raise ValueError(f"room {tree}")
        if not room.rir and not (room.size and room.source and room.microphone and room.rt60 > 0):
            raise ValueError(f"room {tree}")
        if room.size is not None:
            for point in (room.source or (), room.microphone or ()):
                inside = [0 < place < side for place, side in zip(point, room.size, strict=True)]
                if not room.rir and not all(inside):
                    raise ValueError(f"room {tree}: {point} is not in it")
        return room


def draw_shoebox(options: Reverberation, generator: np.random.Generator) -> Callable[[], Room]:
    """A room and a microphone in it; every call of the result is another place to sound from."""
    low, high = options.size
    floor = [float(side) for side in generator.uniform(low, high, 2)]
    size = _metres(floor[0], floor[1], float(generator.uniform(2.4, 3.5)))
    rt60 = round(float(generator.uniform(options.rt60[0], options.rt60[1])), 3)
    # a room cannot absorb more than all: Sabine's formula bounds the reverberation time from below
    length, width, height = size
    surface = 2 * (length * width + length * height + width * height)
    rt60 = max(rt60, round(0.17 * length * width * height / surface, 3))
    microphone = _place(size, generator)

    def voice() -> Room:
        for _ in range(100):
            source = _place(size, generator)
            if np.linalg.norm(np.subtract(source, microphone)) >= WALL_METRES:
                break
        return Room(size=size, rt60=rt60, source=source, microphone=microphone)

    return voice


def _place(size: Point, generator: np.random.Generator) -> Point:
    length, width, height = (float(generator.uniform(WALL_METRES, side - WALL_METRES)) for side in size)
    return _metres(length, width, height)


def _metres(x: float, y: float, z: float) -> Point:
    return round(float(x), 3), round(float(y), 3), round(float(z), 3)


def simulate(room: Room, rate: int) -> np.ndarray:
    """The impulse response of a shoebox at `rate` Hz by the image source method: float64 [N]."""
    import pyroomacoustics  # here: only reverberant data needs it

    pyroomacoustics.constants.set("num_threads", 1)  # the order of summation decides the last bits
    assert room.size is not None and room.source is not None and room.microphone is not None
    absorption, order = pyroomacoustics.inverse_sabine(room.rt60, room.size)
    shoebox = pyroomacoustics.ShoeBox(
        room.size,
        fs=rate,
        materials=pyroomacoustics.Material(absorption),
        # of as many reflections as are heard before 60 dB are gone; all that there are would take a second
        max_order=min(order, round(15 + 55 * room.rt60)),
    )
    shoebox.add_source(room.source)
    shoebox.add_microphone(room.microphone)
    shoebox.compute_rir()
    return np.asarray(shoebox.rir[0][0], np.float64)


ROOMS = 2
"""Raised when sources in rooms are rendered in another way, so that no store is a mixture of two ways."""


def reverberate(samples: np.ndarray, response: np.ndarray, rate: int, early: bool = False) -> np.ndarray:
    """Convolves samples [N] with an impulse response [M] so that the direct sound keeps its place and level.

    `early` cuts the response EARLY_SECONDS after its strongest tap. Returns float32 [N].
    """
    from scipy.signal import fftconvolve  # here: slow to import

    peak = int(np.argmax(np.abs(response)))
    level = abs(response[peak])
    if level == 0:
        return samples
    if early:
        response = response[: peak + round(EARLY_SECONDS * rate)]
    wet = fftconvolve(samples.astype(np.float64), response / level)
    return wet[peak : peak + len(samples)].astype(np.float32)
