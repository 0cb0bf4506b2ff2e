"""What files were when they were first used, for indices that do not say it: so that a later change is named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from utils.artifacts import CLIP_INDEX, FILE_HASHES, IMAGE_INDEX, read_table, write_table
from utils.errors import InputError
from utils.files import locked, sha256_bytes, sha256_file
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
    recorded = _read_hashes(record)
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
        _add_hashes(record, added)


def _hash_record(index: ItemIndex, first_name: str, cache_dir: Path) -> Path:
    """One record for each index in each folder of items: the same index may be used with other clips."""
    folder = index.paths[0].parents[len(PurePosixPath(first_name).parts) - 1].resolve()
    return cache_dir / f"{sha256_bytes(f'{sha256_file(index.index_path)} {folder}'.encode())[:16]}.sha256.csv"


def _read_hashes(record: Path) -> dict[str, str]:
    return dict(read_table(record, FILE_HASHES).itertuples(index=False)) if record.exists() else {}


def _add_hashes(record: Path, added: dict[str, str]) -> None:
    try:
        with locked(record):
            recorded = _read_hashes(record)  # another process may have used some of the files meanwhile: it was first
            hashes = recorded | {name: sha256 for name, sha256 in added.items() if name not in recorded}
            write_table([{"path": name, "sha256": sha256} for name, sha256 in hashes.items()], record, FILE_HASHES)
    except OSError as error:
        log.warning("%s: cannot be written (%s); later changes of these files are not noticed", record, error.strerror)


def _line_of(index: ItemIndex, name: str) -> int:
    table = read_table(index.index_path, IMAGE_INDEX if "image_path" in index.table else CLIP_INDEX)
    return int(table.index[list(table.iloc[:, 0]).index(name)])
