"""Turns another project's checkpoint into one of this project, which needs nothing beside it.

python convert.py chkpt_55000.pt -e embedder.pt -o converted.pt     # the public VoiceFilter re-implementation
python convert.py model.onnx -e embedder.onnx -o converted.pt       # ailia's two ONNX graphs
python convert.py embedder.pt -o mine.pt                            # an embedder alone
python convert.py chkpt/NAME/best.pt -o NAME.safetensors --half     # ours, to be handed on: weights alone
python convert.py chkpt/NAME/best.pt -o NAME.safetensors --int8     # its network with 8 bits: smaller still
python convert.py chkpt/NAME/best.pt --average chkpt/BEFORE/best.pt -o NAME.safetensors   # the mean of two
python convert.py chkpt/A/best.pt --ensemble chkpt/B/best.pt -o NAME.safetensors   # two networks, one answer
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.load import argument_parser, check_config, differences, parse_arguments, run_script
from config.schema import Store
from model.foreign import CONTAINERS, load_embedder
from model.foreign_separators import is_foreign, read_foreign
from model.foreign_settings import settings_file
from model.onnx_network import OnnxGraph
from model.separator import FORMAT, Separator
from model.widening import WIDTHS
from utils.checkpoint import load_checkpoint, save_checkpoint, save_weights
from utils.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    path, out = Path(options.checkpoint), Path(options.out)
    for given in (path, options.embedder_path, options.config, options.average, *options.ensemble):
        if given and out.resolve() == Path(given).resolve():
            raise UserError(f"{given}: would be overwritten by the result; name another file with -o")
    for name in ("half", "int8", "average", "ensemble"):
        if getattr(options, name) and out.suffix != ".safetensors":
            raise UserError(f"--{name}: is for a file named .safetensors, not {out}")
    own = own_separator(path) if out.suffix == ".safetensors" else None
    if own:
        refuse_options(options, f"{path}: is of this project, has its own embedder and configuration")
    if options.average:
        own = averaged(path, own, Path(options.average))
    if options.ensemble:
        own = joined(path, own, [Path(other) for other in options.ensemble])
    content = own or (
        convert_separator(path, options) if is_separator(path) else convert_embedder(path, options)
    )
    if out.suffix == ".safetensors":
        save_weights(out, content, 8 if options.int8 else 16 if options.half else 32)
    else:
        save_checkpoint(out, content)
    print(out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__ or "", None)
    add = parser.add_argument
    add("checkpoint", metavar="FILE", help="a separator or an embedder, recognised by its keys")
    add("-e", "--embedder_path", help="the embedder that a separator was trained with")
    add("-o", "--out", required=True, metavar="CKPT", help="the file to write")
    small = parser.add_mutually_exclusive_group()
    small.add_argument("--half", action="store_true", help="store matrices with 16 bits (.safetensors)")
    small.add_argument(
        "--int8",
        action="store_true",
        help="store the mask network's matrices with 8 bits, scaled by rows, others with 16 (.safetensors)",
    )
    together = parser.add_mutually_exclusive_group()
    together.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="CKPT",
        help="store one network whose mask is the mean of FILE's and of this one's (may be repeated)",
    )
    together.add_argument(
        "--average",
        metavar="CKPT",
        help="store the mean of the weights of FILE and of this one, which it was trained on from",
    )
    add("-c", "--config", metavar="YAML", help="the other project's YAML file, where FILE carries none")
    add(
        "--activation",
        choices=["relu", "mish"],
        help="of a fork's convolutions, which weights do not tell (default: what FILE says, else relu)",
    )
    return parser


def own_separator(path: Path) -> dict[str, Any] | None:
    """What is handed on of a checkpoint of this project, without the state of its training; None for
    another."""
    if path.suffix.lower() == ".onnx" or (content := load_checkpoint(path)).get("format") != FORMAT:
        return None
    kept = ("training_speakers", "step", "validation", "code")
    own = Separator.from_content(content, str(path)).content()
    for kind in ("corpus", "noise", "music", "rirs"):
        own["config"]["data"][kind] = []  # where they lay is nobody's business
    own["config"]["store"]["folder"] = Store().folder
    own["config"]["embedder"] = Path(own["config"]["embedder"]).name
    return own | {name: content[name] for name in kept if name in content}


def averaged(path: Path, own: dict[str, Any] | None, other_path: Path) -> dict[str, Any]:
    """The `own` separator of `path` with the mean of its network's weights and the other's.

    Between a network and what it became by learning from other data too, the mean keeps most of what either
    can (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903). A narrower other
    is widened first, as the trainer does when it begins with it. What was calibrated for the one does not
    hold for the mean, and is left out. Raises UserError for networks that are not alike.
    """
    own, other = _both(path, own, other_path, "--average")
    kinds = ("audio", "network")
    here, there = ({kind: content["config"][kind] for kind in kinds} for content in (own, other))
    before = Separator.from_content(own, "").network.widened(other["network"])
    if before is not other["network"]:
        there["network"] = there["network"] | {name: here["network"][name] for name in WIDTHS}
    if changes := differences(there, here):
        raise UserError(f"{other_path}: cannot be averaged with {path}: {'; '.join(changes)}")
    _require_one_embedder(path, own, other_path, other, "averaged")
    network = {
        name: (value + before[name]) / 2 if value.is_floating_point() else value
        for name, value in own["network"].items()
    }
    return _remade(own, [other], network)


def joined(path: Path, own: dict[str, Any] | None, other_paths: Sequence[Path]) -> dict[str, Any]:
    """The `own` separator of `path` with a network whose mask is the mean of its own and the others' masks.

    An ensemble among them gives its members. What was calibrated for one does not hold for all, and is left
    out. Raises UserError for separators that do not hear the same.
    """
    contents = []
    for other_path in other_paths:
        own, other = _both(path, own, other_path, "--ensemble")
        if changes := differences({"audio": other["config"]["audio"]}, {"audio": own["config"]["audio"]}):
            raise UserError(f"{other_path}: cannot be joined with {path}: {'; '.join(changes)}")
        _require_one_embedder(path, own, other_path, other, "joined")
        contents.append(other)
    assert own is not None
    members: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for content in (own, *contents):
        options = content["config"]["network"]
        inside = options.get("members")
        for index, member in enumerate(inside or [options]):
            begin = f"members.{index}." if inside else ""
            weights |= {
                f"members.{len(members)}.{name.removeprefix(begin)}": value
                for name, value in content["network"].items()
                if name.startswith(begin)
            }
            members.append(member)
    common = {name: members[0][name] for name in ("mask", "embedding")}
    loss = own["config"]["loss"] | {"blind": 0.0}  # of a network that was alone
    network = {"kind": "ensemble", "members": members, **common}
    config = own["config"] | {"network": network, "loss": loss}
    where = " and ".join(map(str, (path, *other_paths)))
    return _remade(own, contents, weights) | {"config": check_config(config, where).model_dump()}


def _both(
    path: Path, own: dict[str, Any] | None, other_path: Path, option: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The separators of both files. Raises UserError for another project's."""
    other = own_separator(other_path)
    if own is None or other is None:
        raise UserError(f"{path if own is None else other_path}: {option} is for separators of this project")
    return own, other


