"""`make demo`: corpus -> store -> training -> scores -> one separated voice, by the real commands.

Beside the network that is trained within minutes stand the weights that come with this project. Every command
is printed before it runs, and each one reuses what an earlier run finished.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from config.load import argument_parser, load_config, parse_arguments, run_script
from datasets.download import choose_corpus
from model.shipped import DEFAULT, shipped_weights
from scripts.commands import command
from utils.files import fingerprint, read_json

COMPARISON = "comparison-test.md"
CONFIG, DEBIAN_CONFIG = "config/compact.yaml", "config/demo-debian.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("Runs the main job end to end.", config_help=None)
    parser.add_argument(
        "--corpus", metavar="DIR", help="a corpus in LibriSpeech layout (CORPUS= of make demo)"
    )
    parser.add_argument("--data", default="data", help="folder for downloads and the store")
    parser.add_argument("-o", "--out", default="demo", help="folder for the results")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parse_arguments(parser, arguments)
    start = time.monotonic()
    data, out = Path(options.data), Path(options.out)
    given = Path(options.corpus) if options.corpus else None
    corpus, description = choose_corpus(given, data)
    print(f"corpus: {corpus}: {description}\n", flush=True)
    config = DEBIAN_CONFIG if corpus.name == "debian-voices" else CONFIG
    settings = load_config(config, options.overrides).model_dump()
    # another corpus or other settings get a store and a run of their own
    name = f"demo-{fingerprint([str(corpus.resolve()), settings])[:8]}"
    store = data / name
    checkpoint = Path("chkpt") / name / "best.pt"
    results = out / name

    command("generator.py", "-c", config, "-d", str(corpus), "-o", str(store), *options.overrides)
    command("trainer.py", "-c", config, "-m", name, *options.overrides, f"store.folder={store}")
    command(
        "evaluate.py", str(checkpoint), str(shipped_weights()), "--data", str(store), "-o", str(results),
        "--save_audio", "median",
    )  # fmt: skip
    scores = results / f"{name}-best-test"
    example = scores / "audio" / "median"  # neither the best nor the worst: what to expect
    asked = ("-m", str(example / "mixture.wav"), "-r", str(example / "reference.wav"))
    for weights, place in ((("--checkpoint_path", str(checkpoint)), results), ((), results / DEFAULT)):
        command(
            "inference.py", *weights, *asked, "--target", str(example / "target.wav"), "-o", str(place),
            "--plot", "--keep", "residual",
        )  # fmt: skip
    finish(results, scores, store, corpus, time.monotonic() - start)
    return 0


def finish(results: Path, scores: Path, store: Path, corpus: Path, seconds: float) -> None:
    """Says what came out, and where it lies."""
    summary = read_json(scores / "summary.json")
    speakers = read_json(store / "store.json")["splits"]["train"]["speakers"]
    print(f"Trained on {corpus}; {(scores / 'summary.md').read_text()}")
    print(f"Beside the weights that come with this project:\n\n{(results / COMPARISON).read_text()}")
    print(f"Done in {seconds / 60:.1f} minutes. To listen and to look:")
    for path in (
        scores / "audio" / "median" / "mixture.wav",
        scores / "audio" / "median" / "reference.wav",
        results / "estimate.wav",
        results / "residual.wav",
        results / "spectrograms.png",
        results / DEFAULT / "estimate.wav",
        results / DEFAULT / "spectrograms.png",
        scores / "per_utterance.csv",
        results / COMPARISON,
    ):
        print(f"  {path}")
    if summary.get("si_sdr_improvement_low", summary["si_sdr_improvement_mean"]) <= 0:
        print(
            "NOTE: these scores show no improvement: the training speakers "
            f"({len(speakers)}) taught the network nothing about the test speakers."
        )


if __name__ == "__main__":
    run_script(main)
