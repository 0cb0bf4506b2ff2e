"""The 3-D network's data set: decoded clips with their labels."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.clips import read_clip
from utils.images import resize_and_centre_crop
from utils.indices import ItemIndex


class VideoDataset(Dataset):
    """Clips as (uint8 (3, T, image_size, image_size) RGB 0..255, label).

    Args:
        index: from `utils.indices.read_clip_index`.
        num_frames: T; a clip with another number of frames is an error that names it. None takes what is there.
        image_size: the shorter side is scaled to it and the centre cropped, in pixels.
    """

    def __init__(self, index: ItemIndex, *, num_frames: int | None = 3, image_size: int = 224) -> None:
        self._paths, self._labels = index.paths, index.labels
        self._num_frames, self._image_size = num_frames, image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        frames = read_clip(self._paths[position], self._num_frames)
        frames = np.stack([resize_and_centre_crop(frame, self._image_size) for frame in frames])
        return torch.from_numpy(frames).permute(3, 0, 1, 2), self._labels[position]  # (T, H, W, C) -> (C, T, H, W)
