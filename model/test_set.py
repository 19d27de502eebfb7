"""What is evaluated: a test set, and systems whose scores are kept row by row as they come."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from config.load import differences
from datasets.corpus import Utterance
from datasets.live import RenderedSplit
from datasets.recipe import Clip, Recipe
from datasets.store import StoredSplit
from model.separator import Separator
from utils import distributed
from utils.errors import UserError
from utils.versions import versions

MIXTURE = "mixture"
"""The system that does nothing."""
JUDGED = frozenset(
    ["similarity", "similarity_other", "impostors", "voices", "target_similarity", "target_impostors"]
)
"""What the embedder that judges has a part in."""
Row = dict[str, Any]
"""Of one example: numbers by metric, `impostors` (similarities), and texts by `heard:CONDITION:NAME`."""


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

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row of every recipe's index; what could not be rendered leaves a gap in these."""
        return {recipe.index: row for row, recipe in enumerate(self.recipes)}

    @cached_property
    def texts(self) -> list[str | None]:
        """What the target says, where it is a whole utterance with a transcript."""
        return [self._text(recipe) for recipe in self.recipes]

    def _text(self, recipe: Recipe) -> str | None:
        if recipe.target is None or recipe.reverse:
            return None
        clip = recipe.target.clips[0]
        utterance = self.utterances[clip.utterance]
        shown = recipe.seconds * utterance.rate + 1 >= utterance.frames / clip.speed
        return utterance.text if clip.frames >= utterance.frames and shown else None


@dataclass
class System:
    """What is scored under a `name`, in `folder`: a separator, or (None) the unprocessed mixture.

    `identity`: what its scores depend on besides the row; others are not gone on with. Of those that an
    embedder gives, `judge` is its fingerprint: another's are computed anew. `data`: the fingerprint of the
    examples. `checkpoint`: the file, and the `sha256` of what was read from it. `made_with`: what else there
    is to say of how scores are computed (versions, device), and `earlier` the same of earlier runs' scores.
    """

    name: str
    folder: Path
    identity: str
    data: str
    separator: Separator | None = None
    judge: str = ""
    checkpoint: str = ""
    sha256: str = ""
    made_with: dict[str, Any] = field(default_factory=versions)
    rows: dict[int, Row] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    begun: bool = False

    def read(self) -> None:
        """Takes what earlier runs have left, of all ranks; scores of other weights are forgotten. Raises
        UserError where they are of other data or another run's, and would be lost."""
        for path in sorted(self.folder.glob("rows*.jsonl")):
            try:
                lines = path.read_text().splitlines()
            except FileNotFoundError:  # the first rank has just removed it, see below
                continue
            head = (_parsed(lines[0]) if lines else None) or {}
            if head.get("data", self.data) != self.data:
                raise UserError(
                    f"{self.folder}: holds scores of other data ({head['data']}, not {self.data}); name "
                    "another folder with -o, or remove it"
                )
            if head.get("identity") != self.identity:
                place = head.get("checkpoint", self.checkpoint)
                if place != self.checkpoint and Path(place).is_file():  # else the run was moved
                    raise UserError(
                        f"{self.folder}: holds scores of {place}, not of {self.checkpoint}; name another "
                        "folder with -o, or remove it"
                    )
                if distributed.rank() == 0:
                    path.unlink(missing_ok=True)
                continue
            for line in lines:
                entry = _parsed(line) or {}  # cut off by a crash
                if isinstance(entry.get("row"), int):
                    same = entry.get("judge") == self.judge
                    scores = {k: v for k, v in entry["scores"].items() if same or k not in JUDGED}
                    self.rows.setdefault(entry["row"], {}).update(scores)
                elif "made_with" in entry and entry["made_with"] not in (self.made_with, *self.earlier):
                    self.earlier.append(entry["made_with"])

    def differences(self) -> list[list[str]]:
        """Of each earlier run whose scores are kept, what it did otherwise; the kernel does not count."""
        found = [differences(made, self.made_with) for made in self.earlier]
        return [[line for line in lines if not line.startswith("system:")] for lines in found]

    def add(self, found: Mapping[int, Row]) -> None:
        """Keeps scores of some rows, on disk at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rows-{distributed.rank()}.jsonl"
        new = not path.exists() or not path.stat().st_size
        with path.open("a+b") as file:
            if not new:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # after a crash in the middle of a line
            head = {"identity": self.identity, "data": self.data, "checkpoint": self.checkpoint}
            lines = [] if self.begun else [json.dumps({**head, "made_with": self.made_with})]
            self.begun = True
            for row, scores in found.items():
                self.rows.setdefault(row, {}).update(scores)
                lines.append(json.dumps({"row": row, "judge": self.judge, "scores": scores}))
            file.write(("\n".join(lines) + "\n").encode())


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Wanted:
    """What is measured: metrics by name (`row_scores.METRICS`), the output for the target alone (`clean`),
    and what recognisers hear, or what a file has `listed` of it."""

    metrics: tuple[str, ...]
    clean: bool = False
    recognizer: str | None = None
    listed: Mapping[tuple[int, str], str] | None = None

    @property
    def hears(self) -> str | None:
        """The recogniser, unless what it heard comes from a file."""
        return self.recognizer if self.listed is None else None


def result_name(checkpoint: Path | str, split: str, mask: str = "org", factor: float = 1.0) -> str:
    """The folder of a checkpoint's results: run (and seed), checkpoint, split, and what is made of the
    mask."""
    path = Path(checkpoint)
    use = "" if mask == "org" else f"-{mask}-{factor:g}"
    run = path.resolve().parent
    name = f"{run.parent.name}-{run.name}" if re.fullmatch(r"seed-\d+", run.name) else run.name
    return f"{name}-{path.stem}-{split}{use}"


def heard_key(condition: str, recognizer: str) -> str:
    return f"heard:{condition}:{recognizer}"
