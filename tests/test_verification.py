"""Error rates, EER and detection cost as relations; enrolments, pairs and lists of trials."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from config.embedder_schema import ValidationSpeakers
from datasets.corpus import Utterance, index_corpus
from datasets.trials import all_pairs, enrolments, read_trials
from model.verification import verify
from utils.errors import UserError
from utils.verification import equal_error_rate, error_rates, min_dcf, speaker_interval


def random_trials(seed: int = 0, count: int = 400, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.3
    return np.round(generator.standard_normal(count) + shift * same, 1), same


def test_the_equal_error_rate_by_hand() -> None:
    scores, same = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9]), np.repeat([False, True], 4)
    rate, threshold = equal_error_rate(error_rates(scores, same))
    assert rate == pytest.approx(0.25) and 0.4 <= threshold <= 0.7
    assert min_dcf(error_rates(scores, same)) == pytest.approx(0.25)  # a quarter is missed, nothing else


def test_the_curve_equals_brute_force_and_weights_are_repetitions() -> None:
    scores, same = random_trials()
    curve = error_rates(scores, same)
    assert len(curve.thresholds) == len(np.unique(scores)) + 1
    for threshold, misses, alarms in zip(*curve, strict=True):
        assert misses == pytest.approx((scores[same] < threshold).mean())
        assert alarms == pytest.approx((scores[~same] >= threshold).mean())
    rate, _ = equal_error_rate(curve)
    steps = [(m, f) for _, m, f in zip(*curve, strict=True)]
    low = max(min(m, f) for m, f in steps)
    assert low - 1e-12 <= rate <= min(max(m, f) for m, f in steps) + 1e-12
    costs = [0.01 * m + 0.99 * f for m, f in steps]
    assert min_dcf(curve) == pytest.approx(min(costs) / 0.01)
    times = np.random.default_rng(1).integers(0, 4, len(scores))
    weighted = error_rates(scores, same, times)
    repeated = error_rates(np.repeat(scores, times), np.repeat(same, times))
    assert equal_error_rate(weighted)[0] == pytest.approx(equal_error_rate(repeated)[0])
    assert min_dcf(weighted) == pytest.approx(min_dcf(repeated))


@pytest.mark.parametrize("change", [lambda s: s - 100, lambda s: 1e-3 * s, np.arctan, lambda s: s**3])
def test_only_the_order_of_scores_matters(change) -> None:  # type: ignore[no-untyped-def]
    scores, same = random_trials()
    before, after = error_rates(scores, same), error_rates(change(scores), same)
    assert equal_error_rate(before)[0] == pytest.approx(equal_error_rate(after)[0])
    assert min_dcf(before) == pytest.approx(min_dcf(after))


def test_the_ends_of_the_scale() -> None:
    same = np.arange(20_000) % 2 == 0
    noise = np.random.default_rng(0).random(20_000)
    assert equal_error_rate(error_rates(noise, same))[0] == pytest.approx(0.5, abs=0.02)
    assert (
        equal_error_rate(error_rates(noise + same, same))[0] == 0 == min_dcf(error_rates(noise + same, same))
    )
    assert equal_error_rate(error_rates(noise - 2 * same, same))[0] == pytest.approx(1.0, abs=1e-3)
    assert equal_error_rate(error_rates(np.zeros(20_000), same)) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("scores", "same"),
    [([0.1, 0.2], [True, True]), ([0.1, 0.2], [False, False]), ([], []), ([np.nan, 1.0], [True, False])],
)
def test_trials_without_a_verdict_are_refused(scores: list[float], same: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"expected some of either|NaN"):
        error_rates(np.array(scores), np.array(same, bool))


def test_the_interval_is_over_speakers() -> None:
    generator = np.random.default_rng(0)
    speakers = np.repeat(np.arange(20), 5)
    vectors = generator.standard_normal((20, 16))[speakers] + generator.standard_normal((100, 16))
    trials = all_pairs([f"s{number}" for number in speakers])
    found = verify(vectors, trials, [f"s{number}" for number in speakers])
    assert 0 < found.eer_low < found.eer < found.eer_high < 0.5
    assert (found.targets, found.impostors, found.speakers, found.utterances) == (200, 4750, 20, 100)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (unit @ unit.T)[trials.first, trials.second]
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert found.summary()["eer"] == found.eer and "scores" not in found.summary()
    assert "20 speakers" in found.sentence()
    alone = np.zeros(4, int)
    scores, same = np.array([0.1, 0.5, 0.4, 0.9]), np.array([False, True, False, True])
    assert speaker_interval(scores, same, alone, alone) is None


# ---------------------------------------------------------------- what is compared


def utterance(speaker: str, number: int, seconds: float = 4.0, folder: str = "/c") -> Utterance:
    frames = round(16000 * seconds)
    path = f"{folder}/{speaker}/{number}.flac"
    return Utterance(f"{speaker}-{number}", speaker, path, frames, 16000, active=((800, frames - 800),))


def test_all_pairs_are_all_pairs() -> None:
    trials = all_pairs(["a", "b", "a", "c", "b"])
    pairs = set(zip(trials.first.tolist(), trials.second.tolist(), strict=True))
    assert len(pairs) == len(trials.same) == 10 and all(a < b for a, b in pairs)
    assert {
        p for p, same in zip(zip(trials.first, trials.second, strict=True), trials.same, strict=True) if same
    } == {
        (0, 2),
        (1, 4),
    }


def test_enrolments_are_chosen_by_speaker_alone() -> None:
    speakers = {name: [utterance(name, number) for number in range(9)] for name in "abc"}
    options = ValidationSpeakers(utterances=4)
    found = enrolments(speakers, options, 0)
    assert found.speakers == [name for name in "abc" for _ in range(4)] and found.divided == 0
    assert all(clip.stretches == ((0, 64000),) for clip in found.clips)
    fewer = enrolments({"c": speakers["c"][::-1], "b": speakers["b"]}, options, 0)
    assert fewer.clips == found.clips[4:]
    assert enrolments(speakers, options, 1).clips != found.clips
    short = enrolments(speakers, ValidationSpeakers(utterances=4, seconds=2.0), 0)
    assert all(clip.stretches == ((800, 32000),) for clip in short.clips)


def test_one_utterance_is_divided_into_disjoint_pieces() -> None:
    speakers = {
        "long": [utterance("long", 0, 13.1)],
        "halves": [utterance("halves", 0, 4.0)],
        "short": [utterance("short", 0, 1.5)],
    }
    found = enrolments(speakers, ValidationSpeakers(piece_seconds=3.0), 0)
    assert found.speakers == ["halves"] * 2 + ["long"] * 4 + ["short"] and found.divided == 2
    for name, least in (("long", 48000), ("halves", 12800)):
        pieces = [c.stretches for c, who in zip(found.clips, found.speakers, strict=True) if who == name]
        ends = [(stretch[0][0], stretch[0][0] + stretch[0][1]) for stretch in pieces]
        assert all(before[1] == after[0] for before, after in pairwise(ends))
        assert len({stop - start for start, stop in ends}) == 1 and ends[0][1] - ends[0][0] >= least
    two = enrolments(speakers, ValidationSpeakers(utterances=2, seconds=1.0), 0)
    assert two.speakers.count("long") == 2 and all(clip.frames <= 16000 for clip in two.clips)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UserError, match="1 speakers: at least two"):
        enrolments({"a": [utterance("a", 0)]}, ValidationSpeakers(), 0)
    with pytest.raises(UserError, match="no two clips of one speaker"):
        enrolments({n: [utterance(n, 0, 1.2)] for n in "ab"}, ValidationSpeakers(), 0)


def test_a_list_names_utterances_by_the_end_of_their_path(tmp_path: Path) -> None:
    found = [utterance(name, number) for name in "ab" for number in range(3)]
    found.append(Utterance("other", "a", "/d/a/0.flac", 16000, 16000))
    by_id = {u.id: u for u in found}
    path = tmp_path / "trials.txt"
    path.write_text(
        "1 a/1.flac a/2.wav\n\n0 c/a/0 b/1\ntarget b-0 ./b/2.flac\nnontarget a/0.flac b/0.flac\n"
        "0 /1.flac a/1.flac\n0 a/9.flac b/0.flac\n1 a/1 a-1\n"
    )
    listed = read_trials(path, by_id)
    names = [clip.utterance for clip in listed.clips]
    pairs = [(names[a], names[b]) for a, b in zip(listed.trials.first, listed.trials.second, strict=True)]
    assert pairs == [("a-1", "a-2"), ("a-0", "b-1"), ("b-0", "b-2")]
    assert listed.trials.same.tolist() == [True, False, True]
    assert [(line, name, cause.split(":")[0]) for line, name, cause in listed.missing] == [
        (5, "a/0.flac", "ambiguous path"),
        (6, "/1.flac", "ambiguous path"),
        (7, "a/9.flac", "missing audio"),
        (8, "a-1", "an utterance with itself"),
    ]
    assert "3 of 7 trials" in listed.describe(path) and "2 ambiguous path" in listed.describe(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 a/0 a/1\n2 a/0 b/0\n", "line 2: expected `label path path`.*'2 a/0 b/0'"),
        ("1 a/0\n", "line 1: expected"),
        ("1 a/0 a/1\n", "of 1 trials 1 of one speaker and 0 of two"),
        ("1 x/0 a/1\n0 x/0 b/1\n", "0 of one speaker and 0 of two.*line 1: x/0: missing audio"),
        ("", "of 0 trials"),
    ],
)
def test_a_list_without_a_verdict_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_trials(tmp_path / "t.txt", {u.id: u for u in (utterance(n, i) for n in "ab" for i in range(2))})
    with pytest.raises(UserError, match="no such list"):
        read_trials(tmp_path / "gone.txt", {})


def test_labels_that_contradict_the_corpus_are_said_or_refused(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = {u.id: u for u in index_corpus([corpus_folder]).utterances}
    lines = ["1 100-7-0000 100-7-0001", "0 100-7-0000 101-7-0001", "1 101-7-0000 101-7-0001"]
    wrong = [*lines, "1 100-7-0000 101-7-0000"]
    (tmp_path / "some.txt").write_text("\n".join(wrong))
    assert len(read_trials(tmp_path / "some.txt", utterances).trials.same) == 4
    assert "1 of 4 labels contradict" in capsys.readouterr().out
    (tmp_path / "all.txt").write_text("\n".join(f"{1 - int(line[0])}{line[1:]}" for line in lines))
    with pytest.raises(UserError, match="3 of 3 labels contradict"):
        read_trials(tmp_path / "all.txt", utterances)


def test_a_trial_of_a_training_speaker_is_left_out_as_such(corpus_folder: Path, tmp_path: Path) -> None:
    found = {u.id: u for u in index_corpus([corpus_folder]).utterances}
    held_out = {name: u for name, u in found.items() if u.speaker in ("100", "101")}
    (tmp_path / "list.txt").write_text(
        "1 100-7-0000 100-7-0001\n0 100-7-0000 101-7-0001\n0 100-7-0000 103-7-0001\n0 100-7-0000 nobody.wav"
    )
    listed = read_trials(tmp_path / "list.txt", held_out, found)
    assert [cause.split(":")[0] for *_, cause in listed.missing] == ["not for validation", "missing audio"]


def test_no_interval_of_few_speakers_or_without_an_error() -> None:
    generator = np.random.default_rng(0)
    for people, noise, known in ((2, 3.0, False), (8, 3.0, True), (8, 0.0, False)):
        owners = np.repeat(np.arange(people), 4)
        first, second = np.triu_indices(len(owners), 1)
        same = owners[first] == owners[second]
        scores = same + noise * generator.standard_normal(len(same))
        interval = speaker_interval(scores, same, owners[first], owners[second])
        assert (interval is not None) == known
