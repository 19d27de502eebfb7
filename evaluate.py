"""Scores checkpoints on a split of a store, a tuple list or a recipe list: tables, summaries, differences.

    python evaluate.py chkpt/NAME/best.pt --data data/store -o results
    python evaluate.py chkpt/A/best.pt chkpt/B/best.pt --data data/store -o results --html results/report.html
    python evaluate.py chkpt/NAME/best.pt --tuples librispeech_dev_tuples.csv -d LibriSpeech -o results \\
        --recognizer pocketsphinx --clean

Stopped, the same command goes on. torchrun shares the work among its processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.load import argument_parser, parse_arguments, run_script
from datasets.corpus import heard_speakers
from datasets.plan import SOUNDS
from datasets.store import SPLITS, Store
from model.chosen_set import listed_set, removes_voice, stored_set
from model.embedder import Embedder
from model.evaluation import Evaluation
from model.evaluation_page import example_signals, write_page
from model.evaluation_summary import compare, summarize_rows, utterance_table, values
from model.evaluation_tables import markdown, side_by_side
from model.foreign import load_embedder
from model.masks import add_mask_options, chosen_masking
from model.recognition import require_recognizer
from model.row_scores import METRICS, SCORES
from model.separator import Separator
from model.shipped import checkpoint_of
from model.test_set import MIXTURE, System, TestSet, Wanted, result_name
from utils import distributed
from utils.audio import write_audio
from utils.batch_norm import fold_batch_norms
from utils.checkpoint import load_checkpoint
from utils.device import choose_device, device_name, large_pages, used_precision
from utils.errors import UserError
from utils.files import fingerprint, require_writable, sha256_of, write_csv, write_json, write_text
from utils.perception import missing_packages
from utils.processes import cores
from utils.versions import versions


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    _check(options)
    wanted = _wanted(options)
    large_pages()
    with distributed.process_group(choose_device(options.device)) as device:
        return _evaluate(options, wanted, device)


def _evaluate(options: argparse.Namespace, wanted: Wanted, device: torch.device) -> int:
    stored = stored_set(Store(options.data), options.split) if options.data else None
    paths = [str(checkpoint_of(path)) for path in options.checkpoints]
    loaded = {path: load_with_digest(path) for path in paths}
    contents = {path: content for path, (content, _) in loaded.items()}
    digests = {path: digest for path, (_, digest) in loaded.items()}
    if any(theirs != digests for theirs in distributed.everybody_s(digests)):
        raise UserError("a checkpoint was replaced while the ranks read it: run the same command again")
    separators = {
        path: Separator.from_content(content, path).eval().to(device) for path, content in contents.items()
    }
    for separator in separators.values():
        fold_batch_norms(separator.network)
        separator.masking = chosen_masking(separator.masking, options)
        separator.precision = options.precision or separator.precision
    rates = {separator.sample_rate for separator in separators.values()}
    if len(rates) > 1:
        raise UserError(
            f"the checkpoints work at different rates ({sorted(rates)} Hz): score them one by one"
        )
    data, out = stored or listed_set(options, separators, rates.pop()), Path(options.out)
    warn_of_task(data, options, separators)
    folders = [out / result_name(path, data.name, options.mask, options.factor) for path in separators]
    if len(set(folders)) < len(options.checkpoints):
        raise UserError(
            "two of the checkpoints would share a folder of results: score them with different -o"
        )
    listener = load_embedder(options.embedder_path) if options.embedder_path else None
    for separator in separators.values():
        listener = listener or separator.embedder
    listener = None if listener is None else listener.to(device).eval()
    mixture = mixture_system(data, out, listener)
    systems = [
        system_of(path, separator, data, folder, listener, digests[path])
        for (path, separator), folder in zip(separators.items(), folders, strict=True)
    ]
    if not any(recipe.role != "absent" for recipe in data.recipes):
        raise UserError(f"{data.source}: none of {len(data.recipes)} examples holds the asked voice")
    check_examples(data, options.save_audio)
    if wanted.recognizer:
        check_words(data, wanted)
    Evaluation(data, [mixture, *systems], listener, wanted).run(options.processes or cores())
    if distributed.rank() == 0:
        _report(options, wanted, data, mixture, systems, contents, _hears(listener))
    distributed.wait()
    return 0


def _report(
    options: argparse.Namespace,
    wanted: Wanted,
    data: TestSet,
    mixture: System,
    systems: Sequence[System],
    contents: Mapping[str, dict[str, Any]],
    judge: str,
) -> None:
    """Writes and prints tables and summaries, and what else was asked for."""
    summaries = []
    for system in systems:
        heard = contents[system.name].get("training_speakers")
        summary, folder = describe_system(data, mixture, system, wanted, heard, judge), system.folder
        write_csv(folder / "per_utterance.csv", *utterance_table(data, mixture, system, wanted))
        write_text(folder / "summary.md", markdown(summary) + "\n")
        write_json(folder / "summary.json", summary)
        summaries.append(summary)
        print(markdown(summary))
        print(f"{folder}/per_utterance.csv\n{folder}/summary.json")
        for which in options.save_audio:
            assert system.separator is not None
            row = find_example(data, mixture, system, which)
            print(save_audio(system.separator, data, folder, which, row))
    differences: list[dict[str, Any]] = []
    if len(systems) > 1:
        for first, second in combinations(systems, 2):
            differences += compare(data, mixture, first, second, wanted)
        table = side_by_side(summaries, differences)
        write_text(Path(options.out) / f"comparison-{data.name}.md", table + "\n")
        write_json(Path(options.out) / f"comparison-{data.name}.json", differences)
        print(f"{table}\n{Path(options.out) / f'comparison-{data.name}.md'}")
    if options.html:
        write_page(Path(options.html), data, mixture, systems, summaries, differences)
        print(options.html)


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="files, or names of runs")
    add("--data", metavar="STORE", help="store made by generator.py")
    add("--split", choices=[s for s in SPLITS if s != "train"], help="of the store (default: test)")
    add("--tuples", metavar="CSV", help="instead of a store: a tuple list in the official format, with -d")
    add("--recipes", metavar="JSONL", help="instead of a store: a list of recipes, with -d")
    add("-d", "--corpus", action="append", default=[], metavar="DIR", help="corpus of the list")
    for kind in SOUNDS:
        add(f"--{kind}", action="append", default=[], metavar="DIR", help=f"folder of {kind} in the list")
    add("--protocol", choices=["padded", "crop"],
        help="of the tuples: whole (default: padded), or 3 s each")  # fmt: skip
    add("-o", "--out", default="results", help="folder for the tables")
    add("--metrics", default="all", metavar="LIST", help=f"all, or some of {','.join(METRICS)}")
    add("--clean", action="store_true", help="also separate the target alone: what is lost of it?")
    add("--recognizer", metavar="NAME",
        help="word error rates: pocketsphinx, whisper:MODEL, wav2vec2:BUNDLE or file:CSV")  # fmt: skip
    add("-e", "--embedder_path", help="embedder that judges the voices (default: the first checkpoint's)")
    add("--html", metavar="FILE", help="write all of it as one page, with pictures and sound")
    add("--save_audio", action="append", default=[], metavar="WHICH",
        help="write the audio of an example: its index, or the best, median or worst improved")  # fmt: skip
    add("-p", "--processes", type=int, metavar="N", help="that compute scores (default: one a core)")
    add_mask_options(parser)
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    add("--precision", choices=["auto", "fp32", "bf16"], help="default: the checkpoint's own")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, and a place that cannot be written."""
    if sum(map(bool, (options.data, options.tuples, options.recipes))) != 1:
        raise UserError("name what is scored: one of --data STORE, --tuples CSV and --recipes JSONL")
    of_lists = ("corpus", *SOUNDS, *(() if options.tuples else ("protocol",)))
    without = of_lists if options.data else ("split", *(() if options.tuples else ("protocol",)))
    for name in without:
        if getattr(options, name):
            source = "--data" if options.data else "--tuples" if options.tuples else "--recipes"
            raise UserError(f"--{name}: has no effect with {source}")
    options.split, options.protocol = options.split or "test", options.protocol or "padded"
    if (options.recognizer or "").startswith("file:") and len(options.checkpoints) > 1:
        raise UserError(
            "--recognizer file: holds what was heard of one system; score the others by themselves"
        )
    for place in (Path(options.out) / "summary", *([Path(options.html)] if options.html else [])):
        require_writable(place)


