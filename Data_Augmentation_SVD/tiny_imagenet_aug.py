"""The data set of the generation stage: images with the identity that their clips will carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Data_Sourcing.image_set import read_image_set
from utils.images import ImageError, read_rgb_image
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

    def clip_seed(self, run_seed: int, clip_number: int = 0, attempt: int = 0) -> int:
        """The seed of a clip: from the run's seed, the image's content and the clip's number, so that no order matters.

        Args:
            clip_number: which of the image's clips.
            attempt: how many clips of this number were rejected before.
        """
        # The first clip's seed is that of a run with one clip an image: more clips an image only add some.
        further = (clip_number, attempt) if attempt else (clip_number,) if clip_number else ()
        return derive_seed(run_seed, int(self.source_sha256, 16), *further)


class TinyImageNetAug:
    """Images of one split, decoded on access, with the `sources` their clips will name.

    Works on any image index, or on the raw Tiny ImageNet layout with a wnids file.

    Attributes:
        first_position: where these images begin in the split, of which they may be a part.
        num_total: images of the whole split.
    """

    def __init__(
        self, data_root: Path, split: str, wnids_file: Path | None = None, shard: tuple[int, int] = (1, 1)
    ) -> None:
        index = read_image_set(data_root, split, wnids_file, shard=shard)
        self._paths = index.paths
        columns = ("label", "class_name", "wnid", "image_path", "sha256")
        self.sources = [Source(*row) for row in zip(*(index.table[name].tolist() for name in columns), strict=True)]
        self.first_position, self.num_total = index.first_position, index.num_total

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> np.ndarray:
        """One image: uint8 (H, W, 3), RGB, 0..255.

        Raises:
            ImageError: it cannot be decoded; names the image as its index does.
        """
        path = self._paths[position]
        try:
            return read_rgb_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), self.sources[position].source_path)) from None
