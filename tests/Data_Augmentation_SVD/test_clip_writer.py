"""From a draft to a row: a good clip in the split's folder, a bad one in quarantine, and nothing lost on the way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_runs import raising, settings_for
from PIL import Image

from Data_Augmentation_SVD.clip_writer import ClipMaker, ClipTask, ClipWriter
from Data_Augmentation_SVD.generators import ClipError, build_geometry
from Data_Augmentation_SVD.settings import GenerationSettings
from Data_Augmentation_SVD.split_files import Journal, SplitFolders, split_folders
from Data_Augmentation_SVD.tiny_imagenet_aug import Source
from utils.artifacts import CLIP_INDEX
from utils.clips import read_clip, write_clip
from utils.config import build_settings
from utils.errors import InputError
from utils.files import sha256_file

SOURCE = Source(label=1, class_name="one", wnid="c1", source_path="train/c1/a.png", source_sha256="a" * 64)
TASK = ClipTask(name="00007.mp4", source=SOURCE, position=0, clip_number=2, attempt=0, seed=99)


def smooth_image(height: int = 48, width: int = 48) -> np.ndarray:
    """uint8 (height, width, 3): slow waves that survive a codec and a change of size."""
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(x / 9 + y / 13 + c) for c in range(3)], axis=-1).round().astype(np.uint8)


IMAGE = smooth_image()


class MadeUpGenerator:
    """Returns the frames that it is given, from `finish` as a real one does; exceptions are raised."""

    expects_motion = True

    def prepare(self, images: list[np.ndarray], seeds: list[int]) -> None:
        raise AssertionError("not a matter of this step")

    def generate(self, prepared: Any, should_stop: Any) -> Iterator[Any]:
        raise AssertionError("not a matter of this step")

    def finish(self, draft: Any, image: np.ndarray) -> np.ndarray:
        return draft(good_frames()) if callable(draft) else draft

    def describe(self) -> dict[str, Any]:
        return {}


def good_frames(num_frames: int = 3, size: int = 32) -> np.ndarray:
    """uint8 (num_frames, size, size, 3): the image, a little brighter from frame to frame."""
    small = np.asarray(Image.fromarray(smooth_image()).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    return np.stack([(small + 4 * t).clip(0, 255) for t in range(num_frames)]).astype(np.uint8)


def make_settings(tmp_path: Path, **keys) -> GenerationSettings:
    return settings_for(tmp_path, tmp_path / "out", **({"checks": {}} | keys))


def make_maker(tmp_path: Path, **keys) -> tuple[ClipMaker, SplitFolders]:
    settings = make_settings(tmp_path, **keys)
    folders = split_folders(settings.output_dir, "train")
    return ClipMaker(MadeUpGenerator(), settings, folders), folders


def files_of(tmp_path: Path) -> list[str]:
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))


# --- good clips ------------------------------------------------------------------------------------------------------


def test_a_good_clip_is_a_file_and_a_row_that_says_all_about_it(tmp_path):
    maker, folders = make_maker(tmp_path, output_fps=10)
    row = maker.make(TASK, IMAGE, good_frames())
    assert files_of(tmp_path) == ["train/00007.mp4"]
    assert row == {
        "video_path": "00007.mp4",
        "label": 1,
        "class_name": "one",
        "wnid": "c1",
        "source_path": "train/c1/a.png",
        "source_sha256": "a" * 64,
        "sha256": sha256_file(folders.clips / "00007.mp4"),
        "generator": "camera_motion",
        "seed": 99,
        "num_frames": 3,
        "height": 32,
        "width": 32,
        "kept_frames": "0 1 2",
        "visible_fraction": 1.0,
        "clip_number": 2,
        "attempt": 0,
        "status": "ok",
        "reason": "",
    }
    assert list(row) == CLIP_INDEX.column_names
    write_clip(tmp_path / "expected.mp4", good_frames(), 10)
    assert (folders.clips / "00007.mp4").read_bytes() == (tmp_path / "expected.mp4").read_bytes()


def test_a_name_with_a_folder_makes_the_folder(tmp_path):
    maker, _ = make_maker(tmp_path)
    task = ClipTask("00001/00010007.mp4", SOURCE, 0, 0, 0, 1)
    assert maker.make(task, IMAGE, good_frames())["status"] == "ok"
    assert maker.make(task, IMAGE, np.zeros_like)["status"] == "quarantined"
    assert files_of(tmp_path) == ["quarantine/train/00001/00010007.mp4"]


@pytest.mark.parametrize(("codec", "is_exact"), [("h264", False), ("h264_lossless", True)])
def test_the_codec_is_that_of_the_settings_and_its_cost_is_measured(tmp_path, codec, is_exact):
    maker, folders = make_maker(tmp_path, codec=codec)
    maker.make(TASK, IMAGE, good_frames())
    (psnr_db,) = maker.round_trip_psnr_db
    assert np.isinf(psnr_db) == is_exact and psnr_db > 25
    assert np.array_equal(read_clip(folders.clips / TASK.name), good_frames()) == is_exact


def test_only_the_first_clips_of_a_session_are_decoded_again(tmp_path):
    maker, _ = make_maker(tmp_path)
    for _ in range(12):
        maker.make(TASK, IMAGE, good_frames())
    assert len(maker.round_trip_psnr_db) == 8


@pytest.mark.parametrize(("height", "width", "share"), [(48, 48, 1.0), (48, 96, 0.5), (96, 72, 0.75)])
def test_the_row_says_what_share_of_the_source_is_seen(tmp_path, height, width, share):
    maker, _ = make_maker(tmp_path)
    row = maker.make(TASK, smooth_image(height, width), good_frames())
    assert row["visible_fraction"] == pytest.approx(share, abs=0.02)


# --- kept frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "native_frames", "kept"),
    [
        (5, 9, (0, 2, 4, 6, 8)),
        (3, 14, (0, 6, 13)),
        (3, 3, (0, 1, 2)),
        (3, None, (0, 1, 2)),
        (2, 14, (0, 13)),
        (1, 5, (0,)),
        (4, 8, (0, 2, 5, 7)),
    ],
)
def test_the_kept_frames_are_those_at_equal_distances(tmp_path, num_frames, native_frames, kept):
    maker, folders = make_maker(
        tmp_path, num_frames=num_frames, native_frames=native_frames, codec="h264_lossless", checks={"min_motion": 0}
    )
    native = good_frames(native_frames or num_frames)
    row = maker.make(TASK, IMAGE, native)
    assert (row["status"], row["kept_frames"]) == ("ok", " ".join(map(str, kept)))
    np.testing.assert_array_equal(read_clip(folders.clips / TASK.name), native[list(kept)])


def test_kept_frames_never_repeat_and_hold_both_ends(tmp_path):
    for native_frames in range(1, 41):
        for num_frames in range(1, native_frames + 1):
            kept = make_settings(tmp_path, num_frames=num_frames, native_frames=native_frames).kept_frames
            assert len(kept) == num_frames and kept[0] == 0
            assert all(before < after for before, after in pairwise(kept))
            assert num_frames == 1 or kept[-1] == native_frames - 1
            distances = set(np.diff(kept).tolist())
            assert not distances or max(distances) - min(distances) <= 1


@pytest.mark.parametrize(("fit", "output"), [("pad", "undo"), ("crop", "undo"), ("stretch", "centre_crop")])
def test_the_original_takes_the_first_frames_place_exactly(tmp_path, fit, output):
    keys = {"geometry": {"height": 64, "width": 128, "fit": fit, "output": output}, "codec": "h264_lossless"}
    maker, folders = make_maker(tmp_path, first_frame="original", num_frames=3, native_frames=5, **keys)
    row = maker.make(TASK, IMAGE, good_frames(5))
    assert row["status"] == "ok"
    saved = read_clip(folders.clips / TASK.name)
    view = build_geometry(make_settings(tmp_path, **keys)).view(IMAGE)
    np.testing.assert_array_equal(saved[0], view)
    np.testing.assert_array_equal(saved[1:], good_frames(5)[[2, 4]])
    assert not np.array_equal(saved[0], good_frames(5)[0])


# --- bad clips -------------------------------------------------------------------------------------------------------


def noise(frames: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)


def not_a_number(frames: np.ndarray) -> np.ndarray:
    floats = frames.astype(np.float32) / 255
    floats[1, 0] = np.nan
    return floats


# What a generator may return, the reason in the row, and the frames in quarantine (0: there is no picture).
FAULTS = {
    "nan": (not_a_number, r"^not finite: 1\.0% of the values", 3),
    "infinity": (lambda frames: np.full(frames.shape, np.inf, np.float16), r"^not finite: 100\.0%", 3),
    "floats": (lambda frames: frames / 255, r"^dtype: the clip is float64", 3),
    "integers": (lambda frames: frames.astype(np.int64), r"^dtype: the clip is int64", 3),
    "black": (np.zeros_like, r"^black: frame 0", 3),
    "one black frame": (lambda frames: np.concatenate([frames[:2], 0 * frames[2:]]), r"^black: frame 2", 3),
    "burnt": (lambda frames: ((frames > 127) * 255).astype(np.uint8), r"^burnt: 100% of frame 0", 3),
    "frozen": (lambda frames: frames[[0, 0, 0]], r"^frozen: frames 0 and 1 differ by 0\.0000", 3),
    "frozen at the end": (lambda frames: frames[[0, 1, 1]], r"^frozen: frames 1 and 2", 3),
    "noise": (noise, r"^collapsed: frame \d correlates", 3),
    "too many frames": (lambda frames: frames[[0, 1, 2, 2]], r"^shape: the clip is 4 x 32 x 32 x 3, expected 3", 4),
    "too few frames": (lambda frames: frames[:2], r"^shape: the clip is 2 x 32", 2),
    "another size": (lambda frames: frames[:, :16], r"^shape: the clip is 3 x 16 x 32", 3),
    "odd sides": (lambda frames: frames[:, :31, :17], r"^shape: the clip is 3 x 31 x 17", 3),
    "tiny": (lambda frames: frames[:, :2, :2], r"^shape: the clip is 3 x 2 x 2", 3),
    "one pixel": (lambda frames: frames[:, :1, :1], r"^shape: the clip is 3 x 1 x 1", 0),
    "grey": (lambda frames: frames[..., :1], r"^shape: the clip is 3 x 32 x 32 x 1", 0),
    "channels first": (lambda frames: frames.transpose(0, 3, 1, 2), r"^shape: the clip is 3 x 3 x 32 x 32", 0),
    "one image": (lambda frames: frames[0], r"^shape: the clip is 32 x 32 x 3", 0),
    "no frames": (lambda frames: frames[:0], r"^shape: the clip is 0 x 32", 0),
    "nothing": (lambda frames: None, r"^shape: the clip is a single number", 0),
    "clip error": (raising(ClipError("no picture\ncame out")), r"^no picture came out$", 0),
    "another error": (raising(ZeroDivisionError("in the\nmiddle")), r"^ZeroDivisionError: in the middle$", 0),
}


@pytest.mark.parametrize("first_frame", ["generated", "original"])
@pytest.mark.parametrize(("fault", "reason", "num_kept"), FAULTS.values(), ids=FAULTS)
def test_a_bad_clip_is_a_row_and_its_pixels_go_to_quarantine(tmp_path, fault, reason, num_kept, first_frame):
    maker, folders = make_maker(tmp_path, first_frame=first_frame)
    row = maker.make(TASK, IMAGE, fault)
    assert row["status"] == "quarantined"
    if first_frame == "generated":  # a good first frame may change what is said first
        assert re.search(reason, row["reason"]), row["reason"]
    assert row["reason"] and "\n" not in row["reason"]
    path = folders.quarantine / TASK.name
    assert files_of(tmp_path) == (["quarantine/train/00007.mp4"] if num_kept else [])
    assert row["sha256"] == (sha256_file(path) if num_kept else "")
    if num_kept:
        assert len(read_clip(path)) == num_kept
    assert maker.round_trip_psnr_db == []


def test_a_draft_that_is_an_error_is_the_reason(tmp_path):
    maker, _ = make_maker(tmp_path)
    row = maker.make(TASK, IMAGE, ClipError("the batch\nbroke"))
    assert (row["status"], row["reason"], row["sha256"]) == ("quarantined", "the batch broke", "")
    assert row["visible_fraction"] == 1.0


def test_what_memory_and_input_errors_say_concerns_the_run(tmp_path):
    maker, _ = make_maker(tmp_path)
    for error in (InputError("too small a card"), MemoryError()):
        with pytest.raises(type(error)):
            maker.make(TASK, IMAGE, raising(error))
    assert files_of(tmp_path) == []


def test_a_generator_that_returns_only_the_kept_frames_is_found_out(tmp_path):
    maker, _ = make_maker(tmp_path, num_frames=3, native_frames=9)
    row = maker.make(TASK, IMAGE, good_frames(4))
    assert row["reason"] == "shape: the clip is 4 x 32 x 32 x 3, expected 3 x 32 x 32 x 3 " + (
        "(frames x height x width x channels)"
    )


def test_a_still_control_may_stand_still(tmp_path):
    settings = make_settings(tmp_path)
    still = MadeUpGenerator()
    still.expects_motion = False
    maker = ClipMaker(still, settings, split_folders(settings.output_dir, "train"))
    assert maker.make(TASK, IMAGE, good_frames()[[0, 0, 0]])["status"] == "ok"


def test_a_clip_of_one_frame_cannot_move(tmp_path):
    maker, _ = make_maker(tmp_path, num_frames=1)
    assert maker.make(TASK, IMAGE, good_frames(1))["status"] == "ok"


def test_an_image_of_one_colour_is_not_asked_for_contrast_or_motion(tmp_path):
    maker, _ = make_maker(tmp_path)
    grey = np.full((48, 48, 3), 90, np.uint8)
    assert maker.make(TASK, grey, np.full((3, 32, 32, 3), 90, np.uint8))["status"] == "ok"


def test_an_unreadable_image_is_a_failed_row_without_a_file(tmp_path):
    maker, _ = make_maker(tmp_path)
    row = maker.fail(TASK, "not an\nimage")
    assert list(row) == CLIP_INDEX.column_names
    assert (row["status"], row["reason"], row["sha256"], row["visible_fraction"]) == (
        "failed",
        "not an image",
        "",
        None,
    )


# --- what an earlier run has left ------------------------------------------------------------------------------------


def leave(tmp_path: Path, *names: str) -> None:
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")


LEFT = [f"{folder}/00007.mp4{suffix}" for folder in ("train", "quarantine/train") for suffix in ("", ".partial")]


def test_a_good_clip_replaces_all_that_was_left_under_its_name(tmp_path):
    maker, _ = make_maker(tmp_path)
    leave(tmp_path, *LEFT, "train/00008.mp4", "quarantine/train/00006.mp4")
    maker.make(TASK, IMAGE, good_frames())
    assert files_of(tmp_path) == ["quarantine/train/00006.mp4", "train/00007.mp4", "train/00008.mp4"]


@pytest.mark.parametrize("fault", [np.zeros_like, ClipError("nothing"), None], ids=["pixels", "none", "unreadable"])
def test_a_bad_clip_removes_all_that_was_left_under_its_name(tmp_path, fault):
    maker, folders = make_maker(tmp_path)
    leave(tmp_path, *LEFT, "train/00008.mp4")
    row = maker.make(TASK, IMAGE, fault) if fault is not None else maker.fail(TASK, "not an image")
    kept = ["quarantine/train/00007.mp4"] if row["sha256"] else []
    assert files_of(tmp_path) == [*kept, "train/00008.mp4"]
    assert not kept or sha256_file(folders.quarantine / TASK.name) == row["sha256"]


# --- the writing thread ----------------------------------------------------------------------------------------------


def task_number(number: int) -> ClipTask:
    return ClipTask(f"{number:05d}.mp4", SOURCE, number, 0, 0, number)


class SlowMaker:
    """Makes rows without files, and waits for leave before each."""

    def __init__(self, wait_s: float = 0.0, break_at: int | None = None) -> None:
        self.wait_s, self.break_at, self.made = wait_s, break_at, []

    def make(self, task: ClipTask, image: np.ndarray, draft: Any) -> dict[str, Any]:
        time.sleep(self.wait_s)
        if task.seed == self.break_at:
            raise OSError(28, "No space left on device", "clip")
        self.made.append(task.seed)
        return dict.fromkeys(CLIP_INDEX.column_names) | {
            "reason": "",
            "video_path": task.name,
            "label": 0,
            "status": "ok",
        }

    def fail(self, task: ClipTask, reason: str) -> dict[str, Any]:
        return self.make(task, IMAGE, None) | {"status": "failed", "reason": reason}


def open_writer(tmp_path: Path, maker: SlowMaker) -> tuple[ClipWriter, Journal, list[str]]:
    journal, rows = Journal(tmp_path / "train.journal.csv"), []
    return ClipWriter(maker, journal, lambda row: rows.append(row["video_path"])), journal, rows


NAMES = [f"{number:05d}.mp4" for number in range(50)]


def journal_names(journal: Journal) -> list[str]:
    return [line.split(",")[0] for line in journal.path.read_text().splitlines()]


def test_rows_come_in_order_and_are_all_there_at_the_end(tmp_path):
    writer, journal, rows = open_writer(tmp_path, SlowMaker(0.001))
    with journal, writer:
        for number in range(50):
            if number % 7 == 0:
                writer.put_failed(task_number(number), "no")
            else:
                writer.put(task_number(number), IMAGE, None)
    assert rows == NAMES == journal_names(journal)
    assert [row["status"] for row in journal.rows()][:8] == ["failed", *["ok"] * 6, "failed"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, InputError])
def test_an_error_on_the_generating_side_loses_no_clip(tmp_path, error):
    writer, journal, rows = open_writer(tmp_path, SlowMaker(0.005))
    with pytest.raises(error), journal, writer:
        for number in range(20):
            writer.put(task_number(number), IMAGE, None)
        raise error
    assert rows == NAMES[:20] == journal_names(journal)


def test_an_error_of_the_writing_side_ends_the_generating_side(tmp_path):
    maker = SlowMaker(break_at=3)
    writer, journal, rows = open_writer(tmp_path, maker)
    put = 0
    with pytest.raises(OSError, match="No space left"), journal, writer:
        for number in range(10_000):  # far more than the queue holds
            writer.put(task_number(number), IMAGE, None)
            put += 1
            time.sleep(0.001)
    assert put < 10_000
    assert rows == NAMES[:3] == journal_names(journal)
    assert maker.made == [0, 1, 2]  # nothing is written after the error


def test_an_error_of_the_last_clip_is_raised_at_the_end(tmp_path):
    writer, journal, rows = open_writer(tmp_path, SlowMaker(0.01, break_at=4))
    with pytest.raises(OSError, match="No space left"), journal, writer:
        for number in range(5):
            writer.put(task_number(number), IMAGE, None)
    assert rows == NAMES[:4]


def test_waiting_frames_are_bounded(tmp_path):
    may_write, maker = threading.Event(), SlowMaker()
    make, most, handed = maker.make, 32 + 1, []  # the queue, and the one at hand

    def make_later(*arguments: Any) -> dict[str, Any]:
        may_write.wait(30)
        return make(*arguments)

    maker.make = make_later
    writer, journal, rows = open_writer(tmp_path, maker)

    def generate() -> None:
        with journal, writer:
            for number in range(50):
                writer.put(task_number(number), IMAGE, None)
                handed.append(number)

    generating = threading.Thread(target=generate)
    generating.start()
    deadline_s = time.monotonic() + 20
    while len(handed) < most and time.monotonic() < deadline_s:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(handed) == most and not rows
    may_write.set()
    generating.join(30)
    assert rows == NAMES


def test_a_journal_survives_a_writer_that_ends(tmp_path):
    for start in (0, 25):
        writer, journal, _ = open_writer(tmp_path, SlowMaker())
        with journal, writer:
            for number in range(start, start + 25):
                writer.put(task_number(number), IMAGE, None)
    assert [row["video_path"] for row in journal.rows()] == NAMES


def test_settings_that_cannot_keep_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="native_frames: 2 generated frames cannot give num_frames=3"):
        build_settings(GenerationSettings, {"data_root": str(tmp_path), "native_frames": 2}, "test")
