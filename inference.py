"""Separates one voice: mixture and reference in, estimate and residual out.

    python inference.py -m mixed.wav -r reference.wav -o out

The checkpoint carries its configuration, its front end and its embedder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from config.load import argument_parser, load_config, parse_arguments, run_script
from model.foreign import load_embedder
from model.reference import read_reference
from model.separator import CHUNK_SECONDS, FORMAT, Separator
from utils.audio import level_db, read_audio, read_mono, resample, write_audio
from utils.checkpoint import load_checkpoint
from utils.device import choose_device
from utils.errors import UserError
from utils.metrics import si_sdr
from utils.plots import save_picture, spectrogram_figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", "a configuration instead of the checkpoint's own")
    parser.add_argument("-m", "--mixed_file", "--input", required=True, metavar="MIXED", help="the mixture")
    parser.add_argument(
        "-r",
        "--reference_file",
        required=True,
        action="append",
        metavar="REFERENCE",
        help="a few seconds of the wanted voice alone; of several -r the mean is taken",
    )
    parser.add_argument("-o", "--out_dir", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--checkpoint_path", metavar="CKPT", help="default: the newest chkpt/*/best.pt")
    parser.add_argument("-e", "--embedder_path", help="an embedder instead of the checkpoint's own")
    parser.add_argument(
        "--target", metavar="WAV", help="the wanted voice alone, to score and to draw beside it"
    )
    parser.add_argument("--plot", action="store_true", help="also write spectrograms.png")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    options = parse_arguments(parser, arguments)
    out = Path(options.out_dir)
    for result in (out / "estimate.wav", out / "residual.wav"):
        for given in (options.mixed_file, *options.reference_file, options.target):
            if given and result.resolve() == Path(given).resolve():
                raise UserError(f"{given}: would be overwritten by the result; name another folder with -o")
    path = Path(options.checkpoint_path) if options.checkpoint_path else newest_checkpoint(Path("chkpt"))
    separator = load_separator(path, options).to(choose_device(options.device))
    mixture, rate = read_audio(options.mixed_file)
    references = [read_reference(name, separator.sample_rate) for name in options.reference_file]
    target = read_mono(options.target, rate) if options.target else None
    if target is not None and len(target) != mixture.shape[1]:
        raise UserError(
            f"{options.target}: {len(target)} samples, the mixture has {mixture.shape[1]} at {rate} Hz"
        )
    embedding = separator.embed_references(references, options.reference_file)
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


def newest_checkpoint(folder: Path) -> Path:
    """The newest best.pt of a separator below a folder, which may hold embedders as well."""
    for path in sorted(folder.glob("*/best.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if load_checkpoint(path).get("format") == FORMAT:
            return path
    raise UserError(f"{folder}: no trained separator below it; train one, or name it with --checkpoint_path")


def load_separator(path: Path, options: object) -> Separator:
    config_path, embedder_path = getattr(options, "config", None), getattr(options, "embedder_path", None)
    overrides = getattr(options, "overrides", [])
    config = load_config(config_path, overrides) if config_path else None
    if overrides and not config_path:
        raise UserError(f"{overrides[0]}: overrides go with -c; the checkpoint brings its own configuration")
    separator = Separator.load(path, config)
    if embedder_path:
        embedder = load_embedder(embedder_path)
        if embedder.dim != separator.embedder.dim:
            raise UserError(
                f"{embedder_path}: gives {embedder.dim} values, {separator.embedder.dim} are needed"
            )
        if embedder.fingerprint() != separator.embedder.fingerprint():
            print(
                f"WARNING: {embedder_path} is not the embedder that {path} was trained with", file=sys.stderr
            )
        separator.embedder = embedder
    return separator.eval()


def separate(separator: Separator, mixture: np.ndarray, rate: int, embedding: torch.Tensor) -> np.ndarray:
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
    embedding: torch.Tensor,
) -> np.ndarray:
    """Spectrograms of mixture, target and estimate, and the mask, of the first CHUNK_SECONDS, as an image."""
    stop = round(CHUNK_SECONDS * rate)
    signals = {"mixture": mixture.mean(axis=0)}
    if target is not None:
        signals["target"] = target
    signals["estimate"] = estimate.mean(axis=0)
    waveforms = {
        name: torch.from_numpy(resample(signal[:stop], rate, separator.sample_rate))[None].to(
            embedding.device
        )
        for name, signal in signals.items()
    }
    magnitudes = {name: separator.spectral(w)[0].abs().cpu().numpy() for name, w in waveforms.items()}
    mask = separator.separate_with_mask(waveforms["mixture"], embedding)[1][0].cpu().numpy()
    return spectrogram_figure(magnitudes, mask, separator.sample_rate, separator.spectral.hop_length)


if __name__ == "__main__":
    run_script(main)
