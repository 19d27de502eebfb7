"""What the networks see, computed once: spectra of the examples and embeddings of the references."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config.schema import Audio
from config.schema import Store as StoreOptions
from datasets.corpus import Utterance
from datasets.mixture import Example, read_clip
from datasets.recipe import Clip
from datasets.scan import digest_of
from datasets.store import WAVEFORMS
from model.embedder import Embedder
from model.spectral import Spectral
from utils.audio import active_seconds
from utils.errors import UserError
from utils.files import atomic_file, fingerprint
from utils.progress import progress_bar

SAVE_EVERY = 4096
"""References that are embedded between two savings of the cache."""


def spectra(
    spectral: Spectral, mixture: Tensor, target: Tensor, wanted: Collection[str] = ()
) -> dict[str, Tensor]:
    """Waveforms float [B, N] -> magnitudes `mixture` and `target` and what else is `wanted`: `cosine` and
    `sine` of the angle from mixture to target in every bin, float32 [B, T, F], and the mixture's `spectrum`,
    real and imaginary part [B, T, F, 2]."""
    # real and imaginary parts apart: several times faster on a CPU than complex numbers
    real, imaginary = torch.view_as_real(spectral(torch.cat([mixture, target]))).unbind(-1)
    real, imaginary = real.contiguous(), imaginary.contiguous()  # [2B, T, F]
    magnitude = (real * real + imaginary * imaginary).sqrt_()
    (a, c), (b, d) = real.chunk(2), imaginary.chunk(2)
    x, s = magnitude.chunk(2)
    fields = {"mixture": x, "target": s}
    if "cosine" in wanted:
        fields["cosine"] = ((a * c + b * d) / (x * s).clamp_min_(1e-12)).clamp_(-1, 1)
    if "sine" in wanted:
        fields["sine"] = ((a * d - b * c) / (x * s).clamp_min_(1e-12)).clamp_(-1, 1)
    if "spectrum" in wanted:
        fields["spectrum"] = torch.stack([a, b], dim=-1)
    return fields


def rest_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of which the rest of the mixture is the target: magnitudes `target` [B, T, F], `cosine` and
    `sine`, if there is one, and waveforms, if there are any. Raises KeyError where the phase is not known."""
    x, s, cosine = batch["mixture"], batch["target"], batch["cosine"]
    magnitude = (x.square() + s.square() - 2 * x * s * cosine).clamp_min(0).sqrt()
    floor = magnitude.clamp_min(1e-8)
    found = {**batch, "target": magnitude, "cosine": ((x - s * cosine) / floor).clamp(-1, 1)}
    if "sine" in batch:
        found["sine"] = (-s * batch["sine"] / floor).clamp(-1, 1)
    mixture, target = WAVEFORMS
    if target in batch:
        found[target] = batch[mixture] - batch[target]
    return found


@dataclass(frozen=True)
class StftFeatures:
    """Example -> `mixture` and `target` magnitudes, float16 [T, F], and on demand

    `cosine`: of the angle between target and mixture in every bin, int8 (127 steps to one);
    `mixture_wave`, `target_wave`: float32 [N].
    """

    audio: Audio
    cosine: bool
    waveforms: bool

    @cached_property
    def _spectral(self) -> Spectral:
        audio = self.audio
        return Spectral(audio.n_fft, audio.hop_length, audio.win_length, audio.pad_mode)

    def __call__(self, example: Example) -> dict[str, np.ndarray]:
        mixture, target = (torch.from_numpy(wave)[None] for wave in (example.mixture, example.target))
        found = spectra(self._spectral, mixture, target, ("cosine",) if self.cosine else ())
        fields = {name: found[name][0].half().numpy() for name in ("mixture", "target")}
        if self.cosine:
            fields["cosine"] = found["cosine"][0].mul_(127).round_().to(torch.int8).numpy()
        if self.waveforms:
            fields["mixture_wave"], fields["target_wave"] = example.mixture, example.target
        return fields


