"""The generation stage: what its index says, what becomes of failures, and that a kill anywhere changes no byte.

The generator here is `static` or `camera_motion`: no torch, so that the killed runs may be forked from this process.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, PROJECT, exit_at_call, fork
from generation_runs import (
    NUM_CLIPS,
    SPLITS,
    Fault,
    break_image,
    clip_bytes_by_source,
    content_of,
    plant_faults,
    raising,
    rows_of,
    settings_for,
    stamps_of,
)
from PIL import Image
from samples import random_image, write_image_set, write_raw_set

from Data_Augmentation_SVD import generation, make_svd_videos, split_files
from Data_Augmentation_SVD.generation import run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, CameraMotionGenerator, ClipError, StaticGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.split_files import Journal, clip_name
from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table, write_table
from utils.clips import read_clip
from utils.config import read_yaml
from utils.errors import InputError, run_script
from utils.files import sha256_file
from utils.indices import read_clip_index
from utils.runs import open_run
from utils.utils import derive_seed


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    output = tmp_path_factory.mktemp("whole")
    run_generation(settings_for(image_set, output))
    return output


# --- the index -------------------------------------------------------------------------------------------------------


def test_the_index_has_its_columns_in_order_with_the_published_two_first(whole):
    header = (whole / "train.csv").read_text().splitlines()[0].split(",")
    assert header == CLIP_INDEX.column_names
    assert header[:2] == ["video_path", "label"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_has_its_clip_in_the_images_order(image_set, whole, split):
    images = read_table(image_set / f"{split}.csv", IMAGE_INDEX).to_dict("records")
    rows = rows_of(whole, split)
    assert [row["video_path"] for row in rows] == [f"{position:05d}.mp4" for position in range(NUM_CLIPS)]
    pairs = (("source_path", "image_path"), ("source_sha256", "sha256"), ("label", "label"))
    for ours, theirs in (*pairs, ("class_name", "class_name"), ("wnid", "wnid")):
        assert [row[ours] for row in rows] == [image[theirs] for image in images]


@pytest.mark.parametrize("split", SPLITS)
def test_the_index_says_what_the_clips_are(whole, split):
    for row in rows_of(whole, split):
        path = whole / split / row["video_path"]
        assert read_clip(path, row["num_frames"]).shape == (3, row["height"], row["width"], 3) == (3, 32, 32, 3)
        assert row["sha256"] == sha256_file(path)
        assert (row["generator"], row["status"], row["reason"]) == ("camera_motion", "ok", "")
        assert row["seed"] == derive_seed(0, int(row["source_sha256"], 16))
    assert len(read_clip_index(whole / f"{split}.csv", whole / split, num_frames=3)) == NUM_CLIPS


def test_clips_show_their_image(image_set, tmp_path):
    run_generation(settings_for(image_set, tmp_path, generator="static", frame_size=64))
    for row in rows_of(tmp_path):
        enlarged = np.asarray(Image.open(image_set / row["source_path"]).resize((64, 64), Image.Resampling.BILINEAR))
        for frame in read_clip(tmp_path / "train" / row["video_path"]):
            grey, original = frame.mean(axis=2), enlarged.mean(axis=2)  # yuv420p halves the colours
            assert np.corrcoef(grey.ravel(), original.ravel())[0, 1] > 0.95


def test_sizes_and_splits_come_from_the_settings(image_set, tmp_path):
    paths = run_generation(settings_for(image_set, tmp_path, num_frames=5, frame_size=48, splits=["val"]))
    assert paths == [tmp_path / "val.csv"]
    assert not (tmp_path / "train.csv").exists()
    assert {(row["num_frames"], row["height"], row["width"]) for row in rows_of(tmp_path, "val")} == {(5, 48, 48)}
    assert read_clip(tmp_path / "val/00000.mp4").shape == (5, 48, 48, 3)


def test_splits_made_one_after_the_other_are_those_made_together(image_set, whole, tmp_path):
    for split in ("val", "train"):
        run_generation(settings_for(image_set, tmp_path, splits=[split]))
    assert content_of(tmp_path) == content_of(whole)


def test_the_raw_layout_gives_the_same_clips_as_an_index_of_it(tmp_path):
    raw = write_raw_set(tmp_path / "raw", wnids=("c0", "c1"))
    rows = [
        {"image_path": f"train/{wnid}/images/{wnid}_{n}.JPEG", "label": label, "class_name": wnid, "wnid": wnid}
        for label, wnid in enumerate(("c1", "c0"))
        for n in range(3)
    ]
    run_generation(settings_for(raw, tmp_path / "a", splits=["train"]))
    from_raw = clip_bytes_by_source(tmp_path / "a")
    write_table(
        [row | {"sha256": sha256_file(raw / row["image_path"])} for row in rows], raw / "train.csv", IMAGE_INDEX
    )
    run_generation(settings_for(raw, tmp_path / "b", splits=["train"]))
    assert clip_bytes_by_source(tmp_path / "b") == from_raw
    assert [row["label"] for row in rows_of(tmp_path / "a")] == [row["label"] for row in rows_of(tmp_path / "b")]


def test_the_script_reads_its_config_and_makes_the_clips(image_set, whole, tmp_path, monkeypatch):
    overrides = [f"data_root={image_set}", f"output_dir={tmp_path}", "generator=camera_motion", "frame_size=32"]
    overrides += ["geometry.height=64", "geometry.width=64", "geometry.fit=pad", "geometry.output=undo"]
    monkeypatch.setattr("sys.argv", ["make_svd_videos", *overrides])
    make_svd_videos.main()
    assert content_of(tmp_path) == content_of(whole)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_clips_depend_on_the_images_content_and_not_on_their_order(image_set, whole, tmp_path):
    shuffled = tmp_path / "images"
    shutil.copytree(image_set, shuffled)
    table = read_table(image_set / "train.csv", IMAGE_INDEX).sample(frac=1, random_state=4)
    write_table(table, shuffled / "train.csv", IMAGE_INDEX)
    run_generation(settings_for(shuffled, tmp_path / "out"))
    assert [row["source_path"] for row in rows_of(tmp_path / "out")] == list(table["image_path"])
    assert [row["source_path"] for row in rows_of(tmp_path / "out")] != [row["source_path"] for row in rows_of(whole)]
    assert clip_bytes_by_source(tmp_path / "out") == clip_bytes_by_source(whole)


def test_a_subset_of_the_images_gives_the_same_clips(image_set, whole, tmp_path):
    subset = tmp_path / "images"
    shutil.copytree(image_set, subset)
    write_table(read_table(image_set / "train.csv", IMAGE_INDEX).iloc[[1, 4]], subset / "train.csv", IMAGE_INDEX)
    run_generation(settings_for(subset, tmp_path / "out", splits=["train"]))
    made = clip_bytes_by_source(tmp_path / "out")
    assert len(made) == 2
    assert made.items() <= clip_bytes_by_source(whole).items()


def test_another_run_seed_gives_other_seeds_and_other_clips(image_set, whole, tmp_path):
    run_generation(settings_for(image_set, tmp_path, seed=1))
    assert not {row["seed"] for row in rows_of(tmp_path)} & {row["seed"] for row in rows_of(whole)}
    ours, theirs = clip_bytes_by_source(tmp_path), clip_bytes_by_source(whole)
    assert all(ours[source] != theirs[source] for source in theirs)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_images(image_set: Path, tmp_path: Path) -> Path:
    """A copy of the image set that a test may damage."""
    return Path(shutil.copytree(image_set, tmp_path / "images"))


def test_an_image_that_fails_is_a_row_with_its_reason_and_no_clip(own_images, whole, tmp_path):
    name = break_image(own_images, 2)
    run_generation(settings_for(own_images, tmp_path / "out", max_failed_fraction=0.5))
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert rows[2]["source_path"] == name
    assert "not an image" in rows[2]["reason"]
    assert rows[2]["sha256"] == ""
    assert not (tmp_path / "out/train/00002.mp4").exists()
    loaded = read_clip_index(tmp_path / "out/train.csv", tmp_path / "out/train")
    assert [path.name for path in loaded.paths] == [f"{position:05d}.mp4" for position in (0, 1, 3, 4, 5)]
    assert (tmp_path / "out/val.csv").read_bytes() == (whole / "val.csv").read_bytes()


def test_too_many_failures_end_the_stage_and_keep_the_finished_clips(own_images, tmp_path):
    break_image(own_images, 0)
    break_image(own_images, 5)
    with pytest.raises(InputError, match=r"2 of 6 clips failed, more than max_failed_fraction=0.1; the first: .*c0_0"):
        run_generation(settings_for(own_images, tmp_path / "out", max_failed_fraction=0.1))
    assert not (tmp_path / "out/train.csv").exists()
    assert len(list((tmp_path / "out/train").glob("*.mp4"))) == 4


@pytest.mark.parametrize(("limit", "passes"), [(0.0, False), (0.16, False), (1 / 6, True), (1.0, True)])
def test_max_failed_fraction_is_the_largest_share_that_passes(own_images, tmp_path, limit, passes):
    break_image(own_images, 3)
    settings = settings_for(own_images, tmp_path / "out", max_failed_fraction=limit, splits=["train"])
    if passes:
        run_generation(settings)
    else:
        with pytest.raises(InputError, match="1 of 6 clips failed"):
            run_generation(settings)
    assert (tmp_path / "out/train.csv").exists() == passes


def test_after_too_many_failures_a_higher_limit_goes_on_without_making_clips_again(own_images, tmp_path):
    break_image(own_images, 3)
    with pytest.raises(InputError, match="max_failed_fraction"):
        run_generation(settings_for(own_images, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train").iterdir()}
    run_generation(settings_for(own_images, tmp_path / "out", max_failed_fraction=0.5))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train").iterdir()} == before
    assert len(rows_of(tmp_path / "out")) == NUM_CLIPS


def test_failed_clips_are_tried_again_when_asked(image_set, whole, tmp_path, monkeypatch):
    fail_at(monkeypatch, {2})
    with pytest.raises(InputError, match="1 of 6 clips failed"):
        run_generation(settings_for(image_set, tmp_path))
    monkeypatch.undo()
    with pytest.raises(InputError, match="1 of 6 clips failed"):
        run_generation(settings_for(image_set, tmp_path))  # given up until it is asked for
    run_generation(settings_for(image_set, tmp_path, retry_failed=True))
    assert content_of(tmp_path) == content_of(whole)


def fail_at(monkeypatch: pytest.MonkeyPatch, calls: set[int], reason: str = "no picture came out") -> None:
    """Let the camera's n-th clips (from 0) fail as a network's would."""
    build, counter = CLIP_GENERATORS["camera_motion"], iter(range(1000))

    def build_failing(settings):
        generator = build(settings)
        finish = generator.finish

        def finish_or_fail(draft, image):
            if next(counter) in calls:
                raise ClipError(reason)
            return finish(draft, image)

        generator.finish = finish_or_fail
        return generator

    monkeypatch.setitem(CLIP_GENERATORS, "camera_motion", build_failing)


def test_a_reason_of_several_lines_is_one_line_in_the_index(image_set, tmp_path, monkeypatch):
    fail_at(monkeypatch, {2}, reason="the first line\nthe second line")
    run_generation(settings_for(image_set, tmp_path, max_failed_fraction=0.5))
    assert rows_of(tmp_path)[2]["reason"] == "the first line the second line"


def test_an_unexpected_error_of_a_generator_is_laid_at_the_door_of_its_image(image_set, whole, tmp_path, monkeypatch):
    generate = CameraMotionGenerator.generate

    def generate_or_break(self, prepared, should_stop):
        for draft in generate(self, prepared, should_stop):
            if draft == rows_of(whole)[3]["seed"]:
                raise ZeroDivisionError("of the fourth")
            yield draft

    monkeypatch.setattr(CameraMotionGenerator, "generate", generate_or_break)
    run_generation(settings_for(image_set, tmp_path, max_failed_fraction=0.2))
    rows = rows_of(tmp_path)
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["quarantined"] + ["ok"] * 2
    assert rows[3]["reason"] == "ZeroDivisionError: of the fourth"
    good = {row["source_sha256"]: row["sha256"] for row in rows if row["status"] == "ok"}
    assert good.items() < {row["source_sha256"]: row["sha256"] for row in rows_of(whole)}.items()


def test_a_generator_that_always_breaks_is_a_bug_and_gives_up_no_data_set(image_set, tmp_path, monkeypatch):
    def generate(self, prepared, should_stop):
        raise ZeroDivisionError("always")
        yield

    monkeypatch.setattr(StaticGenerator, "generate", generate)
    with pytest.raises(ZeroDivisionError):
        run_generation(settings_for(image_set, tmp_path, generator="static", max_failed_fraction=1.0))
    assert not (tmp_path / "train.csv").exists()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: unspecified launch failure"), OSError(5, "Input/output error"), MemoryError()],
    ids=["device", "file system", "memory"],
)
def test_no_image_is_given_up_for_an_error_of_the_machine(image_set, whole, tmp_path, monkeypatch, error):
    generate, calls = CameraMotionGenerator.generate, iter(range(1000))

    def generate_until_the_device_is_gone(self, prepared, should_stop):
        for draft in generate(self, prepared, should_stop):
            if next(calls) >= 2:
                raise error
            yield draft

    with monkeypatch.context() as patch:
        patch.setattr(CameraMotionGenerator, "generate", generate_until_the_device_is_gone)
        with pytest.raises(type(error)):
            run_generation(settings_for(image_set, tmp_path, max_failed_fraction=1.0))
    assert not (tmp_path / "train.csv").exists()
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


def test_a_generator_that_returns_too_few_drafts_loses_no_clip(image_set, whole, tmp_path, monkeypatch):
    generate = CameraMotionGenerator.generate
    monkeypatch.setattr(
        CameraMotionGenerator,
        "generate",
        lambda self, prepared, should_stop: iter([*generate(self, prepared, should_stop)][: max(1, len(prepared) - 2)]),
    )
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.parametrize("damage", [lambda clip: clip.write_bytes(clip.read_bytes()[:-1]), Path.unlink])
def test_a_clip_damaged_in_a_finished_set_is_made_again(image_set, whole, tmp_path, damage):
    run_generation(settings_for(image_set, tmp_path))
    damage(tmp_path / "train/00003.mp4")
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [],
        lambda lines: lines[:1],
        lambda lines: lines[:-2],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(",0,zero,", ",1,zero,"), *lines[3:]],
    ],
    ids=["empty", "no row", "rows missing", "another order", "another label"],
)
def test_an_edited_index_of_a_finished_set_is_written_again(image_set, whole, tmp_path, edit):
    run_generation(settings_for(image_set, tmp_path))
    index = tmp_path / "train.csv"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(edit(lines)))
    assert index.read_bytes() != (whole / "train.csv").read_bytes()
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


def test_a_doubled_row_of_a_finished_set_is_named(image_set, tmp_path):
    run_generation(settings_for(image_set, tmp_path))
    lines = (tmp_path / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "train.csv").write_text("".join([*lines, lines[1]]))
    with pytest.raises(InputError, match=r"train.csv line 8: '00000.mp4' stands already on line 2"):
        run_generation(settings_for(image_set, tmp_path))


def test_a_resumed_run_with_other_weights_or_type_is_refused(image_set, tmp_path, monkeypatch):
    facts = {"model_commit": "abc", "dtype": "float16", "name": "one"}
    monkeypatch.setattr(CameraMotionGenerator, "describe", lambda self: dict(facts))
    run_generation(settings_for(image_set, tmp_path, splits=["val"]))
    facts["name"] = "another device"
    run_generation(settings_for(image_set, tmp_path, splits=["val", "train"]))
    (tmp_path / "train/00003.mp4").unlink()
    facts["model_commit"] = "def"
    with pytest.raises(InputError, match=r"begun with other weights .model_commit: 'abc' -> 'def'."):
        run_generation(settings_for(image_set, tmp_path))


def test_a_generator_that_cannot_be_built_ends_the_stage_at_once(image_set, tmp_path, monkeypatch):
    builds = []

    def build(settings):
        builds.append(settings)
        raise InputError("diffusion_model: no weights here")

    monkeypatch.setitem(CLIP_GENERATORS, "camera_motion", build)
    with pytest.raises(InputError, match=r"^diffusion_model: no weights here$"):
        run_generation(settings_for(image_set, tmp_path, max_failed_fraction=1.0))
    assert len(builds) == 1


def test_an_image_changed_since_it_was_indexed_is_refused(own_images, tmp_path):
    (own_images / "train/c0/c0_1.png").write_bytes(b"other")
    with pytest.raises(InputError, match=r"train.csv line 3: .*c0_1.png has changed"):
        run_generation(settings_for(own_images, tmp_path / "out"))


# --- a second run ----------------------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing_and_builds_no_generator(image_set, tmp_path, monkeypatch):
    run_generation(settings_for(image_set, tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
    monkeypatch.delitem(CLIP_GENERATORS, "camera_motion")
    assert run_generation(settings_for(image_set, tmp_path)) == [tmp_path / "train.csv", tmp_path / "val.csv"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if not path.name.endswith(".lock")} == before


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"seed": 7}, "seed: 0 -> 7"),
        ({"frame_size": 64}, "frame_size: 32 -> 64"),
        ({"camera_motion": {"zoom_per_frame": 1.5}}, "camera_motion.zoom_per_frame: 1.03 -> 1.5"),
        ({"generator": "static"}, "generator: 'camera_motion' -> 'static'"),
    ],
    ids=["seed", "frame_size", "camera_motion", "generator"],
)
def test_changed_settings_are_refused_by_key_and_touch_nothing(image_set, tmp_path, keys, sentence):
    run_generation(settings_for(image_set, tmp_path))
    before = content_of(tmp_path)
    with pytest.raises(InputError) as caught:
        run_generation(settings_for(image_set, tmp_path, **keys))
    assert sentence in str(caught.value)
    assert content_of(tmp_path) == before


def test_a_changed_image_index_is_refused(own_images, tmp_path):
    run_generation(settings_for(own_images, tmp_path / "out"))
    table = read_table(own_images / "train.csv", IMAGE_INDEX)
    write_table(table.iloc[::-1], own_images / "train.csv", IMAGE_INDEX)
    with pytest.raises(InputError, match="train_index: its content has changed"):
        run_generation(settings_for(own_images, tmp_path / "out"))


def test_overwrite_replaces_what_is_there_and_only_that(image_set, whole, tmp_path):
    run_generation(settings_for(image_set, tmp_path, generator="static", num_frames=5))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train/99999.mp4").write_text("of an earlier, larger set")
    run_generation(settings_for(image_set, tmp_path, overwrite=True))
    assert content_of(tmp_path) == content_of(whole) | {"notes.txt": b"mine"}


@pytest.mark.parametrize("keys", [{"chunk_size": 7}, {"svd": {"offload": "phases"}}], ids=["chunk_size", "offload"])
def test_what_costs_only_time_and_memory_may_change(image_set, whole, tmp_path, keys):
    kill_in_the_middle(image_set, tmp_path)
    run_generation(settings_for(image_set, tmp_path, **keys))
    assert content_of(tmp_path) == content_of(whole)


def test_moved_images_change_nothing(own_images, tmp_path):
    run_generation(settings_for(own_images, tmp_path / "out"))
    own_images.rename(tmp_path / "moved")
    before = content_of(tmp_path / "out")
    run_generation(settings_for(tmp_path / "moved", tmp_path / "out"))
    assert content_of(tmp_path / "out") == before


def test_clips_of_someone_else_are_not_overwritten(image_set, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/00000.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="was not made by a run recorded here"):
        run_generation(settings_for(image_set, tmp_path))
    assert (tmp_path / "train/00000.mp4").read_bytes() == b"mine"


# --- kill -9 anywhere ------------------------------------------------------------------------------------------------

# What is called, on what, and how often in a whole run: a clip is a file, a folder and a journal sync, and a rename;
# two records, two indices, twice the statistics and the card are two syncs and a rename each.
KILLED_CALLS = {
    "fsync": (os, "fsync", 2 * 7 + 3 * 2 * NUM_CLIPS),
    "rename": (Path, "replace", 7 + 2 * NUM_CLIPS),
    "journal_row": (Journal, "append", 2 * NUM_CLIPS),
    "index": (generation, "write_table", 2),
    "journal_removal": (Journal, "remove", 2),
}


def run_killed(settings: GenerationSettings, target: object, name: str, call: int, after: bool) -> int:
    def run_until_killed() -> None:
        exit_at_call(target, name, call, after=after)
        run_generation(settings)

    return fork(run_until_killed)


def check_resume(image_set: Path, whole: Path, output: Path, damage: Callable[[Path], None] = lambda output: None):
    """A rerun must end as the uninterrupted run did, and leave alone what was finished."""
    damage(output)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    run_generation(settings_for(image_set, output))
    assert content_of(output) == content_of(whole)
    return [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]


SAMPLE = [
    ("fsync", 1),
    ("fsync", 4),
    ("fsync", 5),
    ("fsync", 6),
    ("fsync", 7),
    ("fsync", 23),
    ("fsync", 24),
    ("fsync", 43),
    ("rename", 1),
    ("rename", 2),
    ("rename", 3),
    ("rename", 8),
    ("rename", 9),
    ("rename", 10),
    ("rename", 16),
    ("journal_row", 1),
    ("journal_row", 4),
    ("journal_row", 12),
    ("index", 1),
    ("index", 2),
    ("journal_removal", 1),
    ("journal_removal", 2),
]


def check_kill(image_set: Path, whole: Path, output: Path, kind: str, call: int, after: bool) -> None:
    target, name, _ = KILLED_CALLS[kind]
    assert run_killed(settings_for(image_set, output), target, name, call, after) == KILLED
    remade = check_resume(image_set, whole, output)
    assert len(remade) <= 1  # at most the clip whose journal row was not yet written


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "call"), SAMPLE)
def test_a_run_killed_at_a_call_goes_on_to_the_same_bytes(image_set, whole, tmp_path, kind, call, after):
    check_kill(image_set, whole, tmp_path, kind, call, after)


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "call"), [(kind, call) for kind, (*_, count) in KILLED_CALLS.items() for call in range(1, count + 1)]
)
def test_a_run_killed_at_any_call_goes_on_to_the_same_bytes(image_set, whole, tmp_path, kind, call, after):
    check_kill(image_set, whole, tmp_path, kind, call, after)


@pytest.mark.parametrize("kind", KILLED_CALLS)
def test_the_kill_tests_reach_every_call_of_a_run(image_set, tmp_path, kind):
    target, name, count = KILLED_CALLS[kind]
    assert run_killed(settings_for(image_set, tmp_path), target, name, count + 1, after=False) == 0


def test_a_run_killed_again_and_again_goes_on_to_the_same_bytes(image_set, whole, tmp_path):
    settings = settings_for(image_set, tmp_path)
    codes = [run_killed(settings, Path, "replace", 4, after=False) for _ in range(12)]
    assert codes[0] == KILLED
    assert codes[-1] == 0
    assert content_of(tmp_path) == content_of(whole)


def kill_in_the_middle(image_set: Path, output: Path) -> Path:
    """A run killed after the journal row of its fourth train clip; returns the journal."""
    assert run_killed(settings_for(image_set, output), Journal, "append", 4, after=True) == KILLED
    journal = output / "train.journal.csv"
    assert len(list(csv.reader(journal.open(newline="")))) == 4
    return journal


def check_torn_journal(image_set: Path, whole: Path, output: Path, missing_bytes: int) -> None:
    journal = kill_in_the_middle(image_set, output)
    content = journal.read_bytes()
    num_whole_lines = content[:-missing_bytes].count(b"\n")
    remade = check_resume(image_set, whole, output, lambda _: journal.write_bytes(content[:-missing_bytes]))
    assert len(remade) == 4 - num_whole_lines


@pytest.mark.parametrize("missing_bytes", [1, 2, 40, 150, 400, 800])
def test_a_torn_journal_line_is_dropped_and_its_clip_made_again(image_set, whole, tmp_path, missing_bytes):
    check_torn_journal(image_set, whole, tmp_path, missing_bytes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("missing_bytes", range(1, 500, 3))
def test_a_journal_torn_anywhere_is_dropped_from_there(image_set, whole, tmp_path, missing_bytes):
    check_torn_journal(image_set, whole, tmp_path, missing_bytes)


def test_a_journal_torn_inside_a_reason_of_two_lines_swallows_no_later_row(image_set, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, {3}, reason="the first line\nthe second line")
        journal = kill_in_the_middle(image_set, tmp_path)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.index(b"second")])
    assert run_killed(settings_for(image_set, tmp_path), Journal, "append", 2, after=True) == KILLED
    remade = check_resume(image_set, whole, tmp_path)
    assert remade == []


def test_finished_clips_are_not_made_again(image_set, whole, tmp_path):
    kill_in_the_middle(image_set, tmp_path)
    assert check_resume(image_set, whole, tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda clip: clip.write_bytes(clip.read_bytes()[:-1]),
        lambda clip: clip.write_bytes(b""),
        lambda clip: clip.write_bytes(clip.read_bytes().replace(b"mdat", b"mdaT")),
        Path.unlink,
    ],
    ids=["cut", "empty", "changed", "removed"],
)
def test_a_clip_damaged_after_its_journal_row_is_made_again(image_set, whole, tmp_path, damage):
    kill_in_the_middle(image_set, tmp_path)
    damage(tmp_path / "train/00001.mp4")
    remade = check_resume(image_set, whole, tmp_path)
    assert set(remade) <= {"00001.mp4"}


def test_an_image_added_to_the_raw_layout_after_a_kill_moves_no_clip_to_another_image(tmp_path):
    raw = write_raw_set(tmp_path / "raw", wnids=("c0", "c1"))
    settings = settings_for(raw, tmp_path / "out", splits=["train"])
    assert run_killed(settings, Journal, "append", 4, after=True) == KILLED
    Image.fromarray(random_image(77)).save(raw / "train/c1/images/c1_1a.JPEG")  # c1 is the first class
    run_generation(settings)
    run_generation(settings_for(raw, tmp_path / "fresh", splits=["train"]))
    assert content_of(tmp_path / "out") == content_of(tmp_path / "fresh")


@pytest.mark.parametrize("removal", [1, 2])
def test_a_killed_overwrite_is_never_taken_for_a_finished_set(image_set, whole, tmp_path, removal):
    run_generation(settings_for(image_set, tmp_path))
    assert run_killed(settings_for(image_set, tmp_path, overwrite=True), shutil, "rmtree", removal, True) == KILLED
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.parametrize("removal", [1, 2])
def test_a_killed_overwrite_with_other_settings_is_recorded_with_those_that_finish_it(image_set, tmp_path, removal):
    run_generation(settings_for(image_set, tmp_path))
    settings = settings_for(image_set, tmp_path, seed=7, overwrite=True)
    assert run_killed(settings, shutil, "rmtree", removal, True) == KILLED
    settings = settings_for(image_set, tmp_path, seed=7)
    run_generation(settings)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    run_generation(settings)  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == stamps
    assert read_yaml(tmp_path / "config.yaml")["seed"] == 7


def test_a_second_process_in_the_same_folder_is_refused(image_set, tmp_path):
    def run_beside() -> None:
        run_generation(settings_for(image_set, tmp_path))

    run = open_run(settings_for(image_set, tmp_path), owned=())
    assert fork(run_beside) == 1
    assert not (tmp_path / "train").exists()
    run.release()
    assert fork(run_beside) == 0


# --- bad clips of a whole run ----------------------------------------------------------------------------------------


def first_seeds(data_root: Path, split: str = "train") -> list[int]:
    """The seeds of the first clips of all images, in the index's order."""
    images = read_table(data_root / f"{split}.csv", IMAGE_INDEX)
    return [derive_seed(0, int(sha256, 16)) for sha256 in images["sha256"]]


