from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from config.load import load_config
from config.schema import Audio, Config, Data
from datasets import store as store_module
from datasets.corpus import Utterance, index_corpus
from datasets.dataset import ShuffledBatches
from datasets.mixture import Clip, Drawer, Recipe, read_clip, render
from datasets.store import Store, StoredSplit, write_split
from generator import generate
from model.features import StftFeatures
from tests.conftest import TINY
from utils.errors import UserError
from utils.files import sha256_of


def tiny_config(*more: str) -> Config:
    return load_config(None, [*TINY, *more])


# ---------------------------------------------------------------- recipes


def speakers(count: int, utterances: int, seconds: float) -> dict[str, list[Utterance]]:
    return {
        str(s): [Utterance(f"{s}-{u}", str(s), "", round(seconds * 16000), 16000) for u in range(utterances)]
        for s in range(count)
    }


def test_a_recipe_depends_on_seed_split_and_index_alone() -> None:
    drawer = Drawer("train", speakers(5, 3, 9), Data())
    later = Drawer("train", speakers(5, 3, 9), Data())
    recipes = [drawer.draw(i) for i in range(20)]
    assert recipes == [later.draw(i) for i in reversed(range(20))][::-1]
    assert recipes[3] != Drawer("test", speakers(5, 3, 9), Data()).draw(3)
    assert recipes[3] != Drawer("train", speakers(5, 3, 9), Data(seed=1)).draw(3)
    assert [Recipe.from_line(r.to_line()) for r in recipes] == recipes


def test_reference_is_another_utterance_of_the_target_s_speaker() -> None:
    drawer = Drawer("train", speakers(4, 3, 9), Data())
    for recipe in (drawer.draw(i) for i in range(200)):
        target, interference, reference = (
            c.utterance for c in (recipe.target, recipe.interference, recipe.reference)
        )
        assert target != reference
        assert target[0] == reference[0] != interference[0]


def test_one_utterance_gives_reference_and_target_from_parts_that_do_not_overlap() -> None:
    drawer = Drawer("train", speakers(4, 1, 9), Data())
    assert drawer.same_utterance == 4
    starts = set()
    for recipe in (drawer.draw(i) for i in range(200)):
        target, reference = recipe.target, recipe.reference
        assert target.utterance == reference.utterance
        assert (
            target.start + target.frames <= reference.start
            or reference.start + reference.frames <= target.start
        )
        assert target.start + target.frames <= 9 * 16000
        starts.add(reference.start)
    assert starts == {0, 72000}


def test_speakers_without_enough_audio_are_listed_and_two_must_be_left() -> None:
    voices = speakers(3, 2, 9) | {"9": speakers(10, 1, 4)["9"]}
    drawer = Drawer("train", voices, Data())
    assert [name for name, _ in drawer.unusable] == ["9"]
    assert "4.0 s in 1 utterances" in drawer.unusable[0][1]
    with pytest.raises(UserError, match="0 of 3 speakers have enough audio"):
        Drawer("train", speakers(3, 1, 4), Data())


def test_paired_examples_are_one_mixture_with_the_roles_swapped() -> None:
    drawer = Drawer("train", speakers(4, 3, 9), Data(paired=True, snr_db=[-5.0, 5.0]))
    for first, second in ((drawer.draw(2 * k), drawer.draw(2 * k + 1)) for k in range(20)):
        assert (first.target, first.interference) == (second.interference, second.target)
        assert first.reference.utterance[0] == first.target.utterance[0]
        assert second.reference.utterance[0] == second.target.utterance[0]
        assert first.snr_db == -second.snr_db  # type: ignore[operator]


def test_a_mixture_is_the_sum_of_its_parts_at_the_snr_asked_for(corpus_folder: Path) -> None:
    corpus = index_corpus([corpus_folder])
    utterances = {u.id: u for u in corpus.utterances}
    plain = Drawer("train", corpus.by_speaker(), Data()).draw(0)
    example = render(plain, utterances, 16000)
    assert example.mixture.shape == (48000,)
    np.testing.assert_array_equal(example.mixture, example.target + example.interference)
    original, _ = soundfile.read(utterances[plain.interference.utterance].path, dtype="float32")
    start = plain.interference.start
    np.testing.assert_array_equal(example.interference, original[start : start + 48000])
    scaled = render(Drawer("train", corpus.by_speaker(), Data(snr_db=[3.0, 3.0])).draw(0), utterances, 16000)
    ratio = np.mean(scaled.target**2, dtype=np.float64) / np.mean(scaled.interference**2, dtype=np.float64)
    assert 10 * np.log10(ratio) == pytest.approx(3.0, abs=1e-3)


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.ones(1000), 16000)
    with pytest.raises(UserError, match="1000 samples where the index promised 2000"):
        read_clip(Clip("x", 0, 2000), Utterance("x", "s", str(tmp_path / "x.wav"), 2000, 16000), 16000)


# ---------------------------------------------------------------- the store


