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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from config.load import argument_parser, load_config, parse_arguments, run_script
from config.options import check_sounds
from config.schema import Config
from datasets.corpus import Utterance
from datasets.lists import ignored_by_tuples, listed_recipes, read_tuples, tuple_recipes
from datasets.mixture import render
from datasets.plan import SOUNDS, Recordings, SplitPlan, index_recordings, plan_draws, plan_lists
from datasets.recipe import Clip, RecipeFile
from datasets.rooms import ROOMS
from datasets.shards import Features, SplitWriter, Workers, write_recipes, write_shards
from datasets.store import (
    MISSING,
    SPLITS,
    Store,
    open_split,
    open_store,
    read_index,
    require_ours,
    verify_split,
)
from datasets.tables import describe_changes, read_utterances, write_utterances
from model.features import is_readable, reference_embeddings, stored_features
from model.foreign import load_embedder
from model.separator_task import require_trainable
from utils import distributed
from utils.errors import UserError
from utils.files import locked, remove_leftovers, sha256_of, write_csv
from utils.processes import cores

OWN_FILES = ("store", "utterances", "unusable", "missing", "recipes", "index", "embeddings")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    if options.verify:
        return verify(Store(options.verify), options.repair)
    if options.processes < 1:
        raise UserError(f"-p {options.processes}: expected at least one process")
    rank, ranks = place_of(options.rank, options.ranks)
    config = load_config(options.config, [*options.overrides, *as_overrides(options)])
    require_trainable(config)
    if not config.data.corpus:
        raise UserError("no corpus: name a folder of speech with -d or data.corpus")
    lists = named_lists(options)
    if not lists:
        drawn = [sound for sound in ("noise", "music") if config.data.needs(sound)]
        try:
            check_sounds(config.data, drawn, config.data.reverberation)
        except ValueError as error:
            raise UserError(f"{error}; name one there, or with --noise, --music or --rirs") from error
        for name in drawn:
            for place in getattr(config.data, name):
                if not Path(place).exists() and not Path(place.partition(":")[2] or place).exists():
                    raise UserError(f"{place}: no such folder of {name} (data.{name}, --{name})")
    wanted = config.network.embedding == "reference" and not options.no_embeddings
    embedder = load_embedder(options.embedder or config.embedder) if wanted else None
    folder = Path(options.out or config.store.folder)
    if "train" in lists and config.data.mode == "live":
        raise UserError(f"{lists['train'][1]}: a list of training examples is stored, not live (data.mode)")
    require_ours(folder)
    with redirect_stdout(None) if rank else nullcontext():  # rank 0 says the same
        recordings = index_recordings(config.data)
        plans, left_out = plan(config, recordings, lists, folder, options.allow_other_audio)
        with only_writer(folder, rank, ranks):
            missing = generate(
                config, recordings, plans, lists, left_out, folder, options.processes, rank, ranks
            )
            store = Store(folder)
            if embedder is not None and rank == 0:
                # by our own paths: another machine may have written the store's table since
                reference_embeddings(folder, recordings.by_id, references_of(store, plans), embedder)
    counts = ", ".join(f"{name} {split.count}" for name, split in plans.items())
    left = f"; {missing} shards are still to come from the other ranks" if missing else ""
    print(f"{folder}: {f'rank {rank} of {ranks} has finished, ' if ranks > 1 else ''}{counts}{left}")
    return 0


@contextmanager
def only_writer(folder: Path, rank: int, ranks: int) -> Iterator[None]:
    """Holds this rank's lock on the store. Raises UserError while another process is this rank, or others
    share the work out differently."""
    refusal = f"{folder}: another generator.py is writing it"
    with locked(folder / f".lock-{rank}-of-{ranks}", refusal):
        for path in folder.glob(".lock-*-of-*"):
            if not path.name.endswith(f"-of-{ranks}"):
                with locked(path, f"{refusal} with other --ranks ({path.name})"):
                    pass
        yield


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
    add("--repair", action="store_true", help="with --verify: remove the shards that are damaged")
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
    return [
        f"data.{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in said.items()
        if value is not None
    ]


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
            # a list that is none is refused before the corpus is looked through
            read_tuples(lists[split][1]) if kind == "tuples" else RecipeFile(lists[split][1])
    return lists


def plan(
    config: Config,
    recordings: Recordings,
    lists: dict[str, tuple[str, Path]],
    folder: Path,
    allow_other_audio: bool,
) -> tuple[dict[str, SplitPlan], list[tuple[str, int, str, str]]]:
    """Every split that the store will have: the lists', or without any list all three by drawing.

    Also the (split, row, ids, cause) of listed rows that are left out; where nothing is left, they are
    written to missing.csv unless there is a store already.
    """
    if not lists:
        return plan_draws(config.data, recordings), []
    if "tuples" in {kind for kind, _ in lists.values()} and (ignored := ignored_by_tuples(config.data)):
        print(f"NOTE: a list of tuples says what is mixed; ignored are {', '.join(ignored)}")
    by_id, found = recordings.by_id, {}
    for split, (kind, path) in lists.items():
        if kind == "tuples":
            found[split] = tuple_recipes(
                path, split, by_id, config.data, recordings.fingerprint, recordings.unusable
            )
        else:
            found[split] = listed_recipes(path, by_id, allow_other_audio)
        print(found[split].describe(path))
    rows = [(split, *row) for split, listed in found.items() for row in listed.missing]
    none_left = not all(listed.recipes for listed in found.values())
    if none_left and rows and not (folder / "store.json").exists():
        write_missing(folder, rows)
    speaker_of = {name: u.speaker for name, u in by_id.items()}
    return plan_lists(found, speaker_of), rows


