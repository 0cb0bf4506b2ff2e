"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from utils.files import write_with


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and top-1 over epochs, as a PNG."""
    epochs = np.array([row["epoch"] for row in history])
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for name, style in (("train", "C0o-"), ("val", "C1s-")):
        loss_axes.plot(epochs, [row[f"{name}_loss"] for row in history], style, label=name, markersize=3)
        top1 = [row[f"{name}_top1_fraction"] for row in history]
        accuracy_axes.plot(epochs, top1, style, label=name, markersize=3)
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy")
    accuracy_axes.set(xlabel="epoch", ylabel="top-1 (fraction)", ylim=(0, 1))
    accuracy_axes.legend()
    write_with(path, lambda partial: figure.savefig(partial, format="png", dpi=120))
