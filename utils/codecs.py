"""What lossy codecs leave of a sound: it is encoded and decoded again, in memory, by FFmpeg (PyAV)."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np

from utils.audio import resample
from utils.errors import UserError


@dataclass(frozen=True)
class Codec:
    """FFmpeg's `encoder` and the `container` that keeps its delay, at `rate` Hz and `kbps`. `delay`: samples
    that the container does not keep."""

    encoder: str
    container: str
    rate: int
    kbps: float
    delay: int = 0


_FAMILIES: dict[str, tuple[Codec, tuple[float, ...]]] = {
    "mp3": (Codec("libmp3lame", "mp3", 16000, 0), (16, 24, 32, 48, 64)),
    "aac": (Codec("aac", "mp4", 16000, 0), (16, 24, 32, 48)),
    "opus": (Codec("libopus", "ogg", 16000, 0), (8, 12, 16, 24, 32)),
    "amr": (Codec("libopencore_amrnb", "amr", 8000, 0, delay=40), (4.75, 7.95, 12.2)),
    "ulaw": (Codec("pcm_mulaw", "wav", 8000, 0), (64,)),
    "alaw": (Codec("pcm_alaw", "wav", 8000, 0), (64,)),
}
CODECS: dict[str, Codec] = {
    f"{family}-{kbps:g}": replace(codec, kbps=kbps)
    for family, (codec, rates) in _FAMILIES.items()
    for kbps in rates
}
"""By names such as mp3-32: files (mp3, aac), voice over IP (opus), telephones (amr, G.711 as ulaw and alaw);
the number is kbit/s."""


def through_codec(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Samples [N] at `rate` Hz -> what the codec of that name in CODECS leaves of them: float32 [N], aligned
    to a tenth of a millisecond. What goes beyond [-1, 1] is coded at a lower level and brought back. The bits
    differ between builds of FFmpeg. Raises UserError where this one cannot do it."""
    import av  # here: only who draws codecs waits for it

    codec = CODECS[name]
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    own = resample(np.ascontiguousarray(samples / np.float32(peak), np.float32), rate, codec.rate)
    if not len(own):
        return np.zeros(len(samples), np.float32)
    try:
        decoded, its_rate = _coded(np.pad(own, (0, codec.delay)), codec)
    except (ValueError, av.FFmpegError) as error:
        raise UserError(f"codec {name}: FFmpeg does not take {len(own)} samples ({error})") from error
    decoded = resample(decoded[codec.delay * its_rate // codec.rate :], its_rate, rate) * np.float32(peak)
    length = len(samples)
    return np.pad(decoded, (0, max(0, length - len(decoded))))[:length]


def _coded(samples: np.ndarray, codec: Codec) -> tuple[np.ndarray, int]:
    """Samples [N] at the codec's rate -> what is decoded, and at what rate."""
    import av

    content = io.BytesIO()
    with av.open(content, "w", format=codec.container) as file:
        stream = file.add_stream(codec.encoder, rate=codec.rate)
        stream.bit_rate = round(1000 * codec.kbps)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = codec.rate, 0  # from which mp4 counts the delay
        fitting = av.AudioResampler(stream.codec_context.format, "mono", codec.rate).resample(frame)
        for part in (*fitting, None):
            file.mux(stream.encode(part))
    content.seek(0)
    with av.open(content) as file:
        stream = file.streams.audio[0]
        made = av.AudioResampler("flt", "mono", stream.rate)
        parts = [part.to_ndarray()[0] for frame in file.decode(stream) for part in made.resample(frame)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32), stream.rate
