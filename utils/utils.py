"""Common helpers that the paper's README promises: seed setting, progress bars, metric aggregators."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def set_seed(*parts: int) -> None:
    """Seed Python, NumPy and torch (all devices) from a tuple of integers, e.g. (run seed, epoch).

    Sums such as seed + epoch would give run 0's epoch 1 and run 1's epoch 0 the same stream; a SeedSequence does not.
    """
    import torch

    state = derive_seed(*parts)
    random.seed(state)
    np.random.seed(state % 2**32)
    torch.manual_seed(state)


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from non-negative integers; different tuples give independent streams (NumPy's SeedSequence)."""
    # The length goes in, too: a SeedSequence pads with zeros, so that (5,) and (5, 0) would be the same.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def progress(items: Iterable[Item], total: int, description: str, every: int = 500) -> Iterator[Item]:
    """Iterate with a tqdm bar (rate, ETA); where stderr is no terminal, one line per `every` items instead."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=description, dynamic_ncols=True, leave=False)
        return
    started_s = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if done % every == 0 and done < total:
            rate = done / max(time.monotonic() - started_s, 1e-9)
            log.info("%s: %d/%d, %.1f/s, %.0f s left", description, done, total, rate, (total - done) / rate)


class MeanAggregator:
    """Mean of per-item values that arrive in batches of unequal size."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, batch_mean: float, num_items: int) -> None:
        """Add a batch by its mean."""
        self._sum += float(batch_mean) * num_items
        self._count += num_items

    @property
    def mean(self) -> float:
        """Mean over all items so far; NaN before the first."""
        return self._sum / self._count if self._count else float("nan")


class TopKAggregator:
    """Share of items whose true label is among the k highest scores.

    Ties are broken by the lower label first, as `numpy.argmax` does, so that top-1 is the accuracy of the prediction.
    """

    def __init__(self, ks: tuple[int, ...] = (1, 3)) -> None:
        self._hits = dict.fromkeys(ks, 0)
        self._count = 0
        self._num_classes = 0

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: scores float (B, num_classes), labels int (B,)."""
        ranks = true_label_ranks(scores, labels)
        self._count += len(labels)
        self._num_classes = scores.shape[1]
        for k in self._hits:
            self._hits[k] += int((ranks <= k).sum())

    def fraction(self, k: int) -> float | None:
        """Top-k as a fraction; None where there are fewer classes than k, because it would be 1 by definition."""
        if self._count == 0 or self._num_classes < k:
            return None
        return self._hits[k] / self._count


def true_label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank of each item's true label, 1 is best: scores float (B, num_classes), labels int (B,) -> int (B,)."""
    true_scores = scores[np.arange(len(labels)), labels][:, None]
    ahead = scores > true_scores
    ties_before = (scores == true_scores) & (np.arange(scores.shape[1])[None, :] < np.asarray(labels)[:, None])
    return 1 + (ahead | ties_before).sum(axis=1)
