"""Training samples for a small SVD: frames at a random stride, with the motion and frame rate that the network is told.

A batch is a function of (seed, stage, step) alone, so that a resumed training sees what the uninterrupted one would.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.clips import read_clip
from utils.errors import InputError
from utils.images import resize_and_centre_crop
from utils.indices import ItemIndex
from utils.utils import derive_seed, progress

log = logging.getLogger(__name__)
REFERENCE_FPS = 7  # the pipeline's default
MAX_BUCKET = 255


def measure_motion_px(before: np.ndarray, after: np.ndarray) -> float:
    """Mean motion from one frame to the next in pixels, by least squares in windows (Lucas & Kanade 1981).

    Each of 3 x 3 overlapping windows of half the image's side has one motion d that explains its change of brightness
    best: A d = -b, A the sum of grad grad^T and b that of grad I_t. The result is the mean of |d|, weighted with what
    there is to see in each window (trace A). Right for motion up to about the size of the structures.

    Not `clip_metrics.compute_flow_px`, which finds any motion of full-size frames, whatever their contrast: digits of
    64 pixels that move by 0.25 to 3 pixels are measured within 6 % here and 3 to 10 % too slow there, in 0.3 ms a pair
    instead of 7; at 224 pixels a shift of 6 is read as 7.2 here. The embedded checkpoint was told these figures.

    Args:
        before, after: uint8 (H, W, 3).
    """
    first, second = (frame.mean(axis=2, dtype=np.float64) for frame in (before, after))
    down, right = np.gradient((first + second) / 2)
    change = second - first
    products = np.stack([right * right, right * down, down * down, right * change, down * change])
    xx, xy, yy, xt, yt = (_sum_windows(product) for product in products)  # each (3, 3)
    trace = xx + yy
    if not trace.any():
        return 0.0
    damping = 1e-3 * trace.max()  # of windows without structure, and of edges along themselves
    determinant = (xx + damping) * (yy + damping) - xy * xy
    dx, dy = ((yy + damping) * xt - xy * yt) / determinant, ((xx + damping) * yt - xy * xt) / determinant
    return float((np.hypot(dx, dy) * trace).sum() / trace.sum())


def _sum_windows(values: np.ndarray) -> np.ndarray:
    """Sums over windows of half the side, a quarter apart: (H, W) -> (3, 3)."""
    height, width = (side // 4 for side in values.shape)
    quarters = values[: 4 * height, : 4 * width].reshape(4, height, 4, width).sum(axis=(1, 3))
    return quarters[:-1, :-1] + quarters[:-1, 1:] + quarters[1:, :-1] + quarters[1:, 1:]


def motion_bucket_id(motion_px: float, fps: float, full_motion_px: float) -> int:
    """What the network is told of a sample's motion: 0 stands still, 255 is the fastest.

    Proportional to the speed in pixels a second, so that a higher frame rate with the same bucket means less motion
    from frame to frame.

    Args:
        motion_px: mean motion from frame to frame.
        fps: the frame rate that is told with it.
        full_motion_px: the motion that is told as 255 at 7 frames a second.
    """
    return min(MAX_BUCKET, round(MAX_BUCKET * motion_px * fps / (REFERENCE_FPS * full_motion_px)))


@dataclass(frozen=True)
class SurveyedClips:
    """Clips that have been read once: all long and large enough.

    Attributes:
        paths: one file a clip.
        motions_px: for each clip, the motion from each frame to the next, float (T - 1,).
        frames: of each clip, uint8 (T, image_size, image_size, 3); None where there was no memory for it.
        image_size: side of the frames.
    """

    paths: list[Path]
    motions_px: list[np.ndarray]
    frames: list[np.ndarray | None]
    image_size: int

    def read(self, position: int) -> np.ndarray:
        """One clip's frames, uint8 (T, image_size, image_size, 3)."""
        frames = self.frames[position]
        return read_frames(self.paths[position], self.image_size) if frames is None else frames


