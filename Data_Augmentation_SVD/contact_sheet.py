"""Clips as pictures: a contact sheet with a row per clip, and animated GIFs. Equal clips give equal bytes."""

from __future__ import annotations

from dataclasses import dataclass

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_THUMBNAIL = 112  # longer side of a frame on the sheet, in pixels
_CAPTION_WIDTH = 190
_GAP = 4
_LINE = 14
_FONT_SIZE = 12
_MOST_FRAMES = 8  # of a longer clip as many at equal distances are shown, first and last included
_MOST_LETTERS = 30
_PREVIEW_SIDE = 224
_PREVIEW_FRAME_MS = 400
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class SheetRow:
    """One clip on the sheet.

    Attributes:
        captions: short lines of text beside the pictures.
        source_view: uint8 (H, W, 3), shown before the frames; None leaves its place empty.
        frames: uint8 (T, H, W, 3).
    """

    captions: list[str]
    source_view: np.ndarray | None
    frames: np.ndarray


def shrink_row(row: SheetRow) -> SheetRow:
    """What the sheet needs of a clip: at most 8 frames, at thumbnail size, so that hundreds fit into memory."""
    count = min(len(row.frames), _MOST_FRAMES)
    kept = np.linspace(0, len(row.frames) - 1, count).round().astype(int)
    view = None if row.source_view is None else _scaled(row.source_view, _THUMBNAIL)
    return SheetRow(row.captions, view, np.stack([_scaled(row.frames[position], _THUMBNAIL) for position in kept]))


def draw_contact_sheet(rows: list[SheetRow]) -> Image.Image:
    """A row per clip, shrunk by `shrink_row`: captions, the source, the frames."""
    font = ImageFont.load_default(_FONT_SIZE)
    num_lines = max(len(row.captions) for row in rows)
    row_height = max(_THUMBNAIL, num_lines * _LINE) + _GAP
    width = _CAPTION_WIDTH + (1 + max(len(row.frames) for row in rows)) * (_THUMBNAIL + _GAP)
    header = _LINE + 2 * _GAP
    sheet = Image.new("RGB", (width, header + len(rows) * row_height), _WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((_CAPTION_WIDTH, _GAP), "source", _BLACK, font)
    draw.text((_CAPTION_WIDTH + _THUMBNAIL + _GAP, _GAP), "frames", _BLACK, font)
    for position, row in enumerate(rows):
        top = header + position * row_height
        for line, caption in enumerate(row.captions):
            draw.text((_GAP, top + line * _LINE), _shortened(caption), _BLACK, font)
        for column, picture in enumerate([row.source_view, *row.frames]):
            if picture is not None:
                sheet.paste(Image.fromarray(picture), (_CAPTION_WIDTH + column * (_THUMBNAIL + _GAP), top))
    return sheet


def encode_preview(row: SheetRow) -> bytes:
    """An endless GIF of a clip, beside its source where that is known."""
    source = [] if row.source_view is None else [_scaled(row.source_view, _PREVIEW_SIDE)]
    frames = [np.concatenate([*source, _scaled(frame, _PREVIEW_SIDE)], axis=1) for frame in row.frames]
    return imageio.imwrite(
        "<bytes>", np.stack(frames), extension=".gif", plugin="pillow", duration=_PREVIEW_FRAME_MS, loop=0
    )


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    """An image with its longer side at `side` pixels, in its own proportions."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
