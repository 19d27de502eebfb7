"""Separates one voice: mixture and reference in, estimate out.

    python inference.py -m mixed.wav -r reference.wav -o out
    python inference.py -m recordings/ -r reference.wav -o out --keep residual
    python inference.py --batch list.csv -o out
    rec -t s16 -r 16000 -c 1 - | \\
        python inference.py --stream -r reference.wav | play -t s16 -r 16000 -c 1 -
    python inference.py --checkpoint_path chkpt_55000.pt -e embedder.pt -m mixed.wav -r reference.wav -o out

A checkpoint of this project carries its configuration, its front end and its embedder; those of the public
VoiceFilter re-implementation, its forks, VoiceSplit and ailia (ONNX) need the embedder beside them. Exit code
2: a mistake in what was asked; 3: some of many recordings could not be separated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from config.load import argument_parser, parse_arguments, run_script
from model.choice import add_checkpoint_options, chosen_checkpoint, load_separator
from model.jobs import FINISHED, Finished, Job, Outcome, check_results, folder_jobs, listed_jobs, run_jobs
from model.masks import add_mask_options, chosen_masking
from model.pcm import stream_pcm
from model.presence import Calibration
from model.recording import Absent, Wishes
from model.separator import Separator
from model.work import Voices, Work, describe
from utils.audio import AUDIO_SUFFIXES, audio_info, read_mono
from utils.audio_stream import Spool, reader_may_leave, standard_bytes, standard_output
from utils.batch_norm import fold_batch_norms
from utils.device import choose_device, large_pages
from utils.errors import UserError
from utils.files import require_writable, sha256_of, write_json

STANDARD, THRESHOLD = "-", 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    _check(options)
    large_pages()
    with ExitStack() as stack, Spool() as spool:
        sink = sys.stdout
        if options.stream or options.out_dir == STANDARD:
            standard_output(sink)  # what is missing is said before the work
        if STANDARD in (options.out_dir, options.report) or options.stream:
            stack.enter_context(redirect_stdout(sys.stderr))
        path = chosen_checkpoint(options)
        separator = load_separator(path, options).to(choose_device(options.device))
        fold_batch_norms(separator.network)
        separator.masking = chosen_masking(separator.masking, options)
        separator.precision = options.precision or separator.precision
        voices, references = Voices(separator, path), tuple(map(spool, options.reference_file))
        if options.stream:
            embedding = voices(references)
            source = None if options.microphone else standard_bytes()
            stream_pcm(separator, embedding, source, standard_output(sink))
            return 0
        wishes = _wishes(options, separator, path)
        if options.batch or Path(options.mixed_file).is_dir():
            return separate_many(options, references, voices, wishes, sink)
        name = options.mixed_file
        mixture = spool.take(standard_bytes(), "standard input") if name == STANDARD else spool(name)
        to_pipe = options.out_dir == STANDARD
        out = Path(stack.enter_context(TemporaryDirectory()) if to_pipe else options.out_dir)
        output = out if out.suffix.lower() == ".wav" and not out.is_dir() else out / "estimate.wav"
        return separate_one(options, Job(mixture, references, output), voices, wishes, sink)


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(
        __doc__ or "", "a configuration instead of the checkpoint's own, or what a foreign one lacks"
    )
    add = parser.add_argument
    add("-m", "--mixed_file", "--input", metavar="MIXED", help="the mixture, a folder of them, or - (a WAV)")
    add(
        "-r",
        "--reference_file",
        default=[],
        action="append",
        metavar="REFERENCE",
        help="a few seconds of the wanted voice alone; of several -r the mean is taken",
    )
    add("-o", "--out_dir", metavar="OUT", help="folder for the results, NAME.wav, or - (a WAV)")
    add("--batch", metavar="CSV", help="many at once: rows of mixture, reference, output")
    add("-p", "--processes", type=int, metavar="N", help="so many recordings at the same time")
    add("--stream", action="store_true", help="16-bit PCM from standard input to standard output, at once")
    add("--microphone", action="store_true", help="with --stream: from the microphone")
    add_checkpoint_options(parser)
    add_mask_options(parser)
    add("--strength", type=float, default=1.0, help="0 to 1: 1 leaves nothing of the rest, 0 all of it")
    add("--keep", choices=["residual"], action="append", default=[], help="write what is left as well")
    add("--mono", action="store_true", help="average the channels first, instead of separating each")
    add("--presence", action="store_true", help="say whether the voice is in there at all")
    add("--threshold", type=float, default=THRESHOLD, help="probability from which it is")
    add("--absent", choices=get_args(Absent), help="what is written where it is not (default: the estimate)")
    add(
        "--report",
        nargs="?",
        const="",
        metavar="JSON",
        help="what was done, as JSON (default: OUT/report.json)",
    )
    add("--target", metavar="WAV", help="the wanted voice alone, to score and to draw beside it")
    add("--plot", action="store_true", help="also draw spectrograms and mask of the first seconds (PNG)")
    add("--device", default="auto", help="auto, cpu, mps or cuda[:N]")
    add("--precision", choices=["auto", "fp32", "bf16"], help="default: the checkpoint's own")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together."""
    given = [name for name in ("mixed_file", "batch") if getattr(options, name)]
    if options.stream:
        usual = {
            "strength": 1.0,
            "threshold": THRESHOLD,
            "keep": [],
            "presence": False,
            "plot": False,
            "mono": False,
        }
        others = ("mixed_file", "batch", "out_dir", "report", "target", "absent", "processes")
        for name, value in {**usual, **dict.fromkeys(others)}.items():
            if getattr(options, name) != value:
                raise UserError(
                    f"--stream: reads standard input and writes standard output, without --{name}"
                )
    elif options.microphone:
        raise UserError("--microphone: belongs to --stream")
    elif len(given) != 1:
        raise UserError("name what is separated: one of -m MIXED, --batch CSV and --stream")
    elif not options.out_dir:
        raise UserError("name the folder for the results with -o")
    many = options.batch or (options.mixed_file and Path(options.mixed_file).is_dir())
    if options.threshold != THRESHOLD and not (options.presence or options.absent):
        raise UserError(f"--threshold {options.threshold}: has no effect without --presence or --absent")
    if options.backend == "onnx" and options.precision == "bf16":
        raise UserError("--precision bf16: has no effect on --backend onnx, which computes in fp32")
    if options.out_dir == STANDARD and (options.keep or options.plot or options.report in ("", STANDARD)):
        raise UserError("-o -: only the estimate goes there, without --keep, --plot, and --report has a file")
    if (out := Path(options.out_dir or "")).suffix.lower() in AUDIO_SUFFIXES - {".wav"} and not out.is_dir():
        raise UserError(f"-o {out}: the result is a WAV file; name it .wav, or a folder")
    if many and (options.target or options.out_dir == STANDARD):
        raise UserError(f"{'--target' if options.target else '-o -'}: is for a single recording")
    if many and out.suffix.lower() == ".wav" and not out.is_dir():
        raise UserError(f"-o {out}: is for a single recording; name a folder for many")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"-p {options.processes}: expected at least 1")
    if options.processes is not None and not many:
        raise UserError(f"-p {options.processes}: is for many recordings, a folder or --batch")
    for name in ("strength", "threshold"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name} {getattr(options, name)}: expected 0 to 1")


