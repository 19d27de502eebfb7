"""How corpora of speech lie on disk: a function for each layout, from a tree of files to named utterances."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from datasets.table_layouts import acappella, is_acappella
from datasets.tree import Found, Layout, Listing, Tree, read_sexes, read_table, read_text, sex_of, stem

LIBRISPEECH_NAME = re.compile(r"^(\d+)-(\d+)-(\d+)$")
LIBRITTS_NAME = re.compile(r"^(\d+)_(\d+)_(\d+)_(\d+)$")
VCTK_NAME = re.compile(r"^(([ps]\d+)_\d+)(?:_mic(\d))?$")
VOXCELEB_SPEAKER = re.compile(r"^id(\d{5})$")
LIBRI_SUBSET = re.compile(r"^(train|dev|test)\b")
FIRST_OF_VOXCELEB1 = 10001  # VoxCeleb2 has id00012 to id09272


def librispeech(tree: Tree) -> Listing:
    """LibriSpeech, any number of subsets; ROOT may also be one subset, or a folder that holds LibriSpeech.

    ROOT/[SUBSET/]SPEAKER/CHAPTER/
        SPEAKER-CHAPTER-NUMBER.flac
        SPEAKER-CHAPTER.trans.txt        lines `SPEAKER-CHAPTER-NUMBER WORDS`
    SPEAKERS.TXT                         below ROOT or beside it: lines `ID | SEX | SUBSET | ...`
    """
    texts: dict[str, str] = {}
    for path in tree.other:
        if path.endswith(".trans.txt"):
            pairs = (line.partition(" ") for line in read_text(tree.path(path)).splitlines())
            texts.update((name, text) for name, _, text in pairs)
    sexes = _libri_sexes(tree)
    listing = Listing()
    for path in tree.audio:
        match = LIBRISPEECH_NAME.match(stem(path))
        if match is None:
            listing.unusable.append((tree.path(path), "not a LibriSpeech name"))
            continue
        name, speaker = match[0], match[1]
        subset, sex = _libri_subset(tree, path, speaker), sexes.get(speaker, "")
        listing.found.append(Found(tree.path(path), name, speaker, texts.get(name), subset, sex))
    return listing


def is_librispeech(tree: Tree) -> bool:
    return tree.share(lambda path: LIBRISPEECH_NAME.match(stem(path))) > 0.5


def libritts(tree: Tree) -> Listing:
    """LibriTTS and LibriTTS-R; the speakers are LibriSpeech's, under the same ids.

    ROOT/[SUBSET/]SPEAKER/CHAPTER/
        SPEAKER_CHAPTER_PARAGRAPH_UTTERANCE.wav
        SPEAKER_CHAPTER_PARAGRAPH_UTTERANCE.normalized.txt, else .original.txt
    speakers.tsv or SPEAKERS.txt         below ROOT or beside it
    """
    sexes, texts = _libri_sexes(tree), set(tree.other)
    listing = Listing()
    for path in tree.audio:
        match = LIBRITTS_NAME.match(stem(path))
        if match is None:
            listing.unusable.append((tree.path(path), "not a LibriTTS name"))
            continue
        name, speaker = match[0], match[1]
        base = str(PurePosixPath(path).with_suffix(""))
        written = next((f for f in (f"{base}.normalized.txt", f"{base}.original.txt") if f in texts), None)
        text = read_text(tree.path(written)).strip() if written else None
        subset, sex = _libri_subset(tree, path, speaker), sexes.get(speaker, "")
        listing.found.append(Found(tree.path(path), name, speaker, text, subset, sex))
    return listing


def is_libritts(tree: Tree) -> bool:
    return tree.share(lambda path: LIBRITTS_NAME.match(stem(path))) > 0.5


def _libri_sexes(tree: Tree) -> dict[str, str]:
    tables = tree.tables("speakers.txt", "speakers.tsv")
    return read_sexes(tables, lambda line: line.split("|" if "|" in line else "\t"))


def _libri_subset(tree: Tree, path: str, speaker: str) -> str:
    """The folder above the speaker's, which may be the root itself."""
    above = path.split("/")[:-1]
    if speaker not in above:
        return ""
    above = [tree.root.resolve().name, *above[: above.index(speaker)]]
    return above[-1] if len(above) > 1 or LIBRI_SUBSET.match(above[-1]) else ""


