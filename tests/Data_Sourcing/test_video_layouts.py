"""Folders of classes: nothing that looks like a video is left out without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from videos import write_folders, write_video

from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_layouts import read_layout
from Data_Sourcing.video_set import VideoSet
from utils.config import build_settings
from utils.errors import InputError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def read_folders(raw: Path, **keys) -> VideoSet:
    content = {"data_root": str(raw), "output_dir": str(raw / "out"), "layout": "folders"} | keys
    return read_layout(build_settings(IndexVideosSettings, content, "test"))


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def refusal(raw: Path, **keys) -> str:
    with pytest.raises(InputError) as error:
        read_folders(raw, **keys)
    return str(error.value)


@pytest.mark.parametrize("in_train", ["train/1.mp4", "train/a/1.mp4"])
def test_split_folders_beside_class_folders_are_refused_by_name(raw, in_train):
    """`train` may be the vehicle."""
    touch(raw, in_train, "bus/2.mp4", "car/3.mp4", "car/deep/4.mp4")
    assert refusal(raw) == (
        f"{raw}: beside train/ lies bus/ with videos, and 1 more folder; keep only train/, val/, test/ with a folder a "
        "class in each, or rename a class called 'train'"
    )


def test_folders_without_videos_and_hidden_ones_may_lie_beside_the_splits(raw):
    touch(raw, "train/a/1.mp4", "val/a/2.mp4", "notes/readme.txt", ".cache/3.mp4", "out/4.mp4")
    videos = read_folders(raw).videos
    assert [(video.path, video.split) for video in videos] == [("train/a/1.mp4", "train"), ("val/a/2.mp4", "val")]


def test_splits_without_train_are_no_classes(raw):
    touch(raw, "val/a/1.mp4", "test/a/2.mp4")
    assert refusal(raw) == f"{raw}: has test/ and val/, but no train/; add it, or rename classes that are called so"


def test_a_class_called_val_is_one_where_others_are_beside_it(raw):
    touch(raw, "val/1.mp4", "bus/2.mp4")
    assert read_folders(raw).classes == {"": ("bus", "val")}


def test_videos_in_no_class_folder_are_counted_and_named(raw, caplog):
    touch(raw, "train/a/1.mp4", "train/lone.mp4", "val/a/2.mp4", "val/lone.avi", "root.mov", "train/.hidden.mp4")
    assert len(read_folders(raw).videos) == 2
    assert "3 videos lie in no class's folder and are left out, the first: root.mov" in caplog.text
    caplog.clear()
    touch(raw.parent / "other", "a/1.mp4", "lone.mp4")
    assert len(read_folders(raw.parent / "other").videos) == 1
    assert "1 video lies in no class's folder and is left out: lone.mp4" in caplog.text


@pytest.mark.parametrize("folder", ["", "train/"])
def test_videos_without_any_class_folder_are_refused(raw, folder):
    touch(raw, f"{folder}1.mp4", f"{folder}2.mp4")
    assert refusal(raw) == (
        f"{raw / folder}: has videos, the first 1.mp4, but no folder of a class; put each video into its class's "
        "folder, or take layout=labels_json"
    )


def test_whole_trees_warn_of_nothing(raw, caplog):
    write_folders(raw, {"train/a": 1, "val/a": 1})
    write_video(raw / "train/a/deep/er.mp4")
    assert len(read_folders(raw).videos) == 3 and caplog.text == ""


def test_shares_of_splits_that_nothing_is_drawn_by_are_refused(raw):
    shares = {"train": 0.8, "val": 0.2, "test": 0.0}
    touch(raw, "train/a/1.mp4", "test/a/2.mp4")
    assert len(read_folders(raw, splits=shares).videos) == 2, "val is drawn from train"
    touch(raw, "val/a/3.mp4")
    assert refusal(raw, splits=shares) == f"splits: {raw} brings train and val itself; drop the section"
    assert len(read_folders(raw, splits={"train": 0.7, "val": 0.15, "test": 0.15}).videos) == 3, "the YAML's own"


def test_a_configured_class_may_be_left_out(raw):
    touch(raw, "a/1.mp4", "b/2.mp4", "empty/3.txt")
    assert [video.path for video in read_folders(raw, classes=["b"]).videos] == ["b/2.mp4"]
