"""The embedded data set: its layout, that it is the same everywhere, and that a kill changes nothing."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, exit_at_call, fork
from PIL import Image

from Data_Sourcing import demo_dataset
from Data_Sourcing.demo_dataset import NAMES, run_demo_dataset, wnid_of
from Data_Sourcing.image_set import read_image_set
from Data_Sourcing.settings import DemoDatasetSettings, SourcingSettings
from Data_Sourcing.sourcing import run_sourcing
from utils.config import build_settings, read_settings
from utils.errors import InputError

STAGE = Path(demo_dataset.__file__).parent
WNIDS = [wnid_of(digit) for digit in range(10)]


def settings_for(output: Path, **keys) -> DemoDatasetSettings:
    content = {"output_dir": str(output), "train_per_class": 3, "val_per_class": 2} | keys
    return build_settings(DemoDatasetSettings, content, "test")


def images_of(folder: Path) -> dict[str, bytes]:
    """The data set's files, without those that say when and where it was made."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    text = (folder / name for name in ("wnids.txt", "words.txt"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (*files, *text)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo_dataset(settings_for(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the quickstart."""
    output = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)  # only a power cut tells
        patch.setattr("sys.argv", ["demo_dataset", f"output_dir={output}"])
        demo_dataset.main()
    return output


def test_it_has_the_layout_of_tiny_imagenet(small):
    names = set(images_of(small))
    train = {f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in WNIDS for number in range(3)}
    val = {f"val/images/val_{number}.JPEG" for number in range(20)}
    assert names == train | val | {"wnids.txt", "words.txt", "val/val_annotations.txt"}
    words = dict(line.split("\t") for line in (small / "words.txt").read_text().splitlines())
    assert [words[wnid] for wnid in WNIDS] == list(NAMES)


def test_its_class_list_is_in_another_order_than_the_folders(small):
    wnids = (small / "wnids.txt").read_text().split()
    assert sorted(wnids) == WNIDS
    assert wnids != WNIDS


def test_its_annotations_have_six_columns_and_mix_the_classes(small):
    cells = [line.split("\t") for line in (small / "val/val_annotations.txt").read_text().splitlines()]
    assert {len(row) for row in cells} == {6}
    assert [row[1] for row in cells] == WNIDS * 2


def test_the_shipped_config_gives_the_counts_that_its_header_promises(shipped):
    assert Counter(read_image_set(shipped, "train").labels) == dict.fromkeys(range(10), 60)
    assert Counter(read_image_set(shipped, "val").labels) == dict.fromkeys(range(10), 30)


def test_no_image_is_in_train_and_in_val(shipped):
    train, val = (set(read_image_set(shipped, split).table["sha256"]) for split in ("train", "val"))
    assert not train & val


def test_the_shipped_sourcing_config_takes_all_of_it_without_an_issue(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    overrides = [f"raw_root={shipped}", f"output_dir={tmp_path}"]
    settings = read_settings(SourcingSettings, None, STAGE / "demo.yaml", overrides)
    for split, count in (("train", 600), ("val", 300)):
        run_sourcing(settings, split)
        assert len(read_image_set(tmp_path, split)) == count
    assert not list(tmp_path.glob("*_issues.csv"))


@pytest.mark.parametrize("size", [64, 8])
def test_images_are_rgb_jpegs_of_the_given_size(tmp_path, size):
    folder = run_demo_dataset(settings_for(tmp_path, image_size=size))
    for name, content in images_of(folder).items():
        if name.endswith(".JPEG"):
            image = Image.open(io.BytesIO(content))
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))


def test_images_show_the_digit_of_their_class(shipped):
    """The mean train image of its own class is nearer than any other's, for most val images."""
    means = [mean_image(shipped, [f"train/{wnid}/images/{wnid}_{n}.JPEG" for n in range(60)]) for wnid in WNIDS]
    lines = [line.split("\t") for line in (shipped / "val/val_annotations.txt").read_text().splitlines()]
    nearest = [
        int(np.argmin([((mean_image(shipped, [f"val/images/{name}"]) - mean) ** 2).sum() for mean in means]))
        for name, *_ in lines
    ]
    assert np.mean([WNIDS[digit] == line[1] for digit, line in zip(nearest, lines, strict=True)]) > 0.8


def mean_image(folder: Path, names: list[str]) -> np.ndarray:
    return np.mean([np.asarray(Image.open(folder / name), dtype=float) for name in names], axis=0)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(small, tmp_path):
    assert images_of(run_demo_dataset(settings_for(tmp_path / "same"))) == images_of(small)
    assert images_of(run_demo_dataset(settings_for(tmp_path / "other", seed=1))) != images_of(small)


def test_a_second_run_writes_nothing(tmp_path):
    run_demo_dataset(settings_for(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
    run_demo_dataset(settings_for(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.name.endswith(".lock")} == before


def test_other_settings_in_the_same_folder_are_refused_by_key(tmp_path):
    run_demo_dataset(settings_for(tmp_path))
    with pytest.raises(InputError, match="val_per_class: 2 -> 1"):
        run_demo_dataset(settings_for(tmp_path, val_per_class=1))
    folder = run_demo_dataset(settings_for(tmp_path, val_per_class=1, overwrite=True))
    assert len(list((folder / "val/images").iterdir())) == 10


def test_more_images_than_there_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    with pytest.raises(InputError, match="at most 174"):
        settings_for(tmp_path, train_per_class=170, val_per_class=5)
    run_demo_dataset(settings_for(tmp_path, train_per_class=170, val_per_class=4, image_size=8))
    assert len(list((tmp_path / f"train/{wnid_of(8)}/images").iterdir())) == 170


# Renames in order: environment, config, wnids.txt, 30 train images, 20 val images, annotations, words.txt.
RENAMES = range(1, 56)


def check_restart_after_kill(small: Path, output: Path, rename: int, after: bool) -> None:
    def run_until_killed() -> None:
        exit_at_call(Path, "replace", rename, after=after)
        run_demo_dataset(settings_for(output))

    assert fork(run_until_killed) == KILLED
    run_demo_dataset(settings_for(output))
    assert images_of(output) == images_of(small)
    assert not list(output.rglob("*.partial"))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rename", [1, 2, 3, 4, 20, 34, 53, 54, 55])
def test_a_run_killed_at_a_rename_goes_on_to_the_same_bytes(small, tmp_path, rename, after):
    check_restart_after_kill(small, tmp_path, rename, after)


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rename", RENAMES)
def test_a_run_killed_at_any_rename_goes_on_to_the_same_bytes(small, tmp_path, rename, after):
    check_restart_after_kill(small, tmp_path, rename, after)


def test_there_are_no_more_renames_than_the_kill_tests_try(tmp_path):
    def run_to_the_end() -> None:
        exit_at_call(Path, "replace", RENAMES.stop)
        run_demo_dataset(settings_for(tmp_path))

    assert fork(run_to_the_end) == 0


@pytest.mark.parametrize("removal", [1, 2])
def test_a_killed_overwrite_is_never_taken_for_a_finished_set(small, tmp_path, removal):
    run_demo_dataset(settings_for(tmp_path))

    def overwrite_until_killed() -> None:
        exit_at_call(shutil, "rmtree", removal, after=True)
        run_demo_dataset(settings_for(tmp_path, overwrite=True))

    assert fork(overwrite_until_killed) == KILLED
    try:
        run_demo_dataset(settings_for(tmp_path))
    except InputError:
        run_demo_dataset(settings_for(tmp_path, overwrite=True))
    assert images_of(tmp_path) == images_of(small)
