"""Summaries of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.row_scores import METRICS, PRESERVED_DB, SILENCED_DB
from utils.metrics import SILENCE_DB
from utils.verification import FEWEST_SPEAKERS

SHOWN_PEOPLE = 12
"""Of more, only the first and the last one."""
CONDITION_NAMES = {
    "clean": "clean",
    "noisy": "noisy",
    "enhanced": "enhanced",
    "enhanced_clean": "enhanced clean",
}


def markdown(summary: dict[str, Any]) -> str:
    """The summary of one checkpoint as a small table for people."""
    heard = summary["heard_speakers"]
    known = {None: "", 0: " never heard in training"}.get(heard, f", {heard} HEARD IN TRAINING")
    title = f"{summary['n']} mixtures of {summary['speakers']} speakers{known}"
    use = summary["mask"]
    mask = "" if use == "org" else f", mask {use} with factor {summary['factor']:g}"
    lines = [f"{summary['checkpoint']}: {title} ({summary['split']}, {summary['protocol']}{mask})", ""]
    lines += _scores(summary)
    lines += _remarks(summary)
    return "\n".join(lines)


def _scores(summary: dict[str, Any]) -> list[str]:
    shown = [name for name in METRICS if f"{name}_after_mean" in summary]
    if not shown:
        return []
    lines = [
        "| | before mean | median | after mean | median | std | change, mean [95 %] | median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in shown:
        label, unit, digits, _ = METRICS[name]

        def number(key: str, sign: str = "", digits: int = digits, name: str = name) -> str:
            value = summary.get(f"{name}_{key}")
            return "" if value is None else f"{value:{sign}.{digits}f}"

        keys = ("before_mean", "before_median", "after_mean", "after_median", "after_std")
        cells = [number(key) for key in keys]
        low, high = number("improvement_low", "+"), number("improvement_high", "+")
        cells.append(number("improvement_mean", "+") + (f" [{low}, {high}]" if low else ""))
        cells.append(number("improvement_median", "+"))
        lines.append(f"| {label}{f', {unit}' if unit else ''} | {' | '.join(cells)} |")
    return lines


def _remarks(summary: dict[str, Any]) -> list[str]:
    lines = [""]
    if "accepted_share" in summary:
        lines.append(
            f"Improved by more than 1 dB SI-SDR: {100 * summary['accepted_share']:.1f} % of the mixtures. "
            + intervals_of(summary["speakers"])
        )
    if summary["not_finite"]:
        lines.append(
            f"{summary['not_finite']} ESTIMATES ARE NaN OR INFINITE and were scored as silence: the weights "
            "have diverged."
        )
    if summary.get("silent"):
        lines.append(f"{summary['silent']} have a silent target or estimate, scored {SILENCE_DB:g} dB.")
    if "wrong_voice_share_after" in summary:
        lines.append(
            f"The output resembles the other voice more than the reference in "
            f"{100 * summary['wrong_voice_share_after']:.1f} % (the mixture: "
            f"{100 * summary['wrong_voice_share_before']:.1f} %)."
        )
    if "verification_eer_after" in summary:
        lines.append(
            f"Speaker verification, EER: {100 * summary['verification_eer_before']:.2f} % on mixtures, "
            f"{100 * summary['verification_eer_after']:.2f} % on estimates, "
            f"{100 * summary['verification_eer_clean']:.2f} % on clean targets "
            f"({summary['verification_trials']} trials; the estimates are of the voice that is there, judged "
            "by the embedder of the first checkpoint that was scored with it, unless -e names another)."
        )
    if "claimed_eer_after" in summary:
        lines.append(
            "The same where the estimates are of the person who is claimed, present or absent: "
            f"{100 * summary['claimed_eer_before']:.2f} % on mixtures, "
            f"{100 * summary['claimed_eer_after']:.2f} % on estimates ({summary['claimed_trials']} trials)."
        )
    if changes := sorted({change for made in summary.get("earlier", ()) for change in made}):
        lines.append(f"Some scores are of earlier runs, which differed in {'; '.join(changes)}.")
    if len(summary.get("by_sex", ())) > 1:
        parts = [f"{pair} {v['mean']:+.2f} dB (n {v['n']})" for pair, v in summary["by_sex"].items()]
        lines.append(f"SI-SDR improvement by the sexes of target and other voice: {', '.join(parts)}.")
    if len(people := summary.get("by_person", {})) > 1:
        parts = [
            f"{who} {found['mean']:+.2f} dB "
            f"({100 * found['accepted_share']:.0f} % above 1 dB, n {found['n']})"
            for who, found in people.items()
        ]
        ends = parts if len(parts) <= SHOWN_PEOPLE else [parts[0], "...", parts[-1]]
        lines.append(
            f"SI-SDR improvement by the person who is asked for: {', '.join(ends)}. "
            f"Worse than the mixture: {100 * summary['worse_share']:.1f} %."
        )
    if {"sdr_clean_mean", "si_sdr_clean_mean"} <= summary.keys():
        lines.append(
            f"With the target alone as input the output has a median of {summary['sdr_clean_median']:.2f} dB "
            f"SDR (mean {summary['sdr_clean_mean']:.2f}, of values up to 100; "
            f"at least {PRESERVED_DB:g} dB in {100 * summary['sdr_clean_preserved_share']:.0f} %, "
            f"the least is {summary['sdr_clean_min']:.2f}), "
            f"{summary['si_sdr_clean_median']:.2f} dB SI-SDR (mean {summary['si_sdr_clean_mean']:.2f})."
        )
    if summary["alone_n"] and "alone_si_sdr_mean" in summary:
        lines.append(
            f"{summary['alone_n']} examples hold the asked voice alone: "
            f"SI-SDR {summary['alone_si_sdr_median']:.2f} dB in the median "
            f"(mean {summary['alone_si_sdr_mean']:.2f})."
        )
    if "absent_level_mean" in summary:
        lines.append(
            f"In {summary['absent_n']} the asked voice is absent: the output is "
            f"{summary['absent_level_mean']:+.1f} dB against the mixture (lower is better), "
            f"at least {SILENCED_DB:g} dB below it in {100 * summary['absent_silenced_share']:.0f} %."
        )
    if summary["same_utterance_speakers"]:
        lines.append(
            f"{summary['same_utterance_speakers']} of these speakers have one utterance: their reference "
            "is its other half (same session, an easier task)."
        )
    if words := summary.get("word_errors"):
        lines += ["", *word_table([("", words)], summary["recognizer"])]
    return lines


def intervals_of(speakers: int) -> str:
    """What intervals are taken over, in a sentence."""
    if speakers < FEWEST_SPEAKERS:
        return f"No intervals: {speakers} speakers say nothing of others."
    return f"Intervals are taken over {speakers} speakers."


def word_table(rows: Sequence[tuple[str, dict[str, Any]]], recognizer: str) -> list[str]:
    """Word error rates in percent of several systems, each with its interval, if there is one."""
    shown = [name for name in CONDITION_NAMES if any(name in words for _, words in rows)]
    counts = {(w[name]["n"], w[name]["words"]) for _, w in rows for name in shown if name in w}
    alike = len(counts) == 1
    of = "; {} utterances, {} words".format(*counts.pop()) if alike else "; n: utterances, which differ"
    lines = [
        f"Word error rate, % ({recognizer}{of}):",
        "",
        f"| | {' | '.join(CONDITION_NAMES[name] for name in shown)} |",
        f"|{'---|' * (len(shown) + 1)}",
    ]
    for label, words in rows:
        cells = [_rate(words[name], not alike) if name in words else "" for name in shown]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _rate(figures: dict[str, Any], with_count: bool) -> str:
    limits = f" [{figures['low']:.1f}, {figures['high']:.1f}]" if "low" in figures else ""
    return f"{figures['wer']:.1f}{limits}" + (f" (n {figures['n']})" if with_count else "")


def side_by_side(summaries: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]) -> str:
    """Several checkpoints in one table, and the paired differences between them."""
    shown = [
        name for name in METRICS if all(f"{name}_after_mean" in s for s in summaries) and name != "level"
    ]
    lines = [
        f"| | {' | '.join(METRICS[name].label for name in shown)} | > 1 dB |",
        f"|{'---|' * (len(shown) + 2)}",
    ]
    if not shown:
        return "No mixture holds the asked voice, nothing to compare."
    mixture = [summaries[0].get(f"{name}_before_mean") for name in shown]
    before = [
        "" if value is None else f"{value:.{METRICS[name].digits}f}"
        for name, value in zip(shown, mixture, strict=True)
    ]
    lines.append(f"| mixture | {' | '.join(before)} | |")
    for summary in summaries:
        cells = [f"{summary[f'{name}_after_mean']:.{METRICS[name].digits}f}" for name in shown]
        share = f"{100 * summary['accepted_share']:.1f} %" if "accepted_share" in summary else ""
        heard = summary.get("heard_speakers")
        known = f" (HAS HEARD {heard} OF THESE SPEAKERS IN TRAINING)" if heard else ""
        lines.append(f"| {summary['checkpoint']}{known} | {' | '.join(cells)} | {share} |")
    if any(summary.get("word_errors") for summary in summaries):
        rows = [(summary["checkpoint"], summary["word_errors"]) for summary in summaries]
        lines += ["", *word_table(rows, summaries[0]["recognizer"])]
    lines += [
        "",
        "Paired differences, second minus first; interval over speakers, p of a permutation test that "
        "changes the signs of each speaker's differences together (neither of fewer than "
        f"{FEWEST_SPEAKERS} speakers):",
        "",
        "| first | second | metric | n | mean [95 %] | second better | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in differences:
        digits, mean, p = row["digits"], f"{row['mean']:+.{row['digits']}f}", ""
        if row["low"] is not None:
            mean += f" [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
            p = f"{row['p']:.2g}"
        lines.append(
            f"| {row['first']} | {row['second']} | {row['label']} | {row['n']} | {mean} | "
            f"{100 * row['better_share']:.0f} % | {p} |"
        )
    return "\n".join(lines)
