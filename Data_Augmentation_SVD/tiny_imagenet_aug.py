"""The data set of the generation stage: images with the identity that their clips will carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Data_Sourcing.image_set import read_image_set
from utils.images import read_rgb_image
from utils.utils import derive_seed


@dataclass(frozen=True)
class Source:
    """Where a clip comes from; the fields are columns of the clip index.

    Attributes:
        source_path: as its index writes it.
        source_sha256: of the image file; names the image in every later table.
    """

    label: int
    class_name: str
    wnid: str
    source_path: str
    source_sha256: str

    def clip_seed(self, run_seed: int) -> int:
        """The seed of this image's clip: from the run's seed and the content, so that no order changes it."""
        return derive_seed(run_seed, int(self.source_sha256, 16))


class TinyImageNetAug:
    """Images of one split, decoded on access, with the `sources` their clips will name.

    Works on any image index, or on the raw Tiny ImageNet layout with a wnids file.
    """

    def __init__(self, data_root: Path, split: str, wnids_file: Path | None = None) -> None:
        index = read_image_set(data_root, split, wnids_file)
        self._paths = index.paths
        columns = ("label", "class_name", "wnid", "image_path", "sha256")
        self.sources = [Source(*row) for row in zip(*(index.table[name].tolist() for name in columns), strict=True)]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> np.ndarray:
        """One image: uint8 (H, W, 3), RGB, 0..255.

        Raises:
            InputError: it cannot be decoded.
        """
        return read_rgb_image(self._paths[position])
