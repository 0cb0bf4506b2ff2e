"""Adoption of the published clips: sources found where they are known, never guessed, and every refusal a sentence."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import random_image
from scipy.ndimage import gaussian_filter

from Data_Augmentation_SVD.adoption import run_adoption
from Data_Augmentation_SVD.adoption_inputs import read_classes
from Data_Augmentation_SVD.adoption_tables import MATCHES
from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import AdoptionSettings
from Data_Augmentation_SVD.source_matching import (
    compute_frame_detail,
    compute_similarities,
    compute_source_detail,
    match_one_to_one,
)
from Data_Sourcing.settings import SourcingSettings
from Data_Sourcing.sourcing import run_sourcing
from utils.artifacts import CLIP_INDEX, read_table
from utils.clips import write_clip
from utils.config import build_settings
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import locate_clip_index, read_clip_index

WNIDS = ("c1", "c0")  # label order; the raw layout has another one, and a class more
PER_CLASS = 4
VIEW = Geometry(144, 256, "stretch", "centre_crop", 96)
FILES = ("train.csv", "val.csv", "matches_train.csv", "matches_val.csv", "summary.json")


def smooth_image(seed: int) -> np.ndarray:
    """uint8 (64, 64, 3) with edges a few pixels apart, as photographs have."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64, 3)), (1.5, 1.5, 0))
    return np.clip(128 + 110 * noise / noise.std() / 2, 0, 255).astype(np.uint8)


def as_clip(image: np.ndarray, seed: int) -> np.ndarray:
    """A clip of an image: seen as SVD sees it, drifted a little, with other contrast and brightness: uint8 (3, ...)."""
    rng = np.random.default_rng(seed)
    view = np.roll(VIEW.view(image).astype(np.float32), rng.integers(-4, 5, 2), axis=(0, 1))
    frame = np.clip(rng.uniform(0.6, 1.6) * (view - 128) + 128 + rng.uniform(-20, 20), 0, 255)
    return np.stack([frame.astype(np.uint8)] * 3)


def make_set(root: Path) -> dict[str, str]:
    """`raw/` and `published/` below root; train clips shuffled within their class.

    Returns:
        the source of every train clip.
    """
    raw, published = root / "raw", root / "published"
    (raw / "val" / "images").mkdir(parents=True)
    (raw / "wnids.txt").write_text("c9\nc0\nc1\n")
    (raw / "words.txt").write_text("c0\tzero, nought\nc1\tone\n")
    (root / "wnids").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    truth, rows = {}, {"train": [], "val": []}
    for label, wnid in enumerate(WNIDS):
        folder = raw / "train" / wnid / "images"
        folder.mkdir(parents=True)
        order = list(range(PER_CLASS))
        random.Random(label).shuffle(order)
        for number in range(PER_CLASS):
            Image.fromarray(smooth_image(100 * label + number)).save(folder / f"{wnid}_{number}.JPEG")
        for number in order:
            name = f"{len(rows['train']):05d}.mp4"
            truth[name] = f"train/{wnid}/images/{wnid}_{number}.JPEG"
            write_clip(published / "train" / name, as_clip(smooth_image(100 * label + number), number))
            rows["train"].append((name, label))
    annotations = []
    for number in range(2 * PER_CLASS):  # classes take turns, with a third one between them
        label = number % 2
        Image.fromarray(smooth_image(5000 + number)).save(raw / "val" / "images" / f"val_{number}.JPEG")
        annotations += [f"val_{number}.JPEG\t{WNIDS[label]}\t0\t0\t1\t1\n", f"other_{number}.JPEG\tc9\t0\t0\t1\t1\n"]
        name = f"{number:05d}.mp4"
        write_clip(published / "val" / name, as_clip(smooth_image(5000 + number), 50 + number))
        rows["val"].append((name, label))
    (raw / "val" / "val_annotations.txt").write_text("".join(annotations))
    for split, pairs in rows.items():
        write_index(published / f"{split}.csv", pairs)
    return truth


