"""Files that are whole or not there: write beside, fsync, rename; and the hashes that tell whether they changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from utils.errors import InputError

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes `path`'s name, on failure it is removed.

    The name is fixed, so that a killed run leaves at most one such file a target and the next run replaces it. Readers
    never look at names that end in `.partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not know its file's name
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically, with `\\n` line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` (a library's save function) write to a path, atomically."""
    with atomic_path(path) as partial:
        writer(partial)


def partial_path(path: Path) -> Path:
    """Where `path` is written before it takes its name."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: a rename itself must survive a power cut."""
    _fsync(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process after the other in, to look at `path` and write it; the system lets go of a killed one's lock.

    The lock is a hidden file beside `path`, which stays: it must be open for writing, or network file systems refuse.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_partial_files(folder: Path) -> None:
    """Remove what killed runs left directly in `folder`; only for a folder this process alone writes to."""
    for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def sha256_bytes(content: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_item(root: Path, relative: str, where: str) -> Path:
    """The file that an index row names, made sure to lie inside `root`.

    Args:
        root: the folder that item paths are relative to; may itself be a link.
        where: `file line N`, for the sentence.

    Raises:
        InputError: the path is absolute, has `..`, leaves the root through a link, or is no file.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or not pure.parts:
        raise InputError(
            f"{where}: path {relative!r} must be relative and stay below {root}; no absolute path, no '..', no '\\'"
        )
    path = root / pure
    if not path.is_file():
        raise InputError(f"{where}: there is no file {relative!r} below {root}; restore it or remove the row")
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{where}: {relative!r} is a link that leaves {root}; copy the file into the folder")
    return path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
