"""Copies of a video: their labels may not contradict each other, and those that agree are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from videos import write_folders, write_labelled

from Data_Sourcing.settings import IndexVideosSettings
from Data_Sourcing.video_copies import report_copies
from Data_Sourcing.video_indexing import run_indexing
from Data_Sourcing.video_set import LabelledVideo
from utils.config import build_settings
from utils.errors import InputError
from utils.hold_out import split_hold_out
from utils.indices import read_clip_index

ONE = {"": ("run", "jump")}
TASKS = {"dark": ("0", "1"), "half": ("no", "yes")}


def videos(*labels: dict[str, int]) -> list[LabelledVideo]:
    return [LabelledVideo(f"v{number}.avi", found) for number, found in enumerate(labels)]


def hashes(listed: list[LabelledVideo], contents: str) -> dict[str, str]:
    return {video.path: content for video, content in zip(listed, contents, strict=True)}


def refusal(listed: list[LabelledVideo], contents: str, classes: dict[str, tuple[str, ...]]) -> str:
    with pytest.raises(InputError) as error:
        report_copies(listed, hashes(listed, contents), classes)
    return str(error.value)


def test_copies_of_two_classes_are_refused_by_both_names():
    listed = videos({"": 0}, {"": 0}, {"": 1}, {"": 1}, {"": 0})
    assert refusal(listed, "xyzxy", ONE) == (
        "v3.avi is a copy of v0.avi, but of class 'jump', not 'run'; remove one of them, or correct its label"
    )
    assert refusal(videos({"": 0}, {"": 1}, {"": 1}), "xxx", ONE).startswith(
        "v1.avi is a copy of v0.avi, but of class 'jump', not 'run', and 1 more; "
    )


def test_copies_that_agree_are_named_and_kept(caplog):
    listed = videos({"": 0}, {"": 0}, {"": 1}, {"": 0})
    report_copies(listed, hashes(listed, "xxyx"), ONE)
    assert [record.getMessage() for record in caplog.records] == [
        "v1.avi: is a copy of v0.avi; both are kept, on one side",
        "v3.avi: is a copy of v0.avi; both are kept, on one side",
    ]


def test_only_so_many_copies_are_named(caplog):
    listed = videos(*[{"": 0}] * 13)
    report_copies(listed, hashes(listed, "x" * 13), ONE)
    assert len(caplog.records) == 11 and caplog.records[-1].getMessage() == "and 2 more copies"


def test_tasks_contradict_each_other_only_in_the_same_task():
    agreed = videos({"dark": 0}, {"half": 1}, {"dark": 0, "half": 1})
    report_copies(agreed, hashes(agreed, "xxx"), TASKS)
    # The second copy knows what the first does not say, and the third contradicts it.
    listed = videos({"dark": 0}, {"half": 1}, {"dark": 0, "half": 0})
    assert refusal(listed, "xxx", TASKS) == (
        "v2.avi is a copy of v1.avi, but of class 'no' of task 'half', not 'yes'; remove one of them, or correct its "
        "label"
    )


def index(raw: Path, output: Path, layout: str) -> Path:
    content = {"data_root": str(raw), "output_dir": str(output), "layout": layout}
    run_indexing(build_settings(IndexVideosSettings, content, "test"))
    return output / "train.csv"


def test_contradictory_copies_end_the_indexing_before_any_split_is_drawn(tmp_path):
    raw = write_folders(tmp_path / "raw", {"a": 4, "b": 4})
    shutil.copy(raw / "a/a_2.mp4", raw / "b/copy.mp4")
    with pytest.raises(InputError, match=r"b/copy.mp4 is a copy of a/a_2.mp4, but of class 'b', not 'a'; "):
        index(raw, tmp_path / "out", "folders")
    assert not list((tmp_path / "out").glob("t*.csv"))


def test_copies_with_other_tasks_labelled_can_be_held_out(tmp_path):
    """`x=0 y=?` and `x=0 y=1` are two combinations, but no contradiction."""
    labels = {f"{number}.avi": {"x": number % 2, "y": 1} for number in range(8)}
    raw = write_labelled(tmp_path / "raw", {"train": labels, "val": {"v.avi": {"x": 0, "y": 1}}})
    for number in range(8):
        shutil.copy(raw / f"train/{number}.avi", raw / f"train/copy{number}.avi")
        labels[f"copy{number}.avi"] = {"x": number % 2}
    (raw / "train/labels.json").write_text(json.dumps(labels))
    train = read_clip_index(index(raw, tmp_path / "out", "labels_json"), raw)
    parts = split_hold_out(train, tmp_path / "hold_out.csv", fraction=0.25, seed=0)
    held, trained = ({train.source_ids[row] for row in rows} for rows in (parts.held_positions, parts.train_positions))
    assert (len(held), len(trained), len(held & trained), len(parts.held_positions)) == (2, 6, 0, 4)
