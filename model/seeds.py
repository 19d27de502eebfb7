"""What trainings that differ in their seed alone reach: mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from model.patience import can_choose
from utils.checkpoint import load_checkpoint
from utils.files import write_json


def summarize_seeds(folders: Mapping[int, Path]) -> dict[str, Any]:
    """Of every figure of the validation that each run's best.pt was chosen by: `values` in the order of the
    seeds, their `mean`, and their sample standard deviation `sd` (n - 1; None of a single one).

    Figures that not every run has, and those that are not the network's doing, are left out. Raises UserError
    for a run without best.pt.
    """
    found = [load_checkpoint(folder / "best.pt") for folder in folders.values()]
    shared = [name for name in found[0]["validation"] if all(name in best["validation"] for best in found)]
    names = list(filter(can_choose, shared))  # what differs between mixtures says nothing of the runs
    figures = {}
    for name in names:
        values = [float(best["validation"][name]) for best in found]
        sd = stdev(values) if len(values) > 1 else None
        figures[name] = {"mean": fmean(values), "sd": sd, "values": values}
    return {"seeds": list(folders), "steps": [best["step"] for best in found], "validation": figures}


def report_seeds(folder: Path, folders: Mapping[int, Path]) -> None:
    """Writes the summary as `folder/seeds.json` and prints it as a table."""
    summary = summarize_seeds(folders)
    write_json(folder / "seeds.json", summary)
    seeds = summary["seeds"]
    print(f"{folder / 'seeds.json'}: best validation of {len(seeds)} seeds ({', '.join(map(str, seeds))})")
    width = max(map(len, summary["validation"]), default=0)
    for name, figure in summary["validation"].items():
        spread = "" if figure["sd"] is None else f" +- {figure['sd']:.4g}"
        print(f"  {name:{width}}  {figure['mean']:.4g}{spread}")
