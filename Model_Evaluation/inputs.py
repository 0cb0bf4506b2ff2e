"""Kinds of input that any model can be scored on: which pixels make up an item, and in which order its frames come."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Data_Augmentation_SVD.geometry import Geometry
from Data_Sourcing.image_set import read_image_set
from Model_Evaluation.models import InputFormat
from Model_Evaluation.settings import DataSettings, InputKind
from utils.clips import read_clip
from utils.errors import InputError
from utils.images import read_rgb_image, resize_and_centre_crop
from utils.indices import ItemIndex, locate_clip_index, read_clip_index
from utils.pixel_views import Reordered
from utils.pixels import Pixels
from utils.sources import Files, clip_files, image_files, video_files
from utils.task_labels import TaskLabels, select_task

# The paper's way from an image to a frame, but for the generator between the two (paper, section 3.2).
PAPER_GEOMETRY = Geometry(height=576, width=1024, fit="stretch", output="centre_crop", frame_size=224)


@dataclass(frozen=True)
class TestData:
    """Items to score, in the order of their index.

    Attributes:
        index: ids, labels and classes.
        files: where the pixels come from.
        frame_order: int64 (N, T): which frames of its file each item shows, in this order.
        name: `test_input` in every table.
        is_fused: whether each frame is looked at by itself and the answers are averaged.
        num_views: of test-time augmentation; 1 is the item as it is.
        num_clips: clips that the frames make up, one after the other; their logits are averaged.
    """

    __test__ = False  # not a pytest class

    index: ItemIndex
    files: Files
    frame_order: np.ndarray
    name: str
    is_fused: bool
    num_views: int
    num_clips: int = 1

    @property
    def frames_there(self) -> int:
        """Frames of each file: of a clip, however many of them an item shows; 1 for images."""
        return self.files.item_shape[0]

    def open(self, cache_dir: Path | None, workers: int) -> Pixels:
        """The items' pixels; see `utils.pixels.open_pixels`."""
        return Reordered(self.files.open(cache_dir, workers, _nothing), self.frame_order)


def build_test_data(kind: InputKind, data: DataSettings, form: InputFormat, num_classes: int | None) -> TestData:
    """The items of one kind of input, as a network of this form is to see them.

    A network of clips sees a single picture repeated; a network of images sees the frames of a clip one by one, and
    its answers are averaged, whatever their order.

    Raises:
        InputError: data that are missing or do not fit.
    """
    if kind.uses_images:
        files, generator = _still_files(kind.base, data, form, num_classes), ""
    else:
        files = _clip_files(data, form, num_classes)
        generator = f":{files.index.clip_kind.removeprefix('clip:')}"
    order = _frame_order(kind, files, form)
    num_clips = _num_clips(kind, form)
    return TestData(
        index=files.index,
        files=files,
        frame_order=order,
        name=_name_of(kind, form, generator, data.task),
        is_fused=kind.base == "all_frames" or (form.num_frames is None and order.shape[1] > 1),
        num_views=kind.num_views,
        num_clips=num_clips,
    )


def shuffle_frames(item_id: str, num_frames: int) -> np.ndarray:
    """An order of frames other than their own, int64 (num_frames,); the same for an item in every run and model.

    Each of the other orders is as likely as any; a single frame has no other.
    """
    order, own = np.arange(num_frames), np.arange(num_frames)
    if num_frames < 2:
        return order
    for attempt in itertools.count():
        digest = hashlib.sha256(f"{attempt}:{item_id}".encode()).digest()
        order = np.random.default_rng(list(digest)).permutation(num_frames)
        if not np.array_equal(order, own):
            break
    return order


