"""Every clip is what it was: compared with its index, or, with two columns, with what it was when it was first used."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from samples import write_clip_set, write_image_set

from utils.errors import InputError, Terminated
from utils.file_hashes import known_hashes
from utils.files import locked, sha256_file
from utils.indices import read_clip_index, read_image_index


def hash_clips(root: Path, cache_dir: Path) -> list[str]:
    with known_hashes(read_clip_index(root / "train.csv", root / "train"), cache_dir) as hashes:
        return hashes


def only_record(cache_dir: Path) -> Path:
    """The one record of a folder; its lock stays beside it."""
    (record,) = [path for path in cache_dir.iterdir() if not path.name.endswith(".lock")]
    return record


@pytest.fixture
def published(tmp_path) -> Path:
    return write_clip_set(tmp_path / "clips", per_class=3, published=True)


def test_an_index_with_hashes_is_taken_at_its_word(tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=2)
    index = read_clip_index(clips / "train.csv", clips / "train")
    images = read_image_index(write_image_set(tmp_path / "images") / "train.csv")
    for items in (index, images):
        with known_hashes(items, tmp_path / "cache") as hashes:
            assert hashes == [sha256_file(path) for path in items.paths]
    assert not (tmp_path / "cache").exists(), "nothing has to be kept"


def test_two_columns_are_hashed_and_kept_beside_the_cache(published, tmp_path):
    expected = [sha256_file(published / "train" / f"{number:05d}.mp4") for number in range(6)]
    assert hash_clips(published, tmp_path / "cache") == expected
    record = only_record(tmp_path / "cache")
    rows = [f"{number:05d}.mp4,{sha256}\n" for number, sha256 in enumerate(expected)]
    assert record.read_text() == "path,sha256\n" + "".join(rows)
    before = record.stat().st_mtime_ns
    assert hash_clips(published, tmp_path / "cache") == expected
    assert record.stat().st_mtime_ns == before, "an unchanged record is not written again"


def test_a_changed_clip_is_named_with_its_line_and_the_remedy(published, tmp_path):
    hash_clips(published, tmp_path / "cache")
    record = only_record(tmp_path / "cache")
    shutil.copy(published / "train/00000.mp4", published / "train/00004.mp4")
    with pytest.raises(InputError) as caught:
        hash_clips(published, tmp_path / "cache")
    assert str(caught.value) == (
        f"{published}/train.csv line 6: {published}/train/00004.mp4 has changed since it was first used; restore it, "
        f"or remove {record} if the change is meant"
    )
    record.unlink()
    hashes = hash_clips(published, tmp_path / "cache")
    assert hashes[4] == hashes[0]


@pytest.mark.parametrize("is_published", [True, False], ids=["two columns", "sha256"])
@pytest.mark.parametrize("counts", [(20, 4), pytest.param((200, 20), marks=pytest.mark.exhaustive)], ids=str)
def test_flipped_bits_and_truncations_are_all_named(tmp_path, is_published, counts):
    clips = write_clip_set(tmp_path / "clips", per_class=3, published=is_published)
    hash_clips(clips, tmp_path / "cache")
    rng = np.random.default_rng(0)
    for number in range(sum(counts)):
        item = int(rng.integers(6))
        path = clips / "train" / f"{item:05d}.mp4"
        whole = path.read_bytes()
        damaged = bytearray(whole)
        place = int(rng.integers(len(whole)))
        if number < counts[0]:
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged) if number < counts[0] else whole[:place])
        with pytest.raises(InputError, match=rf"train\.csv line {item + 2}: .*{path.name} has changed since"):
            hash_clips(clips, tmp_path / "cache")
        path.write_bytes(whole)
    assert len(hash_clips(clips, tmp_path / "cache")) == 6


def test_swapped_missing_and_foreign_clips_are_named(published, tmp_path):
    hash_clips(published, tmp_path / "cache")
    first, second = published / "train/00001.mp4", published / "train/00003.mp4"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(InputError, match=r"line 3: .*00001\.mp4 has changed"):
        hash_clips(published, tmp_path / "cache")
    first.write_bytes(contents[0])
    second.unlink()
    with pytest.raises(InputError, match=r"line 5: there is no file '00003\.mp4'"):
        hash_clips(published, tmp_path / "cache")
    second.write_text("something else")
    with pytest.raises(InputError, match=r"line 5: .*00003\.mp4 has changed"):
        hash_clips(published, tmp_path / "cache")


def test_the_same_index_with_other_clips_has_a_record_of_its_own(tmp_path):
    for name, num_frames in (("a", 3), ("b", 5)):
        hash_clips(write_clip_set(tmp_path / name, per_class=2, num_frames=num_frames, published=True), tmp_path / "c")
    assert (tmp_path / "a/train.csv").read_bytes() == (tmp_path / "b/train.csv").read_bytes()
    assert len(list((tmp_path / "c").glob("*.csv"))) == 2
    (tmp_path / "link").symlink_to(tmp_path / "a")
    hash_clips(tmp_path / "link", tmp_path / "c")
    assert len(list((tmp_path / "c").glob("*.csv"))) == 2, "a link leads to the same clips"


def test_rows_without_a_hash_in_an_index_with_hashes_are_hashed(tmp_path):
    clips = write_clip_set(tmp_path / "clips", per_class=2)
    index_path, expected = clips / "train.csv", sha256_file(clips / "train/00002.mp4")
    index_path.write_text(index_path.read_text().replace(expected, ""))
    assert hash_clips(clips, tmp_path / "cache")[2] == expected
    record = only_record(tmp_path / "cache")
    assert record.read_text() == f"path,sha256\n00002.mp4,{expected}\n"


def test_a_record_that_cannot_be_written_is_one_sentence(published, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert len(hash_clips(published, tmp_path / "file")) == 6
    assert "later changes of these files are not noticed" in caplog.text


def test_hashing_can_be_ended_between_files(published, tmp_path):
    seen = []

    def stop() -> None:
        seen.append(None)
        if len(seen) == 3:
            raise Terminated

    index = read_clip_index(published / "train.csv", published / "train")
    with pytest.raises(Terminated), known_hashes(index, tmp_path / "cache", on_item=stop):
        pytest.fail("the files were not hashed one by one")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_broken_when_it_is_first_used_may_be_replaced(published, tmp_path):
    index = read_clip_index(published / "train.csv", published / "train")
    with pytest.raises(InputError, match="broken"), known_hashes(index, tmp_path / "cache"):
        raise InputError("broken")
    (published / "train" / "00000.mp4").write_bytes(b"another clip")
    assert hash_clips(published, tmp_path / "cache")[0] == sha256_file(published / "train" / "00000.mp4")


def test_processes_that_hash_the_same_clips_first_leave_one_whole_record(published, tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=hash_clips, args=(published, tmp_path / "cache")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    record = only_record(tmp_path / "cache")
    assert record.read_text().count("\n") == 7


def test_a_record_waits_for_another_writer(published, tmp_path):
    hash_clips(published, tmp_path / "cache")
    record = only_record(tmp_path / "cache")
    record.unlink()
    writer = threading.Thread(target=hash_clips, args=(published, tmp_path / "cache"))
    with locked(record):
        writer.start()
        writer.join(0.5)
        assert writer.is_alive() and not record.exists()
    writer.join(10)
    assert record.read_text().count("\n") == 7


def test_what_another_process_recorded_meanwhile_stays(published, tmp_path):
    index = read_clip_index(published / "train.csv", published / "train")
    with known_hashes(index, tmp_path / "cache") as hashes:
        hash_clips(published, tmp_path / "cache")
        record = only_record(tmp_path / "cache")
        theirs = record.read_text().replace(hashes[0], "0" * 64).replace("00005.mp4", "other.mp4")
        record.write_text(theirs)
    assert record.read_text() == theirs + f"00005.mp4,{hashes[5]}\n"


def test_the_record_is_written_atomically(published, tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail)
    hash_clips(published, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
