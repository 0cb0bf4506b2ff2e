"""Geometry: an image into the generator's working size, and frames out of it again, with nothing bent on the way.

Every function is pure and works on uint8 (H, W, 3), RGB, 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.images import resize_and_centre_crop

_Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of what is looked at


@dataclass(frozen=True)
class Geometry:
    """From an image to the working size and from there to the saved frame.

    Attributes:
        height, width: working size in pixels.
        fit: `pad`, `crop` or `stretch`; see `GeometrySettings`.
        output: `undo` or `centre_crop`.
        frame_size: side of the saved, square frame in pixels.
    """

    height: int
    width: int
    fit: str
    output: str
    frame_size: int

    def fit_image(self, image: np.ndarray) -> np.ndarray:
        """An image of any size -> uint8 (height, width, 3): what the generator sees."""
        picture = Image.fromarray(image)
        if self.fit == "crop":
            box = self._visible_box(image.shape[0], image.shape[1])
            return np.asarray(picture.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box))
        if self.fit == "stretch":
            return np.asarray(picture.resize((self.width, self.height), Image.Resampling.BICUBIC))
        left, top, right, bottom = self._padded_box(image.shape[0], image.shape[1])
        inside = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC))
        # Border pixels, not black: a hard edge is something that the network animates.
        return np.pad(inside, ((top, self.height - bottom), (left, self.width - right), (0, 0)), mode="edge")

    def restore(self, frame: np.ndarray, source_height: int, source_width: int) -> np.ndarray:
        """A generated frame uint8 (height, width, 3) -> the saved frame uint8 (frame_size, frame_size, 3).

        Args:
            source_height, source_width: size of the image that was fitted; `undo` gives the frame its proportions.
                What is not square then is cropped in the centre, never bent.
        """
        if self.output == "centre_crop" or self.fit == "crop":
            return resize_and_centre_crop(frame, self.frame_size)
        if self.fit == "pad":
            left, top, right, bottom = self._padded_box(source_height, source_width)
            return resize_and_centre_crop(frame[top:bottom, left:right], self.frame_size)
        # Undo the stretch and crop the centre in one step: the box is the source's central square in the frame.
        side = min(source_height, source_width)
        half_width = self.width * side / source_width / 2
        half_height = self.height * side / source_height / 2
        centre_x, centre_y = self.width / 2, self.height / 2
        box = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
        size = (self.frame_size, self.frame_size)
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box))

    def view(self, image: np.ndarray) -> np.ndarray:
        """What a perfect generator would save as frame 0: uint8 (frame_size, frame_size, 3)."""
        return self.restore(self.fit_image(image), image.shape[0], image.shape[1])

    def visible_fraction(self, source_height: int, source_width: int) -> float:
        """Share of the source's area that the saved frame shows; the rest was cropped away."""
        square = min(source_height, source_width) / max(source_height, source_width)
        if self.output == "undo" and self.fit != "crop":
            return square
        crop_x, crop_y = 1.0, 1.0  # visible shares of the working frame's sides
        if self.width > self.height:
            crop_x = self.height / self.width
        else:
            crop_y = self.width / self.height
        if self.fit == "stretch":
            return crop_x * crop_y
        if self.fit == "pad":
            left, top, right, bottom = self._padded_box(source_height, source_width)
            inside_x, inside_y = (right - left) / self.width, (bottom - top) / self.height
            return min(crop_x / inside_x, 1.0) * min(crop_y / inside_y, 1.0)
        left, top, right, bottom = self._visible_box(source_height, source_width)
        return (right - left) * (bottom - top) / (source_width * source_height) * crop_x * crop_y

    def _visible_box(self, source_height: int, source_width: int) -> _Box:
        """The central part of a source that has the working size's proportions."""
        scale = max(self.width / source_width, self.height / source_height)
        half_width, half_height = self.width / scale / 2, self.height / scale / 2
        centre_x, centre_y = source_width / 2, source_height / 2
        return (
            max(0.0, centre_x - half_width),
            max(0.0, centre_y - half_height),
            min(float(source_width), centre_x + half_width),
            min(float(source_height), centre_y + half_height),
        )

    def _padded_box(self, source_height: int, source_width: int) -> tuple[int, int, int, int]:
        """Where a padded source lies in the working frame, in whole pixels."""
        scale = min(self.width / source_width, self.height / source_height)
        inside_width = min(self.width, max(1, round(source_width * scale)))
        inside_height = min(self.height, max(1, round(source_height * scale)))
        left, top = (self.width - inside_width) // 2, (self.height - inside_height) // 2
        return left, top, left + inside_width, top + inside_height
