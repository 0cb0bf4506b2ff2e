"""Position embeddings for another number of frames or another size, in the open.

transformers itself would refuse them, leave them random, or take the nearest.
"""

from __future__ import annotations

import torch
from torch.nn import functional

Grid = tuple[int, int, int]  # tokens over time, height and width


def resample_positions(positions: torch.Tensor, source: Grid, target: Grid) -> torch.Tensor:
    """Position embeddings of one grid of tokens for another: bicubic in space, linear in time.

    Args:
        positions: float (1, E + t * h * w, D), tokens in the order of time, height, width; the first E (CLS) belong to
            no place and stay as they are.

    Returns:
        float (1, E + t' * h' * w', D); the same tensor where the grids agree.
    """
    if source == target:
        return positions
    num_extra = positions.shape[1] - source[0] * source[1] * source[2]
    extra, grid = positions[:, :num_extra], positions[0, num_extra:].unflatten(0, source)
    grid = grid.permute(0, 3, 1, 2)  # (t, h, w, D) -> (t, D, h, w)
    if source[1:] != target[1:]:
        grid = functional.interpolate(grid, size=target[1:], mode="bicubic", align_corners=False)
    grid = resample_times(grid.flatten(1)[None], target[0])[0].unflatten(1, (-1, *target[1:]))
    return torch.cat([extra, grid.permute(0, 2, 3, 1).flatten(0, 2)[None]], dim=1)  # (t, D, h, w) -> (1, t * h * w, D)


def resample_times(embeddings: torch.Tensor, num_times: int) -> torch.Tensor:
    """Embeddings of points in time, float (1, T, D), for another number of them over the same time: linear."""
    if embeddings.shape[1] == num_times:
        return embeddings
    by_time = embeddings.transpose(1, 2)  # (1, T, D) -> (1, D, T)
    return functional.interpolate(by_time, size=num_times, mode="linear", align_corners=False).transpose(1, 2)
