"""One file with the decoded pixels of all items: memory-mapped, checked byte for byte, rebuilt when it does not fit.

The file holds one JSON line (format, key, shape), the items' CRC-32 as little-endian uint32, zeros up to a page, then
the pixels, uint8 (N, T, H, W, 3). Everything before the pixels follows from the key, the shape and the checksums, so
that a flip of any bit is noticed.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
from PIL import features

from utils.claims import CannotWriteError, claimed
from utils.files import sha256_bytes
from utils.utils import progress

log = logging.getLogger(__name__)
_FORMAT = "uint8 pixels 1"
_PAGE_BYTES = 4096
_CHECK_BYTES = 8 * 2**20  # what one thread checks at a time: enough to hide the call, little enough to stop soon


@dataclass(frozen=True)
class CacheLayout:
    """Where everything is in a cache file: `key` from `cache_key`, `shape` is (N, T, H, W)."""

    key: str
    shape: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.key[:16]}.pixels"

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return int(np.prod(self.shape[1:])) * 3

    @property
    def start(self) -> int:
        """Where the pixels begin: after the JSON line and the checksums, on a page."""
        return -(-(len(self.first_line) + 4 * self.shape[0]) // _PAGE_BYTES) * _PAGE_BYTES

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return self.start + self.shape[0] * self.item_bytes

    def header(self, checksums: np.ndarray) -> bytes:
        """Everything before the pixels: checksums uint32 (N,) -> bytes (start,)."""
        return (self.first_line + checksums.astype("<u4").tobytes()).ljust(self.start, b"\0")

    def read_checksums(self, header: bytes) -> np.ndarray:
        """The checksums that a header holds: uint32 (N,)."""
        return np.frombuffer(header, "<u4", self.shape[0], len(self.first_line))

    def map(self, path: Path) -> np.ndarray:
        """The pixels, uint8 (N, T, H, W, 3), memory-mapped read-only."""
        return np.asarray(np.memmap(path, np.uint8, "r", self.start, (*self.shape, 3)))

    @property
    def first_line(self) -> bytes:
        """What a file of this layout begins with."""
        return json.dumps({"format": _FORMAT, "key": self.key, "shape": [*self.shape, 3]}).encode() + b"\n"


def cache_key(hashes: Sequence[str], item_shape: tuple[int, int, int], rule: str) -> str:
    """SHA-256 over everything that decides the pixels: the files' hashes in order, the shape, the rule, the decoders.

    Args:
        rule: how pixels come from a file, in words.
    """
    parts = {"hashes": list(hashes), "item_shape": list(item_shape), "rule": rule, "decoders": _decoder_versions()}
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def open_cache(
    cache_dir: Path,
    layout: CacheLayout,
    read_item: Callable[[int], np.ndarray],
    names: Sequence[Any],
    *,
    workers: int,
    on_item: Callable[[], None],
    check_pixels: bool = True,
) -> np.ndarray | None:
    """The pixels of all items from their cache, which is built first where it is missing, foreign or damaged.

    Args:
        read_item: the pixels of the item at a position, uint8 (T, H, W, 3); called in threads.
        names: of the items, for the sentence about a damaged one.
        workers: threads. PyAV and Pillow decode without Python's lock; processes were not faster.
        on_item: called between items; what it raises ends the work, and no partial file stays.
        check_pixels: False looks at the header and the size only: another process has just looked at every byte.

    Returns:
        uint8 (N, T, H, W, 3), read-only; None where the cache cannot be written (one sentence has been logged).
    """
    path = cache_dir / layout.name
    options = {"workers": workers, "on_item": on_item, "check_pixels": check_pixels}
    problem = find_problem(path, layout, names, **options) if path.exists() else "not built yet"
    if problem is not None:
        if path.exists():
            log.warning("%s: %s; it is not used, and built again", path, problem)
        try:
            _build(path, layout, read_item, names, workers, on_item)
        except CannotWriteError as error:
            log.warning(
                "%s: the pixel cache of %.1f MB cannot be written (%s); the files are decoded again in every epoch, "
                "which is far slower: free some space or choose another folder",
                path,
                layout.num_bytes / 1e6,
                error,
            )
            return None
    log.info("pixels of %d items from %s (%.1f MB)", layout.shape[0], path, layout.num_bytes / 1e6)
    return layout.map(path)


def find_problem(
    path: Path,
    layout: CacheLayout,
    names: Sequence[Any],
    *,
    workers: int,
    on_item: Callable[[], None],
    check_pixels: bool = True,
) -> str | None:
    """What is wrong with a cache file, every byte looked at; None if it is whole and of these items.

    Args:
        check_pixels: False looks at everything but the pixels.
    """
    try:
        found_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(layout.start)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not header.startswith(f'{{"format": "{_FORMAT}"'.encode()):
        return "it is not a pixel cache"
    if not header.startswith(layout.first_line):
        return "it was built from other items, or its header is damaged"
    if found_bytes != layout.num_bytes:
        return f"it has {found_bytes} bytes instead of {layout.num_bytes}"
    checksums = layout.read_checksums(header)
    if header != layout.header(checksums):
        return "its header is damaged"
    if not check_pixels:
        return None
    damaged = _first_damaged(layout.map(path), checksums, layout.item_bytes, workers, on_item)
    return None if damaged is None else f"the pixels of item {damaged + 1} ({names[damaged]}) are damaged"


def in_order(function: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    """Results of function(0), function(1), ... in this order; threads work only a little ahead."""
    workers = max(1, workers)
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for position in range(count):
                ahead.append(pool.submit(function, position))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _build(
    path: Path,
    layout: CacheLayout,
    read_item: Callable[[int], np.ndarray],
    names: Sequence[Any],
    workers: int,
    on_item: Callable[[], None],
) -> None:
    with claimed(path, on_item) as file:
        if path.exists():  # another process may have built it while this one waited
            if find_problem(path, layout, names, workers=workers, on_item=on_item) is None:
                return
            file.remove_old()
        file.require_space(layout.num_bytes)
        log.info("decoding %d items into %s (%.1f MB)", layout.shape[0], path, layout.num_bytes / 1e6)
        checksums = np.zeros(layout.shape[0], np.uint32)
        with closing(in_order(read_item, layout.shape[0], workers)) as items:
            for position, item in enumerate(progress(items, layout.shape[0], "decoding", every=1000)):
                on_item()
                content = item.tobytes()
                checksums[position] = zlib.crc32(content)
                file.write(content, layout.start + position * layout.item_bytes)
        file.write(layout.header(checksums), 0)
        file.finish()


def _first_damaged(
    pixels: np.ndarray, checksums: np.ndarray, item_bytes: int, workers: int, on_item: Callable[[], None]
) -> int | None:
    num_items = len(pixels)
    step = max(1, _CHECK_BYTES // item_bytes)

    def damaged_in(part: int) -> list[int]:
        positions = range(part * step, min((part + 1) * step, num_items))
        return [position for position in positions if zlib.crc32(pixels[position]) != checksums[position]]

    with closing(in_order(damaged_in, -(-num_items // step), workers)) as parts:
        for damaged in parts:
            on_item()
            if damaged:
                return damaged[0]
    return None


def _decoder_versions() -> dict[str, Any]:
    # Other versions may give other pixels for the same file.
    libraries = {name: list(av.library_versions[name]) for name in ("libavcodec", "libswscale")}
    return {"av": av.__version__, "Pillow": PIL.__version__, "libjpeg": features.version("jpg"), **libraries}
