"""Every video decoded once, in full: how many frames it really has, and its SHA-256; a journal keeps what was found.

A large data set takes long to decode, so each video is written to the journal as soon as it has been looked at, and a
run that was killed goes on from there. A file with another size or time of change is looked at again, and so is one
that the system could not read: that may be mended without a change of the file.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.artifacts import PROBED_VIDEOS, format_table, read_table
from utils.clips import VideoError, probe_video
from utils.files import sha256_file, write_text
from utils.utils import progress

log = logging.getLogger(__name__)
JOURNAL = "probed_videos.csv"
# Of this process or machine, not of the file that happens to be opened then.
_NO_FAULT_OF_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True)
class ProbedVideo:
    """What a full decode found; `reason` is empty where all went well, and the counts are None where it did not.

    Without a `sha256` nothing of the file was read.
    """

    sha256: str
    num_frames: int | None
    height: int | None
    width: int | None
    reason: str


def probe_videos(root: Path, paths: list[str], journal_path: Path, workers: int) -> dict[str, ProbedVideo]:
    """Look at every video, in threads, but for those that the journal knows.

    Args:
        paths: below `root`.

    Returns:
        path -> what was found, in the order of `paths`.

    Raises:
        InputError: the journal was edited and cannot be read.
        OSError: the journal cannot be written, or the system has no memory or file handle left.
    """
    known = dict(_read_journal(journal_path))
    keys = {path: (path, *_state(root / path)) for path in paths}
    todo = [path for path in paths if keys[path] not in known]
    if len(todo) < len(paths):
        log.info("%d of %d videos are known from %s", len(paths) - len(todo), len(paths), journal_path)
    threads = ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1)))
    try:
        with journal_path.open("a", encoding="utf-8", newline="") as journal:
            found = threads.map(lambda path: _probe(root, path), todo)
            for path, probed in zip(todo, progress(found, len(todo), "videos"), strict=True):
                known[keys[path]] = probed
                if probed.sha256:
                    journal.write(format_table([_journal_row(keys[path], probed)], PROBED_VIDEOS, header=False))
                    journal.flush()
    finally:
        threads.shutdown(cancel_futures=True)
    return {path: known[keys[path]] for path in paths}


def num_bytes_of(path: Path) -> int | None:
    """A file's size; None where it is not there or cannot be asked."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _probe(root: Path, relative: str) -> ProbedVideo:
    try:
        return _look_at(root, relative)
    except OSError as error:
        if error.errno in _NO_FAULT_OF_THE_FILE:
            raise
        return ProbedVideo("", None, None, None, f"unreadable: {error.strerror or error}")


def _look_at(root: Path, relative: str) -> ProbedVideo:
    path = root / relative
    if problem := _name_problem(relative):
        return ProbedVideo("", None, None, None, problem)
    if not path.is_file():
        return ProbedVideo("", None, None, None, "the file is missing: a link to nothing")
    if not path.resolve().is_relative_to(root.resolve()):
        return ProbedVideo("", None, None, None, "a link that leaves data_root; copy the file into the folder")
    sha256 = sha256_file(path)
    try:
        info = probe_video(path)
    except VideoError as error:
        return ProbedVideo(sha256, None, None, None, " ".join(error.reason.split()))
    return ProbedVideo(sha256, info.num_frames, info.height, info.width, "")


def _name_problem(relative: str) -> str:
    is_text = relative.encode("utf-8", "replace").decode() == relative
    if is_text and "\\" not in relative and all(character.isprintable() for character in relative):
        return ""
    return "its name has a backslash, a control character, or is not UTF-8; rename it"


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; zeros where a link leads nowhere, or the file cannot be asked."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _read_journal(path: Path) -> Iterator[tuple[tuple[str, int, int], ProbedVideo]]:
    """What earlier runs found; a last line that a killed run left half written is dropped."""
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    if not text.endswith("\n"):
        whole = text[: text.rfind("\n") + 1] or format_table([], PROBED_VIDEOS)
        write_text(path, whole)
    for row in read_table(path, PROBED_VIDEOS, allow_empty=True).itertuples(index=False):
        counts = (None if pd.isna(value) else int(value) for value in (row.num_frames, row.height, row.width))
        yield (row.video_path, row.num_bytes, row.modified_ns), ProbedVideo(row.sha256, *counts, row.reason)


def _journal_row(key: tuple[str, int, int], probed: ProbedVideo) -> dict[str, Any]:
    return dict(zip(("video_path", "num_bytes", "modified_ns"), key, strict=True)) | vars(probed)
