from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from config.schema import Data, Reverberation
from datasets.corpus import Utterance, index_corpus, index_sounds
from datasets.draw import Drawer
from datasets.lists import listed_recipes, read_tuples, tuple_recipes
from datasets.mixture import equalize, read_clip, render
from datasets.plan import split_sounds
from datasets.recipe import EQUALIZER_HZ, Clip, Recipe, RecipeFile
from datasets.rooms import Room, draw_shoebox, reverberate, simulate
from datasets.stretches import active_frames, before, cut, draw_cut, halves, total, usable
from tests.conftest import SHARED, tone_voice
from utils.codecs import CODECS, through_codec
from utils.errors import UserError


def speakers(count: int, utterances: int, seconds: float) -> dict[str, list[Utterance]]:
    return {
        str(s): [Utterance(f"{s}-{u}", str(s), "", round(seconds * 16000), 16000) for u in range(utterances)]
        for s in range(count)
    }


def noises(count: int, seconds: float = 5.0) -> dict[str, list[Utterance]]:
    made = [Utterance(f"noise:{n}", "", "", round(seconds * 16000), 16000) for n in range(count)]
    return {"noise": made, "music": made[:1]}


def data(**options: object) -> Data:
    return Data(noise=["n"], music=["m"], rirs=["r"], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def spoken(corpus_folder: Path) -> dict[str, Utterance]:
    return {u.id: u for u in index_corpus([corpus_folder]).utterances}


@pytest.fixture(scope="module")
def by_speaker(corpus_folder: Path) -> dict[str, list[Utterance]]:
    return index_corpus([corpus_folder]).by_speaker()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Utterance]]:
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", 0.02 * generator.standard_normal(16000), 16000)
    return {"noise": list(index_sounds([folder], "noise").utterances)}


# ---------------------------------------------------------------- drawing


def test_a_recipe_depends_on_seed_split_and_index_alone() -> None:
    drawer = Drawer("train", speakers(5, 3, 9), Data())
    later = Drawer("train", speakers(5, 3, 9), Data())
    recipes = [drawer.draw(i) for i in range(20)]
    assert recipes == [later.draw(i) for i in reversed(range(20))][::-1]
    assert recipes[3] != Drawer("test", speakers(5, 3, 9), Data()).draw(3)
    assert recipes[3] != Drawer("train", speakers(5, 3, 9), Data(seed=1)).draw(3)


EVERYTHING: dict[str, object] = {
    "kinds": {"mixture": 0.4, "target_alone": 0.2, "target_absent": 0.2, "noise_only": 0.2},
    "interferers": [1, 3],
    "interference": {"speech": 1.0, "noise": 1.0, "music": 1.0, "babble": 1.0},
    "babble_voices": 3,
    "background": {"noise": 0.5, "snr_db": [5.0, 20.0]},
    "snr_db": [-5.0, 10.0],
    "padding": 0.5,
    "gain_db": [-10.0, 0.0],
    "equalization": {"share": 0.5},
    "coding": {"share": 0.5},
    "reverberation": {"share": 0.5, "target": "early"},
    "speeds": [0.9, 1.0, 1.1],
}


def test_every_recipe_survives_its_line_and_a_line_is_checked(tmp_path: Path) -> None:
    drawer = Drawer("train", speakers(14, 3, 9), data(**EVERYTHING), noises(3), "0123456789abcdef")
    recipes = [drawer.draw(i) for i in range(100)]
    assert [Recipe.from_line(recipe.to_line()) for recipe in recipes] == recipes
    assert all(recipe.corpus == "0123456789abcdef" for recipe in recipes)
    path = tmp_path / "recipes.jsonl"
    path.write_text("".join(recipe.to_line() + "\n" for recipe in recipes))
    assert list(RecipeFile(path)) == recipes
    assert (RecipeFile(path)[-1], RecipeFile(path)[3:5]) == (recipes[-1], recipes[3:5])
    path.write_text(recipes[0].to_line())  # no line break at the end
    assert list(RecipeFile(path)) == recipes[:1]
    path.write_text("")
    assert len(RecipeFile(path)) == 0
    good = json.loads(next(r for r in recipes if r.kind == "mixture").to_line())
    assert good["target"]["clips"] and "snr_db" in good["interference"][0]
    for place, key, value in (
        ("", "kind", "song"), ("", "index", "a"), ("", "index", -1), ("", "index", True),
        ("", "seconds", 0), ("", "seconds", 1e9), ("", "gain_db", "x"), ("", "gain_db", math.nan),
        ("target", "codec", "mp4-16"), ("target", "codec", ["mp3-16"]), ("target", "codec", None),
        ("target", "equalizer", [1.0]), ("target", "equalizer", ["a"] * 7),
        ("", "surprise", 1), ("target", "at", -1), ("target", "at", 9), ("target", "kind", "spech"),
        ("target", "clips", []), ("interference", "snr_db", "5"), ("interference", "snr_db", math.inf),
        ("reference", "stretches", []), ("reference", "stretches", [[-1, 5]]),
        ("reference", "stretches", [[0, 0]]), ("reference", "stretches", [[0, 1.5]]),
        ("reference", "speed", 0), ("reference", "utterance", 7),
    ):  # fmt: skip
        bad = copy.deepcopy(good)
        part = bad[place] if place else bad
        (part[0] if isinstance(part, list) else part)[key] = value
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        assert RecipeFile(path)[0].index == good["index"]
        with pytest.raises(UserError, match=r"line 2: not a recipe"):
            RecipeFile(path)[1]
    for text in ("{}", "[]", "nonsense", "7", '"a"', "null"):
        with pytest.raises(UserError, match="not a recipe"):
            Recipe.from_line(text)
    with pytest.raises(UserError, match="no such list"):
        RecipeFile(tmp_path / "nothing")


