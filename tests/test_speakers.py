from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from config.embedder_schema import EmbedderData, EmbedderTrain
from config.schema import Data, Split
from datasets.corpus import Utterance, index_corpus
from datasets.dataset import training_batches
from datasets.mixture import render
from datasets.plan import index_recordings, plan_draws
from datasets.recipe import Recipe
from datasets.speakers import SpeakerCrops, Steps, index_speakers, speaker_split
from datasets.stretches import active_frames
from tests.conftest import tone_voice, write_librispeech
from utils.errors import UserError

HELD = {"validation": {"speakers": 0.25}, "test": {"speakers": 0.25}}


def people(count: int, utterances: int, seconds: float = 9.0) -> dict[str, list[Utterance]]:
    return {
        f"p{s}": [
            Utterance(f"p{s}-{u}", f"p{s}", "", round(seconds * 16000), 16000) for u in range(utterances)
        ]
        for s in range(count)
    }


def crop_samples(frames: int) -> int:
    return (frames + 3) * 160


def crops(
    speakers: Mapping[str, Sequence[Utterance]],
    sounds: Mapping[str, Sequence[Utterance]] | None = None,
    place: tuple[int, int] = (0, 1),
    shape: tuple[int, int] = (4, 3),
    frames: tuple[int, int] = (100, 140),
    train_seed: int = 0,
    **options: object,
) -> SpeakerCrops:
    data = EmbedderData(noise=["n"], music=["m"], rirs=["r"], **options)  # type: ignore[arg-type]
    train = EmbedderTrain(speakers=shape[0], utterances=shape[1], frames=list(frames), seed=train_seed)
    return SpeakerCrops(speakers, data, train, sounds or {}, 16000, crop_samples, *place)


def owner(recipe: Recipe) -> str:
    assert recipe.target is not None
    return recipe.target.clips[0].utterance.split("-")[0]


def start(recipe: Recipe) -> int:
    assert recipe.target is not None
    return recipe.target.clips[0].stretches[0][0]


@pytest.fixture(scope="module")
def spoken(corpus_folder: Path) -> dict[str, list[Utterance]]:
    return index_corpus([corpus_folder]).by_speaker()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Utterance]]:
    path = tmp_path_factory.mktemp("noise") / "hiss.wav"
    soundfile.write(path, 0.02 * np.random.default_rng(0).standard_normal(16000), 16000)
    return {"noise": [Utterance("noise:hiss", "", str(path), 16000, 16000)]}


# ---------------------------------------------------------------- drawing


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    options = {"background": {"noise": 0.5}, "reverberation": {"share": 0.5}, "gain_db": [-9.0, 0.0]}
    sounds = {"noise": people(1, 3)["p0"]}
    first, second = (crops(people(9, 4), sounds, speeds=[0.9, 1.0], **options) for _ in range(2))
    batches = [first.draw(step) for step in range(10)]
    assert batches == [second.draw(step) for step in reversed(range(10))][::-1]
    assert batches[3] == pickle.loads(pickle.dumps(first)).draw(3)
    assert crops(people(9, 4), sounds, seed=1, speeds=[0.9, 1.0], **options).draw(3) != batches[3]
    other = crops(people(9, 4), sounds, speeds=[0.9, 1.0], train_seed=1, **options)
    assert other.draw(3) != batches[3]
    recipes = [recipe for batch in batches for recipe in batch]
    assert len({recipe.index for recipe in recipes}) == len(recipes)
    assert [Recipe.from_line(recipe.to_line()) for recipe in recipes] == recipes
    for what in (lambda r: r.interference, lambda r: r.target.room):
        assert 0.3 < np.mean([bool(what(recipe)) for recipe in recipes]) < 0.7
    assert all(-9 <= recipe.gain_db <= 0 for recipe in recipes)


