"""Videos with the predicted class written on every frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.clips import CODECS, iterate_frames, read_frame_times
from utils.files import write_with
from utils.images import cut_to_width

_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic, Arabic
_SMALLEST_FONT = 10  # pixels; below, letters run together in H.264
_LINES_A_HEIGHT = 18  # lines of text that would fill a frame


def write_overlay(source: Path, target: Path, lines: Sequence[str]) -> None:
    """Write an MP4 of all frames of `source`, upright and at their times, with text over their upper left corner.

    The size is the source's; an odd height or width is made even by repeating the last row or column (yuv420p halves
    both). The first frame is shown at 0 s.

    Args:
        lines: of text.

    Raises:
        VideoError: the source cannot be decoded.
        av.FFmpegError, OSError: the target cannot be encoded or written.
    """
    write_with(target, lambda partial: _write_frames(source, partial, lines))


def draw_text(frame: np.ndarray, text: np.ndarray) -> np.ndarray:
    """A copy of a frame with text in white on its darkened upper left corner.

    Args:
        frame: uint8 (H, W, 3).
        text: uint8 (h, w), 255 where a letter is; of `render_text`.
    """
    drawn = frame.copy()
    corner = drawn[: text.shape[0], : text.shape[1]]
    np.maximum(corner // 3, text[: len(corner), : corner.shape[1], None], out=corner)
    return drawn


def render_text(lines: Sequence[str], height: int, width: int) -> np.ndarray:
    """Lines of text for frames of a size, cut with an ellipsis where they are too wide: uint8 (h, w), 0..255."""
    font = ImageFont.truetype(str(_FONT), max(_SMALLEST_FONT, height // _LINES_A_HEIGHT))
    margin = max(2, height // 100)
    fitted = [cut_to_width(line, font, width - 2 * margin) for line in lines]
    line_height = sum(font.getmetrics())
    size = (min(width, round(max(map(font.getlength, fitted)) + 2 * margin)), len(fitted) * line_height + 2 * margin)
    picture = Image.new("L", size)
    for number, line in enumerate(fitted):
        ImageDraw.Draw(picture).text((margin, margin + number * line_height), line, 255, font)
    return np.asarray(picture)


def _write_frames(source: Path, target: Path, lines: Sequence[str]) -> None:
    codec, times, text = CODECS["h264"], read_frame_times(source), None
    with av.open(str(target), "w", format="mp4") as writer:
        stream = writer.add_stream(codec.encoder, rate=times.rate, options=dict(codec.options))
        stream.pix_fmt = codec.pixel_format
        stream.time_base = stream.codec_context.time_base = times.time_base
        stream.codec_context.thread_count = 1  # equal frames are equal bytes
        for ticks, pixels in zip(times.ticks, map(_make_even, iterate_frames(source)), strict=True):
            if text is None:
                stream.height, stream.width = pixels.shape[:2]
                text = render_text(lines, *pixels.shape[:2])
            frame = av.VideoFrame.from_ndarray(draw_text(pixels, text), format="rgb24")
            frame.pts, frame.time_base = ticks, times.time_base
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())


def _make_even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
