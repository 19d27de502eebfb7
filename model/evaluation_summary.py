"""From scores of rows to figures of a system, and from two systems to the difference between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from model.recognition import CONDITIONS, word_error_rate, word_errors
from model.row_scores import (
    CLEAN,
    METRICS,
    NOT_FINITE,
    OF_CLEAN,
    OUTPUT_ONLY,
    PRESERVED_DB,
    SILENCED_DB,
    Metric,
)
from model.test_set import System, TestSet, Wanted, heard_key
from utils.metrics import SILENCE_DB, accepted_share, bootstrap_interval, sign_flip_p
from utils.verification import FEWEST_SPEAKERS, equal_error_rate, error_rates

Summary = dict[str, Any]


def summarize_rows(data: TestSet, before: System, after: System, wanted: Wanted) -> Summary:
    """Of every metric mean, median, standard deviation and the mean's 95 % interval, before, after and
    improved; what else the rows hold.

    Figures are of the n mixtures that hold the asked voice and something else; `alone_...` are of those
    where the voice is alone, `absent_level` of those where it is absent (output against mixture, dB).
    Intervals are over the people asked for, and missing where these are fewer than FEWEST_SPEAKERS. Where
    there is no mixture, the figures of mixtures are missing.
    """
    recipes = data.recipes
    role = np.array([recipe.role for recipe in recipes])
    owners = [data.speaker(recipe.reference) for recipe in recipes]
    mixtures = np.flatnonzero(role == "mixture")
    summary: Summary = {f"{name}_n": int((role == name).sum()) for name in ("alone", "absent")}
    summary["n"] = len(mixtures)
    summary["speakers"] = len({owners[row] for row in mixtures})
    summary["not_finite"] = sum(bool(scores.get(NOT_FINITE)) for scores in after.rows.values())
    for name in wanted.metrics:
        first, second = (values(system, name, mixtures) for system in (before, after))
        both = np.isfinite(first) & np.isfinite(second)
        if both.any():
            people = [owners[row] for row in mixtures[both]]
            summary |= spread(f"{name}_after", second[both], people)
            if name not in OUTPUT_ONLY:
                summary |= spread(f"{name}_before", first[both], people)
                summary |= spread(f"{name}_improvement", (second - first)[both], people)
            summary[f"{name}_n"] = int(both.sum())
        alone = values(after, name, np.flatnonzero(role == "alone"))
        if np.isfinite(alone).any():
            summary |= middle(f"alone_{name}", alone[np.isfinite(alone)])
    if "si_sdr_n" in summary:
        first, second = (values(system, "si_sdr", mixtures) for system in (before, after))
        summary["accepted_share"] = accepted_share(second - first)
        silent = (first == SILENCE_DB) | (second == SILENCE_DB)
        summary["silent"] = int(silent.sum())
        summary["worse_share"] = float((second < first).mean())
        summary["by_sex"] = _by_sex(data, mixtures, second - first)
        summary["by_person"] = _by_person(owners, mixtures, second - first)
    absent = np.flatnonzero(role == "absent")
    fall = values(after, "level", absent) - values(before, "level", absent)
    if np.isfinite(fall).any():
        summary |= middle("absent_level", fall[np.isfinite(fall)])
        summary["absent_silenced_share"] = float((fall <= -SILENCED_DB).mean())
    for name in OF_CLEAN if wanted.clean else ():
        clean = values(after, f"{name}_{CLEAN}", mixtures)
        known = np.isfinite(clean)
        if known.any():
            summary |= spread(f"{name}_{CLEAN}", clean[known], [owners[row] for row in mixtures[known]])
            summary[f"{name}_{CLEAN}_min"] = float(clean[known].min())
            summary[f"{name}_{CLEAN}_preserved_share"] = float((clean[known] >= PRESERVED_DB).mean())
    if "similarity" in wanted.metrics:
        summary |= _voices(before, after, mixtures, absent)
    if wanted.recognizer:
        summary["word_errors"] = _word_errors(data, before, after, wanted, owners)
        summary["recognizer"] = wanted.recognizer
    return summary


def values(system: System, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """A metric of some rows [n], NaN where it is not defined."""
    return np.array([system.rows.get(int(row), {}).get(name, np.nan) for row in rows], np.float64)


def middle(name: str, numbers: np.ndarray) -> dict[str, float]:
    """Mean and median of numbers [n]."""
    return {f"{name}_mean": float(numbers.mean()), f"{name}_median": float(np.median(numbers))}


def spread(name: str, numbers: np.ndarray, owners: Sequence[str]) -> dict[str, float]:
    """Mean, median, sample standard deviation and the mean's interval over the `owners` [n], if these are
    enough."""
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    found = {**middle(name, numbers), f"{name}_std": deviation}
    if (limits := interval(numbers, owners)) is not None:
        found[f"{name}_low"], found[f"{name}_high"] = limits
    return found


def interval(numbers: np.ndarray, owners: Sequence[str]) -> tuple[float, float] | None:
    """Of the mean over the `owners` [n]; None of fewer than FEWEST_SPEAKERS, which say nothing of others."""
    return bootstrap_interval(numbers, owners) if len(set(owners)) >= FEWEST_SPEAKERS else None


def _by_sex(data: TestSet, rows: np.ndarray, gains: np.ndarray) -> dict[str, dict[str, float]]:
    """SI-SDR improvement in dB by the sexes of target and other voice, such as F-M; where both are known."""
    groups = _grouped((sex_pair(data, int(row)) for row in rows), gains)
    groups.pop("", None)
    return {pair: {"n": len(found), "mean": float(np.mean(found))} for pair, found in sorted(groups.items())}


def _by_person(owners: Sequence[str], rows: np.ndarray, gains: np.ndarray) -> dict[str, dict[str, float]]:
    """SI-SDR improvement in dB of everybody who is asked for, beginning with who has the least."""
    groups = _grouped((owners[row] for row in rows), gains)
    found = {
        person: {"n": len(own), "mean": float(np.mean(own)), "accepted_share": accepted_share(np.array(own))}
        for person, own in groups.items()
    }
    return dict(sorted(found.items(), key=lambda pair: pair[1]["mean"]))


def _grouped(names: Iterable[str], gains: np.ndarray) -> dict[str, list[float]]:
    """The gains [n] of each of the n names."""
    groups: dict[str, list[float]] = {}
    for name, gain in zip(names, gains, strict=True):
        groups.setdefault(name, []).append(float(gain))
    return groups


def sex_pair(data: TestSet, row: int) -> str:
    """Such as F-M, the target's and the other voice's; empty where one is unknown or nobody is asked for."""
    pair = sexes(data, row)
    return "-".join(pair) if all(pair) and not data.recipes[row].reverse else ""


def sexes(data: TestSet, row: int) -> tuple[str, str]:
    """F or M of the person asked for and of the first other voice, empty where unknown."""
    recipe = data.recipes[row]
    others = [clip for source in recipe.interference if source.kind == "speech" for clip in source.clips]
    other = data.utterances[others[0].utterance].sex if others else ""
    return data.utterances[recipe.reference.utterance].sex, other


def _voices(before: System, after: System, mixtures: np.ndarray, absent: np.ndarray) -> Summary:
    """In how many the wrong voice came out, and how well voices are verified in mixtures and estimates.

    `verification_eer_...`: the estimates are of the voice that is there, other people's references the
    impostors. `claimed_eer_...`: the estimates are of the person who is claimed, the impostors those who are
    absent.
    """
    found: Summary = {}
    for label, system in (("before", before), ("after", after)):
        own, other = (values(system, name, mixtures) for name in ("similarity", "similarity_other"))
        both = np.isfinite(own) & np.isfinite(other)
        if both.any():
            found[f"wrong_voice_share_{label}"] = float((other > own)[both].mean())
    voices = {"before": (before, ""), "after": (after, ""), "clean": (before, "target_")}
    for label, (system, of) in voices.items():
        own = values(system, f"{of}similarity", mixtures)
        strangers = [np.array(system.rows[int(row)].get(f"{of}impostors", ())) for row in mixtures]
        scores = np.concatenate([own[np.isfinite(own)], *strangers])
        same = np.arange(len(scores)) < np.isfinite(own).sum()
        if same.any() and not same.all():
            found[f"verification_eer_{label}"] = equal_error_rate(error_rates(scores, same))[0]
            found["verification_trials"] = len(scores)
    rows = np.concatenate([mixtures, absent])
    for label, system in (("before", before), ("after", after)):
        scores = values(system, "similarity", rows)
        known = np.isfinite(scores)
        same = (np.arange(len(rows)) < len(mixtures))[known]
        if same.any() and not same.all():
            found[f"claimed_eer_{label}"] = equal_error_rate(error_rates(scores[known], same))[0]
            found["claimed_trials"] = len(same)
    return found


def _word_errors(
    data: TestSet, before: System, after: System, wanted: Wanted, owners: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By condition the word error rate in percent, its interval over people, words and utterances."""
    found: dict[str, dict[str, float]] = {}
    for condition in CONDITIONS:
        counts = counted_words(data, before, after, wanted, condition)
        if counts:
            errors, words = zip(*counts.values(), strict=True)
            people = [owners[row] for row in counts]
            figures = {"wer": word_error_rate(errors, words), "words": sum(words), "n": len(counts)}
            if len(set(people)) >= FEWEST_SPEAKERS:
                figures["low"], figures["high"] = _interval_of_rate(errors, words, people)
            found[condition] = figures
    return found


