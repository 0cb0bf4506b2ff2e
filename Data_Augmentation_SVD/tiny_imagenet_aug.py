"""The data set of the generation stage: images with the identity that their clips will carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Data_Sourcing.image_set import read_image_set
from utils.artifacts import ItemIndex
from utils.images import read_rgb_image
from utils.utils import derive_seed


@dataclass(frozen=True)
class SourceImage:
    """One image to make a clip of.

    Attributes:
        image: uint8 (H, W, 3), RGB, 0..255.
        source_path: as its index writes it.
        source_sha256: of the file; names the image in every later table.
    """

    image: np.ndarray
    label: int
    class_name: str
    wnid: str
    source_path: str
    source_sha256: str

    def clip_seed(self, run_seed: int) -> int:
        """The seed of this image's clip: from the run's seed and the content, so that no order changes it."""
        return derive_seed(run_seed, int(self.source_sha256, 16))


class TinyImageNetAug:
    """Source images of one split, decoded on access.

    Works on any image index, or on the raw Tiny ImageNet layout with a wnids file.
    """

    def __init__(self, data_root: Path, split: str, wnids_file: Path | None = None) -> None:
        self.index: ItemIndex = read_image_set(data_root, split, wnids_file)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> SourceImage:
        row = self.index.table.iloc[position]
        return SourceImage(
            image=read_rgb_image(self.index.paths[position]),
            label=int(row["label"]),
            class_name=row["class_name"],
            wnid=row["wnid"],
            source_path=row["image_path"],
            source_sha256=row["sha256"],
        )
