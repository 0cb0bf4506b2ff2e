"""Images of a split: the raw layout and our index of it are the same set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from samples import write_image_set, write_raw_set

from Data_Sourcing.image_set import image_set_inputs, read_image_set, warn_of_leaks
from Data_Sourcing.settings import SourcingSettings
from Data_Sourcing.sourcing import run_sourcing
from utils.config import build_settings
from utils.errors import InputError

ORDER = ("c1", "c9", "c0")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_set(tmp_path / "raw", per_class=11)


@pytest.fixture
def wnids_file(tmp_path: Path) -> Path:
    return write_wnids(tmp_path / "classes.txt", ORDER)


def write_wnids(path: Path, wnids: tuple[str, ...]) -> Path:
    path.write_text("".join(f"{wnid}\n" for wnid in wnids))
    return path


def sourced(raw: Path, output: Path) -> Path:
    classes = [{"wnid": wnid, "name": f"name of {wnid}"} for wnid in ORDER]
    content = {"raw_root": str(raw), "output_dir": str(output), "classes": classes}
    for split in ("train", "val"):
        run_sourcing(build_settings(SourcingSettings, content, "test"), split)
    return output


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_raw_layout_and_our_index_are_the_same_images_in_the_same_order(raw, wnids_file, tmp_path, split):
    from_raw = read_image_set(raw, split, wnids_file)
    from_index = read_image_set(sourced(raw, tmp_path / "set"), split)
    assert from_raw.labels == from_index.labels
    assert from_raw.classes == from_index.classes
    assert list(from_raw.table["sha256"]) == list(from_index.table["sha256"])
    assert [path.name for path in from_raw.paths] == [path.name for path in from_index.paths]
    assert [path.read_bytes() for path in from_raw.paths] == [path.read_bytes() for path in from_index.paths]
    assert len(from_raw) == 33


def test_labels_of_the_raw_layout_come_from_its_own_list_by_default(raw):
    images = read_image_set(raw, "train")
    assert [item.wnid for item in images.classes] == ["c9", "c1", "c0"]  # as wnids.txt has them
    assert [item.class_name for item in images.classes] == ["name of c9", "name of c1", "name of c0"]
    assert list(images.table["image_path"])[:11] == [f"train/c9/images/c9_{number}.JPEG" for number in range(11)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_wnids_file_orders_and_picks_the_classes(raw, tmp_path, split):
    images = read_image_set(raw, split, write_wnids(tmp_path / "two.txt", ("c0", "c9")))
    pairs = set(zip(images.table["wnid"], images.labels, strict=True))
    assert pairs == {("c0", 0), ("c9", 1)}
    assert len(images) == 22


def test_a_class_without_a_name_is_called_by_its_wnid(raw):
    (raw / "words.txt").unlink()
    assert [item.class_name for item in read_image_set(raw, "val").classes] == ["c9", "c1", "c0"]


def test_a_wnids_file_that_agrees_with_the_index_is_taken(tmp_path):
    root = write_image_set(tmp_path / "set")
    with_file = read_image_set(root, "train", write_wnids(tmp_path / "same.txt", ("c0", "c1")))
    assert with_file.labels == read_image_set(root, "train").labels


@pytest.mark.parametrize("wnids", [("c1", "c0"), ("c0",), ("c0", "c1", "c2")], ids=["order", "fewer", "more"])
def test_a_wnids_file_that_contradicts_the_index_is_refused(tmp_path, wnids):
    root = write_image_set(tmp_path / "set")
    path = write_wnids(tmp_path / "other.txt", wnids)
    with pytest.raises(InputError, match=f"wnids_file: .*other.txt lists {', '.join(wnids)} but .*c0, c1"):
        read_image_set(root, "train", path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"c0\nc1\nc0\n", "line 3: class 'c0' is listed twice"),
        (b"../c0\n", "line 1: '../c0' is no folder name"),
        (b"c\xe90\n", "is not UTF-8"),
        (b"c0\nc7\n", "class 'c7' has no images"),
    ],
    ids=["empty", "twice", "climbs", "latin_1", "unknown"],
)
def test_a_bad_wnids_file_is_refused_by_line(raw, tmp_path, content, sentence):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_image_set(raw, "train", tmp_path / "bad.txt")


def test_a_wnids_file_may_have_windows_line_ends_blank_lines_and_a_byte_order_mark(raw, tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfc1\r\n\r\nc9\r\nc0\r\n")
    images = read_image_set(raw, "train", tmp_path / "windows.txt")
    assert tuple(item.wnid for item in images.classes) == ORDER


def test_a_folder_with_neither_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither val.csv \(run Data_Sourcing\) nor wnids.txt"):
        read_image_set(tmp_path, "val")


def test_an_annotated_image_that_is_missing_is_refused_by_name(raw):
    (raw / "val/images/val_5.JPEG").unlink()
    with pytest.raises(InputError, match=r"val/images/val_5.JPEG is listed but missing"):
        read_image_set(raw, "val")


def test_an_image_changed_after_it_was_indexed_is_refused_by_line(tmp_path):
    root = write_image_set(tmp_path / "set")
    path = root / "train/c0/c0_1.png"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"train.csv line 3: .*c0_1.png has changed"):
        read_image_set(root, "train")


def test_a_val_image_that_is_a_train_image_is_warned_of(raw, caplog):
    train, val = read_image_set(raw, "train"), read_image_set(raw, "val")
    warn_of_leaks(train, val)
    assert caplog.text == ""
    shutil.copy(train.paths[0], val.paths[3])
    warn_of_leaks(train, read_image_set(raw, "val"))
    assert f"1 val images are train images, too, the first: {val.paths[3]}" in caplog.text


def test_the_inputs_of_a_run_are_the_files_that_fix_the_set(raw, wnids_file, tmp_path):
    root = write_image_set(tmp_path / "set")
    assert set(image_set_inputs(root, None).values()) == {root / "train.csv", root / "val.csv"}
    annotations = raw / "val/val_annotations.txt"
    assert set(image_set_inputs(raw, None).values()) == {raw / "wnids.txt", annotations}
    assert set(image_set_inputs(raw, wnids_file).values()) == {wnids_file, annotations}
