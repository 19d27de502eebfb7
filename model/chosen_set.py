"""The test set that evaluate.py's options name: a split of a store, or a list of tuples or recipes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.schema import Data
from datasets.lists import listed_recipes, tuple_recipes
from datasets.live import RenderedSplit
from datasets.plan import SOUNDS, index_recordings
from datasets.store import Store
from model.separator import Separator
from model.test_set import TestSet
from utils.errors import UserError
from utils.files import write_csv


def removes_voice(separator: Separator, mask: str) -> bool:
    """Whether its output is everything but the reference's voice: so trained, or the mask turned round."""
    return separator.config.data.reverse != (mask != "org")


def stored_set(store: Store, name: str) -> TestSet:
    """The split of that name. Raises UserError where the store has none, or an incomplete one."""
    data, rate = store.settings["data"], store.settings["audio"]["sample_rate"]
    listed = store.settings["lists"].get(name, "")
    protocol = "list of recipes" if listed.startswith("recipes") else describe_protocol(data)
    split = store.split(name)
    return TestSet(str(store.folder), name, split, store.utterances, rate, protocol, store.folder)


def listed_set(options: argparse.Namespace, separators: Mapping[str, Separator], rate: int) -> TestSet:
    """A tuple or recipe list, rendered while it is scored; rows without audio are listed in missing-LIST.csv.

    What is asked for is what the checkpoints give; of tuples the references' length, and with the protocol
    crop `seconds`, are those of their training. Raises UserError when these differ.
    """
    if not options.corpus:
        raise UserError("the audio of the list: name its corpus with -d")
    path, out = Path(options.tuples or options.recipes), Path(options.out)
    if not path.is_file():
        raise UserError(f"{path}: no such list")
    trained = [
        separator.config.data.model_dump(include={"reference", "seconds"})
        | {"reverse": removes_voice(separator, options.mask)}
        for separator in separators.values()
    ]
    tasks = [_task(task, options) for task in trained]
    if any(task != tasks[0] for task in tasks):
        raise UserError(f"the checkpoints have different tasks ({tasks}): score them one by one")
    folders = {kind: getattr(options, kind) for kind in SOUNDS}
    data = Data(corpus=options.corpus, protocol=options.protocol, **folders, **trained[0])
    recordings = index_recordings(data)
    utterances = recordings.by_id
    if options.tuples:
        unusable = recordings.unusable
        listed = tuple_recipes(path, "test", utterances, data, recordings.fingerprint, unusable)
    else:
        listed = listed_recipes(path, utterances)
        asked = [replace(recipe, reverse=trained[0]["reverse"]) for recipe in listed.recipes]
        listed = replace(listed, recipes=asked)
    print(listed.describe(path))
    left_out = out / f"missing-{path.stem}.csv"
    write_csv(left_out, ("row", "utterances", "cause"), listed.missing)
    print(f"{left_out}: the {len(listed.missing)} rows that were left out")
    if not listed.recipes:
        raise UserError(f"{path}: none of its {len(listed.missing)} rows can be rendered, see {left_out}")
    protocol = describe_protocol(data.model_dump()) if options.tuples else "list of recipes"
    rows = len(listed.recipes) + len(listed.missing)
    protocol += f", {len(listed.recipes)} of {rows} rows" if listed.missing else ""
    split = RenderedSplit(listed.recipes, utterances, rate)
    return TestSet(str(path), path.stem, split, utterances, rate, protocol, out)


def _task(trained: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What of a checkpoint's training decides which examples it is scored on."""
    found = {"reverse": trained["reverse"]}
    if options.tuples:
        found["reference.max_seconds"] = trained["reference"]["max_seconds"]
    if options.tuples and options.protocol == "crop":
        found["seconds"] = trained["seconds"]
    return found


def describe_protocol(data: Mapping[str, Any]) -> str:
    if data["protocol"] == "padded":
        return "protocol padded, whole utterances"
    return f"protocol crop {data['seconds']:g} s"
