"""One run in parts: they add up to the whole, to the byte, and what does not add up is never merged."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, PROJECT, exit_at_call, fork
from generation_runs import (
    NUM_CLIPS,
    SPLITS,
    break_image,
    clip_hashes,
    content_of,
    plant_faults,
    raising,
    rows_of,
    settings_for,
    stamps_of,
    write_shuffled,
)
from PIL import Image
from samples import random_image, write_image_set, write_raw_set

from Data_Augmentation_SVD import merge_shards as merge_script
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generation_stats import read_sessions
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError
from Data_Augmentation_SVD.settings import MergeSettings
from Data_Augmentation_SVD.shards import merge_shards, parse_shard
from Data_Augmentation_SVD.split_files import Journal, read_index_rows
from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table, write_table
from utils.config import build_settings, dump_yaml, read_yaml
from utils.errors import InputError
from utils.indices import read_clip_index, shard_range
from utils.runs import open_run


def run_shards(data_root: Path, output: Path, num_parts: int, *, parts: list[int] | None = None, **keys) -> None:
    for part in parts or range(1, num_parts + 1):
        run_generation(settings_for(data_root, output, shard=f"{part}/{num_parts}", **keys))


def merge(output: Path, **keys) -> list[Path]:
    return merge_shards(build_settings(MergeSettings, {"output_dir": str(output)} | keys, "test"))


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run without shards writes."""
    output = tmp_path_factory.mktemp("whole")
    run_generation(settings_for(image_set, output))
    return output


