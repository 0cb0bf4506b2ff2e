"""The 2-D network's data set: images of the 10-class Tiny ImageNet subset, or of any image index."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from utils.images import read_rgb_image, resize_and_centre_crop
from utils.indices import ItemIndex


class TinyImageNet(Dataset):
    """Images as (uint8 (3, image_size, image_size) RGB 0..255, label).

    Args:
        index: from `Data_Sourcing.image_set.read_image_set`.
        image_size: the shorter side is scaled to it and the centre cropped, in pixels.
    """

    def __init__(self, index: ItemIndex, *, image_size: int = 224) -> None:
        self._paths, self._labels, self._image_size = index.paths, index.labels, image_size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        image = resize_and_centre_crop(read_rgb_image(self._paths[position]), self._image_size)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), self._labels[position]  # (H, W, C) -> (C, H, W)
