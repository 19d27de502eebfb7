"""YAML -> checked options; dotted overrides; the command-line frame that all scripts share."""

from __future__ import annotations

import argparse
import difflib
import errno
import faulthandler
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from config.embedder_schema import EmbedderConfig
from config.schema import Config
from utils.errors import UserError

CONFIG_FOLDER = Path(__file__).parent
MODELS: dict[str, type[Config] | type[EmbedderConfig]] = {"separator": Config, "embedder": EmbedderConfig}
CHOICES = {
    name for model in MODELS.values() for name, field in model.model_fields.items() if field.discriminator
}
"""Sections whose `kind` decides which options they have."""


class _Loader(yaml.SafeLoader):
    """SafeLoader for which `1e-3` is a number (YAML 1.1 wants `1.0e-3`) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be overridden
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError, ValueError) as error:  # a mapping as a key; a date that there is not
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def read_yaml(path: Path | str, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads one YAML file on top of its `base:` (a path relative to the file). Raises UserError."""
    path = Path(path)
    if path.resolve() in _chain:
        raise UserError(f"{path}: `base:` leads back to this file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        shipped = sorted(str(p.relative_to(CONFIG_FOLDER.parent)) for p in CONFIG_FOLDER.rglob("*.yaml"))
        near = difflib.get_close_matches(str(path), shipped, 1, 0.5)
        raise UserError(f"{path}: no such configuration{_meant(near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if re.search(r"^\s+num_freq\s*:", text, re.MULTILINE):
        other = "is of the public re-implementation of VoiceFilter; its like here is config/mindslab.yaml"
        raise UserError(f"{path}: {other}")
    content = _parse_yaml(text, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected `key: value` lines")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected a file name, got {base!r}")
    return _merge(read_yaml(path.parent / base, (*_chain, path.resolve())), content)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values of `above` win; sections are merged key by key, except where they choose another `kind`."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = value
        if not (isinstance(value, dict) and isinstance(old, dict)):
            continue
        if key not in CHOICES or "kind" not in value or value["kind"] == _kind_in(below, key):
            merged[key] = _merge(old, value)
    return merged


def _kind_in(tree: dict[str, Any], section: str) -> Any:
    """The kind of one of CHOICES, which need not stand there."""
    model = MODELS.get(str(tree.get("task", "separator")), Config)
    return tree[section].get("kind", model.model_fields[section].default.kind)


def _override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"'{text}': expected an override such as train.batch_size=4")
    nested: Any = _parse_yaml(value, f"'{text}'")
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return _merge(tree, nested)


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `path` (defaults alone if None) with `section.key=value` overrides on top.

    Raises UserError that names the key, what was expected, and a near match for an unknown key; also for
    the configuration of an embedder.
    """
    config = load_any_config(path, overrides)
    if not isinstance(config, Config):
        raise UserError(f"{path}: trains an embedder (task), a separator's configuration is needed here")
    return config


def load_any_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config | EmbedderConfig:
    """The same of a separator or an embedder, whichever the key `task` names."""
    tree = read_yaml(path) if path is not None else {}
    # the kind first: it decides which options of the section there are
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".kind")):
        tree = _override(tree, text)
    return _check(tree, str(path) if path is not None else "configuration")


def check_config(tree: dict[str, Any], where: str) -> Config:
    """The configuration of a separator out of plain values. Raises UserError."""
    config = _check(tree, where)
    if not isinstance(config, Config):
        raise UserError(f"{where}: describes an embedder, not a separator")
    return config


def with_defaults(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """Plain values of any configuration, such as a checkpoint's, with what newer options default to."""
    return _check(tree, where).model_dump()


def _check(tree: dict[str, Any], where: str) -> Config | EmbedderConfig:
    task = tree.get("task", "separator")
    if not isinstance(task, str) or task not in MODELS:
        raise UserError(f"{where}: task: expected one of {', '.join(MODELS)}, got {task!r}")
    model = MODELS[task]
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(item), model) for item in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def _explain(item: dict[str, Any], model: type[BaseModel]) -> str:
    """One pydantic finding as `key: what was expected, what was there`."""
    # a discriminated union puts the chosen kind into the path; it is no key of the file
    kinds = {name for part in _all_models(model) for name in _kind_names(part)}
    path, unknown = item["loc"], item["type"] == "extra_forbidden"
    last = len(path) - 1
    parts = [str(p) for n, p in enumerate(path) if p not in kinds or (unknown and n == last)]
    key = ".".join(parts)
    if unknown:
        siblings = _fields_at(model, parts[:-1], str(next((p for p in path[:-1] if p in kinds), "")))
        near = difflib.get_close_matches(parts[-1], siblings, 1, 0.6)
        known = "" if near else f" (known here: {', '.join(siblings)})"
        full = [".".join([*parts[:-1], name]) for name in near]
        return f"unknown key '{key}'{_meant(full)}{known}"
    if item["type"].startswith("union_tag"):
        # where there is no kind at all, pydantic does not say which there are
        tags = [tag.strip("'") for tag in item["ctx"].get("expected_tags", "").split(", ") if tag] or kinds
        allowed = ", ".join(sorted(tags))
        return f"{key}.kind: expected one of {allowed}, got {_kind_of(item['input'])!r}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message.replace("List should have", "expected").replace(" after validation, not", ", not")
    if item["type"] == "missing":
        return f"{key}: is missing"
    value = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
    return f"{key}: {message}{value}" if key else message


