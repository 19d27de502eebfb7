"""A corpus of 11 persons out of Debian packages: telephone prompts and game dialogues."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.transfer import unpack_debian
from utils.audio import level_db, read_mono, write_flac
from utils.errors import UserError
from utils.files import atomic_folder, write_csv, write_text
from utils.progress import progress_bar

# ---- voices
RATE = 16000
PAUSE_SECONDS = 0.2
SHORT_SECONDS, ENOUGH_SECONDS, LONG_SECONDS = 5.0, 10.0, 15.0
SILENCE_DB = -50.0  # silence/*.g722 lie at -80 dBFS, the faintest spoken prompt at -28
PROMPT_SUFFIXES = {".g722", ".gsm", ".wav", ".ogg"}
NOT_SPEECH = re.compile(
    r"/silence/|/(beep|beeperr|(a|de)scending-2tone|confbridge-(join|leave)|tt-monkeys)\.[a-z0-9]+$"
)


@dataclass(frozen=True)
class Voice:
    """One person; recorded at `rate` Hz; `actor`: the tag in file names where two share a package."""

    person: str
    packages: tuple[str, ...]
    rate: int
    credit: str
    licence: str
    actor: str = ""


def _core(languages: str, credit: str, licence: str) -> Voice:
    packages = tuple(f"asterisk-core-sounds-{language}-g722" for language in languages.split("-"))
    return Voice(f"asterisk-{languages}", packages, 16000, credit, licence)


def _fillets(language: str, actor: str) -> Voice:
    credit = f"the {'small' if actor == 'm' else 'big'} fish of Fish Fillets, ALTAR interactive and others"
    package = f"fillets-ng-data-{language}"
    return Voice(f"fillets-{language}-{actor}", (package,), 22050, credit, "GPL-2", actor)


_ARMELLE = "BSD-like (keep the copyright notice of 2006 Michel Gutierrez, no endorsement)"
_MENARDI = "made by Marco Menardi and his wife Paola Dal Zot, http://www.voip.ammdomus.it"
VOICES = (
    _core("en-es", "Allison Smith, http://www.theivrvoice.com, for Digium", "CC BY-SA 3.0"),
    _core("fr", "June Wallack, http://www.junewallack.com, for Digium and others", "CC BY-SA 3.0"),
    _core("it", "Carlo Flora, http://www.carloflora.com", "CC BY 3.0"),
    _core("ru", "http://www.ivrvoice.ru, provided by Maxim Topal", "CC BY 3.0"),
    Voice("asterisk-es-co", ("asterisk-prompt-es-co",), 8000, "July E. Jiménez, Avatar Ltda.", "GPL-2"),
    Voice("asterisk-fr-armelle", ("asterisk-prompt-fr-armelle",), 8000, "Armelle Desjardins", _ARMELLE),
    Voice("asterisk-it-menardi", ("asterisk-prompt-it-menardi-wav",), 8000, _MENARDI, "CC BY-SA 3.0 Italy"),
    *(_fillets(language, actor) for language in ("cs", "nl") for actor in "mv"),
)


def build_debian_voices(folder: Path) -> None:
    """`folder`/PERSON/0001.flac ... (16 kHz, mono, 16 bit) with LICENCES.md and unused.csv, out of VOICES.

    A prompt lasts 1 to 4 s, too short for a target. Prompts of a person are therefore joined in the order of
    their paths, PAUSE_SECONDS apart, to utterances of mostly 10 to 15 s (`join_prompts`), so that no two
    utterances share a prompt. Tones, silence, unreadable files and repeated recordings are left out
    (unused.csv). Nothing is normalised; only an utterance that would clip is scaled to full scale.
    Raises UserError where apt-get or dpkg-deb is missing or fails.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"the Debian voices need {tool}, which this system lacks: no Debian, no Ubuntu?")
    with (
        tempfile.TemporaryDirectory(prefix=".packages-", dir=folder.parent) as temporary,
        atomic_folder(folder) as building,
    ):
        packages = Path(temporary)
        versions = unpack_debian(sorted({name for voice in VOICES for name in voice.packages}), packages)
        left = {p for p in packages.rglob("*") if p.suffix in PROMPT_SUFFIXES and not p.is_symlink()}
        unused: list[tuple[Path, str]] = []
        for voice in VOICES:
            own = sorted(path for path in left if _speaks(voice, path.relative_to(packages)))
            left.difference_update(own)
            (building / voice.person).mkdir()
            prompts = usable_prompts(progress_bar(own, voice.person, unit="file"), unused)
            for number, samples in enumerate(join_prompts(prompts), 1):
                unclipped = samples / max(1.0, np.abs(samples).max())
                write_flac(building / voice.person / f"{number:04d}.flac", unclipped, RATE)
        unused += [(path, "not by its name one of the persons") for path in left]
        rows = sorted((path.relative_to(packages).as_posix(), cause) for path, cause in unused)
        write_csv(building / "unused.csv", ("file", "cause"), rows)
        write_text(building / "LICENCES.md", _licences(versions))


