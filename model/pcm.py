"""Separation while one speaks: 16-bit samples in, 16-bit samples out, in steps of a frame."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from model.separator import Separator
from model.streaming import StreamingSeparator
from utils.audio_stream import reader_may_leave
from utils.errors import UserError

FULL_SCALE = 32768


def stream_pcm(
    separator: Separator, embedding: Tensor | None, source: BinaryIO | None, sink: BinaryIO
) -> int:
    """Separates mono PCM (16 bits, little-endian, at the separator's rate) from `source`, or from the
    microphone (None), into `sink`, a hop at a time, until the source ends or Ctrl-C; returns the samples that
    came.

    A reader of `sink` that goes away ends it, too. Raises UserError for a network that is not causal.
    """
    try:
        stream = StreamingSeparator(separator, embedding)
    except ValueError as error:
        raise UserError(f"--stream: {error}") from error
    hop, rate = stream.hop, separator.sample_rate
    latency = 1000 * (stream.latency + 1) / rate
    print(
        f"streaming: 16-bit PCM, mono, {rate} Hz, steps of {1000 * hop / rate:.0f} ms, "
        f"algorithmic latency {latency:.0f} ms",
        file=sys.stderr,
    )
    received = 0
    with reader_may_leave(sink), _samples(source, hop, rate) as read, _one_thread():
        with suppress(KeyboardInterrupt):  # how one stops a microphone
            while len(data := read()):
                received += len(data)
                block = torch.from_numpy(data.astype(np.float32) / FULL_SCALE)[None]
                _write(sink, stream(block.to(separator.device)))
        _write(sink, stream.flush())
    return received


@contextmanager
def _one_thread() -> Iterator[None]:
    """A hop's products are too small to be shared: beside other work, threads that wait for each other took
    three times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(sink: BinaryIO, estimate: Tensor) -> None:
    if estimate.shape[1]:
        samples = (estimate[0] * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1)
        sink.write(samples.cpu().numpy().astype("<i2").tobytes())
        sink.flush()


@contextmanager
def _samples(source: BinaryIO | None, hop: int, rate: int) -> Iterator[Callable[[], np.ndarray]]:
    """Gives the next `hop` samples or, at the end, what is left; none: it has ended."""
    if source is not None:
        file = source

        def read() -> np.ndarray:
            data = file.read(2 * hop)
            return np.frombuffer(data[: len(data) // 2 * 2], "<i2")

        yield read
        return
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise UserError(f"--microphone: needs the package sounddevice and PortAudio ({error})") from error
    try:
        with sounddevice.RawInputStream(samplerate=rate, channels=1, dtype="int16", blocksize=hop) as device:
            yield lambda: np.frombuffer(bytes(device.read(hop)[0]), "<i2")
    except sounddevice.PortAudioError as error:
        raise UserError(f"--microphone: {error}") from error
