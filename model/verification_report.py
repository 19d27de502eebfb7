"""Embedders compared on the same trials: the tables and pictures that are written of it."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpus import Utterance, heard_speakers
from datasets.recipe import Clip
from datasets.trials import Trials
from model.embedder import Embedder
from model.verification import Verification
from utils.files import atomic_file, write_csv, write_json, write_text
from utils.plots import det_figure, save_picture
from utils.verification import FEWEST_SPEAKERS, error_rates

VERIFICATION = "verification.json"
"""What `write_results` writes last."""
MOST_LISTED = 1_000_000
"""Trials that are still written out one by one."""


@dataclass(frozen=True)
class Comparison:
    """What the embedders are compared on; `protocol` says it in words."""

    clips: list[Clip]
    speakers: list[str]
    trials: Trials
    protocol: str
    divided: int
    missing: list[tuple[int, str, str]]

    def names(self, utterances: Mapping[str, Utterance]) -> list[str]:
        """The clips' utterances, and which samples of them where it is not all."""
        found = []
        for clip in self.clips:
            start, frames = clip.stretches[0]
            whole = frames == utterances[clip.utterance].frames
            found.append(clip.utterance + ("" if whole else f"[{start}:{start + frames}]"))
        return found


def write_results(
    folder: Path,
    corpora: Sequence[str],
    embedders: Mapping[str, Embedder],
    results: Mapping[str, Verification],
    comparison: Comparison,
    utterances: Mapping[str, Utterance],
) -> None:
    """verification.json and .md, det.png, and the trials and the lines left out as far as there are any."""
    summary = summarize(corpora, embedders, results, comparison)
    curves = {name: error_rates(found.scores, found.same) for name, found in results.items()}
    det = {name: (curve.misses, curve.false_alarms) for name, curve in curves.items()}
    (folder / VERIFICATION).unlink(missing_ok=True)  # written last: what stands beside it is its own
    save_picture(folder / "det.png", det_figure(det, comparison.protocol))
    written = [folder / "det.png"]
    for name in ("trials.csv.gz", "missing.csv"):
        (folder / name).unlink(missing_ok=True)
    if len(comparison.trials.same) <= MOST_LISTED:
        write_trials(folder / "trials.csv.gz", results, comparison.trials, comparison.names(utterances))
        written.append(folder / "trials.csv.gz")
    if comparison.missing:
        write_csv(folder / "missing.csv", ("line", "path", "cause"), comparison.missing)
        written.append(folder / "missing.csv")
    write_text(folder / "verification.md", markdown(summary) + "\n")
    write_json(folder / VERIFICATION, summary)
    print(markdown(summary), *written, folder / VERIFICATION, sep="\n")


def summarize(
    corpora: Sequence[str],
    embedders: Mapping[str, Embedder],
    results: Mapping[str, Verification],
    comparison: Comparison,
) -> dict[str, Any]:
    """Plain values: what was compared, and the figures of every embedder.

    `heard_speakers`: how many of those compared it was trained on; `heard_others`: perhaps more.
    """
    present = set(comparison.speakers)
    found = {}
    for name, embedder in embedders.items():
        heard = len(heard_speakers(present, embedder.training_speakers))
        found[name] = {
            **results[name].summary(),
            "interval": results[name].interval(),
            "heard_speakers": heard,
            "heard_others": embedder.heard_others,
            "fingerprint": embedder.fingerprint(),
        }
    return {
        "corpus": list(corpora),
        "protocol": comparison.protocol,
        "divided_speakers": comparison.divided,
        "missing_trials": len(comparison.missing),
        "embedders": found,
    }


def write_trials(
    path: Path, results: Mapping[str, Verification], trials: Trials, names: Sequence[str]
) -> None:
    def rows() -> Iterator[list[Any]]:
        scores = [found.scores for found in results.values()]
        for row, (first, second) in enumerate(zip(trials.first, trials.second, strict=True)):
            values = [f"{values[row]:.6f}" for values in scores]
            yield [int(trials.same[row]), names[first], names[second], *values]

    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(
            "", "wb", fileobj=raw, mtime=0
        ) as packed,  # no name, no time: equal results, equal files
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["same", "first", "second", *results])
        writer.writerows(rows())


def markdown(summary: Mapping[str, Any]) -> str:
    """The results side by side, for people."""
    one = next(iter(summary["embedders"].values()))
    lines = [
        f"{one['utterances']} utterances of {one['speakers']} speakers: {one['targets']} trials of one "
        f"speaker, {one['impostors']} of two ({summary['protocol']})",
        "",
        "| embedder | EER % [95 %] | minDCF(0.01) | threshold | heard in training |",
        "|---|---|---|---|---|",
    ]
    for name, found in summary["embedders"].items():
        heard, interval = f"{found['heard_speakers']} of {found['speakers']} speakers", found["interval"]
        if found["heard_others"]:
            heard = f"at least {heard}" if found["heard_speakers"] else "unknown"
        lines.append(
            f"| {name} | {100 * found['eer']:.2f}{interval} | {found['min_dcf']:.3f} "
            f"| {found['threshold']:.3f} | {heard} |"
        )
    few = f"no interval of fewer than {FEWEST_SPEAKERS} speakers, or without an error"
    lines += ["", f"Intervals are taken over {one['speakers']} speakers ({few})."]
    if summary["divided_speakers"]:
        lines.append(
            f"{summary['divided_speakers']} of them have one utterance: crops of one utterance count as "
            "utterances, an easier task."
        )
    return "\n".join(lines)
