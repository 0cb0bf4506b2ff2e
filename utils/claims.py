"""A large file that one process builds while the others wait for it: whole or not there, whoever is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.files import partial_path, sync_folder

_WAIT_S = 0.1


class CannotWriteError(Exception):
    """The file cannot be written here; the message says why."""


class ClaimedFile:
    """The file beside `path` that this process alone writes to, and that takes `path`'s name when it is finished."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def remove_old(self) -> None:
        """Remove what stands under the name, so that no build that fails leaves it there."""
        with _writing():
            self._path.unlink()

    def require_space(self, needed_bytes: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        with _writing():
            os.ftruncate(self._descriptor, 0)  # what a killed build left counts as free
            free_bytes = shutil.disk_usage(self._path.parent).free
        if free_bytes < needed_bytes:
            raise CannotWriteError(f"{free_bytes / 1e6:.1f} MB are free")

    def write(self, content: bytes, offset: int) -> None:
        """Write all of `content` at a place."""
        view = memoryview(content)
        with _writing():
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def finish(self) -> None:
        """To the disk first, then under its name."""
        with _writing():
            os.fsync(self._descriptor)
            partial_path(self._path).replace(self._path)
            sync_folder(self._path.parent)


@contextmanager
def claimed(path: Path, on_wait: Callable[[], None]) -> Iterator[ClaimedFile]:
    """The file to build `path` in, once no other process has it; unfinished, it is removed.

    The claim is a lock that goes with its process, so that what a killed build left is taken over.

    Args:
        on_wait: called again and again while another process builds; may raise.

    Raises:
        CannotWriteError: in here or in a method of the file, for whatever keeps it from the disk.
    """
    partial = partial_path(path)
    descriptor = _lock(partial, on_wait)
    try:
        yield ClaimedFile(path, descriptor)
    finally:
        if _is_at(descriptor, partial):  # after the rename the name is free for another process
            partial.unlink()
        os.close(descriptor)


def _lock(partial: Path, on_wait: Callable[[], None]) -> int:
    while True:
        with _writing():
            partial.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not _try_lock(descriptor):
                on_wait()
                time.sleep(_WAIT_S)
            if _is_at(descriptor, partial):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had it has finished or given up: look again


def _try_lock(descriptor: int) -> bool:
    with _writing():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _writing() -> Iterator[None]:
    # Only what touches the file stands in here: a source that cannot be read is another matter.
    try:
        yield
    except OSError as error:
        raise CannotWriteError(error.strerror or str(error)) from error
