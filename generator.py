"""Precomputes training, validation and test mixtures: corpus -> recipes -> STFT shards -> embeddings.

python generator.py -c config/voicefilter.yaml -d LibriSpeech -o data/store
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from config.load import argument_parser, load_config, parse_arguments, run_script
from config.schema import Config
from datasets.corpus import Corpus, index_corpus, split_speakers
from datasets.mixture import Drawer
from datasets.store import SPLITS, Store, write_settings, write_split
from model.features import StftFeatures, reference_embeddings
from model.foreign import load_embedder
from utils import distributed
from utils.errors import UserError
from utils.files import fingerprint


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "")
    parser.add_argument(
        "-d", "--corpus", action="append", metavar="DIR", help="corpus folder (may be repeated)"
    )
    parser.add_argument("-o", "--out", metavar="STORE", help="the store's folder (default: data.store)")
    parser.add_argument("-p", "--processes", type=int, default=os.cpu_count(), help="rendering processes")
    parser.add_argument("-e", "--embedder", help="`resemblyzer` or an embedder file (default: from the YAML)")
    parser.add_argument("--no-embeddings", action="store_true", help="leave the references to trainer.py")
    parser.add_argument(
        "--verify", metavar="STORE", help="only check every shard of a store against its sha256"
    )
    options = parse_arguments(parser, arguments)
    if options.verify:
        return verify(Store(options.verify))
    if options.processes < 1:
        raise UserError(f"-p {options.processes}: expected at least one process")
    config = load_config(options.config, options.overrides)
    roots = options.corpus or config.data.corpus
    if not roots:
        raise UserError("no corpus: name a folder of speech with -d or data.corpus")
    embedder = None if options.no_embeddings else load_embedder(options.embedder or config.embedder)
    distributed.start(torch.device("cpu"))
    store = generate(config, index_corpus(roots), Path(options.out or config.data.store), options.processes)
    if embedder is not None and distributed.is_main():
        for split in SPLITS:
            reference_embeddings(store, store.split(split), embedder)
    distributed.stop()
    print(f"{store.folder}: " + ", ".join(f"{name} {store.report['examples'][name]}" for name in SPLITS))
    return 0


def generate(config: Config, corpus: Corpus, folder: Path, processes: int) -> Store:
    """Draws and renders all splits into `folder`; what an earlier, equal call rendered is kept."""
    data = config.data
    print(f"corpus: {corpus.describe()}")
    by_speaker = corpus.by_speaker()
    splits = split_speakers(
        sorted(by_speaker),
        data.seed,
        {name: (part.speakers, part.speaker_ids) for name, part in evaluated(config).items()},
    )
    drawers = {name: Drawer(name, {s: by_speaker[s] for s in splits[name]}, data) for name in SPLITS}
    counts = {"train": data.train, **{name: part.examples for name, part in evaluated(config).items()}}
    recipes = {name: [drawers[name].draw(index) for index in range(counts[name])] for name in SPLITS}
    used = sorted({u for name in SPLITS for u in splits[name]})
    report: dict[str, Any] = {
        "speakers": {name: sorted(drawers[name].voices) for name in SPLITS},
        "examples": counts,
        "same_utterance_speakers": {name: drawers[name].same_utterance for name in SPLITS},
        "speakers_left_out": {name: len(drawers[name].unusable) for name in SPLITS},
        "fingerprints": {name: fingerprint([r.to_line() for r in recipes[name]]) for name in SPLITS},
    }
    settings = {
        "audio": config.audio.model_dump(),
        "data": data.model_dump(exclude={"corpus", "store"}),
        "corpus": corpus.fingerprint,
    }
    utterances = {u.id: u for speaker in used for u in by_speaker[speaker]}
    if distributed.is_main():
        write_settings(folder, settings, list(utterances.values()), report)
        left_out = [row for name in SPLITS for row in drawers[name].unusable]
        Corpus((), corpus.unusable + tuple(left_out), "").write_unusable(folder / "unusable.csv")
    distributed.barrier()
    for name in SPLITS:
        describe_split(name, splits[name], drawers[name])
        features = StftFeatures(config.audio, data.cosine, waveforms=name != "train")
        write_split(
            folder / name,
            recipes[name],
            utterances,
            features,
            config.audio.sample_rate,
            data.shard_size,
            processes,
        )
    distributed.barrier()
    return Store(folder)


def evaluated(config: Config) -> dict[str, Any]:
    """The splits that are scored."""
    return {"validation": config.data.validation, "test": config.data.test}


def describe_split(name: str, speakers: Sequence[str], drawer: Drawer) -> None:
    parts = [f"{len(drawer.voices)} speakers"]
    if drawer.unusable:
        parts.append(f"{len(drawer.unusable)} of {len(speakers)} left out (listed in unusable.csv)")
    if drawer.same_utterance:
        parts.append(
            f"{drawer.same_utterance} have one utterance: their reference is its other half (an easier task)"
        )
    print(f"{name}: {'; '.join(parts)}")


def verify(store: Store) -> int:
    bad = [path for name in SPLITS for path in store.split(name).verify()]
    if bad:
        raise UserError(
            f"{len(bad)} arrays are damaged: {', '.join(bad)}; remove their shard folders, run again"
        )
    print(f"{store.folder}: every shard is intact")
    return 0


if __name__ == "__main__":
    run_script(main)