def test_reference_is_another_utterance_of_the_target_s_speaker() -> None:
    drawer = Drawer("train", speakers(4, 3, 9), Data())
    for recipe in (drawer.draw(i) for i in range(200)):
        assert recipe.target is not None
        target, interference = recipe.target.clips[0].utterance, recipe.interference[0].clips[0].utterance
        assert target != recipe.reference.utterance
        assert target[0] == recipe.reference.utterance[0] != interference[0]


def test_one_utterance_gives_reference_and_target_from_parts_that_do_not_overlap() -> None:
    drawer = Drawer("train", speakers(4, 1, 9), Data())
    assert drawer.same_utterance == 4
    starts = set()
    for recipe in (drawer.draw(i) for i in range(200)):
        assert recipe.target is not None
        (start, frames), (other, length) = recipe.target.clips[0].stretches[0], recipe.reference.stretches[0]
        assert recipe.target.clips[0].utterance == recipe.reference.utterance
        assert start + frames <= other or other + length <= start
        assert start + frames <= 9 * 16000
        starts.add(other)
    assert starts == {0, 72000}


def test_speakers_without_enough_audio_are_listed_and_two_must_be_left() -> None:
    voices = speakers(3, 2, 9) | {"9": speakers(10, 1, 4)["9"]}
    drawer = Drawer("train", voices, Data())
    assert [name for name, _ in drawer.unusable] == ["9"]
    assert "4.0 s in 1 utterances" in drawer.unusable[0][1]
    with pytest.raises(UserError, match="0 of 3 speakers have enough audio"):
        Drawer("train", speakers(3, 1, 4), Data())
    with pytest.raises(UserError, match="3 speakers are too few, an example may hold 7"):
        Drawer("train", speakers(3, 2, 9), data(interference={"babble": 1.0}), noises(3))
    with pytest.raises(UserError, match="test: is drawn with noise, of which there is no recording"):
        Drawer("test", speakers(3, 2, 9), data(background={"noise": 1.0}), {})


def test_paired_examples_are_one_mixture_with_the_roles_swapped(spoken: dict[str, Utterance]) -> None:
    room = Reverberation(share=0.5)
    drawer = Drawer("train", speakers(4, 3, 9), Data(paired=True, snr_db=[-5.0, 5.0], reverberation=room))
    for first, second in ((drawer.draw(2 * k), drawer.draw(2 * k + 1)) for k in range(20)):
        assert first.target and second.target
        assert first.target == replace(second.interference[0], snr_db=None)
        assert second.target == replace(first.interference[0], snr_db=None)
        assert first.reference.utterance[0] == first.target.clips[0].utterance[0]
        assert second.reference.utterance[0] == second.target.clips[0].utterance[0]
        assert first.interference[0].snr_db == -second.interference[0].snr_db  # type: ignore[operator]


def test_kinds_come_in_their_shares_and_hold_what_they_say() -> None:
    shares = {"mixture": 1.0, "target_alone": 1.0, "target_absent": 1.0, "noise_only": 1.0}
    options = data(kinds=shares, interference={"speech": 1.0, "noise": 1.0})
    drawer = Drawer("train", speakers(6, 3, 9), options, noises(3))
    recipes = [drawer.draw(i) for i in range(800)]
    for kind in shares:
        assert 150 < sum(recipe.kind == kind for recipe in recipes) < 250
    for recipe in recipes:
        person = recipe.reference.utterance[0]
        voices = {
            c.utterance[0] for source in recipe.sources for c in source.clips if source.kind == "speech"
        }
        assert (person in voices) == (recipe.kind in ("mixture", "target_alone")) == bool(recipe.target)
        assert bool(recipe.interference) == (recipe.kind != "target_alone")
        assert bool(voices) == (recipe.kind != "noise_only")
        roles = {"mixture": "mixture", "target_alone": "alone"}
        assert recipe.role == roles.get(recipe.kind, "absent")
        swapped = {"mixture": "mixture", "target_alone": "absent"}
        assert replace(recipe, reverse=True).role == swapped.get(recipe.kind, "alone")


