"""Many recordings: which to separate, with whose voice, what is finished, and several at the same time."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tqdm import tqdm

from utils.audio import AUDIO_SUFFIXES
from utils.errors import UserError
from utils.files import fingerprint

COLUMNS = ("mixture", "reference", "output")
FINISHED = "finished.jsonl"


@dataclass(frozen=True)
class Job:
    """One recording, the references of the voice that is wanted, and the file for its estimate."""

    mixture: Path
    references: tuple[Path, ...]
    output: Path

    def key(self, how: str) -> str:
        """Changes with the content of its inputs (as far as size and time tell) and with `how` it is done."""
        states = []
        for path in (self.mixture, *self.references):
            state = path.stat() if path.exists() else None
            states.append((str(path), state and state.st_size, state and state.st_mtime_ns))
        return fingerprint([states, str(self.output), how])


def listed_jobs(path: Path, references: Sequence[Path], folder: Path) -> list[Job]:
    """The rows of a CSV file with the columns mixture, reference (several: separated by `;`) and output.

    `reference` may be missing where `references` are given, `output` (a name below `folder`) always. Names
    are relative to the working folder or to the list's. Raises UserError for a list that cannot be used.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no list that can be read ({error})") from error
    if not rows or "mixture" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "nothing"
        raise UserError(f"{path}: expected a header and rows with {', '.join(COLUMNS)}; found {found}")
    mixtures, voices, outputs = [], [], []
    for number, row in enumerate(rows, 2):
        mixture, named = (row.get("mixture") or "").strip(), (row.get("reference") or "").strip()
        if not mixture:
            raise UserError(f"{path}, line {number}: names no mixture")
        mixtures.append(_find(mixture, path.parent))
        own = tuple(_find(name.strip(), path.parent) for name in named.split(";") if name.strip())
        voices.append(own or tuple(references))
        outputs.append((row.get("output") or "").strip())
    names = _free_names([Path(m.name) for m in mixtures])
    chosen = [folder / (Path(given) if given else name) for given, name in zip(outputs, names, strict=True)]
    return _checked([Job(*job) for job in zip(mixtures, voices, chosen, strict=True)], str(path))


def folder_jobs(folder: Path, references: Sequence[Path], out: Path) -> list[Job]:
    """All recordings below a folder, the same tree below `out`. Raises UserError where there is none."""
    inside = out.resolve()
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.resolve().is_relative_to(inside)
    ]
    if not paths:
        raise UserError(f"{folder}: holds no recordings ({', '.join(sorted(AUDIO_SUFFIXES))})")
    names = _free_names([path.relative_to(folder) for path in paths])
    jobs = [Job(path, tuple(references), out / name) for path, name in zip(paths, names, strict=True)]
    return _checked(jobs, str(folder))


def _find(name: str, folder: Path) -> Path:
    """A name relative to the working folder, or else to the list's."""
    return folder / name if not Path(name).exists() and (folder / name).exists() else Path(name)


def _free_names(paths: Sequence[Path]) -> list[Path]:
    """NAME.wav for each, or NAME.flac.wav where two would have the same."""
    plain = [path.with_suffix(".wav") for path in paths]
    return [
        name if plain.count(name) == 1 else path.with_name(f"{path.name}.wav")
        for path, name in zip(paths, plain, strict=True)
    ]


def _checked(jobs: list[Job], where: str) -> list[Job]:
    """Raises UserError when a result would overwrite an input or another result."""
    results: dict[Path, Path] = {}
    inputs = {path.resolve() for job in jobs for path in (job.mixture, *job.references)}
    for job in jobs:
        result = job.output.resolve()
        if result in inputs:
            raise UserError(f"{where}: {job.output} is an input and would be overwritten by a result")
        if result in results:
            raise UserError(
                f"{where}: {job.output} would be the result of {results[result]} and of {job.mixture}"
            )
        results[result] = job.mixture
    return jobs


class Finished:
    """What has been done in a folder of results: reports by the job's key, one line of JSON each."""

    def __init__(self, folder: Path) -> None:
        self.path, self.lock = folder / FINISHED, Lock()
        self.reports: dict[str, dict[str, Any]] = {}
        for line in self._lines():
            try:
                entry = json.loads(line)
                self.reports[entry["key"]] = entry["report"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: that one is done again

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    def report(self, key: str) -> dict[str, Any] | None:
        """Of a job that is done and whose files are still there."""
        found = self.reports.get(key)
        return found if found and all(Path(name).exists() for name in found.get("files", [])) else None

    def add(self, key: str, report: dict[str, Any]) -> None:
        with self.lock:
            self.reports[key] = report
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "report": report}) + "\n")
                file.flush()
                os.fsync(file.fileno())


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its report, or in one sentence why there is none; `again`: it had been done."""

    job: Job
    report: dict[str, Any] | None
    problem: str | None = None
    again: bool = False


def run_jobs(
    jobs: Sequence[Job],
    work: Callable[[Job, Event], dict[str, Any]],
    finished: Finished,
    how: str,
    at_once: int,
) -> list[Outcome]:
    """Does what is not done yet, `at_once` jobs at the same time, with a progress bar, in the jobs' order.

    A job that raises UserError or OSError does not stop the others, except for a full disk. The event that
    `work` is given is set when it should come to an end.
    """
    keys = {job: job.key(how) for job in jobs}
    outcomes = {
        job: Outcome(job, report, again=True)
        for job in jobs
        if (report := finished.report(keys[job])) is not None
    }
    missing = [job for job in jobs if job not in outcomes]
    stopping = Event()
    with ThreadPoolExecutor(at_once) as pool:
        futures: dict[Future[dict[str, Any]], Job] = {
            pool.submit(work, job, stopping): job for job in missing
        }
        try:
            for future in tqdm(
                as_completed(futures), total=len(jobs), initial=len(outcomes), unit="file", leave=False
            ):
                job = futures[future]
                outcomes[job] = _outcome(job, future)
                if (report := outcomes[job].report) is not None:
                    finished.add(keys[job], report)
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcomes[job] for job in jobs]


def _outcome(job: Job, future: Future[dict[str, Any]]) -> Outcome:
    try:
        return Outcome(job, future.result())
    except UserError as error:
        return Outcome(job, None, str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return Outcome(job, None, f"{job.mixture}: {error.strerror or error}")
