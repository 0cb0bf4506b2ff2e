"""The pixel cache: equal to decoding, refused when one bit differs, whole or not there after a kill or a full disk."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import KILLED, exit_at_call, run_in_child
from samples import write_clip_set, write_image_set

import utils.claims
from utils import pixel_cache
from utils.claims import claimed
from utils.clips import read_clip
from utils.errors import InputError, Terminated
from utils.images import read_rgb_image
from utils.indices import ItemIndex, read_clip_index, read_image_index
from utils.pixel_cache import CacheLayout, cache_key
from utils.pixels import CachedPixels, DecodedPixels, Pixels, open_pixels

SHAPE = (3, 32, 32)
ITEM_BYTES = 3 * 32 * 32 * 3


def read_frames(path: Path) -> np.ndarray:
    return read_clip(path, 3)


def open_clips(index: ItemIndex, cache_dir: Path | None, **options) -> Pixels:
    options = {"item_shape": SHAPE, "rule": "3 frames", "workers": 2} | options
    return open_pixels(index, options.pop("read_item", read_frames), cache_dir=cache_dir, **options)


def clip_index(root: Path) -> ItemIndex:
    return read_clip_index(root / "train.csv", root / "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_clip_set(tmp_path_factory.mktemp("clips"), per_class=3)


@pytest.fixture(scope="module")
def index(root) -> ItemIndex:
    return clip_index(root)


@pytest.fixture(scope="module")
def whole(index, tmp_path_factory) -> Path:
    """A finished cache."""
    folder = tmp_path_factory.mktemp("cache")
    open_clips(index, folder)
    return only_cache(folder)


def only_cache(folder: Path) -> Path:
    """The one file of a cache folder, without a partial one beside it."""
    (path,) = [path for path in folder.iterdir() if path.suffix not in (".csv", ".lock")]
    assert path.suffix == ".pixels"
    return path


def pixels_of(pixels: Pixels) -> np.ndarray:
    return pixels.gather(range(len(pixels))).numpy().copy()


def test_the_cache_holds_what_decoding_gives_in_the_described_layout(index, whole):
    content = whole.read_bytes()
    first = json.loads(content.split(b"\n")[0])
    assert first["shape"] == [6, 3, 32, 32, 3] and whole.name == f"{first['key'][:16]}.pixels"
    start = len(content) - 6 * ITEM_BYTES
    assert start % 4096 == 0
    decoded = np.stack([read_frames(path) for path in index.paths])
    assert content[start:] == decoded.tobytes()


def test_cached_and_decoded_batches_are_equal(index, tmp_path):
    cached, decoded = open_clips(index, tmp_path), open_clips(index, None)
    assert isinstance(cached, CachedPixels) and isinstance(decoded, DecodedPixels)
    positions = [4, 0, 4, 5, 1]
    assert np.array_equal(cached.gather(positions).numpy(), decoded.gather(positions).numpy())


def test_images_are_cached_as_clips_of_one_frame(tmp_path):
    images = read_image_index(write_image_set(tmp_path / "images") / "train.csv")
    cached = open_clips(
        images, tmp_path / "cache", item_shape=(1, 32, 32), read_item=lambda path: read_rgb_image(path)[None]
    )
    assert isinstance(cached, CachedPixels)
    expected = np.stack([read_rgb_image(path) for path in images.paths])
    assert np.array_equal(cached.gather(range(6)).numpy()[:, :, 0], expected.transpose(0, 3, 1, 2))


def test_a_second_opening_decodes_nothing_and_a_rebuilt_cache_has_the_same_bytes(index, whole, tmp_path):
    def refuse(path: Path) -> np.ndarray:
        raise AssertionError(f"{path} is decoded again")

    before = whole.read_bytes()
    assert len(open_clips(index, whole.parent, read_item=refuse)) == 6
    open_clips(index, tmp_path, workers=1)
    assert only_cache(tmp_path).read_bytes() == before


def test_everything_that_decides_the_pixels_is_in_the_key(monkeypatch):
    hashes = ["a", "b"]
    keys = [
        cache_key(hashes, SHAPE, "rule"),
        cache_key(["b", "a"], SHAPE, "rule"),
        cache_key(["a"], SHAPE, "rule"),
        cache_key(hashes, (3, 32, 64), "rule"),
        cache_key(hashes, SHAPE, "another rule"),
    ]
    assert cache_key(hashes, SHAPE, "rule") == keys[0]
    monkeypatch.setattr(pixel_cache.av, "__version__", "0")
    keys.append(cache_key(hashes, SHAPE, "rule"))
    monkeypatch.setattr(pixel_cache.PIL, "__version__", "0")
    keys.append(cache_key(hashes, SHAPE, "rule"))
    assert len(set(keys)) == 7


def test_changed_clips_are_another_cache(tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=2)
    open_clips(clip_index(clips), tmp_path / "cache")
    write_clip_set(clips, per_class=2, num_frames=5)
    open_clips(clip_index(clips), tmp_path / "cache", item_shape=(5, 32, 32), read_item=read_clip)
    assert len(list((tmp_path / "cache").iterdir())) == 2, "the first one stays: another run may use it"


def damage(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ (1 << bit)]))


def assert_refused_and_rebuilt(index: ItemIndex, path: Path, before: bytes, caplog) -> None:
    caplog.clear()
    pixels = open_clips(index, path.parent)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and str(path) in warnings[0] and "built again" in warnings[0]
    assert path.read_bytes() == before and isinstance(pixels, CachedPixels)


def copied(whole: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(whole, folder / whole.name))


@pytest.mark.parametrize("count", [24, pytest.param(400, marks=pytest.mark.exhaustive)])
def test_any_flipped_bit_is_noticed(index, whole, tmp_path, caplog, count):
    before, rng = whole.read_bytes(), np.random.default_rng(count)
    path = copied(whole, tmp_path / "cache")
    start = len(before) - 6 * ITEM_BYTES
    for number in range(count):
        # Half of them before the pixels: JSON, checksums and padding are small, but count.
        low, high = ((0, 250), (0, start), (start, len(before)), (start, len(before)))[number % 4]
        damage(path, int(rng.integers(low, high)), int(rng.integers(8)))
        assert_refused_and_rebuilt(index, path, before, caplog)


@pytest.mark.parametrize("count", [5, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_any_truncation_is_noticed(index, whole, tmp_path, caplog, count):
    before = whole.read_bytes()
    path = copied(whole, tmp_path / "cache")
    for size in (0, 1, 4096, len(before) - 1, *np.random.default_rng(0).integers(0, len(before), count).tolist()):
        os.truncate(path, size)
        assert_refused_and_rebuilt(index, path, before, caplog)
    path.write_bytes(before + b"\0")
    assert_refused_and_rebuilt(index, path, before, caplog)


def test_the_damaged_item_is_named(index, whole, tmp_path, caplog):
    path = copied(whole, tmp_path / "cache")
    damage(path, path.stat().st_size - 2 * ITEM_BYTES + 5, 0)
    open_clips(index, path.parent)
    assert f"the pixels of item 5 ({index.paths[4]}) are damaged" in caplog.text


def test_foreign_files_are_refused(index, whole, tmp_path, caplog):
    before = whole.read_bytes()
    path = copied(whole, tmp_path / "cache")
    path.write_text("something else")
    assert_refused_and_rebuilt(index, path, before, caplog)
    assert "it is not a pixel cache" in caplog.text
    open_clips(index, tmp_path / "other", rule="another rule")
    shutil.copy(only_cache(tmp_path / "other"), path)
    assert_refused_and_rebuilt(index, path, before, caplog)
    assert "it was built from other items" in caplog.text


def test_a_process_that_trusts_another_looks_at_all_but_the_pixels(index, whole, tmp_path, caplog):
    path, before = copied(whole, tmp_path / "cache"), whole.read_bytes()
    damage(path, len(before) - 5, 0)
    pixels = open_clips(index, path.parent, check_pixels=False)
    assert isinstance(pixels, CachedPixels) and "built again" not in caplog.text
    differs = pixels_of(pixels) != pixels_of(open_clips(index, None))
    assert differs.sum() == 1 and differs[5].any(), "the flipped bit was taken"
    for wrong in (before[:-1], before[:300] + b"x" + before[301:], b"x" + before[1:]):
        path.write_bytes(wrong)
        open_clips(index, path.parent, check_pixels=False)
        assert path.read_bytes() == before


def test_an_undecodable_file_is_named_and_nothing_is_cached(tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=2, published=True)
    clips.joinpath("train/00002.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"00002\.mp4: cannot be decoded as a video"):
        open_clips(clip_index(clips), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "no hashes either: the file may be replaced"


def test_an_item_of_another_shape_is_named(index, tmp_path):
    with pytest.raises(ValueError, match=r"00000\.mp4: is uint8 \(3, 32, 32, 3\), expected uint8 \(3, 16, 16, 3\)"):
        open_clips(index, tmp_path, item_shape=(3, 16, 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_build_can_be_ended_between_items(index, tmp_path, stop_at):
    calls = []

    def on_item() -> None:
        calls.append(None)
        if len(calls) == stop_at:
            raise Terminated

    with pytest.raises(Terminated):
        open_clips(index, tmp_path, on_item=on_item)
    assert list(tmp_path.iterdir()) == []


def build_and_die(root: Path, folder: Path, name: str, call: int, after: bool) -> None:
    exit_at_call(utils.claims.os, name, call, after=after)
    open_clips(clip_index(root), folder)


def kill_points() -> list:
    """Before and after the truncation, each write (six items, the header) and each fsync (file, folder)."""
    sample = {("pwrite", 4, False), ("pwrite", 7, True), ("fsync", 1, True), ("fsync", 2, False)}
    points = [
        (name, call, after)
        for name, calls in (("ftruncate", 1), ("pwrite", 7), ("fsync", 2))
        for call in range(1, calls + 1)
        for after in (False, True)
    ]
    return [pytest.param(*point, marks=[] if point in sample else pytest.mark.exhaustive) for point in points]


@pytest.mark.parametrize(("name", "call", "after"), kill_points())
def test_a_killed_build_leaves_no_cache_or_a_whole_one(root, index, whole, tmp_path, name, call, after):
    assert run_in_child(build_and_die, root, tmp_path, name, call, after) == KILLED
    finished = name == "fsync" and call == 2
    assert (tmp_path / whole.name).exists() == finished
    open_clips(index, tmp_path)
    assert only_cache(tmp_path).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", [1, 4, 7])
def test_a_full_disk_falls_back_to_decoding(index, whole, tmp_path, monkeypatch, caplog, code, call):
    pwrite, calls = os.pwrite, []

    def failing(*args) -> int:
        calls.append(None)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))
        return pwrite(*args)

    monkeypatch.setattr(utils.claims.os, "pwrite", failing)
    pixels = open_clips(index, tmp_path)
    assert isinstance(pixels, DecodedPixels) and list(tmp_path.iterdir()) == []
    (sentence,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert os.strerror(code) in sentence and f"{whole.stat().st_size / 1e6:.1f} MB" in sentence
    assert np.array_equal(pixels_of(pixels), pixels_of(open_clips(index, whole.parent)))


def test_a_damaged_cache_is_gone_when_its_rebuild_fails(index, whole, tmp_path):
    path = copied(whole, tmp_path / "cache")
    damage(path, 5000, 3)

    def read_item(path: Path) -> np.ndarray:
        raise InputError(f"{path}: is gone")

    with pytest.raises(InputError, match=r"00000\.mp4: is gone"):
        open_clips(index, path.parent, read_item=read_item)
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_build_left_is_replaced_whatever_it_was(index, whole, tmp_path):
    (tmp_path / f"{whole.name}.partial").write_bytes(b"x" * 10**6)
    open_clips(index, tmp_path)
    assert only_cache(tmp_path).read_bytes() == whole.read_bytes()


def test_short_writes_are_continued(index, whole, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(utils.claims.os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data[:1000]), offset))
    open_clips(index, tmp_path)
    assert only_cache(tmp_path).read_bytes() == whole.read_bytes()


def test_what_does_not_fit_is_not_begun(index, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(utils.claims.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert isinstance(open_clips(index, tmp_path), DecodedPixels)
    assert "0.0 MB are free" in caplog.text and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_falls_back_to_decoding(index, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert isinstance(open_clips(index, tmp_path / "file"), DecodedPixels)
    assert "cannot be written" in caplog.text


def test_a_file_that_cannot_be_read_is_no_matter_of_the_cache(index, tmp_path):
    def read_item(path: Path) -> np.ndarray:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(PermissionError, match="00000"):
        open_clips(index, tmp_path, read_item=read_item)


def build_and_count(root: Path, folder: Path, counts: Path) -> None:
    def read_item(path: Path) -> np.ndarray:
        with counts.open("ab") as file:
            file.write(b".")
        return read_frames(path)

    assert isinstance(open_clips(clip_index(root), folder, read_item=read_item), CachedPixels)


def test_processes_that_build_the_same_cache_decode_it_once(root, whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    arguments = (root, tmp_path / "cache", tmp_path / "counts")
    processes = [context.Process(target=build_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert only_cache(tmp_path / "cache").read_bytes() == whole.read_bytes()
    assert (tmp_path / "counts").read_bytes() == b"." * 6


def test_one_waits_for_another_and_takes_over_what_it_gives_up(index, whole, tmp_path):
    waiting, result = threading.Event(), []
    waiter = threading.Thread(target=lambda: result.append(open_clips(index, tmp_path, on_item=waiting.set)))
    with claimed(tmp_path / whole.name, lambda: None) as file:
        file.write(b"half", 0)
        waiter.start()
        assert waiting.wait(10), "it looks at `on_item` while it waits"
        assert not (tmp_path / whole.name).exists()
    waiter.join(10)
    assert isinstance(result[0], CachedPixels) and only_cache(tmp_path).read_bytes() == whole.read_bytes()


def test_a_waiting_process_can_be_ended(index, whole, tmp_path):
    def stop() -> None:
        raise Terminated

    with claimed(tmp_path / whole.name, lambda: None), pytest.raises(Terminated):
        open_clips(index, tmp_path, on_item=stop)


def test_the_layout_has_room_for_all_checksums():
    layout = CacheLayout("k" * 64, (5000, 3, 224, 224))
    checksums = np.arange(5000, dtype=np.uint32)
    header = layout.header(checksums)
    assert len(header) == layout.start and layout.start % 4096 == 0
    assert np.array_equal(layout.read_checksums(header), checksums)
    assert layout.num_bytes == layout.start + 5000 * 3 * 224 * 224 * 3
