"""Labels of several tasks: read beside an index, missing ones masked, one task chosen, and what contradicts refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.artifacts import TASK_LABELS, write_table
from utils.errors import InputError
from utils.indices import ClassInfo, ItemIndex, classes_of
from utils.task_labels import combination_name, read_task_labels, select_task, task_labels_path

ROWS = [("a", "grainy", 1, "yes"), ("a", "blur", 2, "strong"), ("b", "grainy", 0, "no"), ("c", "blur", 0, "none")]


def write_tasks(folder: Path, rows: list[tuple], name: str = "train") -> None:
    write_table(
        [dict(zip(TASK_LABELS.column_names, row, strict=True)) for row in rows],
        folder / f"{name}.tasks.csv",
        TASK_LABELS,
    )


def index_in(folder: Path, videos: str = "abcd", name: str = "train") -> ItemIndex:
    table = pd.DataFrame(
        {
            "video_path": list(videos),
            "label": range(len(videos)),
            "class_name": [f"combination {video}" for video in videos],
            "wnid": "",
            "sha256": [f"sha {video}" for video in videos],
        }
    )
    path = folder / f"{name}.csv"
    return ItemIndex(table, [folder / video for video in videos], classes_of(table, path), path)


def test_labels_are_a_table_of_items_by_tasks_with_gaps(tmp_path):
    write_tasks(tmp_path, ROWS)
    tasks = read_task_labels(index_in(tmp_path))
    assert tasks.names == ("blur", "grainy")
    assert tasks.labels.dtype == np.int64
    assert tasks.labels.tolist() == [[2, 1], [-1, 0], [0, -1], [-1, -1]]
    assert tasks.classes == {
        "blur": (ClassInfo(0, "none", "none"), ClassInfo(1, "1", ""), ClassInfo(2, "strong", "strong")),
        "grainy": (ClassInfo(0, "no", "no"), ClassInfo(1, "yes", "yes")),
    }


def test_rows_follow_the_index_and_videos_that_it_lacks_are_left_out(tmp_path):
    write_tasks(tmp_path, ROWS)
    assert read_task_labels(index_in(tmp_path, "cb")).labels.tolist() == [[0, -1], [-1, 0]]


def test_an_index_without_the_table_has_no_tasks(tmp_path):
    assert read_task_labels(index_in(tmp_path)) is None
    assert task_labels_path(Path("some/val.csv")) == Path("some/val.tasks.csv")


def test_val_takes_the_tasks_and_classes_of_train(tmp_path):
    write_tasks(tmp_path, ROWS)
    write_tasks(tmp_path, [("x", "grainy", 0, "no")], "val")
    train = read_task_labels(index_in(tmp_path))
    val = read_task_labels(index_in(tmp_path, "xy", "val"), train)
    assert (val.names, val.classes) == (train.names, train.classes)
    assert val.labels.tolist() == [[-1, 0], [-1, -1]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("x", "tint", 0, "no"), "has the task 'tint', the training has: blur, grainy"),
        (("x", "grainy", 2, "very"), "label 2 of task 'grainy' is 'very', the training has: 0 'no', 1 'yes'"),
        (("x", "grainy", 1, "no"), "label 1 of task 'grainy' is 'no'"),
    ],
)
def test_what_train_does_not_know_is_refused(tmp_path, row, says):
    write_tasks(tmp_path, ROWS)
    write_tasks(tmp_path, [row], "val")
    with pytest.raises(InputError, match=f"val.tasks.csv: .*{says}"):
        read_task_labels(index_in(tmp_path, "x", "val"), read_task_labels(index_in(tmp_path)))


def test_one_label_with_two_names_is_refused_with_its_line(tmp_path):
    write_tasks(tmp_path, [*ROWS, ("d", "grainy", 1, "no")])
    with pytest.raises(InputError, match=r"train.tasks.csv line 6: label 1 is 'no' here and 'yes' before"):
        read_task_labels(index_in(tmp_path))


def test_a_table_of_other_videos_is_refused(tmp_path):
    write_tasks(tmp_path, ROWS)
    with pytest.raises(InputError, match="has no label for any video of"):
        read_task_labels(index_in(tmp_path, "xyz"))


def test_one_task_is_an_index_of_its_own(tmp_path):
    write_tasks(tmp_path, ROWS)
    index = select_task(index_in(tmp_path), "blur")
    assert index.table["video_path"].tolist() == ["a", "c"] and index.paths == [tmp_path / "a", tmp_path / "c"]
    assert index.labels == [2, 0]
    assert index.table["class_name"].tolist() == index.table["wnid"].tolist() == ["strong", "none"]
    assert index.table["sha256"].tolist() == ["sha a", "sha c"]
    assert [item.class_name for item in index.classes] == ["none", "1", "strong"]
    assert (len(index), index.num_total, list(index.table.index)) == (2, 2, [0, 1])


def test_a_task_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"has no train.tasks.csv beside it"):
        select_task(index_in(tmp_path), "blur")
    write_tasks(tmp_path, ROWS)
    with pytest.raises(InputError, match="has no task 'tint'; known: blur, grainy"):
        select_task(index_in(tmp_path), "tint")
    with pytest.raises(InputError, match="no video has a label for task 'blur'"):
        select_task(index_in(tmp_path, "bx"), "blur", read_task_labels(index_in(tmp_path)))


def test_combinations_say_what_is_missing():
    assert combination_name([("blur", ""), ("grainy", "1")]) == "blur=? grainy=1"
