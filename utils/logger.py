"""Scalars of a run: TensorBoard pages and one JSON line a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from utils.plots import save_picture


class RunLogger:
    """Writes `folder/metrics.jsonl` and TensorBoard events; a resumed run goes on after `step`."""

    def __init__(self, folder: Path | str, step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_after(step)
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def _drop_after(self, step: int) -> None:
        """Removes records that an interrupted run wrote after the checkpoint it resumes from."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept))

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)
        record: dict[str, Any] = {"step": step, "group": group, **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def picture(self, step: int, image: np.ndarray, name: str) -> None:
        """uint8 [height, width, 3]: on the TensorBoard page, and the newest as `folder/name.png`."""
        self.board.add_image(name, image, step, dataformats="HWC")
        save_picture(self.folder / f"{name}.png", image)

    def close(self) -> None:
        self.board.close()
