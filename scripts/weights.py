"""`make weights CORPUS=...`: trains the weights that come with this project; stopped, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.load import argument_parser, parse_arguments, run_script
from scripts.commands import command
from utils.errors import UserError

NAMES = ("compact",)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("Trains the weights that come with this project.", config_help=None)
    add = parser.add_argument
    add("--corpus", metavar="DIR", required=True, help="LibriSpeech's train-clean-100, or an excerpt of it")
    add("--data", default="data", help="folder for the store")
    add("-o", "--out", default="weights", help="folder for the weights")
    add("overrides", nargs="*", metavar="section.key=value")
    options = parse_arguments(parser, arguments)
    if not options.corpus or not Path(options.corpus).is_dir():
        raise UserError(f"{options.corpus or 'CORPUS='}: no such folder; name LibriSpeech's train-clean-100")
    for short in NAMES:
        name, out = f"weights-{short}", Path(options.out) / f"{short}.safetensors"
        config, store = f"config/{name}.yaml", str(Path(options.data) / name)
        command("generator.py", "-c", config, "-d", options.corpus, "-o", store, *options.overrides)
        command("trainer.py", "-c", config, "-m", name, *options.overrides, f"store.folder={store}")
        command("calibrate.py", name, "--data", store)
        command("convert.py", f"chkpt/{name}/best.pt", "-o", str(out), "--half")
    return 0


if __name__ == "__main__":
    run_script(main)