def faults_of(data_root: Path) -> dict[int, Fault]:
    """Five of the six train clips are bad, each in its own way."""
    seeds = first_seeds(data_root)
    faults = (
        lambda frames: np.where(frames > 300, 0.0, np.nan).astype(np.float32),
        np.zeros_like,
        raising(ClipError("no picture came out")),
        lambda frames: frames[:, :16],
        raising(ZeroDivisionError("in the middle")),
    )
    return dict(zip(seeds, faults, strict=False))


FAULTY_STATUSES = ["quarantined"] * 5 + ["ok"]


@pytest.fixture(scope="module")
def faulty(image_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with five bad train clips of six leaves."""
    output = tmp_path_factory.mktemp("faulty")
    with pytest.MonkeyPatch.context() as patch:
        plant_faults(patch, faults_of(image_set))
        run_generation(settings_for(image_set, output, max_failed_fraction=1.0))
    return output


def test_bad_clips_are_rows_and_only_good_ones_are_loaded(faulty, whole):
    rows = rows_of(faulty)
    assert [row["status"] for row in rows] == FAULTY_STATUSES
    starts = ("not finite: ", "black: ", "no picture came out", "shape: ", "ZeroDivisionError: in the middle", "")
    assert all(row["reason"].startswith(start) for row, start in zip(rows, starts, strict=True))
    assert [path.name for path in (faulty / "train").iterdir()] == ["00005.mp4"]
    in_quarantine = {path.name: sha256_file(path) for path in (faulty / "quarantine/train").iterdir()}
    assert in_quarantine == {row["video_path"]: row["sha256"] for row in rows[:5] if row["sha256"]}
    assert sorted(in_quarantine) == ["00000.mp4", "00001.mp4", "00003.mp4"]
    loaded = read_clip_index(faulty / "train.csv", faulty / "train", num_frames=3)
    assert [path.name for path in loaded.paths] == ["00005.mp4"]
    assert (faulty / "val.csv").read_bytes() == (whole / "val.csv").read_bytes()


def test_bad_clips_are_given_up_until_they_are_asked_for(image_set, faulty, tmp_path, monkeypatch):
    output = Path(shutil.copytree(faulty, tmp_path / "out"))
    seeds, before = plant_faults(monkeypatch, {}), stamps_of(output)
    run_generation(settings_for(image_set, output, max_failed_fraction=1.0))
    assert seeds == [] and stamps_of(output) == before


def test_rejected_clips_get_their_next_seed_and_failed_ones_keep_theirs(
    image_set, faulty, whole, tmp_path, monkeypatch
):
    output = Path(shutil.copytree(faulty, tmp_path / "out"))
    seeds = plant_faults(monkeypatch, {})
    run_generation(settings_for(image_set, output, retry_failed=True))
    rows, old = rows_of(output), rows_of(whole)
    assert [row["attempt"] for row in rows] == [1, 1, 0, 1, 0, 0]
    expected = [derive_seed(0, int(row["source_sha256"], 16), *((0, 1) if row["attempt"] else ())) for row in rows]
    assert [row["seed"] for row in rows] == expected and seeds == expected[:5]
    assert {row["status"] for row in rows} == {"ok"}
    same = [row["sha256"] == before["sha256"] for row, before in zip(rows, old, strict=True)]
    assert same == [False, False, True, False, True, True]
    assert not list((output / "quarantine").rglob("*.mp4"))
    assert len(read_clip_index(output / "train.csv", output / "train", num_frames=3)) == NUM_CLIPS


def test_a_clip_rejected_twice_is_a_second_attempt_and_a_third_seed(image_set, faulty, tmp_path, monkeypatch):
    output = Path(shutil.copytree(faulty, tmp_path / "out"))
    black = {row["seed"]: np.zeros_like for row in rows_of(output)}
    image = rows_of(output)[1]["source_sha256"]
    again = [derive_seed(0, int(image, 16), 0, attempt) for attempt in (1, 2)]
    with monkeypatch.context() as patch:
        plant_faults(patch, black | {again[0]: np.zeros_like})
        run_generation(settings_for(image_set, output, retry_failed=True, max_failed_fraction=1.0))
    row = rows_of(output)[1]
    assert (row["status"], row["attempt"], row["seed"]) == ("quarantined", 1, again[0])
    run_generation(settings_for(image_set, output, retry_failed=True))
    row = rows_of(output)[1]
    assert (row["status"], row["attempt"], row["seed"]) == ("ok", 2, again[1])


def test_a_retry_that_is_killed_goes_on(image_set, faulty, tmp_path):
    output = Path(shutil.copytree(faulty, tmp_path / "out"))
    settings = settings_for(image_set, output, retry_failed=True)
    assert run_killed(settings, Journal, "append", 3, after=True) == KILLED
    assert [row["status"] for row in rows_of(output)] == FAULTY_STATUSES  # the index is the old one until the end
    run_generation(settings)
    assert {row["status"] for row in rows_of(output)} == {"ok"}
    assert [row["attempt"] for row in rows_of(output)] == [1, 1, 0, 1, 0, 0]


def test_a_still_control_and_a_moving_one_that_stands_still(image_set, tmp_path):
    still = {"shift_fraction": 0.0, "zoom_per_frame": 1.0}
    run_generation(settings_for(image_set, tmp_path / "camera", camera_motion=still, splits=["train"]))
    run_generation(settings_for(image_set, tmp_path / "static", generator="static", splits=["train"]))
    assert clip_bytes_by_source(tmp_path / "camera") == clip_bytes_by_source(tmp_path / "static")


def test_frozen_and_lost_clips_are_found_with_the_default_checks(tmp_path, monkeypatch):
    smooth = write_image_set(tmp_path / "images", per_class=2)
    for split in SPLITS:  # waves: clips of noise are unlike their images
        table = read_table(smooth / f"{split}.csv", IMAGE_INDEX)
        for number, name in enumerate(table["image_path"]):
            y, x = np.mgrid[:32, :32] + number
            grey = (127 + 100 * np.sin(x / 5 + y / (7 + number))).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(smooth / name)
        table["sha256"] = [sha256_file(smooth / name) for name in table["image_path"]]
        write_table(table, smooth / f"{split}.csv", IMAGE_INDEX)
    seeds = first_seeds(smooth)
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    plant_faults(monkeypatch, {seeds[1]: lambda frames: frames[[0, 0, 0]], seeds[2]: lambda frames: noise})
    run_generation(settings_for(smooth, tmp_path / "out", checks={}, max_failed_fraction=0.5))
    words = [row["reason"].partition(":")[0] for row in rows_of(tmp_path / "out")]
    assert words == ["", "frozen", "collapsed", ""]


def test_an_error_before_the_network_is_laid_at_the_door_of_its_image(image_set, whole, tmp_path, monkeypatch):
    bad_seed = first_seeds(image_set)[3]

    def prepare_or_break(self, images, seeds):
        if bad_seed in seeds:
            raise ZeroDivisionError("of the fourth")
        return list(seeds)

    monkeypatch.setattr(CameraMotionGenerator, "prepare", prepare_or_break)
    run_generation(settings_for(image_set, tmp_path, max_failed_fraction=0.2))
    rows = rows_of(tmp_path)
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["quarantined"] + ["ok"] * 2
    assert rows[3]["reason"] == "ZeroDivisionError: of the fourth"
    good = {row["source_sha256"]: row["sha256"] for row in rows if row["status"] == "ok"}
    assert good.items() < {row["source_sha256"]: row["sha256"] for row in rows_of(whole)}.items()


@pytest.mark.parametrize("step", ["prepare", "generate"])
def test_a_card_too_small_ends_the_run_at_once(image_set, tmp_path, monkeypatch, step):
    def fail(self, *arguments):
        raise InputError("the card is too small; lower batch_size")

    monkeypatch.setattr(CameraMotionGenerator, step, fail)
    with pytest.raises(InputError, match=r"^the card is too small; lower batch_size$"):
        run_generation(settings_for(image_set, tmp_path, batch_size=4, max_failed_fraction=1.0))
    monkeypatch.undo()
    run_generation(settings_for(image_set, tmp_path, batch_size=2))  # as it says: no clip was made yet
    assert {row["status"] for row in rows_of(tmp_path)} == {"ok"}


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 6, 64])
def test_the_chunk_size_changes_no_byte(image_set, whole, tmp_path, chunk_size):
    settings = settings_for(image_set, tmp_path, chunk_size=chunk_size)
    run_generation(settings)
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_bad_clips_are_the_same_in_chunks_of_any_size(image_set, faulty, tmp_path, monkeypatch, chunk_size):
    plant_faults(monkeypatch, faults_of(image_set))
    run_generation(settings_for(image_set, tmp_path, max_failed_fraction=1.0, chunk_size=chunk_size))
    assert content_of(tmp_path) == content_of(faulty)


def test_a_run_that_can_no_longer_succeed_ends_early(tmp_path, monkeypatch):
    data_root = write_image_set(tmp_path / "images", per_class=60, size=16, splits=("train",))
    seeds = plant_faults(monkeypatch, dict.fromkeys(first_seeds(data_root)[2:14], np.zeros_like))
    settings = settings_for(data_root, tmp_path / "out", splits=["train"], max_failed_fraction=0.05, chunk_size=4)
    with pytest.raises(InputError) as caught:
        run_generation(settings)
    sentence = str(caught.value)
    assert "of 120 clips failed, more than max_failed_fraction=0.05; the first: train/c0/c0_2.png: black: " in sentence
    assert "retry_failed=true" in sentence
    assert len(seeds) < 60  # the seventh bad clip is the ninth; the queue to the writer holds 32
    assert not (tmp_path / "out/train.csv").exists()
    monkeypatch.undo()
    run_generation(settings_for(data_root, tmp_path / "out", splits=["train"], retry_failed=True))  # as it says
    assert {row["status"] for row in rows_of(tmp_path / "out")} == {"ok"}
    assert len(rows_of(tmp_path / "out")) == 120


# --- an image that is mended -----------------------------------------------------------------------------------------


def test_a_mended_image_of_the_raw_layout_gets_its_clip_when_asked(tmp_path):
    raw, reference = (write_raw_set(tmp_path / name, wnids=("c0", "c1")) for name in ("raw", "whole_raw"))
    run_generation(settings_for(reference, tmp_path / "reference"))
    image = raw / "train/c0/images/c0_1.JPEG"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    run_generation(settings_for(raw, tmp_path / "out", max_failed_fraction=0.5))
    assert [row["status"] for row in rows_of(tmp_path / "out")].count("failed") == 1
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    image.write_bytes(content)
    run_generation(settings_for(raw, tmp_path / "out", retry_failed=True))
    assert content_of(tmp_path / "out") == content_of(tmp_path / "reference")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_mended_image_of_an_index_is_a_changed_input(own_images, whole, tmp_path):
    """Its hash stands in the index, whose content is an input: only overwrite=true takes it."""
    name = read_table(own_images / "train.csv", IMAGE_INDEX)["image_path"].iloc[2]
    content, index = (own_images / name).read_bytes(), (own_images / "train.csv").read_bytes()
    break_image(own_images, 2)
    run_generation(settings_for(own_images, tmp_path / "out", max_failed_fraction=0.5))
    (own_images / name).write_bytes(content)
    (own_images / "train.csv").write_bytes(index)
    with pytest.raises(InputError, match="train_index: its content has changed"):
        run_generation(settings_for(own_images, tmp_path / "out", retry_failed=True))
    run_generation(settings_for(own_images, tmp_path / "out", overwrite=True))
    assert content_of(tmp_path / "out") == content_of(whole)


# --- several clips an image ------------------------------------------------------------------------------------------


def test_several_clips_an_image_differ_and_the_first_is_that_of_a_run_with_one(image_set, whole, tmp_path):
    run_generation(settings_for(image_set, tmp_path, clips_per_image=3))
    for split in SPLITS:
        rows, single = rows_of(tmp_path, split), rows_of(whole, split)
        assert [row["video_path"] for row in rows] == [f"{number:05d}.mp4" for number in range(3 * NUM_CLIPS)]
        assert [row["clip_number"] for row in rows] == [0, 1, 2] * NUM_CLIPS
        assert [row["source_path"] for row in rows[1::3]] == [row["source_path"] for row in single]
        assert len({row["seed"] for row in rows}) == len({row["sha256"] for row in rows}) == 3 * NUM_CLIPS
        same = ("seed", "sha256", "source_sha256", "label")
        assert [[row[name] for name in same] for row in rows[::3]] == [[row[name] for name in same] for row in single]
        clips = read_clip_index(tmp_path / f"{split}.csv", tmp_path / split, num_frames=3)
        sources = [row["source_sha256"] for row in single]
        assert clips.item_ids == [f"{sha256}{end}" for sha256 in sources for end in ("", "#2", "#3")]
        assert len(set(clips.item_ids)) == len(clips)


# --- more than 10,000 clips ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_total", [1, 9_999, 10_000])
def test_up_to_10_000_clips_are_named_as_published(num_total):
    names = [clip_name(number, num_total) for number in range(num_total)]
    assert names == [f"{number:05d}.mp4" for number in range(num_total)]


@pytest.mark.parametrize("num_total", [10_001, 20_000, 54_321, 200_001])
def test_no_folder_ever_holds_more_than_10_000_clips(num_total):
    names = [clip_name(number, num_total) for number in range(num_total)]
    assert len(set(names)) == num_total and names == sorted(names)
    folders = Counter(name.rpartition("/")[0] for name in names)
    assert max(folders.values()) == 10_000 and "" not in folders
    assert len(folders) == -(-num_total // 10_000)


def test_names_stay_sorted_up_to_a_hundred_million_clips():
    numbers = [0, 9_999, 10_000, 999_999, 1_000_000, 99_999_999]
    names = [clip_name(number, 10**8) for number in numbers]
    assert names == sorted(names)
    assert names[-1] == "09999/99999999.mp4"


def test_a_run_with_sub_folders_resumes_and_loads(image_set, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(split_files, "MAX_FILES_PER_FOLDER", 4)
    settings = settings_for(image_set, tmp_path)
    assert run_killed(settings, Journal, "append", 5, after=False) == KILLED
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(stamps) == 5
    run_generation(settings)
    names = [f"00000/{number:08d}.mp4" for number in range(4)] + [f"00001/{number:08d}.mp4" for number in (4, 5)]
    assert [row["video_path"] for row in rows_of(tmp_path)] == names
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()) == 4
    clips = read_clip_index(tmp_path / "train.csv", tmp_path / "train", num_frames=3)
    assert [str(path.relative_to(tmp_path / "train")) for path in clips.paths] == names
    assert clip_bytes_by_source(tmp_path) == clip_bytes_by_source(whole)
    assert not list(tmp_path.rglob("*.partial"))


# --- kills of all kinds ----------------------------------------------------------------------------------------------

SEQUENCES = [
    [("fsync", 9), ("rename", 4), ("journal_row", 3)],
    [("journal_row", 2), ("fsync", 12), ("index", 1)],
    [("rename", 5), ("index", 1), ("journal_removal", 1)],
    [("rename", 1), ("fsync", 30), ("rename", 9)],
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("calls", SEQUENCES)
def test_a_run_killed_three_times_goes_on_to_the_same_bytes(image_set, whole, tmp_path, calls, after):
    for kind, call in calls:
        target, name, _ = KILLED_CALLS[kind]
        assert run_killed(settings_for(image_set, tmp_path), target, name, call, after) == KILLED
    assert check_resume(image_set, whole, tmp_path) in ([], ["00000.mp4"], ["00001.mp4"], ["00002.mp4"], ["00003.mp4"])


QUARANTINE_SAMPLE = [("fsync", 5), ("fsync", 6), ("fsync", 7), ("fsync", 8), ("fsync", 13), ("rename", 3)]
QUARANTINE_SAMPLE += [("rename", 4), ("rename", 5), ("rename", 6), *(("journal_row", call) for call in range(1, 7))]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "call"), QUARANTINE_SAMPLE)
def test_a_run_killed_among_bad_clips_goes_on_to_the_same_bytes(
    image_set, faulty, tmp_path, monkeypatch, kind, call, after
):
    plant_faults(monkeypatch, faults_of(image_set))
    settings = settings_for(image_set, tmp_path, max_failed_fraction=1.0)
    target, name, _ = KILLED_CALLS[kind]
    assert run_killed(settings, target, name, call, after) == KILLED
    run_generation(settings)
    assert content_of(tmp_path) == content_of(faulty)


def test_a_card_that_a_kill_prevented_is_written_by_the_next_run(image_set, whole, tmp_path):
    settings = settings_for(image_set, tmp_path)
    assert run_killed(settings, generation, "write_dataset_card", 1, after=False) == KILLED
    assert (tmp_path / "val.csv").exists() and not (tmp_path / "README.md").exists()
    run_generation(settings)
    text = (tmp_path / "README.md").read_text()
    assert text == (whole / "README.md").read_text()


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_set(tmp_path_factory.mktemp("many"), per_class=4, splits=("train",))


@pytest.fixture(scope="module")
def many_clips(many_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of 160 clips writes."""
    output = tmp_path_factory.mktemp("many_clips")
    run_generation(settings_for(many_images, output, splits=["train"], clips_per_image=20))
    return output


def start_script(data_root: Path, output: Path) -> subprocess.Popen:
    overrides = [f"data_root={data_root}", f"output_dir={output}", "generator=camera_motion", "frame_size=32"]
    overrides += ["geometry.height=64", "geometry.width=64", "geometry.fit=pad", "geometry.output=undo"]
    overrides += ["splits=[train]", "clips_per_image=20", "max_failed_fraction=0.01"]
    command = [sys.executable, "-m", "Data_Augmentation_SVD.make_svd_videos", *overrides]
    return subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)


