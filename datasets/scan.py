"""Checks audio files in parallel and remembers what it found, so that the next scan decodes what is new."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from utils.audio_check import Examined, examine_audio
from utils.errors import UserError
from utils.processes import cores, worker_pool
from utils.progress import progress_bar

CACHE_VARIABLE = "SCAN_CACHE"
"""Of the environment: another place for what earlier scans found, which tests use."""
DEFAULT_CACHE = Path(os.environ.get(CACHE_VARIABLE, "data/index.sqlite"))
CHECKS = ("full", "quick")
VERSION = 2  # of what a check finds; another number makes the cache's rows be made anew
POOL_FILES = 64  # fewer than these are checked before a pool has started
POOL_SECONDS = 2.0  # as are those that one process manages in this time
CHUNK = 16  # files handed to a process at once
COMMIT_SECONDS = 3.0
DIGEST_BYTES = 1 << 16

Stamp = tuple[int, int]  # size in bytes, mtime in ns


class FileCheck(NamedTuple):
    """What a check found in one file; `cause` is empty where it is sound, `peak` 0.0 for digital silence."""

    frames: int
    rate: int
    digest: str
    peak: float
    active: tuple[tuple[int, int], ...] | None
    cause: str


def _failed(cause: str, digest: str = "") -> FileCheck:
    return FileCheck(0, 0, digest, 0.0, None, cause)


# ---------------------------------------------------------------- one file


def check_file(path: str, check: str = "full") -> FileCheck:
    """Looks at one file: all of it, or (`quick`) its header and its end. Never raises for a bad file."""
    digest = ""
    try:
        digest = digest_of(path, check)
        found = examine_audio(path, whole=check == "full")
    except UserError as error:
        # our words without the path and the decoder's words
        return _failed(f"unreadable: {str(error).removeprefix(f'{path}: ').split(' (')[0]}", digest)
    except FileNotFoundError:
        return _failed("no such file")
    except ValueError:  # a path with a NUL in it
        return _failed("no such file: its name cannot be one")
    except OSError as error:
        return _failed(f"unreadable: {(error.strerror or type(error).__name__).lower()}")
    return FileCheck(
        found.frames, found.rate, digest, found.peak, found.active, _cause(found, check == "full")
    )


def _cause(found: Examined, whole: bool) -> str:
    """Why a file is not what it claims; whoever knows what it is for judges length and loudness."""
    missing = found.promised - found.frames
    # lossy formats may promise a few samples more than they decode to
    cut = found.broken or missing > min(0.1 * found.rate, 0.1 * found.promised)
    has, promised = found.frames / found.rate, found.promised / found.rate
    if cut and not found.promised:
        return f"truncated: breaks off after {has:.1f} s"
    if cut and (whole or missing > 0):
        return f"truncated: {has:.1f} of {promised:.1f} s"
    if cut:
        return f"truncated: ends before its {promised:.1f} s"
    if found.not_finite:
        return f"NaN or infinite: {found.not_finite} samples"
    return ""


def digest_of(path: str, check: str = "full") -> str:
    """12 hexadecimal digits that name a file's bytes; `quick`: `~` and 12 over its size and its ends of 64
    KiB.

    Raises OSError.
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=6)
    with open(path, "rb") as file:
        if check == "full":
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(file.tell(), size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return f"~{digest.hexdigest()}"


def _check_chunk(paths: Sequence[str], check: str) -> list[FileCheck]:
    return [check_file(path, check) for path in paths]


# ---------------------------------------------------------------- what was found before


class ScanCache:
    """Findings in an SQLite file, by absolute path, size, mtime and check; several processes may share it.

    Where it cannot be used (read-only, locked for long, no database), it says so once and holds nothing.
    """

    def __init__(self, path: Path, check: str) -> None:
        self.path, self.kind = path, f"{check}-{VERSION}"
        self.connection: sqlite3.Connection | None = None
        self.waiting: list[tuple[str, str, int, int, str]] = []
        self.committed = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=20)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT, kind TEXT, size INTEGER, mtime INTEGER, "
                "found TEXT, PRIMARY KEY (path, kind)) WITHOUT ROWID"
            )
            self.connection.commit()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        print(
            f"NOTE: {self.path}: cannot be used ({error}), so the next scan will not know what this one found"
        )
        if self.connection is not None:
            self.connection.close()
        self.connection, self.waiting = None, []

    def find(self, path: str, stamp: Stamp) -> FileCheck | None:
        if self.connection is None:
            return None
        query = "SELECT found FROM files WHERE path = ? AND kind = ? AND size = ? AND mtime = ?"
        try:
            row = self.connection.execute(query, (os.path.realpath(path), self.kind, *stamp)).fetchone()
            return None if row is None else _from_text(row[0])
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._give_up(error)
            return None

    def add(self, path: str, stamp: Stamp, found: FileCheck) -> None:
        if self.connection is None:
            return
        self.waiting.append((os.path.realpath(path), self.kind, *stamp, json.dumps(found)))
        if time.monotonic() - self.committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """In one short transaction, so that nobody waits for our decoding."""
        if self.connection is None:
            return
        try:
            self.connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", self.waiting)
            self.connection.commit()
            self.waiting, self.committed = [], time.monotonic()
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        self.commit()
        if self.connection is not None:
            self.connection.close()