@pytest.fixture(scope="module")
def three_shards(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("three")
    run_shards(image_set, output, 3)
    return output


@pytest.fixture
def shards(three_shards: Path, tmp_path: Path) -> Path:
    """Three finished shards that a test may damage."""
    return Path(shutil.copytree(three_shards, tmp_path / "out"))


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_items", [0, 1, 2, 6, 7, 100, 5500])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 7, 16])
def test_the_parts_of_a_range_are_the_range(num_items, num_parts):
    parts = [shard_range(num_items, (part, num_parts)) for part in range(1, num_parts + 1)]
    assert [position for part in parts for position in part] == list(range(num_items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("order", ["of the index", "another"])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_shards_add_up_to_the_whole_run(image_set, whole, tmp_path, num_parts, order):
    data_root, reference = image_set, whole
    if order == "another":
        data_root, reference = write_shuffled(image_set, tmp_path / "images"), tmp_path / "reference"
        run_generation(settings_for(data_root, reference))
    output = tmp_path / "out"
    run_shards(data_root, output, num_parts)
    assert clip_hashes(output) == clip_hashes(whole)
    assert (output / "train.csv").exists() == (num_parts == 1)  # one part is no shard
    if num_parts > 1:
        assert merge(output) == [output / "train.csv", output / "val.csv"]
    assert content_of(output, without="shards") == content_of(reference)


def test_a_shard_without_images_has_an_empty_index_and_no_clip(image_set, tmp_path):
    run_shards(image_set, tmp_path, 7, parts=[1])
    books = tmp_path / "shards/1-of-7"
    assert (books / "train.csv").read_text() == ",".join(CLIP_INDEX.column_names) + "\n"
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.journal.csv"))
    before = stamps_of(tmp_path)
    run_shards(image_set, tmp_path, 7, parts=[1])
    assert stamps_of(tmp_path) == before


def test_each_shard_reads_only_its_images(image_set, tmp_path):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    for split in SPLITS:
        names = read_table(data_root / f"{split}.csv", IMAGE_INDEX)["image_path"]
        for name in names[:4]:
            (data_root / name).unlink()
    run_shards(data_root, tmp_path / "out", 3, parts=[3])
    assert [row["video_path"] for row in read_index_rows(tmp_path / "out/shards/3-of-3/train.csv")] == [
        "00004.mp4",
        "00005.mp4",
    ]


def test_shards_of_the_raw_layout_add_up(tmp_path):
    raw = write_raw_set(tmp_path / "raw")
    run_generation(settings_for(raw, tmp_path / "whole"))
    run_shards(raw, tmp_path / "out", 2)
    merge(tmp_path / "out")
    assert content_of(tmp_path / "out", without="shards") == content_of(tmp_path / "whole")


def test_shards_with_several_clips_an_image_add_up(image_set, tmp_path):
    keys = {"clips_per_image": 3, "splits": ["train"]}
    run_generation(settings_for(image_set, tmp_path / "whole", **keys))
    run_shards(image_set, tmp_path / "out", 4, **keys)
    merge(tmp_path / "out")
    assert content_of(tmp_path / "out", without="shards") == content_of(tmp_path / "whole")
    assert len(rows_of(tmp_path / "out")) == 3 * NUM_CLIPS


def test_shards_with_bad_clips_add_up(image_set, whole, tmp_path, monkeypatch):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    break_image(data_root, 0)
    seeds = [row["seed"] for row in rows_of(whole)]
    plant_faults(monkeypatch, {seeds[2]: raising(ClipError("no picture")), seeds[5]: np.zeros_like})
    run_generation(settings_for(data_root, tmp_path / "whole", max_failed_fraction=1.0))
    run_shards(data_root, tmp_path / "out", 3, max_failed_fraction=1.0)
    merge(tmp_path / "out")
    assert content_of(tmp_path / "out", without="shards") == content_of(tmp_path / "whole")
    statuses = [row["status"] for row in rows_of(tmp_path / "out")]
    assert statuses == ["failed", "ok", "quarantined", "ok", "ok", "quarantined"]


# --- the merge -------------------------------------------------------------------------------------------------------


def test_after_the_merge_the_run_without_shards_has_nothing_to_do(image_set, shards, monkeypatch):
    merge(shards)
    before = stamps_of(shards)
    monkeypatch.delitem(CLIP_GENERATORS, "camera_motion")
    assert run_generation(settings_for(image_set, shards)) == [shards / "train.csv", shards / "val.csv"]
    assert stamps_of(shards) == before
    assert len(read_clip_index(shards / "train.csv", shards / "train", num_frames=3)) == NUM_CLIPS


def test_a_second_merge_changes_no_byte(shards):
    merge(shards)
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    merge(shards)
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before


def test_a_merge_does_not_undo_what_was_mended_after_the_last_one(image_set, tmp_path, monkeypatch):
    run_generation(settings_for(image_set, tmp_path / "whole", splits=["train"]))
    bad = rows_of(tmp_path / "whole")[0]["seed"]
    out, keys = tmp_path / "out", {"splits": ["train"], "max_failed_fraction": 0.5}
    with monkeypatch.context() as patch:
        plant_faults(patch, {bad: np.zeros_like})
        run_shards(image_set, out, 2, **keys)
        merge(out)
    assert rows_of(out)[0]["status"] == "quarantined"
    run_generation(settings_for(image_set, out, retry_failed=True, **keys))
    mended = content_of(out, without="shards")
    with pytest.raises(InputError, match=r"train.csv: 00000.mp4 was made again without shards"):
        merge(out)
    assert content_of(out, without="shards") == mended
    assert rows_of(out)[0]["status"] == "ok"


def test_a_merge_takes_what_the_shards_have_mended_since_the_last_one(image_set, whole, tmp_path, monkeypatch):
    bad = rows_of(whole)[0]["seed"]
    out, keys = tmp_path / "out", {"splits": ["train"], "max_failed_fraction": 0.5}
    with monkeypatch.context() as patch:
        plant_faults(patch, {bad: np.zeros_like})
        run_shards(image_set, out, 2, **keys)
        merge(out)
    run_shards(image_set, out, 2, retry_failed=True, **keys)
    merge(out)
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok"] * NUM_CLIPS
    assert [row["attempt"] for row in rows] == [1] + [0] * (NUM_CLIPS - 1)
    assert len(read_clip_index(out / "train.csv", out / "train")) == NUM_CLIPS
    assert [session["clips"] for session in read_sessions(out)] == [3, 1, 3]  # the second shard had nothing to mend


def test_a_merge_without_one_of_the_clips_is_refused(image_set, whole, shards):
    (shards / "train/00003.mp4").unlink()
    with pytest.raises(InputError, match=r"its clip 00003.mp4 is gone from .*; run shard 2/3 again, then merge"):
        merge(shards)
    assert not (shards / "train.csv").exists()
    run_shards(image_set, shards, 3, parts=[2])
    merge(shards)
    assert content_of(shards, without="shards") == content_of(whole)


def test_a_killed_merge_is_done_again(image_set, whole, shards):
    def merge_and_die() -> None:
        exit_at_call(Path, "replace", 3, after=True)  # config and environment stand, train.csv too
        merge(shards)

    assert fork(merge_and_die) == KILLED
    assert not (shards / "val.csv").exists()
    merge(shards)
    assert content_of(shards, without="shards") == content_of(whole)


def test_the_merged_records_are_those_of_a_whole_run(image_set, whole, shards):
    environment_path = shards / "shards/1-of-3/environment.json"
    environment = json.loads(environment_path.read_text()) | {"device": {"name": "a card"}}
    environment_path.write_text(json.dumps(environment))
    merge(shards)
    ours, theirs = (read_yaml(folder / "config.yaml") for folder in (shards, whole))
    assert ours | {"output_dir": None} == theirs | {"output_dir": None}
    merged = json.loads((shards / "environment.json").read_text())
    assert merged["inputs"] == json.loads((whole / "environment.json").read_text())["inputs"] != {}
    assert merged["device"] == {"name": "a card"}
    assert "Device: a card." in (shards / "README.md").read_text()
    sessions = [(session["shard"], session["split"], session["clips"]) for session in read_sessions(shards)]
    assert sessions == [(f"{part}-of-3", split, 2) for part in (1, 2, 3) for split in SPLITS]


def test_the_merge_script_joins_the_indices(image_set, whole, shards, monkeypatch):
    monkeypatch.setattr("sys.argv", ["merge_shards", f"output_dir={shards}"])
    merge_script.main()
    assert (shards / "train.csv").read_bytes() == (whole / "train.csv").read_bytes()
    assert (shards / "val.csv").read_bytes() == (whole / "val.csv").read_bytes()


def test_images_that_have_moved_are_given_to_the_merge(image_set, whole, tmp_path):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    run_shards(data_root, tmp_path / "out", 2)
    data_root.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"data_root: .*images does not exist"):
        merge(tmp_path / "out")
    merge(tmp_path / "out", data_root=str(tmp_path / "moved"))
    assert content_of(tmp_path / "out", without="shards") == content_of(whole)


@pytest.mark.parametrize("order", [("train", "val"), ("val", "train")])
def test_splits_that_shards_made_one_after_the_other_are_all_merged(image_set, whole, tmp_path, order):
    for split in order:
        run_shards(image_set, tmp_path, 2, splits=[split])
    merge(tmp_path)
    assert content_of(tmp_path, without="shards") == content_of(whole)


def test_one_split_alone_is_merged_alone(image_set, whole, tmp_path):
    run_shards(image_set, tmp_path, 2, splits=["val"])
    assert merge(tmp_path) == [tmp_path / "val.csv"]
    assert (tmp_path / "val.csv").read_bytes() == (whole / "val.csv").read_bytes()
    assert not (tmp_path / "train.csv").exists()


def edit_index(edit: Callable[[list[str]], list[str]], part: int = 2) -> Callable[[Path], None]:
    """Change the lines of a shard's train index."""

    def damage(output: Path) -> None:
        path = output / f"shards/{part}-of-3/train.csv"
        path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))

    return damage


