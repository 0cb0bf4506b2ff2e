"""Kinds of input a model can be scored on: each gives items, labels and stable ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from Baseline_VGG.tiny_imagenet import TinyImageNet
from Data_Sourcing.image_set import read_image_set
from Inflated_3D_VGG.video_dataset import VideoDataset
from Model_Evaluation.models import InputFormat
from Model_Evaluation.settings import DataSettings
from utils.indices import ItemIndex, locate_clip_index, read_clip_index

SPLIT = "val"


@dataclass(frozen=True)
class TestData:
    """Items to score: `data` yields (uint8 input, label); `index` has ids and classes in the same order."""

    __test__ = False  # not a pytest class

    data: Dataset
    index: ItemIndex
    name: str


class FirstFrames(Dataset):
    """Frame 0 of each clip as (uint8 (3, H, W), label)."""

    def __init__(self, clips: VideoDataset) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        clip, label = self._clips[position]
        return clip[:, 0], label  # (C, T, H, W) -> (C, H, W)


def build_original(data: DataSettings, form: InputFormat, num_classes: int | None) -> TestData:
    """The still images themselves."""
    index = read_image_set(data.images_root, SPLIT, data.wnids_file, num_classes=num_classes)
    return TestData(TinyImageNet(index, image_size=form.image_size), index, "original")


def build_first_frame(data: DataSettings, form: InputFormat, num_classes: int | None) -> TestData:
    """Frame 0 of the clips: what the paper scored its 2-D network on."""
    index = _read_clips(data, num_classes, data.num_frames)
    frames_in_clip = data.num_frames or _frames_of(index)
    clips = VideoDataset(index, num_frames=frames_in_clip, image_size=form.image_size)
    return TestData(FirstFrames(clips), index, index.clip_kind.replace("clip:", "first_frame:"))


def build_clip(data: DataSettings, form: InputFormat, num_classes: int | None) -> TestData:
    """The clips, all frames in order."""
    index = _read_clips(data, num_classes, form.num_frames)
    clips = VideoDataset(index, num_frames=form.num_frames, image_size=form.image_size)
    return TestData(clips, index, index.clip_kind)


INPUT_BUILDERS: dict[str, Callable[[DataSettings, InputFormat, int | None], TestData]] = {
    "original": build_original,
    "first_frame": build_first_frame,
    "clip": build_clip,
}


def _read_clips(data: DataSettings, num_classes: int | None, num_frames: int | None) -> ItemIndex:
    index_path, clips_root = locate_clip_index(data.root, data.val_csv, SPLIT)
    return read_clip_index(index_path, clips_root, num_classes=num_classes, num_frames=num_frames)


def _frames_of(index: ItemIndex) -> int | None:
    """Frames a clip, where the index says it; None lets the reader take what is there."""
    known = set(index.table["num_frames"].dropna()) if "num_frames" in index.table else set()
    return int(known.pop()) if len(known) == 1 else None
