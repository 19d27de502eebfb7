"""How corpora of noise, music and room impulse responses lie on disk; a sound's `speaker` is its category."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from datasets.tree import Found, Layout, Listing, Tree, read_table, read_text, stem

MUSAN_NAME = re.compile(r"^(music|noise|speech)-.+-\d+$")
WHAM_SUBSETS = ("tr", "cv", "tt")
RIRS_FOLDERS = ("simulated_rirs", "real_rirs_isotropic_noises", "pointsource_noises")

SoundIndexer = Callable[[Tree, str], Listing]


def _name(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def musan(tree: Tree, kind: str) -> Listing:
    """MUSAN (OpenSLR 17); `kind` picks the folder, the category is the SOURCE.

    ROOT/[musan/]{music,noise,speech}/SOURCE/
        noise-free-sound-0000.wav
    """
    listing = Listing()
    for path in tree.audio:
        match = MUSAN_NAME.match(stem(path))
        if match is None:
            listing.unusable.append((tree.path(path), "not a MUSAN name"))
        elif match[1] == kind:
            source = path.split("/")[-2] if "/" in path else ""
            listing.found.append(Found(tree.path(path), _name(path), source))
    return listing


def is_musan(tree: Tree) -> bool:
    return tree.share(lambda path: MUSAN_NAME.match(stem(path))) > 0.5


def esc50(tree: Tree, kind: str) -> Listing:
    """ESC-50: noise only; its folds are subsets.

    ROOT/
        audio/1-100032-A-0.wav
        meta/esc50.csv                   columns filename, fold, target, category, ...
    """
    listing = Listing()
    rows = {
        row.get("filename", ""): row for table in tree.tables("esc50.csv") for _, row in read_table(table)[1]
    }
    for path in tree.audio if kind == "noise" else ():
        row = rows.get(path.rpartition("/")[2])
        if row is None:
            listing.unusable.append((tree.path(path), "in no table"))
            continue
        subset = f"fold{row['fold']}" if row.get("fold") else ""
        listing.found.append(Found(tree.path(path), _name(path), row.get("category", ""), None, subset))
    return listing


def is_esc50(tree: Tree) -> bool:
    return any(path.rpartition("/")[2].lower() == "esc50.csv" for path in tree.other)


def wham(tree: Tree, kind: str) -> Listing:
    """WHAM!'s noise, in its subsets; without categories.

    ROOT/[wham_noise/]{tr,cv,tt}/
        401c0207_1.4672_401c020c_-1.4672.wav
    """
    listing = Listing()
    for path in tree.audio if kind == "noise" else ():
        subset = _wham_subset(path)
        if subset:
            listing.found.append(Found(tree.path(path), _name(path), "", None, subset))
        else:
            listing.unusable.append((tree.path(path), "not in tr, cv or tt"))
    return listing


def _wham_subset(path: str) -> str:
    above = path.split("/")[-2:-1]
    return above[0] if above and above[0] in WHAM_SUBSETS else ""


def is_wham(tree: Tree) -> bool:
    return tree.share(_wham_subset) > 0.5


def rirs_noises(tree: Tree, kind: str) -> Listing:
    """RIRS_NOISES (OpenSLR 28): `rir` takes simulated and real ones, `noise` point sources and isotropic.

    ROOT/[RIRS_NOISES/]
        simulated_rirs/{small,medium,large}room/Room001/Room001-00001.wav
        real_rirs_isotropic_noises/      *.wav; rir_list and noise_list say which is which
        pointsource_noises/noise-free-sound-0000.wav

    Categories: smallroom, mediumroom, largeroom and real; pointsource and isotropic. The room is the subset.
    """
    listed = {
        name: {
            stem(word)
            for path in tree.other
            if path.rpartition("/")[2] == name and "real_rirs_isotropic_noises" in _above(tree, path)
            for word in read_text(tree.path(path)).split()
            if word.lower().endswith(".wav")
        }
        for name in ("rir_list", "noise_list")
    }
    listing = Listing()
    for path in tree.audio:
        found = _rirs_kind(_above(tree, path), stem(path), listed)
        if found is None:
            listing.unusable.append((tree.path(path), "not a RIRS_NOISES path"))
        elif found[0] == kind:
            listing.found.append(Found(tree.path(path), _name(path), found[1], None, _room(tree, path, kind)))
    return listing


def _room(tree: Tree, path: str, kind: str) -> str:
    """`smallroom/Room001` of a simulated response; of a measured one what stands before its place."""
    if kind != "rir":
        return ""
    above = _above(tree, path)
    if "simulated_rirs" in above:
        return "/".join(above[-2:])
    return re.sub(r"_(near|far|phone|\d).*$", "", stem(path))


def _above(tree: Tree, path: str) -> list[str]:
    return [tree.root.resolve().name, *path.split("/")[:-1]]


def _rirs_kind(above: list[str], name: str, listed: dict[str, set[str]]) -> tuple[str, str] | None:
    """(kind, category) of a file by its folders; among the real recordings by the lists, then by its name."""
    if "pointsource_noises" in above:
        return "noise", "pointsource"
    if "simulated_rirs" in above:
        rooms = above[above.index("simulated_rirs") + 1 :]
        return "rir", rooms[0] if rooms else ""
    if "real_rirs_isotropic_noises" not in above:
        return None
    noise = name in listed["noise_list"] or (name not in listed["rir_list"] and "noise" in name.lower())
    return ("noise", "isotropic") if noise else ("rir", "real")


def is_rirs_noises(tree: Tree) -> bool:
    return tree.share(lambda path: set(RIRS_FOLDERS) & set(_above(tree, path))) > 0.5


def sounds(tree: Tree, kind: str) -> Listing:
    """Any folder of audio, all of it of the kind that is asked for; the first folder is the category.

    ROOT/[CATEGORY/**/]NAME.{wav,flac,ogg,opus,mp3,m4a,...}
    """
    return Listing(
        [
            Found(tree.path(path), _name(path), path.partition("/")[0] if "/" in path else "")
            for path in tree.audio
        ]
    )


def sound_layouts(kind: str) -> dict[str, Layout]:
    """The layouts for sounds of one kind, in the order in which they are tried."""

    def layout(recognises: Callable[[Tree], bool], index: SoundIndexer) -> Layout:
        return Layout(recognises, lambda tree: index(tree, kind))

    return {
        # before MUSAN, whose names its point sources have
        "rirs_noises": layout(is_rirs_noises, rirs_noises),
        "musan": layout(is_musan, musan),
        "esc50": layout(is_esc50, esc50),
        "wham": layout(is_wham, wham),
        "sounds": layout(lambda tree: True, sounds),
    }
