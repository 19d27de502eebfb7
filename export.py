"""Writes a separator for other runtimes: ONNX graphs of its mask network and its embedder, and more.

    python export.py chkpt/NAME/best.pt -o exported
    python export.py chkpt/NAME/best.pt -o exported --int8 --data data/store --torchscript
    python inference.py --checkpoint_path exported/separator.onnx -m mixed.wav -r reference.wav -o out

Every graph is compared with PyTorch at three lengths before it is kept, and, where long recordings go through
it layer by layer, on more than a piece. The STFT and the embedder's front end
stay outside; the graphs' metadata say which they are (keys config and embedder, JSON).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from config.load import argument_parser, parse_arguments, run_script
from datasets.dataset import different_references
from datasets.store import Store
from model.exported import (
    EMBEDDER,
    SEPARATOR,
    alone,
    example,
    export_separator,
    exported_separator,
    quantize,
)
from model.features import reference_embeddings
from model.lite import Lite
from model.onnx_network import OnnxGraph
from model.scoring import score_outputs
from model.separator import CHUNK_SECONDS, Separator
from model.shipped import DEFAULT, checkpoint_of, shipped_weights
from utils.errors import UserError
from utils.files import atomic_file, require_writable

LENGTHS = (7, 100, 331)
"""Frames at which graphs are compared with PyTorch, in batches of 1 and 3."""
TOLERANCE = 1e-3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        default=shipped_weights(),
        metavar="CHECKPOINT",
        help=f"of a separator, or the name of a run (default: {DEFAULT}, which comes with this project)",
    )
    add("-o", "--out", required=True, metavar="DIR", help="folder for the graphs")
    add("--int8", action="store_true", help="also with weights of 8 bits, and what that costs (with --data)")
    add("--data", metavar="STORE", help="whose validation mixtures --int8 is scored on")
    add("-n", "--examples", type=int, metavar="N", help="the first N of them (default: all)")
    add("--torchscript", action="store_true", help="also as TorchScript")
    options = parse_arguments(parser, arguments)
    if options.examples is not None and options.examples < 1:
        raise UserError(f"-n {options.examples}: expected at least 1")
    if not options.int8 and (options.data or options.examples):
        raise UserError("--data, -n: the mixtures that --int8 is scored on")
    if options.int8 and not options.data:
        raise UserError("--int8: name the mixtures that its cost is measured on with --data STORE")
    path = checkpoint_of(options.checkpoint)
    separator = Separator.load(path)
    separator.precision = "fp32"
    if options.torchscript and isinstance(separator.network, Lite):
        raise UserError("--torchscript: the causal network's state is in its ONNX graph; leave it out")
    out = Path(options.out)
    require_writable(out / SEPARATOR)
    with TemporaryDirectory() as folder:
        written = export_separator(separator, Path(folder))
        exported = exported_separator(written[0], OnnxGraph.load(written[0]))
        print(f"largest differences from PyTorch: {compare(separator, exported)}")
        if options.torchscript:
            written.append(trace(separator, Path(folder) / "separator.ts"))
        if options.int8:
            small = quantize(written[0], Path(folder) / "int8")
            if separator.embedder is not None:  # as it is: small already, and everything hangs on it
                shutil.copyfile(Path(folder) / EMBEDDER, small.with_name(EMBEDDER))
            print(cost(separator, small, Store(options.data), options.examples))
            written += sorted(small.parent.glob("*.onnx"))
        for file in written:
            place = out / file.relative_to(folder)
            with atomic_file(place) as temporary:
                shutil.copyfile(file, temporary)
            print(f"{place} ({place.stat().st_size / 1e6:.1f} MB)")
    return 0


@torch.inference_mode()
def compare(separator: Separator, exported: Separator) -> str:
    """The largest difference of masks and embedder's vectors at LENGTHS, of the embeddings of references of
    several lengths, and of the samples of more than a piece where that goes through layer by layer. Raises
    UserError above TOLERANCE."""
    torch.manual_seed(0)
    found = {"mask": 0.0}
    for frames in LENGTHS:
        for batch in (1, 3):
            inputs = example(separator, batch, frames)
            ours, theirs = separator.network(*inputs), exported.network(*inputs)
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the graph gives {tuple(theirs.shape)} for {tuple(ours.shape)}; nothing is kept"
                )
            found["mask"] = max(found["mask"], (ours - theirs).abs().max().item())
            if separator.embedder is not None and exported.embedder is not None:
                embedder = separator.embedder
                noise = torch.randn(batch, embedder.crop_samples(max(frames, embedder.shortest)))
                features = embedder.features(0.1 * noise)
                difference = (embedder(features) - exported.embedder(features)).abs().max().item()
                found["embedder"] = max(found.get("embedder", 0.0), difference)
    if separator.embedder is not None and exported.embedder is not None:
        rate = separator.reference_rate
        waves = [0.1 * torch.randn(round(seconds * rate)) for seconds in (2.3, 1.0, 3.1)]
        ours, theirs = separator.embedder.embed(waves), exported.embedder.embed(waves)
        found["references"] = (ours - theirs).abs().max().item()
    if exported.hears_whole:
        long = 0.1 * torch.randn(1, round((CHUNK_SECONDS + 2) * separator.sample_rate)).numpy()
        vector = None if separator.embedder is None else example(separator, 1, 1)[1]
        heard = [one.separate_channels(long, vector) for one in (separator, exported)]
        found["long recording"] = float(np.abs(heard[0] - heard[1]).max())
    if (worst := max(found.values())) > TOLERANCE:
        raise UserError(
            f"the graphs differ from PyTorch by {worst:.2g}, more than {TOLERANCE}; nothing is kept"
        )
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


@torch.inference_mode()
def trace(separator: Separator, path: Path) -> Path:
    """The mask network as TorchScript, compared at LENGTHS."""
    import warnings

    network = alone(separator.network)
    inputs = tuple(x for x in example(separator, 2, 48) if x is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks of shapes, which are not part of a graph
        traced = torch.jit.trace(network, inputs, check_trace=False)
    for frames in LENGTHS:
        other = tuple(x for x in example(separator, 3, frames) if x is not None)
        worst = (traced(*other) - network(*other)).abs().max().item()
        if worst > TOLERANCE:
            raise UserError(f"TorchScript differs from PyTorch by {worst:.2g} at {frames} frames")
    traced.save(str(path))
    return path


def cost(separator: Separator, small: Path, store: Store, examples: int | None) -> str:
    """What 8 bits cost: mean SDR and SI-SDR of the validation mixtures with both.

    Absent voices and voices alone are left out. Raises UserError without mixtures, and at another rate.
    """
    split = store.split("validation")
    store.require_rate(separator.sample_rate)
    chosen = [row for row, recipe in enumerate(split.recipes[:examples]) if recipe.role == "mixture"]
    if not chosen:
        raise UserError(f"{store.folder}: its validation split holds no mixture to separate")
    quantized = exported_separator(small, OnnxGraph.load(small))
    vectors: Tensor | None = None
    if separator.embedder is not None:
        clips, owners = different_references(split.recipes)
        found = reference_embeddings(store.folder, store.utterances, clips, separator.embedder)
        vectors = torch.from_numpy(found)[owners]
    means = []
    for one in (separator, quantized):

        def estimate(mixture: Tensor, rows: list[int], one: Separator = one) -> Tensor:
            asked = None if vectors is None else vectors[rows]
            return torch.from_numpy(one.separate_channels(mixture.numpy(), asked))

        scores = score_outputs(split, estimate, "int8", examples=examples)
        means.append([float(scores[name][chosen].mean()) for name in ("sdr", "si_sdr")])
    (sdr, si_sdr), (sdr8, si_sdr8) = means
    return (
        f"8 bits, {len(chosen)} validation mixtures of {store.folder}: SDR {sdr:.2f} -> {sdr8:.2f} dB "
        f"({sdr8 - sdr:+.2f}), SI-SDR {si_sdr:.2f} -> {si_sdr8:.2f} dB ({si_sdr8 - si_sdr:+.2f})"
    )


if __name__ == "__main__":
    run_script(main)
