"""The generation stage: what its index says, what becomes of failures, and that a kill anywhere changes no byte.

The generator here is `static` or `camera_motion`: no torch, so that the killed runs may be forked from this process.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, exit_at_call, fork
from PIL import Image
from samples import random_image, write_image_set, write_raw_set

from Data_Augmentation_SVD import generation, make_svd_videos
from Data_Augmentation_SVD.generation import Journal, run_generation
from Data_Augmentation_SVD.generators import CLIP_GENERATORS, ClipError, StaticGenerator
from Data_Augmentation_SVD.settings import GenerationSettings
from utils.artifacts import CLIP_INDEX, IMAGE_INDEX, read_table, write_table
from utils.clips import read_clip
from utils.config import build_settings, read_yaml
from utils.errors import InputError
from utils.files import sha256_file
from utils.indices import read_clip_index
from utils.runs import open_run
from utils.utils import derive_seed

SPLITS = ("train", "val")
NUM_CLIPS = 6  # a split


def settings_for(data_root: Path, output: Path, **keys) -> GenerationSettings:
    content = {"data_root": str(data_root), "output_dir": str(output), "generator": "camera_motion", "frame_size": 32}
    return build_settings(GenerationSettings, content | keys, "test")


def rows_of(output: Path, split: str = "train") -> list[dict]:
    return read_table(output / f"{split}.csv", CLIP_INDEX).to_dict("records")


def content_of(output: Path) -> dict[str, bytes]:
    """All files of a stage's folder but those that say when and where it was made."""
    skip = ("config.yaml", "environment.json")
    files = (path for path in output.rglob("*") if path.is_file() and path.name not in skip)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def clip_bytes_by_source(output: Path, split: str = "train") -> dict[str, bytes]:
    return {row["source_sha256"]: (output / split / row["video_path"]).read_bytes() for row in rows_of(output, split)}


def break_image(data_root: Path, position: int, split: str = "train") -> str:
    """Put a text file in an image's place, with its right hash in the index; return its path there."""
    table = read_table(data_root / f"{split}.csv", IMAGE_INDEX)
    name = table["image_path"].iloc[position]
    (data_root / name).write_text("no image")
    table.iloc[position, table.columns.get_loc("sha256")] = sha256_file(data_root / name)
    write_table(table, data_root / f"{split}.csv", IMAGE_INDEX)
    return name


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


def test_failed_clips_are_tried_again_by_the_next_run(image_set, whole, tmp_path, monkeypatch):
    fail_at(monkeypatch, {2})
    with pytest.raises(InputError, match="1 of 6 clips failed"):
        run_generation(settings_for(image_set, tmp_path))
    monkeypatch.undo()
    run_generation(settings_for(image_set, tmp_path))
    assert content_of(tmp_path) == content_of(whole)


def fail_at(monkeypatch: pytest.MonkeyPatch, calls: set[int], reason: str = "no picture came out") -> None:
    """Let the camera's n-th clips (from 0) fail as a network's would."""
    build, counter = CLIP_GENERATORS["camera_motion"], iter(range(1000))

    def build_failing(settings):
        generator = build(settings)
        generate = generator.generate

        def generate_or_fail(image, seed):
            if next(counter) in calls:
                raise ClipError(reason)
            return generate(image, seed)

        generator.generate = generate_or_fail
        return generator

    monkeypatch.setitem(CLIP_GENERATORS, "camera_motion", build_failing)


def test_a_reason_of_several_lines_is_one_line_in_the_index(image_set, tmp_path, monkeypatch):
    fail_at(monkeypatch, {2}, reason="the first line\nthe second line")
    run_generation(settings_for(image_set, tmp_path, max_failed_fraction=0.5))
    assert rows_of(tmp_path)[2]["reason"] == "the first line the second line"


def test_a_bug_in_a_generator_is_not_taken_for_a_bad_image(image_set, tmp_path, monkeypatch):
    def generate(self, image, seed):
        raise ZeroDivisionError

    monkeypatch.setattr(StaticGenerator, "generate", generate)
    with pytest.raises(ZeroDivisionError):
        run_generation(settings_for(image_set, tmp_path, generator="static", max_failed_fraction=1.0))


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

# What is called, on what, and how often in a whole run; a clip is a file, a folder and a journal sync, and a rename.
KILLED_CALLS = {
    "fsync": (os, "fsync", 2 * 4 + 3 * 2 * NUM_CLIPS),
    "rename": (Path, "replace", 4 + 2 * NUM_CLIPS),
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