def test_interferers_are_as_many_and_as_loud_as_asked_for() -> None:
    options = data(
        interferers=[2, 3], snr_db=[3.0, 6.0], background={"noise": 1.0, "snr_db": 15.0},
        interference={"speech": 0.0, "babble": 1.0}, babble_voices=3,
    )  # fmt: skip
    drawer = Drawer("test", speakers(11, 3, 9), options, noises(3, seconds=2.0))
    counts = set()
    for recipe in (drawer.draw(i) for i in range(60)):
        *babbles, background = recipe.interference
        counts.add(len(babbles))
        people = [recipe.reference.utterance.split("-")[0]]
        for babble in babbles:
            assert babble.kind == "babble" and 3 <= (babble.snr_db or 0) <= 6
            people += [clip.utterance.split("-")[0] for clip in babble.clips]
        assert len(people) == 1 + 3 * len(babbles) == len(set(people))
        assert (background.kind, background.snr_db, background.loop) == ("noise", 15.0, True)
    assert counts == {2, 3}
    fixed = Drawer("test", speakers(3, 2, 9), Data(snr_db=4.0)).draw(0)
    assert fixed.interference[0].snr_db == 4.0


def test_silence_is_not_drawn_and_vad_leaves_it_out() -> None:
    active = ((16000, 48000), (112000, 144000))
    spoken = {name: [replace(u, active=active) for u in found] for name, found in speakers(4, 3, 10).items()}
    quiet = Drawer("train", spoken, Data(min_active=0.0))
    for data_, least in ((Data(min_active=1.0), 16000), (Data(min_active=1.0, vad="trim"), 16000)):
        drawer = Drawer("train", spoken, data_)
        clips = [c for i in range(100) for s in drawer.draw(i).sources for c in s.clips]
        assert all(active_frames(clip.stretches, active) >= least for clip in clips)
        assert drawer.draw(0).reference.stretches == ((16000, 96000),)  # from the first sound on
    clips = [c for i in range(100) for s in quiet.draw(i).sources for c in s.clips]
    assert any(active_frames(clip.stretches, active) < 16000 for clip in clips)
    merged = Drawer("train", spoken, Data(vad="merge", seconds=2.0)).draw(0)
    for clip in (*(c for s in merged.sources for c in s.clips), merged.reference):
        assert active_frames(clip.stretches, active) == clip.frames
        assert clip.frames == (64000 if clip is merged.reference else 32000)
    assert usable(spoken["0"][0], "trim") == ((16000, 128000),)


def test_stretches_cut_like_the_signal_they_stand_for() -> None:
    signal = np.arange(100)
    stretches = ((5, 20), (40, 10), (80, 15))
    joined = np.concatenate([signal[start : start + frames] for start, frames in stretches])
    for offset, frames in ((0, 45), (3, 10), (18, 9), (19, 1), (20, 30), (44, 5), (45, 5)):
        parts = cut(stretches, offset, frames)
        found = [signal[start : start + length] for start, length in parts]
        np.testing.assert_array_equal(
            np.concatenate([np.empty(0, int), *found]), joined[offset : offset + frames]
        )
    assert before(stretches, 45) == 25
    assert [total(half) for half in halves(stretches)] == [22, 23]
    assert active_frames(((10, 50),), ((0, 12), (20, 30), (59, 90))) == 2 + 10 + 1
    assert active_frames(((10, 50),), None) == 50
    silent = draw_cut(((0, 100),), 10, (), 5, np.random.default_rng(0))
    assert total(silent) == 10


def test_padded_takes_whole_utterances_where_they_are_scored_and_segments_to_train() -> None:
    voices = speakers(4, 3, 9) | {"5": [Utterance(f"5-{n}", "5", "", 40000, 16000) for n in range(3)]}
    drawer = Drawer("test", voices, Data(protocol="padded"))
    for recipe in (drawer.draw(i) for i in range(50)):
        assert recipe.target is not None
        target, other = recipe.target.clips[0], recipe.interference[0].clips[0]
        assert recipe.seconds * 16000 == target.frames
        assert target.stretches[0][0] == other.stretches[0][0] == 0
        whole = 40000 if other.utterance[0] == "5" else 144000
        assert other.frames == min(whole, target.frames)
    training = Drawer("train", voices, Data(protocol="padded"))
    assert set(training.voices) == {"0", "1", "2", "3"}  # the fifth has no segment of 3 s
    for recipe in (training.draw(i) for i in range(200)):
        assert recipe.target is not None and recipe.seconds == 3.0
        start, frames = recipe.target.clips[0].stretches[0]
        assert frames == 48000
        other = recipe.interference[0].clips[0]
        whole = 40000 if other.utterance[0] == "5" else 144000
        begin = start if start < whole else 0  # one that has ended is taken from its start
        assert other.stretches == ((begin, min(48000, whole - begin)),)


