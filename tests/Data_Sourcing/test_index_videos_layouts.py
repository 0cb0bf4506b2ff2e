"""index_videos.py on each layout: which videos, with which labels, of which split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from index_runs import counts, index, leave_out_picture, refused, settings_for, split_of
from videos import write_folders, write_labelled, write_ucf101, write_video

from Data_Sourcing.video_indexing import run_indexing
from utils.artifacts import CLASS_DISTRIBUTION, CLIP_INDEX, read_table, write_table
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import read_clip_index
from utils.task_labels import read_task_labels, select_task


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def no_picture(monkeypatch) -> None:
    leave_out_picture(monkeypatch)


# --- a folder a class ------------------------------------------------------------------------------------------------


def test_folders_are_classes_and_every_container_is_read(raw, output):
    for number, suffix in enumerate((".avi", ".mp4", ".mkv", ".webm", ".MOV", ".Avi")):
        for name in ("squat", "lunge"):
            write_video(raw / name / f"{name}{number}{suffix}", 5 + number, seed=number + 100 * (name == "squat"))
    (raw / "squat" / "notes.txt").write_text("no video")
    write_video(raw / "squat" / ".hidden.mp4")
    write_video(raw / ".cache" / "x.mp4")
    rows = index(raw, output, splits={"train": 0.5, "val": 0.5, "test": 0.0})
    assert counts(rows) == {"train": {"lunge": 3, "squat": 3}, "val": {"lunge": 3, "squat": 3}}
    for row in rows["train"] + rows["val"]:
        path = raw / row["video_path"]
        number = int(path.stem[-1])
        assert (row["label"], row["class_name"]) == (int(path.parent.name == "squat"), path.parent.name)
        assert row["sha256"] == row["source_sha256"] == sha256_file(path)
        assert row["source_path"] == row["video_path"] == path.relative_to(raw).as_posix()
        assert (row["num_frames"], row["height"], row["width"]) == (5 + number, 32, 32)
        assert (row["generator"], row["group"], row["status"], row["reason"]) == ("video", "", "ok", "")


def test_the_index_is_one_that_trainers_read(raw, output):
    write_folders(raw, {"a": 8, "b": 8}, suffix=".avi")
    keys = run_indexing(settings_for(raw, output))
    assert keys == f"data_root={output} train_csv=train.csv val_csv=val.csv clips_root={raw}"
    train = read_clip_index(output / "train.csv", raw)
    val = read_clip_index(output / "val.csv", raw, num_classes=2)
    assert [len(train), len(val)] == [12, 2] and train.classes == val.classes
    assert [(item.class_name, item.wnid) for item in train.classes] == [("a", "a"), ("b", "b")]
    assert train.clip_kind == "clip:video" and train.is_paired and train.groups == train.source_ids


def test_listed_classes_are_labels_in_their_order_and_others_are_left_out(raw, output):
    write_folders(raw, {"a": 4, "b": 4, "c": 4})
    rows = index(raw, output, classes=["c", "a"])
    assert {(row["label"], row["class_name"]) for row in rows["train"]} == {(0, "c"), (1, "a")}
    assert not [path for path in split_of(rows) if path.startswith("b/")]
    assert refused(raw, output / "x", classes=["c", "d"]) == f"classes: {raw} has no folder 'd'; it has: a, b, c"


def test_a_class_without_videos_is_named(raw, output):
    write_folders(raw, {"a": 4})
    (raw / "empty").mkdir()
    assert "class 'empty' has no video" in refused(raw, output)


def test_splits_of_the_folders_are_kept(raw, output):
    write_folders(raw, {"train/a": 4, "train/b": 3, "val/a": 1, "val/b": 2, "test/a": 1})
    rows = index(raw, output)
    assert counts(rows) == {"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 2}, "test": {"a": 1}}
    assert all(path.split("/")[0] == split for path, split in split_of(rows).items())


def test_val_is_drawn_from_train_where_it_lacks(raw, output):
    write_folders(raw, {"train/a": 10, "train/b": 10, "test/a": 2, "test/b": 2})
    rows = index(raw, output, splits={"train": 0.6, "val": 0.15, "test": 0.25})  # 4 : 1
    assert counts(rows) == {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}


# --- labels.json -----------------------------------------------------------------------------------------------------


def test_labels_json_with_numbers(raw, output):
    labels = {"train": {"v1.avi": 0, "v2.avi": 1, "sub/v3.avi": 1}, "val": {"v1.avi": 1}, "test": {"v9.avi": 0}}
    write_labelled(raw, labels)
    write_video(raw / "train/unlisted.avi", seed=77)
    rows = index(raw, output, "labels_json")
    found = {
        path: (split, row["label"], row["class_name"])
        for split in rows
        for row in rows[split]
        for path in [row["video_path"]]
    }
    assert found == {
        "train/v1.avi": ("train", 0, "0"),
        "train/v2.avi": ("train", 1, "1"),
        "train/sub/v3.avi": ("train", 1, "1"),
        "val/v1.avi": ("val", 1, "1"),
        "test/v9.avi": ("test", 0, "0"),
    }


def test_labels_json_with_names_for_the_numbers_or_names_itself(raw, output, tmp_path):
    write_labelled(raw, {"train": {"1.avi": 0, "2.avi": 1}, "val": {"3.avi": 1}})
    rows = index(raw, output, "labels_json", classes=["clean", "grainy"])
    assert [(row["label"], row["class_name"]) for row in rows["train"]] == [(0, "clean"), (1, "grainy")]
    write_labelled(tmp_path / "names", {"train": {"1.avi": "x", "2.avi": "b"}, "val": {"3.avi": "b"}})
    for name, classes, expected in (("sorted", None, [1, 0]), ("listed", ["x", "b"], [0, 1])):
        rows = index(tmp_path / "names", tmp_path / name, "labels_json", classes=classes)
        assert [row["label"] for row in rows["train"]] == expected
    assert "lists x, but" in refused(tmp_path / "names", tmp_path / "few", "labels_json", classes=["x"])


def test_numbers_in_quotes_are_names(raw, output):
    """So a person called "007" is one of few, and no label of 8."""
    write_labelled(raw, {"train": {"1.avi": "10", "2.avi": "007"}, "val": {"3.avi": "10"}})
    assert [(row["label"], row["class_name"]) for row in index(raw, output, "labels_json")["train"]] == [
        (1, "10"),
        (0, "007"),
    ]
    assert refused(raw, output / "x", "labels_json", classes=["run", "walk"]) == (
        f'classes: lists run, walk, but {raw}/train/labels.json and its like have "007", "10"; list each, or correct '
        "them"
    )


def test_one_labels_json_at_the_root_is_divided_by_splits(raw, output):
    write_labelled(raw, {"": {f"v{number}.avi": number % 2 for number in range(20)}})
    assert counts(index(raw, output, "labels_json", splits={"train": 0.6, "val": 0.2, "test": 0.2})) == {
        "train": {"0": 6, "1": 6},
        "val": {"0": 2, "1": 2},
        "test": {"0": 2, "1": 2},
    }


MULTI = {
    "train": {
        "1.avi": {"grainy": 1, "blur": "strong"},
        "2.avi": {"grainy": 0, "blur": None},
        "3.avi": {"grainy": True, "blur": "none"},
        "4.avi": {"grainy": 0},
        "5.avi": {"blur": "none"},
    },
    "val": {"6.avi": {"grainy": 1}, "7.avi": {"blur": "strong"}, "8.avi": {"grainy": 0, "blur": "strong"}},
}


def test_labels_json_with_tasks(raw, output):
    write_labelled(raw, MULTI)
    rows = index(raw, output, "labels_json")
    assert [row["class_name"] for row in rows["train"]] == [
        "blur=strong grainy=1",
        "blur=? grainy=0",
        "blur=none grainy=1",
        "blur=? grainy=0",
        "blur=none grainy=?",
    ]
    train, val = (read_clip_index(output / f"{split}.csv", raw) for split in ("train", "val"))
    tasks = read_task_labels(train)
    assert tasks.names == ("blur", "grainy")
    assert tasks.labels.tolist() == [[1, 1], [-1, 0], [0, 1], [-1, 0], [0, -1]]
    assert [[item.class_name for item in tasks.classes[name]] for name in tasks.names] == [
        ["none", "strong"],
        ["0", "1"],
    ]
    assert read_task_labels(val, tasks).labels.tolist() == [[-1, 1], [1, -1], [1, 0]]
    grainy = select_task(val, "grainy", tasks)
    assert grainy.labels == [1, 0] and grainy.table["video_path"].tolist() == ["val/6.avi", "val/8.avi"]
    table = read_table(output / "class_distribution.csv", CLASS_DISTRIBUTION)
    assert table[table["split"] == "train"][["task", "label", "num_videos"]].to_numpy().tolist() == [
        ["blur", 0, 2],
        ["blur", 1, 1],
        ["grainy", 0, 2],
        ["grainy", 1, 2],
    ]


def test_combinations_that_train_lacks_are_read_with_train_s_number_of_classes(raw, output):
    write_labelled(raw, MULTI)
    run_indexing(settings_for(raw, output, "labels_json"))
    train = read_clip_index(output / "train.csv", raw)
    val = read_clip_index(output / "val.csv", raw, num_classes=len(train.classes))
    assert not set(val.labels) & set(train.labels)
    assert len(train.classes) == max(train.labels) + 1 == 7


def test_tasks_are_stratified_by_their_combination(raw, output):
    combinations = [{"x": 0, "y": 0}, {"x": 0, "y": 1}, {"x": 1}, {"y": 1}]
    write_labelled(raw, {"": {f"{number:02d}.avi": combinations[number % 4] for number in range(40)}})
    found = counts(index(raw, output, "labels_json", splits={"train": 0.6, "val": 0.2, "test": 0.2}))
    names = ("x=0 y=0", "x=0 y=1", "x=1 y=?", "x=? y=1")
    assert found == {split: dict.fromkeys(names, count) for split, count in (("train", 6), ("val", 2), ("test", 2))}


def test_a_task_s_class_in_val_that_train_lacks_is_refused(raw, output):
    write_labelled(raw, {"train": {"1.avi": {"x": 0}, "2.avi": {"y": 1}}, "val": {"3.avi": {"x": 1}}})
    assert "class '1' of task 'x' is in val (val/3.avi) but not in train" in refused(raw, output, "labels_json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"1.avi": 0, "missing.avi": 1}', "train/labels.json: 'missing.avi': there is no file 'train/missing.avi'"),
        ('{"../1.avi": 0}', "'train/../1.avi' must be relative and stay below"),
        ('{"1.avi": -1}', "'1.avi' has the label -1; give a whole number from 0"),
        ('{"1.avi": 0.5}', "has the label 0.5"),
        ('{"1.avi": [0]}', r"has the label [0]"),
        ('{"1.avi": null}', "'1.avi' has no label; give one"),
        ('{"1.avi": {}}', "'1.avi' has no label; give one"),
        ('{"1.avi": {" ": 0}}', "'1.avi' has a task without a name"),
        ('{"1.avi": 0, "2.avi": {"x": 0}}', "'1.avi' has no task, others have"),
        ('{"1.avi": 0, "2.avi": "zero"}', "the labels are numbers (0) and names ('zero'); choose one"),
        ('{"1.avi": 0, "1.avi": 1}', "'1.avi' stands twice"),
        ('{"1.avi": 0, "./1.avi": 1}', "'./1.avi' is listed twice, under two spellings"),
        ('{"1.avi": 0', "train/labels.json: is not JSON"),
        ("[]", "must be like"),
        ("{}", "must be like"),
    ],
)
def test_labels_json_that_says_something_else_is_refused(raw, output, content, says):
    for name in ("1.avi", "2.avi"):
        write_video(raw / "train" / name)
    (raw / "train/labels.json").write_text(content)
    assert says in refused(raw, output, "labels_json")


# --- UCF101 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_flat", [False, True])
def test_ucf101_keeps_its_test_list_and_draws_val_by_groups(raw, output, is_flat):
    write_ucf101(raw, groups=7, clips=3)
    if is_flat:
        for path in list(raw.glob("*/*.avi")):
            path.rename(raw / path.name)
    rows = index(raw, output, "ucf101", splits={"train": 0.8, "val": 0.2, "test": 0.0})
    assert counts(rows) == {
        "train": {"Archery": 12, "Biking": 12},
        "val": {"Archery": 3, "Biking": 3},
        "test": {"Archery": 6, "Biking": 6},
    }
    sides = {(row["group"], split) for split, of_split in rows.items() for row in of_split}
    assert len(sides) == 14, "every group is on one side"
    assert {group for group, split in sides if split == "test"} == {
        f"{name}_g{group}" for name in ("Archery", "Biking") for group in ("01", "02")
    }
    assert all(row["video_path"].startswith("v_") == is_flat for row in rows["train"])


def test_ucf101_s_test_list_may_be_val(raw, output):
    write_ucf101(raw)
    lists = raw.parent / "lists"
    (raw / "ucfTrainTestlist").rename(lists)
    rows = index(raw, output, "ucf101", ucf101={"annotations": str(lists), "test_as_val": True})
    assert counts(rows) == {"train": {"Archery": 8, "Biking": 8}, "val": {"Archery": 4, "Biking": 4}}


def test_ucf101_s_classes_may_be_chosen(raw, output):
    write_ucf101(raw, classes=("Archery", "Biking", "Diving"), groups=5, clips=1)
    rows = index(raw, output, "ucf101", classes=["Diving", "Archery"])
    assert {(row["label"], row["class_name"]) for row in rows["train"]} == {(0, "Diving"), (1, "Archery")}
    assert "has no class 'Swimming'" in refused(raw, output / "x", "ucf101", classes=["Swimming"])


UCF101_EDITS = {
    "missing video": (
        "trainlist01.txt",
        "_g03_c01.avi 1",
        "_g99_c01.avi 1",
        "trainlist01.txt line 1: there is no file",
    ),
    "other label": ("trainlist01.txt", "_g03_c01.avi 1", "_g03_c01.avi 2", "line 1: .*contradicts classInd.txt"),
    "unknown class": ("trainlist01.txt", "Archery/v_Archery_g03_c01", "Arch/v_Archery_g03_c01", "contradicts classInd"),
    "group in both": ("testlist01.txt", "v_Archery_g02_c01", "v_Archery_g04_c01", "listed twice"),
    "class list": ("classInd.txt", "2 Biking", "3 Biking", "its numbers are not 1 to 2"),
    "class line": ("classInd.txt", "2 Biking", "two Biking", "classInd.txt line 2: expected 'number name'"),
}


@pytest.mark.parametrize(("name", "old", "new", "says"), UCF101_EDITS.values(), ids=UCF101_EDITS)
def test_ucf101_lists_that_contradict_themselves_are_refused(raw, output, name, old, new, says):
    path = write_ucf101(raw) / "ucfTrainTestlist" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=says):
        run_indexing(settings_for(raw, output, "ucf101"))


def test_ucf101_s_group_in_train_and_test_is_refused_by_name(raw, output):
    lists = write_ucf101(raw) / "ucfTrainTestlist"
    write_video(raw / "Archery/v_Archery_g05_c09.avi", seed=5)
    with (lists / "testlist01.txt").open("a") as file:
        file.write("Archery/v_Archery_g05_c09.avi\n")
    sentence = refused(raw, output, "ucf101")
    assert sentence.startswith(
        "group 'Archery_g05' is in train (Archery/v_Archery_g05_c01.avi) and in test (Archery/v_Archery_g05_c09.avi); "
    )


def test_ucf101_without_its_lists_is_refused(raw, output):
    write_video(raw / "Archery/v_Archery_g01_c01.avi")
    assert "ucf101.annotations: there is no" in refused(raw, output, "ucf101")


# --- any clip index --------------------------------------------------------------------------------------------------


def test_an_index_of_ours_is_divided_anew(raw, output, tmp_path):
    write_folders(raw, {"a": 10, "b": 10})
    first = index(raw, tmp_path / "first", splits={"train": 0.5, "val": 0.5, "test": 0.0})
    rows = index(raw, output, "clip_index", index_csv=str(tmp_path / "first/train.csv"))
    assert sorted(split_of(rows)) == sorted(row["video_path"] for row in first["train"])
    assert {split: len(of_split) for split, of_split in rows.items()} == {"train": 6, "val": 2, "test": 2}
    assert {(row["label"], row["class_name"], row["wnid"]) for row in rows["train"]} == {(0, "a", "a"), (1, "b", "b")}


def test_pseudo_videos_of_one_image_stay_together_and_keep_what_they_were_made_from(raw, output):
    rows = []
    for number in range(24):
        path = write_video(raw / f"{number}.mp4", 3, seed=number)
        made = {"source_path": f"{number // 3}.png", "source_sha256": f"sha {number // 3}", "generator": "static"}
        known = {
            "video_path": path.name,
            "label": number // 12,
            "class_name": "ab"[number // 12],
            "wnid": "n01"[: number // 12 + 2],
        }
        rows.append(dict.fromkeys(CLIP_INDEX.column_names) | made | known | {"status": "ok", "seed": number})
    write_table(rows, raw / "all.csv", CLIP_INDEX)
    found = index(raw, output, "clip_index", index_csv="all.csv", splits={"train": 0.5, "val": 0.25, "test": 0.25})
    sides = split_of(found)
    assert all(len({sides[f"{3 * image + clip}.mp4"] for clip in range(3)}) == 1 for image in range(8))
    assert {split: len(of_split) for split, of_split in found.items()} == {"train": 12, "val": 6, "test": 6}
    for row in found["train"]:
        number = int(Path(row["video_path"]).stem)
        assert (row["source_sha256"], row["generator"], row["seed"]) == (f"sha {number // 3}", "static", number)
        assert (row["sha256"], row["wnid"]) == (sha256_file(raw / row["video_path"]), "n01"[: number // 12 + 2])


def test_tasks_survive_a_new_division(raw, output, tmp_path):
    write_labelled(raw, MULTI)
    run_indexing(settings_for(raw, tmp_path / "first", "labels_json"))
    settings = {"index_csv": str(tmp_path / "first/train.csv"), "splits": {"train": 0.8, "val": 0.2, "test": 0.0}}
    assert {split: len(rows) for split, rows in index(raw, output, "clip_index", **settings).items()} == {
        "train": 4,
        "val": 1,
    }
    whole = read_task_labels(read_clip_index(tmp_path / "first/train.csv", raw))
    for split in ("train", "val"):
        part = read_clip_index(output / f"{split}.csv", raw)
        labels = read_task_labels(part, whole).labels.tolist()
        expected = {f"train/{number + 1}.avi": row for number, row in enumerate(whole.labels.tolist())}
        assert labels == [expected[path] for path in part.table["video_path"]]


def write_index(raw: Path, rows: list[tuple], columns: str = "video_path,label,class_name,wnid,status") -> Path:
    """`all.csv` and the videos that it names."""
    for number, row in enumerate(rows):
        write_video(raw / row[0], seed=number)
    path = raw / "all.csv"
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


CRANES = [("n1", "crane"), ("n2", "crane"), ("n3", "crane (n2)")]


def test_classes_of_one_name_stay_apart_and_keep_it(raw, output):
    """ImageNet has two cranes, a bird and a machine."""
    write_index(raw, [(f"{n}.avi", n % 3, CRANES[n % 3][1], CRANES[n % 3][0], "ok") for n in range(15)])
    keys = {"splits": {"train": 0.6, "val": 0.2, "test": 0.2}, "keep_in_train": {"crane (n1)": 0.34}}
    found = index(raw, output, "clip_index", index_csv="all.csv", **keys)
    for split, rows in found.items():
        for row in rows:
            label = int(Path(row["video_path"]).stem) % 3
            assert (row["label"], (row["wnid"], row["class_name"])) == (label, CRANES[label])
        expected = [1, 3, 3] if split == "train" else [1, 1, 1]
        assert [sum(row["label"] == label for row in rows) for label in range(3)] == expected
    assert [item.class_name for item in read_clip_index(output / "train.csv", raw).classes] == [n for _, n in CRANES]
    table = read_table(output / "class_distribution.csv", CLASS_DISTRIBUTION)
    assert table["class_name"].tolist()[:3] == ["crane (n1)", "crane (1)", "crane (n2)"]
    sentence = refused(raw, output / "x", "clip_index", index_csv="all.csv", keep_in_train={"crane": 0.5})
    assert "no video is of class 'crane'; known: crane (1), crane (n1), crane (n2)" in sentence


def test_an_index_of_two_columns_calls_its_classes_by_their_number(raw, output):
    write_index(raw, [(f"{n}.avi", n % 2) for n in range(8)], "video_path,label")
    rows = index(raw, output, "clip_index", index_csv="all.csv")["train"]
    assert {(row["label"], row["class_name"], row["wnid"]) for row in rows} == {(0, "0", ""), (1, "1", "")}


def test_an_index_without_a_clip_that_is_ok_is_refused(raw, output):
    path = write_index(raw, [("1.avi", 0, "a", "a", "failed")])
    sentence = refused(raw, output, "clip_index", index_csv="all.csv")
    assert sentence == f"{path}: no clip has status 'ok'; read the reasons there and make it again"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1.avi,x,0,no", "line 4: label 0 is 'no' here and 'yes' before"),
        ("1.avi,x,100000,far", "line 4: label 100000 is too large"),
        ("1.avi,,0,a", "line 4: has no name of a task; give one"),
    ],
)
def test_a_table_of_tasks_that_contradicts_itself_is_refused(raw, output, row, says):
    write_index(raw, [("0.avi", 0, "a", "a", "ok"), ("1.avi", 0, "a", "a", "ok")])
    tasks = raw / "all.tasks.csv"
    tasks.write_text(f"video_path,task,label,class_name\n0.avi,x,0,yes\n0.avi,y,0,b\n{row}\n")
    assert refused(raw, output, "clip_index", index_csv="all.csv").startswith(f"{tasks} {says}")


def test_a_task_s_classes_of_one_name_stay_apart(raw, output):
    write_index(raw, [(f"{n}.avi", n % 4, "abcd"[n % 4], f"n{n % 4}", "ok") for n in range(12)])
    rows = "".join(f"{n}.avi,x,{n % 2},yes\n" for n in range(12))
    (raw / "all.tasks.csv").write_text(f"video_path,task,label,class_name\n{rows}")
    found = index(raw, output, "clip_index", index_csv="all.csv")
    assert counts(found)["train"] == {"x=yes (0)": 4, "x=yes (1)": 4}
    assert read_task_labels(read_clip_index(output / "train.csv", raw)).labels.ravel().tolist() == [
        int(Path(row["video_path"]).stem) % 2 for row in found["train"]
    ]
