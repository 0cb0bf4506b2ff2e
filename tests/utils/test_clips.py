"""Clips on disk: what is written is read back, equal frames are equal bytes, and damage is named."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import PROJECT
from videos import truncate, write_video

from utils import clips
from utils.clips import (
    CODECS,
    VideoError,
    iterate_frames,
    probe_video,
    read_clip,
    read_frame_times,
    read_frames,
    write_clip,
)
from utils.errors import InputError

# Means of the three frames of svd_videos/val/00000.mp4 over all pixels and channels, as PyAV 18.1 decodes it.
PUBLISHED_MEANS = (125.09, 127.44, 124.93)


def smooth_frames(num_frames: int = 3, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3): slow waves that differ by channel and move from frame to frame."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    waves = np.stack([np.sin(x / 15 + y / 20 + 0.4 * t + offset) for offset in phase], axis=-1)
    return (127.5 + 100 * waves).round().astype(np.uint8)


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((left.astype(float) - right.astype(float)) ** 2))


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(1, 16, 16), (3, 64, 96), (3, 96, 64), (3, 18, 34), (16, 64, 64), (40, 32, 32)]
)
def test_what_is_written_is_read_back(tmp_path, num_frames, height, width):
    frames = smooth_frames(num_frames, height, width)
    write_clip(tmp_path / "clip.mp4", frames)
    decoded = read_clip(tmp_path / "clip.mp4", num_frames)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    assert psnr_db(decoded, frames) > 33
    for index in range(num_frames):  # in order, none lost or doubled
        distances = [np.mean(np.abs(decoded[index].astype(int) - frame.astype(int))) for frame in frames]
        assert int(np.argmin(distances)) == index


@pytest.mark.parametrize("kind", ["smooth", "noise", "black", "white", "every colour"])
@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(1, 16, 16), (3, 64, 96), (3, 18, 34), (3, 2, 4), (9, 64, 64), (40, 32, 32)]
)
def test_the_lossless_codec_gives_back_every_pixel(tmp_path, num_frames, height, width, kind):
    shape = (num_frames, height, width, 3)
    counting = np.arange(np.prod(shape)).reshape(shape)
    frames = {
        "smooth": smooth_frames(num_frames, height, width),
        "noise": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "every colour": (counting * 7 % 256).astype(np.uint8),
    }[kind]
    write_clip(tmp_path / "clip.mp4", frames, codec="h264_lossless")
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.mp4", num_frames), frames)


@pytest.mark.parametrize("fps", [1, 6, 25, 1000])
def test_every_frame_rate_gives_the_frames_back(tmp_path, fps):
    write_clip(tmp_path / "exact.mp4", smooth_frames(), fps, "h264_lossless")
    np.testing.assert_array_equal(read_clip(tmp_path / "exact.mp4", 3), smooth_frames())
    # x264 spends its bits by a frame's duration: with `h264` the rate changes pixels a little.
    write_clip(tmp_path / "clip.mp4", smooth_frames(), fps, "h264")
    assert psnr_db(read_clip(tmp_path / "clip.mp4", 3), smooth_frames()) > 33


def test_lossless_clips_of_smooth_pictures_are_a_few_times_as_large(tmp_path):
    for codec in CODECS:
        write_clip(tmp_path / f"{codec}.mp4", textured_frames(0, 64, 2), codec=codec)
    small, large = ((tmp_path / f"{codec}.mp4").stat().st_size for codec in ("h264", "h264_lossless"))
    assert 1.5 * small < large < textured_frames(0, 64, 2).nbytes + 2000


def test_channels_are_red_green_blue(tmp_path):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 1], frames[2, ..., 2] = 200, 200, 200
    write_clip(tmp_path / "clip.mp4", frames)
    np.testing.assert_allclose(read_clip(tmp_path / "clip.mp4").astype(int), frames, atol=6)


def test_the_folder_is_made_and_nothing_else_stays_in_it(tmp_path):
    write_clip(tmp_path / "a/b/clip.mp4", smooth_frames())
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), "uint8 .* not float32"),
        (np.zeros((32, 32, 3), np.uint8), r"not uint8 \(32, 32, 3\)"),
        (np.zeros((3, 3, 32, 32), np.uint8), r"not uint8 \(3, 3, 32, 32\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"not uint8 \(0, 32, 32, 3\)"),
        (np.zeros((3, 33, 32, 3), np.uint8), "even .* not 33 x 32"),
    ],
    ids=["float", "one_image", "channels_first", "no_frames", "odd"],
)
def test_frames_of_another_kind_are_refused_and_nothing_is_written(tmp_path, frames, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_clip(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


# --- equal frames are equal bytes ------------------------------------------------------------------------------------

# What the heap held between encodes: x264 with its lookahead took its decisions from such memory.
LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = LIBC.memset.restype = ctypes.c_void_p
LIBC.malloc.argtypes = [ctypes.c_size_t]
LIBC.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
LIBC.free.argtypes = [ctypes.c_void_p]
LIBC.free.restype = None


def dirty_heap(seed: int) -> None:
    """Fill several hundred heap blocks of 1 to 120 KB with one byte each, and free them."""
    LIBC.free(LIBC.malloc(30_000_000))  # glibc now takes larger blocks from the heap too, not fresh from the system
    generator = np.random.default_rng(seed)
    blocks = [(LIBC.malloc(size), size) for size in generator.integers(1_000, 120_000, 400).tolist()]
    for (block, size), value in zip(blocks, generator.integers(0, 256, len(blocks)).tolist(), strict=True):
        LIBC.memset(block, value, size)
    for position in generator.permutation(len(blocks)):
        LIBC.free(blocks[position][0])


def textured_frames(seed: int, size: int, max_shift_px: int) -> np.ndarray:
    """uint8 (3, size, size, 3): a noisy texture under a moving camera, where an encoder has decisions to take."""
    generator = np.random.default_rng(seed)
    texture = smooth_frames(1, 2 * size, 2 * size, seed)[0] + generator.normal(0, 5, (2 * size, 2 * size, 3))
    dy, dx = generator.integers(0, max_shift_px + 1, 2)
    crops = [texture[t * dy : t * dy + size, t * dx : t * dx + size] for t in range(3)]
    return np.stack(crops).clip(0, 255).astype(np.uint8)


def hashes_with_dirty_heap(frames: np.ndarray, folder: Path, num_encodes: int, codec: str = "h264") -> set[str]:
    hashes = set()
    for seed in range(num_encodes):
        dirty_heap(seed)
        write_clip(folder / "clip.mp4", frames, codec=codec)
        hashes.add(hashlib.sha256((folder / "clip.mp4").read_bytes()).hexdigest())
    return hashes


# With options {"crf": "18", "preset": "medium"} alone 10 of the 30 small and 5 of the 8 large images differ.
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("size", "max_shift_px", "num_images"), [(64, 2, 30), (224, 37, 8)])
def test_equal_frames_are_equal_bytes_whatever_the_heap_holds(tmp_path, size, max_shift_px, num_images, codec):
    images = [textured_frames(seed, size, max_shift_px) for seed in range(num_images)]
    counts = [len(hashes_with_dirty_heap(frames, tmp_path, num_encodes=4, codec=codec)) for frames in images]
    assert counts == [1] * num_images


ENCODE_IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from test_clips import dirty_heap, hashes_with_dirty_heap, textured_frames
dirty_heap(int(sys.argv[2]))
for size, max_shift_px in ((64, 2), (224, 37)):
    for codec in ("h264", "h264_lossless"):
        print(*hashes_with_dirty_heap(textured_frames(1, size, max_shift_px), Path(sys.argv[3]), 2, codec))
"""


