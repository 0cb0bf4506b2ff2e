"""What a small SVD makes of clips' first frames: the figures that tell whether it has learned, and a picture."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

from Data_Augmentation_SVD.clip_metrics import compute_psnr_db
from Data_Augmentation_SVD.small_svd_data import measure_motion_px
from utils.files import write_bytes
from utils.images import encode_png

log = logging.getLogger(__name__)
_BUCKETS = (40, 127, 215)  # slow, the pipeline's default, fast
_NUM_STEPS = 12


def generate_clips(
    pipeline: StableVideoDiffusionPipeline, images: list[np.ndarray], *, num_frames: int, seed: int = 0, **knobs: float
) -> np.ndarray:
    """Clips of square images with the plain pipeline, one noise generator an image: uint8 (N, T, H, W, 3).

    Args:
        images: uint8 (H, W, 3), all of one size, a multiple of 64.
        knobs: motion_bucket_id, fps, num_inference_steps, ... of the pipeline's call.
    """
    height, width = images[0].shape[:2]
    clips = pipeline(
        [Image.fromarray(image) for image in images],
        height=height,
        width=width,
        num_frames=num_frames,
        decode_chunk_size=num_frames,
        generator=[torch.Generator().manual_seed(seed + position) for position in range(len(images))],
        output_type="np",
        **{"num_inference_steps": _NUM_STEPS, **knobs},
    ).frames
    return np.round(np.asarray(clips) * 255).astype(np.uint8)


def measure_clip_motion_px(clip: np.ndarray) -> float:
    """Mean motion of a clip uint8 (T, H, W, 3) in pixels a frame."""
    return float(np.mean([measure_motion_px(a, b) for a, b in pairwise(clip)]))


def measure_and_draw(
    pipeline: StableVideoDiffusionPipeline, sources: list[np.ndarray], path: Path, *, num_frames: int, seed: int
) -> None:
    """Log PSNR and motion for three motion buckets, and draw each source beside its frames.

    Args:
        sources: uint8 (H, W, 3), all of one size.
        path: of the PNG: a row an image; source, then the frames of each bucket, slow to fast.
    """
    columns = [np.stack(sources)[:, None]]
    for bucket in _BUCKETS:
        made = generate_clips(pipeline, sources, num_frames=num_frames, seed=seed, motion_bucket_id=bucket)
        psnr_db = np.mean([compute_psnr_db(clip[0], source) for clip, source in zip(made, sources, strict=True)])
        motion_px = np.mean([measure_clip_motion_px(clip) for clip in made])
        log.info("motion bucket %d: frame 0 at %.1f dB of its image, %.2f px a frame", bucket, psnr_db, motion_px)
        columns.append(made)
    frames = np.concatenate(columns, axis=1)  # (N, 1 + 3 T, H, W, 3)
    sheet = np.concatenate(np.concatenate(frames.transpose(1, 0, 2, 3, 4), axis=2), axis=0)  # (N H, (1 + 3 T) W, 3)
    write_bytes(path, encode_png(Image.fromarray(sheet)))
