"""The product of matrices is `conv3d`, with its gradients, and networks take it where a batch has few pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import utils.frames_as_batch
from utils.few_pixel_conv import conv_few_pixels
from utils.three_frame_conv import slices_first

CASES = [  # B, C, O, (H, W), (h, w), stride, padding
    (2, 3, 5, (2, 2), (3, 3), (1, 1), (1, 1)),
    (1, 4, 2, (1, 1), (3, 3), (1, 1), (1, 1)),
    (3, 2, 4, (5, 7), (3, 3), (2, 2), (1, 1)),
    (2, 2, 3, (6, 5), (5, 3), (1, 2), (0, 2)),
    (2, 3, 3, (4, 3), (1, 1), (1, 1), (0, 0)),
]


def as_frames(clip: torch.Tensor) -> torch.Tensor:
    return clip.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (B, C, 3, H, W) -> (3 B, C, H, W)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("memory", [slices_first, torch.clone], ids=["slices first", "in order"])
@pytest.mark.parametrize(("batch", "channels", "width", "size", "window", "stride", "padding"), CASES)
def test_it_equals_conv3d(batch, channels, width, size, window, stride, padding, memory, has_bias):
    torch.manual_seed(0)
    clip = torch.randn(batch, channels, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = memory(torch.randn(width, channels, 3, *window, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(width, dtype=torch.float64, requires_grad=True) if has_bias else None
    expected = as_frames(functional.conv3d(clip, weight, bias, (1, *stride), (1, *padding)))
    found = conv_few_pixels(as_frames(clip), weight, bias, stride, padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream, inputs = torch.randn_like(expected), [clip, weight, *([bias] if has_bias else [])]
    for ours, plain in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "is_taken"), [(15, True), (16, False)])  # 2 x 15 x 15 = 450 and 512 pixels
def test_a_network_takes_it_with_gradients_and_few_pixels_only(size, is_taken, monkeypatch):
    taken = []
    real = utils.frames_as_batch.conv_few_pixels
    monkeypatch.setattr(utils.frames_as_batch, "conv_few_pixels", lambda *args: taken.append(1) or real(*args))
    network = nn.Sequential(nn.Conv3d(8, 4, 3, padding=1), nn.AdaptiveAvgPool3d((1, 1, 1)))
    utils.frames_as_batch.use_frames_as_batch(network)
    clips = torch.randn(2, 8, 3, size, size)
    with torch.no_grad():
        expected = network.eval()(clips)
    assert not taken
    torch.testing.assert_close(network(clips), expected, rtol=0, atol=1e-6)
    assert bool(taken) == is_taken


def test_the_gradient_lies_in_memory_as_the_weight_does():
    weight = slices_first(torch.randn(4, 8, 3, 3, 3)).requires_grad_()
    conv_few_pixels(torch.randn(6, 8, 2, 2), weight, None, (1, 1), (1, 1)).sum().backward()
    assert weight.grad.stride() == weight.stride(), "else each step would copy it"
