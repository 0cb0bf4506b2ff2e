"""The pixels of all items of an index as uint8 batches, from a cache, decoded on demand, or resident on the device.

A batch has the logical shape (B, 3, T, H, W) and lies in memory as (T, B, H, W, C), so that its frames as a batch of
channels_last images are a view: `clip.permute(2, 0, 1, 3, 4).reshape(T * B, 3, H, W)`. An image is an item with T = 1.
All pixels are numbered by frame (item i's frame t is i * T + t), and the views below only renumber: they copy nothing.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.file_hashes import known_hashes
from utils.indices import ItemIndex
from utils.loading import num_usable_cores
from utils.pixel_cache import CacheLayout, cache_key, open_cache

log = logging.getLogger(__name__)
_COPY_BYTES = 2**20  # less is not worth a thread
_LOAD_BYTES = 64 * 2**20  # what is shipped to the device at a time
Positions = torch.Tensor | Sequence[int]


class Pixels(ABC):
    """Items of equal shape.

    Attributes:
        item_shape: (T, H, W) of every item.
    """

    item_shape: tuple[int, int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    def gather(self, positions: Positions, generator: torch.Generator | None = None) -> torch.Tensor:
        """A batch: uint8 (B, 3, T, H, W), 0..255, in memory (T, B, H, W, C).

        The buffers take turns: a batch stays as it is until the next but one is gathered.

        Args:
            positions: which items, in which order; may repeat.
            generator: on the CPU, for pixels that are drawn (`Mixed`); the others take no notice of it.

        Raises:
            IndexError: there is no such item.
        """
        frames = self._gather_frames(self._frame_index(self._checked(positions)))
        return frames.permute(1, 4, 0, 2, 3)  # (T, B, H, W, C) -> (B, C, T, H, W)

    @abstractmethod
    def pin_buffers(self) -> None:
        """Gather into pinned memory from now on, from which a GPU copies without a detour."""

    @abstractmethod
    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        """The frames of items, by number: int64 (B,) -> int64 (T, B)."""

    @abstractmethod
    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        """Frames by number: int64 (T, B) -> uint8 (T, B, H, W, C), contiguous."""

    @abstractmethod
    def _moved_to(self, device: torch.device, on_item: Callable[[], None]) -> Pixels:
        """The same pixels, resident on a device."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """What they take when resident."""

    def _checked(self, positions: Positions) -> torch.Tensor:
        positions = torch.as_tensor(positions, dtype=torch.int64).cpu()
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise IndexError(f"positions must be in 0..{len(self) - 1}, not {positions.tolist()}")
        return positions


def open_pixels(
    index: ItemIndex,
    read_item: Callable[[Path], np.ndarray],
    *,
    item_shape: tuple[int, int, int],
    rule: str,
    cache_dir: Path | None,
    workers: int,
    on_item: Callable[[], None] | None = None,
    check_pixels: bool = True,
) -> Pixels:
    """The pixels of an index, from the cache in `cache_dir`, which is built where it is missing or does not fit.

    Args:
        read_item: decodes one file: uint8 (T, H, W, 3), RGB, 0..255.
        item_shape: (T, H, W) of every item.
        rule: how pixels come from a file, in words; another rule is another cache.
        cache_dir: None decodes on demand; so does a folder that cannot be written to, after one sentence.
        workers: threads that decode and check.
        on_item: called between items while files are hashed and the cache is checked or built.
        check_pixels: False takes the cache at its header's word: another process has just looked at every byte.

    Raises:
        InputError: a file that cannot be decoded, or has changed since it was first used; nothing is cached then.
    """
    decoded = DecodedPixels(index.paths, read_item, item_shape, workers)
    if cache_dir is None:
        return decoded
    on_item = on_item or _nothing
    with known_hashes(index, cache_dir, on_item=on_item) as hashes:
        layout = CacheLayout(cache_key(hashes, item_shape, rule), (len(index), *item_shape))
        options = {"workers": workers, "on_item": on_item, "check_pixels": check_pixels}
        items = open_cache(cache_dir, layout, decoded.read, index.paths, **options)
    return decoded if items is None else CachedPixels(items, workers)


def to_device(
    pixels: Pixels,
    device: torch.device,
    max_share_of_free_memory: float = 0.5,
    on_item: Callable[[], None] | None = None,
) -> Pixels:
    """The pixels resident on `device` where they fit into this share of its free memory, else as they are.

    Args:
        on_item: called between the parts that are shipped.
    """
    free_bytes, needed_mb = free_memory_bytes(device), pixels.num_bytes / 1e6
    if pixels.num_bytes > max_share_of_free_memory * free_bytes:
        log.info("pixels stay on the host: %.1f MB, %s has %.1f MB free", needed_mb, device, free_bytes / 1e6)
        return pixels
    log.info("pixels resident on %s: %.1f MB of %.1f MB free", device, needed_mb, free_bytes / 1e6)
    return pixels._moved_to(device, on_item or _nothing)


def free_memory_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Store(Pixels):
    """Pixels that lie somewhere; numbers are their own."""

    def __init__(self, num_items: int, item_shape: tuple[int, int, int]) -> None:
        self._num_items, self.item_shape = num_items, item_shape
        self._buffers = _Buffers()

    def pin_buffers(self) -> None:
        """As `Pixels.pin_buffers`; resident pixels have no use for it."""
        self._buffers.is_pinned = True

    def __len__(self) -> int:
        return self._num_items

    @property
    def num_bytes(self) -> int:
        """What they take when resident."""
        return self._num_items * int(np.prod(self.item_shape)) * 3

    def _frame_index(self, positions: torch.Tensor) -> torch.Tensor:
        num_frames = self.item_shape[0]
        return positions * num_frames + torch.arange(num_frames)[:, None]  # (B,) -> (T, B)

    def _moved_to(self, device: torch.device, on_item: Callable[[], None]) -> Pixels:
        num_frames, height, width = self.item_shape
        if device.type == "cuda":
            self.pin_buffers()
        frames = torch.empty(self._num_items * num_frames, height * width * 3, dtype=torch.uint8, device=device)
        for part in torch.arange(len(frames)).split(max(1, _LOAD_BYTES // frames.shape[1])):
            on_item()
            frames[part[0] : part[-1] + 1] = self._gather_frames(part[None]).flatten(2)[0]
        return ResidentPixels(frames, self.item_shape)


class CachedPixels(_Store):
    """Pixels of a memory-mapped cache: uint8 (N, T, H, W, 3).

    Args:
        workers: threads that copy; two are up to 1.6 times as fast as one, then the memory is the limit.
    """

    def __init__(self, items: np.ndarray, workers: int = 1) -> None:
        super().__init__(len(items), items.shape[1:4])
        self._frames = items.reshape(len(items) * items.shape[1], -1)
        self._threads = _Threads(workers)

    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        frames = self._buffers.next((*index.shape, *self.item_shape[1:], 3))
        numbers, out = index.flatten().numpy(), frames.view(-1, self._frames.shape[1]).numpy()
        step = max(1, -(-len(numbers) // self._threads.count), _COPY_BYTES // out.shape[1])

        def copy(start: int) -> None:
            part = slice(start, start + step)
            # "clip" writes straight into `out` (positions are checked before); "raise" would go through a copy.
            np.take(self._frames, numbers[part], axis=0, out=out[part], mode="clip")

        self._threads.run(copy, range(0, len(numbers), step))
        return frames


class DecodedPixels(_Store):
    """Pixels decoded from their files each time, in threads."""

    def __init__(
        self,
        paths: Sequence[Path],
        read_item: Callable[[Path], np.ndarray],
        item_shape: tuple[int, int, int],
        workers: int,
    ) -> None:
        super().__init__(len(paths), item_shape)
        self._paths, self._read_item = paths, read_item
        self._threads = _Threads(workers)

    def read(self, position: int) -> np.ndarray:
        """One item: uint8 (T, H, W, 3).

        Raises:
            InputError: the file cannot be decoded.
            ValueError: `read_item` gives another shape or type.
        """
        item = self._read_item(self._paths[position])
        if item.shape != (*self.item_shape, 3) or item.dtype != np.uint8:
            expected = (*self.item_shape, 3)
            raise ValueError(f"{self._paths[position]}: is {item.dtype} {item.shape}, expected uint8 {expected}")
        return item

    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        frames = self._buffers.next((*index.shape, *self.item_shape[1:], 3))
        flat, wanted = frames.view(-1, *frames.shape[2:]).numpy(), index.flatten().numpy()
        positions, item_of_frame = np.unique(wanted // self.item_shape[0], return_inverse=True)
        for number, item in enumerate(self._threads.run(self.read, positions.tolist())):
            places = np.flatnonzero(item_of_frame == number)
            flat[places] = item[wanted[places] % self.item_shape[0]]
        return frames


class ResidentPixels(_Store):
    """Pixels in the memory of a device: uint8 (N * T, H * W * 3)."""

    def __init__(self, frames: torch.Tensor, item_shape: tuple[int, int, int]) -> None:
        super().__init__(len(frames) // item_shape[0], item_shape)
        self._frames = frames

    def _gather_frames(self, index: torch.Tensor) -> torch.Tensor:
        chosen = self._frames.index_select(0, index.flatten().to(self._frames.device))
        return chosen.view(*index.shape, *self.item_shape[1:], 3)

    def _moved_to(self, device: torch.device, on_item: Callable[[], None]) -> Pixels:
        return ResidentPixels(self._frames.to(device), self.item_shape)


class _Threads:
    """Threads for the parts of a batch; made at first use, so that a process that forks before has none to lose."""

    def __init__(self, workers: int) -> None:
        self.count = max(1, min(workers, num_usable_cores()))
        self._pool: ThreadPoolExecutor | None = None

    def run(self, function: Callable[[int], Any], values: Sequence[int]) -> list[Any]:
        """Results in order; one alone is computed here."""
        if self.count == 1 or len(values) < 2:
            return [function(value) for value in values]
        self._pool = self._pool or ThreadPoolExecutor(self.count)
        return list(self._pool.map(function, values))


class _Buffers:
    """Two buffers that take turns, as large as the largest batch so far.

    Attributes:
        is_pinned: whether those that are made from now on are in pinned memory.
    """

    def __init__(self) -> None:
        self.is_pinned = False
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._turn = 0

    def next(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A buffer of this shape: not the one that was given last."""
        self._turn = 1 - self._turn
        num_bytes = int(np.prod(shape))
        if self._buffers[self._turn].numel() < num_bytes:
            self._buffers[self._turn] = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.is_pinned)
        return self._buffers[self._turn][:num_bytes].view(shape)


def _nothing() -> None: ...
