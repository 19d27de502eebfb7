"""Files that are either complete under their final name or not there at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError

LONGEST_NAME = 255
"""Bytes that file systems allow."""


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; a clean exit flushes it to disk and renames it to `path`.

    An exception removes the temporary file and leaves whatever stood under `path` before.
    Raises UserError when the folder cannot be created or written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # ten bytes more than the name itself, which may have all that are allowed
        stem = os.fsencode(path.stem)[: LONGEST_NAME - 10 - len(os.fsencode(path.suffix))]
        prefix = f".{stem.decode(errors='ignore')}-"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)  # else a full disk would not say which
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; a clean exit renames it to `path` (which must not exist)."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _sync_folder(temporary)
        temporary.rename(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path | str, refusal: str) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends; raises UserError(refusal) if another has it.

    Where the file system knows no locks, it does nothing.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise _unwritable(path, error) from error
    with opened as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(refusal) from error
        except (ImportError, OSError):
            pass
        if hasattr(os, "register_at_fork"):  # a child that outlives this process would keep the lock
            os.register_at_fork(after_in_child=file.close)
        yield  # the file stays: removing it would let two processes lock two files of one name


def require_writable(path: Path | str) -> None:
    """Raises UserError, before the work is done, where `atomic_file` could not write `path`.

    Makes no folders: the nearest one that there is is tried.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def remove_leftovers(folder: Path, stems: Sequence[str], seconds: float = 0.0) -> None:
    """Removes what `atomic_file` left in a folder when it was killed, if it is at least `seconds` old."""
    for stem in stems:
        for path in folder.glob(f".{stem}-????????*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= seconds:
                    path.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut, where the system can open folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: OSError) -> Exception:
    """A full disk stays an OSError, which `run_script` knows; everything else is a folder of the user's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(f"{path.parent}: cannot write there ({error.strerror})")


_UMASK = threading.Lock()


def _umask() -> int:
    with _UMASK:  # it can only be read by setting it, for all threads
        current = os.umask(0)
        os.umask(current)
    return current


def write_text(path: Path | str, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    """Raises UserError when the file is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error


def write_csv(path: Path | str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that name a JSON-serialisable value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path | str, report: Callable[[int], None] | None = None) -> str:
    """sha256 of a file's bytes; `report` is told the number of bytes of each block read."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if report:
                report(len(block))
    return digest.hexdigest()
