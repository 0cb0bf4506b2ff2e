"""Files that the system cannot read: a row of that one file, looked at again next time; a full disk ends the run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from videos import write_folders

from Data_Sourcing import video_probing
from Data_Sourcing.video_probing import probe_videos
from utils.artifacts import PROBED_VIDEOS, read_table

PATHS = ["a/a_0.mp4", "a/a_1.mp4", "a/a_2.mp4"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "raw", {"a": 3})


def fail_for(monkeypatch, name: str, function: str, number: int) -> None:
    """Let one of the functions that read a file fail for one file."""
    real = getattr(video_probing, function)

    def fail(path: Path):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(video_probing, function, fail)


@pytest.mark.parametrize("function", ["sha256_file", "probe_video"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_a_row_and_the_others_are_probed(raw, tmp_path, monkeypatch, function, number):
    fail_for(monkeypatch, "a_1.mp4", function, number)
    found = probe_videos(raw, PATHS, tmp_path / "journal.csv", 1)
    assert [probed.reason for probed in found.values()] == ["", f"unreadable: {os.strerror(number)}", ""]
    assert (found["a/a_1.mp4"].sha256, found["a/a_1.mp4"].num_frames, found["a/a_2.mp4"].num_frames) == ("", None, 8)


def test_a_file_that_could_not_be_read_is_looked_at_again(raw, tmp_path, monkeypatch):
    journal = tmp_path / "journal.csv"
    with monkeypatch.context() as patch:
        fail_for(patch, "a_1.mp4", "sha256_file", errno.EIO)
        probe_videos(raw, PATHS, journal, 1)
    assert read_table(journal, PROBED_VIDEOS)["video_path"].tolist() == ["a/a_0.mp4", "a/a_2.mp4"]
    found = probe_videos(raw, PATHS, journal, 1)
    assert [(probed.num_frames, probed.reason) for probed in found.values()] == [(8, "")] * 3
    assert sorted(read_table(journal, PROBED_VIDEOS)["video_path"]) == PATHS


def test_a_folder_that_may_not_be_searched_is_rows(raw, tmp_path, monkeypatch):
    real = Path.stat

    def stat(path: Path, **options):
        if path.name == "a_1.mp4":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    found = probe_videos(raw, PATHS, tmp_path / "journal.csv", 1)
    assert [probed.reason for probed in found.values()] == ["", "unreadable: Permission denied", ""]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_is_not_the_file_s_fault_ends_the_run(raw, tmp_path, monkeypatch, number):
    fail_for(monkeypatch, "a_1.mp4", "sha256_file", number)
    with pytest.raises(OSError, match=r"a_1\.mp4"):
        probe_videos(raw, PATHS, tmp_path / "journal.csv", 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_under_the_journal_ends_the_run(raw, tmp_path, monkeypatch, number):
    def write(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number))

    journal = tmp_path / "journal.csv"
    probe_videos(raw, [], journal, 1)
    monkeypatch.setattr(video_probing, "format_table", write)
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as error:
        probe_videos(raw, PATHS, journal, 1)
    assert error.value.errno == number