def write_missing(folder: Path, rows: list[tuple[str, int, str, str]]) -> None:
    write_csv(folder / "missing.csv", MISSING.strip().split(","), rows)
    print(f"{folder / 'missing.csv'}: the {len(rows)} rows that were left out")


def generate(
    config: Config,
    recordings: Recordings,
    plans: dict[str, SplitPlan],
    lists: dict[str, tuple[str, Path]],
    left_out: list[tuple[str, int, str, str]],
    folder: Path,
    processes: int,
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Writes recipes and this rank's shards of all splits; what an earlier, equal call wrote is kept.

    Returns how many shards are still missing.
    """
    folders = {name: getattr(config.data, name) for name in ("corpus", *SOUNDS)}
    settings: dict[str, Any] = {
        "audio": config.audio.model_dump(),
        "data": config.data.model_dump(exclude=set(folders)),
        "store": config.store.model_dump(exclude={"folder"}),
        "corpus": recordings.fingerprint,
        "lists": {split: f"{kind} {sha256_of(path)[:16]}" for split, (kind, path) in lists.items()},
    }
    if config.data.reverberation.share:
        settings["rooms"] = ROOMS
    splits = {
        name: {"examples": p.count, "speakers": p.speakers, "same_utterance_speakers": p.same_utterance}
        for name, p in plans.items()
    }
    table = folder / "utterances.csv"
    if (folder / "store.json").exists():
        with suppress(UserError):  # a table that is gone or damaged is written again
            if changes := describe_changes(read_utterances(table), recordings.by_kind):
                print(f"NOTE: {folder} was made of other recordings: {changes}")
    open_store(folder, settings, {"splits": splits, "folders": folders})
    for place in (folder, *(folder / name for name in SPLITS)):
        # other ranks may be writing theirs just now
        remove_leftovers(place, OWN_FILES, seconds=0 if ranks == 1 else 3600)
    if lists:
        write_missing(folder, left_out)
    write_utterances(table, recordings.by_kind)
    unusable = [row for p in plans.values() for row in (*p.left_out, *p.short)]
    write_csv(folder / "unusable.csv", ("path", "cause"), [*recordings.unusable, *unusable])
    missing, utterances, own = 0, recordings.by_id, table
    if ranks > 1:  # machines may have the corpora in other places, and write the table over each other's
        own = folder / f".utterances-{rank}.csv"
        write_utterances(own, recordings.by_kind)
    with Workers(own, utterances, processes) as workers:
        for name, split in plans.items():
            print(split.describe())
            if name == "train" and config.data.mode == "live":
                continue
            missing += write_shards(prepare(config, folder / name, split, utterances, rank, ranks), workers)
    if own != table:
        own.unlink()
    return missing


def prepare(
    config: Config, folder: Path, split: SplitPlan, utterances: dict[str, Utterance], rank: int, ranks: int
) -> SplitWriter:
    """Writes the split's recipes and index unless they are there."""
    features = stored_features(config.audio, config.store, scored=split.name != "train")
    front_end = config.audio.model_dump() | config.store.model_dump(exclude={"folder"})
    path, index = folder / "recipes.jsonl", folder / "index.json"
    expected = read_index(index)
    digest = sha256_of(path) if path.exists() else ""
    if digest != expected:
        digest = write_recipes(path, split.recipes, split.count, expected)
    fingerprint = open_split(folder, digest, split.count, front_end)
    announce_size(folder, features, utterances, config)
    return SplitWriter(
        folder, features, config.audio.sample_rate, config.store.shard_size, fingerprint, rank, ranks
    )


def announce_size(folder: Path, features: Features, utterances: dict[str, Utterance], config: Config) -> None:
    """Says how much the split will take, measured on its first example and the lengths of some."""
    recipes = RecipeFile(folder / "recipes.jsonl")
    first = features(render(recipes[0], utterances, config.audio.sample_rate))
    some = [recipes[i].seconds for i in range(0, len(recipes), -(-len(recipes) // 200))]
    mean = sum(some) / len(some) / recipes[0].seconds
    size = sum(value.nbytes for value in first.values()) * mean * len(recipes)
    there = sum(path.stat().st_size for path in folder.glob("shard-*/*.npy"))
    free = shutil.disk_usage(folder).free
    short = f", of which only {free / 1e6:,.0f} MB are free" if size - there > free else ""
    print(f"{folder.name}: about {size / 1e6:,.0f} MB{short}", flush=True)


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


def verify(store: Store, repair: bool = False) -> int:
    """Checks every stored array; raises UserError that names the damaged shards, or with `repair` removes
    them, so that the command that made the store renders them again."""
    splits = [name for name in store.splits if not (name == "train" and store.live)]
    bad = [shard for name in splits for shard in verify_split(store.folder / name)]
    for path in store.folder.glob("embeddings-*.npz"):
        if not is_readable(path):
            print(f"NOTE: {path}: is damaged; the next command that needs it makes it anew")
    if bad and not repair:
        names = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
        raise UserError(
            f"{len(bad)} shards or lists are missing or damaged: {names}; --verify {store.folder} --repair "
            "removes them, and the command that made the store makes them again"
        )
    for path in bad:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{store.folder}: {f'{len(bad)} damaged parts were removed' if bad else 'every shard is intact'}")
    return 0


if __name__ == "__main__":
    run_script(main)
