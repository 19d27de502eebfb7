"""Scores checkpoints on a whole split of a store: a table per utterance, and its summary.

python evaluate.py chkpt/NAME/best.pt --data data/store -o results
"""

from __future__ import annotations

import csv
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
from utils.checkpoint import load_checkpoint
from utils.device import choose_device
from utils.errors import UserError
from utils.files import fingerprint, read_json, sha256_of, write_csv, write_json, write_text
from utils.metrics import SILENCE_DB


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", required=True, metavar="STORE", help="store made by generator.py")
    parser.add_argument("--split", default="test", choices=[s for s in SPLITS if s != "train"])
    parser.add_argument("-o", "--out", default="results", help="folder for the tables")
    parser.add_argument(
        "--save_audio",
        action="append",
        default=[],
        metavar="WHICH",
        help="write the audio of an example: its index, or the best, median or worst improved",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    store = Store(options.data)
    split = store.split(options.split)
    device = choose_device(options.device)
    folders = [
        Path(options.out) / result_name(checkpoint, options.split) for checkpoint in options.checkpoints
    ]
    if len(set(folders)) < len(folders):
        raise UserError(
            "two of the checkpoints would share a folder of results: score them with different -o"
        )
    for checkpoint, folder in zip(options.checkpoints, folders, strict=True):
        content = load_checkpoint(checkpoint)
        separator = Separator.from_content(content, checkpoint).eval().to(device)
        heard = content.get("training_speakers")
        summary = evaluate(separator, checkpoint, heard, store, split, folder)
        print(markdown(summary))
        print(f"{folder}/per_utterance.csv\n{folder}/summary.json")
        for which in options.save_audio:
            row = find_example(folder / "per_utterance.csv", which)
            print(save_audio(separator, store, split, folder, which, row))
    return 0


def result_name(checkpoint: str, split: str) -> str:
    """The folder of results: run, checkpoint and split."""
    path = Path(checkpoint)
    return f"{path.resolve().parent.name}-{path.stem}-{split}"


def evaluate(
    separator: Separator,
    checkpoint: str,
    heard: list[str] | None,
    store: Store,
    split: StoredSplit,
    folder: Path,
) -> dict[str, Any]:
    """Writes the tables of one checkpoint into `folder`, or reads them if nothing has changed since.

    `heard`: the speakers it was trained on, if the checkpoint says so.
    """
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
    if path.exists():
        summary = read_json(path)
        if summary.get("identity") == fingerprint(identity):
            return summary
    embeddings = reference_embeddings(store, split, separator.embedder)
    before, after = score_mixtures(split), score_estimates(separator, split, embeddings)
    speakers = store.target_speakers(split)
    summary = {
        **summarize(before, after, speakers),
        **identity,
        "identity": fingerprint(identity),
        "checkpoint": checkpoint,
        "split": name,
        "protocol": store.settings["data"]["protocol"],
        "seconds": store.settings["data"]["seconds"],
        "speakers": len(set(speakers)),
        "heard_speakers": None if heard is None else len(set(heard) & set(speakers)),
        "same_utterance_speakers": store.report["same_utterance_speakers"][name],
    }
    # the JSON last: where it stands, the tables beside it are complete and its own
    path.unlink(missing_ok=True)
    write_table(folder / "per_utterance.csv", store, split, before, after)
    write_text(folder / "summary.md", markdown(summary) + "\n")
    write_json(path, summary)
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
    heard = summary["heard_speakers"]
    known = {None: "", 0: " never heard in training"}.get(heard, f", {heard} of them HEARD IN TRAINING")
    title = f"{summary['n']} mixtures of {summary['speakers']} speakers{known}"
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
    lines[-1] += f" The interval is taken over {summary['speakers']} speakers."
    if summary["silent"]:
        lines.append(f"{summary['silent']} have a silent target or estimate, scored {SILENCE_DB:g} dB.")
    if summary["same_utterance_speakers"]:
        lines.append(
            f"{summary['same_utterance_speakers']} of these speakers have one utterance: their reference "
            "is its other half (same session, an easier task)."
        )
    return "\n".join(lines)


def find_example(table: Path, which: str) -> int:
    """The row of the table that `which` names: an index, or the best, median or worst SI-SDR improvement."""
    with table.open(newline="") as file:
        gains = [float(row["si_sdr_after"]) - float(row["si_sdr_before"]) for row in csv.DictReader(file)]
    order = np.argsort(gains)
    named = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    if which in named:
        return int(named[which])
    if which.isdecimal() and int(which) < len(gains):
        return int(which)
    raise UserError(f"--save_audio {which}: expected best, median, worst or an index below {len(gains)}")


@torch.inference_mode()
def save_audio(
    separator: Separator, store: Store, split: StoredSplit, folder: Path, which: str, row: int
) -> Path:
    """Writes mixture, target, reference and estimate of example `row` as WAV files below `folder`."""
    rate, recipe = separator.sample_rate, split.recipes[row]
    mixture, target = (split.read(field, [row])[0] for field in ("mixture_wave", "target_wave"))
    reference = read_clip(recipe.reference, store.utterances[recipe.reference.utterance], rate)
    example: dict[str, np.ndarray] = {
        "mixture": mixture,
        "target": target,
        "reference": reference,
        "estimate": separator.separate(mixture[None], separator.embed(reference))[0],
    }
    for name, samples in example.items():
        write_audio(folder / "audio" / which / f"{name}.wav", samples, rate)
    return folder / "audio" / which


if __name__ == "__main__":
    run_script(main)
