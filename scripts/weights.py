"""`make weights CORPUS=...`: trains the weights that come with this project; stopped, it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from config.load import argument_parser, load_config, parse_arguments, run_script
from scripts.commands import command
from utils.errors import UserError
from utils.files import atomic_file

NAMES = ("compact", "lite", "voicefilter")
"""What is made."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("Trains the weights that come with this project.", config_help=None)
    add = parser.add_argument
    add("--corpus", metavar="DIR", required=True, help="LibriSpeech's train-clean-100, or an excerpt of it")
    add("--others", action="append", default=[], metavar="DIR",
        help="recordings of other voices, whoever they are, which are mixed in as music is")  # fmt: skip
    add("--data", default="data", help="folder for the stores")
    add("-o", "--out", default="weights", help="folder for the weights")
    add("overrides", nargs="*", metavar="section.key=value")
    options = parse_arguments(parser, arguments)
    if not options.corpus or not Path(options.corpus).is_dir():
        raise UserError(f"{options.corpus or 'CORPUS='}: no such folder; name LibriSpeech's train-clean-100")
    for others in options.others:
        if not Path(others).is_dir():
            raise UserError(f"{others}: no such folder; OTHERS= names recordings of other voices")
    command("-m", "pip", "install", "--disable-pip-version-check", "-q", "phonemizer-fork", "espeakng-loader")
    data, more = Path(options.data), options.overrides
    sounds = data / "weights"
    command("-m", "scripts.weights_data", "-o", str(sounds))
    music = [str(sounds / "music"), *options.others]
    sounding = [f"data.noise={[str(sounds / 'noise')]}", f"data.music={music}", *more]
    real, spoken = [options.corpus], [options.corpus, str(sounds / "voices")]
    _train(data, "weights-compact-1", real, more)
    _train(data, "weights-compact-2", spoken, sounding, "weights-compact-1")
    _train(data, "weights-compact-3", real, sounding, "weights-compact-2")
    _train(data, "weights-compact-4", real, sounding, "weights-compact-3")
    # beside the stores, until all three are complete
    small, lite, both = (f"{data}/{name}.safetensors" for name in NAMES)
    mean = f"{data}/weights-compact-mean.safetensors"
    _average("chkpt/weights-compact-4/best.pt", "chkpt/weights-compact-3/best.pt", mean)
    _train(data, "weights-compact-5", real, sounding, mean)
    _average("chkpt/weights-compact-5/best.pt", mean, small)
    _train(data, "weights-lite-1", real, more)
    _learn("weights-lite-2", data / "weights-compact-3", more, "weights-lite-1")
    _learn("weights-lite-3", data / "weights-compact-4", more, "weights-lite-2")
    _average("chkpt/weights-lite-3/best.pt", "chkpt/weights-lite-2/best.pt", lite)
    _train(data, "band-split-whole", real, more, ranks=2)
    _learn("weights-bands-1", data / "band-split-whole", more, "band-split-whole", ranks=2)
    _train(data, "weights-bands-2", real, sounding, "weights-bands-1", ranks=2)
    _learn("weights-bands-3", data / "weights-compact-5", more, "weights-bands-2", ranks=2)
    bands = f"{data}/weights-bands-mean.safetensors"
    _average("chkpt/weights-bands-3/best.pt", "chkpt/weights-bands-2/best.pt", bands)
    command("convert.py", small, "--ensemble", bands, "-o", both, "--int8")
    for made in (small, lite, both):
        command("calibrate.py", made, "--data", str(data / "weights-compact-3"))
    for made in (small, lite, both):
        with atomic_file(Path(options.out) / Path(made).name) as file:
            shutil.copyfile(made, file)
    return 0


def _average(behind: str, before: str, out: str) -> None:
    command("convert.py", behind, "--average", before, "-o", out, "--half")


def _train(
    data: Path, name: str, corpora: list[str], more: list[str], start: str | None = None, ranks: int = 1
) -> None:
    """Store and training of config/NAME.yaml, from another one's weights."""
    named = [argument for corpus in corpora for argument in ("-d", corpus)]
    command("generator.py", "-c", f"config/{name}.yaml", *named, "-o", str(data / name), *more)
    _learn(name, data / name, more, start, ranks)


def _learn(name: str, store: Path, more: list[str], start: str | None = None, ranks: int = 1) -> None:
    """Training of config/NAME.yaml; `start`: another one's name, or a file. On a CPU by so many processes, on
    a CUDA device by one, with their batches together."""
    if start and not start.endswith(".safetensors"):
        start = f"chkpt/{start}/best.pt"
    begin = ("--checkpoint_path", start) if start else ()
    several: tuple[str, ...] = ()
    if ranks > 1 and torch.cuda.is_available():
        more = [
            f"train.batch_size={ranks * load_config(Path(f'config/{name}.yaml')).train.batch_size}",
            *more,
        ]
    elif ranks > 1:
        several = ("-m", "torch.distributed.run", "--nproc-per-node", str(ranks))
    words = ("-c", f"config/{name}.yaml", "-m", name, *begin, *more, f"store.folder={store}")
    command(*several, "trainer.py", *words)


if __name__ == "__main__":
    run_script(main)
