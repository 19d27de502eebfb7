"""A picture of a separated recording: spectrograms of its signals, and the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.separator import Separator
from utils.audio import read_mono, resample
from utils.audio_stream import AudioReader
from utils.plots import save_picture, spectrogram_figure

SECONDS = 20.0
"""That are drawn, from the beginning."""


@torch.inference_mode()
def draw_recording(
    picture: Path,
    separator: Separator,
    mixture: Path,
    estimate: Path,
    target: Path | None,
    embedding: Tensor | None,
) -> None:
    """Draws the first SECONDS of mixture, target (None: there is none) and estimate, averaged over channels,
    and the mask of that mixture, as a PNG."""
    named = {"mixture": mixture, "target": target, "estimate": estimate}
    rate = AudioReader(mixture).rate
    waveforms = {}
    for name, path in named.items():
        if path is not None:
            own = beginning(path) if name != "target" else read_mono(path, rate)[: round(SECONDS * rate)]
            wave = torch.from_numpy(resample(own, rate, separator.sample_rate))
            wave = nn.functional.pad(wave, (0, max(0, separator.spectral.n_fft - len(wave))))
            waveforms[name] = wave[None].to(separator.device)
    magnitudes = {name: separator.spectral(w)[0].abs().cpu().numpy() for name, w in waveforms.items()}
    mask = separator.separate_with_mask(waveforms["mixture"], embedding)[1][0]
    if mask.ndim == 3:  # complex, [T, F, 2]
        mask = mask.norm(dim=-1).clamp(max=1)
    figure = spectrogram_figure(
        magnitudes, mask.cpu().numpy(), separator.sample_rate, separator.spectral.hop_length
    )
    save_picture(picture, figure)


def beginning(path: Path) -> np.ndarray:
    """The first SECONDS, averaged over channels [n], at the recording's own rate."""
    reader, parts, count = AudioReader(path), [], 0
    for block in reader.blocks():
        parts.append(block.mean(axis=0))
        count += len(parts[-1])
        if count >= SECONDS * reader.rate:
            break
    return np.concatenate(parts)[: round(SECONDS * reader.rate)]