@dataclass(frozen=True)
class WaveFeatures:
    """Example -> `mixture_wave` and `target_wave` [N], float32, or int16 with their common `scale` [1].

    The scale is the largest magnitude in either, which 32767 stands for: nothing clips.
    """

    dtype: str

    def __call__(self, example: Example) -> dict[str, np.ndarray]:
        waves = {"mixture_wave": example.mixture, "target_wave": example.target}
        if self.dtype == "float32":
            return waves
        scale = np.float32(max(1e-9, *(float(np.abs(wave).max(initial=0)) for wave in waves.values())))
        whole = {name: np.rint(wave * (np.float32(32767) / scale)) for name, wave in waves.items()}
        return {name: wave.astype(np.int16) for name, wave in whole.items()} | {"scale": scale.reshape(1)}


def stored_features(audio: Audio, store: StoreOptions, scored: bool) -> StftFeatures | WaveFeatures:
    """What a store keeps of the examples of a split; `scored`: waveforms too."""
    match store.kind:
        case "stft":
            return StftFeatures(audio, store.cosine, waveforms=scored)
        case "wave":
            return WaveFeatures(store.dtype)


def reference_embeddings(
    folder: Path | None,
    utterances: Mapping[str, Utterance],
    clips: Sequence[Clip],
    embedder: Embedder,
    batch: int = 32,
) -> np.ndarray:
    """The embedding of every reference, float32 [n, D]; a clip that stands there twice is embedded once.

    They are cached in `folder`, the store's, under the embedder's fingerprint, for all its splits; None: of
    an embedder that still learns, they are not kept. Raises UserError for a reference that is missing,
    unreadable or silent.
    """
    path = folder / f"embeddings-{embedder.fingerprint()}.npz" if folder else None
    known = _read_cache(path) if path else {}
    keys = [_key(clip) for clip in clips]
    lacking = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in known}
    device = next(embedder.parameters()).device
    todo = list(lacking.items())
    if todo:
        with torch.inference_mode(), progress_bar(desc="embed", total=len(todo), unit="reference") as bar:
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                waves = [
                    torch.from_numpy(_read_reference(utterances[clip.utterance], clip, embedder))
                    for _, clip in part
                ]
                vectors = embedder.embed([wave.to(device) for wave in waves]).cpu().numpy()
                known |= zip((key for key, _ in part), vectors.astype(np.float32), strict=True)
                bar.update(len(part))
                if path and (start // batch + 1) % (SAVE_EVERY // batch) == 0:
                    _write_cache(path, known)
        if path:
            _write_cache(path, known)
    return np.stack([known[key] for key in keys])


def _key(clip: Clip) -> str:
    return fingerprint(asdict(clip))


def _read_cache(path: Path) -> dict[str, np.ndarray]:
    """Cached embeddings [D] by key; nothing when the file is missing or damaged."""
    try:
        with np.load(path) as cached:
            return dict(zip(cached["keys"].tolist(), cached["vectors"], strict=True))
    except FileNotFoundError:
        return {}
    except Exception:  # a damaged file makes NumPy's parser raise whatever its bytes happen to mean
        print(f"NOTE: {path}: is damaged and made anew")
        return {}


def _write_cache(path: Path, known: dict[str, np.ndarray]) -> None:
    try:
        with atomic_file(path) as temporary:
            np.savez(temporary, keys=np.array(list(known)), vectors=np.stack(list(known.values())))
    except UserError as error:  # a store that others may only read
        print(f"NOTE: the embeddings are not kept: {error}")


def is_readable(path: Path) -> bool:
    """Whether a file of embeddings is whole."""
    try:
        with np.load(path) as cached:
            return len(cached["keys"]) == len(cached["vectors"])
    except Exception:
        return False


def _read_reference(utterance: Utterance, clip: Clip, embedder: Embedder) -> np.ndarray:
    check = "quick" if clip.digest.startswith("~") else "full"
    try:
        changed = bool(clip.digest) and digest_of(utterance.path, check) != clip.digest
    except OSError as error:
        raise UserError(f"{utterance.path}: cannot be read ({error.strerror})") from error
    if changed:
        raise UserError(f"{utterance.path}: has changed since it was indexed; make another store")
    samples = read_clip(clip, utterance, embedder.sample_rate)
    if active_seconds(samples, embedder.sample_rate) == 0:
        raise UserError(
            f"{utterance.path}: the reference from sample {clip.stretches[0][0]} on is silent; "
            "data.check=full finds such files"
        )
    return samples
