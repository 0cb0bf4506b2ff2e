"""filter.py and val.py: which images, in which order, as which bytes; and what becomes of images that are bad."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, exit_at_call, fork
from PIL import Image
from samples import random_image, write_raw_set

from Data_Sourcing import filter as filter_script
from Data_Sourcing import sourcing, val
from Data_Sourcing.settings import SourcingSettings
from Data_Sourcing.sourcing import run_sourcing
from utils import images
from utils.artifacts import IMAGE_INDEX, SOURCING_ISSUES, read_table
from utils.config import build_settings, read_settings
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import read_image_index

PAPER_CLASSES = ["n02099601", "n02123394", "n02129165", "n02132136", "n02403003"]
PAPER_CLASSES += ["n02415577", "n02423022", "n02481823", "n02504458", "n02509815"]


def settings_for(raw: Path, output: Path, **keys) -> SourcingSettings:
    """Two classes in another order than wnids.txt and the folders have; `c9` is left out."""
    classes = [{"wnid": "c1", "name": "one"}, {"wnid": "c0", "name": "zero"}]
    content = {"raw_root": str(raw), "output_dir": str(output), "classes": classes, "max_rejected_fraction": 1.0}
    return build_settings(SourcingSettings, content | keys, "test")


def run_both(raw: Path, output: Path, **keys) -> Path:
    for split in ("train", "val"):
        run_sourcing(settings_for(raw, output, **keys), split)
    return output


def rows_of(index_path: Path) -> list[dict]:
    return read_table(index_path, IMAGE_INDEX).to_dict("records")


def issues_of(output: Path, split: str = "train") -> list[dict]:
    path = output / f"{split}_issues.csv"
    return read_table(path, SOURCING_ISSUES).to_dict("records") if path.exists() else []


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder but those that say when and where it was made."""
    skip = {f"{split}.{name}" for split in ("train", "val") for name in ("config.yaml", "environment.json")}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in skip)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def jpeg_bytes(pixels: np.ndarray, **options) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", **options)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def zip_of(raw: Path, path: Path, prefix: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in raw.rglob("*"):  # in the file system's order: the index must not depend on it
            archive.write(file, prefix + file.relative_to(raw).as_posix())
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw_set(tmp_path / "raw")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


# --- which images, in which order ------------------------------------------------------------------------------------


def test_labels_are_positions_in_the_class_list_and_other_classes_are_dropped(raw, output):
    run_both(raw, output)
    for split in ("train", "val"):
        found = {(row["label"], row["wnid"], row["class_name"]) for row in rows_of(output / f"{split}.csv")}
        assert found == {(0, "c1", "one"), (1, "c0", "zero")}
    assert not [name for name in content_of(output) if "c9" in name]


def test_train_is_in_label_order_and_then_in_natural_order(tmp_path, output):
    raw = write_raw_set(tmp_path / "raw", per_class=12)
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    expected = [f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in ("c1", "c0") for number in range(12)]
    assert [row["image_path"] for row in rows] == expected  # x_2 before x_10


def test_val_is_in_the_order_of_the_annotations(raw, output):
    annotations = raw / "val/val_annotations.txt"
    lines = annotations.read_text().splitlines(keepends=True)
    lines = [lines[position] for position in np.random.default_rng(3).permutation(len(lines))]
    annotations.write_text("".join(lines))
    rows = rows_of(run_sourcing(settings_for(raw, output), "val"))
    kept = [line.split("\t")[:2] for line in lines if "\tc9\t" not in line]
    assert [row["image_path"] for row in rows] == [f"val/{wnid}/{name}" for name, wnid in kept]