def survey_clips(index: ItemIndex, *, image_size: int, num_frames: int, cache_mb: int = 0) -> SurveyedClips:
    """Read every clip once, before the training: is it whole, and how much moves in it?

    Args:
        cache_mb: memory for decoded clips.

    Raises:
        InputError: a clip that cannot be decoded, has too few frames, or is smaller than the training frames.
    """
    motions_px, kept, free_bytes = [], [], cache_mb * 2**20
    for path in progress(index.paths, len(index), "reading clips", every=1000):
        frames = read_frames(path, image_size)
        if len(frames) < num_frames:
            raise InputError(
                f"{path}: has {len(frames)} frames, num_frames={num_frames} needs at least as many; lower num_frames, "
                "or make longer clips with Data_Augmentation_SVD"
            )
        motions_px.append(np.array([measure_motion_px(a, b) for a, b in pairwise(frames)]))
        free_bytes -= frames.nbytes
        kept.append(frames if free_bytes >= 0 else None)
    low, median, high = np.quantile([motions.mean() for motions in motions_px], (0.05, 0.5, 0.95))
    log.info("%d clips, motion %.2f px a frame (5 %%: %.2f, 95 %%: %.2f)", len(index), median, low, high)
    return SurveyedClips(index.paths, motions_px, kept, image_size)


def read_frames(path: Path, image_size: int) -> np.ndarray:
    """A clip at the training size: uint8 (T, image_size, image_size, 3).

    Raises:
        InputError: not a video, or smaller than `image_size`.
    """
    frames = read_clip(path)
    height, width = frames.shape[1:3]
    if min(height, width) < image_size:
        raise InputError(
            f"{path}: is {height} x {width} pixels, smaller than image_size={image_size}; lower image_size, or make "
            "larger clips with Data_Augmentation_SVD"
        )
    return np.stack([resize_and_centre_crop(frame, image_size) for frame in frames])


@dataclass(frozen=True)
class ClipBatches(Dataset):
    """Item `step` is a batch: frames uint8 (B, T, 3, H, W); fps, motion_bucket_id, noise_aug_strength float32 (B,).

    Attributes:
        latents: of each clip, (T, C, h, w); a batch then has those of its frames, too: (B, T, C, h, w).
        stage: a number of its own for each stage of the training, so that no stream is used twice.
        max_stride, still_fraction, full_motion_px, fps_range, noise_aug_log_mean, noise_aug_log_std: see
            `SmallSvdSettings`.
    """

    clips: SurveyedClips
    batch_size: int
    num_frames: int
    seed: int
    stage: int
    max_stride: int
    still_fraction: float
    full_motion_px: float
    fps_range: tuple[int, int]
    noise_aug_log_mean: float
    noise_aug_log_std: float
    latents: list[torch.Tensor] | None = None

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of one step."""
        rng = np.random.default_rng(derive_seed(self.seed, self.stage, step))
        samples = [self._draw_sample(rng) for _ in range(self.batch_size)]
        strengths = np.exp(rng.normal(self.noise_aug_log_mean, self.noise_aug_log_std, self.batch_size))
        positions, numbers, fps, buckets = zip(*samples, strict=True)
        frames = np.stack([self.clips.read(one)[kept] for one, kept in zip(positions, numbers, strict=True)])
        batch = {
            "frames": torch.from_numpy(frames).permute(0, 1, 4, 2, 3),  # (B, T, H, W, 3) -> (B, T, 3, H, W)
            "fps": torch.tensor(fps, dtype=torch.float32),
            "motion_bucket_id": torch.tensor(buckets, dtype=torch.float32),
            "noise_aug_strength": torch.from_numpy(strengths.astype(np.float32)),
        }
        if self.latents is not None:
            batch["latents"] = torch.stack(
                [self.latents[one][kept] for one, kept in zip(positions, numbers, strict=True)]
            )
        return batch

    def _draw_sample(self, rng: np.random.Generator) -> tuple[int, np.ndarray, int, int]:
        """A clip's position, the numbers of the frames to take, and the frame rate and motion bucket to tell."""
        position = int(rng.integers(len(self.clips.paths)))
        motions_px = self.clips.motions_px[position]
        steps, last_number = self.num_frames - 1, len(motions_px)
        stride = int(rng.integers(1, min(self.max_stride, last_number // steps) + 1))
        first = int(rng.integers(last_number + 1 - steps * stride))
        if rng.random() < self.still_fraction:
            stride = 0
        motion_px = float(motions_px[first : first + steps * stride].sum()) / steps
        fps = self._draw_fps(motion_px, rng)
        numbers = first + stride * np.arange(self.num_frames)
        return position, numbers, fps, motion_bucket_id(motion_px, fps, self.full_motion_px)

    def _draw_fps(self, motion_px: float, rng: np.random.Generator) -> int:
        """A frame rate, low enough that the motion still fits below bucket 255 where that is possible."""
        lowest, highest = self.fps_range
        fitting = int(REFERENCE_FPS * self.full_motion_px / motion_px) if motion_px > 0 else highest
        return int(rng.integers(lowest, max(lowest, min(highest, fitting)) + 1))
