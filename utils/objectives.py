"""What a network is trained for and judged by: one label an item, or one label an item and task, some of them missing.

An objective knows what a batch's targets are, the loss of each item and what a pass counts as a hit. An item's loss
depends on that item alone, so that the mean over an update is the same in whatever parts and processes it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from utils.history import Score, class_hits, ranks_of, score_of
from utils.losses import classification_loss


class Objective(Protocol):
    """What a learner minimises and what it counts.

    Attributes:
        num_classes: of each block of the logits: a number for one label an item, a tuple for several.
        num_hits: rows of `hits`.
    """

    num_classes: int | tuple[int, ...]
    num_hits: int

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """What is minimised: float (B, num_logits) and a target, labels or mixed shares -> float (B,)."""

    def plain_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """What a score reports: cross-entropy of labels, without smoothing, focus and weights: float (B,)."""

    def hits(self, logits: Tensor, target: Tensor) -> Sequence[Tensor]:
        """What `utils.history.add_to_sums` adds up beside losses and items: `num_hits` times (B,)."""

    def score(self, sums: Tensor) -> Score:
        """Means from the sums of a pass."""


class ClassLabels:
    """One label an item: targets int64 (B,), or float (B, num_classes) as mixing makes them.

    Args:
        label_smoothing, focal_gamma: see `utils.losses.classification_loss`.
    """

    num_hits = 2

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        self.num_classes = num_classes
        self._options = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma}

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """As in `Objective`."""
        return classification_loss(logits, target, **self._options)

    def plain_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """As in `Objective`."""
        return classification_loss(logits, target)

    def hits(self, logits: Tensor, target: Tensor) -> Sequence[Tensor]:
        """Top-1 and top-3."""
        return class_hits(logits, target)

    def score(self, sums: Tensor) -> Score:
        """As in `Objective`."""
        return score_of(sums, self.num_classes)


class TaskLabelsObjective:
    """One label an item and task: targets int64 (B, num_tasks), -1 where it is missing.

    The logits of all tasks lie side by side, in the order of `tasks`. With T tasks and the cross-entropy L_it of item i
    in task t, the loss of an item is the sum over its known tasks of w_t L_it, divided by T. A missing label adds
    nothing and its gradient is exactly 0. The divisor is T, not the number of labels that happen to be there: averaging
    each task over the labelled items of an update would tie an item's loss to its neighbours, and parts, processes and
    the short last update would no longer add up to the same mean. So a task that a share f of the items is labelled for
    counts f times; the weight 1 / f makes up for it.

    With learned weights each known task adds w_t (exp(-s_t) L_it + s_t / 2), where s_t is the log of the task's
    variance (Kendall, Gal & Cipolla 2018, eq. 10: L / sigma^2 + log sigma): at the optimum exp(s_t) is twice the task's
    mean loss over its labelled items, so that a noisy task counts less. The second term is masked like the first, else
    rarely labelled tasks would be weighted up.

    Mixed targets (mixup, cutmix) are float (B, num_logits), NaN in a task's columns where a label is missing: a mixed
    item counts for the tasks of which both labels are known. A task that a share f of the items is labelled for then
    counts about f * f times, and the weight 1 / (f * f) makes up for it.

    Args:
        tasks: number of classes of each task.
        weights: w_t by task, 1 where it is not named; higher makes the network care more about the task.
        log_variances: s_t, float (num_tasks,), a parameter of the network; None weights by `weights` alone.
        label_smoothing, focal_gamma: of every task, see `utils.losses.classification_loss`.

    Raises:
        ValueError: no task, or weights of a task that is none.
    """

    def __init__(
        self,
        tasks: Mapping[str, int],
        *,
        weights: Mapping[str, float] | None = None,
        log_variances: Tensor | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> None:
        weights = weights or {}
        if not tasks:
            raise ValueError("an objective of several tasks needs at least one")
        if unknown := sorted(weights.keys() - tasks.keys()):
            raise ValueError(f"weights: unknown task {unknown[0]!r}; known: {', '.join(tasks)}")
        self.names, self.num_classes = tuple(tasks), tuple(tasks.values())
        self.num_hits = 2 * len(tasks)
        self._weights = [float(weights.get(name, 1.0)) for name in tasks]
        self._log_variances = log_variances
        self._options = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma}

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """As in `Objective`."""
        losses, known = self._task_losses(logits, target, **self._options)
        if self._log_variances is not None:
            terms = zip(losses, known, self._log_variances, strict=True)
            losses = [loss * (-s).exp() + is_known * s / 2 for loss, is_known, s in terms]
        weighted = [weight * loss for weight, loss in zip(self._weights, losses, strict=True)]
        return torch.stack(weighted).sum(0) / len(self.names)

    def plain_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """As in `Objective`, the sum over known tasks divided by the number of tasks."""
        return torch.stack(self._task_losses(logits, target)[0]).sum(0) / len(self.names)

    def hits(self, logits: Tensor, target: Tensor) -> Sequence[Tensor]:
        """Of each task top-1, and whether the label is known."""
        found = []
        for task_logits, labels in zip(self._split(logits), target.unbind(1), strict=True):
            is_known = labels >= 0
            found += [(ranks_of(task_logits, labels.clamp_min(0)) <= 1) & is_known, is_known]
        return found

    def score(self, sums: Tensor) -> Score:
        """Top-1 is the mean over tasks of the top-1 over labelled items; tasks without any have no part in it."""
        loss, *counted, num_items = sums.tolist()
        pairs = zip(self.names, counted[::2], counted[1::2], strict=True)
        top1s = {name: hits / num_known for name, hits, num_known in pairs if num_known}
        top1 = sum(top1s.values()) / max(len(top1s), 1)
        return Score(loss / num_items, top1, None, int(num_items), top1s)

    def _task_losses(self, logits: Tensor, target: Tensor, **options: float) -> tuple[list[Tensor], list[Tensor]]:
        """Of each task, unweighted, 0 where the label is missing: float (B,), and where it is known: bool (B,)."""
        found, known = [], []
        for task_logits, task_target in zip(self._split(logits), self._split_target(target), strict=True):
            is_known, filled = _known(task_target)
            losses = classification_loss(task_logits, filled, **options)
            found.append(torch.where(is_known, losses, 0.0))
            known.append(is_known)
        return found, known

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return logits.split(self.num_classes, 1)

    def _split_target(self, target: Tensor) -> tuple[Tensor, ...]:
        return self._split(target) if target.is_floating_point() else target.unbind(1)


def _known(target: Tensor) -> tuple[Tensor, Tensor]:
    """One task's labels (B,) or shares (B, K) -> where they are known, bool (B,), and the target with the rest filled.

    What fills is any valid target: the loss there is dropped, and with it its gradient.
    """
    if target.is_floating_point():
        return ~target.isnan().any(1), target.nan_to_num()
    return target >= 0, target.clamp_min(0)


def find_log_variances(model: nn.Module) -> nn.Parameter | None:
    """The parameter `log_variances` of one of the network's modules; None where it learns no weights of tasks."""
    found = (getattr(module, "log_variances", None) for module in model.modules())
    return next((parameter for parameter in found if isinstance(parameter, nn.Parameter)), None)
