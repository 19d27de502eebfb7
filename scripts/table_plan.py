"""The commands behind a table, in order, and what is read from their results."""

from __future__ import annotations

import argparse
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.load import load_any_config, load_config
from config.schema import Config
from model.test_set import result_name
from scripts.cost import hours_and_bytes
from scripts.tables import BEFORE, COLUMNS, EXAMPLES, Table, TableRow, shrunk
from utils.errors import UserError
from utils.files import fingerprint, read_json

CONFIGS = Path("config")
WHO = (
    "data.seed=", "data.subsets=", "data.check=", "data.validation.speaker", "data.validation.subsets=",
    "data.test.speaker", "data.test.subsets=",
)  # fmt: skip
"""Overrides that decide who is held out, of a separator and of an embedder."""
PAPER_VCTK_TEST = ("p246", "p247", "p250", "p251", "p272", "p273", "p305", "p333", "p347", "p374")


@dataclass(frozen=True)
class Step:
    """A command, what it is for, and the file that it ends with."""

    what: str
    arguments: tuple[str, ...]
    result: Path


class Plan:
    """Of one table with the options of reproduce.py."""

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        self.table, self.options = table, options
        self.name, self.scale = options.table, options.scale
        self.folder = Path(options.out) / f"{self.name}-{self.scale}"
        self.seeds = table.seeds or (0,)
        given = options.embedder
        trained = self.folder / "chkpt/embedder/best.pt"
        self.embedder = given or (str(trained) if table.embedder else None)
        self.conditioned = any(self._config(row).network.embedding == "reference" for row in table.rows)

    # -------------------------------------------------------- settings

    def _overrides(self, row: TableRow) -> list[str]:
        return [*row.overrides, *shrunk(self.scale, self.table), *self._test(), *self.options.overrides]

    def _config(self, row: TableRow) -> Config:
        return load_config(CONFIGS / f"{row.config}.yaml", self._overrides(row))

    def _test(self) -> list[str]:
        """Who is tested on: the paper's people of VCTK, the subsets that were named, or a share."""
        count = EXAMPLES[self.scale][1] or 1000
        return [f"data.test={{examples: {count}, {self._tested()}}}"]

    def _tested(self) -> str:
        if self.options.test_subsets:
            return f"subsets: [{self.options.test_subsets}]"
        elif self.table.vctk and self.scale == "full":
            return f"speaker_ids: [{', '.join(PAPER_VCTK_TEST)}]"
        elif self.options.tuples and not self.table.vctk:
            return "subsets: [dev-clean, dev-other]"
        return "speakers: 0.1"

    def _of_embedder(self) -> list[str]:
        """Overrides of the embedder's training: those whom the separators are tested and validated on are
        held out of it, too, and a batch has no more people than VCTK."""
        fewer = ["train.speakers=50", "train.utterances=2"] if self.scale == "full" else []
        shorter = shrunk(self.scale, self.table, separator=False)
        own = [text for text in self.options.overrides if text.startswith(WHO)]
        return [*fewer, *shorter, f"data.test={{{self._tested()}}}", *own]

    def _given(self) -> list[str]:
        """Corpora and sounds, as generator.py and evaluate.py take them."""
        found = [part for corpus in self.options.corpus for part in ("-d", corpus)]
        for kind in self.table.needs:
            found += [part for folder in getattr(self.options, kind) for part in (f"--{kind}", folder)]
        return found

    def _with_embedder(self) -> list[str]:
        return ["-e", self.embedder] if self.embedder and self.conditioned else []

    def runs(self) -> list[TableRow]:
        """The first row of every run."""
        return list({row.run: row for row in reversed(self.table.rows)}.values())[::-1]

    def checkpoint(self, row: TableRow, seed: int) -> Path:
        place = self.folder / "chkpt" / row.run
        return (place / f"seed-{seed}" if self.table.seeds else place) / "best.pt"

    def store(self, row: TableRow, protocol: str | None = None) -> Path:
        """Where the mixtures of a row are; runs that train on the same data share it."""
        config = self._config(row)
        data, store = config.data.model_dump(), config.store.model_dump(exclude={"folder"})
        key = fingerprint([data, store, config.audio.model_dump()])[:6]
        return self.folder / (f"data-{key}" if protocol is None else f"test-{protocol}")

    def results(self, row: TableRow, protocol: str) -> Path:
        """One folder for all, so that the mixtures are scored once, unless seeds have equal names."""
        return self.folder / f"results-{protocol}" / (row.run if self.table.seeds else "")

    # -------------------------------------------------------- commands

    def steps(self) -> Iterator[Step]:
        given, rows = self._given(), self.table.rows
        if self.table.embedder and not self.options.embedder:
            yield Step(
                "the embedder that the speaker loss hears with",
                ("trainer.py", "-c", f"config/{self.table.embedder}.yaml", *self._speech(), "-m", "embedder",
                 "-b", str(self.folder), "--device", self.options.device,
                 *self._of_embedder()),
                self.folder / "chkpt/embedder/best.pt",
            )  # fmt: skip
        stores: set[Path] = set()
        for row in self.runs():
            store = self.store(row)
            if store not in stores:
                stores.add(store)
                yield Step(
                    f"mixtures to train {row.label} on",
                    ("generator.py", "-c", f"config/{row.config}.yaml", *given, "-o", str(store),
                     *self._with_embedder(), *self._overrides(row)),
                    store / "store.json",
                )  # fmt: skip
            seeds = [f"train.seeds={list(self.seeds)}"] if self.table.seeds else []
            yield Step(
                f"training: {row.label}",
                ("trainer.py", "-c", f"config/{row.config}.yaml", "-m", row.run, "-b", str(self.folder),
                 *self._with_embedder(), "--device", self.options.device, *self._overrides(row), *seeds,
                 f"store.folder={store}"),
                self.checkpoint(row, self.seeds[-1]),
            )  # fmt: skip
        for protocol in self.table.protocols:
            if not self.options.tuples:
                row, store = rows[0], self.store(rows[0], protocol)
                yield Step(
                    f"test mixtures, protocol {protocol}",
                    ("generator.py", "-c", f"config/{row.config}.yaml", *given, "-o", str(store),
                     *self._with_embedder(), *self._overrides(row), f"data.protocol={protocol}",
                     "data.train=2"),
                    store / "store.json",
                )  # fmt: skip
            for row in rows:
                for seed in self.seeds:
                    yield self._evaluation(row, seed, protocol)

    def _speech(self) -> list[str]:
        return [part for corpus in self.options.corpus for part in ("-d", corpus)]

    def _evaluation(self, row: TableRow, seed: int, protocol: str) -> Step:
        checkpoint, out = self.checkpoint(row, seed), self.results(row, protocol)
        if self.options.tuples:
            data = ["--tuples", self.options.tuples, *self._speech(), "--protocol", protocol]
            name = Path(self.options.tuples).stem
        else:
            data, name = ["--data", str(self.store(self.table.rows[0], protocol))], "test"
        words = (
            ["--recognizer", self.options.recognizer, "--clean"]
            if self.table.words and protocol == "padded"
            else []
        )
        mask = [] if row.mask == "org" else ["--mask", row.mask]
        return Step(
            f"scores: {row.label}, protocol {protocol}" + (f", seed {seed}" if self.table.seeds else ""),
            ("evaluate.py", str(checkpoint), *data, "-o", str(out), "--metrics", self.table.metrics,
             "--device", self.options.device, *words, *mask),
            out / result_name(checkpoint, name, row.mask) / "summary.json",
        )  # fmt: skip

    # -------------------------------------------------------- words

    def describe(self, steps: Sequence[Step]) -> str:
        """The plan, and what it costs."""
        lines = [f"{self.table.title} ({self.table.source}), scale {self.scale}: {len(steps)} commands", ""]
        lines += [
            f"{n:3}. {step.what}\n     python {shlex.join(step.arguments)}" for n, step in enumerate(steps, 1)
        ]
        runs = [(self._config(row), len(self.seeds)) for row in self.runs()]
        if self.table.embedder and not self.options.embedder:
            path = CONFIGS / f"{self.table.embedder}.yaml"
            load_any_config(str(path), self._of_embedder())  # refuses here what would be refused hours later
        cost = hours_and_bytes(runs)
        left_out = (
            "Not in it: an embedder's training, speaker losses, mixing, scores, words, and checkpoints."
        )
        return "\n".join([*lines, "", *cost.describe(), left_out, ""])

    def report(self) -> str:
        """The table: ours beside the published figures."""
        lines = [f"# {self.table.title}", "", f"Published: {self.table.source}. Scale {self.scale}."]
        if self.scale != "full":
            lines.append(
                "Networks and data are tiny: these figures show that every stage works, and nothing else."
            )
        for protocol in self.table.protocols:
            found = [
                (row, [read_json(self._evaluation(row, seed, protocol).result) for seed in self.seeds])
                for row in self.table.rows
            ]
            first = found[0][1][0]
            tests = {summary["data_fingerprint"] for _, summaries in found for summary in summaries}
            if len(tests) > 1:
                raise UserError(
                    f"{self.folder}: the rows were scored on different data ({', '.join(sorted(tests))}); "
                    "remove its folders results-* and run again"
                )
            seeds = f", mean and standard deviation of {len(self.seeds)} seeds" if self.table.seeds else ""
            lines += [
                "",
                f"## {first['protocol']}: {first['n']} mixtures of {first['speakers']} speakers{seeds}",
                "",
            ]
            shown = [c for c in self.table.columns if "WER" not in c or protocol == "padded"]
            figures = [self.table.baseline, *(row.published for row in self.table.rows)]
            papers = protocol == self.table.protocols[0] and any(figures)  # whose protocol this is

            def line(label: str, ours: Sequence[str], published: Sequence[str], papers: bool = papers) -> str:
                pairs = zip(ours, published, strict=True)
                return f"| {label} | {' | '.join(part for pair in pairs for part in pair[: 1 + papers])} |"

            lines.append(line("", shown, ["published"] * len(shown)))
            lines.append(f"|{'---|' * (1 + len(shown) * (1 + papers))}")
            before = [self._before(first, column) for column in shown]
            lines.append(line("mixture", before, [self.table.baseline.get(c, "") for c in shown]))
            for row, summaries in found:
                ours = [self._cell(summaries, column) for column in shown]
                lines.append(line(row.label, ours, [row.published.get(c, "") for c in shown]))
            lines += self._caveats(found, shown, papers)
        commits = {str(s["versions"]["commit"])[:12] for _, summaries in found for s in summaries}
        heard = ", ".join(self.options.corpus)
        subsets = self.options.test_subsets
        test = self.options.tuples or (
            f"mixtures of {subsets}" if subsets else "mixtures of held-out speakers"
        )
        lines += ["", f"Corpus {heard}; test: {test}; code {', '.join(sorted(commits))}."]
        if self.table.words:
            lines.append(f"Words by {self.options.recognizer}; clean: the target alone goes through.")
        if self.table.note:
            lines.append(self.table.note)
        return "\n".join(lines) + "\n"

    def _caveats(
        self, found: Sequence[tuple[TableRow, list[dict[str, Any]]]], shown: Sequence[str], papers: bool
    ) -> list[str]:
        """What a reader should know of the figures; `papers`: published ones stand beside them."""
        lines = []
        for row, summaries in found:
            for summary in summaries:
                if summary["heard_speakers"]:
                    lines.append(
                        f"{row.label}: HAS HEARD {summary['heard_speakers']} of the speakers in training."
                    )
                if summary["not_finite"]:
                    lines.append(
                        f"{row.label}: {summary['not_finite']} ESTIMATES ARE NaN, scored as silence."
                    )
        first = found[0][1][0]
        if same := first["same_utterance_speakers"]:
            lines.append(
                f"{same} of the {first['speakers']} speakers have one utterance: their reference is its "
                "other half (same session, an easier task)."
            )
        if any("WER" in column for column in shown) and not first.get("word_errors"):
            lines.append(
                "No word error rates: none of the mixtures is of a whole utterance with a transcript; "
                "--test_subsets names people who have some."
            )
        if papers and not self.options.tuples:
            lines.append(
                "Published figures are of the paper's own test mixtures, ours of others: not to be compared."
            )
        return ["", *dict.fromkeys(lines)] if lines else []

    def _before(self, summary: dict[str, Any], column: str) -> str:
        key = BEFORE.get(column)
        return _figure(summary, key) if key else ""

    def _cell(self, summaries: Sequence[dict[str, Any]], column: str) -> str:
        figures = [_figure(summary, COLUMNS[column]) for summary in summaries]
        if len(figures) == 1 or not all(figures):
            return figures[0]
        numbers = [_number(summary, COLUMNS[column]) or 0.0 for summary in summaries]
        return f"{statistics.mean(numbers):.3f} +- {statistics.stdev(numbers):.3f}"


def _number(summary: dict[str, Any], key: str) -> float | None:
    if key in ("clean", "noisy", "enhanced", "enhanced_clean"):
        found = summary.get("word_errors", {}).get(key)
        return None if found is None else float(found["wer"])
    value = summary.get(key)
    return None if value is None else float(value) * (100 if key.endswith(("share", "share_after")) else 1)


def _figure(summary: dict[str, Any], key: str) -> str:
    value = _number(summary, key)
    if value is None:
        return ""
    return f"{value:.1f}" if "share" in key or "_" not in key or "enhanced" in key else f"{value:.2f}"