def test_people_of_a_batch_differ_and_its_crops_are_of_one_length_and_of_different_utterances() -> None:
    batches = crops(people(9, 5))
    lengths, met = set(), set()
    for recipes in map(batches.draw, range(200)):
        groups = [[owner(r) for r in recipes[i : i + 3]] for i in range(0, 12, 3)]
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == 4
        met |= {group[0] for group in groups}
        (frames,) = {r.target.clips[0].frames for r in recipes if r.target}
        assert {r.seconds for r in recipes} == {frames / 16000}
        lengths.add(frames // 160 - 3)
        for i in range(0, 12, 3):
            assert len({r.target.clips[0].utterance for r in recipes[i : i + 3] if r.target}) == 3
    assert met == set(batches.names)
    assert min(lengths) == 100 and max(lengths) == 140


def test_a_label_is_a_person_at_a_speed(spoken: dict[str, list[Utterance]]) -> None:
    batches = crops(spoken, speeds=[0.9, 1.0, 1.1])
    assert batches.names == sorted(spoken) and batches.classes == 3 * len(spoken)
    seen = set()
    for step in range(10):
        recipes, batch = batches.draw(step), batches[step]
        assert batch["label"].dtype == torch.int64 and batch["waveform"].dtype == torch.float32
        for row, label in enumerate(batch["label"].tolist()):
            clips = {r.target.clips[0] for r in recipes[3 * row : 3 * row + 3] if r.target}
            speeds = {clip.speed for clip in clips}
            assert {batches.utterances[clip.utterance].speaker for clip in clips} == {
                batches.names[label // 3]
            }
            assert speeds == {[0.9, 1.0, 1.1][label % 3]}
            seen |= speeds
        assert batch["waveform"].shape == (12, round(recipes[0].seconds * 16000))
        assert all(np.abs(wave[-1600:]).any() for wave in batch["waveform"].numpy())
    assert len(seen) == 3


def test_ranks_share_the_batch_of_one_process(spoken: dict[str, list[Utterance]]) -> None:
    whole = crops(spoken)
    shares = [crops(spoken, place=(rank, 2)) for rank in range(2)]
    for step in (0, 5):
        expected, found = whole[step], [share[step] for share in shares]
        assert all(share.draw(step) == whole.draw(step) for share in shares)
        for rank in range(2):
            torch.testing.assert_close(found[rank]["label"], expected["label"][rank::2], rtol=0, atol=0)
            waves = expected["waveform"].unflatten(0, (4, 3))[rank::2].flatten(0, 1)
            torch.testing.assert_close(found[rank]["waveform"], waves, rtol=0, atol=0)


def test_batches_come_in_the_order_of_the_steps_with_and_without_workers(
    spoken: dict[str, list[Utterance]],
) -> None:
    batches = crops(spoken)
    assert list(itertools.islice(Steps(7), 3)) == [7, 8, 9]
    for workers in (0, 2):
        found = list(itertools.islice(training_batches(batches, Steps(7), workers, False), 3))
        for step, batch in enumerate(found, 7):
            assert all(torch.equal(batch[key], value) for key, value in batches[step].items())


def test_crops_of_one_utterance_come_from_different_portions() -> None:
    for recipes in map(crops(people(4, 1)).draw, range(50)):
        for i in range(0, 12, 3):  # 3 s each, longer than a crop
            found = recipes[i : i + 3]
            assert [start(r) // 48000 for r in found] == [0, 1, 2]
            assert [(start(r) + round(r.seconds * 16000) - 1) // 48000 for r in found] == [0, 1, 2]
    for recipes in map(crops(people(4, 1), shape=(4, 10)).draw, range(50)):
        wanted = round(recipes[0].seconds * 16000)
        for i in range(0, 40, 10):  # 0.9 s each, shorter than a crop
            starts = [start(r) for r in recipes[i : i + 10]]
            assert starts == sorted(starts) and len(set(starts)) >= 9
            for number, begin in enumerate(starts):
                assert number * 14400 <= max(begin, 0) < (number + 1) * 14400 or begin == 144000 - wanted
    for recipes in map(crops(people(4, 2), shape=(4, 5)).draw, range(20)):
        for i in range(0, 20, 5):
            named = [r.target.clips[0].utterance for r in recipes[i : i + 5] if r.target]
            assert sorted(named.count(name) for name in set(named)) == [2, 3]


def test_crops_hold_sound_where_there_is_some() -> None:
    active = ((20000, 40000), (120000, 141000))
    for count in (1, 3):
        voices = {n: [replace(u, active=active) for u in f] for n, f in people(5, count).items()}
        for recipes in map(crops(voices).draw, range(50)):
            assert all(
                active_frames(r.target.clips[0].stretches, active) >= 8000 for r in recipes if r.target
            )


# ---------------------------------------------------------------- rendering


def test_a_short_utterance_is_repeated_to_the_length_of_the_crops(tmp_path: Path) -> None:
    voices = {}
    for speaker in range(4):
        path = tmp_path / f"{speaker}.wav"
        soundfile.write(path, tone_voice(speaker, 0.5, 0), 16000, subtype="FLOAT")
        voices[str(speaker)] = [Utterance(str(speaker), str(speaker), str(path), 8000, 16000)]
    waveform = crops(voices)[0]["waveform"]
    assert waveform.shape[0] == 12 and waveform.shape[1] >= crop_samples(100)
    torch.testing.assert_close(waveform[:, :8000], waveform[:, 8000:16000], rtol=0, atol=0)
    slow = crops(voices, speeds=[0.5])
    assert {recipe.seconds for recipe in slow.draw(0)} == {1.0}
    assert slow[0]["waveform"][:, 15000:16000].abs().amax(dim=1).min() > 0


def test_noise_is_behind_a_crop_at_its_snr(
    spoken: dict[str, list[Utterance]], noise: dict[str, list[Utterance]]
) -> None:
    batches = crops(spoken, noise, background={"noise": 1.0, "snr_db": 7.0})
    waveform = batches[2]["waveform"].numpy()
    for row, recipe in enumerate(batches.draw(2)):
        example = render(recipe, batches.utterances, 16000)
        np.testing.assert_array_equal(waveform[row], example.mixture)
        clean = render(replace(recipe, interference=()), batches.utterances, 16000).mixture
        np.testing.assert_array_equal(example.target, clean)
        np.testing.assert_array_equal(example.mixture, clean + example.interference)
        ratio = np.mean(clean**2, dtype=np.float64) / np.mean(example.interference**2, dtype=np.float64)
        assert 10 * np.log10(ratio) == pytest.approx(7.0, abs=1e-3)


# ---------------------------------------------------------------- who is heard


def test_people_without_sound_are_listed_and_a_batch_needs_enough_of_the_others() -> None:
    voices = people(5, 2)
    faint = ((0, 4800),)
    voices["p4"] = [replace(u, active=faint) for u in voices["p4"]]
    voices["p3"][0] = replace(voices["p3"][0], active=faint, path="p3.flac")
    batches = crops(voices)
    assert batches.names == ["p0", "p1", "p2", "p3"]
    assert batches.unusable == [
        ("p4", "speaker left out: at most 0.30 s of sound in one of 2 utterances, needed are 0.4 s")
    ]
    assert [path for path, _ in batches.short] == ["p3.flac"]
    assert all(owner(r) != "p4" for step in range(20) for r in batches.draw(step))
    with pytest.raises(UserError, match=r"train\.speakers 5: .* 4 of 5 training speakers have an utterance"):
        crops(voices, shape=(5, 3))
    with pytest.raises(UserError, match=r"train\.speakers 4: 3 processes cannot share them"):
        crops(voices, place=(0, 3))
    with pytest.raises(UserError, match="train: is drawn with noise, of which"):
        crops(voices, background={"noise": 0.1})
    with pytest.raises(UserError, match="train: is drawn with rirs, of which"):
        crops(voices, reverberation={"share": 0.1, "rooms": "measured"})


def test_the_separator_s_speakers_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_librispeech(tmp_path / "main", speakers=12, utterances=2)
    other = tmp_path / "other"
    for name in ("900", "901"):
        (other / name).mkdir(parents=True)
        soundfile.write(other / name / "a.wav", tone_voice(int(name) - 850, 3.0, 0), 16000)
    folders = {"corpus": [str(root)], "seed": 3}
    plans = plan_draws(
        Data(**folders, validation=Split(examples=1, speakers=0.25), test=Split(examples=1, speakers=0.25)),
        index_recordings(Data(**folders)),
    )
    capsys.readouterr()
    found = index_speakers(EmbedderData(**folders, **HELD))
    assert "train: 6 speakers, 12 utterances, 0.8 minutes\nvalidation: 3 sp" in capsys.readouterr().out
    assert sorted(found.validation) == plans["validation"].speakers
    assert found.test == plans["test"].speakers
    assert sorted(found.train) == plans["train"].speakers
    assert all(u.speaker == name for name, utterances in found.train.items() for u in utterances)

    without_test = index_speakers(EmbedderData(**folders, **(HELD | {"test": None})))
    assert without_test.validation == found.validation and without_test.test == []
    assert sorted(without_test.train) == sorted([*found.train, *found.test])

    judged = HELD["validation"] | {"corpus": [str(other)]}
    apart = index_speakers(EmbedderData(**folders, **(HELD | {"validation": judged})))
    assert sorted(apart.validation) == ["900", "901"] and apart.test == found.test
    assert sorted(apart.train) == sorted([*found.train, *found.validation])
    assert all(u.id.startswith("validation:90") for us in apart.validation.values() for u in us)
    prints = {split.fingerprint for split in (found, without_test, apart)}
    assert len(prints) == 3 and all(len(name) == 16 for name in prints)
    assert index_speakers(EmbedderData(**folders, **HELD)) == found

    judged = judged | {"corpus": [str(root)]}
    with pytest.raises(UserError, match=r"12 of its 12 speakers are also in data\.corpus \(100, 101, 102"):
        index_speakers(EmbedderData(**folders, **(HELD | {"validation": judged})))
    with pytest.raises(ValueError, match=r"speaker_ids and subsets choose from data\.corpus"):
        index_speakers(EmbedderData(**folders, validation=judged | {"subsets": ["dev-*"]}))
    copied = next((root / "dev-clean" / found.test[0]).rglob("*.flac"))
    (other / "900" / "b.flac").write_bytes(copied.read_bytes())
    judged = judged | {"corpus": [str(other)]}
    with pytest.raises(UserError, match=r"1 of its files are also in data\.corpus \(the first: .*b\.flac"):
        index_speakers(EmbedderData(**folders, **(HELD | {"validation": judged})))


def test_the_fingerprint_names_what_is_read_and_nothing_else(
    spoken: dict[str, list[Utterance]], corpus_folder: Path
) -> None:
    data = EmbedderData(corpus=[str(corpus_folder)], **HELD)  # type: ignore[arg-type]
    recordings = index_recordings(data)
    split = speaker_split(recordings, data)
    for names, same in ((split.train, False), (split.validation, False), (split.test, True)):
        other = [replace(u, digest="0") if u.speaker in names else u for u in recordings.by_kind["speech"]]
        changed = speaker_split(replace(recordings, by_kind={"speech": tuple(other)}), data)
        assert (changed.fingerprint == split.fingerprint) == same


def test_real_speech_of_people_with_one_utterance(shared_librispeech: Path) -> None:
    data = EmbedderData(corpus=[str(shared_librispeech)], check="quick", subsets=["train-clean-100"])
    split = index_speakers(data)
    train = EmbedderTrain(speakers=8, utterances=4)
    batches = SpeakerCrops(split.train, data, train, split.sounds, 16000, crop_samples)
    assert len(batches.names) == len(split.train) > 190
    assert not set(split.train) & (set(split.validation) | set(split.test))
    batch = batches[0]
    assert batch["label"].unique().shape == (8,)
    assert batch["waveform"].std(dim=1).min() > 1e-3
    assert torch.unique(batch["waveform"], dim=0).shape[0] == 32