def add_foreign_row(output: Path) -> None:
    foreign = (output / "shards/3-of-3/train.csv").read_text().splitlines(keepends=True)[1]
    edit_index(lambda lines: [*lines, foreign])(output)


def edit_config(key: str, value: object) -> Callable[[Path], None]:
    def damage(output: Path) -> None:
        path = output / "shards/2-of-3/config.yaml"
        path.write_text(dump_yaml(read_yaml(path) | {key: value}))

    return damage


def change_recorded_images(output: Path) -> None:
    path = output / "shards/2-of-3/environment.json"
    environment = json.loads(path.read_text())
    environment["inputs"]["train_index"] = "0" * 64
    path.write_text(json.dumps(environment))


UNFIT_SHARDS = {
    "none": (lambda out: shutil.rmtree(out / "shards"), "shards: there are no shards; run make_svd_videos"),
    "one never ran": (lambda out: shutil.rmtree(out / "shards/2-of-3"), "shards: 2-of-3 never ran; run"),
    "last never ran": (lambda out: shutil.rmtree(out / "shards/3-of-3"), "shards: 3-of-3 never ran; run"),
    "index missing": (lambda out: (out / "shards/2-of-3/val.csv").unlink(), "val.csv: shard 2/3 is not finished"),
    "journal stands": (
        lambda out: (out / "shards/2-of-3/train.journal.csv").write_text(""),
        "train.csv: shard 2/3 is not finished; run it again, then merge",
    ),
    "row removed": (edit_index(lambda lines: lines[:-1]), "2-of-3/train.csv: lacks 00003.mp4; remove this index"),
    "all rows removed": (edit_index(lambda lines: lines[:1]), "2-of-3/train.csv: lacks 00002.mp4"),
    "row twice": (edit_index(lambda lines: [*lines, lines[1]]), "2-of-3/train.csv: has 00002.mp4 twice"),
    "another shard's row": (add_foreign_row, "2-of-3/train.csv: has 00004.mp4, another shard's"),
    "rows in another order": (edit_index(lambda lines: [lines[0], lines[2], lines[1]]), "train.csv: is unordered"),
    "another n": (
        lambda out: shutil.copytree(out / "shards/1-of-3", out / "shards/1-of-2"),
        "shards: shards of runs with n = 2, 3; keep one",
    ),
    "another seed": (edit_config("seed", 7), "2-of-3 was made with other settings than"),
    "another generator": (edit_config("generator", "static"), "generator: 'static' -> 'camera_motion'"),
    "other images": (change_recorded_images, "train_index: other content"),
}


