"""Items decoded in worker processes, for one look at them; training and evaluation use `utils.pixels`."""

from __future__ import annotations

import os

from torch.utils.data import DataLoader, Dataset


def num_usable_cores() -> int:
    """Cores that this process may use; all of them where the system does not say (Linux does)."""
    usable = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if usable is None else len(usable(0))


def build_loader(data: Dataset, *, batch_size: int, workers: int) -> DataLoader:
    """A loader in index order.

    Args:
        workers: at most; never more than this process has cores.
    """
    return DataLoader(data, batch_size=batch_size, num_workers=min(workers, num_usable_cores()))