def test_every_kind_of_every_protocol_has_what_it_says() -> None:
    voices = {
        str(s): [Utterance(f"{s}-{u}", str(s), "", [48000, 56000, 640000][u], 16000) for u in range(3)]
        for s in range(9)
    }
    for protocol in ("crop", "padded"):
        for split in ("train", "test"):
            options = EVERYTHING | {"protocol": protocol, "padding": 0.0, "interferers": [1, 2]}
            drawer = Drawer(split, voices, data(**options), noises(3))
            for recipe in (drawer.draw(i) for i in range(300)):
                assert all(source.clips for source in recipe.sources)
                assert (recipe.kind in ("mixture", "target_alone")) == (recipe.target is not None)
                assert Recipe.from_line(recipe.to_line()) == recipe
                if recipe.kind in ("mixture", "target_absent"):
                    assert recipe.interference


def test_speech_is_found_in_long_silence() -> None:
    voices = {
        name: [replace(u, active=((1_500_000, 1_540_000),)) for u in found]
        for name, found in speakers(4, 3, 120).items()
    }
    drawer = Drawer("train", voices, Data())
    for recipe in (drawer.draw(i) for i in range(100)):
        for source in recipe.sources:
            assert active_frames(source.clips[0].stretches, ((1_500_000, 1_540_000),)) >= 8000


def test_a_silent_half_is_no_target_and_silence_no_interference() -> None:
    half = {
        name: [replace(u, active=((0, 320_000),)) for u in found]
        for name, found in speakers(3, 1, 60).items()
    }
    for protocol in ("crop", "padded"):
        for split in ("train", "test"):
            with pytest.raises(UserError, match="0 of 3 speakers have enough audio"):
                Drawer(split, half, Data(protocol=protocol))
    early = ((16000, 80_000),)
    voices = {name: [replace(u, active=early) for u in found] for name, found in speakers(3, 2, 60).items()}
    voices["9"] = speakers(10, 2, 60)["9"]
    drawer = Drawer("train", voices, Data(protocol="padded"))
    for recipe in (drawer.draw(i) for i in range(100)):
        for source in recipe.sources:
            clip = source.clips[0]
            assert clip.utterance[0] == "9" or active_frames(clip.stretches, early) >= 1600


def test_a_speaker_with_one_long_utterance_keeps_its_halves_beside_short_ones() -> None:
    voices = speakers(3, 2, 9)
    voices["9"] = [Utterance("9-0", "9", "", 60 * 16000, 16000), Utterance("9-1", "9", "x", 19200, 16000)]
    drawer = Drawer("train", voices, Data())
    assert "9" in drawer.voices and drawer.same_utterance == 1 and not drawer.unusable
    assert drawer.short[0][0] == "x" and "never the target: 1.20 s" in drawer.short[0][1]


def test_an_utterance_a_sample_too_short_for_the_slowest_speed_is_left_out() -> None:
    needed = round(3.0 * round(22050 * 0.95))  # 20,948 a second: a half sample is rounded up
    for frames, there in ((needed, True), (needed - 1, False)):
        voices = {s: [Utterance(f"{s}-{u}", s, "", frames, 22050) for u in range(2)] for s in ("a", "b", "c")}
        if not there:
            with pytest.raises(UserError, match="0 of 3 speakers have enough audio"):
                Drawer("train", voices, Data(speeds=[0.95, 1.0]))
            continue
        recipes = [Drawer("train", voices, Data(speeds=[0.95, 1.0])).draw(i) for i in range(5)]
        assert all(clip.speed == 0.95 for r in recipes for s in r.sources for clip in s.clips)


def test_first_offset_is_the_earlier_repositories_way() -> None:
    drawer = Drawer("train", speakers(4, 3, 9), Data(offset="first"))
    recipes = [drawer.draw(i) for i in range(30)]
    assert all(c.stretches == ((0, 48000),) for r in recipes for s in r.sources for c in s.clips)


def test_speeds_make_other_voices_of_target_and_reference_alike(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance]
) -> None:
    data_ = Data(seconds=1.5, speeds=[0.8, 1.0, 1.25])
    drawer = Drawer("train", by_speaker, data_)
    recipes = [drawer.draw(index) for index in range(30)]
    assert {recipe.reference.speed for recipe in recipes} == {0.8, 1.0, 1.25}
    for recipe in recipes:
        assert recipe.target and recipe.target.clips[0].speed == recipe.reference.speed
        assert recipe.reference in drawer.references()
        assert render(recipe, spoken, 16000).mixture.shape == (24000,)
    test = Drawer("test", by_speaker, data_)
    assert all(test.draw(i).reference.speed == 1.0 for i in range(30))
    slow = next(recipe.reference for recipe in recipes if recipe.reference.speed == 0.8)
    assert len(read_clip(slow, spoken[slow.utterance], 16000)) == round(slow.frames / 0.8)


