"""Training curves, as a picture and for TensorBoard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from utils.files import write_with
from utils.history import BY_TASK


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and top-1 over epochs, as a PNG."""
    epochs = np.array([row["epoch"] for row in history])
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for name, style in (("train", "C0o-"), ("selection", "C1s-")):
        loss_axes.plot(epochs, [row[f"{name}_loss"] for row in history], style, label=name, markersize=3)
        top1 = [row[f"{name}_top1_fraction"] for row in history]
        accuracy_axes.plot(epochs, top1, style, label=name, markersize=3)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    accuracy_axes.set(xlabel="epoch", ylabel="top-1 (fraction)", ylim=(0, 1))
    accuracy_axes.legend()
    write_with(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def write_events(folder: Path, epochs: list[dict[str, Any]], updates: list[dict[str, Any]]) -> None:
    """The rows of `history.csv` and `updates.csv` as TensorBoard's events; what was there is replaced.

    An event file can only grow, so that a resumed run would show some steps twice; the rows are few.
    """
    from torch.utils.tensorboard import SummaryWriter  # a second, and only where it was asked for

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for row in updates:
            writer.add_scalar("update/train_loss", row["train_loss"], row["update"])
            writer.add_scalar("update/learning_rate", row["learning_rate"], row["update"])
        for row in epochs:
            scalars = {name: row[name] for name in row.keys() - {"epoch", "update", "learning_rate", BY_TASK}}
            scalars |= {f"selection_top1_fraction/{task}": top1 for task, top1 in row.get(BY_TASK, {}).items()}
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(f"epoch/{name}", value, row["epoch"])
