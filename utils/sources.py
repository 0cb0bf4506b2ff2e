"""Where the items of a split come from, as a network sees them: files, frames of clips, or both mixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.clips import probe_video, read_clip, read_frames
from utils.errors import InputError
from utils.frame_sampling import FrameSampling
from utils.images import read_rgb_image, resize_and_centre_crop
from utils.indices import ItemIndex
from utils.pixel_views import AllFrames, DrawnFrames, Mixed, OneFrame
from utils.pixels import Pixels, open_pixels


class Source(ABC):
    """Items of one split as a network sees them.

    Attributes:
        index: what is held out and labelled.
        rows: int64, the index row of each item.
    """

    index: ItemIndex

    @property
    def rows(self) -> np.ndarray:
        """The index row of each item: one item a row."""
        return np.arange(len(self.index))

    @property
    def all_indices(self) -> tuple[ItemIndex, ...]:
        """Every index that pixels come from."""
        return (self.index,)

    @abstractmethod
    def open(
        self, cache_dir: Path | None, workers: int, on_item: Callable[[], None], check_pixels: bool = True
    ) -> Pixels:
        """The items' pixels, see `utils.pixels.open_pixels`; may decode all of them."""


@dataclass(frozen=True)
class Files(Source):
    """One item a file.

    Attributes:
        read_item: a file -> uint8 (T, H, W, 3).
        item_shape: (T, H, W); T is None where each clip is taken as long as it is, which `open` cannot.
        rule: how pixels come from a file, in words; another rule is another cache.
    """

    index: ItemIndex
    read_item: Callable[[Path], np.ndarray]
    item_shape: tuple[int | None, int, int]
    rule: str

    def read(self, position: int) -> np.ndarray:
        """One item, decoded now: uint8 (T, H, W, 3).

        Raises:
            InputError: its file cannot be decoded.
        """
        return self.read_item(self.index.paths[position])

    def open(
        self, cache_dir: Path | None, workers: int, on_item: Callable[[], None], check_pixels: bool = True
    ) -> Pixels:
        """As `Source.open`."""
        return open_pixels(
            self.index,
            self.read_item,
            item_shape=self.item_shape,
            rule=self.rule,
            cache_dir=cache_dir,
            workers=workers,
            on_item=on_item,
            check_pixels=check_pixels,
        )


@dataclass(frozen=True)
class FirstFrames(Source):
    """The first frame of each clip."""

    clips: Files

    @property
    def index(self) -> ItemIndex:
        """The clips'."""
        return self.clips.index

    def open(self, *args: Any) -> Pixels:
        """As `Source.open`."""
        return OneFrame(self.clips.open(*args), 0)


@dataclass(frozen=True)
class EveryFrame(Source):
    """All frames of each clip, each an item."""

    clips: Files

    @property
    def index(self) -> ItemIndex:
        """The clips'."""
        return self.clips.index

    @property
    def rows(self) -> np.ndarray:
        """The clip of each frame."""
        return np.repeat(np.arange(len(self.index)), self.clips.item_shape[0])

    def open(self, *args: Any) -> Pixels:
        """As `Source.open`."""
        return AllFrames(self.clips.open(*args))


@dataclass(frozen=True)
class SampledClips(Source):
    """Clips of frames that are drawn from each video anew in every epoch; always the same ones to choose an epoch."""

    files: Files
    sampling: FrameSampling

    @property
    def index(self) -> ItemIndex:
        """The videos'."""
        return self.files.index

    def open(self, *args: Any) -> Pixels:
        """As `Source.open`."""
        return DrawnFrames(self.files.open(*args), self.sampling)


@dataclass(frozen=True)
class MixedWithFrames(Source):
    """Images, each replaced with a probability by a random frame of one of its clips while training."""

    images: Files
    clips: Files
    clips_of_image: list[np.ndarray]
    probability: float

    @property
    def index(self) -> ItemIndex:
        """The images'."""
        return self.images.index

    @property
    def all_indices(self) -> tuple[ItemIndex, ...]:
        """The images' and the clips'."""
        return (self.images.index, self.clips.index)

    def open(self, *args: Any) -> Pixels:
        """As `Source.open`."""
        return Mixed(self.images.open(*args), self.clips.open(*args), self.clips_of_image, self.probability)


def image_files(images: ItemIndex, image_size: int) -> Files:
    """Images as items of one frame, the shorter side scaled to `image_size` pixels and the centre cropped."""

    def read(path: Path) -> np.ndarray:
        return resize_and_centre_crop(read_rgb_image(path), image_size)[None]  # (H, W, C) -> (1, H, W, C)

    rule = f"image, shorter side to {image_size} px, centre crop"
    return Files(images, read, (1, image_size, image_size), rule)


def clip_files(clips: ItemIndex, num_frames: int | None, image_size: int) -> Files:
    """Clips of `num_frames` frames (None: as many as there are), each scaled and cropped as an image is."""

    def read(path: Path) -> np.ndarray:
        return np.stack([resize_and_centre_crop(frame, image_size) for frame in read_clip(path, num_frames)])

    rule = f"clip of {num_frames} frames, shorter side to {image_size} px, centre crop"
    return Files(clips, read, (num_frames, image_size, image_size), rule)


def video_files(videos: ItemIndex, sampling: FrameSampling, image_size: int) -> Files:
    """Of each video the frames that a sampling may draw from, `(num_clips, num_frames)` of them one after the other.

    A video's length is what its index says, else it is decoded once more to count.
    """
    counted = videos.table["num_frames"] if "num_frames" in videos.table else [None] * len(videos)
    lengths = {path: count for path, count in zip(videos.paths, counted, strict=True) if not pd.isna(count)}

    def read(path: Path) -> np.ndarray:
        length = lengths.get(path) or probe_video(path).num_frames
        numbers = sampling.stored_frames(int(length)).flatten()
        return read_frames(path, numbers, lambda frame: resize_and_centre_crop(frame, image_size))

    rule = f"{sampling.rule}, shorter side to {image_size} px, centre crop"
    return Files(videos, read, (sampling.num_stored, image_size, image_size), rule)


def mix_with_frames(images: Files, clips: Files, probability: float) -> MixedWithFrames:
    """Images and the frames of the clips that were made from them.

    Raises:
        InputError: no clip names one of the images as its source.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    sources = clips.index.table.get("source_sha256", ())
    for row, source in enumerate(sources):
        if source:
            rows[source].append(row)
    clips_of_image = [np.array(rows.get(sha256, ()), dtype=np.int64) for sha256 in images.index.table["sha256"]]
    if not any(len(found) for found in clips_of_image):
        raise InputError(
            f"{clips.index.index_path}: no clip names an image of {images.index.index_path} as its source "
            "(source_sha256); use clips that were made from these images"
        )
    return MixedWithFrames(images, clips, clips_of_image, probability)
