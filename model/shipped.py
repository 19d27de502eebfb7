"""What a name of weights stands for: a file, a run, or weights that come with this project."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("chkpt")
SHIPPED = Path(__file__).parents[1] / "weights"
"""Of this project: NAME.safetensors, see weights/README.md."""
DEFAULT, STREAMING = "voicefilter", "lite"
"""Among these: for recordings, and for sound that is still to come."""


def shipped_weights(name: str = DEFAULT) -> Path:
    """The file of weights that come with this project, whatever a run is called."""
    return SHIPPED / f"{name}.safetensors"


def checkpoint_of(name: Path | str, runs: Path = RUNS) -> Path:
    """A file, or, where there is no such file, the best checkpoint of the run of that name below `runs`, or
    weights of that name that come with this project."""
    named = (Path(name), runs / name / "best.pt", shipped_weights(str(name)))
    return next((path for path in named if path.is_file()), Path(name))
