"""Many recordings: which to separate, with whose voice, what is finished, and several at the same time."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from utils.audio import AUDIO_SUFFIXES
from utils.errors import UserError
from utils.files import fingerprint
from utils.progress import progress_bar

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
            table = csv.DictReader(file)
            table.fieldnames = [name.strip() for name in table.fieldnames or ()]
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no list that can be read ({error})") from error
    if not rows or "mixture" not in rows[0]:
        found = ", ".join(name for name in rows[0] if name) if rows else "nothing"
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
    for output in chosen:
        if output.suffix.lower() != ".wav":
            raise UserError(f"{path}: output {output}: results are WAV files, name it .wav")
    return [Job(*job) for job in zip(mixtures, voices, chosen, strict=True)]


def folder_jobs(folder: Path, references: Sequence[Path], out: Path) -> list[Job]:
    """All recordings below a folder but for hidden ones, and but for earlier results where `out` lies below
    it; the same tree below `out`. Raises UserError where there is none, and where the results would lie among
    the recordings, to be separated themselves the next time."""
    inside, whole = out.resolve(), folder.resolve()
    if inside == whole:
        raise UserError(f"{out}: is the folder of the mixtures; name another one for the results with -o")
    below = inside.is_relative_to(whole)
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (below and path.resolve().is_relative_to(inside))
    ]
    if not paths:
        raise UserError(f"{folder}: holds no recordings ({', '.join(sorted(AUDIO_SUFFIXES))})")
    names = _free_names([path.relative_to(folder) for path in paths])
    return [Job(path, tuple(references), out / name) for path, name in zip(paths, names, strict=True)]


def _find(name: str, folder: Path) -> Path:
    """A name relative to the working folder, or else to the list's. Raises UserError where these are two
    files."""
    here, beside = Path(name), folder / name
    if not beside.exists():
        return here
    if here.exists() and not here.samefile(beside):
        raise UserError(f"{name}: is {here.absolute()} or {beside.absolute()}; the list has to say which")
    return beside


def _free_names(paths: Sequence[Path]) -> list[Path]:
    """NAME.wav for each, or NAME.flac.wav where two would have the same."""
    plain = [path.with_suffix(".wav") for path in paths]
    times = Counter(plain)
    return [
        name if times[name] == 1 else path.with_name(f"{path.name}.wav")
        for path, name in zip(paths, plain, strict=True)
    ]


def check_results(
    jobs: Sequence[Job],
    results: Callable[[Job], Sequence[Path]],
    inputs: Sequence[Path],
    others: Sequence[Path],
) -> None:
    """Raises UserError when one of the `results` of a job would overwrite an input (those of the jobs and
    these `inputs`), another result, or one of the `others` that are written."""
    given = {path.resolve() for job in jobs for path in (job.mixture, *job.references)}
    given |= {path.resolve() for path in inputs}
    made: dict[Path, str] = {}
    everything = [(path, str(job.mixture)) for job in jobs for path in results(job)]
    for path, owner in [
        *((path, "the report or the list of what is finished") for path in others),
        *everything,
    ]:
        place = path.resolve()
        if place in given:
            raise UserError(f"{path}: is an input and would be overwritten; name another place with -o")
        if place in made:
            raise UserError(f"{path}: would be the result of {made[place]} and of {owner}")
        made[place] = owner


class Finished:
    """What has been done in a folder of results, one line of JSON each; the last of an output counts.

    Raises UserError where the folder is none.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.lock = folder / FINISHED, Lock()
        self.entries: dict[str, dict[str, Any]] = {}
        lines = self._lines()
        self.ends = not lines or lines[-1].endswith("\n")
        for line in lines:
            try:
                entry = json.loads(line)
                self.entries[entry["report"]["output"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a crash: that one is done again

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot write there ({error.strerror})") from error

    def report(self, job: Job, key: str) -> dict[str, Any] | None:
        """Of a job that was done in this way and whose files are as it left them."""
        entry = self.entries.get(str(job.output), {})
        if entry.get("key") != key or entry.get("files") != _states(entry["report"]):
            return None
        found: dict[str, Any] = entry["report"]
        return found

    def add(self, key: str, report: dict[str, Any]) -> None:
        with self.lock:
            entry = {"key": key, "report": report, "files": _states(report)}
            self.entries[report["output"]] = entry
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("" if self.ends else "\n") + json.dumps(entry) + "\n")
                self.ends = True
                file.flush()
                os.fsync(file.fileno())


def _states(report: Mapping[str, Any]) -> list[list[int] | None]:
    """Size and time of every file of a report."""
    paths = [Path(name) for name in report.get("files", [])]
    return [[p.stat().st_size, p.stat().st_mtime_ns] if p.exists() else None for p in paths]


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
        if (report := finished.report(job, keys[job])) is not None
    }
    missing = [job for job in jobs if job not in outcomes]
    stopping = Event()
    with ThreadPoolExecutor(at_once) as pool:
        futures: dict[Future[dict[str, Any]], Job] = {
            pool.submit(work, job, stopping): job for job in missing
        }
        try:
            for future in progress_bar(
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
    except Exception as error:  # of a library, at what it has not expected; the others go on
        return Outcome(job, None, f"{job.mixture}: {type(error).__name__}: {error}")
