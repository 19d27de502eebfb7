"""What the networks see, computed once: spectra of the examples and embeddings of the references."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.schema import Audio
from datasets.mixture import Clip, Example, read_clip
from datasets.store import Store, StoredSplit
from model.dvector import DVector
from model.spectral import Spectral
from utils.audio import active_seconds
from utils.errors import UserError
from utils.files import atomic_file, fingerprint


@dataclass(frozen=True)
class StftFeatures:
    """Example -> `mixture` and `target` magnitudes, float16 [T, F], and on demand

    `cosine`: of the angle between target and mixture in every bin, int8 (127 steps to one);
    `mixture_wave`, `target_wave`: float32 [N].
    """

    audio: Audio
    cosine: bool
    waveforms: bool

    def __call__(self, example: Example) -> dict[str, np.ndarray]:
        spectral = Spectral(self.audio.n_fft, self.audio.hop_length, self.audio.win_length)
        both = torch.from_numpy(np.stack([example.mixture, example.target]))
        spectrum = spectral(both)  # [2, T, F]
        magnitude = spectrum.abs()
        fields = {
            "mixture": magnitude[0].half().numpy(),
            "target": magnitude[1].half().numpy(),
        }
        if self.cosine:
            product = (spectrum[0].conj() * spectrum[1]).real
            cosine = product / (magnitude[0] * magnitude[1]).clamp_min(1e-12)
            fields["cosine"] = (cosine.clamp(-1, 1) * 127).round().to(torch.int8).numpy()
        if self.waveforms:
            fields["mixture_wave"], fields["target_wave"] = example.mixture, example.target
        return fields


def reference_embeddings(store: Store, split: StoredSplit, embedder: DVector, batch: int = 32) -> np.ndarray:
    """The embedding of every example's reference, float32 [n, D]; a clip used twice is embedded once.

    They are cached in the split's folder under the embedder's fingerprint. Raises UserError for a reference
    that is missing, unreadable or silent.
    """
    path = split.folder / f"embeddings-{embedder.fingerprint()}.npz"
    recipes = fingerprint([recipe.to_line() for recipe in split.recipes])
    if (cached := _read_cache(path, recipes)) is not None:
        return cached
    clips = sorted(
        {recipe.reference for recipe in split.recipes},
        key=lambda c: (c.utterance, c.start, c.frames, c.speed),
    )
    row_of = {clip: row for row, clip in enumerate(clips)}
    device = next(embedder.parameters()).device
    vectors = []
    with (
        torch.inference_mode(),
        tqdm(desc=f"embed {split.folder.name}", total=len(clips), unit="reference") as bar,
    ):
        for start in range(0, len(clips), batch):
            part = clips[start : start + batch]
            waveforms = [torch.from_numpy(_read_reference(store, clip, embedder)).to(device) for clip in part]
            vectors.append(embedder.embed(waveforms).cpu().numpy())
            bar.update(len(part))
    found = np.concatenate(vectors).astype(np.float32)
    rows = np.array([row_of[recipe.reference] for recipe in split.recipes])
    with atomic_file(path) as temporary:
        np.savez(temporary, vectors=found, row=rows, recipes=np.array(recipes))
    return found[rows]


def _read_cache(path: Path, recipes: str) -> np.ndarray | None:
    """Cached embeddings [n, D], or nothing when they are missing, damaged or of other recipes."""
    try:
        with np.load(path) as cached:
            return cached["vectors"][cached["row"]] if str(cached["recipes"]) == recipes else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_reference(store: Store, clip: Clip, embedder: DVector) -> np.ndarray:
    utterance = store.utterances[clip.utterance]
    samples = read_clip(clip, utterance, embedder.sample_rate)
    if active_seconds(samples, embedder.sample_rate) == 0:
        raise UserError(f"{utterance.path}: the reference from sample {clip.start} on is silent")
    return samples
