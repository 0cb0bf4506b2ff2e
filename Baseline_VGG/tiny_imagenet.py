"""The 2-D network's data set: images of the 10-class Tiny ImageNet subset, or of any image index."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from utils.indices import ItemIndex
from utils.sources import image_files


class TinyImageNet(Dataset):
    """Images as (uint8 (3, image_size, image_size) RGB 0..255, label), the pixels that training sees.

    Args:
        index: from `Data_Sourcing.image_set.read_image_set`.
        image_size: the shorter side is scaled to it and the centre cropped, in pixels.
    """

    def __init__(self, index: ItemIndex, *, image_size: int = 224) -> None:
        self._files, self._labels = image_files(index, image_size), index.labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        image = self._files.read(position)[0]
        return torch.from_numpy(image.copy()).permute(2, 0, 1), self._labels[position]  # (H, W, C) -> (C, H, W)
