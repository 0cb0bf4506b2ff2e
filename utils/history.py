"""Where a training run is, and what it has seen so far: sums on the device, a row an epoch, a loss an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from utils.errors import InputError
from utils.optimization import learning_rate, scaled_learning_rate, should_stop_early
from utils.settings import TrainingSettings

_CLASS_HITS = 2  # rows of `class_hits`


BY_TASK = "selection_top1_by_task"  # in a row of the history, of several tasks


@dataclass(frozen=True)
class Score:
    """Means over one pass.

    Attributes:
        top3_fraction: None with fewer than three classes, and of several tasks.
        top1_by_task: of several tasks, each one's over its labelled items; tasks without any are left out.
    """

    loss: float
    top1_fraction: float
    top3_fraction: float | None
    num_items: int
    top1_by_task: Mapping[str, float] = field(default_factory=dict)


def new_sums(device: torch.device, num_hits: int = _CLASS_HITS) -> torch.Tensor:
    """Zeros for `add_to_sums`, on the device: adding up there waits for nothing.

    Args:
        num_hits: what is counted beside losses and items.
    """
    return torch.zeros(num_hits + 2, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


def ranks_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Rank of each item's true label, 1 is best: logits float (B, num_classes), labels int (B,) -> int (B,).

    Ties go to the lower label, as `numpy.argmax` has it, so that top-1 is the accuracy of the prediction;
    NaN is no hit.
    """
    true_scores = logits.gather(1, labels[:, None])
    is_lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return 1 + (~(logits <= true_scores) | ((logits == true_scores) & is_lower)).sum(1)


def class_hits(logits: torch.Tensor, labels: torch.Tensor) -> Sequence[torch.Tensor]:
    """Whether each item's label is first, and among the first three: twice bool (B,)."""
    ranks = ranks_of(logits, labels)
    return ranks <= 1, ranks <= 3


@torch.no_grad()
def add_to_sums(
    sums: torch.Tensor,
    losses: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    counts: torch.Tensor,
    hits_of: Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]] = class_hits,
) -> None:
    """Add a batch to the sums: of losses first, then of each row of hits, then of items.

    Args:
        losses: float (B,); `logits`: float (B, num_logits); `labels`: what `hits_of` compares them with.
        counts: bool (B,), which items count.
        hits_of: `hits` of `utils.objectives.Objective`.
    """
    columns = torch.stack([losses.to(sums.dtype), *hits_of(logits, labels), torch.ones_like(counts)])
    sums += (columns.to(sums.dtype) * counts).sum(1)


def score_of(sums: torch.Tensor, num_classes: int) -> Score:
    """Means from the sums of one label an item."""
    loss, top1, top3, count = sums.tolist()
    return Score(loss / count, top1 / count, top3 / count if num_classes >= 3 else None, int(count))


