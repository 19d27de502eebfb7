from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import generator
from config.load import load_config
from config.schema import Audio
from datasets import shards as shards_module
from datasets.corpus import Utterance
from datasets.dataset import ShuffledBatches
from datasets.live import FreshBatches, LiveExamples, RenderedSplit
from datasets.mixture import render
from datasets.plan import drawer_of, require_unchanged
from datasets.recipe import Clip, Recipe, Source
from datasets.references import EmbeddedReferences
from datasets.remix import Remix
from datasets.shards import ArrayFile, npy_header
from datasets.store import Store, StoredSplit, verify_split
from model.features import StftFeatures, WaveFeatures
from tests.conftest import TINY, die
from utils.errors import UserError
from utils.files import sha256_of

ROOT = Path(__file__).parents[1]


def make(corpus: Path, folder: Path, *more: str, processes: int = 1) -> Store:
    arguments = ["-d", str(corpus), "-o", str(folder), "-p", str(processes), "--no-embeddings"]
    generator.main([*arguments, *TINY, *more])
    return Store(folder)


def hashes(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("shard-*/*"), *folder.rglob("recipes.jsonl"), *folder.rglob("index.json")]
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(files)}


@pytest.fixture(scope="module")
def stored(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(corpus_folder, tmp_path_factory.mktemp("store") / "s")


def test_stored_equals_rendered_now(stored: Store) -> None:
    split = stored.split("test")
    features = StftFeatures(Audio(n_fft=256, hop_length=128, win_length=256), True, True)
    rows = [4, 1]
    for field in ("mixture", "target", "cosine", "mixture_wave", "target_wave"):
        live = [features(render(split.recipes[row], stored.utterances, 16000))[field] for row in rows]
        np.testing.assert_array_equal(split.read(field, rows), np.stack(live))
    assert "mixture_wave" not in stored.split("train").fields
    assert split.read_float("cosine", rows).max() <= 1
    rendered = RenderedSplit(list(split.recipes), stored.utterances, 16000)
    for field in ("mixture_wave", "target_wave"):
        np.testing.assert_array_equal(rendered.read_float(field, rows), split.read_float(field, rows))
    assert list(rendered.batches(4)) == list(split.batches(4))


def test_a_checkpoint_of_another_rate_is_refused(stored: Store) -> None:
    stored.require_rate(stored.settings["audio"]["sample_rate"])
    with pytest.raises(UserError, match=r"is at 16000 Hz, the checkpoint at 8000 Hz"):
        stored.require_rate(8000)


def test_speakers_of_a_store_are_disjoint(stored: Store) -> None:
    used = {
        name: {
            stored.utterances[clip.utterance].speaker
            for recipe in stored.split(name).recipes
            for source in recipe.sources
            for clip in (*source.clips, recipe.reference)
        }
        for name in ("train", "validation", "test")
    }
    assert not (used["train"] & used["test"] or used["train"] & used["validation"])
    assert not used["validation"] & used["test"]


def test_processes_and_interruptions_change_nothing(
    stored: Store, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hashes(stored.folder)
    make(corpus_folder, tmp_path / "two", processes=2)
    assert hashes(tmp_path / "two") == expected

    count = 0

    def dies(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 17:
            raise KeyboardInterrupt
        return render(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards_module, "render", dies)
    with pytest.raises(KeyboardInterrupt):
        make(corpus_folder, tmp_path / "cut")
    with pytest.raises(UserError, match="10 of 24 examples are rendered"):
        Store(tmp_path / "cut").split("train")
    # what a killed process would leave behind
    (tmp_path / "cut" / "train" / ".shard-00001-abc").mkdir()
    (tmp_path / "cut" / "train" / ".shard-00000-abc").mkdir()
    monkeypatch.undo()
    make(corpus_folder, tmp_path / "cut")
    assert hashes(tmp_path / "cut") == expected
    assert not list((tmp_path / "cut" / "train").glob(".shard-*"))


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import generator
from config.load import run_script
from datasets import shards
from datasets.mixture import render

def slow(*arguments):
    time.sleep(0.005)  # so that the kills hit every stage
    return render(*arguments)

def life():
    # forked, because 20 imports of torch would take a minute
    child = os.fork()
    if child == 0:
        run_script(lambda: generator.main(sys.argv[2:]))
    return child

shards.render = slow
def finished():
    return len(list(Path(sys.argv[1]).glob("*/shard-*")))

chance, stages = random.Random(0), set()
for _ in range(22):
    child = life()
    # however slow the machine is: after so many shards more, of 110, or before the first
    goal = finished() + chance.randint(0, 3)
    while finished() < goal:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it had finished before it was killed"
    stages.add(finished())
print("stages", sorted(stages))
_, status = os.waitpid(life(), 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_killed_22_times_at_random_points_the_same_command_completes_the_same_store(
    corpus_folder: Path, tmp_path: Path
) -> None:
    more = ["data.train=1000", "store.shard_size=10"]
    whole, folder = make(corpus_folder, tmp_path / "whole", *more), tmp_path / "s"
    command = [sys.executable, "-c", KILLER, str(folder), "-d", str(corpus_folder), "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-p", "1", "--no-embeddings", *TINY, *more],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    stages = json.loads(result.stdout.split("stages ")[1].splitlines()[0])
    assert len(stages) >= 5, "the kills fell into different stages"
    assert hashes(folder) == hashes(whole.folder)
    assert not list(folder.rglob(".shard-*")) and not list(folder.rglob(".recipes-*"))


def test_ranks_share_the_shards_out_in_any_order(
    stored: Store, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("1", "0"):
        make(corpus_folder, tmp_path / "s", "--rank", rank, "--ranks", "2")
        left = "shards are still to come" in capsys.readouterr().out
        assert left == (rank == "1")
    assert hashes(tmp_path / "s") == hashes(stored.folder)


def test_two_torchrun_processes_write_what_one_writes(
    stored: Store, corpus_folder: Path, embedder_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "generator.py"), "-d", str(corpus_folder), "-o", str(tmp_path / "s"), "-p", "1"]
    result = subprocess.run(
        [*command, "-e", str(embedder_file), *TINY], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert hashes(tmp_path / "s") == hashes(stored.folder)
    assert len(list((tmp_path / "s").glob("embeddings-*.npz"))) == 1
    assert not list((tmp_path / "s").rglob(".shard-*"))


def test_a_store_that_somebody_is_writing_is_left_alone(stored: Store, corpus_folder: Path) -> None:
    import fcntl

    with (stored.folder / ".lock-0-of-1").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another generator\.py is writing it"):
            make(corpus_folder, stored.folder)


def test_a_store_made_with_other_settings_is_refused(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    before = hashes(stored.folder)
    for override, words in (
        ("data.seed=7", r"data\.seed: 0 -> 7"),
        ("store.kind=wave", r"store\.kind: stft -> wave"),
        ("audio.hop_length=64", r"audio\.hop_length: 128 -> 64"),
        ("data.kinds.target_alone=0.5", r"data\.kinds\.target_alone: 0\.0 -> 0\.5"),
    ):
        with pytest.raises(UserError, match=words):
            make(corpus_folder, stored.folder, override)
    assert hashes(stored.folder) == before
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and no store"):
        make(corpus_folder, tmp_path)


def test_damage_is_found_and_healed_and_a_folder_without_a_store_is_named(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(stored.folder, tmp_path / "s")
    folder = tmp_path / "s" / "test"
    assert verify_split(folder) == []
    path = folder / "shard-00000" / "mixture.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert verify_split(folder) == [path.parent]
    with pytest.raises(UserError, match=r"1 shards or lists are missing or damaged: .*--repair removes"):
        generator.main(["--verify", str(tmp_path / "s")])
    generator.main(["--verify", str(tmp_path / "s"), "--repair"])
    make(corpus_folder, tmp_path / "s")
    assert hashes(tmp_path / "s") == hashes(stored.folder)
    shard = folder / "shard-00000" / "shard.json"
    whole = shard.read_text()
    for text in (json.dumps(json.loads(whole) | {"fingerprint": "of another front end"}), "{}", "{"):
        shard.write_text(text)
        with pytest.raises(UserError, match="0 of 6 examples are rendered"):
            StoredSplit(folder)
        make(corpus_folder, tmp_path / "s")  # renders it again
        assert shard.read_text() == whole
    path.write_bytes(b"")
    with pytest.raises(UserError, match="0 of 6 examples are rendered"):
        StoredSplit(folder)
    recipes = folder / "recipes.jsonl"
    lines = recipes.read_text().splitlines(keepends=True)
    recipes.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match=r"recipes\.jsonl: is damaged"):
        StoredSplit(folder)
    assert verify_split(folder) == [recipes, path.parent]
    generator.main(["--verify", str(tmp_path / "s"), "--repair"])
    assert not recipes.exists() and not path.parent.exists()
    make(corpus_folder, tmp_path / "s")
    assert hashes(tmp_path / "s") == hashes(stored.folder)
    (tmp_path / "s" / "utterances.csv").write_text("damaged")
    content = json.loads(whole)
    for change in ({"examples": 5}, {"sha256": {}, "bytes": {}}, {"lengths": {"mixture": [1]}}):
        shard.write_text(json.dumps(content | change))
        assert verify_split(folder) == [shard.parent]
    make(corpus_folder, tmp_path / "s")
    assert hashes(tmp_path / "s") == hashes(stored.folder)
    for name, words in (("store.json", "is damaged"), ("test/index.json", "is damaged")):
        kept = (tmp_path / "s" / name).read_text()
        (tmp_path / "s" / name).write_text("{}")
        with pytest.raises(UserError, match=words):
            make(corpus_folder, tmp_path / "s")
        (tmp_path / "s" / name).write_text(kept)
    with pytest.raises(UserError, match="no store there"):
        Store(tmp_path)


def test_more_shards_than_files_may_be_open_stay_in_order(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.store.OPEN_ARRAYS", 3)
    # names of unequal length, as from shard-100000 on
    monkeypatch.setattr("datasets.shards.shard_name", lambda number: f"shard-{number}")
    monkeypatch.setattr("datasets.store.shard_name", lambda number: f"shard-{number}")
    store = make(corpus_folder, tmp_path / "s", "store.shard_size=2")
    split = store.split("train")
    for row in (23, 0, 21, 7, 23):
        example = render(split.recipes[row], store.utterances, 16000)
        features = StftFeatures(Audio(n_fft=256, hop_length=128, win_length=256), True, False)(example)
        np.testing.assert_array_equal(split.read_one("mixture", row), features["mixture"])
    assert len(split._arrays) == 3


def test_other_people_s_files_are_not_touched(corpus_folder: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "missing.csv", ".index-abcdefgh1"):
        (tmp_path / name).write_text("precious")
    tuples = tmp_path.parent / "tuples.csv"
    for row in ("100-7-0000,100-7-0001,101-7-0000", "no,such,audio"):
        tuples.write_text(f"clean_utterance,embedding_utterance,interference_utterance\n{row}\n")
        with pytest.raises(UserError, match="is not empty and no store"):
            make(corpus_folder, tmp_path, "--tuples", str(tuples))
    with pytest.raises(UserError, match="is not empty and no store"):
        make(corpus_folder, tmp_path)
    assert all(
        (tmp_path / name).read_text() == "precious" for name in ("a.txt", "missing.csv", ".index-abcdefgh1")
    )


def test_ranks_that_share_out_differently_do_not_write_one_store(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    import fcntl

    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / ".lock-1-of-2").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"with other --ranks \(\.lock-1-of-2\)"):
            make(corpus_folder, tmp_path / "s")
        make(corpus_folder, tmp_path / "s", "--rank", "0", "--ranks", "2")


def test_a_worker_killed_while_it_starts_does_not_hang_the_command(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("datasets.shards._start_worker", die)
        with pytest.raises(UserError, match="one of 2 rendering processes was killed"):
            make(corpus_folder, tmp_path / "s", processes=2)
    make(corpus_folder, tmp_path / "s")


def test_a_changed_corpus_is_refused_by_name(corpus_folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    corpus = tmp_path / "c"
    shutil.copytree(corpus_folder, corpus)
    live = make(corpus, tmp_path / "live", "data.mode=live")
    require_unchanged(live)
    path = next(corpus.rglob("100-7-0001.flac"))
    soundfile.write(path, soundfile.read(path)[0][::-1], 16000)
    with pytest.raises(UserError, match=r"1 of 24 recordings .* have changed since"):
        require_unchanged(live)
    next(corpus.rglob("101-7-0001.flac")).unlink()
    capsys.readouterr()
    with pytest.raises(UserError, match="made with other settings"):
        make(corpus, tmp_path / "live", "data.mode=live")
    out = capsys.readouterr().out
    assert "1 gone (101-7-0001 ...), 1 changed (100-7-0001 ...)" in out


def test_a_store_of_a_version_without_an_option_goes_on_with_its_default(
    corpus_folder: Path, tmp_path: Path
) -> None:
    make(corpus_folder, tmp_path / "s", "data.coding.share=0.0")
    path = tmp_path / "s/store.json"
    content = json.loads(path.read_text())
    del content["settings"]["data"]["coding"], content["settings"]["data"]["kinds"]["noise_only"]
    path.write_text(json.dumps(content))
    make(corpus_folder, tmp_path / "s")
    with pytest.raises(UserError, match=r"other settings \(data.coding.share: 0.0 -> 0.5\)"):
        make(corpus_folder, tmp_path / "s", "data.coding.share=0.5")
    content["settings"]["data"]["kinds"] = "all"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"other settings \(.*data.kinds: all ->"):
        make(corpus_folder, tmp_path / "s")


def test_whole_utterances_of_unequal_length_lie_in_one_array(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(corpus_folder, corpus)
    for number, path in enumerate(sorted(corpus.rglob("*.flac"))):
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, samples[: 40000 + 1000 * (number % 7)], rate)
    store = make(corpus, tmp_path / "s", "data.protocol=padded")
    split = store.split("test")
    lengths = {round(recipe.seconds * 16000) for recipe in split.recipes}
    assert len(lengths) > 1
    seen = []
    for rows in split.batches(4):
        waves = split.read_float("mixture_wave", rows)
        assert waves.shape == (len(rows), round(split.recipes[rows[0]].seconds * 16000))
        seen += rows
        for row in rows:
            example = render(split.recipes[row], store.utterances, 16000)
            np.testing.assert_array_equal(split.read_one("mixture_wave", row), example.mixture)
            assert split.read_one("mixture", row).shape == (-(-len(example.mixture) // 128) + 1, 129)
    assert sorted(seen) == list(range(6))
    with pytest.raises(UserError, match=r"do not fit into one batch .* segments of one length"):
        split.read("mixture", range(6))
    assert verify_split(split.folder) == []
    again = make(corpus, tmp_path / "s", "data.protocol=padded")
    assert hashes(again.folder) == hashes(store.folder)


def test_waveforms_are_kept_as_they_are_or_in_16_bits_without_clipping(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    example = render(stored.split("test").recipes[0], stored.utterances, 16000)
    for dtype in ("float32", "int16"):
        store = make(corpus_folder, tmp_path / dtype, "store.kind=wave", f"store.dtype={dtype}")
        split = store.split("test")
        assert split.fields == {"mixture_wave", "target_wave"} | ({"scale"} if dtype == "int16" else set())
        for field, wanted in (("mixture_wave", example.mixture), ("target_wave", example.target)):
            found = split.read_float(field, [0])[0]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=0 if dtype == "float32" else 2e-5)
    loud = WaveFeatures("int16")(render(stored.split("test").recipes[0], stored.utterances, 16000))
    assert np.abs(loud["mixture_wave"]).max() <= 32767
    silent = np.zeros(10, np.float32)
    from datasets.mixture import Example

    assert not WaveFeatures("int16")(Example(silent, silent, silent))["mixture_wave"].any()


def test_live_examples_are_those_that_would_have_been_stored(
    stored: Store, corpus_folder: Path, tmp_path: Path
) -> None:
    live = make(corpus_folder, tmp_path / "live", "data.mode=live")
    with pytest.raises(UserError, match="training examples are live"):
        live.split("train")
    drawer = drawer_of(live, "train")
    recipes = stored.split("train").recipes
    assert [drawer.draw(i) for i in range(len(recipes))] == list(recipes)
    references = drawer.references()
    embedded = EmbeddedReferences(np.eye(len(references), 9, dtype="f"))
    examples = LiveExamples(drawer, live.utterances, 16000, references, embedded)
    batch = examples[[5, 1_000_000]]
    assert batch["mixture_wave"].shape == (2, 24000) and batch["embedding"].shape == (2, 9)
    kept = render(recipes[5], stored.utterances, 16000)
    np.testing.assert_array_equal(batch["mixture_wave"][0].numpy(), kept.mixture)
    assert not torch.equal(batch["mixture_wave"][0], batch["mixture_wave"][1])


def remixed(
    interferers: list[str], share: float, seed: int, within_db: float = 0.0
) -> tuple[dict[str, torch.Tensor], ...]:
    """A batch of everybody's voice against that of the person named, and what becomes of it; "" = alone."""
    people = {name: Utterance(name, name, "", 8, 16000) for name in "abcdefgh"}
    clips = {name: Clip(name, ((0, 8),)) for name in people}
    recipes = [
        Recipe(
            row, "mixture", 1.0, clips[asked], Source("speech", (clips[asked],)),
            (Source("speech", (clips[other],)),) if other else (),
        )
        for row, (asked, other) in enumerate(zip(people, interferers, strict=True))
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 800, generator=generator)
    heard = torch.tensor([float(bool(other)) for other in interferers])
    rest = torch.randn(8, 800, generator=generator) * torch.arange(1, 9)[:, None] * heard[:, None]
    batch = {"mixture_wave": target + rest, "target_wave": target, "other_voice": heard}
    batch["example"] = torch.arange(8)
    return batch, Remix(share, seed, people, within_db)(batch, recipes)


def test_remixing_moves_the_interference_and_keeps_level_and_voice() -> None:
    batch, found = remixed([*"bcdefgh", ""], 1.0, 3)
    for name in ("target_wave", "example"):
        assert torch.equal(batch[name], found[name])
    before, after = (item["mixture_wave"] - item["target_wave"] for item in (batch, found))
    torch.testing.assert_close(before.square().mean(1), after.square().mean(1))
    alike = torch.nn.functional.normalize(after, dim=1) @ torch.nn.functional.normalize(before, dim=1).T
    moved = [row for row in range(7) if not torch.equal(before[row], after[row])]
    assert len(moved) >= 3
    for row in moved:
        donor = int(alike[row].argmax())
        assert alike[row, donor] > 0.999 and donor not in (row, row - 1), "nobody is asked for out of himself"
    assert torch.equal(found["mixture_wave"][7], found["target_wave"][7]) and found["other_voice"][7] == 0
    again, other = remixed([*"bcdefgh", ""], 1.0, 3)[1], remixed([*"bcdefgh", ""], 1.0, 4)[1]
    assert torch.equal(found["mixture_wave"], again["mixture_wave"])
    assert not torch.equal(found["mixture_wave"], other["mixture_wave"])
    _, louder = remixed([*"bcdefgh", ""], 1.0, 3, within_db=6.0)
    change = (louder["mixture_wave"] - louder["target_wave"])[moved] / after[moved]
    decibels = 20 * change.median(dim=1).values.log10()
    assert decibels.abs().max() <= 6.0 and decibels.abs().min() > 0.01 and len(set(decibels.tolist())) > 2
    batch, found = remixed([*"bcdefgh", ""], 0.0, 3)
    assert torch.equal(batch["mixture_wave"], found["mixture_wave"])


def test_nobody_is_mixed_with_himself() -> None:
    """Everybody but one is mixed with a: only a's own voice may have moved."""
    for seed in range(5):
        batch, found = remixed(["b", *"aaaaaaa"], 1.0, seed)
        assert torch.equal(batch["mixture_wave"][0], found["mixture_wave"][0])


def test_recipe_and_tuple_lists_make_a_store_of_their_own(
    stored: Store, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = stored.folder / "test" / "recipes.jsonl"
    store = make(corpus_folder, tmp_path / "again", "--recipes", str(listed))
    assert store.splits == ["test"]
    for name in ("mixture", "target", "cosine", "mixture_wave", "target_wave"):
        path = Path("test/shard-00000") / f"{name}.npy"
        assert sha256_of(store.folder / path) == sha256_of(stored.folder / path)
    tuples = tmp_path / "t.csv"
    tuples.write_text(
        "clean_utterance,embedding_utterance,interference_utterance\n"
        "100-7-0000,100-7-0001,101-7-0000\n5-5-5,6-6-6,7-7-7\n"
    )
    capsys.readouterr()
    both = make(
        corpus_folder, tmp_path / "both", "--tuples", f"test={tuples}", "--tuples", f"train={tuples}",
        "data.protocol=padded",
    )  # fmt: skip
    assert "WARNING: 1 speakers of test are in train as well: 100\n" in capsys.readouterr().out
    assert (both.people("train"), both.people("test")) == (["100", "101"], ["100"])
    assert both.splits == ["train", "test"]
    assert len(both.split("test")) == len(both.split("train")) == 1
    assert both.split("test").recipes[0].seconds == 4.0
    assert both.split("train").recipes[0].seconds == 1.5
    rows = (tmp_path / "both" / "missing.csv").read_text().splitlines()
    assert rows[1:] == [
        f"{split},2,5-5-5 6-6-6 7-7-7,missing audio: 5-5-5 6-6-6 7-7-7" for split in ("test", "train")
    ]
    tuples.write_text("clean_utterance,embedding_utterance,interference_utterance\n5-5-5,6-6-6,7-7-7\n")
    for _ in range(2):
        with pytest.raises(UserError, match="test: none of 1 listed examples can be rendered"):
            make(corpus_folder, tmp_path / "none", "--tuples", str(tuples))
    assert (tmp_path / "none" / "missing.csv").exists()
    with pytest.raises(UserError, match="a list of training examples is stored, not live"):
        make(corpus_folder, tmp_path / "l", "--tuples", f"train={tuples}", "data.mode=live")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        make(corpus_folder, tuples)


def test_the_earlier_repositories_options_still_mean_what_they_said(
    corpus_folder: Path, tmp_path: Path
) -> None:
    options = ["--train_size", "8", "--test_size", "4", "--vad", "1", "--reverse_data", "True"]
    store = make(corpus_folder, tmp_path / "s", "--only_dev", "True", *options)
    assert (len(store.split("train")), len(store.split("test"))) == (8, 4)
    assert store.settings["data"]["vad"] == "merge" and store.settings["data"]["subsets"] == ["dev-*"]
    assert all(recipe.reverse for recipe in store.split("test").recipes)
    split = store.report["splits"]
    assert not set(split["train"]["speakers"]) & set(split["test"]["speakers"])
    plain = make(corpus_folder, tmp_path / "p", "--reverse_data", "False", "--only_dev", "False")
    assert not any(recipe.reverse for recipe in plain.split("test").recipes)
    with pytest.raises(UserError, match="expected True or False, got 'maybe'"):
        make(corpus_folder, tmp_path / "x", "--reverse_data", "maybe")
    with pytest.raises(UserError, match=r"data\.subsets: train-\*: not in this corpus .*dev-clean"):
        make(corpus_folder, tmp_path / "x", "data.subsets=[train-*]")


def test_splits_can_follow_the_corpus_own_subsets(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    shutil.copytree(corpus_folder, corpus)
    for subset, names in (("test-clean", ("100", "101")), ("dev-other", ("102", "103"))):
        for name in names:
            (corpus / subset).mkdir(exist_ok=True)
            shutil.move(corpus / "dev-clean" / name, corpus / subset / name)
    store = make(
        corpus, tmp_path / "s", "data.test={examples: 4, subsets: [test-*]}",
        "data.validation={examples: 4, subsets: [dev-other]}",
    )  # fmt: skip
    split = store.report["splits"]
    assert split["test"]["speakers"] == ["100", "101"]
    assert split["validation"]["speakers"] == ["102", "103"]
    with pytest.raises(UserError, match="speaker_ids and subsets both choose"):
        load_config(None, ["data.test={examples: 4, subsets: [a], speaker_ids: [b]}"])


def test_array_files_are_what_numpy_would_have_written(tmp_path: Path) -> None:
    for parts in ([np.arange(6, dtype=np.int8).reshape(2, 3)] * 3, [np.ones((2, 3)), np.zeros((5, 3))]):
        path = tmp_path / "a.npy"
        array = ArrayFile(path, parts[0], len(parts))
        for part in parts:
            array.append(part)
        lengths, digest = array.finish()
        array.close()
        assert digest == sha256_of(path)
        joined = np.concatenate(parts) if lengths else np.stack(parts)
        np.testing.assert_array_equal(np.load(path, mmap_mode="r"), joined)
        assert lengths == ([2, 5] if lengths else [])
    assert len(npy_header(np.dtype("float16"), (10**9, 10**6, 10**6))) == 128


def test_batches_are_a_function_of_the_step_and_ranks_share_them() -> None:
    def take(sampler: ShuffledBatches | FreshBatches, count: int) -> list[list[int]]:
        return [batch for batch, _ in zip(sampler, range(count), strict=False)]

    straight = take(ShuffledBatches(10, 4, seed=3), 7)
    assert take(ShuffledBatches(10, 4, seed=3, start=5), 2) == straight[5:]
    assert len({*straight[0], *straight[1]}) == 8
    halves = [take(ShuffledBatches(10, 2, seed=3, rank=r, ranks=2), 7) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(b) for b in straight]

    fresh = take(FreshBatches(4), 5)
    assert [n for batch in fresh for n in batch] == list(range(20)) and take(
        FreshBatches(4, start=3), 2
    ) == fresh[3:]
    other = take(FreshBatches(4, seed=1), 5)
    assert not {n for batch in other for n in batch} & set(range(10**6))
    halves = [take(FreshBatches(2, rank=r, ranks=2), 5) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == fresh