def _wanted(options: argparse.Namespace) -> Wanted:
    """Raises UserError for a metric that nobody knows, and a recogniser that is not there."""
    names = list(METRICS) if options.metrics == "all" else options.metrics.replace(" ", "").split(",")
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"--metrics {unknown[0]}: expected all or some of {', '.join(METRICS)}")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"-p {options.processes}: expected at least 1")
    missing = {name: package for name, package in missing_packages().items() if name in names}
    for package in sorted(set(missing.values())):
        left_out = ", ".join(METRICS[name].label for name in missing if missing[name] == package)
        if options.metrics != "all":
            raise UserError(f"{left_out}: needs the package {package} (pip install {package})")
        print(f"NOTE: {left_out} left out: the package {package} is not installed", file=sys.stderr)
    listed = require_recognizer(options.recognizer) if options.recognizer else None
    # the level tells whether a voice that is absent was silenced; SI-SDR is what an example is chosen by
    always = {"si_sdr", "level"}
    chosen = tuple(name for name in METRICS if (name in names and name not in missing) or name in always)
    return Wanted(chosen, options.clean, options.recognizer, listed)


def warn_of_task(data: TestSet, options: argparse.Namespace, separators: Mapping[str, Separator]) -> None:
    """Where a checkpoint was trained to give everything but the reference's voice, or the store asks for
    that, and the other does not."""
    asks = any(recipe.reverse for recipe in data.recipes)
    for path, separator in separators.items():
        gives = removes_voice(separator, options.mask)
        if gives != asks:
            what = ("the reference's voice", "everything but the reference's voice")
            print(
                f"WARNING: {path} gives {what[gives]}, {data.source} asks for {what[asks]}; --mask inv_sub "
                "turns an estimate round",
                file=sys.stderr,
            )


