"""Items decoded in worker processes, for one pass over them; training uses `utils.pixels`."""

from __future__ import annotations

import os

import torch
from torch.utils.data import DataLoader, Dataset


def build_loader(data: Dataset, *, batch_size: int, workers: int, device: torch.device | None = None) -> DataLoader:
    """A loader in index order.

    Args:
        workers: at most; never more than this process has cores.
        device: where the batches go; those for a GPU are pinned.
    """
    return DataLoader(
        data,
        batch_size=batch_size,
        num_workers=min(workers, len(os.sched_getaffinity(0))),
        pin_memory=device is not None and device.type == "cuda",
    )