def _from_text(text: str) -> FileCheck:
    frames, rate, digest, peak, active, cause = json.loads(text)
    return FileCheck(frames, rate, digest, peak, None if active is None else tuple(map(tuple, active)), cause)


# ---------------------------------------------------------------- many files


def scan_files(
    paths: Sequence[str], check: str = "full", cache: Path | None = None, processes: int | None = None
) -> list[FileCheck]:
    """Checks all `paths`, in their order; files that `cache` (None: DEFAULT_CACHE) knows are not opened.

    An interrupted scan goes on where it was. `processes` (None: one a core) are started only when there is
    work for them. Raises UserError for an unknown `check` and when a process is killed.
    """
    if check not in CHECKS:
        raise UserError(f"check: expected one of {', '.join(CHECKS)}, got {check!r}")
    processes = processes or cores()
    store = ScanCache(cache or DEFAULT_CACHE, check)
    results: dict[int, FileCheck] = {}
    stamps: dict[int, Stamp] = {}
    try:
        for number, path in enumerate(paths):
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                results[number] = check_file(path, check)  # says why
                continue
            stamp = (status.st_size, status.st_mtime_ns)
            found = store.find(path, stamp)
            if found is None:
                stamps[number] = stamp
            else:
                results[number] = found
        known = len(paths) - len(stamps)
        with progress_bar(total=len(paths), initial=known, desc="check", unit="file") as progress:
            for number, found in _check_all(paths, list(stamps), check, processes):
                results[number] = found
                # without a digest it was not even opened, and the right to do so may come without a new mtime
                if found.digest:
                    store.add(paths[number], stamps[number], found)
                progress.update()
    finally:
        store.close()
    return [results[number] for number in range(len(paths))]


def changed_files(digests: Mapping[str, str], check: str = "full", cache: Path | None = None) -> list[str]:
    """Of paths with their digests, those that are gone or hold something else now; `check` as when
    indexed."""
    paths = list(digests)
    found = scan_files(paths, check, cache)
    return [path for path, now in zip(paths, found, strict=True) if now.digest != digests[path]]


def _check_all(
    paths: Sequence[str], numbers: Sequence[int], check: str, processes: int
) -> Iterator[tuple[int, FileCheck]]:
    """(number, finding) in any order: here as long as that is quicker than starting processes."""
    started = time.monotonic()
    todo = iter(numbers)
    for done, number in enumerate(todo):
        yield number, check_file(paths[number], check)
        left = len(numbers) - done - 1
        if processes > 1 and left >= POOL_FILES and time.monotonic() - started >= POOL_SECONDS:
            break
    chunks = iter(lambda: list(islice(todo, CHUNK)), [])
    first = list(islice(chunks, 1))
    if not first:
        return
    with worker_pool(processes, "checking") as pool:
        running: dict[Future[list[FileCheck]], list[int]] = {}

        def submit(chunk: list[int]) -> None:
            running[pool.submit(_check_chunk, [paths[number] for number in chunk], check)] = chunk

        for chunk in [*first, *islice(chunks, 4 * processes - 1)]:
            submit(chunk)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield from zip(running.pop(future), future.result(), strict=True)
                for chunk in islice(chunks, 1):
                    submit(chunk)
