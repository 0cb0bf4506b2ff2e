"""Still images: decode them once, fully, and never trust a file name; and text that is to fit into one."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont, ImageOps

from utils.errors import InputError

# The formats that need no external program (EPS starts Ghostscript) and no plug-in.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})
_SUFFIXES_OF = {"JPEG": {".jpeg", ".jpg"}, "TIFF": {".tif", ".tiff"}}
_SIXTEEN_BIT = ("I", "F", "I;16", "I;16B", "I;16L")
_EXIF_ORIENTATION = 0x0112
MAX_PIXELS = 50_000_000


class ImageError(InputError):
    """An image that cannot be used; the message says why."""


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Decode an image file to RGB, its EXIF orientation applied.

    `Image.verify` passes a half-truncated JPEG, so all pixels are decoded here.

    Returns:
        the RGB image, and what had to be converted ("" where the pixels are the file's own).

    Raises:
        ImageError: not an image, truncated, too large, or deeper than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit below replaces Pillow's bomb warning
            return _decode(content, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {max_pixels}") from None
    except Image.UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise ImageError(f"cannot be decoded: {error}") from None


def _decode(content: bytes, max_pixels: int) -> tuple[Image.Image, str]:
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width} x {image.height} pixels, more than the limit of {max_pixels}")
    # Pillow opens 16-bit RGB as mode RGB and drops the lower bits; only its raw mode (RGB;16B) tells.
    is_deep = image.mode in _SIXTEEN_BIT or any(";16" in str(tile) for tile in image.tile)
    image.load()
    if is_deep:
        raise ImageError("more than 8 bits a channel; convert it to 8 bits")
    oriented = ImageOps.exif_transpose(image)
    num_frames = getattr(image, "n_frames", 1)
    changes = [
        f"{oriented.mode} to RGB" if oriented.mode != "RGB" else "",
        "EXIF orientation applied" if image.getexif().get(_EXIF_ORIENTATION, 1) != 1 else "",
        f"first of {num_frames} frames" if num_frames > 1 else "",
    ]
    return oriented.convert("RGB"), ", ".join(filter(None, changes))


def format_mismatch(content: bytes, name: str) -> str:
    """Why a file's name lies about its format, or ""."""
    image_format = Image.open(io.BytesIO(content), formats=FORMATS).format or ""
    suffix = Path(name).suffix.lower()
    if suffix in _SUFFIXES_OF.get(image_format, {f".{image_format.lower()}"}):
        return ""
    return f"{image_format} content under the name {suffix or 'without ending'}"


def read_rgb_image(path: Path) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3), RGB, 0..255.

    Raises:
        ImageError: naming the file.
    """
    try:
        return np.asarray(decode_image(path.read_bytes())[0])
    except ImageError as error:
        raise ImageError(f"{path}: {error}; replace the file or remove its row") from None


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes without metadata, so that equal pixels are equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def resize_and_centre_crop(image: np.ndarray, size_px: int) -> np.ndarray:
    """Scale the shorter side to `size_px` and crop the centre: uint8 (H, W, 3) -> uint8 (size_px, size_px, 3).

    Bilinear with antialiasing (Pillow). One step does both, so that a 1 x 1,000,000 image costs nothing.
    """
    height, width = image.shape[:2]
    if (height, width) == (size_px, size_px):
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR, box=box))


def cut_to_width(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