@pytest.mark.parametrize(("damage", "sentence"), UNFIT_SHARDS.values(), ids=UNFIT_SHARDS)
def test_shards_that_do_not_fit_are_refused_in_one_sentence(shards, damage, sentence):
    damage(shards)
    before = content_of(shards)
    with pytest.raises(InputError) as caught:
        merge(shards)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    made = {name: content for name, content in content_of(shards).items() if name not in before}
    assert made.keys() <= {".lock"}


def test_the_remedy_for_a_damaged_index_works(image_set, whole, shards):
    edit_index(lambda lines: lines[:-1])(shards)
    (shards / "shards/2-of-3/train.csv").unlink()  # as the sentence says
    run_shards(image_set, shards, 3, parts=[2])
    merge(shards)
    assert content_of(shards, without="shards") == content_of(whole)


def test_shards_of_another_number_of_images_are_refused(image_set, tmp_path):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    run_shards(data_root, tmp_path / "out", 2, splits=["train"])
    table = read_table(data_root / "train.csv", IMAGE_INDEX)
    write_table(table.iloc[:-1], data_root / "train.csv", IMAGE_INDEX)
    with pytest.raises(InputError, match=r"lacks|another shard's"):
        merge(tmp_path / "out")


def test_one_shard_of_changed_images_is_refused(image_set, tmp_path):
    run_shards(image_set, tmp_path / "out", 2, parts=[1])
    run_shards(write_shuffled(image_set, tmp_path / "images"), tmp_path / "out", 2, parts=[2])
    with pytest.raises(InputError, match=r"2-of-2 was made with other settings than .*train_index: other content"):
        merge(tmp_path / "out")


# --- who may work where ----------------------------------------------------------------------------------------------


def refused(image_set: Path, output: Path, **keys) -> str:
    before = content_of(output)
    with pytest.raises(InputError) as caught:
        run_generation(settings_for(image_set, output, **keys))
    after = content_of(output)
    assert {name: after.get(name) for name in before} == before
    assert all(name.endswith(".lock") for name in after.keys() - before.keys())
    return str(caught.value)


def test_a_shard_in_the_folder_of_a_run_without_shards_is_refused(image_set, tmp_path):
    run_generation(settings_for(image_set, tmp_path))
    assert "holds a run without shards; choose another output_dir" in refused(image_set, tmp_path, shard="1/2")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_without_shards_over_unmerged_shards_is_refused(image_set, shards, overwrite):
    sentence = refused(image_set, shards, overwrite=overwrite)
    assert "shards that are not merged lie here" in sentence


