"""What sounds around a voice: noise and music behind it, and the room that it sounds in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from config.options import Background, Level, Reverberation
from datasets.corpus import Utterance
from datasets.recipe import Clip, Source
from datasets.rooms import Room, draw_shoebox
from datasets.stretches import draw_cut
from utils.errors import UserError

BEHIND = ("noise", "music")


class Surroundings:
    """Draws sounds and rooms from the `sounds` of a split: recordings of noise, music and rirs by kind.

    A stretch of a recording holds `min_active` seconds of sound if the recording has them.
    """

    def __init__(
        self,
        background: Background,
        reverberation: Reverberation,
        min_active: float,
        sounds: Mapping[str, Sequence[Utterance]],
    ) -> None:
        self.background, self.reverberation, self.min_active = background, reverberation, min_active
        self.sounds = dict(sounds)

    def require_sounds(self, split: str, others: Collection[str] = ()) -> None:
        """Raises UserError where a kind that is drawn from has no recording.

        `others`: noise or music that the caller draws itself.
        """
        wanted = [what for what in BEHIND if what in others or getattr(self.background, what)]
        wanted += ["rirs"] if self.reverberation.share and self.reverberation.rooms == "measured" else []
        for what in wanted:
            if not self.sounds.get(what):
                raise UserError(
                    f"{split}: is drawn with {what}, of which there is no recording for it; name a folder of "
                    f"{what}, or another (data.{what}, --{what})"
                )

    def draw_sound(
        self, what: str, seconds: float, generator: np.random.Generator, loop: bool = False
    ) -> Source:
        """A stretch of noise or music of `seconds`, or a whole recording if that is shorter.

        `loop`: the shorter one is repeated.
        """
        recordings = self.sounds[what]
        recording = recordings[int(generator.integers(len(recordings)))]
        wanted, whole = round(seconds * recording.rate), ((0, recording.frames),)
        if wanted >= recording.frames:
            clip = Clip(recording.id, whole, digest=recording.digest)
            return Source(what, (clip,), loop=loop and wanted > recording.frames)
        least = round(min(self.min_active, seconds) * recording.rate)
        stretches = draw_cut(whole, wanted, recording.active, least, generator)
        return Source(what, (Clip(recording.id, stretches, digest=recording.digest),))

    def draw_background(self, seconds: float, generator: np.random.Generator) -> list[Source]:
        """Noise, music, both or nothing, by their shares and at their SNR, for `seconds`."""
        found = []
        for what in BEHIND:
            share = getattr(self.background, what)
            if share and generator.random() < share:
                source = self.draw_sound(what, seconds, generator, loop=True)
                found.append(at_level(source, self.background.snr_db, generator))
        return found

    def draw_rooms(self, generator: np.random.Generator) -> Callable[[], Room] | None:
        """None for the share of the examples that sounds in no room.

        Every call of the result gives another place in one room, or another measured impulse response.
        """
        options = self.reverberation
        if not options.share or generator.random() >= options.share:
            return None
        if options.rooms == "simulated":
            return draw_shoebox(options, generator)
        responses = self.sounds["rirs"]

        def measured() -> Room:
            response = responses[int(generator.integers(len(responses)))]
            return Room(rir=response.id, digest=response.digest)

        return measured


def at_level(source: Source, snr_db: Level, generator: np.random.Generator) -> Source:
    """The source at an SNR that is drawn from `snr_db`."""
    return replace(source, snr_db=draw_level(snr_db, generator))


def draw_level(level: float | Sequence[float], generator: np.random.Generator) -> float:
    """dB, to three decimals: the number itself, or one of the range [low, high]."""
    low, high = (level, level) if isinstance(level, (int, float)) else level
    return round(float(generator.uniform(low, high)), 3)
