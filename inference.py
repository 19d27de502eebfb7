"""Separates one voice: mixture and reference in, estimate and residual out.

    python inference.py -m mixed.wav -r reference.wav -o out
    python inference.py --checkpoint_path chkpt_55000.pt -e embedder.pt -m mixed.wav -r reference.wav -o out

A checkpoint of this project carries its configuration, its front end and its embedder; those of the public
VoiceFilter re-implementation, its forks, VoiceSplit and ailia (ONNX) need the embedder beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from config.load import argument_parser, load_config, parse_arguments, run_script
from model.embedder import Embedder
from model.foreign import load_embedder
from model.foreign_separators import foreign_from_content, is_foreign, read_foreign
from model.foreign_settings import Settings, settings_file
from model.masks import add_mask_options, chosen_masking
from model.reference import read_reference
from model.separator import CHUNK_SECONDS, FORMAT, Separator
from utils.audio import level_db, read_audio, read_mono, resample, write_audio
from utils.checkpoint import load_checkpoint
from utils.device import choose_device
from utils.errors import UserError
from utils.metrics import si_sdr
from utils.plots import save_picture, spectrogram_figure


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(_parser(), arguments)
    out = Path(options.out_dir)
    for result in (out / "estimate.wav", out / "residual.wav"):
        for given in (options.mixed_file, *options.reference_file, options.target):
            if given and result.resolve() == Path(given).resolve():
                raise UserError(f"{given}: would be overwritten by the result; name another folder with -o")
    path = Path(options.checkpoint_path) if options.checkpoint_path else newest_checkpoint(Path("chkpt"))
    separator = load_separator(path, options).to(choose_device(options.device))
    separator.masking = chosen_masking(separator.masking, options)
    mixture, rate = read_audio(options.mixed_file)
    target = read_mono(options.target, rate) if options.target else None
    if target is not None and len(target) != mixture.shape[1]:
        raise UserError(
            f"{options.target}: {len(target)} samples, the mixture has {mixture.shape[1]} at {rate} Hz"
        )
    embedding = embed(separator, path, options.reference_file)
    estimate = separate(separator, mixture, rate, embedding)
    if not np.isfinite(estimate).all():
        raise UserError(f"{path}: gives NaN or infinite samples; its weights are damaged")

    write_audio(out / "estimate.wav", estimate, rate)
    write_audio(out / "residual.wav", mixture - estimate, rate)
    if options.plot:
        save_picture(out / "spectrograms.png", draw(separator, mixture, estimate, target, rate, embedding))
    report(path, mixture, estimate, target)
    print(
        out / "estimate.wav",
        out / "residual.wav",
        *([out / "spectrograms.png"] if options.plot else []),
        sep="\n",
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(
        __doc__ or "", "a configuration instead of the checkpoint's own, or what a foreign one lacks"
    )
    add = parser.add_argument
    add("-m", "--mixed_file", "--input", required=True, metavar="MIXED", help="the mixture")
    add(
        "-r",
        "--reference_file",
        default=[],
        action="append",
        metavar="REFERENCE",
        help="a few seconds of the wanted voice alone; of several -r the mean is taken",
    )
    add("-o", "--out_dir", required=True, metavar="DIR", help="folder for the results")
    add("--checkpoint_path", metavar="CKPT", help="default: the newest chkpt/*/best.pt")
    add("-e", "--embedder_path", help="an embedder instead of the checkpoint's own; a foreign one needs it")
    add("--activation", choices=["relu", "mish"], help="of a fork's checkpoint that does not say its own")
    add_mask_options(parser)
    add("--target", metavar="WAV", help="the wanted voice alone, to score and to draw beside it")
    add("--plot", action="store_true", help="also write spectrograms.png")
    add("--device", default="auto", help="auto, cpu or cuda[:N]")
    return parser


def newest_checkpoint(folder: Path) -> Path:
    """The newest best.pt of a separator below a folder, which may hold embedders as well."""
    for path in sorted(folder.glob("*/best.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if load_checkpoint(path).get("format") == FORMAT:
            return path
    raise UserError(f"{folder}: no trained separator below it; train one, or name it with --checkpoint_path")


def load_separator(path: Path, options: argparse.Namespace) -> Separator:
    """The separator of a checkpoint, of this project or another, with the embedder of -e if there is one."""
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
        print(f"NOTE: {path} is another project's: its own settings hold, {options.config} is not used")
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
    if embedder.fingerprint() != separator.embedder.fingerprint():
        print(f"WARNING: {name} is not the embedder that {path} was trained with", file=sys.stderr)
    separator.embedder = embedder


def embed(separator: Separator, path: Path, names: Sequence[str]) -> torch.Tensor | None:
    """The embedding [1, D] of the references, None for a network without. Raises UserError without -r."""
    if separator.embedder is None:
        if names:
            print(f"NOTE: {path} works without a reference: -r {names[0]} is not used")
        return None
    if not names:
        raise UserError(f"{path}: asks whose voice is wanted; name a recording of it with -r")
    references = [read_reference(name, separator.reference_rate) for name in names]
    return separator.embed_references(references, names)


def separate(
    separator: Separator, mixture: np.ndarray, rate: int, embedding: torch.Tensor | None
) -> np.ndarray:
    """Mixture [C, N] at `rate` Hz -> estimate [C, N] at the same rate, sample-aligned."""
    estimate = separator.separate(resample(mixture, rate, separator.sample_rate), embedding)
    estimate = resample(estimate, separator.sample_rate, rate)
    missing = mixture.shape[1] - estimate.shape[1]
    return np.pad(estimate, ((0, 0), (0, max(0, missing))))[:, : mixture.shape[1]]


def report(path: Path, mixture: np.ndarray, estimate: np.ndarray, target: np.ndarray | None) -> None:
    print(f"{path}: mixture {level_db(mixture):.1f} dBFS, estimate {level_db(estimate):.1f} dBFS")
    if target is not None:
        wanted = torch.from_numpy(target)
        before, after = (
            si_sdr(torch.from_numpy(signal.mean(axis=0)), wanted).item() for signal in (mixture, estimate)
        )
        print(f"SI-SDR {before:.2f} -> {after:.2f} dB ({after - before:+.2f})")


@torch.inference_mode()
def draw(
    separator: Separator,
    mixture: np.ndarray,
    estimate: np.ndarray,
    target: np.ndarray | None,
    rate: int,
    embedding: torch.Tensor | None,
) -> np.ndarray:
    """Spectrograms of mixture, target and estimate, and the mask, of the first CHUNK_SECONDS, as an image."""
    stop = round(CHUNK_SECONDS * rate)
    signals = {"mixture": mixture.mean(axis=0)}
    if target is not None:
        signals["target"] = target
    signals["estimate"] = estimate.mean(axis=0)
    waveforms = {
        name: torch.from_numpy(resample(signal[:stop], rate, separator.sample_rate))[None].to(
            separator.device
        )
        for name, signal in signals.items()
    }
    magnitudes = {name: separator.spectral(w)[0].abs().cpu().numpy() for name, w in waveforms.items()}
    mask = separator.separate_with_mask(waveforms["mixture"], embedding)[1][0]
    if mask.ndim == 3:  # complex, [T, F, 2]
        mask = mask.norm(dim=-1).clamp(max=1)
    return spectrogram_figure(
        magnitudes, mask.cpu().numpy(), separator.sample_rate, separator.spectral.hop_length
    )


if __name__ == "__main__":
    run_script(main)
