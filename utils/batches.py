"""Which items make which update: drawn from seed and epoch alone, so that any process can begin at any step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from utils.indices import shard_range
from utils.losses import class_balanced_weights
from utils.pixels import Pixels
from utils.ranks import Ranks
from utils.utils import derive_seed

_ORDER, _PIXELS = 1, 2  # streams of their own beside dropout and augmentation


@dataclass(frozen=True)
class Batch:
    """What one process computes at once.

    Attributes:
        inputs: uint8 (B, 3, T, H, W), 0..255, or (B, 3, H, W) for images.
        target: int64 (B,), labels; or (B, num_tasks), the labels of several tasks, -1 where one is missing.
        shares: float32 (B,): what each item counts in the mean over the whole update; 0 fills up an uneven end.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    shares: torch.Tensor


class Batches:
    """The items of a run, update by update.

    Args:
        pixels: of all items; `labels`: int64 (N,) of all items.
        names: of all items, for sentences.
        positions: int64: those to use.
        batch_size: items an update, over all processes and parts.
        is_clip: keep the time axis.
        num_parts: parts that an update is computed in.
        class_balanced: draw with replacement, every class of `labels` equally often. With several tasks these classes
            are combinations: those of all labels equally often, and items that lack one as often as if shuffled.
        targets: int64 (N, ...) of all items, what the batches carry; None is `labels`.
        device: where the batches go; None is the CPU.

    Attributes:
        wait_s: seconds that the caller has waited for pixels.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        names: Sequence[str],
        positions: np.ndarray,
        *,
        batch_size: int,
        is_clip: bool,
        seed: int = 0,
        num_parts: int = 1,
        class_balanced: bool = False,
        targets: np.ndarray | None = None,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.pixels, self.names, self.is_clip, self.seed = pixels, names, is_clip, seed
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.targets = self.labels if targets is None else torch.as_tensor(targets, dtype=torch.int64)
        self.positions = torch.as_tensor(positions, dtype=torch.int64)
        self.batch_size, self.num_parts = batch_size, num_parts
        self.ranks = ranks or Ranks()
        self._weights = None
        if class_balanced:
            self._weights = _drawing_weights(self.labels[self.positions], self.targets[self.positions])
        self._device = device or torch.device("cpu")
        self._copies: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)
            pixels.pin_buffers()
        self.wait_s = 0.0

    def __len__(self) -> int:
        """Updates an epoch; the last one may have fewer items."""
        return -(-len(self.positions) // self.batch_size)

    def order(self, epoch: int) -> torch.Tensor:
        """Positions in the order of an epoch: the same in every process, whatever ran before."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, _ORDER))
        count = len(self.positions)
        if self._weights is not None:
            return self.positions[torch.multinomial(self._weights, count, replacement=True, generator=generator)]
        return self.positions[torch.randperm(count, generator=generator)]

    def items_of(self, epoch: int, step: int) -> torch.Tensor:
        """Positions of one update (`step` from 0), over all processes."""
        return self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, epoch: int, start: int = 0, end: int | None = None) -> Iterator[Iterator[Batch]]:
        """Updates `start` to `end` of an epoch, each as this process's parts of it.

        A part is valid until the next one is asked for: its pixels lie in buffers that are used again.
        """
        order, end = self.order(epoch), len(self) if end is None else end
        plan = []
        for step in range(start, end):
            items = order[step * self.batch_size : (step + 1) * self.batch_size]
            parts = share_update(items, self.ranks, self.num_parts)
            plan += [(*part, epoch, step, self.ranks.rank, number) for number, part in enumerate(parts)]
        filled = self._ahead(plan, self._fill)
        for _ in range(start, end):
            yield (filled() for _ in range(self.num_parts))

    def in_order(self) -> Iterator[Batch]:
        """This process's part of all items once, in the order of the index, for evaluation."""
        part = shard_range(len(self.positions), (self.ranks.rank + 1, self.ranks.num_ranks))
        items = self.positions[part.start : part.stop].split(self.batch_size) if len(part) else ()
        filled = self._ahead([(chunk, torch.ones(len(chunk))) for chunk in items], self._fill)
        for _ in items:
            yield filled()

    def _fill(self, items: torch.Tensor, shares: torch.Tensor, *place: int) -> Batch:
        # Without a place (evaluation) nothing may be drawn.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *place, _PIXELS)) if place else None
        inputs = self.pixels.gather(items, generator=generator)
        inputs = inputs if self.is_clip else inputs.squeeze(2)  # (B, 3, 1, H, W) -> (B, 3, H, W)
        batch = Batch(*(tensor.to(self._device) for tensor in (inputs, self.targets[items], shares)))
        if self._copies is not None:
            # Only what this thread has sent: after it the batch is there, and its buffer may be filled again.
            self._copies.synchronize()
        return batch

    def _ahead(self, plan: list[tuple], fill: Callable[..., Batch]) -> Callable[[], Batch]:
        """A function that returns the next of `plan` filled, while a thread fills the one after it."""
        executor = ThreadPoolExecutor(1, "batches", initializer=_work_aside, initargs=(self._copies,))
        futures: deque[Future[Batch]] = deque()
        pending = iter(plan)

        def look_ahead() -> None:
            if (following := next(pending, None)) is not None:
                futures.append(executor.submit(fill, *following))
            else:
                executor.shutdown(wait=False)

        def next_filled() -> Batch:
            started_s = time.monotonic()
            filled = futures.popleft().result()
            self.wait_s += time.monotonic() - started_s
            if self._copies is not None:
                _keep_until_computed(filled)
            look_ahead()
            return filled

        look_ahead()
        return next_filled


def _drawing_weights(labels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How likely each item is drawn so that classes are equally frequent: float64 (N,).

    Combinations with a missing label are many and rare: one video of such a kind would be drawn as often as the
    thousand of a common one. So they get the mean weight of the others; where there are no others, each counts as a
    class.
    """
    is_whole = (targets.reshape(len(targets), -1) >= 0).all(1)
    if is_whole.all() or not is_whole.any():
        return class_balanced_weights(labels)
    weights = torch.empty(len(labels), dtype=torch.float64)
    weights[is_whole] = class_balanced_weights(labels[is_whole])
    weights[~is_whole] = weights[is_whole].mean()
    return weights


def _work_aside(copies: torch.cuda.Stream | None) -> None:
    """Let what this thread sends to a GPU not queue behind the kernels there; a new thread's GPU is the first one."""
    if copies is not None:
        torch.cuda.set_device(copies.device)
        torch.cuda.set_stream(copies)


def _keep_until_computed(batch: Batch) -> None:
    """Its memory belongs to the copies' stream, which would take it back while kernels of this one still read it."""
    for tensor in (batch.inputs, batch.target, batch.shares):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def share_update(items: torch.Tensor, ranks: Ranks, num_parts: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One process's parts of an update: positions and what each counts in the mean over all of it.

    Processes and parts get equally many items; where there are too few, the first one fills up and counts nothing, so
    that all processes take part in every exchange of gradients.
    """
    num_shares = ranks.num_ranks * num_parts
    size = -(-len(items) // num_shares)
    filled = torch.cat([items, items[:1].expand(size * num_shares - len(items))])
    shares = torch.zeros(len(filled))
    shares[: len(items)] = 1 / len(items)
    own = slice(ranks.rank * num_parts * size, (ranks.rank + 1) * num_parts * size)
    return list(zip(filled[own].split(size), shares[own].split(size), strict=True))
