"""What heat maps of every kind share: a network as it is scored, and maps brought back to the frames of a clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, the network is in eval mode; afterwards each module is as it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training


def fold_back(maps: Tensor, index: Tensor, num_frames: int) -> Tensor:
    """Mean over the repetitions of each frame: (B, T', h, w), frames `index` (T',) -> (B, T, h, w)."""
    membership = functional.one_hot(index, num_frames).to(maps.dtype)  # (T', T)
    return torch.einsum("brhw,rt->bthw", maps, membership / membership.sum(dim=0))


def scale_maps(maps: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Maps (B, t, h, w) at another number of time steps and size: linear in time and space, (B, T, H, W)."""
    return functional.interpolate(maps[:, None], size=size, mode="trilinear", align_corners=False)[:, 0]


def normalise_maps(maps: Tensor) -> Tensor:
    """An item's largest value becomes 1; maps of zeros stay."""
    largest = maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0.0)
