"""Precomputes training, validation and test mixtures: corpus -> recipes -> shards -> embeddings.

    python generator.py -c config/voicefilter.yaml -d LibriSpeech -o data/store

Interrupted, the same command goes on. On several machines: torchrun, or --rank and --ranks in an array of
jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.load import argument_parser, load_config, parse_arguments, run_script
from config.schema import Config
from datasets.corpus import Utterance
from datasets.lists import listed_recipes, tuple_recipes
from datasets.mixture import render
from datasets.plan import SOUNDS, Recordings, SplitPlan, index_recordings, plan_draws, plan_list
from datasets.recipe import Clip, RecipeFile
from datasets.shards import SplitWriter, Workers, write_recipes, write_shards
from datasets.store import SPLITS, Store, open_split, open_store, write_utterances
from model.features import reference_embeddings, stored_features
from model.foreign import load_embedder
from utils import distributed
from utils.errors import UserError
from utils.files import locked, read_json, remove_leftovers, sha256_of, write_csv
from utils.processes import cores

OWN_FILES = ("store", "utterances", "unusable", "missing", "recipes", "index", "embeddings")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    if options.verify:
        return verify(Store(options.verify))
    if options.processes < 1:
        raise UserError(f"-p {options.processes}: expected at least one process")
    rank, ranks = place_of(options.rank, options.ranks)
    config = load_config(options.config, [*options.overrides, *as_overrides(options)])
    if not config.data.corpus:
        raise UserError("no corpus: name a folder of speech with -d or data.corpus")
    embedder = None if options.no_embeddings else load_embedder(options.embedder or config.embedder)
    folder = Path(options.out or config.store.folder)
    lists = named_lists(options)
    with locked(folder / f".lock-{rank}-of-{ranks}", f"{folder}: another generator.py is writing it"):
        for place in (folder, *(folder / name for name in SPLITS)):
            # other ranks may be writing theirs just now
            remove_leftovers(place, OWN_FILES, seconds=0 if ranks == 1 else 3600)
        recordings = index_recordings(config.data)
        plans = plan(config, recordings, lists, folder, options.allow_other_audio)
        missing = generate(config, recordings, plans, lists, folder, options.processes, rank, ranks)
        store = Store(folder)
        if embedder is not None and rank == 0:
            reference_embeddings(folder, store.utterances, references_of(store, plans), embedder)
    counts = ", ".join(f"{name} {split.count}" for name, split in plans.items())
    left = f"; {missing} shards are left to the other ranks" if missing else ""
    print(f"{folder}: {counts}{left}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__ or "")
    add = parser.add_argument
    add("-d", "--corpus", action="append", metavar="DIR", help="corpus folder or manifest (may be repeated)")
    add("-v", "--voxceleb", action="append", default=[], metavar="DIR", help="a VoxCeleb folder, like -d")
    for kind in SOUNDS:
        add(f"--{kind}", action="append", metavar="DIR", help=f"folder of {kind} (may be repeated)")
    add("-o", "--out", metavar="STORE", help="the store's folder (default: store.folder)")
    add("-p", "--processes", type=int, default=default_processes(), help="rendering processes")
    add("--rank", type=int, help="this machine's number, from 0 (default: torchrun's RANK)")
    add("--ranks", type=int, help="number of machines that share the work (default: torchrun's WORLD_SIZE)")
    add("-e", "--embedder", help="`resemblyzer` or an embedder file (default: from the YAML)")
    add("--no-embeddings", action="store_true", help="leave the references to trainer.py")
    add("--tuples", action="append", default=[], metavar="[SPLIT=]CSV",
        help="render a tuple list in the official format, as split test unless another is named")  # fmt: skip
    add("--recipes", action="append", default=[], metavar="[SPLIT=]JSONL", help="render a list of recipes")
    add("--allow_other_audio", action="store_true", help="render recipes although the audio has changed")
    add("--vad", choices=["0", "1"], help="1: join the stretches with sound (data.vad=merge)")
    add("--reverse_data", type=true_or_false, metavar="True|False", help="data.reverse")
    add("--train_size", type=int, metavar="N", help="data.train")
    add("--test_size", type=int, metavar="N", help="data.test.examples")
    add("--only_dev", type=true_or_false, metavar="True|False", help="only LibriSpeech's dev-* subsets")
    add("--verify", metavar="STORE", help="only check every shard of a store against its sha256")
    return parser


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"expected True or False, got '{text}'")
    return text.lower() in ("true", "1", "yes")


def default_processes() -> int:
    """The processors of this machine, divided by torchrun's processes on it."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def place_of(rank: int | None, ranks: int | None) -> tuple[int, int]:
    """(number of this process, of all processes) as named, or as torchrun's environment has them."""
    if (rank is None) != (ranks is None):
        raise UserError("--rank and --ranks belong together: give both")
    if rank is None or ranks is None:
        rank, ranks = distributed.rank(), distributed.world_size()
    if not 0 <= rank < ranks:
        raise UserError(f"--rank {rank} of --ranks {ranks}: expected 0 to {ranks - 1}")
    return rank, ranks


def as_overrides(options: argparse.Namespace) -> list[str]:
    """What the command line's options say of the data section, as overrides."""
    said: dict[str, Any] = {kind: getattr(options, kind) for kind in SOUNDS}
    said["corpus"] = [*(options.corpus or ()), *options.voxceleb] or None
    said["vad"] = {"0": "none", "1": "merge", None: None}[options.vad]
    said["reverse"], said["train"] = options.reverse_data, options.train_size
    said["test.examples"] = options.test_size
    said["subsets"] = ["dev-*"] if options.only_dev else None
    return [f"data.{key}={json.dumps(value)}" for key, value in said.items() if value is not None]