# ---------------------------------------------------------------- rendering


def test_a_mixture_is_the_sum_of_its_parts_at_the_snr_asked_for(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance]
) -> None:
    plain = Drawer("train", by_speaker, Data()).draw(0)
    example = render(plain, spoken, 16000)
    assert example.mixture.shape == (48000,)
    np.testing.assert_array_equal(example.mixture, example.target + example.interference)
    clip = plain.interference[0].clips[0]
    original, _ = soundfile.read(spoken[clip.utterance].path, dtype="float32")
    start, frames = clip.stretches[0]
    np.testing.assert_array_equal(example.interference, original[start : start + frames])
    scaled = render(Drawer("train", by_speaker, Data(snr_db=[3.0, 3.0])).draw(0), spoken, 16000)
    ratio = np.mean(scaled.target**2, dtype=np.float64) / np.mean(scaled.interference**2, dtype=np.float64)
    assert 10 * np.log10(ratio) == pytest.approx(3.0, abs=1e-3)


def test_a_room_sounds_on_behind_what_sounded_in_it(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance]
) -> None:
    recipe = Drawer("train", by_speaker, Data(reverberation={"share": 1.0}, padding=0.0)).draw(0)
    (other,) = recipe.interference
    (clip,) = other.clips
    short = replace(other, clips=(replace(clip, stretches=((clip.stretches[0][0], 16000),)),), snr_db=0.0)
    wet = render(replace(recipe, interference=(short,)), spoken, 16000)
    behind = wet.interference[16000:]
    assert 0 < np.abs(behind[:800]).max() < np.abs(wet.interference[:16000]).max()
    # a level is that of what sounded, without the silence behind it
    powers = [np.mean(part**2, dtype=np.float64) for part in (wet.target, wet.interference[:16000])]
    assert 10 * np.log10(powers[0] / powers[1]) == pytest.approx(0.0, abs=1e-3)


def test_everything_at_once_still_adds_up_and_reverse_asks_for_the_rest(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance], sounds: dict[str, list[Utterance]]
) -> None:
    options = EVERYTHING | {"interference": {"speech": 1.0, "noise": 1.0, "babble": 1.0}, "babble_voices": 2}
    options = options | {"interferers": [1, 2]}
    drawer = Drawer("train", by_speaker, data(**options), sounds)
    utterances = spoken | {u.id: u for u in sounds["noise"]}
    for index in range(40):
        recipe = drawer.draw(index)
        example = render(recipe, utterances, 16000)
        assert example.mixture.dtype == np.float32 and example.mixture.shape == (48000,)
        np.testing.assert_array_equal(example.mixture, example.target + example.interference)
        assert np.isfinite(example.mixture).all()
        assert bool(example.target.any()) == (recipe.role != "absent")
        other = render(replace(recipe, reverse=True), utterances, 16000)
        np.testing.assert_array_equal(other.mixture, example.mixture)
        np.testing.assert_array_equal(other.target, example.interference)
        quieter = render(replace(recipe, gain_db=recipe.gain_db - 6), utterances, 16000)
        np.testing.assert_allclose(quieter.mixture, example.mixture * 10 ** (-6 / 20), atol=1e-6)


def test_babble_is_of_equal_voices_and_short_noise_repeats(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance], sounds: dict[str, list[Utterance]]
) -> None:
    options = data(interference={"speech": 0.0, "babble": 1.0}, babble_voices=3)
    recipe = Drawer("train", by_speaker, options).draw(0)
    (babble,) = recipe.interference
    alone = [
        render(replace(recipe, interference=(replace(babble, clips=(clip,)),)), spoken, 16000).interference
        for clip in babble.clips
    ]
    level = np.sqrt(np.mean(alone[0] ** 2))
    total_ = sum(voice * (level / np.sqrt(np.mean(voice**2))) for voice in alone)
    np.testing.assert_allclose(render(recipe, spoken, 16000).interference, total_, atol=1e-5)

    options = data(interference={"speech": 0.0, "noise": 1.0}, background={"noise": 1.0, "snr_db": 20.0})
    recipe = Drawer("train", by_speaker, options, sounds).draw(0)
    once, looped = recipe.interference
    assert (once.loop, looped.loop) == (False, True)
    utterances = spoken | {u.id: u for u in sounds["noise"]}
    noise = render(replace(recipe, interference=(looped,)), utterances, 16000).interference
    np.testing.assert_array_equal(noise[:16000], noise[16000:32000])
    noise = render(replace(recipe, interference=(once,)), utterances, 16000).interference
    assert noise[:16000].any() and not noise[16000:].any()