def _still_files(base: str, data: DataSettings, form: InputFormat, num_classes: int | None) -> Files:
    index = read_image_set(data.images_root, data.split, data.wnids_file, num_classes=num_classes)
    size = form.image_size
    if base == "original":
        return image_files(index, size)

    def read(path: Path) -> np.ndarray:
        image = read_rgb_image(path)
        frame = PAPER_GEOMETRY.restore(PAPER_GEOMETRY.fit_image(image), *image.shape[:2])
        return resize_and_centre_crop(frame, size)[None]  # (H, W, C) -> (1, H, W, C)

    rule = f"image, stretched to 576 x 1024, centre crop to 224 px, shorter side to {size} px, centre crop"
    return Files(index, read, (1, size, size), rule)


def _clip_files(data: DataSettings, form: InputFormat, num_classes: int | None) -> Files:
    index_path, clips_root = locate_clip_index(data.root, data.index_csv, data.split, data.clips_root)
    wanted = None if form.sampling else form.num_frames or data.num_frames
    index = read_clip_index(index_path, clips_root, num_classes=None if data.task else num_classes, num_frames=wanted)
    if data.task is not None:
        known = TaskLabels(tuple(form.tasks), form.tasks, np.empty((0, len(form.tasks)), dtype=np.int64))
        index = select_task(index, data.task, known)
    if form.sampling is not None:
        return video_files(index, form.sampling, form.image_size)
    return clip_files(index, wanted or _frames_of(index), form.image_size)


def _frames_of(index: ItemIndex) -> int:
    """Frames a clip, as the index says, or else as the first clip has."""
    known = set(index.table["num_frames"].dropna()) if "num_frames" in index.table else set()
    return int(known.pop()) if len(known) == 1 else len(read_clip(index.paths[0], None))


def _name_of(kind: InputKind, form: InputFormat, generator: str, task: str | None) -> str:
    """`clip:video`; with a sampling other than the training's `clip@dense5x2:video`; of one task `clip:video#mood`."""
    sampling = f"@{form.sampling_name}" if form.sampling_name and not kind.uses_images else ""
    return f"{kind.table_name}{sampling}{generator}{f'#{task}' if task else ''}"


def _frame_order(kind: InputKind, files: Files, form: InputFormat) -> np.ndarray:
    """int64 (N, T): frames of each file; of several windows one after the other, each in the same order."""
    sampling = None if kind.uses_images else form.sampling
    num_items, num_there = len(files.index), sampling.num_frames if sampling else files.item_shape[0]
    rule = _ORDERS.get(kind.base)
    if kind.base == "frame" and kind.frame >= num_there:
        raise InputError(
            f"input frame:{kind.frame}: the clips of {files.index.index_path} have {num_there} frames; the last is "
            f"frame:{num_there - 1}"
        )
    orders = [
        rule(item_id, num_there) if rule else np.array([kind.frame])
        for item_id in (files.index.item_ids if kind.base == "shuffled" else [""] * num_items)
    ]
    order = np.stack(orders).astype(np.int64)
    if order.shape[1] == 1 or kind.base == "static":
        order = order[:, :1].repeat(form.num_frames or 1, axis=1)
    if sampling is None:
        return order
    windows = range(sampling.num_clips) if _num_clips(kind, form) > 1 else [sampling.fixed_clip]
    return np.concatenate([order + window * sampling.num_frames for window in windows], axis=1)


def _num_clips(kind: InputKind, form: InputFormat) -> int:
    """Clips of an item that a network looks at: all windows of `dense` sampling, but of single frames."""
    is_dense = kind.base in _ORDERS and kind.base != "all_frames" and form.sampling is not None
    return form.sampling.num_clips if is_dense and form.sampling.method == "dense" else 1


_ORDERS: dict[str, Callable[[str, int], np.ndarray]] = {
    "clip": lambda _, num_frames: np.arange(num_frames),
    "all_frames": lambda _, num_frames: np.arange(num_frames),
    "static": lambda _, num_frames: np.zeros(num_frames),
    "reversed": lambda _, num_frames: np.arange(num_frames)[::-1],
    "shuffled": shuffle_frames,
}


def _nothing() -> None: ...