def _require_one_embedder(
    path: Path, own: dict[str, Any], other_path: Path, other: dict[str, Any], done: str
) -> None:
    first, second = (Separator.from_content(content, "").embedder for content in (own, other))
    if first is not None and second is not None and not first.equals(second):
        raise UserError(f"{other_path}: cannot be {done} with {path}: it listens to another embedder")


def _remade(own: dict[str, Any], others: Sequence[dict[str, Any]], network: dict[str, Any]) -> dict[str, Any]:
    """`own` with another network's weights, which know the people of all."""
    known = [content.get("training_speakers") for content in (own, *others)]
    left_out = ("presence", "step", "validation", "training_speakers")
    made = {name: value for name, value in own.items() if name not in left_out} | {"network": network}
    if all(names is not None for names in known):  # else nobody knows whom the whole has heard
        made["training_speakers"] = sorted({name for names in known for name in names or ()})
    return made


def is_separator(path: Path) -> bool:
    """Raises UserError for a file that cannot be read, or that is one of this project."""
    if path.suffix.lower() == ".onnx":
        return any(len(shape) == 3 for _, shape in OnnxGraph.load(path).inputs)
    content = load_checkpoint(path)
    if content.get("format") == FORMAT or isinstance(content.get("embedder"), dict):
        raise UserError(f"{path}: is a checkpoint of this project already")
    return is_foreign(content)


def convert_separator(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    settings = settings_file(options.config) if options.config else None
    if options.config and settings is None:
        raise UserError(f"{options.config}: not a YAML file of the other project (audio.num_freq is missing)")
    foreign = read_foreign(path, settings, options.activation)
    if settings and settings != foreign.settings:
        print(f"NOTE: {path} brings its own settings, which hold; {options.config} is not used")
    embedder = load_embedder(options.embedder_path) if options.embedder_path else None
    print(foreign.describe(embedder))
    return foreign.build(embedder, options.embedder_path or "").content()


def convert_embedder(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    refuse_options(options, f"{path}: no separator of another project that is known", keys_of(path))
    embedder = load_embedder(str(path))
    shown = ", ".join(f"{key} {value}" for key, value in embedder.options.items())
    count = sum(parameter.numel() for parameter in embedder.parameters())
    print(f"{path}: an embedder ({count:,} parameters, {shown})")
    return {"embedder": embedder.content()}


def refuse_options(options: argparse.Namespace, cause: str, more: str = "") -> None:
    """Raises UserError for an option that is for separators of other projects."""
    given = (("-e", options.embedder_path), ("-c", options.config), ("--activation", options.activation))
    for name, value in given:
        if value:
            raise UserError(f"{cause}; {name} {value} has no effect on it{more}")


def keys_of(path: Path) -> str:
    """What stands in a file that was not recognised."""
    content = {} if path.suffix.lower() == ".onnx" else load_checkpoint(path)
    parts = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    return f" (it holds {', '.join(sorted(map(str, parts))[:6])})" if parts else ""


if __name__ == "__main__":
    run_script(main)
