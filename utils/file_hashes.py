"""What files were when they were first used, for indices that do not say it: so that a later change is named."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from utils.artifacts import CLIP_INDEX, FILE_HASHES, IMAGE_INDEX, read_table, write_table
from utils.errors import InputError
from utils.files import sha256_bytes, sha256_file
from utils.indices import ItemIndex

log = logging.getLogger(__name__)


@contextmanager
def known_hashes(
    index: ItemIndex, cache_dir: Path, *, on_item: Callable[[], None] | None = None
) -> Iterator[list[str]]:
    """The SHA-256 of every file's content, in the order of the index.

    Where the index does not say it, files are hashed, and compared with what they were when they were first used: a
    small CSV in `cache_dir` keeps that. It is written when the context is left without an error, so that a file which
    turns out to be broken may be replaced. The hashes of an index are taken as they are: its reader has compared them.

    Args:
        on_item: called before each file that is hashed.

    Raises:
        InputError: a file has changed since it was first used.
    """
    hashes = list(index.table["sha256"]) if "sha256" in index.table else [""] * len(index)
    if all(hashes):
        yield hashes
        return
    names = list(index.table["image_path" if "image_path" in index.table else "video_path"])
    record = _hash_record(index, names[0], cache_dir)
    recorded = dict(read_table(record, FILE_HASHES).itertuples(index=False)) if record.exists() else {}
    added = {}
    for position, (name, path) in enumerate(zip(names, index.paths, strict=True)):
        if hashes[position]:
            continue
        if on_item is not None:
            on_item()
        hashes[position] = sha256_file(path)
        if name not in recorded:
            added[name] = hashes[position]
        elif recorded[name] != hashes[position]:
            raise InputError(
                f"{index.index_path} line {_line_of(index, name)}: {path} has changed since it was first used; restore "
                f"it, or remove {record} if the change is meant"
            )
    yield hashes
    if added:
        _write_hashes(record, recorded | added)


def _hash_record(index: ItemIndex, first_name: str, cache_dir: Path) -> Path:
    """One record for each index in each folder of items: the same index may be used with other clips."""
    folder = index.paths[0].parents[len(PurePosixPath(first_name).parts) - 1].resolve()
    return cache_dir / f"{sha256_bytes(f'{sha256_file(index.index_path)} {folder}'.encode())[:16]}.sha256.csv"


def _write_hashes(record: Path, hashes: dict[str, str]) -> None:
    try:
        with _locked_folder(record.parent):
            write_table([{"path": name, "sha256": sha256} for name, sha256 in hashes.items()], record, FILE_HASHES)
    except OSError as error:
        log.warning("%s: cannot be written (%s); later changes of these files are not noticed", record, error.strerror)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    # Several processes may see an index for the first time; their writes to one name must not meet.
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _line_of(index: ItemIndex, name: str) -> int:
    table = read_table(index.index_path, IMAGE_INDEX if "image_path" in index.table else CLIP_INDEX)
    return int(table.index[list(table.iloc[:, 0]).index(name)])
