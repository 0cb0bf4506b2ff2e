"""Whether a generated clip can count: cheap enough to look at every clip (about 1.5 ms for 3 x 224 x 224)."""

from __future__ import annotations

import numpy as np

from Data_Augmentation_SVD.clip_metrics import (
    compute_brightness,
    compute_differences,
    compute_saturated_fraction,
    correlate,
)

# What `find_fault` may find; each reason begins with one of these words and a colon.
FAULTS = ("shape", "not finite", "dtype", "black", "burnt", "frozen", "collapsed")


def find_fault(
    clip: np.ndarray,
    source_view: np.ndarray | None,
    *,
    num_frames: int,
    frame_size: int,
    min_source_correlation: float,
    max_saturated_fraction: float,
    min_contrast: float,
    min_motion: float,
    expects_motion: bool,
) -> str:
    """Why a clip cannot count, in one line that begins with one of `FAULTS`; "" where nothing is wrong.

    The thresholds are those of `CheckSettings`. Of the 500 published val clips 0.05 as the lowest source correlation
    refuses 25 (0: 17, 0.1: 37; most of them have lost their subject), 0.5 as the largest saturated share 2 of the
    same clips, and the others none: the least contrast is 23 grey levels, the least motion 0.9.

    Args:
        clip: uint8 (T, H, W, 3), RGB, 0..255; other types are faults.
        source_view: what a perfect generator would show, uint8 (H, W, 3) (`Geometry.view`); None where it is not
            known, which leaves out `collapsed`, and the source's own share in `black` and `burnt`.
        expects_motion: whether a clip that stands still is a fault.
    """
    if fault := _find_format_fault(clip, (num_frames, frame_size, frame_size, 3)):
        return fault
    brightness = compute_brightness(clip)
    view = None if source_view is None else compute_brightness(source_view)
    # A source that is nearly one colour cannot be expected to show contrast or motion.
    has_contrast = view is None or view.std() >= 2 * min_contrast
    # Black frames are saturated, still and unlike their source, too: the check that says most comes first.
    return (
        (has_contrast and _find_black(brightness, min_contrast))
        or _find_burnt(clip, source_view, max_saturated_fraction)
        or (has_contrast and expects_motion and _find_frozen(clip, min_motion))
        or (view is not None and _find_collapsed(brightness, view, min_source_correlation))
        or ""
    )


def _find_format_fault(clip: np.ndarray, shape: tuple[int, ...]) -> str:
    if clip.shape != shape:
        return f"shape: the clip is {_by(clip.shape)}, expected {_by(shape)} (frames x height x width x channels)"
    if np.issubdtype(clip.dtype, np.floating) and not np.isfinite(clip).all():
        share = 1 - np.isfinite(clip).mean()
        return f"not finite: {share:.1%} of the values are NaN or infinite"
    if clip.dtype != np.uint8:
        return f"dtype: the clip is {clip.dtype}, expected uint8"
    return ""


def _find_black(brightness: np.ndarray, min_contrast: float) -> str:
    contrasts = brightness.std(axis=(1, 2))
    frame = int(contrasts.argmin())
    if contrasts[frame] >= min_contrast:
        return ""
    return (
        f"black: frame {frame} is nearly one colour: contrast {contrasts[frame]:.2f} grey levels at brightness "
        f"{brightness[frame].mean():.0f}, less than min_contrast={min_contrast:g}"
    )


def _find_burnt(clip: np.ndarray, source_view: np.ndarray | None, max_saturated_fraction: float) -> str:
    own = 0.0 if source_view is None else float(compute_saturated_fraction(source_view))
    shares = compute_saturated_fraction(clip)
    frame = int(shares.argmax())
    if shares[frame] - own <= max_saturated_fraction:
        return ""
    return (
        f"burnt: {shares[frame]:.0%} of frame {frame} is at 0 or 255, and {own:.0%} of its source; that is more "
        f"than max_saturated_fraction={max_saturated_fraction:g} beyond it"
    )


def _find_frozen(clip: np.ndarray, min_motion: float) -> str:
    differences = compute_differences(clip)
    if not differences.size or differences.min() >= min_motion:
        return ""
    frame = int(differences.argmin())
    return (
        f"frozen: frames {frame} and {frame + 1} differ by {differences[frame]:.4f} grey levels, less than "
        f"min_motion={min_motion:g}"
    )


def _find_collapsed(brightness: np.ndarray, view: np.ndarray, min_source_correlation: float) -> str:
    if np.isnan(correlate(view, view)):  # a source of one colour is like nothing
        return ""
    # A frame of one colour has nothing of its source, either.
    correlations = np.nan_to_num([correlate(frame, view) for frame in brightness], nan=0.0)
    frame = int(correlations.argmin())
    if correlations[frame] >= min_source_correlation:
        return ""
    return (
        f"collapsed: frame {frame} correlates {correlations[frame]:.4f} with its source, less than "
        f"min_source_correlation={min_source_correlation:g}"
    )


def one_line(reason: object) -> str:
    """A reason or an error as a cell of a table shows it, without line breaks."""
    return " ".join(str(reason).split())


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