def test_equal_frames_are_equal_bytes_in_fresh_processes(tmp_path):
    outputs = set()
    for seed in (11, 12):
        arguments = [str(Path(__file__).parent), str(seed), str(tmp_path)]
        command = [sys.executable, "-c", ENCODE_IN_A_FRESH_PROCESS, *arguments]
        path = os.pathsep.join([os.environ["PYTHONPATH"], str(PROJECT / "tests")])
        environment = os.environ | {"MALLOC_PERTURB_": str(17 * seed), "PYTHONPATH": path}
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    (output,) = outputs
    assert [len(line.split()) for line in output.splitlines()] == [1] * 4  # one hash a codec and size
    assert len(set(output.split())) == 4


def plain_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (T, H, W, 3) of whole-number arithmetic alone, so that they are the same everywhere."""
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    channels = (3 * x + 5 * y + 7 * t, x * y // 8 + 9 * t, x + 2 * y + 40 * t)
    return np.stack([channel % 256 for channel in channels], axis=-1).astype(np.uint8)


# What PyAV 18.1.0 on x86-64 wrote before there was a second codec: clips made then and now are the same files.
PINNED = {
    (3, 64, 96): "a5606b17dbe76c41743f59b38d2ad64daed88af9ba9ce00b574f02895f1381d9",
    (5, 224, 224): "f5053cf730fc4bfba8ad465a8b5abe3471569c3961ea3ca4be43807b74afcfd6",
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the hashes are those of x264 on x86-64")
@pytest.mark.parametrize(("shape", "sha256"), PINNED.items(), ids=str)
def test_h264_writes_the_bytes_it_always_wrote(tmp_path, shape, sha256):
    write_clip(tmp_path / "clip.mp4", plain_frames(*shape))
    assert hashlib.sha256((tmp_path / "clip.mp4").read_bytes()).hexdigest() == sha256


def test_other_frames_are_other_bytes(tmp_path):
    hashes = [hashes_with_dirty_heap(textured_frames(seed, 64, 2), tmp_path, num_encodes=1) for seed in range(3)]
    assert len(set.union(*hashes)) == 3


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip.mp4", smooth_frames())
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(("expected", "found"), [(2, "more than 2 frames"), (4, "3 frames"), (16, "3 frames")])
def test_another_number_of_frames_is_named(clip, expected, found):
    with pytest.raises(InputError, match=f"clip.mp4: has {found}, expected {expected}; "):
        read_clip(clip, expected)


@pytest.mark.parametrize("kept_fraction", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_clip_is_refused_by_name(clip, kept_fraction):
    content = clip.read_bytes()
    clip.write_bytes(content[: int(len(content) * kept_fraction)])
    with pytest.raises(InputError, match=r"clip.mp4: .*(restore|remake)"):
        read_clip(clip)


def test_no_cut_gives_other_frames(clip):
    content, whole = clip.read_bytes(), read_clip(clip)
    for missing_bytes in range(1, len(content), 97):
        clip.write_bytes(content[:-missing_bytes])
        try:
            frames = read_clip(clip, 3)
        except InputError:
            continue
        np.testing.assert_array_equal(frames, whole)  # only the note at the end of the file was lost


def test_a_clip_with_its_index_in_front_cut_before_its_frames_is_refused(tmp_path, clip):
    """Such files open without an error and yield no frame."""
    fast = tmp_path / "fast.mp4"
    with av.open(str(clip)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(read_clip(fast)) == 3
    content = fast.read_bytes()
    fast.write_bytes(content[: content.index(b"mdat") + 8])
    with pytest.raises(InputError, match=r"fast.mp4: .*(restore|remake)"):
        read_clip(fast)


@pytest.mark.parametrize("content", [b"no video\n" * 50, b"\0" * 5000], ids=["text", "zeros"])
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4: cannot be decoded as a video"):
        read_clip(tmp_path / "clip.mp4")


def test_a_sound_file_is_refused_as_having_no_video(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(InputError, match="no video stream"):
        read_clip(tmp_path / "sound.wav")


@pytest.mark.parametrize("name", ["missing.mp4", "."])
def test_a_path_without_a_file_is_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match="cannot be decoded as a video"):
        read_clip(tmp_path / name)


# --- memory and files ------------------------------------------------------------------------------------------------

READ_MANY = """
import os, sys
from pathlib import Path
from utils.clips import read_clip

