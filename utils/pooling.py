"""The adaptive average that VGG ends with, with a gradient that CUDA can repeat bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RepeatableAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """An `AdaptiveAvgPool2d` to a pair of sizes that also runs under `torch.use_deterministic_algorithms` on CUDA."""

    is_repeatable = True

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, C, H, W) -> (B, C, h, w)."""
        return adaptive_average(images, self.output_size)


def adaptive_average(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`adaptive_avg_pool2d`: float (B, C, H, W) -> (B, C, h, w).

    CUDA has no deterministic gradient for it. Where one is asked for, it is two products with matrices of shares, equal
    but for rounding; and nothing at all where the sizes agree, as at VGG's 224 pixels.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if images.is_cuda and torch.are_deterministic_algorithms_enabled():
        return average_by_products(images, size)
    return functional.adaptive_avg_pool2d(images, size)


def average_by_products(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`adaptive_avg_pool2d` as two products: float (B, C, H, W) -> (B, C, h, w)."""
    rows, columns = (_shares(length, wanted, images) for length, wanted in zip(images.shape[-2:], size, strict=True))
    return rows @ images @ columns.T


def _shares(length: int, wanted: int, like: Tensor) -> Tensor:
    """What each of `wanted` averages takes of each of `length` values: float (wanted, length)."""
    positions = torch.arange(wanted)
    starts, ends = positions * length // wanted, -(-(positions + 1) * length // wanted)
    values = torch.arange(length)
    is_inside = (values >= starts[:, None]) & (values < ends[:, None])
    return is_inside.to(like) / (ends - starts)[:, None].to(like)