def test_padding_leaves_silence_at_random_places(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance]
) -> None:
    drawer = Drawer("train", by_speaker, Data(padding=0.8))
    places = set()
    for index in range(20):
        recipe = drawer.draw(index)
        assert recipe.target is not None
        at = round(recipe.target.at * 16000)
        stop = at + recipe.target.clips[0].frames
        target = render(recipe, spoken, 16000).target
        assert stop <= 48001 and not target[:at].any() and not target[stop:].any()
        assert target[at:stop].any()
        places.add(at)
    assert len(places) > 10


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.ones(1000), 16000)
    with pytest.raises(UserError, match="1000 samples from 0 on where the index promised 2000"):
        read_clip(Clip("x", ((0, 2000),)), Utterance("x", "s", str(tmp_path / "x.wav"), 2000, 16000), 16000)


# ---------------------------------------------------------------- rooms


def test_an_equalizer_has_its_gains_at_octaves_and_no_delay() -> None:
    rate, gains = 16000, (6.0, -6.0, 0.0, 3.0, -12.0, 20.0, 1.0)
    impulse = np.zeros(rate, np.float32)
    impulse[rate // 2] = 1.0
    response = equalize(impulse, gains, rate)
    assert response.dtype == np.float32 and np.argmax(np.abs(response)) == rate // 2
    spectrum = 20 * np.log10(np.abs(np.fft.rfft(response)))  # one bin a hertz
    np.testing.assert_allclose(spectrum[[int(f) for f in EQUALIZER_HZ]], gains, atol=0.2)
    assert spectrum[1414] == pytest.approx((3.0 - 12.0) / 2, abs=0.1)
    assert spectrum[60] == pytest.approx(6.0, abs=0.2)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("equalizer", {"equalization": {"share": 0.5, "range_db": 5.0}}),
        ("codec", {"coding": {"share": 0.5, "codecs": ["mp3-16", "ulaw-64"]}}),
    ],
)
def test_sources_go_through_their_own_microphones_and_codecs_and_pairs_through_the_same(
    field: str, options: dict[str, object]
) -> None:
    drawer = Drawer("train", speakers(6, 3, 9), data(**options, snr_db=0.0, paired=True))
    values = []
    for k in range(0, 40, 2):
        first, second = ([getattr(s, field) for s in drawer.draw(i).sources] for i in (k, k + 1))
        assert first == second[::-1]
        values += first
    drawn = [value for value in values if value]
    assert 8 < len(drawn) < 32
    if field == "codec":
        assert set(drawn) == {"mp3-16", "ulaw-64"}
    else:
        assert len(set(drawn)) == len(drawn)
        assert all(len(curve) == 7 and max(map(abs, curve)) <= 5 for curve in drawn)
    plain = Drawer("train", speakers(6, 3, 9), data(snr_db=0.0, paired=True)).draw(4)
    assert [replace(s, equalizer=(), codec="") for s in drawer.draw(4).sources] == list(plain.sources)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_leaves_most_of_a_voice_at_its_place(name: str) -> None:
    for rate, seconds in ((16000, 3.0), (44100, 1.01)):
        voice = tone_voice(0, seconds, 3, rate)
        # bursts at irregular times, so that only one place is the right one
        bursts = np.interp(np.arange(len(voice)) / rate % 0.37 % 0.23, [0, 0.02, 0.04], [0, 1, 0])
        voice = (voice * bursts).astype(np.float32)
        coded = through_codec(voice, rate, name)
        assert coded.dtype == np.float32 and coded.shape == voice.shape
        inside, lags = slice(rate // 10, -rate // 10), range(-rate // 100, rate // 100, rate // 4000)
        size = rate // 500
        ours, theirs = (np.convolve(np.abs(x), np.ones(size), "same") for x in (voice, coded))
        alike = [float(np.roll(theirs, lag)[inside] @ ours[inside]) for lag in lags]
        assert abs(lags[int(np.argmax(alike))]) <= rate // 250
        error = np.square(coded - voice).mean() / np.square(voice).mean()
        assert 1e-5 < error < (3.0 if name.startswith("amr") else 0.9)  # which speaks of speech alone
    loudest = voice / np.abs(voice).max()
    np.testing.assert_array_equal(
        through_codec(4 * loudest, rate, name), 4 * through_codec(loudest, rate, name)
    )
    for count in (0, 1, 2):
        assert through_codec(np.full(count, 0.3, np.float32), 16000, name).shape == (count,)


def test_a_codec_has_a_name_that_is_known() -> None:
    with pytest.raises(ValueError, match=r"mp4: expected one of mp3-16"):
        data(coding={"codecs": ["mp4"]})


def test_a_room_keeps_the_direct_sound_and_adds_reverberation() -> None:
    generator = np.random.default_rng(1)
    voice = draw_shoebox(Reverberation(rt60=[0.3, 0.3], size=[4.0, 6.0]), generator)
    first, second = voice(), voice()
    assert first.size == second.size and first.microphone == second.microphone
    assert first.source != second.source
    for room in (first, second):
        assert all(0.5 <= p <= s - 0.5 for p, s in zip(room.source or (), room.size or (), strict=True))
    response = simulate(first, 16000)
    np.testing.assert_array_equal(response, simulate(first, 16000))
    click = np.zeros(8000, np.float32)
    click[100] = 0.5
    wet = reverberate(click, response, 16000)
    assert np.argmax(np.abs(wet)) == 100 and abs(wet[100]) == pytest.approx(0.5, abs=1e-4)
    early = reverberate(click, response, 16000, early=True)
    np.testing.assert_allclose(early[: 100 + 800], wet[: 100 + 800], atol=1e-6)
    assert np.abs(early[100 + 801 :]).max() < 1e-6 < np.abs(wet[100 + 801 :]).max()
    # Schroeder's integral: 60 dB in about the time asked for
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    decay = 10 * np.log10(energy / energy[0])
    slope = (np.argmax(decay < -25) - np.argmax(decay < -5)) / 16000
    assert 3 * slope == pytest.approx(0.3, rel=0.4)
    with pytest.raises(UserError, match="not a recipe"):
        Recipe.from_line('{"index":0,"kind":"mixture","seconds":1,"reference":{"utterance":"a","stretches":[[0,9]]},'
                         '"target":{"kind":"speech","clips":[],"room":{"rt60":1}}}')  # fmt: skip


def test_measured_rooms_are_read_and_the_early_target_leaves_the_rest_to_the_interference(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance], tmp_path: Path
) -> None:
    response = np.zeros((8000, 2))
    response[50], response[4000, 0], response[4000, 1] = 1.0, 0.5, -0.5  # an average would cancel the echo
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", response, 32000, subtype="FLOAT")
    rirs = list(index_sounds([tmp_path], "rir").utterances)
    options = data(reverberation={"share": 1.0, "rooms": "measured", "target": "early"})
    recipe = Drawer("train", by_speaker, options, {"rirs": rirs}).draw(0)
    assert recipe.target and isinstance(recipe.target.room, Room) and recipe.target.room.early
    dry = replace(
        recipe,
        target=replace(recipe.target, room=None),
        interference=tuple(replace(s, room=None) for s in recipe.interference),
    )
    utterances = spoken | {u.id: u for u in rirs}
    wet, plain = render(recipe, utterances, 16000), render(dry, utterances, 16000)
    delay = round(3950 / 32000 * 16000)
    peak = np.abs(plain.target).max()
    np.testing.assert_allclose(wet.target, plain.target, atol=0.15 * peak)
    echo = np.zeros(48000)
    echo[delay:] = 0.5 * plain.mixture[:-delay]
    assert np.corrcoef(wet.mixture - plain.mixture, echo)[0, 1] > 0.95
    np.testing.assert_array_equal(wet.mixture, wet.target + wet.interference)


