"""Pictures of spectrograms and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.files import atomic_file

RANGE_DB = 70.0


def spectrogram_figure(
    magnitudes: dict[str, np.ndarray],
    mask: np.ndarray | None,
    rate: int,
    hop: int,
    title: str = "",
) -> np.ndarray:
    """Draws magnitudes (name -> [T, F], linear) and a mask [T, F] in [0, 1] below each other, on one scale.

    `rate` is the sample rate in Hz, `hop` the frame step in samples. Levels are dB below the loudest bin of
    the first magnitude. Returns uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    loudest = max(float(next(iter(magnitudes.values())).max()), 1e-8)
    rows = len(magnitudes) + (mask is not None)
    figure = Figure(figsize=(10, 2.2 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, magnitude) in zip(axes, magnitudes.items(), strict=False):
        level = 20 * np.log10(np.maximum(magnitude / loudest, 1e-8))
        _draw(figure, axis, level, name, rate, hop, (-RANGE_DB, 0.0), "magma", "dB")
    if mask is not None:
        _draw(figure, axes[-1], mask, "mask", rate, hop, (0.0, 1.0), "viridis", "gain")
    axes[-1].set_xlabel("time (s)")
    if title:
        figure.suptitle(title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(figure, axis, values, name, rate, hop, limits, colours, unit) -> None:  # type: ignore[no-untyped-def]
    frames = values.shape[0]
    image = axis.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        extent=(0, frames * hop / rate, 0, rate / 2000),
        vmin=limits[0],
        vmax=limits[1],
        cmap=colours,
        interpolation="nearest",
    )
    axis.set_title(name, fontsize=10, loc="left")
    axis.set_ylabel("kHz")
    figure.colorbar(image, ax=axis, label=unit, pad=0.01)


def save_picture(path: Path | str, image: np.ndarray) -> None:
    """Writes uint8 [height, width, 3] as PNG, atomically."""
    from matplotlib.image import imsave

    with atomic_file(path) as temporary:
        imsave(temporary, image, format="png")
