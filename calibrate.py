"""Teaches a checkpoint to say whether the reference's voice is there at all, for `inference.py --presence`.

    python calibrate.py chkpt/NAME/best.pt --data data/store

Every mixture of the store's validation split is separated twice: with its own reference, and with that of
somebody who is not in it. What then tells the two apart is kept in the checkpoint, with the embeddings of the
people in the training split, by whom similarities are normalised, where their recordings are still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from config.load import argument_parser, parse_arguments, run_script
from datasets.corpus import Utterance
from datasets.dataset import different_references
from datasets.recipe import Clip
from datasets.store import Store
from model.features import reference_embeddings
from model.presence import Evidence, Listener, fit
from model.separator import Separator
from model.shipped import checkpoint_of
from utils.checkpoint import load_checkpoint, save_again
from utils.device import choose_device
from utils.errors import UserError
from utils.files import require_writable
from utils.progress import progress_bar

COHORT, LEAST_COHORT = 256, 20
"""People by whom similarities are normalised: at most, and at least."""
COHORT_SECONDS = 15.0
"""Heard of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__ or "", config_help=None)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="of a separator, or the name of a run")
    add("--data", required=True, metavar="STORE", help="made by generator.py; its validation split is used")
    add("-n", "--examples", type=int, metavar="N", help="the first N of them (default: all)")
    add("--device", default="auto", help="auto, cpu, mps or cuda[:N]")
    options = parse_arguments(parser, arguments)
    if options.examples is not None and options.examples < 1:
        raise UserError(f"-n {options.examples}: expected at least 1")
    path = checkpoint_of(options.checkpoint)
    require_writable(path)
    content = load_checkpoint(path)
    separator = Separator.from_content(content, str(path)).eval().to(choose_device(options.device))
    if separator.embedder is None:
        raise UserError(f"{path}: asks for nobody, so nobody can be present or absent")
    store = Store(options.data)
    cohort = cohort_of(separator, store)
    present, absent = collect(separator, store, cohort, options.examples)
    try:
        calibration = fit(present, absent, cohort)
    except ValueError as error:
        raise UserError(f"{options.data}: {error}") from error
    save_again(path, content | {"presence": calibration.content()})
    print(
        f"{path}: {calibration.examples} stretches of {len(present)} mixtures with the voice and of "
        f"{len(absent)} without: told apart with an area under the ROC curve of {calibration.auc:.3f}, right "
        f"at probability 0.5 in {100 * calibration.accuracy:.1f} % (each fifth of the mixtures judged by the "
        f"others; {'no cohort' if cohort is None else f'a cohort of {len(cohort)} people'})"
    )
    print(path)
    return 0


def cohort_of(separator: Separator, store: Store) -> Tensor | None:
    """Embeddings [N, D] of unit length of the people of the store's training split, one utterance of each, of
    COHORT of them where there are more; None where there are fewer than LEAST_COHORT whose recordings are
    still there."""
    assert separator.embedder is not None
    people = store.report["splits"].get("train", {}).get("speakers", [])
    longest: dict[str, Utterance] = {}
    for utterance in store.recordings.get("speech", []):
        other = longest.get(utterance.speaker)
        if other is None or utterance.seconds > other.seconds:
            longest[utterance.speaker] = utterance
    known = [longest[name] for name in people if name in longest]
    chosen = [one for one in known if Path(one.path).is_file()]
    if len(chosen) < len(known):
        print(f"NOTE: of {len(known)} training speakers' recordings {len(known) - len(chosen)} are gone")
    if len(chosen) < LEAST_COHORT:
        return None
    rows = np.unique(np.linspace(0, len(chosen) - 1, COHORT).round().astype(int))
    clips = []
    for one in (chosen[row] for row in rows):
        start = one.active[0][0] if one.active else 0
        length = min(one.frames - start, round(COHORT_SECONDS * one.rate))
        clips.append(Clip(one.id, ((start, length),), digest=one.digest))
    found = reference_embeddings(store.folder, store.utterances, clips, separator.embedder)
    return nn.functional.normalize(torch.from_numpy(found), dim=1)


def collect(
    separator: Separator, store: Store, cohort: Tensor | None, examples: int | None
) -> tuple[list[list[Evidence]], list[list[Evidence]]]:
    """Evidence of the validation mixtures with their own reference, and with somebody's who is not there; of
    each mixture that of its stretches."""

    def speaker(clip: Clip) -> str:
        return store.utterances[clip.utterance].speaker

    assert separator.embedder is not None
    split = store.split("validation")
    store.require_rate(separator.sample_rate)
    recipes = split.recipes[:examples]
    rows = [row for row, recipe in enumerate(recipes) if recipe.target is not None]
    clips, owners = different_references(split.recipes)
    vectors = reference_embeddings(store.folder, store.utterances, clips, separator.embedder)[owners]
    people = {
        row: {speaker(clip) for source in recipes[row].sources for clip in source.voices} for row in rows
    }
    asked = {row: speaker(recipes[row].reference) for row in rows}
    chance = np.random.default_rng(0)
    found: tuple[list[list[Evidence]], list[list[Evidence]]] = ([], [])
    for row in progress_bar(rows, unit="mixture", desc="presence", leave=False):
        others = [other for other in rows if asked[other] not in people[row] | {asked[row]}]
        if not others:
            continue
        stranger = int(chance.choice(others))
        mixture = split.read_float("mixture_wave", [row])  # [1, N]
        for evidence, owner in zip(found, (row, stranger), strict=True):
            embedding = torch.from_numpy(vectors[[owner]]).to(separator.device)
            listener = Listener(separator, embedding, cohort)
            listener(mixture[0], separator.separate_channels(mixture, embedding)[0])
            evidence.append(listener.evidence())
    return found


if __name__ == "__main__":
    run_script(main)