# ---------------------------------------------------------------- sounds, lists


def test_sounds_are_divided_disjointly_or_said_to_be_shared(capsys: pytest.CaptureFixture[str]) -> None:
    parts = split_sounds({"noise": noises(10)["noise"]}, data())
    named = [u.id for split in parts.values() for u in split["noise"]]
    assert len(named) == len(set(named)) == 10 and all(split["noise"] for split in parts.values())
    esc = [replace(u, subset=f"fold{i % 5}") for i, u in enumerate(noises(20)["noise"])]
    folds = [{u.subset for u in split["noise"]} for split in split_sounds({"noise": esc}, data()).values()]
    assert len(set.union(*folds)) == 5 == sum(map(len, folds))  # a fold stays together
    official = [replace(u, subset=["tr", "cv", "tt"][i % 3]) for i, u in enumerate(noises(9)["noise"])]
    parts = split_sounds({"noise": official}, data())
    assert {u.subset for u in parts["validation"]["noise"]} == {"cv"}
    both = official + [replace(u, id=f"more:{u.id}") for u in noises(9)["noise"]]
    parts = split_sounds({"noise": both}, data())
    for split, subset in (("train", "tr"), ("validation", "cv"), ("test", "tt")):
        assert {u.subset for u in parts[split]["noise"]} == {subset, ""}
    capsys.readouterr()
    parts = split_sounds({"noise": noises(2)["noise"]}, data())
    assert all(len(split["noise"]) == 2 for split in parts.values())
    assert "2 of data.noise are too few to divide" in capsys.readouterr().out


