"""Clip generators: from a still image to `num_frames` frames. The registry, and the two controls without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from Data_Augmentation_SVD.settings import CameraMotionSettings, GenerationSettings
from utils.images import resize_and_centre_crop


class ClipError(Exception):
    """This one image gave no usable clip; the message is the reason in its row."""


class ClipGenerator(Protocol):
    """What the generation stage needs of a generator."""

    def generate(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Make one clip.

        Args:
            image: uint8 (H, W, 3), RGB, 0..255.
            seed: all randomness comes from it.

        Returns:
            uint8 (num_frames, frame_size, frame_size, 3), RGB, 0..255.

        Raises:
            ClipError: no usable clip; the run goes on with the next image.
        """


class StaticGenerator:
    """The image `num_frames` times: the control without motion."""

    def __init__(self, *, num_frames: int, frame_size: int) -> None:
        self._num_frames, self._frame_size = num_frames, frame_size

    def generate(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Repeat the image; the seed changes nothing."""
        frame = resize_and_centre_crop(image, self._frame_size)
        return np.repeat(frame[None], self._num_frames, axis=0)


class CameraMotionGenerator:
    """A pan in a random direction with a slow zoom; frame 0 is the image itself. The control "is any motion enough?".

    Frame t shows the image magnified by `zoom_per_frame ** t` around the centre and moved by `t * shift_fraction` of
    its side; beyond the border the border's pixels repeat.
    """

    def __init__(self, *, num_frames: int, frame_size: int, shift_fraction: float, zoom_per_frame: float) -> None:
        self._num_frames, self._frame_size = num_frames, frame_size
        self._shift_px, self._zoom = shift_fraction * frame_size, zoom_per_frame

    def generate(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Pan and zoom over one image, in the direction that the seed draws."""
        frame = resize_and_centre_crop(image, self._frame_size)
        dx, dy = self.displacement_px(seed)
        return np.stack(
            [frame] + [self._move(frame, t * dx, t * dy, self._zoom**t) for t in range(1, self._num_frames)]
        )

    def displacement_px(self, seed: int) -> tuple[float, float]:
        """How far the content moves right and down from one frame to the next, in pixels of the saved frame."""
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
        return self._shift_px * float(np.cos(angle)), self._shift_px * float(np.sin(angle))

    def _move(self, frame: np.ndarray, dx: float, dy: float, zoom: float) -> np.ndarray:
        size, centre = self._frame_size, self._frame_size / 2
        # Output pixel x shows input x / zoom + left; the margin covers all that is looked at beyond the border.
        left, top = centre - (centre + dx) / zoom, centre - (centre + dy) / zoom
        beyond = max(0.0, -left, -top, left + size / zoom - size, top + size / zoom - size)
        margin = int(np.ceil(beyond)) + 2
        padded = Image.fromarray(np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        matrix = (1 / zoom, 0, left + margin, 0, 1 / zoom, top + margin)
        return np.asarray(padded.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _build_static(settings: GenerationSettings) -> ClipGenerator:
    return StaticGenerator(num_frames=settings.num_frames, frame_size=settings.frame_size)


def _build_camera_motion(settings: GenerationSettings) -> ClipGenerator:
    motion: CameraMotionSettings = settings.camera_motion
    return CameraMotionGenerator(
        num_frames=settings.num_frames,
        frame_size=settings.frame_size,
        shift_fraction=motion.shift_fraction,
        zoom_per_frame=motion.zoom_per_frame,
    )


def _build_svd(settings: GenerationSettings) -> ClipGenerator:
    from Data_Augmentation_SVD.svd import SvdGenerator, load_pipeline  # torch and diffusers, only when needed

    pipeline = load_pipeline(
        settings.diffusion_model, settings.device, settings.svd.dtype, cpu_offload=settings.svd.cpu_offload
    )
    knobs = settings.svd.model_dump(exclude={"dtype", "cpu_offload"})
    return SvdGenerator(pipeline, num_frames=settings.num_frames, frame_size=settings.frame_size, **knobs)


CLIP_GENERATORS: dict[str, Callable[[GenerationSettings], ClipGenerator]] = {
    "svd": _build_svd,
    "static": _build_static,
    "camera_motion": _build_camera_motion,
}
