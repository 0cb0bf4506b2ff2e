"""An output folder: nothing in it changes before a run begins, and no advice we give leads nowhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import KILLED, exit_at_call, fork

from utils.config import Settings, read_yaml
from utils.errors import InputError
from utils.runs import Run, find_changes, flatten, open_run


class SampleSettings(Settings):
    output_dir: Path
    lr: float = 1.0
    source: Path = Path("somewhere")
    workers: int = 0
    models: tuple[dict, ...] = ()
    overwrite: bool = False


def opened(folder: Path, *, inputs: dict[str, Path] | None = None, redone: str | None = None, **values) -> Run:
    run = open_run(
        SampleSettings(output_dir=folder, **values),
        owned=("data", "done.txt"),
        inputs=inputs,
        free_keys=("source", "models.*.path"),
        redone_without=redone,
    )
    run.release()
    return run


def make(folder: Path, **values) -> None:
    opened(folder, **values).begin()
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "clip").write_text("29 hours of work")
    (folder / "done.txt").write_text("done")


def test_opening_changes_nothing(tmp_path):
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert opened(tmp_path).is_done("done.txt")
    assert not opened(tmp_path, overwrite=True).is_done("done.txt")
    with pytest.raises(InputError):
        opened(tmp_path, lr=2.0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_stages_folder_is_refused_and_its_record_stays(tmp_path):
    record = "output_dir: clips\ngenerator: svd\nlr: 1.0\n"
    (tmp_path / "config.yaml").write_text(record)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"was written by another stage or version .* the keys generator, models"):
            opened(tmp_path, overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == record


def test_overwrite_removes_only_when_the_run_begins_and_only_what_it_owns(tmp_path):
    make(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    opened(tmp_path, overwrite=True, lr=2.0).begin()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "config.yaml",
        "environment.json",
        "notes.txt",
    ]
    assert read_yaml(tmp_path / "config.yaml")["lr"] == 2.0


def test_foreign_files_are_never_removed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"data exists and was not made by a run recorded here; .* move it away"):
            opened(tmp_path, overwrite=overwrite)
    assert (tmp_path / "data" / "photo").read_text() == "mine"


def test_overwrite_is_not_recorded_so_that_a_recorded_config_is_no_danger(tmp_path):
    make(tmp_path, overwrite=True)
    assert "overwrite" not in read_yaml(tmp_path / "config.yaml")


def test_a_changed_key_is_named_and_a_free_one_is_not(tmp_path):
    make(tmp_path, models=({"name": "a", "path": "x"},))
    opened(tmp_path, workers=3, source=Path("elsewhere"), models=({"name": "a", "path": "y"},))
    with pytest.raises(InputError, match=r"lr: 1\.0 -> 2\.0; models\.0\.name: 'a' -> 'b'"):
        opened(tmp_path, lr=2.0, models=({"name": "b", "path": "x"},))


def test_a_changed_and_a_new_input_are_named_and_a_removed_one_is_not(tmp_path):
    index = tmp_path / "index.csv"
    index.write_text("one")
    make(tmp_path / "run", inputs={"index": index})
    with pytest.raises(InputError, match="weights: was not an input before"):
        opened(tmp_path / "run", inputs={"index": index, "weights": index})
    index.write_text("two")
    with pytest.raises(InputError, match="index: its content has changed"):
        opened(tmp_path / "run", inputs={"index": index})
    index.unlink()
    opened(tmp_path / "run", inputs={"index": index})


def test_settings_bind_nobody_before_something_is_made(tmp_path):
    opened(tmp_path, lr=1.0).begin()
    opened(tmp_path, lr=2.0).begin()
    assert read_yaml(tmp_path / "config.yaml")["lr"] == 2.0


def test_a_stage_that_does_not_resume_starts_afresh(tmp_path):
    make(tmp_path, redone="done.txt")
    (tmp_path / "done.txt").unlink()
    opened(tmp_path, lr=2.0, redone="done.txt").begin()
    assert not (tmp_path / "data").exists()


def test_the_environment_names_what_computed(tmp_path):
    run = opened(tmp_path)
    run.begin({"name": "a device"})
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["device"] == {"name": "a device"}
    assert {"torch", "torchvision", "numpy"} <= environment["versions"].keys()


@pytest.mark.parametrize(("target", "name", "call"), [(shutil, "rmtree", 1), (os, "fsync", 3), (os, "fsync", 5)])
def test_a_killed_overwrite_is_finished_by_the_next_run(tmp_path, target, name, call):
    make(tmp_path)
    (tmp_path / "data" / "b").mkdir()

    def overwrite_and_die() -> None:
        exit_at_call(target, name, call, after=True)
        opened(tmp_path, lr=2.0, overwrite=True).begin()

    assert fork(overwrite_and_die) == KILLED
    run = opened(tmp_path, lr=2.0)
    assert not run.is_done("done.txt")
    run.begin()
    assert read_yaml(tmp_path / "config.yaml")["lr"] == 2.0
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".*replacing"))


def test_a_killed_overwrite_of_a_part_never_grows(tmp_path):
    make(tmp_path)

    def overwrite_and_die() -> None:
        exit_at_call(shutil, "rmtree", 1)
        run = open_run(
            SampleSettings(output_dir=tmp_path, overwrite=True), owned=("data", "done.txt"), replaced=("data",)
        )
        run.begin()

    assert fork(overwrite_and_die) == KILLED
    opened(tmp_path).begin()  # would replace everything, had it been asked to
    assert not (tmp_path / "data").exists()
    assert (tmp_path / "done.txt").read_text() == "done"


def test_flatten_names_list_items_by_position():
    nested = {"a": {"b": 1}, "models": [{"name": "x"}, {"name": "y"}], "mean": [1, 2], "none": {}}
    assert flatten(nested) == {"a.b": 1, "models.0.name": "x", "models.1.name": "y", "mean": [1, 2], "none": {}}


class Section(Settings):
    old: int = 1
    new: int = 2


class LaterSettings(SampleSettings):
    """As a later version has them: with a section and a list that know more."""

    section: Section = Section()
    sections: tuple[Section, ...] = (Section(),)
    extra: float | None = None


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, []),
        ({"section": Section(new=3)}, ["section.new: '(absent)' -> 3"]),
        ({"section": Section(old=5)}, ["section.old: 1 -> 5"]),
        ({"sections": (Section(new=3),)}, ["sections.0.new: '(absent)' -> 3"]),
        ({"extra": 0.5}, ["extra: '(absent)' -> 0.5"]),
    ],
)
def test_a_key_that_an_older_version_did_not_know_is_a_change_unless_at_its_default(tmp_path, values, changes):
    record = tmp_path / "config.yaml"
    record.write_text(
        "output_dir: x\nlr: 1.0\nsource: somewhere\nmodels: []\nsection: {old: 1}\nsections: [{old: 1}]\n"
    )
    assert find_changes(record, LaterSettings(output_dir=tmp_path, **values)) == changes
