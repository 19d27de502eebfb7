"""Downloads against a server of our own that misbehaves, archives that mean harm, prompts made of noise."""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import stat
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from datasets import download as dl
from datasets import transfer, voices
from utils.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RATE = voices.RATE


class Server(ThreadingHTTPServer):
    """Serves `content` under every path in the way that `mode` says; `ranges` are the Range headers seen."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = "good"
        self.content = CONTENT
        self.ranges: list[str | None] = []
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        content, mode, wanted = self.server.content, self.server.mode, self.headers["Range"]
        self.server.ranges.append(wanted)
        self.server.paths.append(self.path)
        start = int(wanted[6:-1]) if wanted and mode != "ignores range" else 0
        if mode == "missing" or start >= len(content):
            self.send_error(404 if mode == "missing" else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:]
        self.send_header(
            "Content-Length", str(len(body) + {"says more": 999, "says less": -999}.get(mode, 0))
        )
        self.end_headers()
        if mode == "breaks once" and not start:
            body = body[:100_000]
        if mode == "always breaks":
            body = body[:10_000]
        if mode == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, folder: Path, **options: Any) -> Path:
    wanted: dict[str, Any] = {"size": len(CONTENT), "md5": MD5, **options}
    return transfer.download(server.url, folder / "file.bin", **wanted)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# ---- download


def test_download_complete(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "new", sha256=SHA256).read_bytes() == CONTENT
    assert names(tmp_path / "new") == {"file.bin"}
    assert get(server, tmp_path, size=None, md5="").read_bytes() == CONTENT


def test_download_goes_on_where_the_part_ends(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:123_456])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=123456-"]


def test_download_with_a_complete_part_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == []


def test_download_resumes_a_broken_connection(server: Server, tmp_path: Path) -> None:
    server.mode = "breaks once"
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_download_gives_up_but_keeps_the_part(server: Server, tmp_path: Path) -> None:
    server.mode = "always breaks"
    with pytest.raises(UserError, match=r"broke off 5 times \(after 50000 of 300000 bytes\)"):
        get(server, tmp_path)
    assert names(tmp_path) == {"file.bin.part"}
    server.mode = "good"
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_download_starts_over_where_range_is_ignored(server: Server, tmp_path: Path) -> None:
    server.mode = "ignores range"
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_download_starts_over_after_a_part_that_is_too_long(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 400_000)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=400000-", None]


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        ("corrupt", {}, f"md5 [0-9a-f]+, expected {MD5}"),
        ("good", {"md5": "", "sha256": "0" * 64}, f"sha256 {SHA256}, expected 000"),
        ("good", {"size": 299_000}, "announces 300000 bytes, expected 299000"),
        ("says more", {}, "announces 300999 bytes, expected 300000"),
        ("says less", {}, "announces 299001 bytes, expected 300000"),
        ("says less", {"size": None}, f"md5 [0-9a-f]+, expected {MD5}"),
    ],
)
def test_download_removes_what_is_wrong(
    server: Server, tmp_path: Path, mode: str, options: dict[str, Any], said: str
) -> None:
    server.mode = mode
    with pytest.raises(UserError, match=said) as caught:
        get(server, tmp_path, **options)
    assert not isinstance(caught.value, transfer.Unreachable)
    assert names(tmp_path) == set()


def test_download_of_less_than_announced_is_broken(server: Server, tmp_path: Path) -> None:
    server.mode = "says more"
    with pytest.raises(UserError, match="broke off 5 times"):
        get(server, tmp_path, size=None)
    assert not (tmp_path / "file.bin").exists()


def test_download_refused(server: Server, tmp_path: Path) -> None:
    server.mode = "missing"
    with pytest.raises(transfer.Unreachable, match="answers 404 Not Found"):
        get(server, tmp_path)


def test_download_unreachable_port(tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url
    with pytest.raises(transfer.Unreachable, match=r"cannot be reached \(.*refused"):
        transfer.download(url, tmp_path / "file.bin")


def test_a_connection_attempt_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a name lookup that hangs: no socket timeout would end it
    monkeypatch.setattr(http.client.HTTPConnection, "connect", lambda self: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(transfer.Unreachable, match=r"no connection within 0\.1 s"):
        transfer.download("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", connect_timeout=0.1)
    assert time.monotonic() - start < 2


def test_download_reads_time_out_and_resume(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.1)
    stalled = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", stall_first(Handler.do_GET, stalled))
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert stalled.is_set()


def stall_first(serve: Callable[[Handler], None], stalled: threading.Event) -> Callable[[Handler], None]:
    def do_get(handler: Handler) -> None:
        if stalled.is_set():
            return serve(handler)
        stalled.set()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:70_000])
        time.sleep(0.4)
        return None

    return do_get


def test_too_little_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000))
    with pytest.raises(UserError, match=r"needs 0\.3 MB in .*, where 0\.2 MB are free"):
        get(server, tmp_path)
    assert server.ranges == []
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:150_000])
    assert get(server, tmp_path).read_bytes() == CONTENT  # only the rest has to fit


def test_too_little_disk_for_what_the_server_announces(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=400_000))
    assert get(server, tmp_path, size=None).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"needs 0\.6 MB in .*, where 0\.4 MB are free"):
        get(server, tmp_path / "unpacked", size=None, expansion=1.1)
    assert names(tmp_path / "unpacked") == set()


# ---- unpack


def archive_of(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, members: dict[str, bytes | zipfile.ZipInfo]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            if isinstance(content, zipfile.ZipInfo):
                packed.writestr(content, "/etc/passwd")
            else:
                packed.writestr(name, content)
    return path


def special_zip(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_unpack_takes_the_inner_folder_and_its_neighbours(tmp_path: Path) -> None:
    members = {"Libri/README.TXT": b"r", "./Libri/dev/1/a.flac": b"a", "other/x": b"x"}
    archive = archive_of(tmp_path / "a.tar.gz", dict(members))
    transfer.unpack(archive, tmp_path / "data" / "Libri" / "dev", "Libri/dev")
    found = {"Libri", "Libri/README.TXT", "Libri/dev", "Libri/dev/1", "Libri/dev/1/a.flac"}
    assert names(tmp_path / "data") == found
    with pytest.raises(UserError, match="holds no folder Libri/test"):
        transfer.unpack(archive, tmp_path / "data" / "test", "Libri/test")


@pytest.mark.parametrize(
    ("member", "content", "said"),
    [
        ("link", special("link", tarfile.SYMTYPE), "'link' is a link or a device"),
        ("hard", special("hard", tarfile.LNKTYPE), "'hard' is a link or a device"),
        ("device", special("device", tarfile.CHRTYPE), "'device' is a link or a device"),
    ],
)
def test_unpack_refuses(tmp_path: Path, member: str, content: bytes | tarfile.TarInfo, said: str) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"good/file": b"g", member: content})
    with pytest.raises(UserError, match=said):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.tar.gz"}


def test_unpack_of_a_zip(tmp_path: Path) -> None:
    members: dict[str, Any] = {"R/README": b"r", "R/noise/": b"", "R/noise/a.wav": CONTENT, "other/x": b"x"}
    archive = zip_of(tmp_path / "a.bin", members)
    transfer.unpack(archive, tmp_path / "data" / "noise", "R/noise")
    assert names(tmp_path / "data") == {"README", "noise", "noise/a.wav"}
    assert (tmp_path / "data/noise/a.wav").read_bytes() == CONTENT
    transfer.unpack(archive, tmp_path / "all")
    assert names(tmp_path / "all") == {"R", *(name.rstrip("/") for name in members), "other"}


HARMFUL = [
    ("../evil", b"x", "'../evil' would leave the folder"),
    ("good/../../evil", b"x", "would leave the folder"),
    ("/tmp/evil-absolute", b"x", "would leave the folder"),
    ("..\\evil", b"x", "would leave the folder"),
    ("C:/evil", b"x", "'C:/evil' would leave the folder"),
    ("good/c:evil", b"x", "would leave the folder"),
    ("Good/FILE", b"x", "'Good/FILE' stands twice"),
    ("good", b"x", "'good' stands twice"),
    ("good/file/below", b"x", "'good/file/below' stands twice"),
]


@pytest.mark.parametrize("pack", [archive_of, zip_of])
@pytest.mark.parametrize(("member", "content", "said"), HARMFUL)
def test_unpack_refuses_names(
    tmp_path: Path, member: str, content: bytes, said: str, pack: Callable[..., Path]
) -> None:
    archive = pack(tmp_path / "a.bin", {"good/file": b"g", member: content})
    with pytest.raises(UserError, match=said):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_unpack_refuses_special_members_of_a_zip(tmp_path: Path, kind: int) -> None:
    archive = zip_of(tmp_path / "a.zip", {"good/file": b"g", "odd": special_zip("odd", kind)})
    with pytest.raises(UserError, match="'odd' is a link or a device"):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.zip"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [tarfile.open, zipfile.ZipFile])
def test_unpack_refuses_a_repeated_member(tmp_path: Path, pack: Callable[..., Any]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pack(tmp_path / "a.bin", "w") as archive:
        for _ in range(2):
            (archive.write if pack is zipfile.ZipFile else archive.add)(tmp_path / "file", "file")
    with pytest.raises(UserError, match="'file' stands twice"):
        transfer.unpack(tmp_path / "a.bin", tmp_path / "out")
    assert names(tmp_path) == {"a.bin", "file"}


@pytest.mark.parametrize("pack", [archive_of, zip_of])
def test_unpack_refuses_more_than_the_disk_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[..., Path]
) -> None:
    archive = pack(tmp_path / "bomb", {"good/file": b"g", "zeros": bytes(3_000_000)})
    assert archive.stat().st_size < 10_000
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with pytest.raises(UserError, match=r"bomb.* needs 3\.0 MB in .*, where 2\.0 MB are free"):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"bomb"}


def test_unpack_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / ".out-unpacking" / "content").mkdir(parents=True)
    (tmp_path / ".out-unpacking" / "content" / "half").touch()
    transfer.unpack(zip_of(tmp_path / "a.zip", {"x": b"x"}), tmp_path / "out")
    assert names(tmp_path) == {"a.zip", "out", "out/x"}


def test_unpack_of_a_zip_with_a_password(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"x": b"x"})
    content = bytearray(archive.read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a damaged archive .*password required"):
        transfer.unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("where", [50, -77, -200_000])
def test_unpack_of_a_damaged_zip(tmp_path: Path, where: int) -> None:
    archive = zip_of(tmp_path / "a.zip", {"good/file": CONTENT})
    content = bytearray(archive.read_bytes())
    content[where] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match="a damaged archive"):
        transfer.unpack(archive, tmp_path / "out", "good")
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="a damaged archive"):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.zip"}


@pytest.mark.parametrize("cut", [0, 40, 600])
def test_unpack_of_a_damaged_archive(tmp_path: Path, cut: int) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"good/file": CONTENT})
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(UserError, match="a damaged archive"):
        transfer.unpack(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.tar.gz"}


def test_fetch_of_an_archive_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive_of(tmp_path / "a.tar.gz", {"L/dev/1/a.flac": b"a"}).read_bytes()
    server.content = content
    source = replace(
        dl.SOURCES["librispeech-dev-clean"],
        url=server.url, size=len(content), md5=hashlib.md5(content).hexdigest(), inner="L/dev",
    )  # fmt: skip
    monkeypatch.setitem(dl.SOURCES, source.name, source)
    root = tmp_path / "data"
    assert dl.fetch(source.name, root) == dl.fetch(source.name, root) == root / "LibriSpeech" / "dev-clean"
    assert len(server.ranges) == 1
    assert (root / "LibriSpeech/dev-clean/1/a.flac").read_bytes() == b"a"
    assert not (root / "file.bin").exists()
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="librispeech-dev-clean needs"):
        dl.fetch(source.name, tmp_path / "elsewhere")


@pytest.fixture
def offered(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """One archive for all: three sources that are replaced by it, two of them a group."""
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name in ("L/SPEAKERS.TXT", "L/one/1/a.txt", "L/two/2/a.txt"):
            archive.addfile(tarfile.TarInfo(name))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wav/p1/p1_001.txt", "a")
    contents = {"l-one": tar.getvalue(), "l-two": tar.getvalue(), "voices": packed.getvalue()}
    sources = {}
    for name, content in contents.items():
        subset = name.removeprefix("l-")
        base = server.url if name == "voices" else dl.OPENSLR
        sources[name] = dl.Source(
            name, "free", f"about {name}", f"L/{subset}" if subset != name else name, dl._fetch_archive,
            url=f"{base}/resources/9/{subset}", size=len(content), md5=hashlib.md5(content).hexdigest(),
            inner=f"L/{subset}" if subset != name else "",
        )  # fmt: skip
    monkeypatch.setattr(dl, "SOURCES", sources)
    monkeypatch.setattr(dl, "GROUPS", {"l": ("l-one", "l-two")})
    server.content = contents["l-one"]
    return contents


FETCHED = {"L", "L/SPEAKERS.TXT", "L/one", "L/one/1", "L/one/1/a.txt", "L/two", "L/two/2", "L/two/2/a.txt"}


def mirror_of(server: Server, end: str = "") -> str:
    return server.url.removesuffix("/file.bin") + end


@pytest.mark.parametrize("end", ["", "/", "/resources", "/resources/"])
def test_a_group_from_a_mirror(
    server: Server, tmp_path: Path, offered: dict[str, bytes], run: Callable[..., Any], end: str
) -> None:
    arguments = (dl.main, "l", "l-two", "-o", tmp_path, "--mirror", mirror_of(server, end))
    code, out, _ = run(*arguments)
    assert code == 0 and out == f"{tmp_path / 'L/one'}: free\n{tmp_path / 'L/two'}: free\n"
    assert names(tmp_path) == FETCHED
    assert server.paths == ["/resources/9/one", "/resources/9/two"]
    assert run(*arguments)[0] == 0 and len(server.paths) == 2


def test_archives_are_kept_under_the_names_of_their_sources(
    server: Server, tmp_path: Path, offered: dict[str, bytes], run: Callable[..., Any]
) -> None:
    arguments = ("l", "-o", tmp_path, "--mirror", mirror_of(server), "--keep_archives")
    assert run(dl.main, *arguments)[0] == 0
    assert names(tmp_path) == FETCHED | {"l-one.tar.gz", "l-two.tar.gz"}


@pytest.mark.parametrize("bad", ["us.openslr.org", "ftp://us.openslr.org", "https://", "https://a/?b=c"])
def test_a_mirror_that_is_none(tmp_path: Path, run: Callable[..., Any], bad: str) -> None:
    code, _, errors = run(dl.main, "musan", "-o", tmp_path, "--mirror", bad)
    assert code == 2 and errors.startswith(f"ERROR: --mirror {bad}: expected a server such as https://")
    assert names(tmp_path) == set()


def test_one_source_that_fails_does_not_stop_the_others(
    server: Server, tmp_path: Path, offered: dict[str, bytes], run: Callable[..., Any]
) -> None:
    arguments = (dl.main, "voices", "l", "-o", tmp_path, "--mirror", mirror_of(server))
    code, out, errors = run(*arguments)  # the server has one content only, which is not the zip file
    assert code == 2 and names(tmp_path) == FETCHED
    assert out.startswith("voices: is not from OpenSLR, --mirror does not apply\n")
    last = errors.splitlines()[-1]
    assert last.startswith(
        f"ERROR: 1 of 3 sources failed; voices: {server.url}/resources/9/voices: the server"
    )
    server.content = offered["voices"]
    assert run(*arguments)[0] == 0
    assert names(tmp_path) == FETCHED | {
        "voices", "voices/wav", "voices/wav/p1", "voices/wav/p1/p1_001.txt"
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["breaks once", "corrupt", "ignores range", "says more"])
def test_a_zip_from_a_server_that_misbehaves(
    server: Server, tmp_path: Path, offered: dict[str, bytes], mode: str
) -> None:
    server.content, server.mode = offered["voices"], mode
    if mode in ("corrupt", "says more"):
        with pytest.raises(UserError, match=r"damaged and removed|announces"):
            dl.fetch("voices", tmp_path)
        assert names(tmp_path) == set()
        server.mode = "good"
    assert (dl.fetch("voices", tmp_path) / "wav/p1/p1_001.txt").read_text() == "a"


def test_an_interrupted_unpacking_needs_no_second_download(
    server: Server, tmp_path: Path, offered: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = offered["voices"]
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_write_member", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dl.fetch("voices", tmp_path)
    archive = dl.SOURCES["voices"].archive(tmp_path)
    assert names(tmp_path) == {archive.name} and len(server.paths) == 1
    dl.fetch("voices", tmp_path)
    assert len(server.paths) == 1 and not archive.exists()


def test_an_archive_that_lies_there_is_checked(
    server: Server, tmp_path: Path, offered: dict[str, bytes]
) -> None:
    server.content = offered["voices"]
    archive = dl.SOURCES["voices"].archive(tmp_path)
    archive.write_bytes(bytes(len(server.content)))
    with pytest.raises(UserError, match=r"voices\.tar\.gz: damaged and removed: md5"):
        dl.fetch("voices", tmp_path)
    assert dl.fetch("voices", tmp_path).is_dir()


def test_space_for_a_group_is_looked_for_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=90e9))
    for options, needed in (((), 98087.2), (("--keep_archives",), 128851.7)):
        code, _, errors = run(dl.main, "librispeech", "-o", tmp_path / "new", *options)
        assert code == 2 and errors.startswith(f"ERROR: fetching 7 sources needs {needed} MB in ")
    assert names(tmp_path) == set()


def test_normalize_after_the_download(tmp_path: Path, run: Callable[..., Any]) -> None:
    folder = tmp_path / "LibriSpeech" / "dev-clean"
    for name in ("1/2/1-2-0003.flac", "1/2/1-2-0004.flac"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise(1.0, 3), RATE)
    (folder.parent / "SPEAKERS.TXT").write_text("1 | F")
    code, out, _ = run(dl.main, "librispeech-dev-clean", "-o", tmp_path, "--normalize", "-p", 1)
    assert code == 0 and "2 audio files at -23 LUFS and 16000 Hz" in out
    made = names(tmp_path / "LibriSpeech-normalized")
    assert {"SPEAKERS.TXT", "dev-clean/1/2/1-2-0003.flac", "dev-clean/normalize.csv"} <= made
    code, _, errors = run(dl.main, "resemblyzer", "-o", tmp_path, "--normalize")
    assert code == 2 and "'resemblyzer': is not to be normalized: it holds no audio" in errors


def test_the_table_of_sources(run: Callable[..., Any]) -> None:
    code, out, _ = run(dl.main, "--list")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines[1:]] == [*dl.SOURCES, *dl.GROUPS]
    assert re.search(r"^librispeech +61,358 MB +CC BY 4\.0 ", out, re.MULTILINE)
    for source in dl.SOURCES.values():
        kinds = [len(source.md5) == 32, len(source.sha256) == 64]
        assert source.size > 0 and (any(kinds) or not source.url)
        assert set(source.md5 + source.sha256) <= set("0123456789abcdef")
    archives = [source.archive(Path()) for source in dl.SOURCES.values()]
    results = [source.result for source in dl.SOURCES.values()]
    assert len(set(archives)) == len(set(results)) == len(dl.SOURCES)


# ---- Debian voices


def noise(seconds: float, seed: int, level: float = 0.05) -> np.ndarray:
    samples = level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return np.asarray(samples, np.float32)


def test_joining_keeps_every_prompt_once_and_in_order() -> None:
    lengths = np.random.default_rng(1).gamma(2.0, 1.2, 200) + 0.2
    prompts = [np.full(round(s * RATE), n + 1, np.float32) for n, s in enumerate(lengths)]
    joined = list(voices.join_prompts(iter(prompts)))
    together = np.concatenate(joined)
    assert np.array_equal(together[together > 0], np.concatenate(prompts))
    used = [set(np.unique(utterance)) - {0} for utterance in joined]
    assert sum(map(len, used)) == len(prompts) == len(set.union(*used))
    seconds = np.array([len(utterance) / RATE for utterance in joined])
    assert seconds.min() >= 5 and seconds.max() <= 20 and 10 <= np.median(seconds) <= 15
    pauses = sum(len(utterance) for utterance in joined) - sum(map(len, prompts))
    assert pauses == (len(prompts) - len(joined)) * round(0.2 * RATE)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([1.0], [1.0]),
        ([6, 6, 3], [15.4]),  # a rest of 3 s joins the last utterance
        ([6, 6, 6], [12.2, 6.0]),
        ([6, 9, 9], [6.0, 9.0, 9.0]),  # never past 15 s where 5 s are there
        ([4, 20, 9], [24.2, 9.0]),
        ([11, 11, 1], [11.0, 12.2]),
    ],
)
def test_joining_lengths(lengths: list[float], expected: list[float]) -> None:
    joined = voices.join_prompts(noise(s, n) for n, s in enumerate(lengths))
    assert [round(len(utterance) / RATE, 3) for utterance in joined] == expected


def test_prompts_that_are_left_out(tmp_path: Path) -> None:
    dither = 1e-4 * noise(1.0, 9, 1.0)
    files = {
        "a/one.wav": noise(1.0, 1), "a/other.wav": noise(1.0, 2), "b/copy.wav": noise(1.0, 1) + dither,
        "b/beep.wav": noise(1.0, 3), "b/beeper.wav": noise(1.2, 3), "b/quiet.wav": noise(1.0, 4, 1e-4),
        "silence/3.wav": noise(1.0, 5), "b/digits-tone.wav": noise(0.9, 6),
    }  # fmt: skip
    for name, samples in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, samples, RATE)
    (tmp_path / "b/empty.wav").write_bytes(b"")
    (tmp_path / "b/stereo.ogg").write_bytes(b"no Ogg at all")
    unused: list[tuple[Path, str]] = []
    kept = list(voices.usable_prompts(sorted(tmp_path.rglob("*.*")), unused))
    assert [len(samples) / RATE for samples in kept] == [1.0, 1.0, 1.2, 0.9]
    causes = {path.relative_to(tmp_path).as_posix(): cause.split(":")[0] for path, cause in unused}
    assert causes == {
        "b/copy.wav": "repeated", "b/beep.wav": "not speech", "b/quiet.wav": "not speech",
        "silence/3.wav": "not speech", "b/empty.wav": "unreadable", "b/stereo.ogg": "unreadable",
    }  # fmt: skip
    assert "repeated: the recording of a/one.wav" in {cause for _, cause in unused}


def fake_tools(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`apt-get download` makes empty packages, `dpkg-deb -x` fills a folder with what would be in them."""
    if command[0] == "apt-get":
        for name in command[3:]:
            (options["cwd"] / f"{name}_1%3a2.0-1_all.deb").touch()
    else:
        package = Path(command[3])
        prefix = (
            ["lev-m-a", "m-b", "lev-v-a", "lev-x-a", "ted4-m"] if "fillets" in package.name else ["a", "b"]
        )
        folder = package / "usr" / "sounds"
        folder.mkdir(parents=True)
        for number, name in enumerate([*prefix, "beep"]):
            seed = int(hashlib.md5(package.name.encode()).hexdigest()[:6], 16) + number
            soundfile.write(folder / f"{name}.wav", 8 * noise(2.0, seed), RATE, "FLOAT")
    return subprocess.CompletedProcess(command, 0, "", "")


