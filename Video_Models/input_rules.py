"""What clips a network can take: how many frames, which sizes; and how a clip with fewer frames is repeated to fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class FrameRule:
    """How many frames a network takes; the default takes any number.

    Attributes:
        minimum: fewest frames it can take.
        multiple_of: the number must be a multiple; a network that reads frames in tubes of 2 drops an odd last one.
    """

    minimum: int = 1
    multiple_of: int = 1

    def num_repeated(self, num_frames: int) -> int:
        """The smallest number of frames the network takes that is no less than `num_frames`.

        Raises:
            ValueError: `num_frames` is not positive.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; a clip has at least one frame")
        return _next_multiple(max(num_frames, self.minimum), self.multiple_of)

    def repeat(self, num_frames: int) -> np.ndarray:
        """Which frame of a clip of T each frame of the network's input is: index floor(i * T / T').

        T' is `num_repeated(T)`. Every frame is there at least once and all stay in order; a clip that fits is as it is.

        Returns:
            int64 (T',), values 0..T-1, ascending.

        Raises:
            ValueError: as `num_repeated`.
        """
        repeated = self.num_repeated(num_frames)
        return np.arange(repeated, dtype=np.int64) * num_frames // repeated


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Which square sizes a network takes, in pixels; the default takes any.

    Attributes:
        minimum: smallest height and width.
        multiple_of: the size must be a multiple; a network that cuts patches of 16 drops what is left at the border.
    """

    minimum: int = 1
    multiple_of: int = 1

    def check(self, image_size: int) -> None:
        """Refuse a size the network cannot take.

        Raises:
            ValueError: one sentence with the nearest size that fits.
        """
        if image_size >= self.minimum and image_size % self.multiple_of == 0:
            return
        nearest = _next_multiple(max(image_size, self.minimum), self.multiple_of)
        multiples = f" in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        raise ValueError(
            f"image_size is {image_size}, but this network takes {self.smallest} pixels or more{multiples}; "
            f"use {nearest}"
        )

    @property
    def smallest(self) -> int:
        """The smallest size the network takes, in pixels."""
        return _next_multiple(self.minimum, self.multiple_of)


def _next_multiple(least: int, of: int) -> int:
    return -(-least // of) * of
