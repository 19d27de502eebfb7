"""Scores checkpoints on a whole split of a store: a table per utterance, and its summary.

python evaluate.py chkpt/NAME/best.pt --data data/store -o results
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.load import argument_parser, differences, parse_arguments, run_script
from datasets.mixture import read_clip
from datasets.store import SPLITS, Store, StoredSplit
from model.features import reference_embeddings
from model.scoring import METRICS, Scores, score_estimates, score_mixtures, summarize
from model.separator import Separator
from utils.audio import write_audio
from utils.device import choose_device
from utils.errors import UserError
from utils.files import fingerprint, read_json, sha256_of, write_csv, write_json, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", required=True, metavar="STORE", help="store made by generator.py")
    parser.add_argument("--split", default="test", choices=[s for s in SPLITS if s != "train"])
    parser.add_argument("-o", "--out", default="results", help="folder for the tables")
    parser.add_argument(
        "--save_audio", type=int, default=0, metavar="N", help="write the audio of the first N examples"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    store = Store(options.data)
    split = store.split(options.split)
    device = choose_device(options.device)
    if options.save_audio < 0:
        raise UserError(f"--save_audio {options.save_audio}: expected 0 or more examples")
    for checkpoint in options.checkpoints:
        separator = Separator.load(checkpoint).to(device)
        folder = Path(options.out) / f"{Path(checkpoint).resolve().parent.name}-{Path(checkpoint).stem}"
        summary = evaluate(separator, checkpoint, store, split, folder)
        print(markdown(summary))
        print(f"{folder}/per_utterance.csv\n{folder}/summary.json")
        if options.save_audio:
            save_audio(separator, store, split, folder, options.save_audio)
    return 0


def evaluate(
    separator: Separator, checkpoint: str, store: Store, split: StoredSplit, folder: Path
) -> dict[str, Any]:
    """Writes the tables of one checkpoint into `folder`, or reads them if nothing has changed since."""
    changes = differences(store.settings["audio"], separator.config.audio.model_dump())
    if "sample_rate" in {line.split(":")[0] for line in changes}:
        raise UserError(
            f"{checkpoint}: works at {separator.sample_rate} Hz, the store holds other audio ({changes[0]})"
        )
    name = split.folder.name
    identity = {
        "checkpoint_sha256": sha256_of(checkpoint),
        "data_fingerprint": store.report["fingerprints"][name],
        "metrics": sorted(METRICS),
    }
    path = folder / "summary.json"
    if path.exists() and (folder / "per_utterance.csv").exists():
        summary = read_json(path)
        if summary.get("identity") == fingerprint(identity):
            return summary
    embeddings = reference_embeddings(store, split, separator.embedder)
    before, after = score_mixtures(split), score_estimates(separator, split, embeddings)
    summary = {
        **summarize(before, after),
        **identity,
        "identity": fingerprint(identity),
        "checkpoint": checkpoint,
        "split": name,
        "protocol": store.settings["data"]["protocol"],
        "seconds": store.settings["data"]["seconds"],
        "speakers": len(store.report["speakers"][name]),
        "same_utterance_speakers": store.report["same_utterance_speakers"][name],
    }
    write_table(folder / "per_utterance.csv", store, split, before, after)
    write_json(path, summary)
    write_text(folder / "summary.md", markdown(summary) + "\n")
    return summary


def write_table(path: Path, store: Store, split: StoredSplit, before: Scores, after: Scores) -> None:
    header = ["index", "target", "interference", "reference", "target_speaker", "interference_speaker"]
    header += [f"{name}_{when}" for name in METRICS for when in ("before", "after")]
    rows = []
    for row, recipe in enumerate(split.recipes):
        clips = (recipe.target, recipe.interference, recipe.reference)
        ids: list[Any] = [recipe.index, *(clip.utterance for clip in clips)]
        ids += [store.utterances[clip.utterance].speaker for clip in clips[:2]]
        scores = [f"{values[name][row]:.4f}" for name in METRICS for values in (before, after)]
        rows.append(ids + scores)
    write_csv(path, header, rows)


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a small table for people."""
    title = f"{summary['n']} mixtures of {summary['speakers']} speakers never heard in training"
    protocol = f"{summary['split']}, protocol {summary['protocol']} {summary['seconds']:g} s"
    lines = [
        f"{summary['checkpoint']}: {title} ({protocol})",
        "",
        "| dB | before mean | before median | after mean | after median | improvement mean [95 %] | median |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in (("sdr", "SDR"), ("si_sdr", "SI-SDR")):
        cells = [
            f"{summary[f'{name}_{when}_{what}']:.2f}"
            for when in ("before", "after")
            for what in ("mean", "median")
        ]
        low, high = summary[f"{name}_improvement_low"], summary[f"{name}_improvement_high"]
        cells.append(f"{summary[f'{name}_improvement_mean']:+.2f} [{low:+.2f}, {high:+.2f}]")
        cells.append(f"{summary[f'{name}_improvement_median']:+.2f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Improved by more than 1 dB SI-SDR: {100 * summary['accepted_share']:.1f} % of the mixtures.",
    ]
    if summary["same_utterance_speakers"]:
        lines.append(
            f"{summary['same_utterance_speakers']} of the speakers have one utterance: their reference "
            "is its other half (same session, an easier task)."
        )
    return "\n".join(lines)


@torch.inference_mode()
def save_audio(separator: Separator, store: Store, split: StoredSplit, folder: Path, count: int) -> None:
    """Writes mixture, target, reference and estimate of the first `count` examples as WAV files."""
    embeddings = reference_embeddings(store, split, separator.embedder)
    device = next(separator.network.parameters()).device
    rate = separator.sample_rate
    for row in range(min(count, len(split))):
        mixture, target = (split.read(field, [row])[0] for field in ("mixture_wave", "target_wave"))
        recipe = split.recipes[row]
        vector = torch.from_numpy(embeddings[row : row + 1]).to(device)
        reference = read_clip(recipe.reference, store.utterances[recipe.reference.utterance], rate)
        example: dict[str, np.ndarray] = {
            "mixture": mixture,
            "target": target,
            "reference": reference,
            "estimate": separator.separate(mixture[None], vector)[0],
        }
        for name, samples in example.items():
            write_audio(folder / "audio" / f"{recipe.index:05d}" / f"{name}.wav", samples, rate)
    print(f"{folder}/audio")


if __name__ == "__main__":
    run_script(main)
