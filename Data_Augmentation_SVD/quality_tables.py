"""The tables of clip quality: one row per frame, one row per clip, and what they come to over all clips."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from Data_Augmentation_SVD.clip_checks import FAULTS, find_fault
from Data_Augmentation_SVD.clip_metrics import (
    compute_contrast,
    compute_correlation,
    compute_differences,
    compute_flow_px,
    compute_gradient_energy,
    compute_psnr_db,
    compute_saturated_fraction,
    compute_ssim,
)
from Data_Augmentation_SVD.quality_clips import LoadedClip
from Data_Augmentation_SVD.settings import CheckSettings
from utils.artifacts import STATUS_FAILED, STATUS_OK, STATUS_QUARANTINED, Column, Table
from utils.utils import MeanAggregator

FRAME_METRICS = (
    "psnr_db",
    "ssim",
    "source_correlation",
    "gradient_energy",
    "saturated_fraction",
    "contrast",
    "difference_from_previous",
    "flow_px",
)
CLIP_METRICS = (
    "psnr_db_mean",
    "ssim_mean",
    "source_correlation_min",
    "first_last_correlation",
    "gradient_energy_ratio",
    "saturated_fraction_max",
    "contrast_min",
    "difference_mean",
    "flow_px_mean",
)
MAX_PSNR_DB = 100.0  # in a table, for the infinite PSNR of equal images: a number keeps the means finite
LOW_CORRELATION = 0.5  # of the first with the last frame: below it the picture was redrawn rather than moved
_CLIP = (
    Column("video_path"),
    Column("item_id"),
    Column("label", "int", minimum=0),
    Column("class_name"),
)

CLIP_QUALITY = Table(
    "clip quality",
    (*_CLIP, Column("frame", "int", minimum=0), *(Column(name, "float", nullable=True) for name in FRAME_METRICS)),
    unique=("video_path", "frame"),
)
CLIP_SUMMARY = Table(
    "clip summary",
    (
        *_CLIP,
        Column("status", choices=(STATUS_OK, STATUS_FAILED, STATUS_QUARANTINED)),
        Column("reason"),
        Column("fault"),
        Column("rank", "int", nullable=True, minimum=1),
        Column("num_frames", "int", nullable=True, minimum=1),
        *(Column(name, "float", nullable=True) for name in CLIP_METRICS),
        Column("is_energy_rising", "int", nullable=True),
    ),
    unique=("video_path",),
)
_NOTHING = float("nan")


def compute_frame_rows(clip: LoadedClip) -> list[dict[str, Any]]:
    """Rows of `clip_quality.csv`, one per frame; none of a clip that cannot be decoded."""
    frames, view = clip.frames, clip.source_view
    if frames is None:
        return []
    differences, flows = compute_differences(frames), compute_flow_px(frames)
    metrics = {
        "psnr_db": [_NOTHING if view is None else min(MAX_PSNR_DB, compute_psnr_db(frame, view)) for frame in frames],
        "ssim": [_NOTHING if view is None else _ssim(frame, view) for frame in frames],
        "source_correlation": [_NOTHING if view is None else compute_correlation(frame, view) for frame in frames],
        "gradient_energy": compute_gradient_energy(frames),
        "saturated_fraction": compute_saturated_fraction(frames),
        "contrast": compute_contrast(frames),
        "difference_from_previous": [_NOTHING, *differences],
        "flow_px": [_NOTHING, *flows],
    }
    return [
        _clip_cells(clip) | {"frame": frame} | {name: float(values[frame]) for name, values in metrics.items()}
        for frame in range(len(frames))
    ]


def compute_clip_row(clip: LoadedClip, frame_rows: list[dict[str, Any]], checks: CheckSettings) -> dict[str, Any]:
    """A row of `clip_summary.csv`, without its rank among all clips."""
    row = _clip_cells(clip) | {"status": clip.status, "reason": clip.reason, "fault": "", "num_frames": None}
    row |= dict.fromkeys(CLIP_METRICS, _NOTHING) | {"is_energy_rising": None, "rank": None}
    if clip.frames is None:
        return row
    columns = {name: np.array([cells[name] for cells in frame_rows]) for name in FRAME_METRICS}
    energies = columns["gradient_energy"]
    return row | {
        "fault": find_fault(
            clip.frames,
            clip.source_view,
            num_frames=len(clip.frames),
            frame_size=clip.frames.shape[1],
            expects_motion=clip.listed.generator != "static",
            **checks.model_dump(),
        ),
        "num_frames": len(clip.frames),
        "psnr_db_mean": mean_of(columns["psnr_db"]),
        "ssim_mean": mean_of(columns["ssim"]),
        "source_correlation_min": min_of(columns["source_correlation"]),
        "first_last_correlation": compute_correlation(clip.frames[0], clip.frames[-1]),
        "gradient_energy_ratio": float(energies[-1] / energies[0]) if energies[0] else _NOTHING,
        "saturated_fraction_max": float(columns["saturated_fraction"].max()),
        "contrast_min": float(columns["contrast"].min()),
        "difference_mean": mean_of(columns["difference_from_previous"]),
        "flow_px_mean": mean_of(columns["flow_px"]),
        "is_energy_rising": int((np.diff(energies) > 0).all()) if len(energies) > 1 else None,
    }


def worst_first(clip_rows: list[dict[str, Any]]) -> list[int]:
    """Positions of the clips that could be measured: faulty ones first, then the least like their source.

    Where sources are not known, the least like their own first frame.
    """
    measured = [position for position, row in enumerate(clip_rows) if row["num_frames"]]

    def badness(position: int) -> tuple[bool, float, int]:
        row = clip_rows[position]
        likeness = row["source_correlation_min"]
        likeness = row["first_last_correlation"] if math.isnan(likeness) else likeness
        return not row["fault"], -1.0 if math.isnan(likeness) else likeness, position

    return sorted(measured, key=badness)


class FrameMeans:
    """The mean of every metric for every frame over all clips; keeps sums instead of rows."""

    def __init__(self) -> None:
        self._num_clips: Counter[int] = Counter()
        self._means: defaultdict[tuple[int, str], MeanAggregator] = defaultdict(MeanAggregator)

    def add(self, frame_rows: list[dict[str, Any]]) -> None:
        """Count one clip's rows; what is not known (NaN) is left out of the means."""
        for row in frame_rows:
            self._num_clips[row["frame"]] += 1
            for name in FRAME_METRICS:
                if not math.isnan(row[name]):
                    self._means[row["frame"], name].update(row[name], 1)

    def rows(self) -> list[dict[str, Any]]:
        """One row a frame: its number, how many clips have it, and the means."""
        return [
            {"frame": frame, "num_clips": self._num_clips[frame]}
            | {name: _rounded([self._means[frame, name].mean]) for name in FRAME_METRICS}
            for frame in sorted(self._num_clips)
        ]


