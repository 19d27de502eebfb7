"""Pictures of spectrograms and masks, of error rates, and of embeddings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_file
from utils.verification import Curve, equal_error_rate

RANGE_DB = 70.0
DET_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50)
"""Per cent, on the axes of a DET picture."""
MOST_NAMES = 20
"""Speakers that a legend or the border of a matrix still names."""


def spectrogram_figure(
    magnitudes: dict[str, np.ndarray],
    mask: np.ndarray | None,
    rate: int,
    hop: int,
    title: str = "",
    mask_name: str = "mask",
) -> np.ndarray:
    """Draws magnitudes (name -> [T, F], linear) and a mask [T, F] in [0, 1] below each other, on one scale.

    `rate` is the sample rate in Hz, `hop` the frame step in samples. Levels are dB below the loudest bin of
    the first magnitude. Returns uint8 [height, width, 3].
    """
    from matplotlib.figure import Figure

    loudest = max(float(next(iter(magnitudes.values())).max()), 1e-8)
    rows = len(magnitudes) + (mask is not None)
    figure = Figure(figsize=(10, 2.2 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, magnitude) in zip(axes, magnitudes.items(), strict=False):
        level = 20 * np.log10(np.maximum(magnitude / loudest, 1e-8))
        _draw(figure, axis, level, name, rate, hop, (-RANGE_DB, 0.0), "magma", "dB")
    if mask is not None:
        _draw(figure, axes[-1], mask, mask_name, rate, hop, (0.0, 1.0), "viridis", "gain")
    axes[-1].set_xlabel("time (s)")
    if title:
        figure.suptitle(title)
    return _image(figure)


def _image(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

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


def det_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "") -> np.ndarray:
    """Detection error trade-off (Martin et al. 1997) of named (misses, false alarms), shares [t] each.

    Both axes are normal deviates, so that scores of normal distributions give straight lines; rates
    below the axes, such as none at all, lie on their border. A dot marks the equal error rate. Returns uint8
    [height, width, 3].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), dpi=110, layout="constrained")
    axis = figure.subplots()
    low, high = _deviate(np.array([DET_TICKS[0], 60.0]) / 100)
    axis.plot([low, high], [low, high], color="0.8", linewidth=1, zorder=1)
    for number, (name, (misses, false_alarms)) in enumerate(curves.items()):
        across, up = (np.clip(_deviate(rates), low, 9.0) for rates in (false_alarms, misses))
        # of tens of millions of points, those that the eye can tell apart
        pixels = np.rint(np.stack([across, up]) * 400)
        seen = np.append(True, (np.diff(pixels) != 0).any(0))
        rate, _ = equal_error_rate(Curve(np.zeros_like(misses), misses, false_alarms))
        colour = f"C{number % 10}"
        axis.plot(
            across[seen],
            up[seen],
            color=colour,
            label=f"{name}: EER {100 * rate:.2f} %",
            zorder=3,
        )
        dot = np.clip(_deviate(np.array([rate])), low, high)
        axis.plot(dot, dot, "o", color=colour, markersize=7, markeredgecolor="white", clip_on=False, zorder=4)
    ticks = _deviate(np.array(DET_TICKS) / 100)
    names = [f"{tick:g}" for tick in DET_TICKS]
    axis.set_xticks(ticks, names)
    axis.set_yticks(ticks, names)
    axis.set(xlim=(low - 0.04, high), ylim=(low - 0.04, high), aspect="equal")  # the border's lines in full
    axis.set(xlabel="false alarms (% of the trials of two speakers)")
    axis.set(ylabel="misses (% of the trials of one speaker)")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.legend(loc="upper right", framealpha=1)
    axis.set_title(title, fontsize=11)
    return _image(figure)


def _deviate(shares: np.ndarray) -> np.ndarray:
    """The normal deviate below which a share of a normal distribution lies."""
    from scipy.special import ndtri

    return np.asarray(ndtri(shares))