def write_tuples(path: Path, *rows: tuple[str, str, str]) -> Path:
    lines = ["clean_utterance,embedding_utterance,interference_utterance", *map(",".join, rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tuples_become_mixtures_and_rows_without_audio_are_listed(
    spoken: dict[str, Utterance], tmp_path: Path
) -> None:
    path = write_tuples(
        tmp_path / "t.csv",
        ("100-7-0000", "100-7-0001", "101-7-0000"),
        ("100-7-0000", "999-7-0001", "998-7-0000"),
        ("102-7-0002", "102-7-0001", "103-7-0001"),
    )
    listed = tuple_recipes(path, "test", spoken, Data(protocol="padded"), "f")
    assert [recipe.index for recipe in listed.recipes] == [0, 1]
    assert listed.missing == [(2, "100-7-0000 999-7-0001 998-7-0000", "missing audio: 999-7-0001 998-7-0000")]
    assert "2 of 3 rows can be rendered; left out: 1 missing audio" in listed.describe(path)
    first = listed.recipes[0]
    assert first.target and first.target.clips[0].utterance == "100-7-0000"
    assert first.reference.utterance == "100-7-0001" and first.seconds == 4.0
    example = render(first, spoken, 16000)
    whole, _ = soundfile.read(spoken["100-7-0000"].path, dtype="float32")
    np.testing.assert_array_equal(example.target, whole)
    segments = tuple_recipes(path, "train", spoken, Data(protocol="padded", seconds=2.0))
    assert {recipe.seconds for recipe in segments.recipes} == {2.0}
    odd = write_tuples(
        tmp_path / "odd.csv",
        ("100-7-0000", "100-7-0000", "101-7-0000"),
        ("100-7-0000", "102-7-0001", "101-7-0000"),
        ("100-7-0000", "100-7-0001", "100-7-0002"),
        ("100-7-0000", "100-7-0001", "9-9-9"),
    )
    listed = tuple_recipes(odd, "test", spoken, Data(), "", [("/x/9-9-9.flac", "too short: 0.9 s")])
    assert [cause.split(":")[0] for _, _, cause in listed.missing] == [
        "no other reference", "other speakers", "other speakers", "unusable audio",
    ]  # fmt: skip
    assert listed.missing[3][2] == "unusable audio: 9-9-9 (too short: 0.9 s)"
    short = tuple_recipes(path, "test", spoken, Data(seconds=5.0))
    assert not short.recipes
    assert short.missing[0][2] == "utterance too short: 100-7-0000 has 4.00 of 5 s"


def test_tuple_lists_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, words in (
        ("", "found nothing"),
        ("a,b,c\n1,2,3\n", "expected the header clean_utterance"),
        ("clean_utterance,embedding_utterance,interference_utterance\na,b\n", "line 2: expected three ids"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_tuples(path)
    with pytest.raises(UserError, match="no such tuple list"):
        read_tuples(tmp_path / "none.csv")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no tuple list"):
        read_tuples(path)


def test_recipes_of_other_audio_are_refused_unless_allowed(
    by_speaker: dict[str, list[Utterance]], spoken: dict[str, Utterance], tmp_path: Path
) -> None:
    drawer = Drawer("test", by_speaker, Data())
    recipes = [drawer.draw(i) for i in range(5)]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(recipe.to_line() + "\n" for recipe in recipes))
    assert listed_recipes(path, spoken).recipes == recipes
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * (recipes[0].to_line() + "\n"))
    with pytest.raises(UserError, match="line 2: the index 0 stands there twice"):
        listed_recipes(twice, spoken)
    name = recipes[2].reference.utterance
    without = {key: u for key, u in spoken.items() if key != name}
    left = listed_recipes(path, without)
    assert (3, f"missing audio: {name}") in [(row, cause) for row, _, cause in left.missing]
    changed = spoken | {name: replace(spoken[name], digest="0" * 12)}
    with pytest.raises(UserError, match="were made with other audio"):
        listed_recipes(path, changed)
    there = listed_recipes(path, changed, allow_other_audio=True).recipes
    assert there != recipes and there[2].reference.digest == "0" * 12  # so that it can be embedded
    cut_short = spoken | {name: replace(spoken[name], frames=100)}
    assert any("utterance too short" in cause for _, _, cause in listed_recipes(path, cut_short).missing)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real speech at {SHARED}")
def test_the_published_lists_are_read_and_their_missing_rows_counted() -> None:
    corpus = index_corpus([SHARED / "LibriSpeech"])
    utterances = {u.id: u for u in corpus.utterances}
    rows = {"librispeech_dev": 5567, "vctk_test": 4212, "vctk_train": 40030}
    for name, count in rows.items():
        listed = tuple_recipes(SHARED / "tuples" / f"{name}_tuples.csv", "test", utterances, Data())
        assert (len(listed.recipes), len(listed.missing)) == (0, count)
