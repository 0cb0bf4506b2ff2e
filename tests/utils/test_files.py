"""Files that are whole or not there, hashes, and item paths that stay below their root."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import KILLED

from utils.errors import InputError
from utils.files import (
    atomic_path,
    locked,
    remove_partial_files,
    resolve_item,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_text,
    write_with,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_file_takes_its_name_and_leaves_nothing_beside(tmp_path):
    write_bytes(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.bin"]


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "deep/er/a.txt", "x")
    assert (tmp_path / "deep/er/a.txt").read_text() == "x"


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "\u00fcber\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xbcber\n"


def test_new_content_replaces_old(tmp_path):
    write_text(tmp_path / "a.txt", "a longer text")
    write_text(tmp_path / "a.txt", "short")
    assert (tmp_path / "a.txt").read_text() == "short"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file_and_no_partial_one(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_failure_without_an_old_file_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no"):
        write_with(tmp_path / "a.txt", _write_then_fail)
    assert names(tmp_path) == []


def _write_then_fail(partial: Path) -> None:
    partial.write_text("half")
    raise ValueError("no")


def test_writer_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_with(tmp_path / "a.txt", lambda partial: None)
    assert (tmp_path / "a.txt").read_text() == "old"


def test_old_file_stands_under_its_name_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == path.parent and partial.name == "a.txt.partial"
    assert path.read_text() == "new"


KILLED_WRITE = """
import os, sys
from pathlib import Path
from utils.files import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os._exit(137)
"""


def test_killed_write_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITE, str(path)], check=False)
    assert killed.returncode == KILLED and path.read_text() == "old"
    assert names(tmp_path) == ["a.txt", "a.txt.partial"]
    write_text(path, "new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_written_bytes_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append("rename"), replace(self, target))[1])
    write_text(tmp_path / "a.txt", "x")
    assert steps == ["fsync", "rename", "fsync"]


def test_only_partial_files_of_the_folder_itself_are_removed(tmp_path):
    for name in ("a.mp4.partial", "b.mp4", "deep/c.mp4.partial"):
        write_text(tmp_path / name, "x")
    remove_partial_files(tmp_path)
    assert names(tmp_path) == ["b.mp4", "deep"]
    assert names(tmp_path / "deep") == ["c.mp4.partial"]


# FIPS 180-4 examples.
DIGESTS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


@pytest.mark.parametrize(("content", "digest"), DIGESTS.items(), ids=repr)
def test_sha256_is_the_standard_s(tmp_path, content, digest):
    (tmp_path / "a").write_bytes(content)
    assert sha256_bytes(content) == sha256_file(tmp_path / "a") == digest


def test_sha256_of_a_file_larger_than_a_buffer(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Item paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_text(tmp_path / "root/train/a.png", "a")
    write_text(tmp_path / "outside/b.png", "b")
    return tmp_path / "root"


@pytest.mark.parametrize("relative", ["train/a.png", "./train/a.png", "train//a.png"])
def test_item_below_the_root_is_found(root, relative):
    assert resolve_item(root, relative, "x").read_text() == "a"


def test_item_with_odd_characters_is_found(root):
    for name in ("a b,c.png", "\u00fc.png", "a:b.png", "..a.png", "~"):
        write_text(root / name, name)
        assert resolve_item(root, name, "x").read_text() == name


UNSAFE = ["/etc/passwd", "../outside/b.png", "train/../train/a.png", "train\\a.png", "..", ".", "", "C:\\a.png"]


@pytest.mark.parametrize("relative", UNSAFE, ids=repr)
def test_unsafe_path_is_refused_with_its_place(root, relative):
    with pytest.raises(InputError) as error:
        resolve_item(root, relative, "train.csv line 7")
    assert str(error.value).startswith(f"train.csv line 7: path {relative!r} must be relative and stay below {root}")


@pytest.mark.parametrize("relative", ["train/b.png", "train", "train/a.png/b", "train/a\0.png"], ids=repr)
def test_what_is_no_file_is_refused_with_its_place(root, relative):
    with pytest.raises(InputError) as error:
        resolve_item(root, relative, "train.csv line 7")
    assert str(error.value).startswith(f"train.csv line 7: there is no file {relative!r} below {root}")


@pytest.mark.parametrize("target", ["../outside/b.png", "dangling"], ids=["outside", "dangling"])
def test_link_that_leads_nowhere_or_out_is_refused(root, target):
    (root / "link.png").symlink_to(target)
    with pytest.raises(InputError, match=r"line 7: .*'link\.png'"):
        resolve_item(root, "link.png", "train.csv line 7")


def test_folder_link_that_leaves_the_root_is_refused(root):
    (root / "linked").symlink_to("../outside")
    with pytest.raises(InputError, match=r"'linked/b\.png' is a link that leaves"):
        resolve_item(root, "linked/b.png", "train.csv line 7")


def test_link_to_a_folder_whose_name_only_begins_like_the_root_is_refused(root):
    write_text(root.with_name("root2") / "c.png", "c")
    (root / "link.png").symlink_to("../root2/c.png")
    with pytest.raises(InputError, match="leaves"):
        resolve_item(root, "link.png", "x")


def test_link_inside_the_root_is_read(root):
    (root / "link.png").symlink_to("train/a.png")
    assert resolve_item(root, "link.png", "x").read_text() == "a"


def test_root_that_is_itself_a_link_is_read(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert resolve_item(tmp_path / "link", "train/a.png", "x").read_text() == "a"


def hold_lock(path: Path, is_killed: bool) -> None:
    with locked(path):
        (path.parent / "inside").touch()
        if is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        path.write_text("theirs")


@pytest.mark.parametrize("is_killed", [False, True])
def test_one_process_after_the_other_is_let_in(tmp_path, is_killed):
    path = tmp_path / "deep" / "file"
    other = multiprocessing.get_context("forkserver").Process(target=hold_lock, args=(path, is_killed))
    other.start()
    while not (path.parent / "inside").exists():
        time.sleep(0.01)
    with locked(path):
        assert path.exists() != is_killed
    other.join()
    assert names(path.parent) == sorted([".file.lock", "inside", *(["file"] if not is_killed else [])])


def test_a_lock_is_on_a_file_that_is_open_for_writing(tmp_path, monkeypatch):
    """Network file systems refuse any other."""
    modes, flock = [], fcntl.flock

    def record(file, operation: int) -> None:
        modes.append((fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE, stat.S_ISREG(os.fstat(file.fileno()).st_mode)))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", record)
    with locked(tmp_path / "file"):
        assert modes == [(os.O_WRONLY, True)]
