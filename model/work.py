"""What is done for one recording: whose voice, separated, drawn, and told in a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from torch import Tensor

from model.jobs import Job
from model.pictures import draw_recording
from model.recording import SILENCE_DB, Report, Wishes, residual_path, separate_recording
from model.reference import CLIPPED_SHARE, read_reference
from model.separator import Separator
from utils.errors import UserError


class Voices:
    """Embeddings [1, D] of references by their names, each computed once; None for a network without."""

    def __init__(self, separator: Separator, path: Path) -> None:
        self.separator, self.path, self.lock = separator, path, Lock()
        self.known: dict[tuple[Path, ...], Tensor] = {}
        self.said = False

    def __call__(self, names: tuple[Path, ...]) -> Tensor | None:
        """Raises UserError without a name, and for a reference that cannot be used."""
        if self.separator.embedder is None:
            if names and not self.said:
                print(f"NOTE: {self.path} works without a reference: -r {names[0]} is not used")
            self.said = True
            return None
        if not names:
            raise UserError(f"{self.path}: asks whose voice is wanted; name a recording of it with -r")
        with self.lock:
            if names not in self.known:
                references = [read_reference(name, self.separator.reference_rate) for name in names]
                self.known[names] = self.separator.embed_references(references, list(map(str, names)))
            return self.known[names]


@dataclass(frozen=True)
class Work:
    """Separates, draws and reports one job."""

    voices: Voices
    wishes: Wishes
    plot: bool = False
    target: Path | None = None

    def __call__(self, job: Job, stopping: Event | None = None, name: str | None = None) -> Report:
        separator, embedding = self.voices.separator, self.voices(job.references)
        report = separate_recording(
            separator, job.mixture, embedding, job.output, self.wishes, name, stopping
        )
        if self.plot:
            picture = picture_path(job.output)
            draw_recording(picture, separator, job.mixture, job.output, self.target, embedding)
            report.files.append(str(picture))
        return report

    def results(self, job: Job) -> list[Path]:
        """The files that it writes for a job."""
        residual = [residual_path(job.output)] if self.wishes.residual else []
        return [job.output, *residual, *([picture_path(job.output)] if self.plot else [])]


def picture_path(output: Path) -> Path:
    """Beside estimate.wav spectrograms.png, beside any other NAME.wav NAME.png."""
    return output.with_name("spectrograms.png" if output.stem == "estimate" else f"{output.stem}.png")


def describe(path: Path, report: Report) -> str:
    """What became of a recording, in a line or two."""
    text = f"{path}: mixture {report.mixture_db:.1f} dBFS, estimate {report.estimate_db:.1f} dBFS"
    if report.presence is not None:
        verdict = "is present" if report.present else "is not present"
        score = "" if report.score is None else f"; normalised, estimate {report.score:.1f}"
        text += (
            f"\nthe voice {verdict}: probability {report.presence:.2f} (similarity to the reference: "
            f"estimate {report.similarity:.2f}, residual {report.residual_similarity:.2f}{score}; from "
            f"{report.heard_at:.0f} s on)"
        )
    if report.mixture_db <= SILENCE_DB:
        text += "\nthe mixture is silent"
    if report.clipped > CLIPPED_SHARE:
        text += f"\nthe mixture is clipped ({100 * report.clipped:.1f} % of the samples)"
    if report.written != "estimate":
        text += f"; written instead of the estimate: {report.written}"
    return text