def compute_summary(frame_means: FrameMeans, clip_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `summary.json` says: counts, shares, and the mean of every metric for every frame."""
    measured = [row for row in clip_rows if row["num_frames"]]
    moving = [row for row in measured if row["num_frames"] > 1]
    found = Counter(row["fault"].split(":")[0] for row in measured if row["fault"])
    correlations = [row["first_last_correlation"] for row in moving]
    return {
        "num_clips": len(clip_rows),
        "num_measured": len(measured),
        "num_not_measured": len(clip_rows) - len(measured),
        "num_with_source": sum(not math.isnan(row["psnr_db_mean"]) for row in measured),
        "num_faulty": sum(found.values()),
        "faults": {name: found[name] for name in FAULTS if found[name]},
        "energy_rising_fraction": _rounded(row["is_energy_rising"] for row in moving),
        "energy_last_above_first_fraction": _rounded(row["gradient_energy_ratio"] > 1 for row in moving),
        "low_first_last_correlation_fraction": _rounded(value < LOW_CORRELATION for value in correlations),
        "clip_means": {name: _rounded(row[name] for row in measured) for name in CLIP_METRICS},
        "frame_means": frame_means.rows(),
    }


def mean_of(values: Iterable[float]) -> float:
    """Mean of the values that are there; NaN where none is."""
    present = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else _NOTHING


def min_of(values: Iterable[float]) -> float:
    """Least of the values that are there; NaN where none is."""
    return min((float(value) for value in values if not math.isnan(value)), default=_NOTHING)


def _ssim(frame: np.ndarray, view: np.ndarray) -> float:
    return compute_ssim(frame, view) if min(frame.shape[:2]) >= 11 else _NOTHING


def _rounded(values: Iterable[float]) -> float | None:
    """The mean to 6 significant digits, as in the tables; None (null) where there is none."""
    mean = mean_of(values)
    return None if math.isnan(mean) else float(f"{mean:.6g}")


def _clip_cells(clip: LoadedClip) -> dict[str, Any]:
    listed = clip.listed
    return {name: getattr(listed, name) for name in ("video_path", "item_id", "label", "class_name")}