def memory_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

path, number = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(20):
    read_clip(path, 3)
before, files = memory_mib(), len(os.listdir("/proc/self/fd"))
for _ in range(number):
    read_clip(path, 3)
print(memory_mib() - before, len(os.listdir("/proc/self/fd")) - files)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("num_clips", [200, pytest.param(2000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("codec", CODECS)
def test_reading_many_clips_keeps_neither_memory_nor_files(tmp_path, codec, num_clips):
    write_clip(tmp_path / "clip.mp4", smooth_frames(3, 224, 224), codec=codec)
    command = [sys.executable, "-c", READ_MANY, str(tmp_path / "clip.mp4"), str(num_clips)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=300)
    growth_mib, num_files = done.stdout.split()
    assert float(growth_mib) < 50 and int(num_files) == 0


def test_a_broken_clip_leaves_no_file_open(tmp_path, clip):
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted in /proc")
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    counts = []
    for _ in range(20):
        with pytest.raises(InputError):
            read_clip(clip)
        counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert counts[-1] <= counts[0]


# --- the real data ---------------------------------------------------------------------------------------------------


def test_a_published_clip_is_decoded_as_measured(real_data):
    frames = read_clip(real_data / "svd_videos/val/00000.mp4", 3)
    assert frames.shape == (3, 224, 224, 3)
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx(PUBLISHED_MEANS, abs=0.05)


@pytest.mark.parametrize(
    ("name", "num_frames", "height", "width"),
    [("real_clip_a.avi", 164, 240, 320), ("real_clip_b.mp4", 280, 256, 340)],
)
def test_the_real_videos_are_decoded_whole(real_data, name, num_frames, height, width):
    frames = read_clip(real_data / "videos" / name, num_frames)
    assert frames.shape == (num_frames, height, width, 3)
    assert frames.std() > 20


# --- videos: single frames, and a full look --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".webm", ".mov", ".AVI"])
def test_single_frames_are_those_of_a_full_decode_in_every_container(tmp_path, suffix):
    path = write_video(tmp_path / f"video{suffix}", num_frames=40)
    whole = read_clip(path, 40)
    for numbers in ([0], [39], [0, 39], [5, 5, 5], [30, 2, 17, 2], list(range(40)), list(range(39, -1, -1))):
        frames = read_frames(path, numbers)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, whole[numbers])
    assert len(np.unique(whole.reshape(40, -1), axis=0)) == 40


def test_frames_of_a_video_with_reordered_frames_are_in_the_order_shown(tmp_path):
    """B-frames are stored after the frames that they lie before."""
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=10, options={"bf": "3", "b_strategy": "0", "sc_threshold": "0", "crf": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(24):
            frame = np.full((32, 32, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)
    means = read_frames(path, [20, 3, 11]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [200, 30, 110], atol=4)


def test_decoding_ends_with_the_last_frame_that_is_asked_for(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", num_frames=40)
    decoded, converted = [], []
    decode, convert = clips._decode, clips._to_rgb
    monkeypatch.setattr(clips, "_decode", lambda path: (decoded.append(1) or frame for frame in decode(path)))
    monkeypatch.setattr(clips, "_to_rgb", lambda frame: converted.append(1) or convert(frame))
    read_frames(path, [9, 4, 9])
    assert (len(decoded), len(converted)) == (10, 2)


def test_frames_are_viewed_as_they_are_decoded_once_each_and_in_the_order_asked_for(tmp_path):
    path = write_video(tmp_path / "video.mp4", num_frames=12)
    whole, seen = read_clip(path, 12), []

    def corner(frame: np.ndarray) -> np.ndarray:
        seen.append(frame.shape)
        return frame[:4, :6]

    frames = read_frames(path, [9, 4, 9, 0], corner)
    np.testing.assert_array_equal(frames, whole[[9, 4, 9, 0], :4, :6])
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    assert seen == [(32, 32, 3)] * 3


def test_reading_frames_holds_one_full_frame_at_a_time(tmp_path):
    """100 frames of 256 x 256 are 19.7 MB; their corners are 0.1 MB."""
    path = write_video(tmp_path / "video.mp4", num_frames=100, size=256)
    tracemalloc.start()
    try:
        frames = read_frames(path, np.arange(100), lambda frame: frame[:16, :16].copy())
        of_views = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        whole = read_frames(path, np.arange(100))
        of_frames = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(frames, whole[:, :16, :16])
    assert of_views < 3e6 and of_frames < 24e6, (of_views, of_frames)


def test_an_error_of_the_view_is_the_caller_s(tmp_path):
    def fail(frame: np.ndarray) -> np.ndarray:
        raise ValueError("no such view")

    with pytest.raises(ValueError, match=r"^no such view$"):
        read_frames(write_video(tmp_path / "video.avi"), [0], fail)


def test_a_frame_beyond_the_end_is_named(tmp_path):
    path = write_video(tmp_path / "video.avi", num_frames=8)
    with pytest.raises(InputError, match=r"video.avi: has 8 frames, frame 8 is asked for"):
        read_frames(path, [0, 8])


@pytest.mark.parametrize("numbers", [[], [-1], [[0, 1]]], ids=str)
def test_numbers_that_are_none_are_refused(tmp_path, numbers):
    with pytest.raises(ValueError, match="must be some frame numbers"):
        read_frames(write_video(tmp_path / "video.avi"), numbers)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".webm", ".mov"])
@pytest.mark.parametrize("num_frames", [1, 25])
def test_a_look_at_a_video_counts_its_frames(tmp_path, suffix, num_frames):
    path = write_video(tmp_path / f"video{suffix}", num_frames=num_frames, size=48, fps=12)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (num_frames, 48, 48)
    if num_frames > 1:
        assert info.fps == pytest.approx(12, rel=0.01)


def test_a_container_that_lies_about_its_length_is_not_believed(tmp_path):
    path = write_video(tmp_path / "video.avi", num_frames=25)
    content = bytearray(path.read_bytes())
    header = content.index(b"avih") + 8
    content[header + 16 : header + 20] = (9999).to_bytes(4, "little")  # dwTotalFrames
    stream = content.index(b"strh") + 8
    content[stream + 32 : stream + 36] = (9999).to_bytes(4, "little")  # dwLength
    path.write_bytes(content)
    assert probe_video(path).num_frames == 25


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".webm", ".mov"])
@pytest.mark.parametrize("kept_fraction", [0.05, 0.5, 0.8, 0.97])
def test_a_video_that_was_cut_short_is_told_by_its_bytes(tmp_path, suffix, kept_fraction):
    path = write_video(tmp_path / f"video{suffix}", num_frames=30)
    num_bytes = path.stat().st_size
    truncate(path, kept_fraction)
    with pytest.raises(VideoError) as error:
        probe_video(path)
    (missing,) = re.fullmatch(r"truncated: at least (\d+) bytes are missing at its end", error.value.reason).groups()
    num_missing = num_bytes - path.stat().st_size
    # What follows the part that was cut (the index of an MP4) is not known to be missing.
    assert int(missing) == num_missing if suffix in (".avi", ".mkv", ".webm") else 0 < int(missing) <= num_missing
    assert str(error.value).startswith(f"{path}: cannot be decoded as a video (truncated")


def test_an_avi_that_was_cut_short_decodes_without_a_word(tmp_path):
    """Why the bytes are counted: the frames that are left look right."""
    path = truncate(write_video(tmp_path / "video.avi", num_frames=30), 0.5)
    assert 1 < len(read_clip(path)) < 29


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no video\n" * 50, "unreadable: Invalid data found when processing input"),
        (b"", "unreadable: Invalid data found when processing input"),
        (b"RIFF", "unreadable: "),
        (b"\x1a\x45\xdf\xa3", "unreadable: "),
    ],
)
def test_a_file_that_is_no_video_has_a_reason_without_its_path(tmp_path, content, reason):
    (tmp_path / "video.mp4").write_bytes(content)
    with pytest.raises(VideoError) as error:
        probe_video(tmp_path / "video.mp4")
    assert error.value.reason.startswith(reason) and str(tmp_path) not in error.value.reason


