"""Speech recognisers by name, and the word error rate of what they hear."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio import resample
from utils.errors import UserError

RATE = 16000
"""Hz, which all recognisers here hear."""
NAMES = "pocketsphinx, whisper:MODEL, wav2vec2:BUNDLE, file:CSV"
CONDITIONS = ("clean", "noisy", "enhanced", "enhanced_clean")
"""The target, the mixture, the estimate, and the estimate where the target is alone."""
NO_REPEAT = 5
"""So many tokens after each other are heard once in a segment by Whisper."""
Recognizer = Callable[[np.ndarray], str]


def is_spoken_by_workers(name: str) -> bool:
    """Whether every process may have a recogniser of its own; others are large and bring threads."""
    return name == "pocketsphinx"


def recognize(name: str, samples: np.ndarray, rate: int) -> str:
    """What the recogniser hears in samples [N] at `rate` Hz; nothing in silence, where some invent words."""
    if not np.abs(samples).max(initial=0) > 1e-6:
        return ""
    return load_recognizer(name)(resample(samples, rate, RATE))


@lru_cache(maxsize=1)
def load_recognizer(name: str) -> Recognizer:
    """`pocketsphinx` (brings its English model), `whisper:` a name or a folder of a faster-whisper model, or
    `wav2vec2:` a bundle of torchaudio such as WAV2VEC2_ASR_BASE_960H.

    Raises UserError for another name, and where the package or the model is not there.
    """
    kind, _, model = name.partition(":")
    if kind == "pocketsphinx" and not model:
        return _pocketsphinx()
    if kind == "whisper" and model:
        return _whisper(model)
    if kind == "wav2vec2" and model:
        return _wav2vec2(model)
    raise UserError(f"recogniser {name!r}: expected one of {NAMES}")


def require_recognizer(name: str) -> dict[tuple[int, str], str] | None:
    """Raises UserError early where the recogniser of that name cannot be used; gives what a `file:` holds."""
    if name.startswith("file:"):
        return read_hypotheses(Path(name.removeprefix("file:")))
    load_recognizer(name)
    return None


def _pocketsphinx() -> Recognizer:
    try:
        import pocketsphinx
    except ImportError as error:
        raise UserError("recogniser pocketsphinx: pip install pocketsphinx") from error
    decoder = pocketsphinx.Decoder(loglevel="FATAL", samprate=RATE)

    def hear(samples: np.ndarray) -> str:
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        decoder.reinit_feat()  # its cepstral mean remembers who spoke before
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return hear


def _whisper(model: str) -> Recognizer:
    if "/" in model and model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise UserError(f"recogniser whisper:{model}: no such folder")
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UserError(f"recogniser whisper:{model}: pip install faster-whisper") from error
    try:
        loaded = WhisperModel(model, compute_type="int8")
    except Exception as error:  # of several packages: no such model, no network, a damaged folder
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"recogniser whisper:{model}: cannot be loaded ({cause})") from error

    def hear(samples: np.ndarray) -> str:
        # without sampling, so that it hears the same every time; it then may loop on unclear speech, and one
        # loop would outweigh everything else that is heard
        options: dict[str, Any] = {"language": "en", "temperature": 0.0, "condition_on_previous_text": False}
        options["no_repeat_ngram_size"] = NO_REPEAT
        return " ".join(segment.text for segment in loaded.transcribe(samples, **options)[0])

    return hear


def _wav2vec2(bundle_name: str) -> Recognizer:
    import torch
    import torchaudio

    bundle = getattr(torchaudio.pipelines, bundle_name, None)
    if not isinstance(bundle, torchaudio.pipelines.Wav2Vec2ASRBundle):
        names = [n for n in dir(torchaudio.pipelines) if n.startswith("WAV2VEC2_ASR")]
        raise UserError(
            f"recogniser wav2vec2:{bundle_name}: no such bundle, torchaudio has {', '.join(names)}"
        )
    try:
        network = bundle.get_model().eval()
    except Exception as error:  # the download
        raise UserError(f"recogniser wav2vec2:{bundle_name}: cannot be fetched ({error})") from error
    labels = bundle.get_labels()

    @torch.inference_mode()
    def hear(samples: np.ndarray) -> str:
        # its convolutions need 25 ms
        wave = torch.from_numpy(np.pad(samples, (0, max(0, RATE // 10 - len(samples)))))
        best = network(wave[None])[0][0].argmax(-1)
        letters = [labels[i] for i in torch.unique_consecutive(best).tolist() if i != 0]
        return "".join(letters).replace("|", " ")

    return hear


def read_hypotheses(path: Path) -> dict[tuple[int, str], str]:
    """A CSV of `index`, `condition` (one of CONDITIONS) and `text` -> what was heard. Raises UserError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        found = {(int(row["index"]), row["condition"]): row["text"] or "" for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV of index, condition and text ({error})") from error
    if len(found) < len(rows) or not rows:
        raise UserError(f"{path}: {len(rows)} rows name {len(found)} different indices and conditions")
    if strange := {condition for _, condition in found} - set(CONDITIONS):
        raise UserError(f"{path}: condition {sorted(strange)[0]!r}, expected one of {', '.join(CONDITIONS)}")
    return found


def normalized(text: str) -> str:
    """English text as it is compared: compatibility forms, lower case, hyphens as spaces, nothing but
    letters, digits and apostrophes within words."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = re.sub(r"[^\w' ]|_", " ", text)
    return " ".join(word.strip("'") for word in text.split() if word.strip("'"))


def word_errors(spoken: str, heard: str) -> tuple[int, int]:
    """(substitutions, deletions and insertions, spoken words) between two texts, normalised."""
    import jiwer

    wanted, found = normalized(spoken), normalized(heard)
    if not wanted:
        return len(found.split()), 0
    result = jiwer.process_words(wanted, found)
    return result.substitutions + result.deletions + result.insertions, len(wanted.split())


def word_error_rate(errors: Sequence[int], words: Sequence[int]) -> float:
    """Of all utterances together, in percent; 0 without a word."""
    return 100 * sum(errors) / max(1, sum(words))