def _wishes(options: argparse.Namespace, separator: Separator, path: Path) -> Wishes:
    calibration = None
    if options.presence or options.absent:
        if separator.embedder is None:
            raise UserError(f"{path}: asks for nobody, so nobody can be present or absent")
        if options.mask != "org":
            raise UserError(f"--presence: listens to the voice itself, not to --mask {options.mask}")
        if options.embedder_path and separator.presence is None:
            raise UserError(f"--presence: {path} was not calibrated with the embedder of -e")
        calibration = Calibration.from_content(separator.presence, str(path))
    return Wishes(
        options.strength,
        options.mono,
        "residual" in options.keep,
        calibration,
        options.threshold,
        options.absent or "estimate",
    )


def separate_one(options: argparse.Namespace, job: Job, voices: Voices, wishes: Wishes, sink: Any) -> int:
    """One recording to a file, a folder or standard output."""
    mixture, output, to_pipe = job.mixture, job.output, options.out_dir == STANDARD
    target = Path(options.target) if options.target else None
    work = Work(voices, wishes, options.plot, target)
    check_results([job], work.results, [target] if target else [], _report_place(options, output.parent))
    for place in [output, *_report_place(options, output.parent)]:
        require_writable(place)
    if target is not None:
        _check_target(target, mixture)
    report = work(job, name=options.mixed_file)
    print(describe(voices.path, report))
    if target is not None:
        print(_score(mixture, output, target))
    if to_pipe:
        report.output, report.files = STANDARD, []
        stream = standard_output(sink)
        with output.open("rb") as file, reader_may_leave(stream):
            shutil.copyfileobj(file, stream)
            stream.flush()
    else:
        print(*report.files, sep="\n")
    _write_report(options, voices, [report.content()], output.parent, sink)
    return 0


