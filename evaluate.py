"""Scores checkpoints on a split of a store, a tuple list or a recipe list: a table per utterance, a summary.

python evaluate.py chkpt/NAME/best.pt --data data/store -o results
python evaluate.py chkpt/NAME/best.pt --tuples librispeech_dev_tuples.csv -d LibriSpeech -o results
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.load import argument_parser, parse_arguments, run_script
from config.schema import Data
from datasets.corpus import Utterance, heard_speakers
from datasets.lists import listed_recipes, tuple_recipes
from datasets.live import RenderedSplit
from datasets.mixture import read_clip
from datasets.plan import SOUNDS, index_recordings
from datasets.recipe import Clip, Recipe
from datasets.store import SPLITS, WAVEFORMS, Store, StoredSplit
from model.features import reference_embeddings
from model.masks import add_mask_options, chosen_masking
from model.scoring import METRICS, Scores, score_estimates, score_mixtures, summarize
from model.separator import Separator
from utils.audio import write_audio
from utils.checkpoint import load_checkpoint
from utils.device import choose_device
from utils.errors import UserError
from utils.files import fingerprint, read_json, sha256_of, write_csv, write_json, write_text
from utils.metrics import SILENCE_DB


@dataclass(frozen=True)
class TestSet:
    """What is scored: the examples, who may be asked for, and how they came about.

    `source` is the store or list; `cache` the folder of the references' embeddings.
    """

    source: str
    name: str
    split: StoredSplit | RenderedSplit
    utterances: Mapping[str, Utterance]
    rate: int
    protocol: str
    cache: Path

    @property
    def recipes(self) -> Sequence[Recipe]:
        return self.split.recipes

    def speaker(self, clip: Clip) -> str:
        return self.utterances[clip.utterance].speaker


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    if sum(map(bool, (options.data, options.tuples, options.recipes))) != 1:
        raise UserError("name what is scored: one of --data STORE, --tuples CSV and --recipes JSONL")
    device = choose_device(options.device)
    stored = of_store(Store(options.data), options.split) if options.data else None
    contents = {path: load_checkpoint(path) for path in options.checkpoints}
    separators = {
        path: Separator.from_content(content, path).eval().to(device) for path, content in contents.items()
    }
    for separator in separators.values():
        separator.masking = chosen_masking(separator.masking, options)
    rates = {separator.sample_rate for separator in separators.values()}
    if len(rates) > 1:
        raise UserError(
            f"the checkpoints work at different rates ({sorted(rates)} Hz): score them one by one"
        )
    if stored:
        warn_of_task(stored, options, separators)
    data = stored or of_list(options, separators, rates.pop())
    use = "" if options.mask == "org" else f"-{options.mask}-{options.factor:g}"
    folders = [Path(options.out) / (result_name(path, data.name) + use) for path in separators]
    if len(set(folders)) < len(options.checkpoints):
        raise UserError(
            "two of the checkpoints would share a folder of results: score them with different -o"
        )
    for (path, separator), folder in zip(separators.items(), folders, strict=True):
        summary = evaluate(separator, path, contents[path].get("training_speakers"), data, folder)
        print(markdown(summary))
        print(f"{folder}/per_utterance.csv\n{folder}/summary.json")
        for which in options.save_audio:
            row = find_example(folder / "per_utterance.csv", which)
            print(save_audio(separator, data, folder, which, row))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT")
    add("--data", metavar="STORE", help="store made by generator.py")
    add("--split", default="test", choices=[s for s in SPLITS if s != "train"], help="of the store")
    add("--tuples", metavar="CSV", help="instead of a store: a tuple list in the official format, with -d")
    add("--recipes", metavar="JSONL", help="instead of a store: a list of recipes, with -d")
    add("-d", "--corpus", action="append", default=[], metavar="DIR", help="corpus of the list")
    for kind in SOUNDS:
        add(f"--{kind}", action="append", default=[], metavar="DIR", help=f"folder of {kind} in the list")
    add("--protocol", default="padded", choices=["padded", "crop"], help="of the tuples: whole, or 3 s each")
    add("-o", "--out", default="results", help="folder for the tables")
    add("--save_audio", action="append", default=[], metavar="WHICH",
        help="write the audio of an example: its index, or the best, median or worst improved")  # fmt: skip
    add_mask_options(parser)
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    return parser


def of_store(store: Store, name: str) -> TestSet:
    data, rate = store.settings["data"], store.settings["audio"]["sample_rate"]
    listed = store.settings["lists"].get(name, "")
    protocol = "list of recipes" if listed.startswith("recipes") else describe_protocol(data)
    split = store.split(name)
    return TestSet(str(store.folder), name, split, store.utterances, rate, protocol, store.folder)


def warn_of_task(data: TestSet, options: argparse.Namespace, separators: Mapping[str, Separator]) -> None:
    """Where a checkpoint was trained to give everything but the reference's voice, or the store asks for
    that, and the other does not."""
    asks = any(recipe.reverse for recipe in data.recipes)
    for path, separator in separators.items():
        gives = separator.config.data.reverse != (options.mask == "inv_sub")
        if gives != asks:
            what = ("the reference's voice", "everything but the reference's voice")
            print(
                f"WARNING: {path} gives {what[gives]}, {data.source} asks for {what[asks]}; --mask inv_sub "
                "turns an estimate round",
                file=sys.stderr,
            )


def of_list(options: argparse.Namespace, separators: Mapping[str, Separator], rate: int) -> TestSet:
    """A tuple or recipe list, rendered while it is scored; rows without audio are listed in missing-LIST.csv.

    What is asked for (`reverse`), the references' length and `seconds` are those of the checkpoints'
    training. Raises UserError when these differ.
    """
    if not options.corpus:
        raise UserError("the audio of the list: name its corpus with -d")
    path, out = Path(options.tuples or options.recipes), Path(options.out)
    if not path.is_file():
        raise UserError(f"{path}: no such list")
    same = {"reverse", "reference", "seconds"}
    trained = [separator.config.data.model_dump(include=same) for separator in separators.values()]
    if any(other != trained[0] for other in trained):
        raise UserError(f"the checkpoints have different tasks ({trained}): score them one by one")
    folders = {kind: getattr(options, kind) for kind in SOUNDS}
    data = Data(corpus=options.corpus, protocol=options.protocol, **folders, **trained[0])
    recordings = index_recordings(data)
    utterances = recordings.by_id
    if options.tuples:
        unusable = recordings.unusable
        listed = tuple_recipes(path, "test", utterances, data, recordings.fingerprint, unusable)
    else:
        listed = listed_recipes(path, utterances)
    print(listed.describe(path))
    left_out = out / f"missing-{path.stem}.csv"
    write_csv(left_out, ("row", "utterances", "cause"), listed.missing)
    print(f"{left_out}: the {len(listed.missing)} rows that were left out")
    if not listed.recipes:
        raise UserError(f"{path}: none of its {len(listed.missing)} rows can be rendered, see {left_out}")
    protocol = describe_protocol(data.model_dump()) if options.tuples else "list of recipes"
    rows = len(listed.recipes) + len(listed.missing)
    protocol += f", {len(listed.recipes)} of {rows} rows" if listed.missing else ""
    split = RenderedSplit(listed.recipes, utterances, rate)
    return TestSet(str(path), path.stem, split, utterances, rate, protocol, out)


def describe_protocol(data: Mapping[str, Any]) -> str:
    if data["protocol"] == "padded":
        return "protocol padded, whole utterances"
    return f"protocol crop {data['seconds']:g} s"


def result_name(checkpoint: str, split: str) -> str:
    """The folder of results: run, checkpoint and split."""
    path = Path(checkpoint)
    return f"{path.resolve().parent.name}-{path.stem}-{split}"


def evaluate(
    separator: Separator, checkpoint: str, heard: list[str] | None, data: TestSet, folder: Path
) -> dict[str, Any]:
    """Writes the tables of one checkpoint into `folder`, or reads them if nothing has changed since.

    `heard`: the speakers it was trained on, if the checkpoint says so.
    """
    if data.rate != separator.sample_rate:
        raise UserError(
            f"{checkpoint}: works at {separator.sample_rate} Hz, {data.source} holds {data.rate} Hz audio"
        )
    identity = {
        "checkpoint_sha256": sha256_of(checkpoint),
        "data_fingerprint": data.split.fingerprint,
        "metrics": sorted(METRICS),
    }
    path = folder / "summary.json"
    if path.exists() and (folder / "per_utterance.csv").exists():
        summary = read_json(path)
        if summary.get("identity") == fingerprint(identity):
            return summary
    references = [recipe.reference for recipe in data.recipes]
    embeddings = None
    if separator.embedder is not None:
        embeddings = reference_embeddings(data.cache, data.utterances, references, separator.embedder)
    before, after = score_mixtures(data.split), score_estimates(separator, data.split, embeddings)
    speakers = [data.speaker(clip) for clip in references]
    same = {data.speaker(recipe.reference) for recipe in data.recipes if recipe.same_utterance}
    summary = {
        **summarize(before, after, speakers, [recipe.role for recipe in data.recipes]),
        **identity,
        "identity": fingerprint(identity),
        "checkpoint": checkpoint,
        "data": data.source,
        "split": data.name,
        "mask": separator.masking.use,
        "factor": separator.masking.factor,
        "protocol": data.protocol,
        "speakers": len(set(speakers)),
        "heard_speakers": None if heard is None else len(heard_speakers(set(speakers), heard)),
        "same_utterance_speakers": len(same),
    }
    # the JSON last: where it stands, the tables beside it are complete and its own
    path.unlink(missing_ok=True)
    write_table(folder / "per_utterance.csv", data, before, after)
    write_text(folder / "summary.md", markdown(summary) + "\n")
    write_json(path, summary)
    return summary


def write_table(path: Path, data: TestSet, before: Scores, after: Scores) -> None:
    """One row an example: its ids, kind and speakers, and every score before and after."""
    header = ["index", "kind", "target", "interference", "reference", "reference_speaker", "other_speakers"]
    header += [f"{name}_{when}" for name in (*METRICS, "level") for when in ("before", "after")]
    rows = []
    for row, recipe in enumerate(data.recipes):
        target = recipe.target.clips[0].utterance if recipe.target else ""
        others = [clip for source in recipe.interference for clip in source.clips]
        ids: list[Any] = [recipe.index, recipe.kind, target, " ".join(clip.utterance for clip in others)]
        ids += [recipe.reference.utterance, data.speaker(recipe.reference)]
        ids.append(" ".join(data.speaker(clip) for clip in others))
        scores = [f"{values[name][row]:.4f}" for name in (*METRICS, "level") for values in (before, after)]
        rows.append(ids + scores)
    write_csv(path, header, rows)


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a small table for people."""
    heard = summary["heard_speakers"]
    known = {None: "", 0: " never heard in training"}.get(heard, f", {heard} of them HEARD IN TRAINING")
    title = f"{summary['n']} mixtures of {summary['speakers']} speakers{known}"
    use = summary.get("mask", "org")
    mask = "" if use == "org" else f", mask {use} with factor {summary['factor']:g}"
    lines = [
        f"{summary['checkpoint']}: {title} ({summary['split']}, {summary['protocol']}{mask})",
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
    if summary["alone_n"]:
        lines.append(
            f"{summary['alone_n']} examples hold the asked voice alone: "
            f"SI-SDR {summary['alone_si_sdr_mean']:.2f} dB."
        )
    if summary["absent_n"]:
        lines.append(
            f"In {summary['absent_n']} the asked voice is absent: the output is "
            f"{summary['absent_level_mean']:+.1f} dB against the mixture (lower is better)."
        )
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
def save_audio(separator: Separator, data: TestSet, folder: Path, which: str, row: int) -> Path:
    """Writes mixture, target, reference and estimate of example `row` as WAV files below `folder`."""
    rate, clip = separator.sample_rate, data.recipes[row].reference
    mixture, target = (data.split.read_float(field, [row])[0] for field in WAVEFORMS)
    reference = read_clip(clip, data.utterances[clip.utterance], separator.reference_rate)
    embedding = None if separator.embedder is None else separator.embed(reference)
    example: dict[str, np.ndarray] = {
        "mixture": mixture,
        "target": target,
        "reference": reference,
        "estimate": separator.separate_channels(mixture[None], embedding)[0],
    }
    for name, samples in example.items():
        own_rate = separator.reference_rate if name == "reference" else rate
        write_audio(folder / "audio" / which / f"{name}.wav", samples, own_rate)
    return folder / "audio" / which


if __name__ == "__main__":
    run_script(main)