def test_debian_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.subprocess, "run", fake_tools)
    monkeypatch.setattr(transfer.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    folder = dl.fetch("debian-voices", tmp_path)
    assert names(tmp_path) == {"debian-voices"} | {f"debian-voices/{name}" for name in names(folder)}
    persons = {path.name: list(path.iterdir()) for path in folder.iterdir() if path.is_dir()}
    assert set(persons) == {voice.person for voice in voices.VOICES} and len(persons) == 11
    seconds = {name: soundfile.info(files[0]).duration for name, files in persons.items()}
    assert all(len(files) == 1 for files in persons.values())
    assert seconds.pop("asterisk-en-es") == pytest.approx(8.6)  # one person of two packages
    assert seconds["fillets-cs-m"] == pytest.approx(4.2) and seconds["fillets-cs-v"] == pytest.approx(2.0)
    samples, rate = soundfile.read(folder / "asterisk-ru" / "0001.flac")
    assert rate == RATE and 0.9999 < np.abs(samples).max() <= 1 and (np.abs(samples) > 0.9999).sum() == 1
    unused = (folder / "unused.csv").read_text()
    assert "fillets-ng-data-nl/usr/sounds/lev-x-a.wav,not by its name one of the persons\n" in unused
    assert "asterisk-core-sounds-it-g722/usr/sounds/beep.wav,not speech" in unused
    licences = (folder / "LICENCES.md").read_text()
    assert "| asterisk-fr | asterisk-core-sounds-fr-g722 1:2.0-1 | CC BY-SA 3.0 | 16000 Hz |" in licences


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_debian_voices_without_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(transfer.shutil, "which", lambda tool: None if tool == missing else tool)
    with pytest.raises(UserError, match=f"need {missing}, which this system lacks"):
        dl.fetch("debian-voices", tmp_path)


def failing(errors: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, **options: subprocess.CompletedProcess(command, 100, "", errors)


def test_debian_voices_without_package_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "which", lambda tool: tool)
    errors = "E: Unable to locate package asterisk-core-sounds-en-g722\nW: something else\n\n"
    monkeypatch.setattr(transfer.subprocess, "run", failing(errors))
    with pytest.raises(
        UserError, match=r"Unable to locate package ast.* run `apt-get update` first"
    ) as caught:
        dl.fetch("debian-voices", tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


# ---- Resemblyzer


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A wheel that a replaced pip "downloads"; SOURCES expects exactly it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("resemblyzer/__init__.py", "raise SystemExit('imported')")
        archive.writestr("resemblyzer/pretrained.pt", b"weights")
    content = buffer.getvalue()

    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "resemblyzer==0.1.4"
        assert {"--no-deps", "--only-binary"} <= set(command)
        folder = Path(command[list(command).index("--dest") + 1])
        (folder / "Resemblyzer-0.1.4-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(transfer.subprocess, "run", pip)
    known = replace(
        dl.SOURCES["resemblyzer"],
        size=len(content), sha256=hashlib.sha256(content).hexdigest(),
        inner_sha256=hashlib.sha256(b"weights").hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(dl.SOURCES, "resemblyzer", known)
    return content


def test_resemblyzer_takes_the_one_member(tmp_path: Path, wheel: bytes) -> None:
    assert dl.fetch("resemblyzer", tmp_path / "data").read_bytes() == b"weights"
    assert names(tmp_path / "data") == {"resemblyzer.pt"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 5}, "bytes, expected 5"),
        ({"sha256": "0" * 64}, "Resemblyzer-0.1.4-py3-none-any.whl: .* sha256 [0-9a-f]{64}, expected 0{64}"),
        ({"inner_sha256": "1" * 64}, "resemblyzer/pretrained.pt: .* expected 1{64}"),
    ],
)
def test_resemblyzer_refuses_another_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: bytes, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setitem(dl.SOURCES, "resemblyzer", replace(dl.SOURCES["resemblyzer"], **change))
    with pytest.raises(UserError, match=said):
        dl.fetch("resemblyzer", tmp_path)
    assert names(tmp_path) == set()


def test_resemblyzer_where_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = "WARNING: retrying\nERROR: No matching distribution found for resemblyzer==0.1.4\n[notice] new\n"
    monkeypatch.setattr(transfer.subprocess, "run", failing(errors))
    with pytest.raises(UserError) as caught:
        dl.fetch("resemblyzer", tmp_path)
    last = "ERROR: No matching distribution found for resemblyzer==0.1.4"
    assert str(caught.value) == f"pip cannot download resemblyzer==0.1.4: {last}"


# ---- choice and command line


def test_choose_the_given_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder with audio files"):
        dl.choose_corpus(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        dl.choose_corpus(tmp_path, tmp_path)
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "A.FLAC").touch()
    assert dl.choose_corpus(tmp_path, tmp_path)[0] == tmp_path


def test_choose_what_was_fetched_then_what_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def unreachable(source: dl.Source, root: Path) -> None:
        asked.append(source.name)
        raise transfer.Unreachable("https://host: cannot be reached (no)")

    def make(source: dl.Source, root: Path) -> None:
        asked.append(source.name)
        (root / source.result).mkdir(parents=True)
        (root / source.result / "0001.flac").touch()

    for name, fetcher in (("librispeech-dev-clean", unreachable), ("debian-voices", make)):
        monkeypatch.setitem(dl.SOURCES, name, replace(dl.SOURCES[name], fetcher=fetcher))
    path, text = dl.choose_corpus(None, tmp_path)
    assert path == tmp_path / "debian-voices" and "11 persons" in text and "CC BY" in text
    assert capsys.readouterr().out.splitlines() == [
        f"$ python -m datasets.download librispeech-dev-clean -o {tmp_path}",
        "https://host: cannot be reached (no); taking the Debian voices instead",
        f"$ python -m datasets.download debian-voices -o {tmp_path}",
    ]
    assert dl.choose_corpus(None, tmp_path) == (path, text)
    assert asked == ["librispeech-dev-clean", "debian-voices"]
    clean = tmp_path / "LibriSpeech" / "dev-clean"
    clean.mkdir(parents=True)
    (clean / "a.flac").touch()
    path, text = dl.choose_corpus(None, tmp_path)
    assert path == clean and "CC BY 4.0" in text


def test_command_line(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, errors = run(dl.main, "musan", "libri", "-o", tmp_path)
    assert code == 2 and errors.startswith("ERROR: 'libri': no such source, expected one of librispeech-")
    code, _, errors = run(dl.main)
    assert code == 2 and "no NAME given" in errors
    (tmp_path / "resemblyzer.pt").touch()
    code, out, _ = run(dl.main, "resemblyzer", "-o", tmp_path)
    assert code == 0 and out == f"{tmp_path / 'resemblyzer.pt'}: Apache-2.0\n"
    (tmp_path / "file").touch()
    code, _, errors = run(dl.main, "resemblyzer", "-o", tmp_path / "file")
    assert code == 2 and "cannot be created" in errors