@pytest.mark.parametrize(
    ("keys", "change"),
    [({"seed": 7}, "seed: 0 -> 7"), ({"frame_size": 64}, "frame_size: 32 -> 64"), ({"shard": "2/4"}, "'1/3' -> '2/4'")],
    ids=["seed", "frame_size", "n"],
)
def test_a_shard_with_other_settings_than_its_siblings_is_refused(image_set, tmp_path, keys, change):
    run_shards(image_set, tmp_path, 3, parts=[1])
    sentence = refused(image_set, tmp_path, **({"shard": "2/3"} | keys))
    assert change in sentence and "all shards of one output_dir must have the same" in sentence


def test_a_shard_begun_anew_with_other_settings_than_its_siblings_is_refused(image_set, tmp_path):
    run_shards(image_set, tmp_path, 3, parts=[2])

    def begin_and_die() -> None:
        exit_at_call(Journal, "__enter__", 1)
        run_shards(image_set, tmp_path, 3, parts=[1])

    assert fork(begin_and_die) == KILLED  # its config stands, and nothing else that would bind it
    assert "seed: 0 -> 7" in refused(image_set, tmp_path, shard="1/3", seed=7)


def test_a_finished_shard_keeps_its_settings(image_set, shards):
    assert "seed: 0 -> 7" in refused(image_set, shards, shard="2/3", seed=7)


def test_a_shard_of_changed_images_is_refused(image_set, tmp_path):
    data_root = Path(shutil.copytree(image_set, tmp_path / "images"))
    run_shards(data_root, tmp_path / "out", 2, parts=[1])
    table = read_table(data_root / "train.csv", IMAGE_INDEX)
    write_table(table.iloc[::-1], data_root / "train.csv", IMAGE_INDEX)
    assert "train_index: its content has changed" in refused(data_root, tmp_path / "out", shard="1/2")


def test_the_same_shard_twice_at_a_time_is_refused(image_set, tmp_path):
    def run_beside() -> None:
        own = settings_for(image_set, tmp_path / "shards/1-of-2")
        held = open_run(own, owned=())
        code = fork(lambda: run_shards(image_set, tmp_path, 2, parts=[1]))
        held.release()
        os._exit(code)

    assert fork(run_beside) == 1
    assert not (tmp_path / "train").exists()


# --- kills and neighbours --------------------------------------------------------------------------------------------

KILLS = [(Path, "replace", 1), (Path, "replace", 3), (Path, "replace", 4), (Path, "replace", 6), (os, "fsync", 6)]
KILLS += [(Journal, "append", 1), (Journal, "append", 2), (Journal, "append", 3), (Journal, "remove", 1)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("target", "name", "call"), KILLS)
def test_a_killed_shard_goes_on_to_the_same_bytes(image_set, whole, tmp_path, target, name, call, after):
    def run_until_killed() -> None:
        exit_at_call(target, name, call, after=after)
        run_shards(image_set, tmp_path, 3, parts=[2])

    run_shards(image_set, tmp_path, 3, parts=[3])
    assert fork(run_until_killed) == KILLED
    with pytest.raises(InputError, match=r"never ran|not finished"):
        merge(tmp_path)
    run_shards(image_set, tmp_path, 3, parts=[1, 2])
    merge(tmp_path)
    assert content_of(tmp_path, without="shards") == content_of(whole)


def test_a_clip_removed_before_the_merge_is_made_again_by_its_shard_alone(image_set, whole, shards):
    (shards / "train/00003.mp4").unlink()
    before = stamps_of(shards / "train")
    run_shards(image_set, shards, 3)
    after = stamps_of(shards / "train")
    assert before.items() <= after.items() and len(after) == NUM_CLIPS
    merge(shards)
    assert content_of(shards, without="shards") == content_of(whole)


def test_an_overwritten_shard_leaves_the_other_shards_alone(image_set, whole, shards):
    before = stamps_of(shards)
    run_shards(image_set, shards, 3, parts=[2], overwrite=True)
    changed = {
        path.relative_to(shards).as_posix() for path, stamp in stamps_of(shards).items() if before[path] != stamp
    }
    mine = {f"{split}/0000{number}.mp4" for split in SPLITS for number in (2, 3)}
    assert {name for name in changed if name.endswith(".mp4")} == mine
    assert all(name in mine or name.startswith("shards/2-of-3/") for name in changed)
    merge(shards)
    assert content_of(shards, without="shards") == content_of(whole)