@dataclass
class Position:
    """Where a run is.

    Attributes:
        epoch: the one under way, from 1; `step`: updates made in it; `update`: updates made in all.
        sums: of the training pass under way, of this process.
        rows: of `history.csv`, one a finished epoch.
        finished_updates: (rate, loss) of the updates of finished epochs.
        recent_rates, recent_losses: of the updates of the epoch under way.
    """

    sums: torch.Tensor
    epoch: int = 1
    step: int = 0
    update: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    finished_updates: list[tuple[float, float]] = field(default_factory=list)
    recent_rates: list[float] = field(default_factory=list)
    recent_losses: list[torch.Tensor] = field(default_factory=list)

    def advance(self, loss: torch.Tensor, rate: float) -> None:
        """One update was made: loss float (), this process's share of the mean."""
        self.recent_losses.append(loss)
        self.recent_rates.append(rate)
        self.step += 1
        self.update += 1

    def finish_epoch(self, row: dict[str, Any], losses: Iterable[float]) -> None:
        """The epoch has been trained and scored: losses of its updates, over all processes."""
        self.rows.append(row)
        self.finished_updates += zip(self.recent_rates, losses, strict=True)
        self.recent_rates, self.recent_losses = [], []
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = torch.zeros_like(self.sums)

    def task_rows(self) -> list[dict[str, Any]]:
        """Rows of `history_by_task.csv`; none where there is one task."""
        return [
            {"epoch": row["epoch"], "task": task, "selection_top1_fraction": top1}
            for row in self.rows
            for task, top1 in row.get(BY_TASK, {}).items()
        ]

    def update_rows(self) -> list[dict[str, Any]]:
        """Rows of `updates.csv`: of finished epochs."""
        epochs = [row["epoch"] for row in self.rows]
        ends = [row["update"] for row in self.rows]
        epoch_of = np.repeat(epochs, np.diff([0, *ends])).tolist()
        return [
            {"update": number, "epoch": epoch, "learning_rate": rate, "train_loss": loss}
            for number, (epoch, (rate, loss)) in enumerate(zip(epoch_of, self.finished_updates, strict=True), start=1)
        ]

    def state(self, sums: torch.Tensor, losses: list[float]) -> dict[str, Any]:
        """As plain values, for a checkpoint: sums and recent losses over all processes."""
        return {
            **{name: getattr(self, name) for name in ("epoch", "step", "update", "rows", "recent_rates")},
            "finished_updates": [list(pair) for pair in self.finished_updates],
            "recent_losses": losses,
            "sums": sums.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device, *, is_main: bool) -> Position:
        """The inverse of `state`; what was added up over all processes goes on in the first one."""
        share = 1.0 if is_main else 0.0
        state = dict(state)
        sums = torch.tensor(state.pop("sums"), dtype=torch.float64) * share
        losses = [torch.tensor(loss * share, device=device) for loss in state.pop("recent_losses")]
        finished = [tuple(pair) for pair in state.pop("finished_updates")]
        sums = sums.to(new_sums(device))
        return cls(sums, recent_losses=losses, finished_updates=finished, **state)


@dataclass(frozen=True)
class Plan:
    """How long a run is and how fast it learns: pure functions of where it is.

    Attributes:
        steps_per_epoch: updates of a whole epoch.
    """

    settings: TrainingSettings
    steps_per_epoch: int

    @property
    def total_updates(self) -> int:
        """Of the whole run."""
        return self.settings.updates or self.settings.epochs * self.steps_per_epoch

    def require_warm_up_ends(self) -> None:
        """Make sure that the run is longer than its warm-up.

        Raises:
            InputError: it is not.
        """
        if self.settings.warmup_updates >= self.total_updates:
            raise InputError(
                f"warmup_updates: is {self.settings.warmup_updates}, but the run has {self.total_updates} updates; "
                "lower it, or train longer"
            )

    @property
    def num_epochs(self) -> int:
        """Of the whole run; the last one may be short."""
        return -(-self.total_updates // self.steps_per_epoch)

    def last_step(self, position: Position) -> int:
        """Updates of the epoch under way."""
        before = position.update - position.step
        return min(self.steps_per_epoch, self.total_updates - before)

    def learning_rate(self, position: Position) -> float:
        """Of the next update."""
        settings = self.settings
        rule = {"rule": settings.lr_scaling, "reference_batch_size": settings.lr_batch_size}
        return learning_rate(
            position.update,
            position.epoch,
            schedule=settings.schedule,
            base_lr=scaled_learning_rate(settings.lr, settings.batch_size, **rule),
            total_updates=self.total_updates,
            warmup_updates=settings.warmup_updates,
            min_lr=settings.min_lr,
            lr_step=settings.lr_step,
            lr_gamma=settings.lr_gamma,
            plateau_patience=settings.plateau_patience,
            history_losses=[row["selection_loss"] for row in position.rows],
        )

    def is_over(self, position: Position) -> bool:
        """Whether no update is left, or waiting for a better epoch has lasted long enough."""
        scores = [row["selection_top1_fraction"] for row in position.rows]
        is_trained = position.update >= self.total_updates
        is_between = position.step == 0
        return is_between and (is_trained or should_stop_early(scores, self.settings.early_stopping_patience))
