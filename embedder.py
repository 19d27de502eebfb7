"""Embeds recordings, or measures how well embedders tell speakers apart.

python embedder.py embed recordings/ -o embeddings.npz --picture embeddings.png
python embedder.py verify -d LibriSpeech -e resemblyzer -e chkpt/NAME/best.pt -o results/verification
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config.embedder_schema import ValidationSpeakers
from config.load import argument_parser, parse_arguments, run_script
from datasets.corpus import Utterance, heard_speakers, index_corpus
from datasets.plan import is_in
from datasets.tree import Tree
from datasets.trials import all_pairs, enrolments, read_trials
from model.foreign import load_embedder
from model.reference import MIN_SPEECH_SECONDS, read_reference
from model.verification import embed_clips, embed_waves, project, unit_length, verify
from model.verification_report import VERIFICATION, Comparison, write_results
from utils.audio import require_file
from utils.device import choose_device
from utils.errors import UserError
from utils.files import atomic_file, require_writable
from utils.plots import embedding_figure, save_picture

MOST_SHOWN = 10
"""Recordings whose similarities, and unusable files whose causes, are shown on the screen."""
MOST_COMPARED = 20_000
"""Recordings whose similarity matrix, 1.6 GB of these, is still written."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    tasks = {"embed": (_embed_parser, embed), "verify": (_verify_parser, compare)}
    if not given or given[0] not in tasks:  # argparse's own sub-commands do not let options stand anywhere
        parser = argument_parser(__doc__ or "", config_help=None)
        parser.add_argument("task", choices=list(tasks), help="each has its own --help")
        parse_arguments(parser, given[:1])
    parser_of, run = tasks[given[0]]
    run(parse_arguments(parser_of(), given[1:]))
    return 0


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    precisions = ["auto", "fp32", "bf16"]
    parser.add_argument("--precision", default="fp32", choices=precisions, help="auto: bf16 where it is fast")


# ---------------------------------------------------------------- embed


def _embed_parser() -> argparse.ArgumentParser:
    parser = argument_parser("Writes the embeddings of recordings, and how similar they are.", None)
    parser.prog += " embed"
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="files, and folders in the layout of a corpus")
    add("-o", "--out", required=True, metavar="NPZ", help="embeddings, similarity, paths, speakers, embedder")
    add("-e", "--embedder", default="resemblyzer", help="resemblyzer, or the path of an embedder")
    add("--picture", metavar="PNG", help="also draw the similarities and a projection")
    _add_machine(parser)
    return parser


@dataclass(frozen=True)
class Recording:
    """A file to embed; `named` by itself, not found in a folder."""

    path: str
    speaker: str
    named: bool


def embed(options: argparse.Namespace) -> None:
    embedder = load_embedder(options.embedder).to(choose_device(options.device))
    recordings = list_recordings(options.audio)
    refuse_results(options, [recording.path for recording in recordings])
    if options.picture and len(recordings) > MOST_COMPARED:
        raise UserError(f"--picture: draws at most {MOST_COMPARED} recordings, not {len(recordings)}")
    used: list[Recording] = []
    waves = read_recordings(recordings, embedder.sample_rate, used)
    embeddings = embed_waves(embedder, waves, len(recordings), precision=options.precision)
    speakers = [recording.speaker for recording in used]
    fields = {
        "embeddings": embeddings,
        "paths": np.array([recording.path for recording in used]),
        "speakers": np.array(speakers),
        "embedder": np.array(embedder.fingerprint()),
    }
    if len(used) > MOST_COMPARED:
        save_arrays(options.out, fields)
        print(f"NOTE: the similarities of more than {MOST_COMPARED} recordings are not computed")
        return
    unit = unit_length(embeddings)
    similarity = np.clip(unit @ unit.T, -1, 1)
    save_arrays(options.out, fields | {"similarity": similarity})
    print(describe(used, similarity))
    print(options.out)
    if options.picture:
        title = f"{len(used)} recordings of {len(set(speakers))} speakers, {options.embedder}"
        save_picture(options.picture, embedding_figure(project(embeddings), speakers, similarity, title))
        print(options.picture)


def save_arrays(path: str, fields: Mapping[str, np.ndarray]) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **fields)  # type: ignore[arg-type]