@pytest.mark.parametrize("name", ["missing.mp4", "."])
def test_a_look_at_a_path_without_a_file_is_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match="cannot be decoded as a video"):
        probe_video(tmp_path / name)


def test_a_video_with_a_part_that_was_overwritten_is_damaged(tmp_path):
    path = write_video(tmp_path / "video.mp4", num_frames=30, size=64)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(VideoError) as error:
        probe_video(path)
    assert error.value.reason.startswith(("unreadable: ", "frame "))


# --- videos: as a player shows them ----------------------------------------------------------------------------------

# Of every way to lay a picture on its side or mirror it: a, b, c, d of the display matrix, which take a stored place
# (x, y) to (a x + c y, b x + d y) with y downwards, and what that makes of a picture.
ORIENTATIONS: dict[str, tuple[tuple[float, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "as stored": ((1, 0, 0, 1), lambda picture: picture),
    "a quarter turn clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "a half turn": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "a quarter turn counterclockwise": ((0, -1, 1, 0), np.rot90),
    "left and right": ((-1, 0, 0, 1), np.fliplr),
    "top and bottom": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    "transposed about the other diagonal": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).transpose(1, 0, 2)),
    "half a degree": ((1, 0.0087, -0.0087, 1), lambda picture: picture),
    "30 degrees": ((0.866, 0.5, -0.5, 0.866), lambda picture: picture),
    "nothing": ((0, 0, 0, 0), lambda picture: picture),
}


