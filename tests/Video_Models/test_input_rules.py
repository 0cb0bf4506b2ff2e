"""Which clips a network takes: every frame is repeated at least once and in order; refusals name what fits."""

from __future__ import annotations

import numpy as np
import pytest

from Video_Models.input_rules import FrameRule, SizeRule


@pytest.mark.parametrize(
    ("rule", "num_frames", "expected"),
    [
        (FrameRule(), 3, [0, 1, 2]),
        (FrameRule(multiple_of=2), 3, [0, 0, 1, 2]),
        (FrameRule(multiple_of=2), 4, [0, 1, 2, 3]),
        (FrameRule(minimum=5), 3, [0, 0, 1, 1, 2]),
        (FrameRule(minimum=5, multiple_of=4), 1, [0] * 8),
    ],
)
def test_frames_are_repeated_by_the_rule(rule, num_frames, expected):
    index = rule.repeat(num_frames)
    assert index.dtype == np.int64
    assert index.tolist() == expected


@pytest.mark.parametrize("num_frames", range(1, 40))
def test_every_frame_is_there_in_order_and_no_more_than_needed(num_frames):
    for rule in (FrameRule(minimum=m, multiple_of=k) for m in (1, 2, 7, 16) for k in (1, 2, 3, 8)):
        index = rule.repeat(num_frames)
        assert len(index) % rule.multiple_of == 0
        assert len(index) >= rule.minimum
        assert len(index) - rule.multiple_of < max(num_frames, rule.minimum)
        assert sorted(set(index.tolist())) == list(range(num_frames))
        assert (np.diff(index) >= 0).all()
        counts = np.bincount(index)
        assert counts.max() - counts.min() <= 1
        assert rule.num_repeated(len(index)) == len(index)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="num_frames is 0; a clip has at least one frame"):
        FrameRule().repeat(0)


@pytest.mark.parametrize(
    ("rule", "good", "bad", "message"),
    [
        (SizeRule(), [1, 64, 224], [], ""),
        (SizeRule(minimum=32), [32, 33], [31], "takes 32 pixels or more; use 32"),
        (
            SizeRule(minimum=16, multiple_of=16),
            [16, 32, 224],
            [30],
            "takes 16 pixels or more in multiples of 16; use 3",
        ),
        (SizeRule(minimum=20, multiple_of=16), [32, 48], [16], "takes 32 pixels or more in multiples of 16; use 32"),
    ],
)
def test_sizes_are_taken_or_refused_with_what_fits(rule, good, bad, message):
    for size in good:
        rule.check(size)
    for size in bad:
        with pytest.raises(ValueError, match=f"image_size is {size}, but this network {message}"):
            rule.check(size)


def test_smallest_size_is_one_that_is_taken():
    for rule in (SizeRule(), SizeRule(minimum=20, multiple_of=16), SizeRule(multiple_of=16)):
        rule.check(rule.smallest)
        with pytest.raises(ValueError, match="image_size"):
            rule.check(rule.smallest - 1)
