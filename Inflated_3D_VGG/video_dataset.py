"""The 3-D network's data set: decoded clips with their labels."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from utils.indices import ItemIndex
from utils.sources import clip_files


class VideoDataset(Dataset):
    """Clips as (uint8 (3, T, image_size, image_size) RGB 0..255, label), the pixels that training sees.

    Args:
        index: from `utils.indices.read_clip_index`.
        num_frames: T; a clip with another number of frames is an error that names it. None takes what is there.
        image_size: the shorter side is scaled to it and the centre cropped, in pixels.
    """

    def __init__(self, index: ItemIndex, *, num_frames: int | None = 3, image_size: int = 224) -> None:
        self._files, self._labels = clip_files(index, num_frames, image_size), index.labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        frames = self._files.read(position)
        return torch.from_numpy(frames).permute(3, 0, 1, 2), self._labels[position]  # (T, H, W, C) -> (C, T, H, W)
