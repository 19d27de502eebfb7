"""Downloads that resume, archives that are unpacked safely, tools that fail with one sentence."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import lzma
import os
import re
import shutil
import ssl
import stat
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from tqdm import tqdm

from utils.errors import UserError
from utils.progress import progress_bar

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
    expansion: float = 0.0,
) -> Path:
    """Downloads `url` to `path`, going on where an earlier run left `path`.part; `size` in bytes.

    Besides the file there must be room for `expansion` times its length, for what will be unpacked from it;
    where `size` is None, the length is the one that the server announces. Each attempt to connect takes at
    most `connect_timeout` seconds. Raises Unreachable when the server cannot be reached or refuses, and
    UserError when the connection keeps breaking (the .part stays), the length or a checksum is wrong (the
    .part is removed), or the disk has too little space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if size is not None:
        require_space(path.parent, size - length_of(part) + round(expansion * size), url)
    for attempt in itertools.count(1):
        try:
            _receive(url, part, size, connect_timeout, expansion)
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


def _receive(url: str, part: Path, size: int | None, connect_timeout: float, expansion: float) -> None:
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
            if resumed or not have:  # another answer says nothing of what came before
                part.unlink(missing_ok=True)
            raise UserError(f"{url}: the server announces {total} bytes, expected {size}")
        if size is None and total is not None:
            # a part that is started over makes its own room
            require_space(part.parent, total - have + round(expansion * total), url)
        with (
            part.open("ab" if resumed else "wb") as file,
            progress_bar(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            try:
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
            except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                raise _Broken(f"after {bar.n} bytes: {error}") from error
            if total is not None and bar.n < total:
                raise _Broken(f"after {bar.n} of {total} bytes")


def mirror_base(text: str) -> str:
    """A server with OpenSLR's tree, such as https://us.openslr.org, with or without /resources at its end.

    Raises UserError for anything but the address of a web server.
    """
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"--mirror {text}: expected a server such as https://us.openslr.org")
    return text.rstrip("/").removesuffix("/resources")


def is_there(path: Path) -> bool:
    """An empty folder is nothing that was fetched."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def length_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def verify(path: Path, origin: str, size: int | None = None, md5: str = "", sha256: str = "") -> None:
    """Removes the file and raises UserError when its length in bytes or a checksum is not the given one."""
    wrong = f"{length_of(path)} bytes, expected {size}" if size not in (None, length_of(path)) else ""
    for kind, wanted in (("md5", md5), ("sha256", sha256)):
        if wanted and not wrong:
            digest = hashlib.new(kind)
            with (
                path.open("rb") as file,
                progress_bar(desc=f"check {kind}", total=length_of(path), unit="B", unit_scale=True) as bar,
            ):
                while block := file.read(1 << 20):
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != wanted:
                wrong = f"{kind} {digest.hexdigest()}, expected {wanted}"
    if wrong:
        path.unlink()
        raise UserError(f"{origin}: damaged and removed: {wrong}")


# ---- unpacking
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
    RuntimeError,  # of zipfile: a compression that it does not know, a password
)  # fmt: skip


def unpack(archive: Path, folder: Path, inner: str = "") -> Path:
    """Unpacks a zip file, or a tar file of any compression, so that its folder `inner` becomes `folder`.

    All or nothing; what a killed run left is removed. Files that lie beside `inner` (LibriSpeech's
    SPEAKERS.TXT) are put beside `folder`. Raises UserError for a damaged archive, for a member that is a
    link or a device, stands twice or would leave the folder, and for more bytes than the disk has free.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    content = temporary / "content"
    content.mkdir(parents=True)
    try:
        try:
            _extract(archive, content)
        except _DAMAGE as error:
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
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _extract(archive: Path, content: Path) -> None:
    bar = progress_bar(desc=f"unpack {archive.name}", total=length_of(archive), unit="B", unit_scale=True)
    with bar, archive.open("rb") as raw:
        zipped = raw.read(4) in _ZIP_STARTS
        raw.seek(0)
        (_extract_zip if zipped else _extract_tar)(raw, content, _Members(archive), bar)


def _extract_tar(raw: BinaryIO, content: Path, members: _Members, bar: tqdm) -> None:
    """The packed bytes read so far are the progress: how much there is unpacked is known at the end only."""
    with tarfile.open(fileobj=raw, mode="r:*") as tar:
        for member in tar:
            plain = member.isfile() or member.isdir()
            target = content / members.checked(member.name, member.isdir(), plain)
            require_space(content, member.size, f"{members.archive}: '{member.name}'")
            _write_member(target, tar.extractfile(member))
            bar.update(raw.tell() - bar.n)


def _extract_zip(raw: BinaryIO, content: Path, members: _Members, bar: tqdm) -> None:
    """The whole table of contents is checked before the first byte is written."""
    with zipfile.ZipFile(raw) as packed:
        targets = []
        for info in packed.infolist():
            # the upper half is a Unix mode, 0 where the archive was made elsewhere
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            targets.append((info, content / members.checked(info.filename, info.is_dir(), plain)))
        require_space(content, sum(info.file_size for info, _ in targets), str(members.archive))
        for info, target in targets:
            if info.is_dir():
                _write_member(target, None)
            else:
                with packed.open(info) as data:
                    _write_member(target, data)
            bar.update(info.compress_size)


def _write_member(target: Path, data: IO[bytes] | None) -> None:
    """A file with the bytes of `data`, or a folder where that is None."""
    (target if data is None else target.parent).mkdir(parents=True, exist_ok=True)
    if data is not None:
        with target.open("wb") as file:
            shutil.copyfileobj(data, file, 1 << 20)


class _Members:
    """Decides which members of an archive are written, and where; one object per archive."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._is_folder: dict[str, bool] = {}  # by name without case: some file systems know none

    def checked(self, name: str, is_folder: bool, is_plain: bool) -> PurePosixPath:
        """The path relative to the folder. Raises UserError for a member that means harm."""
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts or not (path.parts or is_folder)
        # backslashes and drives are plain letters here, but another path on Windows
        if leaves or "\\" in name or any(re.match("[A-Za-z]:", part) for part in path.parts):
            raise UserError(f"{self.archive}: refused, its member '{name}' would leave the folder")
        if not is_plain:
            raise UserError(f"{self.archive}: refused, its member '{name}' is a link or a device")
        key = str(path).casefold()
        above = [str(parent).casefold() for parent in path.parents]
        if (not is_folder and key in self._is_folder) or not all(
            self._is_folder.get(k, True) for k in (*above, key)
        ):
            raise UserError(f"{self.archive}: refused, its member '{name}' stands twice in it")
        self._is_folder.update(dict.fromkeys(above, True))
        self._is_folder[key] = is_folder
        return path


def unpack_debian(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Downloads Debian packages and unpacks each to `folder`/NAME; their versions by name."""
    try:
        run_tool("apt-get download", ["apt-get", "download", "--quiet", *names], folder)
    except UserError as error:
        raise UserError(f"{error} (if apt-get knows no packages yet, run `apt-get update` first)") from error
    versions = {}
    for deb in progress_bar(sorted(folder.glob("*.deb")), "unpack packages", unit="package"):
        name, version, _ = urllib.parse.unquote(deb.name).split("_")
        run_tool(f"unpacking {deb.name}", ["dpkg-deb", "-x", str(deb), str(folder / name)])
        deb.unlink()
        versions[name] = version
    return versions