def mixture_system(data: TestSet, out: Path, listener: Embedder | None) -> System:
    """The unprocessed mixture, as judged by the embedder `listener`, if there is one."""
    # of a list both may be asked for, the voice and the rest
    reverse = "-reverse" if any(recipe.reverse for recipe in data.recipes) else ""
    folder = out / f"mixture-{data.name}{reverse}"
    of = data.split.fingerprint
    return System(MIXTURE, folder, fingerprint([SCORES, of, data.rate]), of, judge=_hears(listener))


def load_with_digest(path: str) -> tuple[dict[str, Any], str]:
    """A checkpoint and the sha256 of the file that it was read from, which a training may replace
    meanwhile."""
    while True:
        digest = sha256_of(path) if Path(path).is_file() else ""
        content = load_checkpoint(path, verify=True)
        if sha256_of(path) == digest:
            return content, digest


def system_of(
    path: str, separator: Separator, data: TestSet, folder: Path, listener: Embedder | None, digest: str
) -> System:
    """Raises UserError for a checkpoint that works at another rate than the test set."""
    if data.rate != separator.sample_rate:
        raise UserError(
            f"{path}: works at {separator.sample_rate} Hz, {data.source} holds {data.rate} Hz audio"
        )
    of = data.split.fingerprint
    identity = fingerprint([SCORES, digest, of, str(separator.masking), separator.precision])
    precision = used_precision(separator.device, separator.precision)
    made_with = versions() | {"precision": precision, "device": device_name(separator.device)}
    place = str(Path(path).resolve())
    return System(path, folder, identity, of, separator, _hears(listener), place, digest, made_with)


