"""New voices from old ones: `python -m datasets.warp CORPUS -o OUT --voices 2`.

A corpus of few people teaches a network these people. Here every person of CORPUS becomes further ones, whose
vocal tract is longer or shorter (formants times `formants`) and who speak higher or lower (pitch times
`pitch`), each drawn once for a new voice; the speeds of the generator (`data.speeds`) change both alike. The
sound is made by Praat's "Change gender": overlap-add of pitch periods (PSOLA; Moulines & Charpentier 1990)
and resampling. Needs `pip install praat-parselmouth`.

    python -m datasets.warp LibriSpeech/train-clean-100 -o data/warped --voices 2
    python generator.py ... -d LibriSpeech/train-clean-100 -d data/warped

The new voices serve for training alone, those of people who are held out for nothing.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from config.load import argument_parser, parse_arguments, run_script
from datasets.corpus import Utterance, index_corpus
from utils.audio import read_mono, write_flac
from utils.errors import UserError
from utils.files import write_csv
from utils.processes import cores, in_processes
from utils.progress import progress_bar

PITCH_FLOOR, PITCH_CEILING = 65.0, 500.0  # Hz, where Praat looks for the pitch
LOWEST, HIGHEST = 75.0, 320.0  # Hz, median pitch of a voice that is made
FULL_SCALE = 1 - 2**-15
REPORT = "warp.csv"
HEADER = ("voice", "of", "formants", "pitch")


@dataclass(frozen=True)
class Warp:
    """A new voice: `formants` and `pitch` are factors."""

    name: str
    formants: float
    pitch: float


@dataclass(frozen=True)
class Task:
    """One utterance becomes `output`."""

    path: str
    output: Path
    rate: int
    warp: Warp


def draw_warps(
    speaker: str, voices: int, formants: tuple[float, float], pitch: tuple[float, float], seed: int
) -> list[Warp]:
    """The new voices of a person, named SPEAKER~1 ...; the same however many people or voices there are."""
    drawn = []
    for k in range(1, voices + 1):
        key = hashlib.sha256(f"{seed}/{speaker}/{k}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
        factors = (float(np.exp(generator.uniform(*np.log(limits)))) for limits in (formants, pitch))
        drawn.append(Warp(f"{speaker}~{k}", *factors))
    return drawn


def warp_voice(samples: np.ndarray, rate: int, warp: Warp) -> np.ndarray:
    """Speech [N] at `rate` Hz -> the same words in another voice, about [N], as loud as before.

    Where the pitch would leave LOWEST to HIGHEST Hz it stays at their border. Raises UserError without
    Praat, and for what Praat cannot change (too short, no voice in it).
    """
    parselmouth = _praat()
    call = parselmouth.praat.call
    try:
        sound = parselmouth.Sound(samples.astype(np.float64), rate)
        pitch = sound.to_pitch(pitch_floor=PITCH_FLOOR, pitch_ceiling=PITCH_CEILING)
        median = call(pitch, "Get quantile", 0.0, 0.0, 0.5, "Hertz")
        if not math.isfinite(median):
            raise UserError("no pitch to be found")
        target = min(max(median * warp.pitch, LOWEST), HIGHEST)
        # breath is random pulses: the same ones every time
        parselmouth.praat.run("random_initializeWithSeedUnsafelyButPredictably (1)")
        changed = call(sound, "Change gender", PITCH_FLOOR, PITCH_CEILING, warp.formants, target, 1.0, 1.0)
    except parselmouth.PraatError as error:
        raise UserError(f"Praat: {str(error).splitlines()[0]}") from error
    values = np.asarray(changed.values[0])
    before, after = np.square(samples).mean(), np.square(values).mean()
    if not after > 0:
        raise UserError("nothing is left of it")
    values = values * math.sqrt(before / after)
    return (values / max(1.0, np.abs(values).max() / FULL_SCALE)).astype(np.float32)


def _praat() -> Any:
    try:
        import parselmouth
    except ImportError as error:
        raise UserError("new voices are made by Praat: pip install praat-parselmouth") from error
    return parselmouth


def _process(task: Task) -> str:
    """-> why it could not be made, or nothing."""
    try:
        changed = warp_voice(read_mono(task.path, task.rate), task.rate, task.warp)
    except UserError as error:
        return str(error)
    write_flac(task.output, changed, task.rate)
    return ""


def warp_corpus(
    utterances: Sequence[Utterance], warps: dict[str, list[Warp]], target: Path, rate: int, processes: int
) -> list[tuple[Task, str]]:
    """Writes `target`/VOICE/VOICE-ID.flac for each utterance of the people in `warps`; what is there stays.

    `target`/warp.csv lists the voices. Returns the tasks that failed, with the causes.
    """
    header = [(warp.name, speaker, f"{warp.formants:.6f}", f"{warp.pitch:.6f}")
              for speaker, drawn in sorted(warps.items()) for warp in drawn]  # fmt: skip
    _require_same_voices(target, header)
    write_csv(target / REPORT, HEADER, header)
    tasks = [
        Task(utterance.path, target / warp.name / _file_name(utterance, warp.name), rate, warp)
        for utterance in utterances
        for warp in warps.get(utterance.speaker, ())
    ]
    left = [task for task in tasks if not task.output.exists()]
    causes = progress_bar(
        in_processes(_process, left, processes, "voice-making"), "new voices", len(left), unit="file"
    )
    return [(task, cause) for task, cause in zip(left, causes, strict=True) if cause]


def _file_name(utterance: Utterance, voice: str) -> str:
    """Of a voice's utterances no two have the same, whatever folders they come from; begins with the voice,
    because a name of LibriSpeech's would be taken for the old one's."""
    own = utterance.id.removeprefix(f"{utterance.speaker}/")
    return f"{voice}-{quote(own, safe='')}.flac"


def _require_same_voices(target: Path, rows: Sequence[tuple[str, ...]]) -> None:
    """Raises UserError where an earlier run has made other voices by these names."""
    if not (target / REPORT).exists():
        return
    with (target / REPORT).open(newline="", encoding="utf-8") as file:
        known = {row[0]: tuple(row) for row in csv.reader(file) if row}
    if gone := sorted(known.keys() - {row[0] for row in rows} - {HEADER[0]}):
        raise UserError(
            f"{target}: also holds {', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''}, which would stay "
            "beside what is asked for now; take another folder"
        )
    for row in rows:
        if known.get(row[0], row) != row:
            raise UserError(f"{target}: holds the voice {row[0]} with other factors; take another folder")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="folder of speech, in any layout that generator.py knows")
    add("-o", "--out", metavar="DIR", required=True, help="folder of the new corpus: VOICE/UTTERANCE.flac")
    add("--voices", type=int, default=2, help="new voices of each person")
    add("--formants", type=float, nargs=2, default=(0.85, 1.18), metavar=("FROM", "TO"), help="factors")
    add("--pitch", type=float, nargs=2, default=(0.75, 1.33), metavar=("FROM", "TO"), help="factors")
    add("--without", nargs="*", default=[], metavar="SPEAKER", help="people to leave out (to test on)")
    add("--rate", type=int, default=16000, help="Hz")
    add("--seed", type=int, default=0)
    add("-p", "--processes", type=int, default=cores(), help="processes at work")
    options = parse_arguments(parser, arguments)
    for name, least in (("voices", 1), ("processes", 1), ("rate", 8000)):
        if (value := getattr(options, name)) < least:
            raise UserError(f"--{name} {value}: expected at least {least}")
    for name in ("formants", "pitch"):
        low, high = getattr(options, name)
        if not 0.5 <= low <= high <= 2:
            raise UserError(
                f"--{name} {low:g} {high:g}: expected two factors from 0.5 to 2, the smaller first"
            )
    _praat()
    utterances = index_corpus([options.corpus]).utterances
    people = sorted({utterance.speaker for utterance in utterances})
    if unknown := sorted(set(options.without) - set(people)):
        raise UserError(f"--without {' '.join(unknown)}: no such speaker in {options.corpus}")
    limits = tuple(options.formants), tuple(options.pitch)
    kept = [speaker for speaker in people if speaker not in set(options.without)]
    warps = {speaker: draw_warps(speaker, options.voices, *limits, options.seed) for speaker in kept}
    target = Path(options.out)
    target.mkdir(parents=True, exist_ok=True)
    failed = warp_corpus(utterances, warps, target, options.rate, options.processes)
    for task, cause in failed:
        print(f"WARNING: {task.path} as {task.warp.name}: {cause}")
    print(
        f"{target}: {len(kept) * options.voices} voices of {len(kept)} people, "
        f"{len(failed)} utterances left out"
    )
    return 0


if __name__ == "__main__":
    run_script(main)