@pytest.mark.parametrize("inner", ["", "images"])
def test_foldered_val_gives_the_annotated_set_in_label_order(raw, output, tmp_path, inner):
    annotated = rows_of(run_sourcing(settings_for(raw, output), "val"))
    for line in (raw / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        target = raw / "val" / wnid / inner / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (raw / "val/images" / name).rename(target)
    (raw / "val/val_annotations.txt").unlink()
    (raw / "val/images").rmdir()
    foldered = rows_of(run_sourcing(settings_for(raw, tmp_path / "foldered"), "val"))
    assert foldered == sorted(annotated, key=lambda row: (row["label"], int(row["image_path"].split("_")[1][:-5])))


def test_clean_images_keep_their_bytes_and_the_index_their_hash(raw, output):
    run_both(raw, output)
    for split, inner in (("train", "train/{wnid}/images"), ("val", "val/images")):
        for row in rows_of(output / f"{split}.csv"):
            source = raw / inner.format(**row) / Path(row["image_path"]).name
            assert (output / row["image_path"]).read_bytes() == source.read_bytes()
            assert row["sha256"] == sha256_file(source)
        assert not (output / f"{split}_issues.csv").exists()
        assert len(read_image_index(output / f"{split}.csv")) == 6


@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/"])
def test_a_zip_gives_the_same_files_as_the_folder(raw, output, tmp_path, prefix):
    archive = zip_of(raw, tmp_path / "raw.zip", prefix)
    assert content_of(run_both(archive, tmp_path / "zipped")) == content_of(run_both(raw, output))


def test_two_runs_give_the_same_bytes_in_every_file(raw, tmp_path):
    add_bad_train_images(raw)
    first, second = content_of(run_both(raw, tmp_path / "a")), content_of(run_both(raw, tmp_path / "b"))
    assert len(first) > 20
    assert first == second


def test_a_second_run_in_the_same_folder_writes_nothing(raw, output):
    run_both(raw, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if not path.name.endswith(".lock")}
    run_both(raw, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if not path.name.endswith(".lock")} == before


def test_an_index_that_stands_needs_no_raw_data(raw, output):
    index_path = run_sourcing(settings_for(raw, output), "train")
    shutil.rmtree(raw)
    assert run_sourcing(settings_for(raw, output), "train") == index_path


def test_a_killed_run_goes_on_to_the_same_bytes(raw, output, tmp_path, monkeypatch):
    whole = content_of(run_both(raw, tmp_path / "whole"))
    write, calls = sourcing.write_bytes, iter(range(100))

    def write_or_die(path, content):
        if next(calls) == 4:
            path.with_name(path.name + ".partial").write_bytes(content[:50])
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(sourcing, "write_bytes", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        run_sourcing(settings_for(raw, output), "train")
    assert content_of(run_both(raw, output)) == whole


@pytest.mark.parametrize("between", [(), ("val",)], ids=["at_once", "after_the_other_split"])
def test_a_killed_overwrite_is_never_taken_for_a_finished_split(raw, output, tmp_path, between):
    whole = content_of(run_both(raw, tmp_path / "whole"))
    run_both(raw, output)

    def overwrite_until_killed() -> None:
        exit_at_call(shutil, "rmtree", 1, after=True)
        run_sourcing(settings_for(raw, output, overwrite=True), "train")

    assert fork(overwrite_until_killed) == KILLED
    for split in (*between, "train", "train"):  # the last has nothing to do
        run_sourcing(settings_for(raw, output), split)
    assert content_of(output) == whole


def test_files_of_the_same_name_in_other_sub_folders_are_all_kept(raw, output):
    folder = raw / "train/c0"
    names = (
        "same.JPEG",
        "images/same.JPEG",
        "more/same.JPEG",
        "more_same.JPEG",
        "more/deep/same.JPEG",
        "same.JPEG.png",
    )
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random_image(900 + number)).save(folder / name, format="PNG" if "png" in name else "JPEG")
    grey = Image.fromarray(random_image(990)[..., 0])
    grey.save(folder / "images/same.jpg", format="JPEG")
    index = read_image_index(run_sourcing(settings_for(raw, output), "train"))
    expected = {sha256_file(folder / name) for name in names}
    assert expected < set(index.table["sha256"])
    assert len(set(index.paths)) == len(index) == 6 + len(names) + 1


@pytest.mark.parametrize("wnid", ["c0", "c1"])
def test_a_file_annotated_twice_is_refused_with_both_lines(raw, output, wnid):
    with (raw / "val/val_annotations.txt").open("a") as annotations:
        annotations.write(f"val_0.JPEG\t{wnid}\t0\t0\t1\t1\n")  # of class c0 on line 1
    with pytest.raises(InputError, match=r"val_annotations.txt line 10: 'val_0.JPEG' .* line 1"):
        run_sourcing(settings_for(raw, output), "val")


def test_a_file_name_with_a_raised_digit_is_a_file_like_others(raw, output):
    (raw / "train/c0/images/c0_0.JPEG").rename(raw / "train/c0/images/c0_0²1.JPEG")
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    assert "train/c0/c0_0²1.JPEG" in {row["image_path"] for row in rows}


# --- bad images ------------------------------------------------------------------------------------------------------


def deep_png() -> bytes:
    """A PNG with 16 bits a channel in RGB, which Pillow cannot write and reads as 8 bits without a word."""
    rows = b"".join(b"\0" + np.full((8, 3), 257 * row, ">u2").tobytes() for row in range(8))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SMOOTH = np.repeat(np.linspace(0, 255, 32).round().astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
SMOOTH_WIDE = SMOOTH[:16]  # (16, 32, 3), brighter to the right
DEPTH = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
HALF_JPEG = jpeg_bytes(random_image(1, 64))[: len(jpeg_bytes(random_image(1, 64))) // 2]
REJECTED = {
    "truncated": (HALF_JPEG, "truncated"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "empty": (b"", "not an image"),
    "grey_16_bit": (encoded(DEPTH, "PNG"), "8 bits"),
    "rgb_16_bit": (deep_png(), "8 bits"),
    "too_large": (encoded(Image.new("L", (8000, 7000)), "PNG"), "8000 x 7000 pixels, more than the limit of 50000000"),
    "bomb": (encoded(Image.new("1", (20000, 20000)), "PNG"), "pixels"),
}


def add_train_image(raw: Path, content: bytes, name: str = "c1_1.JPEG") -> None:
    (raw / "train/c1/images" / name).write_bytes(content)


def add_bad_train_images(raw: Path) -> None:
    for name, (content, _) in REJECTED.items():
        add_train_image(raw, content, f"{name}.JPEG")
    for name, (image, _) in CONVERTED.items():
        add_train_image(raw, image, f"{name}.JPEG")


@pytest.mark.parametrize("kind", REJECTED)
def test_an_unusable_image_is_a_row_with_its_reason(raw, output, kind):
    content, reason = REJECTED[kind]
    add_train_image(raw, content)
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    assert len(rows) == 5
    assert not [row for row in rows if row["image_path"].endswith("c1_1.JPEG")]
    (issue,) = issues_of(output)
    assert reason in issue.pop("reason")
    identity = {"label": 0, "class_name": "one", "wnid": "c1"}
    assert issue == {"source_path": "train/c1/images/c1_1.JPEG", **identity, "status": "rejected"}
    assert not list((output / "train/c1").glob("c1_1*"))


def test_pillows_own_check_passes_the_truncated_image():
    Image.open(io.BytesIO(HALF_JPEG)).verify()


PALETTE = Image.fromarray(random_image(7)).quantize(16)
RGBA = Image.fromarray(np.concatenate([random_image(8), random_image(9)[..., :1]], axis=2))
CMYK_JPEG = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # shown upright when turned by 90 degrees clockwise
ANIMATION = [Image.fromarray(random_image(seed)).quantize(8) for seed in (20, 21)]
CONVERTED = {
    "grey": (encoded(Image.fromarray(random_image(6)[..., 0]), "PNG"), "L to RGB"),
    "palette": (encoded(PALETTE, "PNG"), "P to RGB"),
    "rgba": (encoded(RGBA, "PNG"), "RGBA to RGB"),
    "cmyk": (CMYK_JPEG, "CMYK to RGB"),
    "exif": (jpeg_bytes(SMOOTH_WIDE, exif=EXIF), "EXIF orientation applied"),
    "png": (encoded(Image.fromarray(random_image(10)), "PNG"), "PNG content under the name .jpeg"),
    "animation": (encoded(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:]), "first of 2 frames"),
}
PIXELS = {
    "grey": random_image(6)[..., :1].repeat(3, axis=2),
    "palette": np.asarray(PALETTE.convert("RGB")),
    "rgba": random_image(8),
    "cmyk": SMOOTH,
    "exif": np.rot90(SMOOTH_WIDE, -1),
    "png": random_image(10),
    "animation": np.asarray(ANIMATION[0].convert("RGB")),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_convertible_image_is_a_png_with_the_right_pixels(raw, output, kind):
    content, reason = CONVERTED[kind]
    add_train_image(raw, content)
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    assert len(rows) == 6
    (row,) = (row for row in rows if "c1_1" in row["image_path"])
    pixels = images.read_rgb_image(output / row["image_path"])
    assert row["image_path"] == "train/c1/c1_1.JPEG.png"
    assert row["sha256"] == sha256_file(output / row["image_path"])
    tolerance = 4 if kind in ("cmyk", "exif") else 0  # JPEG changes pixels a little
    np.testing.assert_allclose(pixels.astype(int), PIXELS[kind].astype(int), atol=tolerance)
    (issue,) = issues_of(output)
    assert issue["status"] == "converted"
    assert reason in issue["reason"]


def test_a_grey_jpeg_becomes_rgb_with_equal_channels(raw, output):
    add_train_image(raw, encoded(Image.fromarray(SMOOTH[..., 0]), "JPEG", quality=95))
    run_sourcing(settings_for(raw, output), "train")
    pixels = images.read_rgb_image(output / "train/c1/c1_1.JPEG.png")
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_allclose(pixels.astype(int), SMOOTH.astype(int), atol=4)


def test_all_bad_images_together_stop_nothing(raw, output):
    add_bad_train_images(raw)
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    assert len(rows) == 6 + len(CONVERTED)
    assert Counter(issue["status"] for issue in issues_of(output)) == {
        "rejected": len(REJECTED),
        "converted": len(CONVERTED),
    }


def test_an_annotated_file_that_is_missing_is_a_row(raw, output):
    (raw / "val/images/val_0.JPEG").unlink()  # of class c0
    assert len(rows_of(run_sourcing(settings_for(raw, output), "val"))) == 5
    (issue,) = issues_of(output, "val")
    assert (issue["source_path"], issue["label"]) == ("val/images/val_0.JPEG", 1)
    assert (issue["status"], issue["reason"]) == ("rejected", "the file is missing")


def test_a_file_missing_from_the_zip_is_a_row(raw, output, tmp_path):
    (raw / "val/images/val_0.JPEG").unlink()
    run_sourcing(settings_for(zip_of(raw, tmp_path / "raw.zip", ""), output), "val")
    assert [issue["reason"] for issue in issues_of(output, "val")] == ["the file is missing"]


@pytest.mark.parametrize("damage", ["checksum", "stream"])
def test_a_file_damaged_inside_the_zip_is_a_row(raw, output, tmp_path, damage):
    archive = zip_of(raw, tmp_path / "raw.zip", "")
    info = zipfile.ZipFile(archive).getinfo("train/c1/images/c1_1.JPEG")
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    if damage == "stream":
        content[start] = 0x07  # deflate's reserved block type
    else:
        content[start + info.compress_size // 2] ^= 1
    archive.write_bytes(content)
    assert len(rows_of(run_sourcing(settings_for(archive, output), "train"))) == 5
    (issue,) = issues_of(output)
    assert issue["status"] == "rejected"
    assert "zip" in issue["reason"]


# --- too many bad ones, duplicates, leaks ----------------------------------------------------------------------------


def test_more_rejected_than_the_limit_ends_the_stage_with_the_reasons_on_disk(raw, output):
    add_train_image(raw, b"text")
    with pytest.raises(InputError, match=r"train_issues.csv: 1 of 6 images cannot be used.*max_rejected_fraction=0.1"):
        run_sourcing(settings_for(raw, output, max_rejected_fraction=0.1), "train")
    assert not (output / "train.csv").exists()
    assert issues_of(output)[0]["source_path"] == "train/c1/images/c1_1.JPEG"


def test_as_many_rejected_as_the_limit_allows_is_no_error(raw, output):
    add_train_image(raw, b"text")
    assert len(rows_of(run_sourcing(settings_for(raw, output, max_rejected_fraction=1 / 6), "train"))) == 5


def test_converted_images_do_not_count_as_rejected(raw, output):
    add_train_image(raw, CONVERTED["png"][0])
    assert len(rows_of(run_sourcing(settings_for(raw, output, max_rejected_fraction=0.0), "train"))) == 6


def test_raising_the_limit_as_the_message_says_lets_the_same_folder_go_on(raw, output):
    add_train_image(raw, b"text")
    with pytest.raises(InputError, match="raise the limit"):
        run_sourcing(settings_for(raw, output, max_rejected_fraction=0.1), "train")
    assert len(rows_of(run_sourcing(settings_for(raw, output, max_rejected_fraction=0.5), "train"))) == 5


def test_mending_the_raw_data_leaves_no_old_issues_behind(raw, output):
    good = (raw / "train/c1/images/c1_1.JPEG").read_bytes()
    add_train_image(raw, b"text")
    settings = settings_for(raw, output, max_rejected_fraction=0.1)
    with pytest.raises(InputError, match="mend the raw data"):
        run_sourcing(settings, "train")
    add_train_image(raw, good)
    assert len(rows_of(run_sourcing(settings, "train"))) == 6
    assert issues_of(output) == []


def test_duplicates_inside_a_split_are_reported_and_kept(raw, output):
    shutil.copy(raw / "train/c1/images/c1_0.JPEG", raw / "train/c0/images/c0_7.JPEG")
    rows = rows_of(run_sourcing(settings_for(raw, output), "train"))
    assert len(rows) == 7
    (issue,) = issues_of(output)
    assert (issue["status"], issue["wnid"], issue["label"]) == ("duplicate", "c0", 1)
    assert "same content as train/c1/images/c1_0.JPEG (label 0)" in issue["reason"]


def test_every_issue_names_its_image_as_the_raw_data_do(raw, output):
    shutil.copy(raw / "train/c1/images/c1_0.JPEG", raw / "train/c0/images/c0_7.JPEG")
    add_train_image(raw, b"text")
    add_train_image(raw, CONVERTED["grey"][0], "c1_2.JPEG")
    run_sourcing(settings_for(raw, output), "train")
    sources = {issue["status"]: issue["source_path"] for issue in issues_of(output)}
    assert sources == {
        "rejected": "train/c1/images/c1_1.JPEG",
        "converted": "train/c1/images/c1_2.JPEG",
        "duplicate": "train/c0/images/c0_7.JPEG",
    }


@pytest.mark.parametrize("first", ["train", "val"])
def test_an_image_in_both_splits_is_refused_by_name_whichever_comes_second(raw, output, first):
    shutil.copy(raw / "train/c1/images/c1_0.JPEG", raw / "val/images/val_3.JPEG")  # annotated as c0
    second = "val" if first == "train" else "train"
    run_sourcing(settings_for(raw, output), first)
    with pytest.raises(InputError) as caught:
        run_sourcing(settings_for(raw, output), second)
    assert "1 images are in train and in val" in str(caught.value)
    assert "train/c1/c1_0.JPEG" in str(caught.value)
    assert "val/c0/val_3.JPEG" in str(caught.value)
    assert not (output / f"{second}.csv").exists()


def test_a_leak_that_is_allowed_is_kept(raw, output):
    shutil.copy(raw / "train/c1/images/c1_0.JPEG", raw / "val/images/val_3.JPEG")
    run_both(raw, output, allow_duplicates=True)
    shared = [{row["sha256"] for row in rows_of(output / f"{split}.csv")} for split in ("train", "val")]
    assert len(shared[0] & shared[1]) == 1


def test_allowing_the_leak_as_the_message_says_lets_the_same_folder_go_on(raw, output):
    shutil.copy(raw / "train/c1/images/c1_0.JPEG", raw / "val/images/val_3.JPEG")
    with pytest.raises(InputError, match="allow_duplicates: true"):
        run_both(raw, output)
    run_sourcing(settings_for(raw, output, allow_duplicates=True), "val")
    assert len(rows_of(output / "val.csv")) == 6


# --- raw data that are wrong as a whole, and the folder's own rules --------------------------------------------------


def remove_class(raw: Path) -> None:
    shutil.rmtree(raw / "train/c1")
    annotations = raw / "val/val_annotations.txt"
    lines = annotations.read_text().splitlines(keepends=True)
    annotations.write_text("".join(line for line in lines if "\tc1\t" not in line))


def break_annotations(raw: Path, line: bytes) -> None:
    (raw / "val/val_annotations.txt").write_bytes(line + b"\n")


@pytest.mark.parametrize(
    ("split", "damage", "sentence"),
    [
        ("train", remove_class, "class 'c1' has no images in train/c1"),
        ("val", remove_class, "class 'c1' has no val image"),
        ("val", lambda raw: break_annotations(raw, b"val_0.JPEG c0"), "val_annotations.txt line 1: expected"),
        ("val", lambda raw: break_annotations(raw, b"../x.JPEG\tc0"), "val_annotations.txt line 1: expected"),
        ("val", lambda raw: break_annotations(raw, b"\xe9.JPEG\tc0"), "val_annotations.txt.*UTF-8"),
        ("train", shutil.rmtree, "raw_root: .* does not exist"),
    ],
    ids=["no_train_class", "no_val_class", "no_tab", "climbs", "latin_1", "gone"],
)
def test_raw_data_that_are_wrong_as_a_whole_are_refused_in_one_sentence(raw, output, split, damage, sentence):
    damage(raw)
    with pytest.raises(InputError, match=sentence):
        run_sourcing(settings_for(raw, output), split)
    assert not (output / f"{split}.csv").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04 half a download", "not a complete zip file"),
        (b"PK\x05\x06" + b"\0" * 18, "holds no wnids.txt"),
    ],
    ids=["cut", "without_data"],
)
def test_a_zip_without_the_data_is_refused(output, tmp_path, content, sentence):
    (tmp_path / "raw.zip").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        run_sourcing(settings_for(tmp_path / "raw.zip", output), "train")


def test_other_classes_in_the_same_folder_are_refused_by_key(raw, output):
    run_sourcing(settings_for(raw, output), "train")
    fewer = [{"wnid": "c0", "name": "zero"}]
    with pytest.raises(InputError, match=r"other settings \(classes"):
        run_sourcing(settings_for(raw, output, classes=fewer), "train")
    rows = rows_of(run_sourcing(settings_for(raw, output, classes=fewer, overwrite=True), "train"))
    assert {(row["label"], row["wnid"]) for row in rows} == {(0, "c0")}
    assert not (output / "train/c1").exists()


def test_a_moved_raw_folder_is_the_same_and_another_one_is_refused(raw, output):
    run_both(raw, output)
    before = content_of(output)
    moved = raw.rename(raw.with_name("moved"))
    run_both(moved, output)
    (moved / "train/c0/images/c0_9.JPEG").write_bytes(b"one more")
    with pytest.raises(InputError, match="raw data: its content has changed"):
        run_sourcing(settings_for(moved, output), "train")
    assert content_of(output) == before


def test_another_class_list_for_the_second_split_is_refused(raw, output):
    run_sourcing(settings_for(raw, output), "train")
    other = [{"wnid": "c0", "name": "zero"}, {"wnid": "c1", "name": "one"}]
    with pytest.raises(InputError, match=r"classes: differ from those of train\.csv"):
        run_sourcing(settings_for(raw, output, classes=other), "val")


def test_a_download_is_not_tried_where_the_data_are(raw, output):
    url = "http://127.0.0.1:1/none.zip"
    assert len(rows_of(run_sourcing(settings_for(raw, output, download=True, download_url=url), "train"))) == 6


def test_a_failed_download_says_what_to_do_by_hand(output, tmp_path):
    keys = {"download": True, "download_url": "http://127.0.0.1:1/none.zip"}
    with pytest.raises(InputError, match=r"download of http://127.0.0.1:1/none.zip failed .* by hand"):
        run_sourcing(settings_for(tmp_path / "raw.zip", output, **keys), "train")


# --- the real data ---------------------------------------------------------------------------------------------------


def source_real_data(script, raw_root: Path, output: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["script", f"raw_root={raw_root}", f"output_dir={output}"])
    script.main()


@pytest.fixture(scope="module")
def real_sets(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The paper's image set, made twice by the scripts with their default config."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)  # 22,000 of them take 40 s; only a power cut tells
        for folder in folders:
            for script in (filter_script, val):
                source_real_data(script, real_data / "tiny-imagenet-200", folder, patch)
    return folders


@pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("val", 50)])
def test_the_papers_image_set_has_its_classes_and_counts(real_sets, split, per_class):
    rows = rows_of(real_sets[0] / f"{split}.csv")
    labels = [row["label"] for row in rows]
    assert Counter(labels) == dict.fromkeys(range(10), per_class)
    assert {(row["label"], row["wnid"]) for row in rows} == set(enumerate(PAPER_CLASSES))
    assert {path.name for path in (real_sets[0] / split).iterdir()} == set(PAPER_CLASSES)
    assert len(read_image_index(real_sets[0] / f"{split}.csv")) == len(rows)  # every hash is right


def test_the_papers_image_set_is_equal_bytes_when_made_again(real_sets):
    for name in ("train.csv", "val.csv", "train_issues.csv"):
        assert (real_sets[0] / name).read_bytes() == (real_sets[1] / name).read_bytes()


def test_the_papers_val_labels_are_those_of_the_published_clips(real_sets, real_data):
    published = [int(line.split(",")[1]) for line in (real_data / "svd_videos/val.csv").read_text().splitlines()[1:]]
    assert [row["label"] for row in rows_of(real_sets[0] / "val.csv")] == published


def test_the_shipped_config_names_the_papers_classes():
    config = Path(filter_script.__file__).with_name("sourcing_config.yaml")
    settings = read_settings(SourcingSettings, None, config, [])
    assert [item.wnid for item in settings.classes] == PAPER_CLASSES