def with_matrix(source: Path, target: Path, matrix: Sequence[float]) -> Path:
    """The same packets in another container with a display matrix, 16.16 fixed point."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        a, b, c, d = (round(65536 * value) for value in matrix)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    return target


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """Five frames of 64 x 96, exact."""
    path = tmp_path_factory.mktemp("stored") / "stored.mp4"
    write_clip(path, smooth_frames(5), codec="h264_lossless")
    return path


@pytest.mark.parametrize(("matrix", "show"), ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_every_reader_shows_frames_upright(tmp_path, stored, suffix, matrix, show):
    path = with_matrix(stored, tmp_path / f"video{suffix}", matrix)
    expected = np.stack([show(frame) for frame in smooth_frames(5)])
    frames = read_clip(path)
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(read_frames(path, [4, 0, 4]), expected[[4, 0, 4]])
    np.testing.assert_array_equal(np.stack(list(iterate_frames(path))), expected)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == expected.shape[:3]
    assert all(frame.flags.c_contiguous for frame in iterate_frames(path))


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_upright_is_what_the_decoder_calls_a_rotation(tmp_path, stored, degrees):
    """Its angle is counterclockwise, as NumPy's."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=5, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb24"
        stream.set_display_rotation(degrees)
        for frame in smooth_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        (found,) = {frame.rotation % 360 for frame in container.decode(video=0)}
    assert found == degrees % 360
    np.testing.assert_array_equal(read_clip(path), np.rot90(smooth_frames(5), degrees // 90, axes=(1, 2)))


@pytest.mark.parametrize("name", ["real_clip_a.avi", "real_clip_b.mp4"])
def test_real_frames_are_those_of_the_decoder_byte_for_byte(real_data, name):
    path = real_data / "videos" / name
    with av.open(str(path)) as container:
        for frame, shown in zip(container.decode(video=0), iterate_frames(path), strict=True):
            assert frame.to_ndarray(format="rgb24").tobytes() == shown.tobytes()


def test_frames_are_given_up_to_the_damage(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        next(iterate_frames(tmp_path / "text.mp4"))
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be decoded"):
        read_frame_times(tmp_path / "text.mp4")


def write_at(path: Path, stamps: Sequence[int], time_base: Fraction) -> Path:
    """A frame at each of these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_times_are_those_of_a_variable_frame_rate(tmp_path, suffix):
    stamps = [0, 1, 5, 6, 20, 21, 50]
    path = tmp_path / f"video{suffix}"
    if suffix == ".webm":
        write_at(tmp_path / "video.mkv", stamps, Fraction(1, 100)).rename(path)
    else:
        write_at(path, stamps, Fraction(1, 100))
    times = read_frame_times(path)
    assert [tick * times.time_base for tick in times.ticks] == [Fraction(stamp, 100) for stamp in stamps]


def test_times_begin_at_zero(tmp_path):
    times = read_frame_times(write_at(tmp_path / "video.mkv", [40, 43, 50], Fraction(1, 100)))
    assert [tick * times.time_base for tick in times.ticks] == [0, Fraction(3, 100), Fraction(1, 10)]


def test_times_of_packets_in_another_order_are_put_in_order(real_data):
    """The AVI has B-frames: its stamps are 1, 2, 4, 3, 5, 7, 6, ..."""
    path = real_data / "videos" / "real_clip_a.avi"
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    times = read_frame_times(path)
    assert (times.ticks, times.time_base, times.rate) == (tuple(range(164)), Fraction(1, 25), 25)


def test_frames_without_times_are_shown_in_equal_steps(tmp_path):
    path = tmp_path / "bare.h264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 32
        for frame in smooth_frames(6, 32, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    times = read_frame_times(path)
    assert (times.ticks, times.time_base) == ((0, 1, 2, 3, 4, 5), 1 / times.rate)


def test_times_that_meet_are_kept_apart():
    assert list(clips._as_shown([7, 7, 7, 8, 20])) == [0, 1, 2, 3, 13]


def test_decoded_frames_do_not_wait_for_a_search_of_cycles(tmp_path):
    path = write_video(tmp_path / "video.mp4", num_frames=12)
    gc.collect()
    gc.disable()
    try:
        read_clip(path, 12)
        probe_video(path)
        left = [found for found in gc.get_objects() if isinstance(found, av.VideoFrame)]
    finally:
        gc.enable()
    assert len(left) <= 2, "the first frame of each pass, whose side data were looked at"
