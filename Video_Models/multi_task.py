"""Heads of several tasks on one backbone: for each task a small adapter of the shared features and a linear layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

_START_STD = 1e-2  # of the adapter's last layer: nearly the identity at first (Houlsby et al. 2019)


class BottleneckAdapter(nn.Module):
    """features + up(gelu(down(norm(features)))): what one task changes of the shared features (Houlsby et al. 2019).

    Args:
        width: of the bottleneck; higher lets a task differ more and has more weights.
    """

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_width)
        self.down = nn.Linear(feature_width, width)
        self.up = nn.Linear(width, feature_width)
        nn.init.normal_(self.up.weight, std=_START_STD)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Float (B, feature_width) -> the same shape."""
        return features + self.up(nn.functional.gelu(self.down(self.norm(features))))


class TaskHeads(nn.Module):
    """An adapter and a linear layer for each task.

    Modules go by position, not by name: a task may be called anything.

    Args:
        feature_width: of the backbone's features.
        tasks: number of classes of each task.
        adapter_width: see `BottleneckAdapter`.
        learn_weights: have `log_variances`, from which the loss weights the tasks, see
            `utils.objectives.TaskLabelsObjective`.
        dropout: share of the adapted features that is dropped before each linear layer while training.

    Attributes:
        tasks: as given, in the order of the logits.
        log_variances: float (num_tasks,), 0 at first; None without `learn_weights`. It takes no part in `forward`.

    Raises:
        ValueError: no task, or one with fewer than two classes.
    """

    def __init__(
        self,
        feature_width: int,
        tasks: Mapping[str, int],
        adapter_width: int = 64,
        learn_weights: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("tasks: needs at least one task")
        for name, num_classes in tasks.items():
            if num_classes < 2:
                raise ValueError(f"tasks: {name!r} has {num_classes} classes, expected 2 or more")
        self.adapters = nn.ModuleList(BottleneckAdapter(feature_width, adapter_width) for _ in tasks)
        self.dropout = nn.Dropout(dropout)
        self.classifiers = nn.ModuleList(nn.Linear(feature_width, num_classes) for num_classes in tasks.values())
        self.log_variances = nn.Parameter(torch.zeros(len(tasks))) if learn_weights else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features float (B, feature_width) -> logits of all tasks side by side, (B, sum of classes)."""
        heads = zip(self.adapters, self.classifiers, strict=True)
        return torch.cat([classify(self.dropout(adapt(features))) for adapt, classify in heads], 1)