def vctk(tree: Tree) -> Listing:
    """VCTK 0.92 and 0.80. The id is `p225_001` for either microphone, as in published lists of tuples.

    ROOT/                                0.92                 0.80
        wav48_silence_trimmed/p225/      p225_001_mic1.flac
                                         p225_001_mic2.flac
        wav48/p225/                                           p225_001.wav
        txt/p225/                        p225_001.txt         p225_001.txt
        speaker-info.txt                 lines `p225 23 F English ...`, in 0.80 without the p

    mic2 stands in where mic1 is missing (as is mic2 of p280 and p315); else it is listed as left out, because
    the same words through another microphone are no second utterance.
    """
    sexes = read_sexes(tree.tables("speaker-info.txt"), lambda line: line.split()[:3:2])
    texts = {stem(path): path for path in tree.other if path.endswith(".txt")}
    listing = Listing()
    kept: dict[str, str] = {}
    # sorted by microphone, so that mic1 comes first
    for path in sorted(tree.audio, key=lambda path: (stem(path), path)):
        match = VCTK_NAME.match(stem(path))
        if match is None:
            listing.unusable.append((tree.path(path), "not a VCTK name"))
            continue
        name, speaker, microphone = match[1], match[2], match[3]
        if microphone == "2" and name in kept:
            listing.unusable.append((tree.path(path), "second microphone: the first is used"))
            continue
        kept[name] = path
        text = read_text(tree.path(texts[name])).strip() if name in texts else None
        sex = sexes.get(speaker) or sexes.get(speaker.removeprefix("p"), "")
        listing.found.append(Found(tree.path(path), name, speaker, text, "", sex))
    return listing


def is_vctk(tree: Tree) -> bool:
    def fits(path: str) -> bool:
        match = VCTK_NAME.match(stem(path))
        return match is not None and path.split("/")[-2:-1] in ([match[2]], [])

    return tree.share(fits) > 0.5


def voxceleb(tree: Tree) -> Listing:
    """VoxCeleb1 and VoxCeleb2. Ids are `id10001/VIDEO/00001`; the two share no speaker.

    ROOT/[dev/ or test/][wav/ or aac/]   also unpacked as vox1_dev_wav/wav/ and the like
        id10001/VIDEO/00001.wav          VoxCeleb1
        id00012/VIDEO/00001.m4a          VoxCeleb2 (decoded by PyAV)
    vox1_meta.csv, vox2_meta.csv         below ROOT or beside it: columns VoxCeleb1 ID, ..., Gender, ...
    """
    sexes: dict[str, str] = {}
    for table in tree.tables("vox1_meta.csv", "vox2_meta.csv"):
        columns, rows = read_table(table)
        sexes |= {row.get(columns[0], ""): sex_of(row.get("gender", "")) for _, row in rows}
    listing = Listing()
    for path in tree.audio:
        parts = path.split("/")
        if not _is_voxceleb_path(path):
            listing.unusable.append((tree.path(path), "not a VoxCeleb path"))
            continue
        speaker, above = parts[-3], [tree.root.resolve().name, *parts[:-3]]
        subsets = [word for name in reversed(above) for word in ("dev", "test") if word in name.split("_")]
        name = f"{speaker}/{parts[-2]}/{stem(path)}"
        subset, sex = subsets[0] if subsets else "", sexes.get(speaker, "")
        listing.found.append(Found(tree.path(path), name, speaker, None, subset, sex))
    return listing


def _is_voxceleb_path(path: str) -> bool:
    parts = path.split("/")
    return len(parts) >= 3 and VOXCELEB_SPEAKER.match(parts[-3]) is not None


def is_voxceleb1(tree: Tree) -> bool:
    return tree.share(_is_voxceleb_path) > 0.5 and not is_voxceleb2(tree)


def is_voxceleb2(tree: Tree) -> bool:
    def fits(path: str) -> bool:
        return _is_voxceleb_path(path) and int(path.split("/")[-3][2:]) < FIRST_OF_VOXCELEB1

    return tree.share(fits) > 0.5


def speakers(tree: Tree) -> Listing:
    """Any folder of speakers, such as the Debian voices.

    ROOT/SPEAKER/**/NAME.{wav,flac,ogg,opus,mp3,m4a,...}
    """
    listing = Listing()
    for path in tree.audio:
        speaker, slash, _ = path.partition("/")
        if not slash:
            listing.unusable.append((tree.path(path), "no speaker folder"))
            continue
        name = str(PurePosixPath(path).with_suffix(""))
        listing.found.append(Found(tree.path(path), name, speaker))
    return listing


SPEECH_LAYOUTS = {
    "librispeech": Layout(is_librispeech, librispeech, own_ids=True),
    "libritts": Layout(is_libritts, libritts, own_ids=True),
    "voxceleb2": Layout(is_voxceleb2, voxceleb, own_ids=True),
    "voxceleb1": Layout(is_voxceleb1, voxceleb, own_ids=True),
    "vctk": Layout(is_vctk, vctk, own_ids=True),
    "acappella": Layout(is_acappella, acappella),
    "speakers": Layout(lambda tree: True, speakers),
}
"""In the order in which they are tried."""