def hashes(folder: Path) -> dict[str, str]:
    files = sorted([*folder.rglob("shard-*/*"), *folder.rglob("recipes.jsonl")])
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


@pytest.fixture(scope="module")
def stored(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return generate(tiny_config(), index_corpus([corpus_folder]), tmp_path_factory.mktemp("store") / "s", 1)


def test_stored_equals_rendered_now(stored: Store) -> None:
    split = stored.split("test")
    features = StftFeatures(Audio(n_fft=256, hop_length=128, win_length=256), True, True)
    rows = [4, 1]
    for field in ("mixture", "target", "cosine", "mixture_wave", "target_wave"):
        live = [features(render(split.recipes[row], stored.utterances, 16000))[field] for row in rows]
        np.testing.assert_array_equal(split.read(field, rows), np.stack(live))
    assert "mixture_wave" not in stored.split("train").fields


def test_speakers_of_a_store_are_disjoint(stored: Store) -> None:
    used = {
        name: {
            stored.utterances[clip.utterance].speaker
            for recipe in stored.split(name).recipes
            for clip in (recipe.target, recipe.interference, recipe.reference)
        }
        for name in ("train", "validation", "test")
    }
    assert not (used["train"] & used["test"] or used["train"] & used["validation"])
    assert not used["validation"] & used["test"]


def test_processes_and_interruptions_change_nothing(
    stored: Store, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = index_corpus([corpus_folder])
    expected = hashes(stored.folder)
    generate(tiny_config(), corpus, tmp_path / "two", 2)
    assert hashes(tmp_path / "two") == expected

    count = 0

    def dies(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 17:
            raise KeyboardInterrupt
        return render(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store_module, "render", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny_config(), corpus, tmp_path / "cut", 1)
    with pytest.raises(UserError, match="10 of 24 examples are rendered"):
        Store(tmp_path / "cut").split("train")
    # what a killed process would leave behind
    (tmp_path / "cut" / "train" / ".shard-00001-abc").mkdir()
    monkeypatch.undo()
    generate(tiny_config(), corpus, tmp_path / "cut", 1)
    assert hashes(tmp_path / "cut") == expected
    assert not list((tmp_path / "cut" / "train").glob(".shard-*"))


def test_ranks_share_the_shards_out(stored: Store, corpus_folder: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    split = stored.split("train")
    features = StftFeatures(Audio(n_fft=256, hop_length=128, win_length=256), True, False)
    for rank in (1, 0):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        write_split(tmp_path / "train", split.recipes, stored.utterances, features, 16000, 10, 1)
    assert hashes(tmp_path / "train") == hashes(stored.folder / "train")


def test_a_store_made_with_other_settings_is_refused(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    corpus = index_corpus([corpus_folder])
    with pytest.raises(UserError, match=r"data.seed: 0 -> 7"):
        generate(tiny_config("data.seed=7"), corpus, stored.folder, 1)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no store"):
        generate(tiny_config(), corpus, tmp_path, 1)


def test_damage_is_found_and_a_folder_without_a_store_is_named(stored: Store, tmp_path: Path) -> None:
    shutil.copytree(stored.folder / "test", tmp_path / "test")
    split = StoredSplit(tmp_path / "test")
    assert split.verify() == []
    path = tmp_path / "test" / "shard-00000" / "mixture.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert split.verify() == [str(path)]
    with pytest.raises(UserError, match="no store there"):
        Store(tmp_path)


def test_batches_are_a_function_of_the_step_and_ranks_share_them() -> None:
    def take(sampler: ShuffledBatches, count: int) -> list[list[int]]:
        return [batch for batch, _ in zip(sampler, range(count), strict=False)]

    straight = take(ShuffledBatches(10, 4, seed=3), 7)
    assert take(ShuffledBatches(10, 4, seed=3, start=5), 2) == straight[5:]
    assert len({*straight[0], *straight[1]}) == 8
    halves = [take(ShuffledBatches(10, 2, seed=3, rank=r, ranks=2), 7) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(b) for b in straight]


def test_speeds_make_other_voices_of_target_and_reference_alike(corpus_folder: Path) -> None:
    corpus = index_corpus([corpus_folder])
    utterances = {u.id: u for u in corpus.utterances}
    data = Data(seconds=1.5, speeds=[0.8, 1.0, 1.25])
    drawer = Drawer("train", corpus.by_speaker(), data)
    recipes = [drawer.draw(index) for index in range(30)]
    assert {recipe.target.speed for recipe in recipes} == {0.8, 1.0, 1.25}
    for recipe in recipes:
        assert recipe.target.speed == recipe.reference.speed
        assert render(recipe, utterances, 16000).mixture.shape == (24000,)
    assert all(Drawer("test", corpus.by_speaker(), data).draw(i).target.speed == 1.0 for i in range(30))
    slow = next(recipe for recipe in recipes if recipe.reference.speed == 0.8)
    clip = slow.reference
    assert len(read_clip(clip, utterances[clip.utterance], 16000)) == round(clip.frames / 0.8)