def counted_words(
    data: TestSet, before: System, after: System, wanted: Wanted, condition: str
) -> dict[int, tuple[int, int]]:
    """Errors and spoken words by row of the mixtures, where what was said and what was heard are known."""
    found = {}
    for row, text in enumerate(data.texts):
        heard = _heard(data, row, before, after, condition, wanted)
        if text and heard is not None and data.recipes[row].role == "mixture":
            found[row] = word_errors(text, heard)
    return found


def _interval_of_rate(
    errors: Sequence[int], words: Sequence[int], owners: Sequence[str]
) -> tuple[float, float]:
    """Percentile bootstrap interval of the rate of all errors to all words, people being drawn."""
    _, numbers = np.unique(np.asarray(owners), return_inverse=True)
    wrong, said = (np.bincount(numbers, np.asarray(counts, float)) for counts in (errors, words))
    drawn = np.random.default_rng(0).integers(len(said), size=(2000, len(said)))
    rates = 100 * wrong[drawn].sum(1) / np.maximum(1, said[drawn].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def compare(
    data: TestSet, mixture: System, first: System, second: System, wanted: Wanted
) -> list[dict[str, Any]]:
    """Paired differences (second minus first) of outputs of the same mixtures, a row a metric, the share
    that improves by more than 1 dB and the word error rate (in points, of the mean number of words) among
    them.

    Mean, 95 % interval over the people asked for, and the two-sided p of a test that changes the signs of
    all differences of a person together (`sign_flip_p`); both are missing of too few people.
    """
    mixtures = np.array([row for row, recipe in enumerate(data.recipes) if recipe.role == "mixture"], int)
    owners = [data.speaker(recipe.reference) for recipe in data.recipes]
    found = []

    def add(name: str, metric: Metric, differences: np.ndarray, rows: np.ndarray) -> None:
        if not len(rows):
            return
        people = [owners[row] for row in rows]
        low, high = interval(differences, people) or (None, None)
        found.append(
            {"first": first.name, "second": second.name, "metric": name, "label": metric.label}
            | {"digits": metric.digits, "n": len(rows), "mean": float(differences.mean())}
            | {"low": low, "high": high, "better_share": float((metric.better * differences > 0).mean())}
            | {"p": None if low is None else sign_flip_p(differences, people)}
        )

    for name in wanted.metrics:
        if name != "level":
            gain = values(second, name, mixtures) - values(first, name, mixtures)
            known = np.isfinite(gain)
            add(name, METRICS[name], gain[known], mixtures[known])
    unprocessed = values(mixture, "si_sdr", mixtures)
    share = [100.0 * (values(s, "si_sdr", mixtures) - unprocessed > 1) for s in (first, second)]
    add("accepted_share", Metric("> 1 dB, %", "%", 1, 1), share[1] - share[0], mixtures)
    for condition in ("enhanced", "enhanced_clean") if wanted.recognizer else ():
        counts = [counted_words(data, mixture, system, wanted, condition) for system in (first, second)]
        rows = np.array(sorted(counts[0].keys() & counts[1].keys()), int)
        words = np.mean([counts[0][row][1] for row in rows]) if len(rows) else 1.0
        more = np.array([100 * (counts[1][row][0] - counts[0][row][0]) / max(1.0, words) for row in rows])
        add(f"wer_{condition}", Metric(f"word errors ({condition}), %", "%", 1, -1), more, rows)
    return found


def utterance_table(
    data: TestSet, before: System, after: System, wanted: Wanted
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of per_utterance.csv: ids, people, and every score before and after."""
    header = ["index", "kind", "target", "interference", "reference", "reference_speaker", "other_speakers"]
    header += ["sex", "other_sex", "seconds", "overlap"]
    shown = [
        n
        for n in wanted.metrics
        if any(n in system.rows.get(r, {}) for system in (before, after) for r in range(len(data.recipes)))
    ]
    header += [f"{name}_{when}" for name in shown for when in ("before", "after")]
    extra = [f"{name}_{CLEAN}" for name in OF_CLEAN] if wanted.clean else []
    header += extra
    conditions = CONDITIONS if wanted.recognizer else ()
    header += ["text", *(f"heard_{condition}" for condition in conditions)] if conditions else []
    rows = []
    for row, recipe in enumerate(data.recipes):
        target = recipe.target.clips[0].utterance if recipe.target else ""
        others = [clip for source in recipe.interference for clip in source.clips]
        ids: list[Any] = [recipe.index, recipe.kind, target, " ".join(clip.utterance for clip in others)]
        ids += [recipe.reference.utterance, data.speaker(recipe.reference)]
        ids.append(" ".join(data.speaker(clip) for clip in others))
        first, second = before.rows.get(row, {}), after.rows.get(row, {})
        ids += [*sexes(data, row), f"{recipe.seconds:.3f}", _shown(first.get("overlap"))]
        ids += [_shown(scores.get(name)) for name in shown for scores in (first, second)]
        ids += [_shown(second.get(name)) for name in extra]
        if conditions:
            ids.append(data.texts[row] or "")
            ids += [_heard(data, row, before, after, condition, wanted) or "" for condition in conditions]
        rows.append(ids)
    return header, rows


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _heard(
    data: TestSet, row: int, before: System, after: System, condition: str, wanted: Wanted
) -> str | None:
    """What was heard of a row, of a file's hypotheses or by the recogniser; None where it is not known."""
    if wanted.listed is not None:
        return wanted.listed.get((data.recipes[row].index, condition))
    system = before if condition in ("clean", "noisy") else after
    text = system.rows.get(row, {}).get(heard_key(condition, wanted.recognizer or ""))
    return None if text is None else str(text)
