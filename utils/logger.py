"""What a run leaves in its log: TensorBoard pages, one JSON line a record, and what it was started with."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from utils.files import read_json, write_json, write_text
from utils.plots import save_picture
from utils.versions import versions

Value = TypeVar("Value")


class RunLogger:
    """Writes `folder/metrics.jsonl` and TensorBoard events; a resumed run goes on after `step`, its
    validations after `validated`.

    A record that an interrupted run wrote after `step`, or that a kill cut in half, is dropped.
    """

    def __init__(self, folder: Path | str, step: int = 0, validated: int | None = None) -> None:
        self.folder, self.step = Path(folder), step
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_after(step, step if validated is None else validated)
        self.board = Board(self.folder, step)
        self._heard: dict[str, bytes] = {}

    def _drop_after(self, step: int, validated: int) -> None:
        path = self.folder / "metrics.jsonl"
        if path.exists():
            records = filter(None, map(_record, path.read_text(errors="replace").splitlines()))
            ends = {"validation": validated}
            kept = [record for record in records if record["step"] <= ends.get(record.get("group", ""), step)]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def describe(self, config: dict[str, Any], device: str) -> None:
        """Writes `config.yaml`, every option of the run, and `versions.json`, a list: what it ran on, with
        another entry whenever it goes on elsewhere.

        A configuration that was changed on the way is kept as `config-until-STEP.yaml`.
        """
        path, text = self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False)
        if path.exists() and self.step and path.read_text(encoding="utf-8") != text:
            path.replace(self.folder / f"config-until-{self.step}.yaml")
        write_text(path, text)
        path = self.folder / "versions.json"
        entries = read_json(path) if path.exists() else []
        found = {**versions(), "device": device}
        if not entries or {k: v for k, v in entries[-1].items() if k not in ("step", "started")} != found:
            started = time.strftime("%Y-%m-%d %H:%M:%S%z")
            write_json(path, [*entries, {**found, "step": self.step, "started": started}])

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        for name, value in values.items():
            self.board.add("scalar", f"{group}/{name}", value, step)
        # JSON knows no infinity
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record: dict[str, Any] = {"step": step, "group": group, **finite}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def picture(self, step: int, image: np.ndarray, name: str) -> None:
        """uint8 [height, width, 3]: on the TensorBoard page, and the newest as `folder/name.png`."""
        self.board.add("image", name, image, step, dataformats="HWC")
        save_picture(self.folder / f"{name}.png", image)

    def audio(self, step: int, wave: np.ndarray, rate: int, name: str) -> None:
        """A waveform [N] at `rate` Hz on the TensorBoard page, unless it is what was there before."""
        digest = hashlib.sha256(wave.tobytes()).digest()
        if self._heard.get(name) != digest:
            self._heard[name] = digest
            self.board.add("audio", name, wave[:, None], step, rate)

    def close(self) -> None:
        self.board.close()


class Board:
    """TensorBoard's events, whose thread dies where they cannot be written: then the training goes on
    without, and says so once."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self.folder, self.lost = folder, False
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self.worker: threading.Thread = self.writer.file_writer.event_writer._worker
        threading.excepthook = self._hook(threading.excepthook)

    def _hook(self, before: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def told(error: Any) -> None:
            if error.thread is self.worker:
                self._say(error.exc_value)
            else:
                before(error)

        return told

    def _say(self, cause: object) -> None:
        if not self.lost:
            self.lost = True
            print(f"WARNING: {self.folder}: TensorBoard's events cannot be written any more ({cause}); "
                  "metrics.jsonl goes on", file=sys.stderr)  # fmt: skip

    def add(self, kind: str, *values: Any, **options: Any) -> None:
        """A scalar, image or audio; nothing once the thread is dead, whose queue would wait for ever."""
        if not self.worker.is_alive():
            self._say("its thread has ended")
        if not self.lost:
            getattr(self.writer, f"add_{kind}")(*values, **options)

    def close(self) -> None:
        if self.worker.is_alive() and not self.lost:
            self.writer.close()


def _record(line: str) -> dict[str, Any] | None:
    """None for a line that is not whole."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class Speed:
    """Examples a second, and how much of the time was spent waiting for them, between two readings."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self._start_again()

    def _start_again(self) -> None:
        self.start, self.examples, self.waited = time.monotonic(), 0, 0.0

    def timed(self, batches: Iterator[dict[str, Value]]) -> Iterator[dict[str, Value]]:
        """The same batches: mappings to values [B, ...]."""
        self._start_again()
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            self.examples += len(next(iter(batch.values())))  # type: ignore[arg-type]
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count."""
        start = time.monotonic()
        yield
        self.start += time.monotonic() - start

    def read(self) -> dict[str, float]:
        """`examples_per_second` of all ranks and `input_wait_share` since the last reading."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        found = {
            "examples_per_second": self.ranks * self.examples / seconds,
            "input_wait_share": self.waited / seconds,
        }
        self._start_again()
        return found
