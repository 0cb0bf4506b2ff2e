"""Frame numbers by the formula, exactly: against fractions, against the real videos, and at the edges."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest

from utils.clips import probe_video, read_clip, read_frames
from utils.frame_sampling import FrameSampling

NUM_FRAMES, NUM_THERE = (1, 2, 3, 7, 16, 32), (1, 2, 3, 5, 16, 29, 164, 280, 10_007)


@pytest.mark.parametrize("num_frames", NUM_FRAMES)
@pytest.mark.parametrize("num_clips", [1, 2, 3, 8])
def test_segments_are_those_of_the_formula_in_fractions(num_frames, num_clips):
    for num_there in NUM_THERE:
        exact = [
            [floor((i + (k + Fraction(1, 2)) / num_clips) * num_there / num_frames) for i in range(num_frames)]
            for k in range(num_clips)
        ]
        found = FrameSampling("random", num_frames, num_clips=num_clips).stored_frames(num_there)
        assert found.tolist() == exact and found.dtype == np.int64
        if num_clips == 1:
            assert FrameSampling("uniform", num_frames).stored_frames(num_there).tolist() == exact


@pytest.mark.parametrize("num_frames", NUM_FRAMES)
@pytest.mark.parametrize("interval", [1, 2, 5])
def test_windows_are_whole_spread_evenly_and_end_with_the_video(num_frames, interval):
    for num_there in NUM_THERE:
        sampling = FrameSampling("dense", num_frames, interval, 5)
        windows = sampling.stored_frames(num_there)
        room = num_there - sampling.span
        if room < 0:
            expected = [min(t * interval, num_there - 1) for t in range(num_frames)]
            assert windows.tolist() == [expected] * 5
            continue
        assert windows[0, 0] == 0 and windows[-1, -1] == num_there - 1
        assert (np.diff(windows, axis=1) == interval).all()
        gaps = np.diff(windows[:, 0])
        assert gaps.max() - gaps.min() <= 1
        assert windows[2, 0] == FrameSampling("dense", num_frames, interval).stored_frames(num_there)[0, 0] == room // 2


@pytest.mark.parametrize("method", ["uniform", "random", "dense"])
def test_every_number_is_a_frame_and_none_goes_back(method):
    for num_frames in NUM_FRAMES:
        sampling = FrameSampling(method, num_frames, num_clips=1 if method == "uniform" else 4)
        for num_there in range(1, 70):
            frames = sampling.stored_frames(num_there)
            assert frames.shape == (sampling.num_clips, num_frames) and frames.size == sampling.num_stored
            assert frames.min() >= 0 and frames.max() < num_there
            assert (np.diff(frames, axis=1) >= 0).all()


def test_as_many_frames_as_the_video_has_are_all_of_them():
    for num_frames in (1, 3, 16):
        assert FrameSampling("uniform", num_frames).stored_frames(num_frames).tolist() == [list(range(num_frames))]
        assert FrameSampling("dense", num_frames).stored_frames(num_frames).tolist() == [list(range(num_frames))]


def test_a_short_video_repeats_frames_in_order():
    assert FrameSampling("uniform", 7).stored_frames(3).tolist() == [[0, 0, 1, 1, 1, 2, 2]]
    assert FrameSampling("dense", 5).stored_frames(3).tolist() == [[0, 1, 2, 2, 2]]
    assert FrameSampling("random", 2, num_clips=3).stored_frames(1).tolist() == [[0, 0]] * 3


def test_candidates_of_a_segment_stay_inside_it():
    candidates = FrameSampling("random", 8, num_clips=5).stored_frames(164)  # (K, T)
    segments = [(i * 164 / 8, (i + 1) * 164 / 8) for i in range(8)]
    for column, (start, end) in zip(candidates.T, segments, strict=True):
        assert start - 1 < column.min() and column.max() < end and len(set(column.tolist())) == 5


def test_the_middle_one_is_scored():
    assert [FrameSampling("dense", 4, num_clips=count).fixed_clip for count in (1, 2, 3, 10)] == [0, 1, 1, 5]


def test_each_rule_has_its_own_words():
    samplings = [
        FrameSampling("uniform", 4),
        FrameSampling("uniform", 8),
        FrameSampling("random", 4),
        FrameSampling("random", 4, num_clips=2),
        FrameSampling("dense", 4),
        FrameSampling("dense", 4, 2),
        FrameSampling("dense", 4, 2, 2),
    ]
    assert len({sampling.rule for sampling in samplings}) == len(samplings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("even", 3), "unknown sampling method 'even'; known: uniform, random, dense"),
        (("uniform", 0), "num_frames is 0, expected at least 1"),
        (("dense", 3, 0), "frame_interval is 0"),
        (("random", 3, 1, 0), "num_clips is 0"),
        (("uniform", 3, 2), "frame_interval=2 needs method 'dense'"),
        (("random", 3, 2), "frame_interval=2 needs method 'dense'"),
        (("uniform", 3, 1, 2), "num_clips=2 needs method 'random' or 'dense'"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        FrameSampling(*arguments)


def test_a_video_without_frames_is_refused():
    with pytest.raises(ValueError, match="0 frames"):
        FrameSampling("uniform", 3).stored_frames(0)


# --- the real videos -------------------------------------------------------------------------------------------------

REAL = {
    ("real_clip_a.avi", FrameSampling("uniform", 3)): [[27, 82, 136]],
    ("real_clip_b.mp4", FrameSampling("uniform", 3)): [[46, 140, 233]],
    ("real_clip_a.avi", FrameSampling("uniform", 16)): [
        [5, 15, 25, 35, 46, 56, 66, 76, 87, 97, 107, 117, 128, 138, 148, 158]
    ],
    ("real_clip_a.avi", FrameSampling("random", 3, num_clips=2)): [[13, 68, 123], [41, 95, 150]],
    ("real_clip_b.mp4", FrameSampling("random", 2, num_clips=3)): [[23, 163], [70, 210], [116, 256]],
    ("real_clip_a.avi", FrameSampling("dense", 3, 10)): [[71, 81, 91]],
    ("real_clip_b.mp4", FrameSampling("dense", 4, 8, 3)): [
        [0, 8, 16, 24],
        [127, 135, 143, 151],
        [255, 263, 271, 279],
    ],
    ("real_clip_a.avi", FrameSampling("dense", 3, 100)): [[0, 100, 163]],
}


@pytest.fixture(scope="module")
def decoded(real_data: Path) -> dict[str, np.ndarray]:
    return {name: read_clip(real_data / "videos" / name) for name in ("real_clip_a.avi", "real_clip_b.mp4")}


@pytest.mark.parametrize(("video", "expected"), REAL.items(), ids=lambda value: str(value)[:60])
def test_real_videos_give_these_frames_with_the_pixels_of_a_full_decode(real_data, decoded, video, expected):
    name, sampling = video
    path = real_data / "videos" / name
    numbers = sampling.stored_frames(probe_video(path).num_frames)
    assert numbers.tolist() == expected
    np.testing.assert_array_equal(read_frames(path, numbers.ravel()), decoded[name][numbers.ravel()])
