"""Clips on disk: H.264 MP4 written and read with PyAV, whose wheel carries FFmpeg.

A frame array is always uint8 (T, H, W, 3), RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from utils.errors import InputError
from utils.files import write_with

# x264's macroblock tree and B-frame decision read memory that was never written (seen with x264 of PyAV 18.1: the same
# frames gave other bytes in 60 % of fresh processes at 224 px). Without both, equal frames are equal bytes.
_REPEATABLE = {"preset": "medium", "x264-params": "bframes=0:mbtree=0"}


@dataclass(frozen=True)
class Codec:
    """How frames are encoded; everything is pinned, so that equal frames are equal bytes."""

    encoder: str
    pixel_format: str
    options: Mapping[str, str]


CODECS = {
    # What the published clips are: 4:2:0 colour, near-transparent.
    "h264": Codec("libx264", "yuv420p", _REPEATABLE | {"crf": "18"}),
    # RGB, because the conversion to yuv alone changes pixels, even at crf 0.
    "h264_lossless": Codec("libx264rgb", "rgb24", _REPEATABLE | {"crf": "0"}),
}


def write_clip(path: Path, frames: np.ndarray, fps: int = 6, codec: str = "h264") -> None:
    """Encode frames and move the finished file into place.

    Args:
        frames: uint8 (T, H, W, 3); H and W even, as yuv420p halves the colour planes.
        codec: a name in `CODECS`: `h264` (crf 18, yuv420p) or `h264_lossless` (exact pixels).

    Raises:
        ValueError: another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"height and width must be even for yuv420p, not {frames.shape[1]} x {frames.shape[2]}")
    write_with(path, lambda partial: _encode(partial, frames, fps, CODECS[codec]))


def read_clip(path: Path, num_frames: int | None = None) -> np.ndarray:
    """Decode a clip: uint8 (T, H, W, 3), RGB, 0..255.

    Args:
        num_frames: how many frames the clip must hold; None takes what is there.

    Raises:
        InputError: not a video, damaged, or another number of frames (a file cut at 99 % opens and yields none).
    """
    limit = None if num_frames is None else num_frames + 1  # one more tells a longer clip, without decoding all of it
    try:
        frames = list(islice(_decode(path), limit))
    except (av.FFmpegError, ValueError, StopIteration) as error:
        raise InputError(f"{path}: cannot be decoded as a video ({error}); restore or remake the clip") from None
    found = len(frames)
    if num_frames is not None and found != num_frames:
        more = "more than " if found > num_frames else ""
        raise InputError(
            f"{path}: has {more}{min(found, num_frames)} frames, expected {num_frames}; set num_frames to what "
            "the clips hold, or remake the clip"
        )
    if not frames:
        raise InputError(f"{path}: no frame can be decoded; restore or remake the clip")
    return np.stack(frames)


def _encode(path: Path, frames: np.ndarray, fps: int, codec: Codec) -> None:
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec.encoder, rate=fps, options=dict(codec.options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = codec.pixel_format
        stream.time_base = Fraction(1, fps)
        # One thread: the bytes then depend on the frames alone, and no thread pool outlives a fork.
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _decode(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # the file is cut before its codec is named
            raise ValueError("its video codec is unknown")
        # Default threading is half as fast on 3-frame clips and can hang beside DataLoader workers.
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")