def num_rows(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signalled_script_finishes_the_clip_at_hand_and_goes_on_later(
    many_images, many_clips, tmp_path, number, code, word
):
    journal = tmp_path / "train.journal.csv"
    process = start_script(many_images, tmp_path)
    deadline_s = time.monotonic() + 60
    while num_rows(journal) < 5 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    process.send_signal(number)
    sent_s = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - sent_s < 15  # 32 small clips may wait for the writer
    assert process.returncode == code, stderr
    assert stderr.strip().endswith(f"error: {word}; run the same command again (without overwrite) to go on from here")
    rows = list(Journal(journal).rows())
    assert 5 <= len(rows) < 160 and not (tmp_path / "train.csv").exists()
    assert all(sha256_file(tmp_path / "train" / row["video_path"]) == row["sha256"] for row in rows)
    assert len(list((tmp_path / "train").iterdir())) == len(rows)  # none without a row, and none half-made
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    run_generation(settings_for(many_images, tmp_path, splits=["train"], clips_per_image=20))
    assert content_of(tmp_path) == content_of(many_clips)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_run_asked_to_stop_ends_between_two_drafts(image_set, whole, tmp_path):
    def run_until_stopped() -> None:
        finish, calls = CameraMotionGenerator.finish, iter(range(1000))

        def finish_slowly(self, draft, image):
            if next(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
            return finish(self, draft, image)

        CameraMotionGenerator.finish = finish_slowly
        run_script(lambda: run_generation(settings_for(image_set, tmp_path)))

    assert fork_exit(run_until_stopped) == 143
    assert not (tmp_path / "val.journal.csv").exists()
    assert check_resume(image_set, whole, tmp_path) == []


def fork_exit(function: Callable[[], None]) -> int:
    """As `fork`, with the exit code that `sys.exit` asks for."""

    def run() -> None:
        try:
            function()
        except SystemExit as stop:
            os._exit(stop.code)

    return fork(run)


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE_RUN = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from generation_runs import settings_for
from Data_Augmentation_SVD.generation import run_generation

def run(number):
    settings = settings_for(Path(sys.argv[2]), Path(sys.argv[3]) / str(number), splits=["train"], frame_size=128,
                            clips_per_image=number)
    run_generation(settings)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

print(run(5), run(int(sys.argv[4])))
"""


def peaks_mib(data_root: Path, output: Path, clips_per_image: int) -> tuple[int, int]:
    """Peak memory of a process after 40 clips, and after many."""
    arguments = [str(Path(__file__).parent), str(data_root), str(output), str(clips_per_image)]
    command = [sys.executable, "-c", MEASURE_RUN, *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=True)
    small, large = done.stdout.split()
    return int(small), int(large)


def test_memory_does_not_grow_with_the_number_of_clips(many_images, tmp_path):
    small, large = peaks_mib(many_images, tmp_path, 30)  # 240 clips of 147 KB: 35 MB if they were all kept
    assert large - small < 20


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_thousands_of_clips(many_images, tmp_path):
    small, large = peaks_mib(many_images, tmp_path, 250)
    assert large - small < 50


# --- the real data ---------------------------------------------------------------------------------------------------


def test_real_images_become_clips_that_show_them(real_data, tmp_path):
    raw = tmp_path / "raw"
    wnids = ("n02099601", "n02123394")
    for wnid in wnids:
        (raw / "train" / wnid).mkdir(parents=True)
        for number in range(3):
            name = f"{wnid}_{number}.JPEG"
            shutil.copy(real_data / "tiny-imagenet-200/train" / wnid / "images" / name, raw / "train" / wnid / name)
    (raw / "wnids.txt").write_text("\n".join(wnids))
    run_generation(settings_for(raw, tmp_path / "out", splits=["train"], frame_size=64))
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1]
    for row in rows:
        first = read_clip(tmp_path / "out/train" / row["video_path"], 3)[0].astype(float)
        image = np.asarray(Image.open(raw / row["source_path"]).convert("RGB")).astype(float)
        assert 10 * np.log10(255**2 / ((first - image) ** 2).mean()) > 25  # dB; colours are halved
