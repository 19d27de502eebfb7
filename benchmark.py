"""Measures how fast, how large and how good things can be.

    python benchmark.py generator -c config/voicefilter.yaml -d LibriSpeech
    python benchmark.py embedder -d LibriSpeech -e resemblyzer -e chkpt/NAME/best.pt
    python benchmark.py masks --data data/store
    python benchmark.py trainer -c config/voicefilter.yaml --data data/store
    python benchmark.py inference -c config/voicefilter.yaml

generator: seconds a mixture for each stage (decoding alone is the floor), mixtures a second of the whole
command with one process, megabytes an example, and time and memory as the number of mixtures grows.
embedder: milliseconds an utterance, one by one and batched, in fp32 and bf16.
masks: scores of ideal masks on the mixtures of a store's test split, which bound what can be learnt.
trainer: a step on a store beside the earlier implementation's and the machine's floor.
inference: real-time factor and peak memory of whole commands, from seconds to an hour.
scoring: SDR, SIR and SAR of an utterance, beside mir_eval.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import generator
from config.load import add_config, argument_parser, load_config, parse_arguments, run_script
from config.schema import Audio, Config
from datasets.corpus import index_corpus
from datasets.mixture import read_clip, render
from datasets.plan import index_recordings, plan_draws
from datasets.store import Store
from model.features import stored_features
from model.oracle import score_ideal_masks
from model.scoring import METRICS, score_mixtures
from model.spectral import Spectral
from scripts.embedder_benchmark import embedder_markdown, measure_embedders
from scripts.inference_benchmark import inference_markdown, measure_inference, memory_picture
from scripts.memory import peak_memory
from scripts.scoring_benchmark import measure_scoring, scoring_markdown
from scripts.trainer_benchmark import measure_trainer, trainer_markdown
from utils.device import choose_device
from utils.errors import UserError
from utils.files import require_writable, write_json
from utils.plots import save_picture


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    parser.add_argument("what", choices=list(MEASUREMENTS))
    add_config(parser)
    parser.add_argument("-d", "--corpus", action="append", metavar="DIR", help="corpus folder")
    parser.add_argument("-n", "--mixtures", default="1000,5000,20000", help="sizes of the store to compare")
    parser.add_argument("-e", "--embedder", action="append", help="embedder to time (may be repeated)")
    parser.add_argument("-s", "--seconds", help="of utterances (1.6,3,6,15) or recordings (3,30,300,3600)")
    parser.add_argument("--utterances", type=int, default=500, help="how many are embedded")
    parser.add_argument("--data", metavar="STORE", help="store of the masks (test split) or of the steps")
    parser.add_argument("--steps", type=int, default=10, help="steps of the trainer that are timed")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N] (not of generator and masks)")
    parser.add_argument("-o", "--out", help="the figures as JSON (default: results/benchmark-WHAT.json)")
    parser.add_argument("--plot", metavar="PNG", help="inference: picture of the memory over time")
    parser.add_argument("--scratch", help="folder for the stores, which are removed (default: the system's)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parse_arguments(parser, arguments)
    if options.measure:  # a process of its own, started by `measure`
        print(json.dumps(measure_command(corpus_config(options), Path(options.measure))))
        return 0
    measured, text = MEASUREMENTS[options.what]
    if options.plot and options.what != "inference":
        raise UserError(f"--plot {options.plot}: has no effect on {options.what}")
    out = options.out or f"results/benchmark-{options.what}.json"
    for place in filter(None, (out, options.plot)):
        require_writable(place)
    figures = measured(options)
    print(text(figures))
    write_json(out, figures)
    if options.plot:
        save_picture(options.plot, memory_picture(figures))
    return 0


def corpus_config(options: argparse.Namespace) -> Config:
    """The configuration with the corpora of -d. Raises UserError without any."""
    overrides = [*options.overrides]
    if options.corpus:
        overrides.append(f"data.corpus={json.dumps(options.corpus)}")
    config = load_config(options.config, overrides)
    if not config.data.corpus:
        raise UserError("no corpus: name a folder of speech with -d or data.corpus")
    return config


def time_generator(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every stage, and time and memory as the number of mixtures grows."""
    config = corpus_config(options)
    overrides = [*options.overrides, f"data.corpus={json.dumps(config.data.corpus)}"]
    sizes = [round(number) for number in numbers("-n", options.mixtures)]
    figures: dict[str, Any] = {"machine": machine(), "stages": stages(config), "growth": []}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as scratch:
            figures["growth"].append(measure(options, overrides, size, scratch))
    return figures


