"""`make weights CORPUS=...`: trains the weights that come with this project; stopped, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.load import argument_parser, parse_arguments, run_script
from scripts.commands import command
from utils.errors import UserError

NAME = "weights-compact"


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
    data, more = Path(options.data), options.overrides
    sounds, first, second = data / "weights", data / f"{NAME}-1", data / NAME
    command("-m", "scripts.weights_data", "-o", str(sounds))
    config = ("-c", f"config/{NAME}-1.yaml")
    command("generator.py", *config, "-d", options.corpus, "-o", str(first), *more)
    command("trainer.py", *config, "-m", f"{NAME}-1", *more, f"store.folder={first}")
    music = [str(sounds / "music"), *options.others]
    config = ("-c", f"config/{NAME}.yaml")
    more = [f"data.noise={[str(sounds / 'noise')]}", f"data.music={music}", *more]
    spoken = ("-d", options.corpus, "-d", str(sounds / "voices"))
    command("generator.py", *config, *spoken, "-o", str(second), *more)
    start = ("--checkpoint_path", f"chkpt/{NAME}-1/best.pt")
    command("trainer.py", *config, "-m", NAME, *start, *more, f"store.folder={second}")
    command("calibrate.py", NAME, "--data", str(second))
    command("convert.py", f"chkpt/{NAME}/best.pt", "-o", f"{options.out}/compact.safetensors", "--half")
    return 0


if __name__ == "__main__":
    run_script(main)
