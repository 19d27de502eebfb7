"""From scores of rows to figures of a system, and from two systems to the difference between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.recognition import CONDITIONS, read_hypotheses, word_error_rate, word_errors
from model.row_scores import CLEAN, METRICS, OF_CLEAN, OUTPUT_ONLY
from model.test_set import Row, System, TestSet, Wanted, heard_key
from utils.metrics import SILENCE_DB, accepted_share, bootstrap_interval
from utils.verification import equal_error_rate, error_rates

Summary = dict[str, Any]


def summarize_rows(data: TestSet, before: System, after: System, wanted: Wanted) -> Summary:
    """Of every metric mean, median, standard deviation and the mean's 95 % interval, before, after and
    improved; what else the rows hold.

    Figures are of the n mixtures that hold the asked voice and something else; `alone_...` are of those
    where the voice is alone, `absent_level` of those where it is absent (output against mixture, dB).
    Intervals are over the people asked for. Where there is no mixture, the figures of mixtures are missing.
    """
    recipes = data.recipes
    role = np.array([recipe.role for recipe in recipes])
    owners = [data.speaker(recipe.reference) for recipe in recipes]
    mixtures = np.flatnonzero(role == "mixture")
    summary: Summary = {f"{name}_n": int((role == name).sum()) for name in ("alone", "absent")}
    summary["n"] = len(mixtures)
    for name in METRICS:
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
        summary["by_sex"] = _by_sex(data, mixtures, second - first)
    absent = np.flatnonzero(role == "absent")
    fall = values(after, "level", absent) - values(before, "level", absent)
    if np.isfinite(fall).any():
        summary |= middle("absent_level", fall[np.isfinite(fall)])
        summary["absent_silenced_share"] = float((fall <= -15).mean())
    for name in OF_CLEAN:
        clean = values(after, f"{name}_{CLEAN}", mixtures)
        if np.isfinite(clean).any():
            summary |= spread(f"{name}_{CLEAN}", clean, [owners[row] for row in mixtures])
    summary |= _voices(before, after, mixtures)
    if wanted.recognizer:
        summary["word_errors"] = _word_errors(data, before, after, wanted, owners)
        summary["recognizer"] = wanted.recognizer
    return summary


def values(system: System, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """A metric of some rows [n], NaN where it is not defined."""
    return np.array([system.rows.get(int(row), {}).get(name, np.nan) for row in rows], np.float64)


def middle(name: str, numbers: np.ndarray) -> dict[str, float]:
    return {f"{name}_mean": float(numbers.mean()), f"{name}_median": float(np.median(numbers))}


def spread(name: str, numbers: np.ndarray, owners: Sequence[str]) -> dict[str, float]:
    """Mean, median, sample standard deviation and the mean's interval over the `owners` [n]."""
    low, high = bootstrap_interval(numbers, owners)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return {**middle(name, numbers), f"{name}_std": deviation, f"{name}_low": low, f"{name}_high": high}


def _by_sex(data: TestSet, rows: np.ndarray, gains: np.ndarray) -> dict[str, dict[str, float]]:
    """SI-SDR improvement by the sexes of target and other voice, such as FM; where both are known."""
    groups: dict[str, list[float]] = {}
    for row, gain in zip(rows, gains, strict=True):
        pair = "-".join(sexes(data, int(row)))
        if len(pair) == 3:
            groups.setdefault(pair, []).append(gain)
    return {pair: {"n": len(found), "mean": float(np.mean(found))} for pair, found in sorted(groups.items())}


def sexes(data: TestSet, row: int) -> tuple[str, str]:
    """F or M of the person asked for and of the first other voice, empty where unknown."""
    recipe = data.recipes[row]
    others = [clip for source in recipe.interference if source.kind == "speech" for clip in source.clips]
    other = data.utterances[others[0].utterance].sex if others else ""
    return data.utterances[recipe.reference.utterance].sex, other


def _voices(before: System, after: System, mixtures: np.ndarray) -> Summary:
    """In how many the wrong voice came out, and how well voices are verified in mixtures and estimates."""
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
    return found


def _word_errors(
    data: TestSet, before: System, after: System, wanted: Wanted, owners: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By condition the word error rate in percent, its interval over people, words and utterances."""
    name = wanted.recognizer or ""
    listed = read_hypotheses(Path(name[5:])) if name.startswith("file:") else {}
    found: dict[str, dict[str, float]] = {}
    for condition in CONDITIONS:
        system = before if condition in ("clean", "noisy") else after
        counts, people = [], []
        for row, text in enumerate(data.texts):
            key = heard_key(condition, name)
            heard = listed.get((data.recipes[row].index, condition), system.rows.get(row, {}).get(key))
            if text and heard is not None:
                counts.append(word_errors(text, heard))
                people.append(owners[row])
        if counts:
            errors, words = zip(*counts, strict=True)
            low, high = _interval_of_rate(errors, words, people)
            rate = word_error_rate(errors, words)
            found[condition] = {"wer": rate, "low": low, "high": high, "words": sum(words), "n": len(counts)}
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


def compare(data: TestSet, first: System, second: System, names: Sequence[str]) -> list[dict[str, Any]]:
    """Paired differences (second minus first) of outputs of the same mixtures, a row a metric.

    Mean, 95 % interval over the people asked for, and the two-sided p of Wilcoxon's signed-rank test, which
    takes mixtures as independent.
    """
    from scipy.stats import wilcoxon

    mixtures = [row for row, recipe in enumerate(data.recipes) if recipe.role == "mixture"]
    owners = np.array([data.speaker(data.recipes[row].reference) for row in mixtures])
    found = []
    for name in names:
        a, b = values(first, name, mixtures), values(second, name, mixtures)
        both = np.isfinite(a) & np.isfinite(b)
        if name == "level" or not both.any():
            continue
        gain = (b - a)[both]
        low, high = bootstrap_interval(gain, owners[both].tolist())
        p = float(wilcoxon(gain).pvalue) if np.any(gain) else 1.0
        found.append(
            {
                "first": first.name,
                "second": second.name,
                "metric": name,
                "n": len(gain),
                "mean": float(gain.mean()),
                "low": low,
                "high": high,
                "better_share": float((gain * METRICS[name].better > 0).mean()),
                "p": p,
            }
        )
    return found


def utterance_table(
    data: TestSet, before: System, after: System, wanted: Wanted
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of per_utterance.csv: ids, people, and every score before and after."""
    header = ["index", "kind", "target", "interference", "reference", "reference_speaker", "other_speakers"]
    header += ["sex", "other_sex", "seconds", "overlap"]
    shown = [
        n
        for n in METRICS
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
            ids += [_heard(first, second, condition, wanted) for condition in conditions]
        rows.append(ids)
    return header, rows


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _heard(first: Row, second: Row, condition: str, wanted: Wanted) -> str:
    scores: Mapping[str, Any] = first if condition in ("clean", "noisy") else second
    return str(scores.get(heard_key(condition, wanted.recognizer or ""), ""))
