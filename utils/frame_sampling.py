"""Which frames of a video a clip takes: `uniform`, `random` or `dense`; whole-number arithmetic, so always the same.

A video is decoded once, and what any epoch may draw is stored then: K x T frame numbers an item (`stored_frames`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METHODS = ("uniform", "random", "dense")


@dataclass(frozen=True)
class FrameSampling:
    """How T frames are taken from the N of a video.

    Attributes:
        method: `uniform`: the centre of each of T equal segments. `random`: K candidates in each of T equal segments,
            of which training draws one a segment (Temporal Segment Networks, Wang et al. 2016). `dense`: K windows of
            T frames in sequence, of which training draws one and testing averages all (Carreira & Zisserman 2017).
        num_frames: T.
        frame_interval: `dense` takes every so-manieth frame.
        num_clips: K; `uniform` has one.
    """

    method: str
    num_frames: int
    frame_interval: int = 1
    num_clips: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown sampling method {self.method!r}; known: {', '.join(METHODS)}")
        for name in ("num_frames", "frame_interval", "num_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.method != "dense" and self.frame_interval != 1:
            raise ValueError(
                f"frame_interval={self.frame_interval} needs method 'dense', not {self.method!r}; set it 1"
            )
        if self.method == "uniform" and self.num_clips != 1:
            raise ValueError(f"num_clips={self.num_clips} needs method 'random' or 'dense', not 'uniform'; set it to 1")

    @property
    def num_stored(self) -> int:
        """Frames that are kept of an item: K * T."""
        return self.num_clips * self.num_frames

    @property
    def fixed_clip(self) -> int:
        """The candidate or window that scoring takes where nothing is drawn: the middle one, K // 2."""
        return self.num_clips // 2

    @property
    def span(self) -> int:
        """Frames of the video that one window covers, of `dense`."""
        return (self.num_frames - 1) * self.frame_interval + 1

    @property
    def rule(self) -> str:
        """The rule in words; equal rules store equal frames."""
        if self.method == "uniform":
            return f"{self.num_frames} frames, centres of equal segments"
        if self.method == "random":
            return f"{self.num_frames} equal segments, {self.num_clips} candidates each"
        return f"{self.num_clips} windows of {self.num_frames} frames, one in {self.frame_interval}"

    def stored_frames(self, num_there: int) -> np.ndarray:
        """The frame numbers that are stored of a video.

        A video with fewer than T frames repeats some: a segment may be shorter than a frame, and a window that goes
        beyond the end holds the last frame.

        Args:
            num_there: N, frames of the video.

        Returns:
            int64 (K, T), each from 0 to N - 1 and not falling along T.

        Raises:
            ValueError: a video without frames.
        """
        if num_there < 1:
            raise ValueError(f"a video of {num_there} frames has none to take")
        step = np.arange(self.num_frames, dtype=np.int64)[None, :]  # (1, T)
        clip = np.arange(self.num_clips, dtype=np.int64)[:, None]  # (K, 1)
        if self.method == "dense":
            room = max(num_there - self.span, 0)
            starts = clip * room // (self.num_clips - 1) if self.num_clips > 1 else clip + room // 2
            return np.minimum(starts + step * self.frame_interval, num_there - 1)
        # floor((i + (k + 1/2) / K) * N / T) without a rounding error; uniform is K = 1
        parts = 2 * self.num_clips * self.num_frames
        return (2 * self.num_clips * step + 2 * clip + 1) * num_there // parts
