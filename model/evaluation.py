"""Scores of separators on a test set, row by row: shared out, kept as they come, resumable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.recipe import Clip
from model.embedder import Embedder
from model.features import reference_embeddings
from model.recognition import is_spoken_by_workers, recognize
from model.row_scores import CLEAN, LISTENED, NOT_FINITE, RowAudio, is_long, overlap_share, score_row
from model.scoring import SAMPLES_AT_ONCE
from model.test_set import MIXTURE, Row, System, TestSet, Wanted, heard_key
from utils import distributed
from utils.audio import resample
from utils.processes import worker_pool
from utils.progress import progress_bar

BATCH = 20
IMPOSTORS = 10
"""Other people, seeded, whose references each output is compared with."""


class Evaluation:
    """Scores `systems` (the mixture first) on a test set, with `listener` as the embedder of similarities."""

    def __init__(
        self, data: TestSet, systems: Sequence[System], listener: Embedder | None, wanted: Wanted
    ) -> None:
        self.data, self.systems, self.listener, self.wanted = data, systems, listener, wanted
        if any(recipe.reverse for recipe in data.recipes):
            listener = self.listener = None  # what is asked for is nobody's voice
        self.metrics = [name for name in wanted.metrics if listener is not None or name not in LISTENED]
        references = [recipe.reference for recipe in data.recipes]
        self.embeddings: dict[str, np.ndarray] = {}
        """Of every reference [n, D], by the embedder's fingerprint."""
        for embedder in [*(s.separator.embedder for s in systems if s.separator), listener]:
            if embedder is not None and embedder.fingerprint() not in self.embeddings:
                with distributed.in_turn():
                    found = reference_embeddings(data.cache, data.utterances, references, embedder)
                self.embeddings[embedder.fingerprint()] = found
        self.impostors = impostors(data) if listener is not None else []

    def run(self, processes: int) -> None:
        """Fills in what the systems lack. Ranks share the work and afterwards all have all rows."""
        for system in self.systems:
            system.read()
        distributed.wait()
        batches = distributed.shared_out(self.data.split.batches(BATCH))
        own = sum(map(len, batches))
        hidden = distributed.rank() > 0
        alone = processes <= 1
        pool_of = nullcontext() if alone else worker_pool(processes, "scoring", torch.set_num_threads, (1,))
        with (
            pool_of as pool,
            progress_bar(desc="score", total=own, unit="utterance", leave=False, disable=hidden) as bar,
        ):
            waiting: list[_Batch] = []
            for rows in batches:
                batch = _Batch(rows, {}, {})
                if lacking := {s.name: keys for s in self.systems if (keys := self._lacks(s, rows))}:
                    batch = self._measure(rows, lacking, pool)
                waiting.append(batch)
                while len(waiting) > 1:
                    bar.update(self._finish(waiting.pop(0)))
            for batch in waiting:
                bar.update(self._finish(batch))
        distributed.wait()
        for system in self.systems:
            merged: dict[int, Row] = {}
            for part in distributed.everybody_s(system.rows):  # earlier runs' rows are known to all ranks
                for row, scores in part.items():
                    merged.setdefault(row, {}).update(scores)
            system.rows = merged

    # -------------------------------------------------------- what is missing

    def _expected(self, system: System, row: int) -> set[str]:
        """Keys that a row's scores hold when they are complete."""
        role = self.data.recipes[row].role
        voice = {"similarity", "level"}
        keys = {m for m in self.metrics if role != "absent" or m in voice}
        if role != "mixture":
            keys -= {"sir", "sar"}
        if is_long(round(self.data.recipes[row].seconds * self.data.rate), self.data.rate):
            keys -= {"pesq_wb", "pesq_nb"}
        if role != "mixture" or not self.data.recipes[row].other_voice:
            keys -= {"similarity_other"}
        if "similarity" in keys:
            keys |= {"impostors"}
        if system.name == MIXTURE:
            keys |= {"overlap"} if role == "mixture" else set()
            keys |= {"target_similarity"} if "similarity" in keys else set()
        elif self.wanted.clean and role != "absent":
            keys |= {f"sdr_{CLEAN}", f"si_sdr_{CLEAN}"}
        if (name := self.wanted.hears) and self.data.texts[row] and role == "mixture":
            of = ("clean", "noisy") if system.name == MIXTURE else ("enhanced", "enhanced_clean")
            keys |= {heard_key(condition, name) for condition in of if self._hears(condition)}
        return keys

    def _hears(self, condition: str) -> bool:
        return condition != "enhanced_clean" or self.wanted.clean

    def _lacks(self, system: System, rows: Sequence[int]) -> set[str]:
        return {key for row in rows for key in self._expected(system, row) - system.rows.get(row, {}).keys()}

    # -------------------------------------------------------- measuring

    def _measure(self, rows: list[int], lacking: Mapping[str, set[str]], pool: Any) -> _Batch:
        mixture, target = (
            torch.from_numpy(self.data.split.read_float(f"{name}_wave", rows))
            for name in ("mixture", "target")
        )
        interference = mixture - target
        outputs: dict[str, Tensor] = {}
        clean: dict[str, Tensor] = {}
        found: dict[str, dict[int, Row]] = {name: {row: {} for row in rows} for name in lacking}
        for system in self.systems:
            if keys := lacking.get(system.name):
                outputs[system.name], broken = finite(self._outputs(system, mixture, rows))
                for place in broken:
                    found[system.name][rows[place]][NOT_FINITE] = 1
                if system.separator and any(CLEAN in key for key in keys):
                    clean[system.name], _ = finite(self._outputs(system, target, rows))
        futures: dict[int, list[Any]] = {}
        for place, row in enumerate(rows):
            recipe = self.data.recipes[row]
            wanted = {name: tuple(sorted(lacking[name] - set(LISTENED))) for name in outputs}
            audio = RowAudio(
                self.data.rate,
                recipe.role,
                target[place].numpy(),
                interference[place].numpy(),
                {name: output[place].numpy() for name, output in outputs.items()},
                wanted,
                {name: output[place].numpy() for name, output in clean.items()},
            )
            futures[row] = [(None, None, _later(pool, score_row, audio))]
            if MIXTURE in outputs and recipe.role == "mixture":
                job = _later(pool, overlap_share, audio.target, audio.interference, audio.rate)
                futures[row].append((MIXTURE, "overlap", job))
            futures[row] += self._heard(row, place, lacking, target, mixture, outputs, clean, pool)
        if self.listener is not None and any(set(LISTENED) & keys for keys in lacking.values()):
            self._listen(rows, target, interference, outputs, found)
        return _Batch(rows, found, futures)

    def _heard(
        self,
        row: int,
        place: int,
        lacking: Mapping[str, set[str]],
        target: Tensor,
        mixture: Tensor,
        outputs: Mapping[str, Tensor],
        clean: Mapping[str, Tensor],
        pool: Any,
    ) -> Iterator[tuple[str, str, Any]]:
        name = self.wanted.hears
        if name is None:
            return
        for system, keys in lacking.items():
            signals = {"clean": target, "noisy": mixture}
            if system != MIXTURE:
                signals = {"enhanced": outputs[system], "enhanced_clean": clean.get(system, target)}
            for condition, signal in signals.items():
                key = heard_key(condition, name)
                if key in keys and self.data.texts[row] and self._hears(condition):
                    using = pool if is_spoken_by_workers(name) else None
                    job = _later(using, recognize, name, signal[place].numpy(), self.data.rate)
                    yield system, key, job

    @torch.inference_mode()
    def _outputs(self, system: System, signal: Tensor, rows: list[int]) -> Tensor:
        """What a system makes of signals [B, N]; the mixture stays what it is."""
        separator = system.separator
        if separator is None:
            return signal
        vectors = None
        if separator.embedder is not None:
            vectors = torch.from_numpy(self.embeddings[separator.embedder.fingerprint()][rows])
        step = max(1, SAMPLES_AT_ONCE // max(1, signal.shape[1]))
        parts = []
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            embedding = None if vectors is None else vectors[part].to(separator.device)
            if signal.shape[1] > SAMPLES_AT_ONCE:  # as a file at inference, in pieces
                parts.append(torch.from_numpy(separator.separate_channels(signal[part].numpy(), embedding)))
            else:
                parts.append(separator(signal[part].to(separator.device), embedding).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def _listen(
        self,
        rows: list[int],
        target: Tensor,
        interference: Tensor,
        outputs: Mapping[str, Tensor],
        found: dict[str, dict[int, Row]],
    ) -> None:
        """Similarities of the outputs to the reference, to the other voice, and to other people."""
        assert self.listener is not None
        references = torch.from_numpy(self.embeddings[self.listener.fingerprint()])
        unit = torch.nn.functional.normalize(references, dim=-1)
        other = self._embedded(interference)
        if MIXTURE in outputs:  # how well voices are told apart where nobody disturbs
            alone = self._embedded(target)
            for place, row in enumerate(rows):
                scores = found[MIXTURE][row]
                scores["target_similarity"] = float(alone[place] @ unit[row])
                scores["target_impostors"] = (unit[self.impostors[row]] @ alone[place]).tolist()
        for name, output in outputs.items():
            own = self._embedded(output)
            for place, row in enumerate(rows):
                recipe = self.data.recipes[row]
                scores = found[name][row]
                scores["similarity"] = float(own[place] @ unit[row])
                scores["impostors"] = (unit[self.impostors[row]] @ own[place]).tolist()
                if recipe.role == "mixture" and recipe.other_voice:
                    scores["similarity_other"] = float(own[place] @ other[place])
                    scores["voices"] = float(unit[row] @ other[place])

    def _embedded(self, signals: Tensor) -> Tensor:
        """Unit vectors [B, D] of signals [B, N] at the test set's rate; zeros for silence."""
        assert self.listener is not None
        waves = torch.from_numpy(resample(signals.numpy(), self.data.rate, self.listener.sample_rate))
        device = next(self.listener.parameters()).device
        sounding = [bool(wave.square().mean() > 1e-12) for wave in waves]
        heard = [
            wave if sounds else torch.randn_like(wave) for wave, sounds in zip(waves, sounding, strict=True)
        ]
        vectors = torch.nn.functional.normalize(
            self.listener.embed([w.to(device) for w in heard]).cpu().float(), dim=-1
        )
        return vectors * torch.tensor(sounding)[:, None]

    def _finish(self, batch: _Batch) -> int:
        for row, jobs in batch.futures.items():
            for system, key, job in jobs:
                value = job.result() if isinstance(job, Future) else job
                if system is None:
                    for name, scores in value.items():
                        batch.found[name][row].update(scores)
                else:
                    batch.found[system][row][key] = value
        for system in self.systems:
            if system.name in batch.found:
                system.add(batch.found[system.name])
        return len(batch.rows)


def finite(signals: Tensor) -> tuple[Tensor, list[int]]:
    """Signals [B, N] with silence in the place of those that hold NaN or infinity, and which these are."""
    broken = ~signals.isfinite().all(dim=1)
    return signals.masked_fill(broken[:, None], 0.0), broken.nonzero().flatten().tolist()


@dataclass
class _Batch:
    rows: list[int]
    found: dict[str, dict[int, Row]]
    futures: dict[int, list[Any]]


def _later(pool: Any, work: Any, *arguments: Any) -> Any:
    """A future of the pool, or, without one, the result."""
    return pool.submit(work, *arguments) if pool is not None else work(*arguments)


def impostors(data: TestSet) -> list[list[int]]:
    """For every row, up to IMPOSTORS rows whose references are of people who do not speak in it; seeded."""
    owners = [data.speaker(recipe.reference) for recipe in data.recipes]
    first = {speaker: row for row, speaker in reversed(list(enumerate(owners)))}
    found = []
    for row, recipe in enumerate(data.recipes):
        clips: Collection[Clip] = [clip for source in recipe.sources for clip in source.clips]
        present = {data.speaker(clip) for clip in (*clips, recipe.reference)}
        others = sorted(speaker for speaker in first if speaker not in present)
        generator = np.random.default_rng([recipe.index, row])
        chosen = generator.permutation(len(others))[:IMPOSTORS]
        found.append([first[others[i]] for i in chosen])
    return found
