"""The folder of a run: checkpoints of which one is complete at any moment, and one training at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from utils import distributed
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import locked, remove_leftovers
from utils.versions import versions


class RunFolder:
    """`last.pt` and the one before it, `previous.pt`; `best.pt`; the newest `keep` as step-NUMBER.pt."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path, self.keep = path, keep
        self.last, self.previous = path / "last.pt", path / "previous.pt"
        self._damaged = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises UserError if another process trains this run; of several ranks the first one asks."""
        refusal = f"{self.path}: another process is training this run; wait for it, or use another -m NAME"
        with nullcontext() if distributed.rank() else locked(self.path / ".lock", refusal):
            if distributed.rank() == 0:
                remove_leftovers(self.path, ("last", "previous", "best", "step-*", "failed-batch-*"))
            yield

    def read_last(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint and its content; None in a new run.

        Says so if it is not last.pt. Raises UserError where none is complete.
        """
        kept = sorted(self.path.glob("step-*.pt"), key=_number, reverse=True)
        there = [path for path in (self.last, self.previous, *kept) if path.exists()]
        if not there:
            if (best := self.path / "best.pt").exists():
                raise UserError(f"{best}: would be lost in a new training of this name; use another -m NAME")
            return None
        causes = []
        for path in there:
            try:
                content = load_checkpoint(path, verify=True)
            except UserError as error:
                causes.append(str(error))
                continue
            if path != self.last:
                cause = causes[0] if causes else f"{self.last}: is missing"
                print(f"WARNING: {cause}; goes on from {path}, step {content.get('step')}")
            self._damaged = bool(causes)
            return path, content
        raise UserError(f"{'; '.join(causes)}; use another -m NAME")

    def save_last(self, content: dict[str, Any], step: int, keep: bool) -> None:
        """Writes last.pt; `keep`: also as one of the newest."""
        # what is damaged must not push out the only complete one
        previous = None if self._damaged else self.previous
        kept = self.path / f"step-{step:08d}.pt" if keep and self.keep else None
        save_checkpoint(self.last, content | {"code": versions()}, previous, kept)
        self._damaged = False
        if kept:
            ours = [path for path in self.path.glob("step-*.pt") if _number(path) >= 0]
            for old in sorted(ours, key=_number)[: -self.keep]:
                old.unlink()

    def save(self, name: str, content: dict[str, Any]) -> None:
        save_checkpoint(self.path / name, content | {"code": versions()})


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1