def embedding_figure(
    points: np.ndarray, speakers: Sequence[str], similarity: np.ndarray, title: str = ""
) -> np.ndarray:
    """The matrix of similarities [n, n] in the order of the speakers [n], and points [n, 2] beside it.

    Lines part the speakers in the matrix. Up to MOST_NAMES speakers are named. Returns uint8
    [height, width, 3].
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names, numbers = np.unique(np.asarray(speakers), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    figure = Figure(figsize=(14, 6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_matrix(figure, left, similarity[np.ix_(order, order)], numbers[order], names)
    few = len(names) <= MOST_NAMES
    palette = colormaps["tab10" if len(names) <= 10 else "tab20" if few else "gist_ncar"]
    for number, name in enumerate(names):
        colour = palette(number) if few else palette(0.05 + 0.9 * number / (len(names) - 1))
        own = points[numbers == number]
        right.scatter(own[:, 0], own[:, 1], s=40 if few else 16, color=colour, label=name, linewidths=0)
    right.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    right.margins(0.08)
    right.set_title("projection to two dimensions, a colour a speaker", fontsize=10, loc="left")
    if few:
        right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title)
    return _image(figure)


def _draw_matrix(
    figure: Any, axis: Any, similarity: np.ndarray, owners: np.ndarray, names: np.ndarray
) -> None:
    count = len(owners)
    off = similarity[~np.eye(count, dtype=bool)] if count > 1 else similarity.ravel()
    image = axis.imshow(
        similarity, vmin=float(off.min()) - 1e-3, vmax=1.0, cmap="viridis", interpolation="nearest"
    )
    starts = np.flatnonzero(np.append(True, np.diff(owners) != 0))
    for border in starts[1:] if len(names) <= 2 * MOST_NAMES else ():
        axis.axhline(border - 0.5, color="white", linewidth=1 if len(names) <= MOST_NAMES else 0.4)
        axis.axvline(border - 0.5, color="white", linewidth=1 if len(names) <= MOST_NAMES else 0.4)
    if len(names) <= MOST_NAMES:
        middles = (starts + np.append(starts[1:], count) - 1) / 2
        axis.set_yticks(middles, names, fontsize=9)
        axis.set_xticks(middles, names, fontsize=9, rotation=90)
        axis.tick_params(length=0)
    else:
        axis.set(xlabel="utterance, in the order of the speakers", ylabel="utterance")
    axis.set_title("cosine similarity", fontsize=10, loc="left")
    figure.colorbar(image, ax=axis, pad=0.01)


def gain_figure(
    before: np.ndarray,
    gains: Mapping[str, np.ndarray],
    similarity: np.ndarray,
    pairs: Sequence[str],
    unit: str,
) -> np.ndarray:
    """How scores [n] by system improve: their distribution, against the mixture's score [n], against the
    similarity [n] of the two voices (NaN: unknown), and by `pairs` [n], the sexes of target and other voice
    (empty: unknown). Returns uint8 [height, width, 3]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), dpi=100, layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)
    groups = sorted({pair for pair in pairs if pair}) or ["all"]
    members = [np.array([pair == group or groups == ["all"] for pair in pairs]) for group in groups]
    fourth.set_xticks(
        range(len(groups)), [f"{g}\n(n {m.sum()})" for g, m in zip(groups, members, strict=True)]
    )
    fourth.grid(axis="y", alpha=0.3)
    for number, gain in enumerate(gains.values()):
        offset = 0.15 * (number - (len(gains) - 1) / 2)
        boxes = [gain[member] for member in members]
        colour = f"C{number % 10}"
        fourth.boxplot(
            boxes, positions=np.arange(len(groups)) + offset, widths=0.12, showfliers=False,
            manage_ticks=False, boxprops={"color": colour}, medianprops={"color": colour},
        )  # fmt: skip
    everything = np.concatenate(list(gains.values()))
    edges = np.histogram_bin_edges(everything, bins=min(30, max(5, len(before) // 4)))
    for name, gain in gains.items():
        first.hist(gain, bins=edges, alpha=0.6, label=name)
        second.scatter(before, before + gain, s=9, alpha=0.6)
        third.scatter(similarity, gain, s=9, alpha=0.6)
    limits = [
        float(before.min()),
        float(max(before.max(), (before + everything.reshape(-1, len(before))).max())),
    ]
    second.plot(limits, limits, color="grey", linewidth=0.8)
    for axis in (first, third, fourth):
        (axis.axvline if axis is first else axis.axhline)(0, color="grey", linewidth=0.8)
    labels = (
        (first, f"improvement of the {unit}", "mixtures"),
        (second, f"mixture, {unit}", f"estimate, {unit}"),
        (third, "similarity of the two voices", f"improvement of the {unit}"),
        (fourth, "sexes of target and other voice", f"improvement of the {unit}"),
    )
    for axis, x, y in labels:
        axis.set_xlabel(x)
        axis.set_ylabel(y)
    if not np.isfinite(similarity).any():
        third.text(0.5, 0.5, "was not measured", transform=third.transAxes, ha="center")
    if len(gains) > 1:
        figure.legend(*first.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=2)
    return _image(figure)


def memory_figure(curves: Mapping[str, np.ndarray], title: str = "") -> np.ndarray:
    """Memory in MB over a command's time in seconds, [n, 2] each. Returns uint8 [height, width, 3]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
    axis = figure.subplots()
    for name, curve in curves.items():
        axis.plot(*curve.T, label=name)
    axis.set(xlabel="seconds since the start", ylabel="memory, MB", xscale="log", title=title)
    axis.set_ylim(bottom=0)
    axis.legend(title="recording")
    return _image(figure)


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [height, width, 3] as a PNG file."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def save_picture(path: Path | str, image: np.ndarray) -> None:
    """Writes uint8 [height, width, 3] as PNG, atomically."""
    from matplotlib.image import imsave

    with atomic_file(path) as temporary:
        imsave(temporary, image, format="png")
