"""Whether a video file is whole, by what its own structure says: AVI (RIFF), MP4 and MOV (boxes), MKV and WebM (EBML).

Decoders read a file that was cut short to where it ends and say nothing: the frames that are there look right. But each
of these containers states in bytes how long its parts are. Frame counts in headers are estimates, and not looked at.

Some files do not tell, and pass for whole however short they are:

- MKV and WebM written as a live stream, whose segment has no length;
- fragmented MP4 cut exactly between two boxes: each fragment is whole, and nothing says how many there were;
- MP4 and MOV whose last box has no length ("to the end of the file");
- AVI written as a stream (its length is 0 or all ones), and one above 1 GB cut exactly between two of its parts.

Of these, only a cut that damages a frame is seen, by the decoder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_SEGMENT = b"\x18\x53\x80\x67"
_EBML = b"\x1a\x45\xdf\xa3"
# What stands at the top level of an MP4 or MOV (ISO/IEC 14496-12, and Apple's older kinds).
_BOXES = frozenset(
    b"ftyp moov mdat free skip wide moof mfra sidx ssix styp uuid meta udta pdin emsg prft pnot PICT".split()
)
# A pad byte that a writer counts and leaves out loses nothing.
_SLACK_BYTES = 1


def count_missing_bytes(path: Path) -> int:
    """Bytes that a file lacks at its end, at least; 0 where it is whole, or its container does not tell."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            end = _end_of_riff(file, size)
        elif head[:4] == _EBML:
            end = _end_of_ebml(file, size)
        elif head[4:8] in _BOXES:
            end = _end_of_boxes(file, size)
        else:
            end = size
    return end - size if end - size > _SLACK_BYTES else 0


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """The first chunk, and those that follow it in files above 1 GB (OpenDML)."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        num_bytes = int.from_bytes(head[4:8], "little")
        # Other bytes after the end, or written as a stream.
        if len(head) < 8 or head[:4] != b"RIFF" or num_bytes in (0, 2**32 - 1):
            return size
        end += 8 + num_bytes
        end += end % 2
    return end


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        num_bytes = int.from_bytes(head[:4], "big")
        if num_bytes == 1:  # 64 bits follow the name
            num_bytes = int.from_bytes(head[8:16], "big")
        elif num_bytes == 0:  # to the end of the file
            return size
        if num_bytes < 8 or head[4:8] not in _BOXES:  # other bytes after the last box
            return size
        end += num_bytes
    return end


def _end_of_ebml(file: BinaryIO, size: int) -> int:
    """Of the segment, which holds all frames and follows the header."""
    file.seek(len(_EBML))
    if (header_bytes := _read_length(file)) is None:
        return size
    file.seek(header_bytes, os.SEEK_CUR)
    if file.read(len(_SEGMENT)) != _SEGMENT or (segment_bytes := _read_length(file)) is None:
        return size
    return max(file.tell() + segment_bytes, size)


def _read_length(file: BinaryIO) -> int | None:
    """A length of 1 to 8 bytes, its first bit that is set says how many; None where it is unknown (all ones)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    num_bytes = 9 - first[0].bit_length()
    rest, unknown = file.read(num_bytes - 1), (1 << 7 * num_bytes) - 1
    value = int.from_bytes(first + rest, "big") & unknown
    return None if value == unknown or len(rest) < num_bytes - 1 else value