def _kind_of(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else value


def _all_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [model]
    for field in model.model_fields.values():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                found += _all_models(candidate)
    return found


def _kind_names(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    names = get_args(field.annotation) if field else ()
    return names if len(names) == 1 else ()  # more than one: an option like any other


def _fields_at(root: type[BaseModel], parts: Sequence[str], kind: str) -> list[str]:
    """Names that are allowed below a dotted key."""
    models: list[type[BaseModel]] = [root]
    for part in parts:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [
            candidate
            for field in fields
            for candidate in (field.annotation, *get_args(field.annotation))
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ]
    if kind:
        models = [m for m in models if kind in _kind_names(m)] or models
    return sorted({name for m in models for name in m.model_fields})


def _meant(near: Sequence[str]) -> str:
    return f"; did you mean '{near[0]}'?" if near else ""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every dotted key in which two plain configurations differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


# ---------------------------------------------------------------- scripts


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and names the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        missing = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        return action.help if missing or not action.help else f"{action.help} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see --help)")


def argument_parser(description: str, config_help: str | None = "the configuration, a YAML file") -> _Parser:
    """A parser whose mistakes are UserErrors; it has `-c` unless `config_help` is None."""
    parser = _Parser(description=description, formatter_class=_HelpFormatter)
    if config_help is not None:
        add_config(parser, config_help)
    return parser


def add_config(parser: argparse.ArgumentParser, config_help: str = "the configuration, a YAML file") -> None:
    """Adds `-c` and the overrides, which take all positional arguments that are left."""
    parser.add_argument("-c", "--config", metavar="YAML", help=config_help)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override, e.g. train.batch_size=4"
    )


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides may stand in any order."""
    return parser.parse_intermixed_args(arguments)


IS_RANK = "TORCHELASTIC_RUN_ID"
"""The environment has it in processes that torchrun has started."""


def run_script(main: Callable[[], int | None]) -> None:
    """Runs `main` and exits: 0, or its return value; 2 with one sentence for a mistake of the user's.

    A full disk counts as one; an interruption ends with 130 (Ctrl-C) or 143 (SIGTERM); our own bugs keep
    their traceback (1).
    """
    # besides traces of crashes this gives the signals of this thread, the main one, which gets those for the
    # process, a stack of their own: oneDNN's matrix products (in an LSTM's backward pass on a CPU, say) point
    # the stack pointer into the heap, where the frame of a signal's handler would overwrite what lies there
    # (https://github.com/uxlfoundation/oneDNN/issues/4845)
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    try:
        code = main() or 0
    except UserError as error:
        code = _report(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG):
            code = _report(f"{where}cannot be used ({error.strerror})")
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "what was finished is kept, make room and run again"
            code = _report(f"{where}the disk is full ({error.strerror}); {kept}")
        else:
            raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    if IS_RANK in os.environ:
        # threads of torch.distributed may still be freeing Python objects, and abort a process that closes
        # its interpreter meanwhile (seen in one of twenty)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(sentence: str) -> int:
    """Says it, unless another process that torchrun has started has just said the same."""
    if IS_RANK in os.environ:
        from utils.distributed import first_to_say  # torch is slow to import

        if not first_to_say(sentence):
            return 2
    print(f"ERROR: {sentence}", file=sys.stderr)
    return 2


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)