def refuse_results(options: argparse.Namespace, inputs: Sequence[str]) -> None:
    """Raises UserError where a result cannot be written, or would take the place of what is read."""
    if options.picture and Path(options.picture).resolve() == Path(options.out).resolve():
        raise UserError(f"{options.out}: named for the embeddings and for the picture")
    read = {Path(name).resolve() for name in (*inputs, options.embedder)}
    for result in filter(None, (options.out, options.picture)):
        if Path(result).is_dir():
            raise UserError(f"{result}: is a folder, expected the name of a file to write")
        if Path(result).resolve() in read:
            raise UserError(f"{result}: would be overwritten by the result; name another file")
        require_writable(result)


def read_recordings(
    recordings: Sequence[Recording], rate: int, used: list[Recording]
) -> Iterator[np.ndarray]:
    """The audio of every recording at `rate` Hz, which is then in `used`.

    Raises UserError for one that is `named` and no reference; others are left out and listed.
    """
    left_out = []
    for recording in recordings:
        try:
            samples = read_reference(recording.path, rate)
        except UserError as error:
            if recording.named:
                raise
            left_out.append(str(error))
            continue
        used.append(recording)
        yield samples
    report(left_out)
    if not used:
        raise UserError(f"none of {len(recordings)} recordings can be used; the first: {left_out[0]}")


def list_recordings(audio: Sequence[str]) -> list[Recording]:
    """The files that are named and those below folders, in the layout of a corpus or all in one folder.

    Where the layout names no speaker, it is the folder's name. Raises UserError for a file that is not there,
    or named twice.
    """
    recordings, corpora = [], []
    for name in audio:
        path = Path(name)
        if not path.is_dir():
            require_file(name)
            recordings.append(Recording(name, path.resolve().parent.name, named=True))
            continue
        tree = Tree.of(path)
        if tree.audio and all("/" not in inside for inside in tree.audio):
            files = sorted(str(path / inside) for inside in tree.audio)
            recordings += [Recording(file, path.resolve().name, named=False) for file in files]
        else:
            corpora.append(name)
    if corpora:
        corpus = index_corpus(corpora, shortest=MIN_SPEECH_SECONDS)
        print(f"corpus: {corpus.describe()}")
        report([f"{path}: {cause}" for path, cause in corpus.unusable])
        recordings += [Recording(u.path, u.speaker, named=False) for u in corpus.utterances]
    seen: dict[Path, str] = {}
    for recording in recordings:
        first = seen.setdefault(Path(recording.path).resolve(), recording.path)
        if first is not recording.path:
            raise UserError(f"{recording.path}: is named twice")
    return recordings


def report(left_out: Sequence[str]) -> None:
    """Lists what cannot be used, the first of it."""
    for line in left_out[:MOST_SHOWN]:
        tqdm.write(f"left out: {line}")
    if len(left_out) > MOST_SHOWN:
        tqdm.write(f"left out: {len(left_out) - MOST_SHOWN} more files")


def describe(recordings: Sequence[Recording], similarity: np.ndarray) -> str:
    """Counts and mean similarities; of a few recordings the similarity of every two."""
    speakers = np.array([recording.speaker for recording in recordings])
    pairs = np.triu(np.ones_like(similarity, dtype=bool), 1)
    same = speakers[:, None] == speakers[None]
    within, between = (
        f"{similarity[which].mean():.3f}" if which.any() else "-" for which in (pairs & same, pairs & ~same)
    )
    lines = [
        "| recordings | speakers | mean similarity within speakers | between speakers |",
        "|---|---|---|---|",
        f"| {len(recordings)} | {len(set(speakers))} | {within} | {between} |",
    ]
    if 1 < len(recordings) <= MOST_SHOWN:
        names = [f"{recording.speaker}/{Path(recording.path).name}" for recording in recordings]
        width = max(map(len, names))
        lines += ["", " " * (width + 4) + "".join(f"{number:6d}" for number in range(1, len(names) + 1))]
        for number, (name, row) in enumerate(zip(names, similarity, strict=True), 1):
            lines.append(f"{number:3d} {name:{width}}" + "".join(f"{value:6.2f}" for value in row))
    return "\n".join(lines)


# ---------------------------------------------------------------- verify


