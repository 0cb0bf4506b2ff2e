"""How the clips of one split lie on disk: their names, their index, and the journal of rows until there is an index."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.artifacts import CLIP_INDEX, format_table, read_table
from utils.errors import InputError
from utils.files import sha256_file

MAX_FILES_PER_FOLDER = 10_000


@dataclass(frozen=True)
class SplitFolders:
    """Where one split's good and bad clips go."""

    clips: Path
    quarantine: Path


def split_folders(output_dir: Path, split: str) -> SplitFolders:
    """The folders of one split."""
    return SplitFolders(clips=output_dir / split, quarantine=output_dir / "quarantine" / split)


def clip_name(number: int, num_total: int) -> str:
    """Path of a split's clip below its folder: as in the published data set, or in sub-folders of 10,000 files."""
    if num_total <= MAX_FILES_PER_FOLDER:
        return f"{number:05d}.mp4"
    return f"{number // MAX_FILES_PER_FOLDER:05d}/{number:08d}.mp4"


def journal_name(split: str) -> str:
    """The file that holds finished rows until the index is written."""
    return f"{split}.journal.csv"


def read_index_rows(index_path: Path) -> list[dict[str, Any]]:
    """The rows of a clip index; none where there is no index, or an empty one (a shard may be empty)."""
    if next(iterate_index_rows(index_path), None) is None:
        return []
    return read_table(index_path, CLIP_INDEX).to_dict("records")


def iterate_index_rows(index_path: Path) -> Iterator[dict[str, Any]]:
    """As `read_index_rows`, one by one, for an index that this stage wrote: a million rows take no memory.

    Raises:
        InputError: naming file and line of a row that was damaged since.
    """
    if not index_path.exists():
        return
    with index_path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if next(reader, CLIP_INDEX.column_names) != CLIP_INDEX.column_names:
            raise InputError(f"{index_path} line 1: not the columns of this stage's clip index; make it again")
        for cells in reader:
            yield _parse_row(cells, f"{index_path} line {reader.line_num}")


def _parse_row(cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(CLIP_INDEX.columns):
        raise InputError(f"{where}: has {len(cells)} cells, expected {len(CLIP_INDEX.columns)}; make the index again")
    pairs = zip(CLIP_INDEX.columns, cells, strict=True)
    return {column.name: column.parse(cell, where) for column, cell in pairs}


def is_unchanged(clips_dir: Path, row: dict[str, Any]) -> bool:
    """Whether a row's clip is on disk and the bytes it was."""
    clip = clips_dir / row["video_path"]
    return clip.is_file() and sha256_file(clip) == row["sha256"]


class Journal:
    """Appended and synced row by row; a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Whole rows so far."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a killed run's last line; new rows must not be glued to it
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for cells in csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")):
            with contextlib.suppress(InputError):  # a row that was damaged since is a clip to make again
                yield _parse_row(cells, str(self.path))

    def __enter__(self) -> Journal:
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Add one row, on disk when this returns."""
        if self._file is None:  # not earlier: settings bind nobody before a clip is made
            self._file = self.path.open("a", encoding="utf-8", newline="")
        self._file.write(format_table([row], CLIP_INDEX, header=False))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the journal: the index has taken its place."""
        self.path.unlink(missing_ok=True)
