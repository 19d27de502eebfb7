"""Brings a folder of audio to one rate and one loudness: `python -m datasets.normalize SOURCE -o TARGET`.

Corpora differ in level, and so do the readers within one (615 utterances of LibriSpeech train-clean-100 lie
8.6 dB apart from the 5th to the 95th percentile); a mixture is as hard as its voices' levels differ. The
measure is integrated loudness (EBU R 128, which is ITU-R BS.1770-4): it weights frequencies as the ear does
and leaves pauses out, so that a hesitant reader is not made louder than a fluent one, as equal RMS would, nor
a voice quieter for one click, as equal peaks would. Each file gets one gain, and there is no limiter: where a
16-bit file would pass full scale, the gain is lower (at -23 LUFS in 48 of those 615 files, at -28 in none).

This replaces the shell script of earlier repositories, which called ffmpeg-normalize for each file. No ffmpeg
is needed, its filter's dynamic mode, a gain that changes within the file, cannot set in where a peak is high,
and what was done to each file is written down.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from config.load import argument_parser, differences, parse_arguments, run_script
from datasets.scan import check_file
from datasets.tree import is_text, walk_files
from utils.audio import (
    AUDIO_SUFFIXES,
    LOUDNESS_BLOCK,
    integrated_loudness,
    peak_level,
    read_mono,
    write_audio,
    write_flac,
)
from utils.errors import UserError
from utils.files import atomic_file, write_csv
from utils.processes import cores, in_processes
from utils.progress import progress_bar

PROCESSES = cores()
RECORD, REPORT = ".normalize.jsonl", "normalize.csv"
LEFTOVER = re.compile(r"^(.*/|)\.([^/]+)-[a-z0-9_]{8}(\.[^./]*|)$")  # as atomic_file names them
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits


# ---- one file
@dataclass(frozen=True)
class Settings:
    """`rate` in Hz, `loudness` in LUFS; `format`: flac (16 bits) or wav (32-bit float). Raises UserError."""

    rate: int = 16000
    loudness: float = -23.0
    format: str = "flac"

    def __post_init__(self) -> None:
        if not 8000 <= self.rate <= 48000:  # FLAC knows only some of the higher ones
            raise UserError(f"--rate {self.rate}: expected 8000 to 48000 Hz")
        if not -70 < self.loudness <= 0:
            raise UserError(f"--loudness {self.loudness:g}: expected more than -70 and at most 0 LUFS")
        if self.format not in ("flac", "wav"):
            raise UserError(f"--format {self.format}: expected flac or wav")


@dataclass(frozen=True)
class Task:
    """One file: `path` below `source` becomes `output` below `target`; `size` in bytes, `mtime` in ns."""

    source: Path
    target: Path
    path: str
    output: str
    size: int
    mtime: int
    settings: Settings


@dataclass(frozen=True)
class Row:
    """What was made of a file, as it stands in the record; `loudness` before in LUFS, `gain` in dB.

    `kind`: audio, other (copied), or failed (with its cause in `note`; not recorded).
    """

    path: str
    output: str
    size: int
    mtime: int
    kind: str
    loudness: float | None = None
    gain: float = 0.0
    limited: bool = False
    note: str = ""


def _process(task: Task) -> Row:
    """Raises OSError when the disk is full, whereas a file that cannot be read is a row of its own."""
    known = (task.path, task.output, task.size, task.mtime)
    source, target = task.source / task.path, task.target / task.output
    if not _is_audio(task.path):
        try:
            with atomic_file(target) as temporary:
                shutil.copyfile(source, temporary)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return Row(*known, "failed", note=f"cannot be copied ({error.strerror})")
        return Row(*known, "other")
    settings = task.settings
    # what is damaged must not become a sound file
    if cause := check_file(str(source)).cause:
        return Row(*known, "failed", note=cause)
    try:
        samples = read_mono(source, settings.rate)
    except UserError as error:
        return Row(*known, "failed", note=str(error).removeprefix(f"{source}: "))
    if not len(samples):
        return Row(*known, "failed", note=f"too short for a sample at {settings.rate} Hz")
    loudness = integrated_loudness(samples, settings.rate)
    gain, limited, notes = _gain(loudness, peak_level(samples), settings)
    if len(samples) < LOUDNESS_BLOCK * settings.rate:
        notes.append(f"under {LOUDNESS_BLOCK} s: measured as if it were repeated")
    scaled = samples * (10 ** (gain / 20))
    if settings.format == "flac":
        write_flac(target, scaled, settings.rate)
    else:
        write_audio(target, scaled, settings.rate)
    finite = loudness if math.isfinite(loudness) else None
    return Row(*known, "audio", finite, gain, limited, "; ".join(notes))


def _gain(loudness: float, peak: float, settings: Settings) -> tuple[float, bool, list[str]]:
    """(gain in dB, whether the peak lowered it, notes); float WAV has no full scale to stay below."""
    full = 20 * math.log10(FULL_SCALE / peak) if peak and settings.format == "flac" else math.inf
    if not math.isfinite(loudness):
        # below the gate of -70 LUFS: no gain, or noise of the recorder would become speech
        return min(0.0, full), full < 0, ["silent: nothing over -70 LUFS"]
    gain = settings.loudness - loudness
    if gain <= full:
        return gain, False, []
    return full, True, [f"{gain - full:.1f} dB short of the loudness: the peak is at full scale"]


def _is_audio(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES


# ---- a folder
def normalize_tree(source: Path, target: Path, settings: Settings, processes: int = PROCESSES) -> str:
    """Normalises every audio file below `source` to the same place below `target`; copies all other files.

    Audio becomes mono (channels averaged) at settings.rate with the suffix of settings.format; so the result
    is a corpus in the layout that `source` has. Each file is either complete or not there, and is recorded
    as it is finished: a later run with the same settings takes only files that are new, changed (size or
    time) or failed. A file too loud for its peak gets less gain. `target`/normalize.csv lists each audio
    file, what was done to it, and why a file could not be read.
    Returns a sentence with the counts. Raises UserError for a source without audio, a target that holds
    anything else or was made with other settings, and OSError when the disk is full.
    """
    if processes < 1:
        raise UserError(f"-p {processes}: expected at least one process")
    tasks, clashes = _plan(source, target, settings)
    done = _open_record(target, settings)
    left = [task for task in tasks if not _is_finished(task, done.get(task.path))]
    _remove_leftovers(target, {task.output for task in left})
    taken = {task.path for task in left}
    rows = {task.path: done[task.path] for task in tasks if task.path not in taken}
    with (target / RECORD).open("a", encoding="utf-8") as record:
        for row in progress_bar(
            in_processes(_process, left, processes, "normalising"), "normalize", len(left), unit="file"
        ):
            rows[row.path] = row
            if row.kind != "failed":
                record.write(json.dumps(asdict(row)) + "\n")
                record.flush()
    failed = [*clashes, *(row for row in rows.values() if row.kind == "failed")]
    finished = [row for row in rows.values() if row.kind != "failed"]
    outputs = {row.output for row in finished}
    orphans = [row for row in done.values() if row.output not in outputs and (target / row.output).exists()]
    _write_report(target, finished, failed, orphans)
    return _summary(target, settings, finished, failed, orphans, len(tasks) - len(left))


def _plan(source: Path, target: Path, settings: Settings) -> tuple[list[Task], list[Row]]:
    """Tasks in the order of paths, and rows of the files whose results would have another's name."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    inside, outside = source.resolve(), target.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise UserError(f"{target}: the result must lie neither in {source} nor around it")
    tasks: dict[str, Task] = {}
    clashes = []
    for path in sorted(source / name for name in walk_files(source)):
        name = path.relative_to(source).as_posix()
        if not is_text(name):
            shown = os.fsencode(name).decode(errors="replace")
            clashes.append(Row(shown, shown, 0, 0, "failed", note="its name is no text in UTF-8"))
            continue
        if name in (RECORD, REPORT):
            continue  # of a source that is a result of ours: the target gets its own
        output = str(PurePosixPath(name).with_suffix(f".{settings.format}")) if _is_audio(name) else name
        try:
            status = path.stat()
        except OSError as error:  # a dead link
            note = f"cannot be read ({error.strerror})"
            clashes.append(Row(name, output, 0, 0, "failed", note=note))
            continue
        task = Task(source, target, name, output, status.st_size, status.st_mtime_ns, settings)
        first = tasks.setdefault(output, task)
        if first is not task:
            cause = f"would have the name of {first.path}"
            clashes.append(Row(name, output, task.size, task.mtime, "failed", note=cause))
    if not any(_is_audio(task.path) for task in tasks.values()):
        raise UserError(f"{source}: no audio file below it ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return list(tasks.values()), clashes


def _open_record(target: Path, settings: Settings) -> dict[str, Row]:
    """The rows of earlier runs by path; an empty target gets a record whose first line is the settings."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / RECORD
    if not path.exists():
        # hidden files: what atomic_file leaves of a killed run
        if any(not other.name.startswith(".") for other in target.iterdir()):
            raise UserError(f"{target}: holds files that are not of this command, expected an empty folder")
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        # killed while writing: the half line goes, and its file is made again
        os.truncate(path, path.stat().st_size - len(lines[-1]))
    try:
        first, *rest = (json.loads(line) for line in lines[:-1])
        rows = [Row(**fields) for fields in rest]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a record of this command ({error})") from error
    if other := differences(first, asdict(settings)):
        raise UserError(f"{target}: made with other settings ({'; '.join(other)}), take another folder")
    # what was written last under a name counts: a.mp3 may have given way to a.wav
    last = {row.output: row for row in rows}
    return {row.path: row for row in last.values()}


def _is_finished(task: Task, row: Row | None) -> bool:
    return (
        row is not None
        and (row.output, row.size, row.mtime) == (task.output, task.size, task.mtime)
        and (task.target / task.output).exists()
    )


def _remove_leftovers(target: Path, outputs: set[str]) -> None:
    """Temporary files that a killed run left beside files that are to be made now; they look like audio."""
    for path in target.rglob(".*") if outputs else ():
        if match := LEFTOVER.match(path.relative_to(target).as_posix()):
            folder, stem, suffix = match.groups()
            if f"{folder}{stem}{suffix}" in outputs:
                path.unlink()


def _write_report(target: Path, done: Sequence[Row], failed: Sequence[Row], orphans: Sequence[Row]) -> None:
    rows: list[tuple[Any, ...]] = []
    for row in done:
        if row.kind == "audio":
            before = "" if row.loudness is None else f"{row.loudness:.2f}"
            rows.append((row.output, before, f"{row.gain:.2f}", "yes" if row.limited else "no", row.note))
    rows += [(row.path, "", "", "", f"failed: {row.note}") for row in failed]
    rows += [
        (row.output, "", "", "", f"kept from an earlier run: {row.path} is gone or failed") for row in orphans
    ]
    header = ("path", "loudness before LUFS", "gain dB", "limited", "note")
    write_csv(target / REPORT, header, sorted(rows))


def _summary(
    target: Path,
    settings: Settings,
    done: Sequence[Row],
    failed: Sequence[Row],
    orphans: Sequence[Row],
    old: int,
) -> str:
    count = Counter(row.kind for row in done)
    notes = {
        "with less gain for their peak": sum(row.limited for row in done),
        "silent": sum(row.kind == "audio" and row.loudness is None for row in done),
        "failed": len(failed),
        "kept without a source": len(orphans),
    }
    remarks = "".join(f", {number} {what}" for what, number in notes.items() if number)
    return (
        f"{target}: {count['audio']} audio files at {settings.loudness:g} LUFS and {settings.rate} Hz, "
        f"{count['other']} other files copied, {old} of them by earlier runs{remarks} (see {target / REPORT})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("Brings a folder of audio to one rate and one loudness.", config_help=None)
    default = Settings()
    parser.add_argument("source", metavar="SOURCE_FOLDER", help="folder with audio files anywhere below it")
    parser.add_argument("-o", "--out", metavar="TARGET_FOLDER", required=True, help="folder of the result")
    parser.add_argument("--rate", type=int, default=default.rate, help="Hz")
    parser.add_argument(
        "--loudness", type=float, default=default.loudness, help="integrated loudness in LUFS"
    )
    parser.add_argument("--format", default=default.format, help="flac (16 bits) or wav (32-bit float)")
    parser.add_argument("-p", "--processes", type=int, default=PROCESSES, help="processes at work")
    options = parse_arguments(parser, arguments)
    settings = Settings(options.rate, options.loudness, options.format)
    print(normalize_tree(Path(options.source), Path(options.out), settings, options.processes))


if __name__ == "__main__":
    run_script(main)