def _hears(listener: Embedder | None) -> str:
    return "" if listener is None else listener.fingerprint()


def describe_system(
    data: TestSet, mixture: System, system: System, wanted: Wanted, heard: list[str] | None, judge: str
) -> dict[str, Any]:
    """The summary of a system: its figures, and what they are of. `heard`: the speakers that it was trained
    on, if its checkpoint says so; `judge`: the fingerprint of the embedder that judged the voices."""
    assert system.separator is not None
    mixtures = [recipe for recipe in data.recipes if recipe.role == "mixture"]
    speakers = {data.speaker(recipe.reference) for recipe in data.recipes}
    same = {data.speaker(recipe.reference) for recipe in mixtures if recipe.same_utterance}
    return {
        **summarize_rows(data, mixture, system, wanted),
        "checkpoint": system.name,
        "checkpoint_sha256": system.sha256,
        "versions": versions(),
        "earlier": [found for one in (mixture, system) for found in one.differences()],
        "data": data.source,
        "data_fingerprint": data.split.fingerprint,
        "split": data.name,
        "protocol": data.protocol,
        "seconds": sum(recipe.seconds for recipe in data.recipes),
        "mask": system.separator.masking.use,
        "factor": system.separator.masking.factor,
        "precision": used_precision(system.separator.device, system.separator.precision),
        "device": device_name(system.separator.device),
        "judging_embedder": judge,
        "metrics": list(wanted.metrics),
        "heard_speakers": None if heard is None else len(heard_speakers(speakers, heard)),
        "same_utterance_speakers": len(same),
    }


RANKED = ("worst", "median", "best")


def check_examples(data: TestSet, wanted: Sequence[str]) -> None:
    """Raises UserError for examples that `find_example` could not find."""
    for which in wanted:
        if which not in RANKED and not (which.isdecimal() and int(which) in data.row_of):
            first, last = min(data.row_of), max(data.row_of)
            raise UserError(
                f"--save_audio {which}: expected best, median, worst or an index that is there "
                f"({first} to {last})"
            )
        if which in RANKED and not any(recipe.role == "mixture" for recipe in data.recipes):
            raise UserError(f"--save_audio {which}: there is no mixture that holds the asked voice")


def check_words(data: TestSet, wanted: Wanted) -> None:
    """Says where there are no words to compare. Raises UserError for hypotheses of other rows."""
    spoken = [data.recipes[row].index for row, text in enumerate(data.texts) if text]
    if not spoken:
        print(
            f"NOTE: no target of {data.source} is a whole utterance with a transcript: no word error rate, "
            f"--recognizer {wanted.recognizer} has no effect",
            file=sys.stderr,
        )
    indices = {recipe.index for recipe in data.recipes}
    if strange := sorted({index for index, _ in wanted.listed or {}} - indices):
        raise UserError(f"{wanted.recognizer}: index {strange[0]} is no row of {data.source}")


def find_example(data: TestSet, mixture: System, system: System, which: str) -> int:
    """The row that `which` names: by its recipe's index, or the mixture of best, median or worst SI-SDR
    improvement."""
    if which.isdecimal():
        return data.row_of[int(which)]
    rows = [row for row, recipe in enumerate(data.recipes) if recipe.role == "mixture"]
    order = np.argsort(values(system, "si_sdr", rows) - values(mixture, "si_sdr", rows), kind="stable")
    return rows[order[{"worst": 0, "median": len(rows) // 2, "best": -1}[which]]]


def save_audio(separator: Separator, data: TestSet, folder: Path, which: str, row: int) -> Path:
    """Writes mixture, target, reference and estimate of example `row` as WAV files below `folder`."""
    for name, (samples, rate) in example_signals(separator, data, row).items():
        write_audio(folder / "audio" / which / f"{name}.wav", samples, rate)
    return folder / "audio" / which


if __name__ == "__main__":
    run_script(main)
