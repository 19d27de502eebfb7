"""One command makes a paper's table: data, trainings, scores, and the published figures beside ours.

    python reproduce.py voicefilter -d LibriSpeech --tuples librispeech_dev_tuples.csv --dry-run
    python reproduce.py srl -d VCTK-Corpus-0.92
    python reproduce.py reverse -d LibriSpeech --scale tiny

What was made is kept as long as the commands, the list and the embedder are the same; another corpus wants
another -o.

Tables: voicefilter, voicefilter-vctk, srl, reverse, identity, unconditioned. Stopped, the same command goes
on where it was. `--scale tiny` runs everything small, within minutes: it shows that all stages work, its
figures say nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from config.load import argument_parser, parse_arguments, run_script
from datasets.lists import read_tuples
from datasets.plan import SOUNDS
from model.recognition import require_recognizer
from scripts.commands import command
from scripts.table_plan import Plan
from scripts.tables import SCALES, TABLES, Table
from utils.device import choose_device
from utils.errors import UserError
from utils.files import fingerprint, sha256_of, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add("table", choices=list(TABLES))
    add("-d", "--corpus", action="append", required=True, metavar="DIR", help="corpus of speech")
    for kind in SOUNDS:
        add(f"--{kind}", action="append", default=[], metavar="DIR", help=f"folder of {kind}")
    add("--tuples", metavar="CSV", help="the paper's test list (default: mixtures of held-out speakers)")
    add("--test_subsets", metavar="LIST", help="the corpus' own divisions to test on, such as test-other")
    add("-e", "--embedder", help="instead of the table's own: resemblyzer or an embedder file")
    add("-o", "--out", default="results/tables", help="folder for everything that is made")
    add("--scale", choices=SCALES, default="full")
    add("--recognizer", default="pocketsphinx", help="of tables with word error rates, see evaluate.py")
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    add("--dry-run", action="store_true", help="only show the plan, with estimates of time and disk")
    add("overrides", nargs="*", metavar="section.key=value")
    options = parse_arguments(parser, arguments)
    table = TABLES[options.table]
    for kind in table.needs:
        if not getattr(options, kind):
            raise UserError(f"{options.table}: mixes speech with {kind}; name a folder of it with --{kind}")
    for corpus in options.corpus:
        if not Path(corpus).is_dir():
            raise UserError(f"{corpus}: no such folder")
    check_test(table, options)
    plan = Plan(table, options)
    steps = list(plan.steps())
    if options.dry_run:
        print(plan.describe(steps))
        return 0
    given = [sha256_of(name) for name in (options.tuples, options.embedder) if name and Path(name).is_file()]
    for number, step in enumerate(steps, 1):
        mark = plan.folder / "done" / fingerprint([step.arguments, given, _contents(step.arguments)])
        if mark.exists() and step.result.exists():
            continue
        print(f"[{number}/{len(steps)}] {step.what}")
        command(*step.arguments)
        write_text(mark, step.what + "\n")
    text = plan.report()
    write_text(plan.folder / "table.md", text)
    print(f"{text}\n{plan.folder / 'table.md'}")
    return 0


def _contents(arguments: Sequence[str]) -> list[str]:
    """What the files are whose names are given: checkpoints, lists, configurations, the splits of stores."""
    found = [Path(name) for name in arguments[1:] if Path(name).is_file()]
    stores = [Path(name) for option, name in pairwise(arguments) if option == "--data"]
    found += [index for store in stores for index in sorted(store.glob("*/index.json"))]
    return [sha256_of(path) for path in found]


def check_test(table: Table, options: argparse.Namespace) -> None:
    """Raises UserError before the first command for what would be refused by the last ones."""
    if options.tuples:
        if table.needs:
            raise UserError(f"--tuples: lists mixtures of two people; {options.table} has none")
        read_tuples(Path(options.tuples))
    if table.words and require_recognizer(options.recognizer) is not None:
        raise UserError(
            f"--recognizer {options.recognizer}: holds what was heard of one system, not of a table's"
        )
    choose_device(options.device)


if __name__ == "__main__":
    run_script(main)
