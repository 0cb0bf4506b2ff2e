"""What can be measured on a clip: likeness to its source, change from frame to frame, sharpness, contrast.

Every function is pure. A clip is uint8 (T, H, W, 3), an image uint8 (H, W, 3), RGB, 0..255. Brightness is ITU-R BT.601
luma (0.299 R + 0.587 G + 0.114 B), 0..255; "grey levels" are steps of that scale.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.registration import optical_flow_ilk

_LUMA = np.array((0.299, 0.587, 0.114), dtype=np.float32)
_MIN_CONTRAST = 1e-3  # grey levels; below it an image is one colour, up to rounding
# Of 224-pixel frames: shifts of 1 to 12 pixels are found within 10 % in about 20 ms a pair; at full size a pair takes
# 200 ms, and at a quarter of it shifts of 1 pixel read 14 % too large.
_FLOW_SIDE = 75
_FLOW_RADIUS = 7  # of the window in which the flow is constant
_FLOW_WARPS = 5


def compute_brightness(frames: np.ndarray) -> np.ndarray:
    """RGB (..., H, W, 3) -> brightness float32 (..., H, W), 0..255."""
    # Not a matrix product: BLAS threads would wait for one another, for up to 0.5 s a clip on a busy machine.
    brightness = frames[..., 0] * _LUMA[0]
    brightness += frames[..., 1] * _LUMA[1]
    brightness += frames[..., 2] * _LUMA[2]
    return brightness


def compute_psnr_db(pixels: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images, or of two clips as a whole; infinite where they are equal.

    10 log10(255^2 / mean squared error over all pixels and channels). Below about 20 dB two pictures differ plainly.

    Args:
        pixels, others: uint8 of one shape, (H, W, 3) or (T, H, W, 3).
    """
    error = pixels.astype(np.float32) - others.astype(np.float32)
    mean_square = float(np.mean(error * error, dtype=np.float64))
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf


def compute_ssim(image: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two images' brightness, -1..1; 1 is equal.

    As in Wang et al. 2004 (doi:10.1109/TIP.2003.819861): Gaussian window of 1.5 pixels, population covariance. Both
    sides must be at least 11 pixels.
    """
    return float(
        structural_similarity(
            compute_brightness(image),
            compute_brightness(other),
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def compute_correlation(image: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two images' brightness, -1..1; NaN where one of them is of one colour.

    A change of overall brightness or contrast leaves it as it is; white noise gives 0, within 0.02 at 224 x 224.
    """
    return correlate(compute_brightness(image), compute_brightness(other))


def correlate(brightness: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two brightness images float32 (H, W); NaN where one of them is of one colour."""
    one = brightness.ravel() - brightness.mean(dtype=np.float64)
    two = other.ravel() - other.mean(dtype=np.float64)
    product, square, other_square = (np.einsum("i,i->", *pair) for pair in ((one, two), (one, one), (two, two)))
    if min(square, other_square) < _MIN_CONTRAST**2 * one.size:
        return float("nan")
    return float(np.clip(product / np.sqrt(square * other_square), -1, 1))


def compute_gradient_energy(clip: np.ndarray) -> np.ndarray:
    """Sharpness of each frame, float (T,), in grey levels a pixel: mean |dI/dx| + mean |dI/dy| of the brightness.

    Forward differences of neighbouring pixels. A photograph has about 5 to 20; noise and harsh contrast have more. The
    published val clips have 11.1, 14.2 and 16.1 in their three frames.
    """
    brightness = compute_brightness(clip)
    across = np.abs(np.diff(brightness, axis=2)).mean(axis=(1, 2))
    down = np.abs(np.diff(brightness, axis=1)).mean(axis=(1, 2))
    return across + down


def compute_saturated_fraction(frames: np.ndarray) -> np.ndarray:
    """Share of the channel values at 0 or 255 in each frame: (..., H, W, 3) -> float (...), 0..1."""
    # A step down wraps 0 to 255 and takes 255 to 254: one comparison finds both.
    is_saturated = (frames - np.uint8(1)) >= np.uint8(254)
    size = frames.shape[-3] * frames.shape[-2] * frames.shape[-1]
    return np.count_nonzero(is_saturated, axis=(-3, -2, -1)) / size


def compute_contrast(clip: np.ndarray) -> np.ndarray:
    """Standard deviation of each frame's brightness, float (T,), grey levels, 0..127.5."""
    return compute_brightness(clip).std(axis=(1, 2), dtype=np.float64)


def compute_differences(clip: np.ndarray) -> np.ndarray:
    """Mean absolute difference of successive frames over all channels, float (T - 1,), grey levels, 0..255."""
    # The larger minus the smaller stays within uint8: four times as fast as a wider type.
    steps = [np.mean(np.maximum(one, two) - np.minimum(one, two)) for one, two in pairwise(clip)]
    return np.array(steps, dtype=np.float64)


def compute_flow_px(clip: np.ndarray) -> np.ndarray:
    """Mean length of the optical flow between successive frames, float (T - 1,), pixels of the clip a frame.

    Iterative Lucas-Kanade (Le Besnerais & Champagnat 2005, scikit-image's `optical_flow_ilk`) on frames reduced to 75
    pixels. Each frame's brightness is standardised first, so that a change of contrast is no motion. Shifts of 1 to
    12 pixels at 224 are found within about 10 %; a frame that is redrawn rather than moved gives a figure, too, so
    read it beside the correlation. NaN where a frame is of one colour. For the small, slow pictures that a small SVD
    learns from, `small_svd_data.measure_motion_px` is closer and 25 times as fast.
    """
    brightness = compute_brightness(clip)
    scale = max(1.0, max(brightness.shape[1:]) / _FLOW_SIDE)
    size = tuple(max(2, round(side / scale)) for side in brightness.shape[1:])
    reduced = [_reduce(frame, size) for frame in brightness]
    return np.array([_mean_flow(one, two) * scale for one, two in pairwise(reduced)])


def _reduce(brightness: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A brightness image (H, W) averaged down to `size` (height, width), with mean 0 and standard deviation 1."""
    reduced = np.asarray(Image.fromarray(brightness).resize(size[::-1], Image.Resampling.BOX))
    spread = reduced.std()
    return (reduced - reduced.mean()) / spread if spread > _MIN_CONTRAST else np.full_like(reduced, np.nan)


def _mean_flow(one: np.ndarray, two: np.ndarray) -> float:
    if np.isnan(one).any() or np.isnan(two).any():
        return float("nan")
    flow = optical_flow_ilk(one, two, radius=_FLOW_RADIUS, num_warp=_FLOW_WARPS, dtype=np.float32)  # (2, H, W)
    return float(np.hypot(*flow).mean())
