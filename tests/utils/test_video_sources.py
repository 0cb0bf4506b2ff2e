"""Clips drawn from longer videos: every frame's grey says its number, so that a wrong frame is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from utils.clips import write_clip
from utils.frame_sampling import FrameSampling
from utils.indices import read_clip_index
from utils.pixel_views import DrawnFrames
from utils.pixels import CachedPixels
from utils.sources import SampledClips, video_files

LENGTHS = (20, 12, 2)
SIZE, STEP = 32, 12


@pytest.fixture(scope="module", params=[True, False], ids=["lengths known", "lengths unknown"])
def videos(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    rows = []
    for number, length in enumerate(LENGTHS):
        greys = (STEP * np.arange(length)).astype(np.uint8)
        frames = np.broadcast_to(greys[:, None, None, None], (length, SIZE, SIZE, 3)).copy()
        write_clip(root / f"{number}.mp4", frames, codec="h264_lossless")
        rows.append(f"{number}.mp4,0,{length}" if request.param else f"{number}.mp4,0")
    header = "video_path,label,num_frames" if request.param else "video_path,label"
    (root / "index.csv").write_text("\n".join([header, *rows]) + "\n")
    return read_clip_index(root / "index.csv", root)


def frame_numbers(batch: torch.Tensor) -> list[list[int]]:
    """uint8 (B, 3, T, H, W) -> the number of each frame."""
    assert (batch == batch[:, :1, :, :1, :1]).all()
    return (batch[:, 0, :, 0, 0] // STEP).tolist()


def open_clips(videos, sampling: FrameSampling, cache_dir: Path | None = None):
    return SampledClips(video_files(videos, sampling, SIZE), sampling).open(cache_dir, 1, lambda: None)


def test_uniform_clips_are_the_centres_of_segments_whatever_is_drawn(videos, tmp_path):
    pixels = open_clips(videos, FrameSampling("uniform", 4), tmp_path)
    assert pixels.item_shape == (4, SIZE, SIZE)
    expected = [[2, 7, 12, 17], [1, 4, 7, 10], [0, 0, 1, 1]]
    assert frame_numbers(pixels.gather([0, 1, 2])) == expected
    assert frame_numbers(pixels.gather([0, 1, 2], torch.Generator().manual_seed(0))) == expected


def test_random_clips_take_one_candidate_of_each_segment(videos):
    sampling = FrameSampling("random", 4, num_clips=5)  # of 20 frames every one is a candidate
    pixels = open_clips(videos, sampling)
    assert frame_numbers(pixels.gather([0, 1])) == [[2, 7, 12, 17], [1, 4, 7, 10]]
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([frame_numbers(pixels.gather([0], generator))[0] for _ in range(300)])
    for segment in range(4):
        numbers, counts = np.unique(drawn[:, segment], return_counts=True)
        assert numbers.tolist() == list(range(5 * segment, 5 * segment + 5))
        assert counts.min() > 300 / 5 / 2
    # Segments are drawn independently: about a fifth of the clips take the same candidate twice in a row.
    assert 30 < (drawn[:, 0] == drawn[:, 1] - 5).sum() < 90


def test_dense_clips_are_whole_windows(videos):
    sampling = FrameSampling("dense", 3, frame_interval=2, num_clips=4)
    pixels = open_clips(videos, sampling)
    windows = sampling.stored_frames(20).tolist()
    assert windows == [[0, 2, 4], [5, 7, 9], [10, 12, 14], [15, 17, 19]]
    assert frame_numbers(pixels.gather([0])) == [windows[2]]
    generator = torch.Generator().manual_seed(0)
    drawn = [frame_numbers(pixels.gather([0], generator))[0] for _ in range(60)]
    assert {tuple(clip) for clip in drawn} == {tuple(clip) for clip in windows}


def test_items_of_a_batch_are_drawn_each_by_itself_and_repeat_with_the_seed(videos):
    pixels = open_clips(videos, FrameSampling("random", 4, num_clips=5))
    clips = [pixels.gather([0] * 16, torch.Generator().manual_seed(7)).clone() for _ in range(2)]
    assert torch.equal(*clips)
    assert len({tuple(numbers) for numbers in frame_numbers(clips[0])}) > 8


def test_another_sampling_is_another_cache(videos, tmp_path):
    for sampling in (FrameSampling("uniform", 4), FrameSampling("dense", 4), FrameSampling("dense", 4, 2)):
        open_clips(videos, sampling, tmp_path)
    assert len(list(tmp_path.glob("*.pixels"))) == 3


def test_items_of_another_length_are_refused():
    pixels = CachedPixels(np.zeros((2, 5, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="items have 5 frames, but 6 are to be stored"):
        DrawnFrames(pixels, FrameSampling("dense", 3, num_clips=2))
