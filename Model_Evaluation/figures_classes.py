"""How many items of each class were scored: a figure, and its sentence."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from Model_Evaluation.report_page import format_value

_BAR = "#2E86C1"
_MOST_NAMES = 30  # beyond that names are unreadable; the table has them all
_GRID = "#DDDDDD"


def count_classes(per_class: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The different sets of items that runs were scored on, each with the first entry that has it.

    Args:
        per_class: rows of `per_class_metrics`.

    Returns:
        entry and a table of `label`, `class_name`, `num_items`, by label; runs on the same counts are one.
    """
    found: dict[tuple[tuple[str, int], ...], tuple[str, pd.DataFrame]] = {}
    for _, rows in per_class.groupby("run_id", sort=False):
        counts = rows.sort_values("label")[["label", "class_name", "num_items"]].reset_index(drop=True)
        key = tuple(zip(counts["class_name"], counts["num_items"].astype(int), strict=True))
        found.setdefault(key, (str(rows["entry_id"].iloc[0]), counts))
    return list(found.values())


def draw_class_distribution(per_class: pd.DataFrame) -> Figure:
    """One panel a set of items, one bar a class with its count."""
    sets = count_classes(per_class)
    most = max(len(counts) for _, counts in sets)
    height = min(8.0, 0.17 * most + 0.7)
    figure = Figure(figsize=(4.6, len(sets) * height + 0.3), layout="constrained")
    panels = figure.subplots(len(sets), 1, squeeze=False)[:, 0]
    for axes, (entry_id, counts) in zip(panels, sets, strict=True):
        bars = axes.barh(range(len(counts)), counts["num_items"].astype(int), height=0.75, color=_BAR)
        axes.set_ylim(len(counts) - 0.5, -0.5)  # label 0 on top
        if len(counts) <= _MOST_NAMES:
            names = [name.replace("$", r"\$") for name in counts["class_name"].astype(str)]  # `$` begins a formula
            axes.set_yticks(range(len(counts)), names, fontsize=7)
            axes.bar_label(bars, fontsize=7, padding=2)
        else:
            axes.set_ylabel("label", fontsize=8)
        if len(sets) > 1:
            axes.set_title(entry_id, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.08)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("scored items", fontsize=8)
    return figure


def describe_distribution(per_class: pd.DataFrame) -> str:
    """How many items there are, and the classes with the fewest and the most."""
    sentences = []
    sets = count_classes(per_class)
    for entry_id, counts in sets:
        ordered = counts.sort_values(["num_items", "label"], kind="stable")
        ends = [f"{row['class_name']} {format_value(row['num_items'], 'count')}" for _, row in ordered.iterrows()]
        total = format_value(counts["num_items"].sum(), "count")
        whose = f" of {entry_id}" if len(sets) > 1 else ""
        sentences.append(f"{total} items{whose} of {len(counts)} classes, from {ends[0]} to {ends[-1]}.")
    return f"Class distribution. {' '.join(sentences)}"
