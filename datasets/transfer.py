"""Downloads that resume, archives that are unpacked safely, tools that fail with one sentence."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.errors import UserError

# ---- transfer
READ_TIMEOUT = 30.0  # seconds without a byte before a connection counts as broken
TRIES = 5
RETRY_SECONDS = 1.0


class Unreachable(UserError):
    """The server gave no answer or a refusal, so that another source may be tried."""


class _Broken(ConnectionError):
    """The server was reached, but the transfer did not get to its end."""


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raises UserError unless `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{what} needs {needed / 1e6:.1f} MB in {folder}, where {free / 1e6:.1f} MB are free")


def run_tool(what: str, command: Sequence[str], cwd: Path | None = None) -> None:
    """Runs a command quietly; raises UserError with `what` and the last line of its errors when it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace"
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and line[:2] not in ("W:", "[n")]
        cause = lines[-1].strip() if lines else f"exit code {result.returncode}"
        raise UserError(f"{what}: {cause}")


class _Connection(http.client.HTTPConnection):
    """urllib has one timeout; here it bounds the whole attempt to connect, name lookup included."""

    def connect(self) -> None:
        errors: list[Exception] = []

        def attempt() -> None:
            try:
                super(_Connection, self).connect()
            except Exception as error:
                errors.append(error)

        # a thread, since a name lookup cannot be interrupted and each address gets the timeout anew
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if thread.is_alive():
            raise TimeoutError(f"no connection within {self.timeout:g} s")
        if errors:
            raise errors[0]
        self.sock.settimeout(READ_TIMEOUT)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, request)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    md5: str = "",
    sha256: str = "",
    connect_timeout: float = 5.0,
) -> Path:
    """Downloads `url` to `path`, going on where an earlier run left `path`.part; `size` in bytes.

    Each attempt to connect takes at most `connect_timeout` seconds. Raises Unreachable when the server
    cannot be reached or refuses, and UserError when the connection keeps breaking (the .part stays), the
    length or a checksum is wrong (the .part is removed), or the disk has too little space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if size is not None:
        require_space(path.parent, size - length_of(part), url)
    for attempt in itertools.count(1):
        try:
            _receive(url, part, size, connect_timeout)
            break
        except urllib.error.HTTPError as error:
            raise Unreachable(f"{url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = getattr(error, "reason", None) or error
            if attempt == 1 and not isinstance(error, _Broken):
                raise Unreachable(f"{url}: cannot be reached ({cause})") from error
            if attempt == TRIES:
                raise UserError(f"{url}: broke off {TRIES} times ({cause}), run again to go on") from error
            time.sleep(RETRY_SECONDS)
    verify(part, url, size, md5, sha256)
    os.replace(part, path)
    return path


def _receive(url: str, part: Path, size: int | None, connect_timeout: float) -> None:
    """One connection: appends to `part` what it lacks, or starts over where the server ignores Range."""
    have = length_of(part)
    if have and have == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(_Http, _Https).open(request, timeout=connect_timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()
        raise _Broken(f"the server has nothing after byte {have}") from error
    with response:
        span = response.headers.get("Content-Range", "") if response.status == 206 else ""
        resumed = bool(have) and span.startswith(f"bytes {have}-")
        start = have if resumed else 0
        total = size if response.length is None else start + response.length
        if size is not None and total != size:
            part.unlink(missing_ok=True)
            raise UserError(f"{url}: the server announces {total} bytes, expected {size}")
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            try:
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
            except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                raise _Broken(f"after {bar.n} bytes: {error}") from error
            if total is not None and bar.n < total:
                raise _Broken(f"after {bar.n} of {total} bytes")


def length_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def verify(path: Path, origin: str, size: int | None = None, md5: str = "", sha256: str = "") -> None:
    """Removes the file and raises UserError when its length in bytes or a checksum is not the given one."""
    wrong = f"{length_of(path)} bytes, expected {size}" if size not in (None, length_of(path)) else ""
    for kind, wanted in (("md5", md5), ("sha256", sha256)):
        if wanted and not wrong:
            digest = hashlib.new(kind)
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != wanted:
                wrong = f"{kind} {digest.hexdigest()}, expected {wanted}"
    if wrong:
        path.unlink()
        raise UserError(f"{origin}: damaged and removed: {wrong}")


def unpack(archive: Path, folder: Path, inner: str = "") -> Path:
    """Unpacks a tar file (of any compression) so that its folder `inner` becomes `folder`, all or nothing.

    Files that lie beside `inner` (LibriSpeech's SPEAKERS.TXT) are put beside `folder`. Raises UserError for
    a damaged archive and for a member that is a link or a device or would leave the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        try:
            _extract(archive, content)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the archive's
            raise UserError(f"{archive}: a damaged archive ({error})") from error
        top = content / inner
        if not top.is_dir():
            raise UserError(f"{archive}: holds no folder {inner}")
        for path in top.parent.iterdir() if inner else ():
            if path.is_file():
                path.replace(folder.parent / path.name)
        top.rename(folder)
    return folder


def _extract(archive: Path, content: Path) -> None:
    with (
        archive.open("rb") as raw,
        tarfile.open(fileobj=raw, mode="r:*") as tar,
        tqdm(desc=f"unpack {archive.name}", total=length_of(archive), unit="B", unit_scale=True) as bar,
    ):
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{archive}: refused, its member '{member.name}' would leave the folder")
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{archive}: refused, its member '{member.name}' is a link or a device")
            target = content / name
            (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
            if (data := tar.extractfile(member)) is not None:
                with target.open("wb") as file:
                    shutil.copyfileobj(data, file)
            bar.update(raw.tell() - bar.n)
