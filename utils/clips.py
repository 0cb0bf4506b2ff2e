"""Clips and videos on disk: H.264 MP4 written, and any video read, with PyAV, whose wheel carries FFmpeg.

A frame array is always uint8 (T, H, W, 3), RGB, 0..255. Frames are numbered by decoding from the start: a seek, and
what a container says of its length, is exact in some files only. Every reader gives frames as a player shows them: a
video that a phone recorded on its side, with a matrix that says so, comes out upright, its height and width too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from utils.containers import count_missing_bytes
from utils.errors import InputError
from utils.files import write_with

# x264's macroblock tree and B-frame decision read memory that was never written (seen with x264 of PyAV 18.1: the same
# frames gave other bytes in 60 % of fresh processes at 224 px). Without both, equal frames are equal bytes.
_REPEATABLE = {"preset": "medium", "x264-params": "bframes=0:mbtree=0"}
_USUAL_RATE = 25  # frames a second, where a container names none
_DISPLAY_MATRIX = SideDataType.DISPLAYMATRIX
_Decoded = tuple[av.VideoFrame, tuple[bool, bool, bool]]  # and its orientation, see `_orientation`
_ONE_DEGREE = 0.0175  # its tangent


class VideoError(InputError):
    """A file that cannot be decoded as a video.

    Attributes:
        reason: in short, without the file's name.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        what = getattr(error, "strerror", None)  # FFmpeg's; its errors are not all OSErrors
        self.reason = f"unreadable: {what}" if what else str(error)
        super().__init__(f"{path}: cannot be decoded as a video ({error}); restore or remake the clip")


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
    with _named_errors(path):
        frames = [_to_rgb(decoded) for decoded in islice(_decode(path), limit)]
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