def write_index(path: Path, pairs: list[tuple[str, int]]) -> None:
    lines = "".join(f"{name},{label}\r\n" for name, label in pairs)
    path.write_text("video_path,label\r\n" + lines, newline="")


def read_index(path: Path) -> list[tuple[str, int]]:
    with path.open(newline="") as file:
        return [(row["video_path"], int(row["label"])) for row in csv.DictReader(file)]


@pytest.fixture
def made_up(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    return tmp_path, make_set(tmp_path)


def adopt(root: Path, output: str = "out", **keys) -> Path:
    content = {
        "clips_root": str(root / "published"),
        "raw_root": str(root / "raw"),
        "wnids_file": str(root / "wnids"),
        "output_dir": str(root / output),
    }
    run_adoption(build_settings(AdoptionSettings, content | keys, "test"))
    return root / output


def matches_of(folder: Path, split: str) -> dict[str, dict]:
    return read_table(folder / f"matches_{split}.csv", MATCHES).set_index("video_path").to_dict("index")


def test_every_source_of_a_shuffled_set_is_found(made_up):
    root, truth = made_up
    out = adopt(root)
    assert {name: row["source_path"] for name, row in matches_of(out, "train").items()} == truth
    assert all(row["match_status"] == "matched" and row["reason"] == "" for row in matches_of(out, "train").values())
    val = matches_of(out, "val")
    assert [row["source_path"] for row in val.values()] == [f"val/images/val_{n}.JPEG" for n in range(8)]
    assert {row["matched_by"] for row in val.values()} == {"similarity"}
    check = json.loads((out / "summary.json").read_text())["check_on_val"]
    assert check == {name: {"num_matched": 8, "num_wrong": 0} for name in ("blind", "with_train_images")}


def test_the_indices_are_what_the_trainer_and_the_evaluation_read(made_up):
    root, _ = made_up
    out = adopt(root)
    for split in ("train", "val"):
        clips = read_clip_index(*locate_clip_index(root / "published", out / f"{split}.csv", split), num_frames=3)
        assert len(clips) == 2 * PER_CLASS
        assert clips.clip_kind == "clip:svd"
        assert [(item.class_name, item.wnid) for item in clips.classes] == [("one", "c1"), ("zero", "c0")]
        assert clips.item_ids == [sha256_file(root / "raw" / path) for path in clips.table["source_path"]]
        assert set(clips.table["height"]) == {96}
    assert not list((root / "published").glob("*.lock")) and {p.name for p in (root / "published").iterdir()} == {
        "train",
        "val",
        "train.csv",
        "val.csv",
    }


def test_the_image_set_of_data_sourcing_gives_its_own_paths_and_hashes(made_up):
    root, truth = made_up
    Image.open(root / "raw" / truth["00000.mp4"]).convert("L").save(root / "raw" / truth["00000.mp4"])  # becomes a PNG
    classes = [{"wnid": "c1", "name": "one"}, {"wnid": "c0", "name": "zero"}]
    content = {"raw_root": str(root / "raw"), "output_dir": str(root / "images"), "classes": classes}
    for split in ("train", "val"):
        run_sourcing(build_settings(SourcingSettings, content | {"max_rejected_fraction": 1.0}, "test"), split)
    out = adopt(root, raw_root=str(root / "images"))
    table = read_table(out / "train.csv", CLIP_INDEX)
    assert table["source_path"].iloc[0].endswith(".JPEG.png")
    assert table["source_sha256"].iloc[0] == sha256_file(root / "images" / table["source_path"].iloc[0])


def test_a_clip_of_a_foreign_image_is_unmatched_and_kept(made_up):
    root, truth = made_up
    write_clip(root / "published" / "train" / "00002.mp4", as_clip(smooth_image(777), 1))
    out = adopt(root)
    rows = matches_of(out, "train")
    assert rows["00002.mp4"]["match_status"] == "unmatched"
    assert rows["00002.mp4"]["source_path"] == "" and "below min_" in rows["00002.mp4"]["reason"]
    assert all(row["source_path"] == truth[name] for name, row in rows.items() if name != "00002.mp4")
    row = read_table(out / "train.csv", CLIP_INDEX).iloc[2]
    assert (row["status"], row["source_path"], row["source_sha256"], row["reason"]) == ("ok", "", "", "")


def test_two_sources_nearly_alike_are_no_coin_toss(made_up):
    root, truth = made_up
    twin, other = (root / "raw" / path for path in (truth["00000.mp4"], truth["00001.mp4"]))
    pixels = np.asarray(Image.open(twin)).copy()
    pixels[0] = 255 - pixels[0]
    Image.fromarray(pixels).save(other)
    write_clip(root / "published" / "train" / "00001.mp4", as_clip(np.asarray(Image.open(twin)), 9))
    rows = matches_of(adopt(root), "train")
    for name in ("00000.mp4", "00001.mp4"):
        assert rows[name]["match_status"] == "unmatched"
        assert "another image fits about as well" in rows[name]["reason"]
        assert rows[name]["margin"] < 0.1
        assert rows[name]["similarity"] < rows[name]["threshold"]


def test_more_clips_than_images_leaves_clips_over(made_up):
    root, truth = made_up
    (root / "raw" / truth["00003.mp4"]).unlink()
    rows = matches_of(adopt(root), "train")
    assert rows["00003.mp4"]["reason"] == "every image of the class belongs to another clip"
    assert [row["match_status"] for row in rows.values()].count("matched") == 7


def test_a_damaged_clip_is_a_row_and_many_are_an_error(made_up):
    root, _ = made_up
    (root / "published" / "train" / "00001.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"train.csv: 1 of 8 clips are damaged.*max_failed_fraction=0.01"):
        adopt(root)
    assert not (root / "out" / "train.csv").exists()
    row = read_table(adopt(root, max_failed_fraction=0.2) / "train.csv", CLIP_INDEX).iloc[1]
    assert row["status"] == "failed" and "00001.mp4: cannot be decoded" in row["reason"]
    assert str(root) not in row["reason"] and row["source_path"] == ""


def test_a_damaged_image_matches_nothing(made_up, caplog):
    root, truth = made_up
    (root / "raw" / truth["00001.mp4"]).write_bytes(b"no image")
    rows = matches_of(adopt(root), "train")
    assert rows["00001.mp4"]["match_status"] == "unmatched"
    assert [row["match_status"] for row in rows.values()].count("matched") == 7
    assert truth["00001.mp4"] in caplog.text


def test_a_val_clip_that_confirms_nothing_keeps_its_place_and_says_so(made_up):
    root, _ = made_up
    write_clip(root / "published" / "val" / "00003.mp4", as_clip(smooth_image(888), 1))
    row = matches_of(adopt(root), "val")["00003.mp4"]
    assert (row["matched_by"], row["source_path"]) == ("order", "val/images/val_3.JPEG")
    assert "below min_" in row["reason"]


def swap_labels(root: Path) -> None:
    pairs = read_index(root / "published" / "val.csv")
    write_index(
        root / "published" / "val.csv",
        [(name, 1 - label) if i == 4 else (name, label) for i, (name, label) in enumerate(pairs)],
    )


def swap_files(root: Path) -> None:
    val = root / "published" / "val"
    first, third = (val / f"{n:05d}.mp4" for n in (0, 2))
    content = first.read_bytes()
    first.write_bytes(third.read_bytes())
    third.write_bytes(content)


def drop_last_row(root: Path) -> None:
    write_index(root / "published" / "val.csv", read_index(root / "published" / "val.csv")[:-1])


def write_label(root: Path) -> None:
    write_index(root / "published" / "train.csv", [("00000.mp4", 2)])


BROKEN = {
    "label contradicts the annotations": (swap_labels, r"val.csv line 6: 00004.mp4 has label 1 \(c0\).*val_4.JPEG.*c1"),
    "clips of a class swapped": (
        swap_files,
        r"val.csv line 2: 00000.mp4 has the place of .*val_0.JPEG but shows .*2.J",
    ),
    "val clip not listed": (drop_last_row, r"val.csv: has 7 clips, but .*val_annotations.txt has 8 val images"),
    "label out of range": (write_label, r"train.csv line 2: label 2 is out of range for num_classes=2"),
    "clip missing": (
        lambda root: (root / "published/train/00004.mp4").unlink(),
        r"train.csv line 6: there is no file '00004.mp4'",
    ),
    "no index": (lambda root: (root / "published/val.csv").unlink(), r"clips_root: .* has no val.csv"),
    "other class order": (lambda root: (root / "wnids").write_text("c0\nc1\n"), r"val.csv line 2: .*class list"),
    "unknown class": (lambda root: (root / "wnids").write_text("c1\nc7\n"), r"class 'c7' has no images"),
    "no annotations": (
        lambda root: (root / "raw/val/val_annotations.txt").unlink(),
        r"raw_root: .* has no val/val_annotations.txt",
    ),
    "val image missing": (lambda root: (root / "raw/val/images/val_1.JPEG").unlink(), r"val_1.JPEG is listed but miss"),
}


@pytest.mark.parametrize(("damage", "sentence"), BROKEN.values(), ids=BROKEN)
def test_bad_input_is_one_sentence(made_up, damage, sentence):
    root, _ = made_up
    damage(root)
    with pytest.raises(InputError, match=sentence):
        adopt(root)
    assert not [name for name in FILES if (root / "out" / name).exists()]


def test_settings_that_make_no_sense_are_refused(made_up):
    root, _ = made_up
    with pytest.raises(InputError, match="output_dir: lies in clips_root"):
        adopt(root, output="published/adopted")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="give the raw Tiny ImageNet layout"):
        adopt(root, raw_root=str(root / "empty"))
    with pytest.raises(InputError, match="only 0 of 8 clips resemble"):
        adopt(root, min_similarity=1.0)


def test_twice_the_same_bytes_and_a_rerun_does_nothing(made_up):
    root, _ = made_up
    out, again = adopt(root), adopt(root, output="again")
    assert all((out / name).read_bytes() == (again / name).read_bytes() for name in FILES)
    before = {name: (out / name).stat().st_mtime_ns for name in FILES}
    adopt(root)
    assert {name: (out / name).stat().st_mtime_ns for name in FILES} == before
    with pytest.raises(InputError, match=r"min_margin: 0\.1 -> 0\.2"):
        adopt(root, min_margin=0.2)
    adopt(root, min_margin=0.2, overwrite=True)
    (out / "train.csv").unlink()  # as if killed before the last file
    adopt(root)
    assert all((out / name).exists() for name in FILES)


def test_similarity_ignores_shift_brightness_and_contrast_and_not_the_picture():
    images = [smooth_image(seed) for seed in range(6)]
    sources = np.stack([compute_source_detail(image) for image in images])
    clips = np.stack([compute_frame_detail(as_clip(image, seed)[0]) for seed, image in enumerate(images)])
    similarities = compute_similarities(clips, sources)
    own = np.diag(similarities)
    assert own.min() > 0.6 and (similarities - np.diag(own)).max() < 0.3
    assert np.allclose(np.diag(compute_similarities(sources, sources)), 1, atol=1e-3)
    flat = compute_frame_detail(np.full((96, 96, 3), 7, np.uint8))
    assert not compute_similarities(flat[None], sources).any()
    assert np.abs(compute_frame_detail(random_image(1, 224)).sum()) < 1e-3


def test_assignment_is_one_to_one_and_judged_against_all_images():
    similarities = np.array([[0.9, 0.2, 0.1], [0.85, 0.3, 0.1], [0.1, 0.1, 0.12]])
    first, second, third = match_one_to_one(similarities, min_similarity=0.2, min_margin=0.1)
    assert (first.candidate, first.runner_up, first.margin, first.threshold) == (0, 1, 0.7, 0.3)
    assert first.is_match
    assert second.candidate == 1 and not second.is_match and second.margin == -0.55
    assert third.candidate == 2 and third.reason.startswith("similarity 0.12")
    (only,) = match_one_to_one(np.array([[0.5]]), 0.2, 0.1)
    assert only.is_match and only.runner_up is None


def test_default_classes_are_the_papers(real_data):
    content = {"clips_root": str(real_data), "raw_root": str(real_data), "output_dir": "unused"}
    classes = read_classes(build_settings(AdoptionSettings, content, "test"))
    assert [item.wnid for item in classes][:2] == ["n02099601", "n02123394"] and len(classes) == 10
    assert classes[9].class_name == "red panda"


def link_published(real_data: Path, root: Path, train_labels: set[int]) -> Path:
    """The published set with the train clips of some classes alone; folders are links, nothing is copied."""
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(real_data / "svd_videos" / split, target_is_directory=True)
        pairs = read_index(real_data / "svd_videos" / f"{split}.csv")
        write_index(root / f"{split}.csv", [pair for pair in pairs if split == "val" or pair[1] in train_labels])
    return root


def link_raw(real_data: Path, root: Path, train_labels: set[int], wnids: list[str]) -> Path:
    """The raw set with all train images of some classes and 50 of the others."""
    raw = real_data / "tiny-imagenet-200"
    (root / "train").mkdir(parents=True)
    for name in ("val", "wnids.txt"):
        (root / name).symlink_to(raw / name)
    for label, wnid in enumerate(wnids):
        if label in train_labels:
            (root / "train" / wnid).symlink_to(raw / "train" / wnid)
        else:
            (root / "train" / wnid).mkdir()
            for path in sorted((raw / "train" / wnid / "images").iterdir())[:50]:
                (root / "train" / wnid / path.name).symlink_to(path)
    return root


def adopt_real(clips_root: Path, raw_root: Path, output: Path) -> dict:
    content = {"clips_root": str(clips_root), "raw_root": str(raw_root), "output_dir": str(output)}
    run_adoption(build_settings(AdoptionSettings, content, "test"))
    return json.loads((output / "summary.json").read_text())


def assert_published(summary: dict, clips_root: Path, out: Path) -> None:
    assert summary["val"]["num_matched"] == 500 and summary["val"]["num_matched_by_order_alone"] <= 4
    assert summary["check_on_val"]["blind"]["num_matched"] >= 496  # measured: 498
    assert all(check["num_wrong"] == 0 for check in summary["check_on_val"].values())
    assert summary["train"]["num_failed"] == 0
    val = read_clip_index(*locate_clip_index(clips_root, out / "val.csv", "val"), num_classes=10)
    assert len(set(val.item_ids)) == 500 and "" not in set(val.table["source_sha256"])
    sources = [row["source_path"] for row in matches_of(out, "train").values() if row["source_path"]]
    assert len(set(sources)) == len(sources) == summary["train"]["num_matched"]


def test_published_clips_of_one_class_find_their_sources(real_data, tmp_path):
    content = {"clips_root": str(real_data), "raw_root": str(real_data), "output_dir": "unused"}
    wnids = [item.wnid for item in read_classes(build_settings(AdoptionSettings, content, "test"))]
    clips_root = link_published(real_data, tmp_path / "clips", {3})
    summary = adopt_real(clips_root, link_raw(real_data, tmp_path / "raw", {3}, wnids), tmp_path / "out")
    assert_published(summary, clips_root, tmp_path / "out")
    assert summary["train"]["num_matched"] >= 490  # measured: 498 of 500


@pytest.mark.exhaustive
def test_all_published_clips_find_their_sources(real_data, tmp_path):
    summary = adopt_real(real_data / "svd_videos", real_data / "tiny-imagenet-200", tmp_path / "out")
    assert_published(summary, real_data / "svd_videos", tmp_path / "out")
    assert summary["check_on_val"]["with_train_images"]["num_matched"] >= 492  # measured: 495
    assert summary["train"]["num_matched"] >= 4920  # measured: 4,935 of 5,000
