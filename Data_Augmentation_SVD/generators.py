"""Clip generators: from still images to short clips. The registry, and the two controls without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from Data_Augmentation_SVD.geometry import Geometry
from Data_Augmentation_SVD.settings import GenerationSettings
from utils.errors import InputError


class ClipError(Exception):
    """This one image gave no usable clip; the message is the reason in its row.

    Attributes:
        draft: what there is of a clip that was made and is bad, to be kept for inspection; None where nothing is.
    """

    def __init__(self, reason: str, draft: Any = None) -> None:
        super().__init__(reason)
        self.draft = draft


_FATAL_MESSAGES = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cudnn", "NCCL", "MPS backend", "HIP error")


def is_fatal(error: Exception) -> bool:
    """Whether an error is of the machine or the run, so that no image must be given up for it."""
    if isinstance(error, (InputError, MemoryError, OSError)):
        return True
    module = type(error).__module__
    is_compiler = module.startswith(("torch._dynamo", "torch._inductor", "triton"))
    return is_compiler or type(error).__name__ == "AcceleratorError" or any(m in str(error) for m in _FATAL_MESSAGES)


class ClipGenerator(Protocol):
    """What the generation stage needs of a generator: three steps, of which the outer two may run beside the middle.

    Attributes:
        expects_motion: whether a clip that stands still is a fault.
    """

    expects_motion: bool

    def prepare(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> Any:
        """All that comes before the expensive step, for one chunk; another thread may run it ahead.

        Args:
            images: uint8 (H, W, 3), RGB, 0..255, each of its own size.
            seeds: one an image; all randomness comes from it.

        Raises:
            InputError: the device's memory is too small.
        """

    def generate(self, prepared: Any, should_stop: Callable[[], bool]) -> Iterator[Any]:
        """One draft an image, in order; a draft may be a `ClipError`. Ends early when asked to stop.

        Raises:
            InputError: the device's memory is too small.
        """

    def finish(self, draft: Any, image: np.ndarray) -> np.ndarray:
        """A draft -> uint8 (native_frames, frame_size, frame_size, 3), RGB, 0..255; cheap, in another thread.

        Raises:
            ClipError: this image gave no usable clip.
        """

    def describe(self) -> dict[str, Any]:
        """What computes, for the records: device, model revision; {} where nothing does."""


class StillImageGenerator:
    """What the two controls share: a draft is the seed, and all the work is in `finish`, on the CPU."""

    expects_motion = True

    def prepare(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[int]:
        """Nothing to prepare."""
        return list(seeds)

    def generate(self, prepared: list[int], should_stop: Callable[[], bool]) -> Iterator[int]:
        """The seeds, one by one."""
        for seed in prepared:
            if should_stop():
                return
            yield seed

    def describe(self) -> dict[str, Any]:
        """Nothing computes but Pillow."""
        return {}


class StaticGenerator(StillImageGenerator):
    """The image `num_frames` times: the control without motion."""

    expects_motion = False

    def __init__(self, *, num_frames: int, geometry: Geometry) -> None:
        self._num_frames, self._geometry = num_frames, geometry

    def finish(self, draft: int, image: np.ndarray) -> np.ndarray:
        """Repeat the image; the seed changes nothing."""
        return np.repeat(self._geometry.view(image)[None], self._num_frames, axis=0)


class CameraMotionGenerator(StillImageGenerator):
    """A pan in a random direction with a slow zoom; frame 0 is the image itself. The control "is any motion enough?".

    Frame t shows the image magnified by `zoom_per_frame ** t` around the centre and moved by `t * shift_fraction` of
    its side; beyond the border the border's pixels repeat.
    """

    def __init__(self, *, num_frames: int, geometry: Geometry, shift_fraction: float, zoom_per_frame: float) -> None:
        self._num_frames, self._geometry, self._frame_size = num_frames, geometry, geometry.frame_size
        self._shift_px, self._zoom = shift_fraction * geometry.frame_size, zoom_per_frame
        self.expects_motion = num_frames > 1 and (shift_fraction > 0 or zoom_per_frame != 1)

    def finish(self, draft: int, image: np.ndarray) -> np.ndarray:
        """Pan and zoom over one image, in the direction that the seed draws."""
        frame = self._geometry.view(image)
        dx, dy = self.displacement_px(draft)
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
    return StaticGenerator(num_frames=_num_native(settings), geometry=build_geometry(settings))


def _build_camera_motion(settings: GenerationSettings) -> ClipGenerator:
    return CameraMotionGenerator(
        num_frames=_num_native(settings), geometry=build_geometry(settings), **settings.camera_motion.model_dump()
    )


def _build_svd(settings: GenerationSettings) -> ClipGenerator:
    from Data_Augmentation_SVD.svd import SvdGenerator  # torch and diffusers, only when needed
    from Data_Augmentation_SVD.svd_weights import load_pipeline

    pipeline = load_pipeline(
        settings.diffusion_model, settings.device, settings.svd.dtype, revision=settings.model_revision
    )
    return SvdGenerator(
        pipeline,
        device=settings.device,
        geometry=build_geometry(settings),
        num_frames=_num_native(settings),
        batch_size=settings.batch_size,
        **settings.svd.model_dump(exclude={"dtype"}),
    )


def build_geometry(settings: GenerationSettings) -> Geometry:
    """The geometry of a run."""
    return Geometry(**settings.geometry.model_dump(), frame_size=settings.frame_size)


def _num_native(settings: GenerationSettings) -> int:
    return settings.native_frames or settings.num_frames


CLIP_GENERATORS: dict[str, Callable[[GenerationSettings], ClipGenerator]] = {
    "svd": _build_svd,
    "static": _build_static,
    "camera_motion": _build_camera_motion,
}
