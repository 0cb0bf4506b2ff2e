"""Bytes that a container says it has: what was cut is counted, and what cannot be known is not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from videos import write_video

from utils.containers import count_missing_bytes


def riff(num_bytes: int, kind: bytes = b"AVI ") -> bytes:
    return b"RIFF" + num_bytes.to_bytes(4, "little") + kind


def box(kind: bytes, content: bytes, *, num_bytes: int | None = None) -> bytes:
    return (8 + len(content) if num_bytes is None else num_bytes).to_bytes(4, "big") + kind + content


def large_box(kind: bytes, content: bytes) -> bytes:
    return (1).to_bytes(4, "big") + kind + (16 + len(content)).to_bytes(8, "big") + content


def matroska(segment_length: bytes, content: bytes) -> bytes:
    return b"\x1a\x45\xdf\xa3" + b"\x84" + b"head" + b"\x18\x53\x80\x67" + segment_length + content


FTYP = box(b"ftyp", b"isom" * 3)
WHOLE = {
    "avi": riff(104) + bytes(100),
    "avi of two parts": riff(104) + bytes(100) + riff(54, b"AVIX") + bytes(50),
    "avi with other bytes after it": riff(104) + bytes(100) + b"tag" * 20,
    "avi written as a stream": riff(0) + bytes(100),
    "avi of unknown length": riff(2**32 - 1) + bytes(100),
    "mp4": FTYP + box(b"moov", bytes(50)) + box(b"mdat", bytes(200)),
    "mp4 with a large box": FTYP + large_box(b"mdat", bytes(200)) + box(b"moov", bytes(50)),
    "mp4 whose last box has no length": FTYP + box(b"mdat", bytes(200), num_bytes=0),
    "mp4 with other bytes after it": FTYP + box(b"moov", bytes(50)) + bytes(30),
    "mp4 with a text after it": FTYP + box(b"moov", bytes(50)) + b"made by nobody at all",
    "mkv": matroska((0x4000 | 300).to_bytes(2, "big"), bytes(300)),
    "mkv of 8 bytes length": matroska((1 << 56 | 300).to_bytes(8, "big"), bytes(300)),
    "mkv written as a stream": matroska(b"\x01" + b"\xff" * 7, bytes(300)),
    "another kind": b"OggS" + bytes(300),
}


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_a_whole_file_lacks_nothing(tmp_path, content):
    (tmp_path / "video").write_bytes(content)
    assert count_missing_bytes(tmp_path / "video") == 0


@pytest.mark.parametrize(
    "kind", ["avi", "avi of two parts", "mp4", "mp4 with a large box", "mkv", "mkv of 8 bytes length"]
)
def test_a_file_cut_at_its_end_lacks_as_many_bytes(tmp_path, kind):
    for missing in (2, 7, 40):
        (tmp_path / "video").write_bytes(WHOLE[kind][:-missing])
        assert count_missing_bytes(tmp_path / "video") == missing


def test_a_pad_byte_that_is_left_out_is_no_loss(tmp_path):
    (tmp_path / "video").write_bytes(riff(105) + bytes(101))  # 113 bytes, 114 with the pad byte
    assert count_missing_bytes(tmp_path / "video") == 0


@pytest.mark.parametrize("kind", WHOLE)
def test_no_cut_of_any_length_is_an_error(tmp_path, kind):
    for length in range(0, len(WHOLE[kind]), 3):
        (tmp_path / "video").write_bytes(WHOLE[kind][:length])
        assert 0 <= count_missing_bytes(tmp_path / "video") <= len(WHOLE[kind])


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".webm", ".mov"])
def test_what_ffmpeg_writes_is_whole(tmp_path, suffix):
    path = write_video(tmp_path / f"video{suffix}", 30)
    assert count_missing_bytes(path) == 0
    path.write_bytes(path.read_bytes()[:-10])
    assert count_missing_bytes(path) == 10


@pytest.mark.parametrize("name", ["real_clip_a.avi", "real_clip_b.mp4"])
def test_the_real_videos_are_whole(real_data: Path, name):
    assert count_missing_bytes(real_data / "videos" / name) == 0