def separate_many(
    options: argparse.Namespace, references: tuple[Path, ...], voices: Voices, wishes: Wishes, sink: Any
) -> int:
    """A list or a folder; 3 when some could not be separated."""
    out = Path(options.out_dir)
    if options.batch:
        jobs = listed_jobs(Path(options.batch), references, out)
    else:
        jobs = folder_jobs(Path(options.mixed_file), references, out)
        voices(references)  # one mistake in it is one sentence
    work = Work(voices, wishes, options.plot)
    written = [out / FINISHED, *_report_place(options, out)]
    check_results(jobs, work.results, [Path(options.batch)] if options.batch else [], written)
    for place in written:
        require_writable(place)
    threads = torch.get_num_threads()
    at_once = options.processes or (min(threads, 4) if voices.separator.device.type == "cpu" else 2)
    at_once = min(at_once, len(jobs))
    torch.set_num_threads(max(1, threads // at_once))
    separator = voices.separator
    embedder = separator.embedder.fingerprint() if separator.embedder is not None else ""
    settings = [wishes, separator.masking, options.plot, separator.config.model_dump(), embedder]
    computed = [options.backend, separator.precision, separator.device.type]
    how = str([*settings, *computed, *_contents(options, voices.path)])
    finished = Finished(out)
    try:
        outcomes = run_jobs(jobs, lambda job, stop: work(job, stop).content(), finished, how, at_once)
    finally:
        torch.set_num_threads(threads)
    _tell(outcomes, voices.path, out)
    _write_report(options, voices, [_content(outcome) for outcome in outcomes], out, sink)
    return 3 if any(outcome.problem for outcome in outcomes) else 0


def _contents(options: argparse.Namespace, path: Path) -> list[str]:
    """Of the files that say what an estimate is: the checkpoint, an exported one's other graph, and -e."""
    graphs = path.parent.glob("*.onnx") if path.suffix.lower() == ".onnx" else []
    named = Path(options.embedder_path) if options.embedder_path else None
    files = {path, *graphs, *([named] if named and named.is_file() else [])}
    return [sha256_of(file) for file in sorted(files)]


def _tell(outcomes: Sequence[Outcome], path: Path, out: Path) -> None:
    done = [outcome for outcome in outcomes if outcome.report is not None]
    before = sum(outcome.again for outcome in done)
    earlier = f", {before} of them before" if before else ""
    print(f"{path}: {len(done)} of {len(outcomes)} recordings separated{earlier}; {out}")
    for outcome in outcomes:
        if outcome.problem:
            named = str(outcome.job.mixture) in outcome.problem
            where = "" if named else f"{outcome.job.mixture}: "
            print(f"ERROR: {where}{outcome.problem}", file=sys.stderr)


def _content(outcome: Outcome) -> dict[str, Any]:
    if outcome.report is not None:
        return outcome.report
    return {"mixture": str(outcome.job.mixture), "output": str(outcome.job.output), "error": outcome.problem}


def _write_report(
    options: argparse.Namespace, voices: Voices, reports: list[dict[str, Any]], folder: Path, sink: Any
) -> None:
    if options.report is None:
        return
    content = {"checkpoint": str(voices.path), "recordings": reports}
    if options.report == STANDARD:
        print(json.dumps(content, indent=2), file=sink)
        return
    for place in _report_place(options, folder):
        write_json(place, content)
        print(place)


def _report_place(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The file of the report, if there is one."""
    if options.report in (None, STANDARD):
        return []
    return [Path(options.report) if options.report else folder / "report.json"]


def _check_target(target: Path, mixture: Path) -> None:
    rate = audio_info(mixture).rate
    wanted, mixed = len(read_mono(target, rate)), audio_info(mixture).frames
    if wanted != mixed:
        raise UserError(f"{target}: {wanted} samples, the mixture has {mixed} at {rate} Hz")


def _score(mixture: Path, output: Path, target: Path) -> str:
    rate = audio_info(mixture).rate
    wanted, before, after = (torch.from_numpy(read_mono(path, rate)) for path in (target, mixture, output))
    from utils.metrics import si_sdr  # here: only who has the target waits for SciPy

    first, second = (si_sdr(signal, wanted).item() for signal in (before, after))
    return f"SI-SDR {first:.2f} -> {second:.2f} dB ({second - first:+.2f})"


if __name__ == "__main__":
    run_script(main)
