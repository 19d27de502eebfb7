"""An evaluation as one page that needs nothing else: tables, charts, and items to look at and listen to."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.mixture import read_clip
from datasets.store import WAVEFORMS
from model.evaluation_summary import sex_pair, sexes, values
from model.evaluation_tables import markdown, side_by_side
from model.row_scores import METRICS
from model.separator import Separator
from model.test_set import System, TestSet
from utils.audio import flac_bytes, peak_level
from utils.files import write_text
from utils.plots import gain_figure, png_bytes, spectrogram_figure

ITEMS = 10
"""Of the best, and of the worst."""
LONGEST_ITEM = 15.0
"""Seconds of an item that can be heard and seen."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em }
td { font-variant-numeric: tabular-nums } th { text-align: left; background: #f5f5f5 }
img { max-width: 100% } audio { width: 205px; height: 32px; vertical-align: middle }
.item { border-top: 1px solid #ddd; padding: .6em 0 } .item p { margin: .3em 0 }
label { display: inline-block; margin: 0 1em .3em 0 } small { color: #666 }
"""


def _gains(
    mixture: System, systems: Sequence[System], name: str, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """By system how a metric of the rows [n] improves."""
    before = values(mixture, name, rows)
    return {system.name: values(system, name, rows) - before for system in systems}


def write_page(
    path: Path,
    data: TestSet,
    mixture: System,
    systems: Sequence[System],
    summaries: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
) -> None:
    """Writes the page: of every system its summary, and its ITEMS best and worst improved mixtures."""
    parts = [f"<h1>{html.escape(data.source)}: {html.escape(data.name)}, {html.escape(data.protocol)}</h1>"]
    code = summaries[0]["versions"]
    changed = " with changes" if code["dirty"] else ""
    parts.append(
        f"<p><small>data {data.split.fingerprint}; code {str(code['commit'])[:12]}{changed}; "
        f"torch {code['torch']}</small></p>"
    )
    if len(systems) > 1:
        parts.append(as_html(side_by_side(summaries, differences)))
    rows = [row for row, recipe in enumerate(data.recipes) if recipe.role == "mixture"]
    gains = _gains(mixture, systems, "si_sdr", rows)
    if rows:
        pairs, name = [sex_pair(data, row) for row in rows], "sdr"
        if not all(np.isfinite(values(s, name, rows)).all() for s in (mixture, *systems)):  # not asked for
            name = "si_sdr"
        shown, metric = _gains(mixture, systems, name, rows), METRICS[name]
        voices, unit = values(mixture, "voices", rows), f"{metric.label}, {metric.unit}"
        chart = gain_figure(values(mixture, name, rows), shown, voices, pairs, unit)
        parts.append(f"<h2>Improvement</h2>{_picture(chart, 'distribution and scatter of the improvement')}")
    for system, summary in zip(systems, summaries, strict=True):
        parts.append(f"<h2>{html.escape(system.name)}</h2>{as_html(markdown(summary))}")
        order = np.argsort(gains[system.name], kind="stable")
        count = min(ITEMS, len(order))
        worst = order[: min(count, len(order) - count)] if len(order) > count else order[:0]
        for title, chosen in (("Best", order[::-1][:count]), ("Worst", worst)):
            if len(chosen):
                parts.append(f"<h2>{title} {len(chosen)} of {html.escape(system.name)}</h2>")
            parts += [_item(data, mixture, system, rows[place]) for place in chosen]
    title = html.escape(f"{data.name}: {', '.join(system.name for system in systems)}")
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n",
    )


@torch.inference_mode()
def example_signals(separator: Separator, data: TestSet, row: int) -> dict[str, tuple[np.ndarray, int]]:
    """Mixture, target, reference and estimate of a row: samples [N] and their rate in Hz."""
    rate, clip = separator.sample_rate, data.recipes[row].reference
    mixture, target = (data.split.read_float(name, [row])[0] for name in WAVEFORMS)
    reference = read_clip(clip, data.utterances[clip.utterance], separator.reference_rate)
    embedding = None
    if separator.embedder is not None:  # as it was scored: the clip as it is, with its silence
        embedding = separator.embedder.embed([torch.from_numpy(reference).to(separator.device)])
    estimate = separator.separate_channels(mixture[None], embedding)[0]
    if not np.isfinite(estimate).all():  # as it was scored
        estimate = np.zeros_like(estimate)
    signals = {"mixture": mixture, "target": target, "estimate": estimate}
    return {name: (samples, rate) for name, samples in signals.items()} | {
        "reference": (reference, separator.reference_rate)
    }


def _item(data: TestSet, mixture: System, system: System, row: int) -> str:
    assert system.separator is not None
    recipe = data.recipes[row]
    first, second = (s.rows[row].get("si_sdr", np.nan) for s in (mixture, system))
    others = ", ".join(
        f"{data.speaker(clip)} ({clip.utterance})" for source in recipe.interference for clip in source.clips
    )
    pair = " and ".join(sex or "?" for sex in sexes(data, row))
    text = (
        f"<b>{recipe.index}</b>: SI-SDR {first:.1f} to {second:.1f} dB ({second - first:+.1f}); target "
        f"{html.escape(data.speaker(recipe.reference))}, other {html.escape(others)}; {pair}"
    )
    signals = example_signals(system.separator, data, row)
    players = "".join(
        f"<label>{name} <audio controls preload='none' src='{_sound(*signals[name])}'></audio></label>"
        for name in ("mixture", "target", "estimate", "reference")
    )
    spectral = system.separator.spectral
    shown = {}
    for name in ("mixture", "target", "estimate"):
        samples, rate = signals[name]
        wave = torch.from_numpy(samples[: round(LONGEST_ITEM * rate)])
        wave = torch.nn.functional.pad(wave, (0, max(0, spectral.n_fft - len(wave))))
        shown[name] = spectral(wave[None].to(system.separator.device))[0].abs().cpu().numpy()
    picture = spectrogram_figure(shown, None, system.separator.sample_rate, spectral.hop_length)
    seen = _picture(picture, f"spectrograms of example {recipe.index}")
    hidden = f"<details><summary>spectrograms</summary>{seen}</details>"
    return f"<div class='item'><p>{text}</p><p>{players}</p>{hidden}</div>"


def _sound(samples: np.ndarray, rate: int) -> str:
    """Its first seconds as a FLAC of 16 bits; what would clip is turned down."""
    samples = samples[: round(LONGEST_ITEM * rate)]
    code = base64.b64encode(flac_bytes(samples / max(1.0, peak_level(samples)), rate)).decode()
    return f"data:audio/flac;base64,{code}"


def _picture(image: np.ndarray, what: str) -> str:
    code = base64.b64encode(png_bytes(image)).decode()
    return f"<img alt='{html.escape(what)}' src='data:image/png;base64,{code}'>"


def as_html(text: str) -> str:
    """The Markdown of evaluation_tables.py, which has paragraphs and tables, as HTML."""
    blocks = []
    for block in re.split(r"\n\s*\n", html.escape(text)):
        lines = block.splitlines()
        if len(lines) > 1 and re.fullmatch(r"\|[-|]+\|", lines[1].replace(" ", "")):
            cells = [f"<tr>{''.join(f'<th>{c}</th>' for c in _cells(lines[0]))}</tr>"]
            cells += [f"<tr>{''.join(f'<td>{c}</td>' for c in _cells(line))}</tr>" for line in lines[2:]]
            blocks.append(f"<table>{''.join(cells)}</table>")
        elif block.strip():
            blocks.append(f"<p>{'<br>'.join(lines)}</p>")
    return "\n".join(blocks)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