def named_lists(options: argparse.Namespace) -> dict[str, tuple[str, Path]]:
    """Split -> (`tuples` or `recipes`, file) of the lists on the command line."""
    lists: dict[str, tuple[str, Path]] = {}
    for kind in ("tuples", "recipes"):
        for text in getattr(options, kind):
            split, equals, path = text.partition("=")
            if not equals or split not in SPLITS:
                split, path = "test", text
            if split in lists:
                raise UserError(f"--{kind} {text}: the split {split} already has a list, {lists[split][1]}")
            lists[split] = (kind, Path(path))
    return lists


def plan(
    config: Config,
    recordings: Recordings,
    lists: dict[str, tuple[str, Path]],
    folder: Path,
    allow_other_audio: bool,
) -> dict[str, SplitPlan]:
    """Every split that the store will have: the lists', or without any list all three by drawing.

    Rows of lists without audio are counted on screen and written to missing.csv.
    """
    if not lists:
        return plan_draws(config.data, recordings)
    by_id, found = recordings.by_id, {}
    for split, (kind, path) in lists.items():
        if kind == "tuples":
            found[split] = tuple_recipes(path, split, by_id, config.data, recordings.fingerprint)
        else:
            found[split] = listed_recipes(path, by_id, allow_other_audio)
        print(found[split].describe(path))
    rows = [(split, *row) for split, listed in found.items() for row in listed.missing]
    if rows:
        write_csv(folder / "missing.csv", ("split", "row", "utterances", "cause"), rows)
        print(f"{folder / 'missing.csv'}: the {len(rows)} rows that were left out")
    speaker_of = {name: u.speaker for name, u in by_id.items()}
    return {split: plan_list(split, found[split], speaker_of) for split in SPLITS if split in found}


def generate(
    config: Config,
    recordings: Recordings,
    plans: dict[str, SplitPlan],
    lists: dict[str, tuple[str, Path]],
    folder: Path,
    processes: int,
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Writes recipes and this rank's shards of all splits; what an earlier, equal call wrote is kept.

    Returns how many shards are still missing.
    """
    folders = {name: getattr(config.data, name) for name in ("corpus", *SOUNDS)}
    settings = {
        "audio": config.audio.model_dump(),
        "data": config.data.model_dump(exclude=set(folders)),
        "store": config.store.model_dump(exclude={"folder"}),
        "corpus": recordings.fingerprint,
        "lists": {split: f"{kind} {sha256_of(path)[:16]}" for split, (kind, path) in lists.items()},
    }
    splits = {
        name: {"examples": p.count, "speakers": p.speakers, "same_utterance_speakers": p.same_utterance}
        for name, p in plans.items()
    }
    open_store(folder, settings, {"splits": splits, "folders": folders})
    left_out = [row for p in plans.values() for row in p.left_out]
    write_utterances(folder / "utterances.csv", dict(recordings.by_kind))
    write_csv(folder / "unusable.csv", ("path", "cause"), [*recordings.unusable, *left_out])
    missing, utterances = 0, recordings.by_id
    with Workers(utterances, processes) as workers:
        for name, split in plans.items():
            print(split.describe())
            if name == "train" and config.data.mode == "live":
                continue
            missing += write_shards(prepare(config, folder / name, split, utterances, rank, ranks), workers)
    return missing


def prepare(
    config: Config, folder: Path, split: SplitPlan, utterances: dict[str, Utterance], rank: int, ranks: int
) -> SplitWriter:
    """Writes the split's recipes and index unless they are there."""
    features = stored_features(config.audio, config.store, scored=split.name != "train")
    front_end = config.audio.model_dump() | config.store.model_dump(exclude={"folder"})
    path, index = folder / "recipes.jsonl", folder / "index.json"
    expected = read_json(index)["recipes"] if index.exists() else None
    digest = sha256_of(path) if path.exists() else ""
    if digest != expected:
        digest = write_recipes(path, split.recipes, split.count, expected)
    fingerprint = open_split(folder, digest, split.count, front_end)
    first = features(render(RecipeFile(path)[0], utterances, config.audio.sample_rate))
    size = sum(value.nbytes for value in first.values()) * split.count
    free = shutil.disk_usage(folder).free
    short = f", of which only {free / 1e9:.1f} GB are free" if size > free else ""
    print(f"{split.name}: about {size / 1e9:.2f} GB{short}", flush=True)
    return SplitWriter(
        folder, features, config.audio.sample_rate, config.store.shard_size, fingerprint, rank, ranks
    )


def references_of(store: Store, plans: dict[str, SplitPlan]) -> list[Clip]:
    """Every reference of the store's examples, those of live training included, each once."""
    clips: dict[Clip, None] = {}
    for name, split in plans.items():
        if name == "train" and store.live and split.drawer:
            clips |= dict.fromkeys(split.drawer.references())
        else:
            recipes = RecipeFile(store.folder / name / "recipes.jsonl")
            clips |= dict.fromkeys(recipe.reference for recipe in recipes)
    return list(clips)


def verify(store: Store) -> int:
    """Checks every stored array; raises UserError that names the damaged ones."""
    splits = [store.split(name) for name in store.splits if not (name == "train" and store.live)]
    bad = [path for split in splits for path in split.verify()]
    if bad:
        raise UserError(
            f"{len(bad)} arrays are damaged: {', '.join(bad)}; remove their shard folders, run again"
        )
    print(f"{store.folder}: every shard is intact")
    return 0


if __name__ == "__main__":
    run_script(main)
