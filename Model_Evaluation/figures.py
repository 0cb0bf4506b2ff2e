"""Figures of the evaluation, drawn from its derived tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.files import write_with

_MOST_LABELS = 30  # beyond that names and numbers are unreadable; the tables have them all


def write_figures(confusion_flat: pd.DataFrame, per_class: pd.DataFrame, folder: Path) -> None:
    """One confusion matrix a run, and one chart of per-class F1 over all runs, as PNG."""
    for run_id, rows in confusion_flat.groupby("run_id", sort=False):
        _save(draw_confusion(rows, str(run_id)), folder / f"confusion_{run_id}.png")
    for metric in ("precision", "recall", "f1"):
        _save(draw_per_class_bars(per_class, metric), folder / f"per_class_{metric}.png")


def draw_confusion(rows: pd.DataFrame, title: str) -> Figure:
    """A confusion matrix with its counts: colour is the share of the true class."""
    table = rows.pivot(index="label", columns="predicted_label", values="num_items")
    counts = table.to_numpy()
    names = rows.drop_duplicates("label").set_index("label")["class_name"].loc[table.index].tolist()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(16.0, max(4.0, 0.55 * len(names) + 2))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count and len(names) <= _MOST_LABELS:
            axes.text(
                column,
                row,
                int(count),
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    if len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    return figure


def draw_per_class_bars(per_class: pd.DataFrame, metric: str) -> Figure:
    """One group of bars a class, one bar a run: `metric` is precision, recall or f1."""
    runs = list(per_class["run_id"].unique())
    names = per_class.drop_duplicates("label").sort_values("label")["class_name"].tolist()
    figure = Figure(figsize=(min(24.0, max(6.0, 0.9 * len(names))), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for position, run_id in enumerate(runs):
        rows = per_class[per_class["run_id"] == run_id].sort_values("label")
        offset = (position - (len(runs) - 1) / 2) * width
        axes.bar(rows["label"] + offset, rows[metric], width, label=run_id)
    if len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set(ylabel=metric, ylim=(0, 1))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=min(len(runs), 4))
    return figure


def _save(figure: Figure, path: Path) -> None:
    # Without a date and software entry equal figures are equal bytes.
    write_with(path, lambda partial: figure.savefig(partial, format="png", dpi=120, metadata={"Software": None}))
