"""index_videos.py: how videos are divided, what becomes of bad ones, a run that was killed, and the settings."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, exit_at_call, fork
from index_runs import SPLITS, counts, index, leave_out_picture, refused, settings_for, split_of
from PIL import Image
from videos import truncate, write_folders, write_labelled, write_video

from Data_Sourcing import index_videos, video_indexing, video_probing
from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_indexing import run_indexing
from utils.artifacts import CLASS_DISTRIBUTION, PROBED_VIDEOS, VIDEO_INDEX, read_table
from utils.config import build_settings, read_settings
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import read_clip_index


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def picture() -> None:
    """For tests that look at the picture: it is drawn."""


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch) -> None:
    if "picture" not in request.fixturenames:
        leave_out_picture(monkeypatch)


# --- what is on which side --------------------------------------------------------------------------------------------


def test_groups_by_pattern_are_on_one_side(raw, output):
    for name in "ab":
        for group in range(6):
            for clip in range(3):
                write_video(raw / name / f"v_{name}_g{group}_c{clip}.avi", seed=100 * ord(name) + 10 * group + clip)
    rows = index(raw, output, group_pattern=r"/v_(\w_g\d+)_")
    sides = {(row["group"], split) for split, of_split in rows.items() for row in of_split}
    assert len(sides) == 12 and {group for group, _ in sides} == {
        f"{name}_g{group}" for name in "ab" for group in range(6)
    }
    assert counts(rows) == {"train": {"a": 12, "b": 12}, "val": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}}
    train = read_clip_index(output / "train.csv", raw)
    assert set(train.groups) == {group for group, split in sides if split == "train"}


@pytest.mark.parametrize(
    "keys", [{"group_pattern": r"_g(\d+)"}, {"groups_csv": "groups.csv"}], ids=["pattern", "table"]
)
def test_a_planted_group_leak_is_refused_by_name_before_anything_is_decoded(raw, output, monkeypatch, keys):
    for number, path in enumerate(("train/a/x_g1.avi", "train/b/x_g2.avi", "val/a/y_g3.avi", "val/b/y_g2.avi")):
        write_video(raw / path, seed=number)
    paths = [path.relative_to(raw).as_posix() for path in raw.rglob("*.avi")]
    groups = raw.parent / "groups.csv"
    groups.write_text("video_path,group\n" + "".join(f"{path},{path[-5]}\n" for path in paths))
    monkeypatch.setattr(video_probing, "probe_video", lambda path: pytest.fail("decoded"))
    sentence = refused(raw, output, **(keys if "group_pattern" in keys else {"groups_csv": str(groups)}))
    assert sentence.startswith("group '2' is in train (train/b/x_g2.avi) and in val (val/b/y_g2.avi); ")


def test_one_file_in_train_and_val_is_refused_by_both_names(raw, output):
    write_folders(raw, {"train/a": 3, "val/a": 2})
    shutil.copy(raw / "train/a/a_1.mp4", raw / "val/a/other_name.mp4")
    sentence = refused(raw, output)
    assert "is in train (train/a/a_1.mp4) and in val (val/a/other_name.mp4); " in sentence


def test_copies_are_on_one_side_and_named(raw, output, caplog):
    write_folders(raw, {"a": 12, "b": 12})
    for number in range(12):
        shutil.copy(raw / f"a/a_{number}.mp4", raw / f"a/copy_{number}.mp4")
    sides = split_of(index(raw, output))
    assert all(sides[f"a/a_{number}.mp4"] == sides[f"a/copy_{number}.mp4"] for number in range(12))
    assert len(set(sides.values())) == 3
    assert "a/copy_3.mp4: is a copy of a/a_3.mp4; both are kept, on one side" in caplog.text


def test_a_missing_val_split_is_named(raw, output, caplog):
    write_folders(raw, {"a": 1, "b": 1})
    keys = run_indexing(settings_for(raw, output, "folders"))
    assert keys == f"data_root={output} train_csv=train.csv clips_root={raw}"
    assert "no video is in val, which trainers need" in caplog.text
    assert not (output / "val.csv").exists()


def test_a_class_in_val_that_train_lacks_is_refused_before_decoding(raw, output, monkeypatch):
    write_folders(raw, {"train/a": 3, "val/a": 1, "val/b": 1})
    monkeypatch.setattr(video_indexing, "probe_videos", None)
    assert "class 'b' is in val (val/b/b_0.mp4) but not in train; " in refused(raw, output)
    assert not output.exists()


def test_a_class_of_which_train_has_only_bad_videos_is_refused(raw, output):
    write_folders(raw, {"train/a": 3, "train/b": 1, "val/a": 1, "val/b": 1})
    (raw / "train/b/b_0.mp4").write_text("no video")
    assert "class 'b' is in val (val/b/b_0.mp4) but not in train; " in refused(raw, output)


def test_a_class_that_only_bad_videos_have_is_named(raw, output, caplog):
    write_folders(raw, {"train/a": 3, "train/b": 1, "val/a": 1})
    (raw / "train/b/b_0.mp4").write_text("no video")
    index(raw, output)
    assert "class 'b' has no video that is used" in caplog.text


def test_the_seed_decides_and_a_second_run_gives_the_same_bytes(raw, output, tmp_path, picture):
    write_folders(raw, {"a": 12, "b": 12})
    first, second, other = (
        index(raw, tmp_path / name, seed=seed) for name, seed in (("one", 0), ("two", 0), ("three", 1))
    )
    assert split_of(first) == split_of(second) != split_of(other)
    for name in ("train.csv", "val.csv", "test.csv", "class_distribution.csv", "class_distribution.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("own_splits", [False, True])
def test_balanced_subsets(raw, output, own_splits):
    if own_splits:
        write_folders(raw, {"train/a": 8, "train/b": 5, "val/a": 3, "val/b": 2})
        expected = {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}}
    else:
        write_folders(raw, {"a": 9, "b": 5})
        expected = {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert counts(index(raw, output, per_class=4)) == expected


def test_a_share_of_some_classes_is_kept_in_train_alone(raw, output):
    write_folders(raw, {"a": 10, "b": 10})
    splits = {"train": 0.6, "val": 0.2, "test": 0.2}
    whole = split_of(index(raw, output, splits=splits))
    thin = index(raw, output, splits=splits, keep_in_train={"b": 0.34}, overwrite=True)
    assert counts(thin) == {"train": {"a": 6, "b": 2}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    assert split_of(thin).items() < whole.items(), "the others stay where they were"


def test_a_share_of_a_class_that_is_not_there_is_refused_before_decoding(raw, output, monkeypatch):
    write_folders(raw, {"a": 3, "b": 3})
    monkeypatch.setattr(video_indexing, "probe_videos", None)
    assert refused(raw, output, keep_in_train={"c": 0.5}) == "keep_in_train: no video is of class 'c'; known: a, b"


def write_half_labelled(raw: Path) -> None:
    """16 videos of two tasks: four of each whole combination but one, and one video whose second label is missing."""
    combinations = [{"dark": dark, "half": half} for dark in (0, 1) for half in (0, 1)]
    labels = {f"{number:02d}.avi": combinations[number % 4] for number in range(15)}
    write_labelled(raw, {"": labels | {"15.avi": {"dark": 0}}})


def test_balanced_subsets_count_the_videos_that_have_all_labels(raw, output, caplog):
    write_half_labelled(raw)
    rows = index(raw, output, "labels_json", per_class=3, splits={"train": 0.4, "val": 0.3, "test": 0.3})
    names = ("dark=0 half=0", "dark=0 half=1", "dark=1 half=0", "dark=1 half=1")
    kept = Counter(row["class_name"] for of_split in rows.values() for row in of_split)
    assert kept == dict.fromkeys(names, 3)
    assert "per_class: left out, because they lack the label of a task: 1 videos" in caplog.text


def test_where_no_video_has_all_labels_every_combination_is_a_class_of_a_balanced_subset(raw, output):
    labels = {f"{number:02d}.avi": {"xy"[number % 2]: number // 2 % 2} for number in range(16)}
    write_labelled(raw, {"": labels})
    rows = index(raw, output, "labels_json", per_class=3)
    kept = Counter(row["class_name"] for of_split in rows.values() for row in of_split)
    assert kept == {"x=0 y=?": 3, "x=1 y=?": 3, "x=? y=0": 3, "x=? y=1": 3}


def test_class_distribution_is_a_table_and_a_picture(raw, output, picture):
    write_folders(raw, {"train/a": 3, "train/b": 2, "val/a": 1})
    truncate(raw / "train/b/b_1.mp4", 0.5)
    index(raw, output, group_pattern=r"(train|val)")
    table = read_table(output / "class_distribution.csv", CLASS_DISTRIBUTION).drop(columns="task")
    assert table.to_numpy().tolist() == [
        ["train", 0, "a", 3, 1, 0],
        ["train", 1, "b", 1, 1, 1],
        ["val", 0, "a", 1, 1, 0],
        ["val", 1, "b", 0, 0, 0],
    ]
    picture = np.asarray(Image.open(output / "class_distribution.png").convert("RGB"))
    assert picture.shape[1] == 960 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_class_called_like_a_formula_is_drawn(raw, output, picture):
    write_folders(raw, {"a $$ b": 3, "$_$": 3})
    assert counts(index(raw, output))["train"] == {"$_$": 1, "a $$ b": 1}


# --- videos that cannot be used --------------------------------------------------------------------------------------


def add_bad_videos(raw: Path) -> dict[str, str]:
    """One of each kind in class a: path -> the reason's beginning."""
    write_video(raw / "a/short.mp4", 3, seed=900)
    truncate(write_video(raw / "a/cut.avi", 30, seed=901), 0.6)
    truncate(write_video(raw / "a/cut.mp4", 30, seed=902), 0.6)
    (raw / "a/text.mov").write_text("no video")
    (raw / "a/empty.webm").write_bytes(b"")
    (raw / "a/nowhere.mkv").symlink_to(raw / "missing")
    outside = write_video(raw.parent / "outside.mp4", seed=903)
    (raw / "a/link.mp4").symlink_to(outside)
    (raw / "a/back\\slash.mp4").write_bytes(outside.read_bytes())
    return {
        "a/short.mp4": "3 frames, fewer than min_frames=5",
        "a/cut.avi": "truncated: at least ",
        "a/cut.mp4": "truncated: at least ",
        "a/text.mov": "unreadable: Invalid data found when processing input",
        "a/empty.webm": "unreadable: ",
        "a/nowhere.mkv": "the file is missing",
        "a/link.mp4": "a link that leaves data_root",
        "a/back\\slash.mp4": "its name has a backslash",
    }


