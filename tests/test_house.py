"""The rooms: a group imports only from the groups above it, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["utils", "config", "datasets", "model"]
SOURCES = sorted(p for group in ORDER for p in (ROOT / group).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path: Path) -> None:
    group = path.relative_to(ROOT).parts[0]
    scripts = {p.stem for p in ROOT.glob("*.py")} | {"scripts", "tests"}
    below = set(ORDER[ORDER.index(group) + 1 :]) | scripts
    assert not imported(path) & below


def test_only_three_files_touch_the_audio_libraries() -> None:
    users = {
        p.relative_to(ROOT).as_posix() for p in SOURCES if imported(p) & {"soundfile", "soxr", "librosa"}
    }
    assert users <= {"utils/audio.py", "utils/audio_check.py", "utils/audio_stream.py"}


@pytest.mark.parametrize(
    "path",
    [*SOURCES, *sorted(ROOT.glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in {"utils", "common", "helpers", "misc", "base"}
