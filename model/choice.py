"""Which separator is used: named, by a run's name, or the newest; of this project or another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config.load import load_config
from model.embedder import Embedder
from model.exported import exported_separator, is_exported, through_graphs
from model.foreign import load_embedder
from model.foreign_separators import foreign_from_content, is_foreign, read_foreign
from model.foreign_settings import Settings, settings_file
from model.onnx_network import OnnxGraph
from model.separator import FORMAT, Separator
from model.shipped import DEFAULT, RUNS, STREAMING, checkpoint_of, shipped_weights
from utils.checkpoint import load_checkpoint
from utils.errors import UserError


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """--checkpoint_path, -e and --activation, as the functions here read them, beside -c."""
    add = parser.add_argument
    add(
        "--checkpoint_path",
        metavar="CKPT",
        help=f"a file, the name of a run, or of weights that come with this project (default: its {DEFAULT}; "
        f"of a stream {STREAMING})",
    )
    add("-e", "--embedder_path", help="an embedder instead of the checkpoint's own; a foreign one needs it")
    add("--backend", choices=["torch", "onnx"], help="what runs the networks (default: torch)")
    add("--activation", choices=["relu", "mish"], help="of a fork's checkpoint that does not say its own")


def chosen_checkpoint(options: argparse.Namespace) -> Path:
    """The one that is named, else the weights of this project, else the newest that was trained here. Raises
    UserError where there is none."""
    if options.checkpoint_path:
        return checkpoint_of(options.checkpoint_path)
    shipped = shipped_weights(STREAMING if getattr(options, "stream", False) else DEFAULT)
    return shipped if shipped.is_file() else newest_checkpoint(RUNS)


def newest_checkpoint(folder: Path) -> Path:
    """The newest best.pt of a separator below a folder, which may hold embedders as well."""
    for path in sorted(folder.glob("*/best.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if load_checkpoint(path).get("format") == FORMAT:
            return path
    raise UserError(f"{folder}: no trained separator below it; train one, or name it with --checkpoint_path")


def load_separator(path: Path, options: argparse.Namespace) -> Separator:
    """The separator of a checkpoint, of this project or another, with the embedder of -e if there is one, run
    by what --backend says; graphs that export.py has written are always run by onnxruntime."""
    if path.suffix.lower() == ".onnx" and is_exported(graph := OnnxGraph.load(path)):
        precision = getattr(options, "precision", None)
        others = [options.config, *options.overrides, options.embedder_path, options.activation, precision]
        for value in [*others, *(["--backend torch"] if options.backend == "torch" else [])]:
            if value:
                raise UserError(f"{path}: brings all that it needs; {value} cannot be used with it")
        return exported_separator(path, graph)
    separator = _read_separator(path, options)
    if options.backend == "onnx" and separator.config.network.kind != "onnx":
        return through_graphs(separator)
    return separator


def _read_separator(path: Path, options: argparse.Namespace) -> Separator:
    config, overrides = options.config, options.overrides
    if overrides and not config:
        raise UserError(f"{overrides[0]}: overrides go with -c; the checkpoint brings its own configuration")
    embedder = load_embedder(options.embedder_path) if options.embedder_path else None
    if path.suffix.lower() == ".onnx":
        foreign = read_foreign(path, settings_of_config(path, options), options.activation)
        print(foreign.describe(embedder))
        return foreign.build(embedder)
    content = load_checkpoint(path)
    if is_foreign(content):
        settings = settings_of_config(path, options)
        foreign = foreign_from_content(content, str(path), settings, options.activation)
        if settings and settings != foreign.settings:
            print(f"NOTE: {path} brings its own settings, which hold; {config} is not used")
        print(foreign.describe(embedder))
        return foreign.build(embedder)
    if options.activation:
        raise UserError(f"--activation {options.activation}: {path} says its own")
    separator = Separator.from_content(content, str(path), load_config(config, overrides) if config else None)
    if embedder:
        replace_embedder(separator, embedder, path, options.embedder_path)
    return separator.eval()


def settings_of_config(path: Path, options: argparse.Namespace) -> Settings | None:
    """What -c says for a foreign checkpoint: a YAML of its own project, or one of ours, which is not used."""
    if options.config is None:
        return None
    settings = settings_file(options.config)
    if settings is None:
        load_config(options.config, options.overrides)
        print(f"NOTE: {path} is another project's: {options.config}, which is ours, is not used")
    elif options.overrides:
        raise UserError(f"{options.overrides[0]}: {options.config} is another project's, without overrides")
    return settings


def replace_embedder(separator: Separator, embedder: Embedder, path: Path, name: str) -> None:
    """Raises UserError for one of another width."""
    if separator.embedder is None:
        print(f"NOTE: {path} has no embedder: -e {name} is not used")
        return
    if embedder.dim != separator.embedder.dim:
        raise UserError(f"{name}: gives {embedder.dim} values, {separator.embedder.dim} are needed")
    if not embedder.equals(separator.embedder):
        print(f"WARNING: {name} is not the embedder that {path} was trained with", file=sys.stderr)
        separator.presence = None  # which was calibrated with the other one
    separator.embedder = embedder