def test_bad_videos_are_rows_with_a_reason_and_never_items(raw, output):
    write_folders(raw, {"a": 6, "b": 6})
    reasons = add_bad_videos(raw)
    rows = [row for of_split in index(raw, output, min_frames=5).values() for row in of_split]
    failed = {row["video_path"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert failed.keys() == reasons.keys()
    assert all(failed[path].startswith(reason) for path, reason in reasons.items())
    assert not [reason for reason in failed.values() if str(raw.parent) in reason], "no path of this machine"
    assert len(rows) == 12 + len(reasons)
    assert sum(len(read_clip_index(output / f"{split}.csv", raw)) for split in SPLITS) == 12
    listed = read_table(output / "failed_videos.csv", VIDEO_INDEX)["video_path"]
    assert set(listed) == reasons.keys()


def test_bad_videos_do_not_change_how_the_others_are_divided(raw, output, tmp_path):
    write_folders(raw, {"a": 12, "b": 12})
    clean = split_of(index(raw, tmp_path / "clean"))
    bad = add_bad_videos(raw)
    dirty = split_of(index(raw, output, min_frames=5))
    assert {path: split for path, split in dirty.items() if path not in bad} == clean
    assert {dirty[path] for path in bad} == {"train"}


def test_empty_files_are_no_copies_of_each_other(raw, output):
    write_folders(raw, {"train/a": 2, "val/a": 2})
    for split in ("train", "val"):
        (raw / split / "a/empty.mp4").write_bytes(b"")
    assert counts(index(raw, output)) == {"train": {"a": 3}, "val": {"a": 3}}


def test_too_many_bad_videos_end_the_run_with_the_reasons_on_disk(raw, output):
    write_folders(raw, {"a": 9})
    (raw / "a/bad.mp4").write_text("text")
    sentence = refused(raw, output, max_failed_fraction=0.05)
    assert (
        "1 of 10 videos cannot be used, more than max_failed_fraction=0.05; the first: a/bad.mp4 (unreadable"
        in sentence
    )
    assert read_table(output / "failed_videos.csv", VIDEO_INDEX)["reason"].tolist()[0].startswith("unreadable")
    assert len(split_of(index(raw, output, max_failed_fraction=0.1))) == 10


def test_no_usable_video_at_all_is_refused(raw, output):
    (raw / "a").mkdir(parents=True)
    (raw / "a/bad.mp4").write_text("text")
    assert "no video can be used" in refused(raw, output)


# --- rerun, kill, journal --------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.name != ".lock"
    }


def test_a_second_run_does_nothing_and_says_the_same(raw, output, monkeypatch):
    write_folders(raw, {"a": 6, "b": 6})
    keys = run_indexing(settings_for(raw, output))
    before = snapshot(output)
    monkeypatch.setattr(video_probing, "probe_video", lambda path: pytest.fail("decoded"))
    assert run_indexing(settings_for(raw, output)) == keys
    assert snapshot(output) == before


def test_another_seed_or_another_video_is_refused_until_overwrite(raw, output, monkeypatch):
    write_folders(raw, {"a": 6, "b": 6})
    first = split_of(index(raw, output))
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        run_indexing(settings_for(raw, output, seed=1))
    write_video(raw / "a/new.mp4", seed=500)
    with pytest.raises(InputError, match="videos: its content has changed"):
        run_indexing(settings_for(raw, output))
    probed = []
    probe = video_probing.probe_video
    monkeypatch.setattr(video_probing, "probe_video", lambda path: probed.append(path.name) or probe(path))
    rows = index(raw, output, overwrite=True)
    assert probed == ["new.mp4"], "what is known is not decoded again"
    assert split_of(rows).keys() == first.keys() | {"a/new.mp4"}


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_killed_run_goes_on_from_the_journal_to_the_same_bytes(raw, output, tmp_path, monkeypatch, is_torn):
    write_folders(raw, {"a": 6, "b": 6})
    index(raw, tmp_path / "whole")

    def probe_until_killed() -> None:
        exit_at_call(video_probing, "probe_video", 8)
        run_indexing(settings_for(raw, output, workers=1))

    assert fork(probe_until_killed) == KILLED
    journal = output / "probed_videos.csv"
    known = len(read_table(journal, PROBED_VIDEOS))
    assert 6 <= known <= 7 and not (output / "train.csv").exists()
    if is_torn:
        journal.write_bytes(journal.read_bytes()[:-9])
        known -= 1
    probed = []
    probe = video_probing.probe_video
    monkeypatch.setattr(video_probing, "probe_video", lambda path: probed.append(path) or probe(path))
    index(raw, output)
    assert len(probed) == 12 - known
    for name in ("train.csv", "val.csv", "test.csv", "class_distribution.csv"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_video_that_was_replaced_is_looked_at_again(raw, output):
    write_folders(raw, {"a": 6})
    index(raw, output)
    write_video(raw / "a/a_3.mp4", 20, seed=321)
    rows = [row for of_split in index(raw, output, overwrite=True).values() for row in of_split]
    (row,) = (row for row in rows if row["video_path"] == "a/a_3.mp4")
    assert (row["num_frames"], row["sha256"]) == (20, sha256_file(raw / "a/a_3.mp4"))


def test_the_output_may_lie_beside_the_class_folders(raw):
    write_folders(raw, {"a": 4, "b": 4})
    for _ in range(2):
        assert counts(index(raw, raw / "index"))["train"] == {"a": 2, "b": 2}


# --- settings and script ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"splits": {"train": 0.7, "val": 0.2, "test": 0.2}}, "splits: 0.7 \\+ 0.2 \\+ 0.2 must be 1"),
        ({"group_pattern": "g(1"}, "no regular expression"),
        ({"group_pattern": "g1"}, "has 0 groups, expected one pair of parentheses"),
        ({"group_pattern": "(g)(1)"}, "has 2 groups"),
        ({"classes": ["a", "a"]}, "'a' is listed twice"),
        ({"layout": "clip_index", "classes": ["a"]}, "a clip index says its classes itself"),
        ({"layout": "ucf", "seed": -1}, "2 problems"),
        ({"ucf101": {"split": 4}}, "ucf101.split"),
        ({"groups_csv": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"ucf101": {"split": 2}}, "ucf101: is for layout=ucf101, not folders; drop the section"),
        ({"layout": "labels_json", "ucf101": {"test_as_val": True}}, "ucf101: is for layout=ucf101, not labels_json"),
        ({"index_csv": "train.csv"}, "index_csv: is for layout=clip_index, not folders; drop the key"),
        ({"layout": "ucf101", "index_csv": "train.csv"}, "index_csv: is for layout=clip_index, not ucf101"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, keys, says):
    content = {"data_root": str(tmp_path), "output_dir": str(tmp_path / "out"), "layout": "folders"} | keys
    with pytest.raises(InputError, match=says):
        build_settings(IndexVideosSettings, content, "test")


def test_the_script_s_yaml_has_the_defaults(tmp_path):
    config = Path(index_videos.__file__).with_name("index_videos.yaml")
    overrides = [f"data_root={tmp_path}", f"output_dir={tmp_path}/out"]
    settings = read_settings(IndexVideosSettings, "", config, ["--config", str(config), *overrides])
    assert settings == build_settings(
        IndexVideosSettings, {"data_root": str(tmp_path), "output_dir": f"{tmp_path}/out", "layout": "folders"}, "test"
    )


def test_the_yaml_s_example_of_a_pattern_keeps_equal_numbers_of_two_classes_apart():
    config = Path(index_videos.__file__).with_name("index_videos.yaml").read_text()
    pattern = re.search(r"group_pattern:.*?'(.+?)'", config).group(1)
    assert build_settings(
        IndexVideosSettings,
        {"data_root": ".", "output_dir": "out", "layout": "folders", "group_pattern": pattern},
        "test",
    )
    found = [re.search(pattern, path).group(1) for path in ("train/Run/v_Run_g08_c01.avi", "Jump/v_Jump_g08_c02.avi")]
    assert found == ["v_Run_g08", "v_Jump_g08"]


def test_the_script_prints_the_trainer_s_keys(raw, output, monkeypatch, capsys):
    write_folders(raw, {"a": 4, "b": 4})
    monkeypatch.setattr("sys.argv", ["index_videos", f"data_root={raw}", f"output_dir={output}"])
    index_videos.main()
    assert capsys.readouterr().out == f"data_root={output} train_csv=train.csv val_csv=val.csv clips_root={raw}\n"


# --- the real videos -------------------------------------------------------------------------------------------------


def test_the_real_videos_are_indexed_with_what_they_hold(real_data, raw, output):
    for split in ("train", "val"):
        for name, class_name in (("real_clip_a.avi", "a"), ("real_clip_b.mp4", "b")):
            target = raw / split / class_name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # A file in train and val is refused: val's is another by a byte after its end.
            target.write_bytes((real_data / "videos" / name).read_bytes() + b"\0" * (16 * (split == "val")))
    rows = index(raw, output)
    for split in ("train", "val"):
        found = [(r["class_name"], r["num_frames"], r["height"], r["width"], r["status"]) for r in rows[split]]
        assert found == [("a", 164, 240, 320, "ok"), ("b", 280, 256, 340, "ok")]
    train = read_clip_index(output / "train.csv", raw)
    assert train.paths == [raw / "train/a/real_clip_a.avi", raw / "train/b/real_clip_b.mp4"]