def read_frames(
    path: Path, numbers: Sequence[int] | np.ndarray, view: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """Some frames of a video, equal to those of a full decode; decoding ends with the last one that is asked for.

    Args:
        numbers: int (n,), frame numbers from 0, in any order, with repetitions; only these are converted to RGB.
        view: of each frame, uint8 (H, W, 3) -> (h, w, 3), as soon as it is decoded: scaled or cropped there, frames of
            any size take no more memory than the result. None takes the frames as they are.

    Returns:
        uint8 (n, h, w, 3), RGB, 0..255, in the order of `numbers`.

    Raises:
        ValueError: no number, or a negative one.
        InputError: not a video, damaged before the last frame, shorter, or its frames change in size.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    if numbers.ndim != 1 or not len(numbers) or numbers.min() < 0:
        raise ValueError(f"numbers must be some frame numbers from 0, not {numbers.tolist()}")
    frames: np.ndarray | None = None
    for number, frame in _frames_at(path, set(numbers.tolist())):
        seen = frame if view is None else view(frame)
        if frames is None:
            frames = np.empty((len(numbers), *seen.shape), np.uint8)
        if seen.shape != frames.shape[1:]:
            raise InputError(f"{path}: its frames change in size at frame {number}; index the videos again")
        frames[numbers == number] = seen
    return frames


def iterate_frames(path: Path) -> Iterator[np.ndarray]:
    """All frames of a video, uint8 (H, W, 3), RGB, one at a time: a long video takes no more memory than a short one.

    Raises:
        VideoError: not a video, or damaged, as soon as the decoder comes to it.
    """
    with _named_errors(path):
        for decoded in _decode(path):
            yield _to_rgb(decoded)


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a video are shown.

    Attributes:
        ticks: of each frame, in units of `time_base`; from 0, rising.
        time_base: seconds.
        rate: frames a second as the container says, 25 where it names none.
    """

    ticks: tuple[int, ...]
    time_base: Fraction
    rate: Fraction


def read_frame_times(path: Path) -> FrameTimes:
    """Decode a whole video for the times of its frames; constant steps where it does not have one for each.

    Raises:
        VideoError: not a video, or damaged.
    """
    with _named_errors(path), _open_stream(path) as (container, stream):
        rate = Fraction(stream.guessed_rate or _USUAL_RATE)
        stamps = [frame.pts for frame in container.decode(stream)]
        if None in stamps or stream.time_base is None:
            return FrameTimes(tuple(range(len(stamps))), 1 / rate, rate)
        return FrameTimes(tuple(_as_shown(stamps)), stream.time_base, rate)


@dataclass(frozen=True)
class VideoInfo:
    """What a full decode of a video found; `fps` is its container's word, 0 where it has none."""

    num_frames: int
    height: int
    width: int
    fps: float


def probe_video(path: Path) -> VideoInfo:
    """Decode a whole video and count; nothing is converted to RGB.

    Raises:
        VideoError: not a video, cut short (as far as its container tells, see `utils.containers`), damaged, without
            frames, or its frames change in size.
    """
    with _named_errors(path):
        if missing := count_missing_bytes(path):
            raise ValueError(f"truncated: at least {missing} bytes are missing at its end")
        with _open_stream(path) as (container, stream):
            rate, num_frames, sizes = stream.guessed_rate, 0, set()
            for frame, orientation in _with_orientation(container.decode(stream)):
                if frame.is_corrupt:
                    raise ValueError(f"frame {num_frames} is damaged")
                sizes.add((frame.width, frame.height) if orientation[0] else (frame.height, frame.width))
                num_frames += 1
        if len(sizes) != 1:
            raise ValueError(f"its frames have {len(sizes)} sizes" if sizes else "no frame can be decoded")
    return VideoInfo(num_frames, *sizes.pop(), float(rate or 0))


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


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What a decoder says, as one sentence with the file's name."""
    try:
        yield
    except (av.FFmpegError, FileNotFoundError, IsADirectoryError, ValueError, StopIteration) as error:
        raise VideoError(path, error) from None


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # the file is cut before its codec is named
            raise ValueError("its video codec is unknown")
        # Default threading is half as fast on 3-frame clips and can hang beside DataLoader workers.
        stream.codec_context.thread_count = 1
        yield container, stream


def _frames_at(path: Path, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames with their numbers, in rising order, each uint8 (H, W, 3)."""
    num_there, last = 0, max(wanted)
    with _named_errors(path):
        for number, decoded in enumerate(islice(_decode(path), last + 1)):
            num_there += 1
            if number in wanted:
                yield number, _to_rgb(decoded)
    if num_there <= last:
        raise InputError(f"{path}: has {num_there} frames, frame {last} is asked for; index the videos again")


def _decode(path: Path) -> Iterator[_Decoded]:
    with _open_stream(path) as (container, stream):
        yield from _with_orientation(container.decode(stream))


def _with_orientation(frames: Iterator[av.VideoFrame]) -> Iterator[_Decoded]:
    """Each frame with the orientation of the first, which is that of a file.

    It is looked up once: with its side data, a frame is in a reference cycle and keeps its pixels until one is sought.
    """
    orientation = None
    for frame in frames:
        orientation = orientation or _orientation(frame)
        yield frame, orientation


def _as_shown(stamps: list[int]) -> Iterator[int]:
    """Time stamps from 0 on, rising.

    Frames come in the order shown, so their stamps rise. Where they do not, they are the packets' (AVI stores no other,
    and B-frames after the frames that they lie before): the same times in another order.
    """
    shift, last = min(stamps, default=0), -1
    for stamp in sorted(stamps):
        last = max(stamp - shift, last + 1)
        yield last


def _to_rgb(decoded: _Decoded) -> np.ndarray:
    """uint8 (H, W, 3), as it is shown."""
    frame, (is_turned, mirror_rows, mirror_columns) = decoded
    # One thread: a scaler's pool outlives no fork, and a child that frees it waits for ever.
    stored = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    if not (is_turned or mirror_rows or mirror_columns):
        return stored
    shown = stored.transpose(1, 0, 2) if is_turned else stored
    return np.ascontiguousarray(shown[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1])


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes the one that is shown: rows and columns change places, then rows, columns mirrored.

    The display matrix (ISO/IEC 14496-12, 6.2.2; FFmpeg's libavutil/display.h) takes a stored place (x, y) to
    (a x + c y, b x + d y). `frame.rotation` is not enough: of a mirror it makes a half turn. An angle between quarter
    turns (FFmpeg, too, takes one degree for none) is left as it is stored, as no array of pixels holds it.
    """
    if (matrix := frame.side_data.get(_DISPLAY_MATRIX)) is None:
        return False, False, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if max(abs(b), abs(c)) < _ONE_DEGREE * min(abs(a), abs(d)):
        return False, d < 0, a < 0
    if max(abs(a), abs(d)) < _ONE_DEGREE * min(abs(b), abs(c)):
        return True, b < 0, c < 0
    return False, False, False