def time_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of inference.py on recordings of several lengths, see `measure_inference`."""
    lengths = numbers("-s", options.seconds or "3,30,300,3600")
    config, (embedder, *_) = load_config(options.config, options.overrides), options.embedder or [None]
    device = choose_device(options.device)
    return {"machine": machine(), **measure_inference(config, lengths, device, embedder)}


def numbers(option: str, text: str) -> list[float]:
    """`1000,20000` -> both. Raises UserError for anything else."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < 1e9 for number in found):
        raise UserError(f"{option} {text}: expected numbers such as 1000,20000")
    return found


def machine() -> str:
    """The processor's name and the number of processors."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads of PyTorch"


def stages(config: Config, count: int = 500) -> dict[str, float]:
    """Milliseconds a mixture of each stage by itself, in one process with one thread, after a warm-up."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    recordings = index_recordings(config.data)
    found = {"index, once for the corpus (s)": time.perf_counter() - start}
    drawer = plan_draws(config.data, recordings)["train"].drawer
    assert drawer is not None
    utterances, rate = recordings.by_id, config.audio.sample_rate
    features = stored_features(config.audio, config.store, scored=False)
    recipes = [drawer.draw(index) for index in range(count)]
    clips = [[clip for source in recipe.sources for clip in source.clips] for recipe in recipes]
    examples = [render(recipe, utterances, rate) for recipe in recipes]

    def decode(row: int) -> None:
        for clip in clips[row]:
            read_clip(clip, utterances[clip.utterance], rate)

    found["draw"] = _milliseconds(drawer.draw, count)
    found["decode alone (the floor)"] = _milliseconds(decode, count)
    found["decode and mix"] = _milliseconds(lambda row: render(recipes[row], utterances, rate), count)
    found[f"features ({config.store.kind})"] = _milliseconds(lambda row: features(examples[row]), count)
    found["decode, mix and features"] = _milliseconds(
        lambda row: features(render(recipes[row], utterances, rate)), count
    )
    return found


def _milliseconds(work: Callable[[int], object], count: int) -> float:
    for row in range(min(20, count)):
        work(row)
    start = time.perf_counter()
    for row in range(count):
        work(row)
    return 1e3 * (time.perf_counter() - start) / count