def _verify_parser() -> argparse.ArgumentParser:
    parser = argument_parser("Measures how well embedders tell the speakers of a corpus apart.", None)
    parser.prog += " verify"
    add = parser.add_argument
    add("-d", "--corpus", action="append", required=True, metavar="DIR", help="folder of speech")
    add("-e", "--embedder", action="append", help="resemblyzer (the default), or a path; may be repeated")
    add("--trials", metavar="LIST", help="lines `label path path`, instead of all pairs of utterances")
    add("--subset", nargs="+", action="extend", metavar="NAME", help="only these subsets of the corpus")
    add("--utterances", type=int, metavar="N", help="at most so many of a speaker (20)")
    add("--seconds", type=float, metavar="S", help="only the first seconds of every utterance")
    add("--unheard", action="store_true", help="without the speakers of the embedders' training")
    add("--seed", type=int, default=0, help="of the choice of utterances")
    add("-o", "--out", default="results/verification", metavar="DIR", help="folder for the results")
    _add_machine(parser)
    return parser


def compare(options: argparse.Namespace) -> None:
    names = options.embedder or ["resemblyzer"]
    if len(set(names)) < len(names):
        raise UserError(f"-e {' -e '.join(names)}: an embedder is named twice")
    chosen = [options.utterances, options.seconds, options.unheard or None]
    if options.trials and any(choice is not None for choice in chosen):
        raise UserError("--trials names what is compared: --utterances, --seconds and --unheard go without")
    speakers = speaker_options(options)
    require_writable(Path(options.out) / VERIFICATION)
    device = choose_device(options.device)
    embedders = {name: load_embedder(name).to(device) for name in names}
    corpus = index_corpus(options.corpus)
    print(f"corpus: {corpus.describe()}")
    report([f"{path}: {cause}" for path, cause in corpus.unusable])
    utterances = {u.id: u for u in corpus.utterances if not options.subset or is_in(u, options.subset)}
    if not utterances:
        known = ", ".join(sorted({u.subset for u in corpus.utterances} - {""})) or "none"
        raise UserError(f"--subset {' '.join(options.subset)}: not in this corpus (its subsets: {known})")
    if options.trials:
        comparison = listed(options.trials, utterances)
    else:
        heard = {name for embedder in embedders.values() for name in embedder.training_speakers}
        comparison = drawn(utterances, heard if options.unheard else set(), speakers, options.seed)
    results = {}
    for name, embedder in embedders.items():
        vectors = embed_clips(embedder, comparison.clips, utterances, precision=options.precision)
        results[name] = verify(vectors, comparison.trials, comparison.speakers)
    write_results(Path(options.out), options.corpus, embedders, results, comparison, utterances)


def speaker_options(options: argparse.Namespace) -> ValidationSpeakers:
    count = 20 if options.utterances is None else options.utterances
    if count < 2:
        raise UserError(f"--utterances {count}: expected at least 2")
    if options.seconds is not None and not 0.4 <= options.seconds < 1e6:
        raise UserError(f"--seconds {options.seconds}: expected at least 0.4")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: expected 0 or more")
    return ValidationSpeakers(utterances=count, seconds=options.seconds)


def listed(path: str, utterances: Mapping[str, Utterance]) -> Comparison:
    found = read_trials(path, utterances)
    print(found.describe(path))
    speakers = [utterances[clip.utterance].speaker for clip in found.clips]
    rows = len(found.trials.same) + len(found.missing)
    part = f", {len(found.trials.same)} of {rows} trials" if found.missing else ""
    return Comparison(
        found.clips,
        speakers,
        found.trials,
        f"list {Path(path).name}{part}, whole utterances",
        0,
        found.missing,
    )


def drawn(
    utterances: Mapping[str, Utterance], heard: set[str], options: ValidationSpeakers, seed: int
) -> Comparison:
    """All pairs of some utterances of every speaker who is not among the `heard`."""
    speakers: dict[str, list[Utterance]] = {}
    known = heard_speakers({u.speaker for u in utterances.values()}, heard)
    for utterance in utterances.values():
        if utterance.speaker not in known:
            speakers.setdefault(utterance.speaker, []).append(utterance)
    left_out = len(known)
    if heard:
        print(f"left out: {left_out} speakers who were heard in training, {len(speakers)} remain")
    found = enrolments(speakers, options, seed)
    length = "whole utterances" if options.seconds is None else f"the first {options.seconds:g} s of each"
    protocol = f"all pairs of at most {options.utterances} utterances a speaker, {length}"
    protocol += f", without {left_out} speakers heard in training" if left_out else ""
    return Comparison(found.clips, found.speakers, all_pairs(found.speakers), protocol, found.divided, [])


if __name__ == "__main__":
    run_script(main)