def _speaks(voice: Voice, path: Path) -> bool:
    """Of PACKAGE/.../NAME: Fish Fillets' names start with the actor, or with the level and the actor."""
    tag = rf"([^-]+-)?{voice.actor}-" if voice.actor else ""
    return path.parts[0] in voice.packages and re.match(tag, path.name) is not None


def _licences(versions: dict[str, str]) -> str:
    lines = [
        "Recordings from Debian packages, decoded to 16 kHz and joined to longer utterances, else unchanged.",
        "The licences are those of the recordings in each package's debian/copyright.\n",
        "| person | package and version | licence | recorded at | voice |\n| --- | --- | --- | --- | --- |",
    ]
    for voice in VOICES:
        packages = ", ".join(f"{name} {versions[name]}" for name in voice.packages)
        lines.append(f"| {voice.person} | {packages} | {voice.licence} | {voice.rate} Hz | {voice.credit} |")
    return "\n".join(lines) + "\n"


def usable_prompts(paths: Iterable[Path], unused: list[tuple[Path, str]]) -> Iterator[np.ndarray]:
    """Prompts with speech, each recording once: float32 [N] at RATE; the others go to `unused` and why."""
    seen: dict[int, list[tuple[str, np.ndarray]]] = {}
    for path in paths:
        try:
            samples = read_mono(path, RATE) if not NOT_SPEECH.search(path.as_posix()) else None
        except UserError as error:
            unused.append((path, f"unreadable: {str(error).replace(str(path), path.name)}"))
            continue
        if samples is None or level_db(samples) < SILENCE_DB:
            unused.append((path, "not speech: silence or a tone or an effect"))
            continue
        # a recording that stands there under two names may differ in dither, but not in length
        same_length = seen.setdefault(len(samples), [])
        thinned = samples[::4] / np.linalg.norm(samples[::4])
        twins = [name for name, other in same_length if float(thinned @ other) > 0.99]
        if twins:
            unused.append((path, f"repeated: the recording of {twins[0]}"))
            continue
        same_length.append(("/".join(path.parts[-2:]), thinned))
        yield samples


def join_prompts(prompts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Joins prompts (float32 [N] at RATE) in their order, each in one utterance, PAUSE_SECONDS apart.

    An utterance ends when it has 10 s, or 5 s and the next prompt would carry it past 15 s; a rest under
    5 s goes to the last utterance. Only a person with less than 5 s of speech gets a shorter one.
    """
    ready: list[np.ndarray] = []  # kept back, since the rest may have to join it
    group: list[np.ndarray] = []
    for prompt in prompts:
        seconds, more = _seconds(group), _seconds([*group, prompt])
        if seconds >= ENOUGH_SECONDS or (seconds >= SHORT_SECONDS and more > LONG_SECONDS):
            if ready:
                yield _joined(ready)
            ready, group = group, []
        group.append(prompt)
    if ready and _seconds(group) >= SHORT_SECONDS:
        yield _joined(ready)
        ready = []
    if ready or group:
        yield _joined(ready + group)


def _seconds(prompts: Sequence[np.ndarray]) -> float:
    return sum(len(prompt) / RATE + PAUSE_SECONDS for prompt in prompts) - PAUSE_SECONDS


def _joined(prompts: Sequence[np.ndarray]) -> np.ndarray:
    pause = np.zeros(round(PAUSE_SECONDS * RATE), np.float32)
    return np.concatenate([part for prompt in prompts for part in (pause, prompt)][1:])