def measure(
    options: argparse.Namespace, overrides: Sequence[str], size: int, scratch: str
) -> dict[str, float]:
    """The whole command with one process, in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "generator", "--measure", f"{scratch}/store"]
    command += ["-c", options.config] if options.config else []
    few = ["data.validation.examples=1", "data.test.examples=1"]
    result = subprocess.run(
        [*command, *overrides, f"data.train={size}", *few], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UserError(f"{size} mixtures: {result.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(result.stdout.strip().splitlines()[-1])
    return {"mixtures": size, **found}


def measure_command(config: Config, folder: Path) -> dict[str, float]:
    """Seconds of rendering, bytes an example and this process' peak memory in bytes."""
    torch.set_num_threads(1)
    recordings = index_recordings(config.data)
    plans = plan_draws(config.data, recordings)
    start = time.perf_counter()
    generator.generate(config, recordings, plans, {}, [], folder, 1)
    seconds = time.perf_counter() - start
    peak = peak_memory()
    split = Store(folder).split("train")
    stored = sum(path.stat().st_size for path in (folder / "train").rglob("*.npy"))
    count = len(split)
    shutil.rmtree(folder)
    return {"seconds": seconds, "bytes": stored / count, "peak_memory": peak}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as two small tables."""
    lines = [figures["machine"], "", "| stage | ms a mixture |", "|---|---|"]
    for name, value in figures["stages"].items():
        lines.append(f"| {name} | {value:.2f} |")
    lines += ["", "| mixtures | seconds | mixtures/s (1 process) | MB an example | peak memory MB |"]
    lines.append("|---|---|---|---|---|")
    for row in figures["growth"]:
        rate, megabytes = row["mixtures"] / row["seconds"], row["bytes"] / 1e6
        peak = row["peak_memory"] / 1e6
        lines.append(
            f"| {row['mixtures']} | {row['seconds']:.1f} | {rate:.0f} | {megabytes:.3f} | {peak:.0f} |"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- the rest


def time_embedders(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of embedders on the first utterances of a corpus, see `measure_embedders`."""
    if not options.corpus or options.utterances < 1:
        raise UserError("the utterances to embed: name a corpus with -d, and at least 1 with --utterances")
    utterances = index_corpus(options.corpus).utterances[: options.utterances]
    lengths, device = numbers("-s", options.seconds or "1.6,3,6,15"), choose_device(options.device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    found = measure_embedders(options.embedder or ["resemblyzer"], utterances, lengths, device)
    return {"machine": what, **found}


def time_trainer(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a training step on a store, see `measure_trainer`."""
    if not options.data:
        raise UserError("the examples of the steps: name a store with --data")
    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: expected at least 1")
    overrides = [*options.overrides, f"store.folder={options.data}"]
    config = load_config(options.config, overrides)
    if options.embedder:
        config = config.model_copy(update={"embedder": options.embedder[0]})
    device = choose_device(options.device)
    return {
        "machine": machine(),
        **measure_trainer(config, options.steps, max(1, options.steps // 5), device),
    }


def score_masks(options: argparse.Namespace) -> dict[str, Any]:
    """Mean SDR and SI-SDR in dB of the mixtures and of every ideal mask, at the store's front end."""
    if not options.data:
        raise UserError("the mixtures to separate: name a store with --data")
    store = Store(options.data)
    split, audio = store.split("test"), Audio(**store.settings["audio"])
    spectral = Spectral(audio.n_fft, audio.hop_length, audio.win_length, audio.pad_mode)
    chosen = [row for row, recipe in enumerate(split.recipes) if recipe.role == "mixture"]
    if not chosen:
        raise UserError(f"{store.folder}: its test split holds no mixture to separate")
    scores = {"mixture": score_mixtures(split), **score_ideal_masks(split, spectral)}
    rows = [
        {"mask": name, **{metric: float(values[metric][chosen].mean()) for metric in METRICS}}
        for name, values in scores.items()
    ]
    return {"store": str(store.folder), "n": len(chosen), "audio": audio.model_dump(), "rows": rows}


def masks_markdown(figures: dict[str, Any]) -> str:
    audio = figures["audio"]
    lines = [
        f"{figures['n']} mixtures of {figures['store']}, n_fft {audio['n_fft']}, hop {audio['hop_length']}, "
        f"window {audio['win_length']}, {audio['sample_rate']} Hz",
        "",
        "| ideal mask | SDR mean, dB | SI-SDR mean, dB |",
        "|---|---|---|",
    ]
    lines += [f"| {row['mask']} | {row['sdr']:.2f} | {row['si_sdr']:.2f} |" for row in figures["rows"]]
    return "\n".join(lines)


MEASUREMENTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[Any], str]]] = {
    "generator": (time_generator, markdown),
    "embedder": (time_embedders, embedder_markdown),
    "masks": (score_masks, masks_markdown),
    "trainer": (time_trainer, trainer_markdown),
    "inference": (time_inference, inference_markdown),
    "scoring": (lambda options: {"machine": machine(), **measure_scoring()}, scoring_markdown),
}


if __name__ == "__main__":
    run_script(main)
