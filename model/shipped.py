"""What a name of weights stands for: a file, a run, or weights that come with this project."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError

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
    weights of that name that come with this project.

    Raises UserError where there is such a run which has no best checkpoint yet, beside weights of its name.
    """
    run, weights = runs / name, shipped_weights(str(name))
    named = (Path(name), run / "best.pt", weights)
    if weights.is_file() and not any(path.is_file() for path in named[:2]):
        if (run / "last.pt").is_file():
            raise UserError(f"{name}: the run {run} has no best.pt yet; the other weights are {weights}")
        if seeds := sorted(run.glob("seed-*/best.pt")):
            raise UserError(f"{name}: name a seed's run, such as {name}/{seeds[0].parent.name}, or {weights}")
    return next((path for path in named if path.is_file()), Path(name))