def test_shards_that_run_at_the_same_time_add_up(image_set, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = [(image_set, tmp_path, 3) for _ in range(3)]
    processes = [
        context.Process(target=run_shards, args=args, kwargs={"parts": [part]})
        for part, args in enumerate(arguments, start=1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    merge(tmp_path)
    assert content_of(tmp_path, without="shards") == content_of(whole)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what a launcher tells its processes."""

    def launch(**variables: str) -> None:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    launch()
    return launch


@pytest.mark.parametrize(
    ("text", "variables", "shard"),
    [
        (None, {}, (1, 1)),
        (None, {"WORLD_SIZE": "1", "RANK": "0"}, (1, 1)),
        (None, {"WORLD_SIZE": "", "RANK": ""}, (1, 1)),
        (None, {"WORLD_SIZE": "4", "RANK": "0"}, (1, 4)),
        (None, {"WORLD_SIZE": "4", "RANK": "3"}, (4, 4)),
        ("2/3", {}, (2, 3)),
        ("2/3", {"WORLD_SIZE": "1", "RANK": "0"}, (2, 3)),
        ("16/16", {}, (16, 16)),
    ],
)
def test_a_process_knows_its_shard(processes, text, variables, shard):
    processes(**variables)
    assert parse_shard(text) == shard


def test_a_shard_of_a_launched_process_is_refused(processes, image_set, tmp_path):
    processes(WORLD_SIZE="2", RANK="1")
    with pytest.raises(InputError, match=r"^shard: several processes were launched, which are shards already; drop"):
        run_generation(settings_for(image_set, tmp_path / "out", shard="1/2"))
    assert not (tmp_path / "out").exists()


def test_launched_processes_are_shards(processes, image_set, whole, tmp_path):
    for rank in ("1", "0"):
        processes(WORLD_SIZE="2", RANK=rank)
        run_generation(settings_for(image_set, tmp_path))
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["1-of-2", "2-of-2"]
    merge(tmp_path)
    assert content_of(tmp_path, without="shards") == content_of(whole)


@pytest.mark.exhaustive
def test_accelerate_launch_makes_one_shard_a_process(image_set, whole, tmp_path):
    # `--multi_gpu` starts the processes, with or without GPUs; `--cpu` alone starts one process, whatever the number.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    overrides = [f"data_root={image_set}", f"output_dir={tmp_path}", "generator=camera_motion", "frame_size=32"]
    overrides += ["geometry.height=64", "geometry.width=64", "geometry.fit=pad", "geometry.output=undo"]
    overrides += ["checks.min_source_correlation=-1", "max_failed_fraction=0.01"]
    command = [sys.executable, *launcher, "-m", "Data_Augmentation_SVD.make_svd_videos", *overrides]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["1-of-2", "2-of-2"]
    assert not (tmp_path / "train.csv").exists()
    merge(tmp_path)
    assert content_of(tmp_path, without="shards") == content_of(whole)


# --- an image added between two shards of the raw layout --------------------------------------------------------------


def test_an_image_added_between_two_shards_is_found_by_the_merge(tmp_path):
    raw = write_raw_set(tmp_path / "raw", wnids=("c0", "c1"))
    run_shards(raw, tmp_path / "out", 2, parts=[1], splits=["train"])
    Image.fromarray(random_image(77)).save(raw / "train/c1/images/c1_1a.JPEG")  # of the first class
    run_shards(raw, tmp_path / "out", 2, parts=[2], splits=["train"])
    with pytest.raises(InputError, match=r"00003.mp4 is of train/c1/images/c1_2.JPEG, as is 00002.mp4; the images"):
        merge(tmp_path / "out")
    run_shards(raw, tmp_path / "out", 2, splits=["train"], overwrite=True)  # as the sentence says
    merge(tmp_path / "out")
    assert len({row["source_path"] for row in rows_of(tmp_path / "out")}) == 7
