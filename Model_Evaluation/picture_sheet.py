"""Sheets of blocks: a few lines of text over rows of frames. Equal blocks give equal bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from utils.files import write_bytes
from utils.images import cut_to_width

_SIDE = 112  # longer side of a frame, in pixels
_GAP = 4
_MARGIN = 12
_LINE = 17
_FONT_SIZE = 13
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (85, 85, 85)
_ONE_COLUMN_FRAMES = 4  # blocks with more frames a row stand one below the other
_TEXT_WIDTH = 340  # pixels a block has for its text, however few frames it shows


@dataclass(frozen=True)
class PictureBlock:
    """One item on the sheet.

    Attributes:
        lines: text above the pictures, the first line in black.
        rows: lines of text (may be none) over uint8 frames (T, H, W, 3) each.
    """

    lines: list[str]
    rows: list[tuple[list[str], np.ndarray]]


def write_picture_sheet(path: Path, blocks: list[PictureBlock], description: str) -> None:
    """Write the sheet as PNG; `description` is kept in the file as its text alternative."""
    information = PngImagePlugin.PngInfo()
    information.add_itxt("Description", description)
    buffer = io.BytesIO()
    draw_picture_sheet(blocks).save(buffer, format="PNG", optimize=True, pnginfo=information)
    write_bytes(path, buffer.getvalue())


def draw_picture_sheet(blocks: list[PictureBlock]) -> Image.Image:
    """Blocks from left to right and down, two side by side where they are narrow."""
    most_frames = max(len(frames) for block in blocks for _, frames in block.rows)
    num_columns = 1 if most_frames > _ONE_COLUMN_FRAMES else min(2, len(blocks))
    width = max(_TEXT_WIDTH, most_frames * (_SIDE + _GAP) - _GAP)
    bands = [blocks[start : start + num_columns] for start in range(0, len(blocks), num_columns)]
    heights = [max(_height_of(block) for block in band) for band in bands]
    size = (num_columns * (width + 2 * _MARGIN), sum(heights) + (len(bands) + 1) * _MARGIN)
    sheet = Image.new("RGB", size, _WHITE)
    top = _MARGIN
    for band, height in zip(bands, heights, strict=True):
        for column, block in enumerate(band):
            _draw_block(sheet, block, left=_MARGIN + column * (width + 2 * _MARGIN), top=top, width=width)
        top += height + _MARGIN
    return sheet


def scale_frame(image: np.ndarray, side: int = _SIDE) -> np.ndarray:
    """An image uint8 (H, W, 3) with its longer side at `side` pixels, in its own proportions."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _height_of(block: PictureBlock) -> int:
    num_lines = len(block.lines) + sum(len(lines) for lines, _ in block.rows)
    return num_lines * _LINE + len(block.rows) * (_SIDE + _GAP)


def _draw_block(sheet: Image.Image, block: PictureBlock, *, left: int, top: int, width: int) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, line in enumerate(block.lines):
        draw.text((left, top), cut_to_width(line, font, width), _GREY if number else _BLACK, font)
        top += _LINE
    for lines, frames in block.rows:
        for line in lines:
            draw.text((left, top), cut_to_width(line, font, width), _GREY, font)
            top += _LINE
        for column, frame in enumerate(frames):
            sheet.paste(Image.fromarray(scale_frame(frame)), (left + column * (_SIDE + _GAP), top))
        top += _SIDE + _GAP
