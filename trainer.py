"""Trains a separator on a store, or an embedder on a corpus; the same command again resumes.

    python trainer.py -c config/voicefilter.yaml -m NAME
    python trainer.py -c config/embedder/ge2e.yaml -d CORPUS -m NAME

writes chkpt/NAME/last.pt (to resume), chkpt/NAME/best.pt (by validation SDR or EER) and logs/NAME. SIGTERM,
SIGINT and SIGUSR1 save at once; the exit code is then 128 + the signal's number (143, 130, 138).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from config.embedder_schema import EmbedderConfig
from config.load import argument_parser, load_any_config, parse_arguments, run_script
from config.schema import Config
from model.build_task import build_task, with_sources
from model.failure import too_large
from model.seeds import report_seeds
from model.shipped import RUNS, checkpoint_of, shipped_weights
from model.training_run import Run
from utils import distributed
from utils.device import choose_device, is_out_of_memory, keep_memory
from utils.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "")
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="NAME", help="name of the run")
    add("-b", "--base_dir", default=".", help="folder that holds chkpt/ and logs/")
    add("-d", "--corpus", action="append", metavar="DIR", help="corpus that an embedder learns from")
    add("-e", "--embedder", help="`resemblyzer` or an embedder file (default: from the YAML)")
    add(
        "--checkpoint_path",
        metavar="CKPT",
        help="start a new run from these weights: a file, a run, or those in weights/",
    )
    add("--allow_changes", action="store_true", help="resume with a changed configuration")
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    name = options.model
    if not name or name in (".", "..") or Path(name).name != name:
        raise UserError(f"-m {name!r}: expected a name without folders")
    config = load_any_config(options.config, options.overrides)
    config = with_sources(config, options.corpus or (), options.embedder)
    keep_memory()
    with distributed.process_group(choose_device(options.device)) as device:
        if config.train.seeds is None:
            return train_once(config, name, options, device)
        return train_seeds(config, name, options, device)


def train_once(
    config: Config | EmbedderConfig, name: str, options: argparse.Namespace, device: torch.device
) -> int:
    """One training, from its start or from where it stands; returns the exit code."""
    torch.manual_seed(config.train.seed)  # the first weights
    with distributed.in_turn():
        task = build_task(config, device)
    run = Run(task, Path(options.base_dir), name, device)
    with run.folder.locked():
        start = options.checkpoint_path
        if start and not run.folder.last.is_file():
            # a new run that is called like the weights in the box begins with those
            box, runs = shipped_weights(start), Path(options.base_dir) / RUNS
            own = start == options.model and box.is_file() and not Path(start).is_file()
            start = str(box if own else checkpoint_of(start, runs))
        run.load(start, options.allow_changes)
        try:
            return run.train()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise too_large(error, config) from error
            raise


def train_seeds(
    config: Config | EmbedderConfig, name: str, options: argparse.Namespace, device: torch.device
) -> int:
    """A training NAME/seed-N for each of `train.seeds`, one after the other, and a table of what they
    reach."""
    folder, runs = Path(options.base_dir) / "chkpt" / name, {}
    for seed in config.train.seeds or ():
        train = config.train.model_copy(update={"seed": seed, "seeds": None})
        runs[seed] = folder / f"seed-{seed}"
        own = f"{name}/seed-{seed}"
        if code := train_once(config.model_copy(update={"train": train}), own, options, device):
            return code
    if distributed.rank() == 0:
        report_seeds(folder, runs)
    return 0


if __name__ == "__main__":
    run_script(main)
