"""Figures of the evaluation, drawn from its tables: what is right and wrong by class. Equal tables give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from Model_Evaluation.entries import over_seeds, own_entry_ids
from Model_Evaluation.figures_classes import draw_class_distribution
from Model_Evaluation.figures_study import (
    draw_accuracy_against_cost,
    draw_arms_overview,
    draw_comparisons,
    draw_reliability,
    hide_unused,
)
from utils.files import sha256_bytes, write_bytes

_MOST_LABELS = 30  # beyond that names and numbers are unreadable; the tables have them all
_MOST_PAIRS = 12  # beyond that only the claim's pairs have a figure
FIGURE_DPI = 160
_COLOURS = 128
_PANEL_COLUMNS = 3
BAR, INTERVAL = "#2E86C1", "#1A1A1A"
# These need more than tables; others draw them.
PIXEL_PICTURES = ("curves_*.png", "discordant_*.png", "samples_*.png", "grad_cam_*.png", "attention_*.png")
_FROM_TABLES = (
    "confusion_*.png",
    "per_class_*.png",
    "class_distribution.png",
    "reliability.png",
    "arms_overview.png",
    "accuracy_against_cost.png",
    "comparisons.png",
)


def write_figures(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw what the tables have, as PNG; a table that is missing or empty leaves its figures out.

    Figures of other tables, of an earlier call, are removed; those of `PIXEL_PICTURES` stay.

    Args:
        tables: derived tables by name, as in `derived.DERIVED`.
    """
    given = {name: frame for name, frame in tables.items() if frame is not None and not frame.empty}
    written = set()
    for name, figure in _draw_all(given):
        write_bytes(folder / f"{name}.png", _encode(figure))
        written.add(f"{name}.png")
    remove_others(folder, _FROM_TABLES, written)


def copy_pixel_pictures(source: Path, target: Path) -> None:
    """Make the `PIXEL_PICTURES` of a folder of figures those of another; nothing happens where that is not there.

    So tables that are derived again elsewhere keep the pictures that are made of photographs and networks.
    """
    if not source.is_dir() or source.resolve() == target.resolve():
        return
    pictures = [path for pattern in PIXEL_PICTURES for path in sorted(source.glob(pattern))]
    for path in pictures:
        write_bytes(target / path.name, path.read_bytes())
    remove_others(target, PIXEL_PICTURES, {path.name for path in pictures})


def remove_others(folder: Path, patterns: Iterable[str], kept: Collection[str]) -> None:
    """Remove the files of a folder that match a pattern, but those of these names."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.name not in kept:
            path.unlink()


def difference_name(comparison_id: str) -> str:
    """The name of a pair's figure of differences, without suffix."""
    return safe_name(f"confusion_difference_{comparison_id}")


def safe_name(text: str) -> str:
    """A file name of letters, digits, `_`, `.` and `-`; where characters had to go, a hash keeps names apart."""
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "-" for letter in text)
    if name == text and len(name) <= 120:
        return name
    return f"{name[:100]}-{sha256_bytes(text.encode())[:8]}"


def pairs_with_figures(comparisons: pd.DataFrame | None) -> pd.DataFrame:
    """The planned comparisons whose confusion is drawn as a difference: all, or of too many the claim's."""
    planned = over_seeds(comparisons)
    return planned if len(planned) <= _MOST_PAIRS else over_seeds(comparisons, ("claim",))


def mean_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each true class the share that is taken for each class, averaged over runs: (num_classes, num_classes)."""
    counts = rows.pivot_table(index="label", columns="predicted_label", values="num_items", aggfunc="sum")
    counts = counts.astype(float)
    return counts.div(counts.sum(axis=1).clip(lower=1), axis=0)


def draw_confusion(rows: pd.DataFrame, title: str) -> Figure:
    """A run's confusion matrix with its counts: colour is the share of the true class."""
    counts = rows.pivot(index="label", columns="predicted_label", values="num_items")
    texts = [[str(int(count)) if count else "" for count in line] for line in counts.to_numpy()]
    figure, axes = _square_figure(len(counts))
    image = axes.imshow(mean_shares(rows), vmin=0, vmax=1, cmap="Blues")
    _label_matrix(axes, _class_names(rows), texts, dark=mean_shares(rows).to_numpy() > 0.5)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    return figure


def draw_confusion_difference(rows_a: pd.DataFrame, rows_b: pd.DataFrame, title: str) -> Figure:
    """Where one entry's guesses go more often (blue) or more seldom (red) than another's, in points of a true class."""
    difference = 100 * (mean_shares(rows_a) - mean_shares(rows_b)).fillna(0.0)
    values = difference.to_numpy()
    largest = max(float(np.abs(values).max()), 1.0)
    texts = [[f"{value:+.0f}".replace("-", "\u2212") if abs(value) >= 0.5 else "" for value in line] for line in values]
    figure, axes = _square_figure(len(values))
    image = axes.imshow(values, vmin=-largest, vmax=largest, cmap="RdBu")
    _label_matrix(axes, _class_names(rows_a), texts, dark=np.abs(values) > 0.6 * largest)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6, label="difference in points of the true class")
    return figure


def draw_per_class_bars(per_class: pd.DataFrame, metric: str) -> Figure:
    """One panel an entry, one bar a class, averaged over seeds; recall with the mean of the seeds' Wilson intervals."""
    entry_ids = list(dict.fromkeys(per_class["entry_id"]))
    names = _class_names(per_class)
    num_columns = min(_PANEL_COLUMNS, len(entry_ids))
    num_rows = -(-len(entry_ids) // num_columns)
    height = min(8.0, 0.17 * len(names) + 0.7)
    figure = Figure(figsize=(2.6 * num_columns + 1.2, num_rows * height + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes, entry_id in zip(panels.flat, entry_ids, strict=False):
        _draw_class_panel(axes, per_class[per_class["entry_id"] == entry_id], metric)
        axes.set_title(entry_id, fontsize=8)
    hide_unused(panels, len(entry_ids))
    for axes in panels[:, 0]:
        _label_classes(axes, names)
    figure.supxlabel(f"{metric}, %", fontsize=8)
    return figure


def _draw_all(given: dict[str, pd.DataFrame]) -> list[tuple[str, Figure]]:
    figures = []
    if "confusion_flat" in given:
        figures += _confusion_figures(given["confusion_flat"], given.get("comparisons"))
    if "per_class_metrics" in given:
        own = _own_rows(given["per_class_metrics"])
        figures += [(f"per_class_{metric}", draw_per_class_bars(own, metric)) for metric in ("recall", "f1")]
        figures.append(("class_distribution", draw_class_distribution(given["per_class_metrics"])))
    if "calibration" in given:
        figures.append(("reliability", draw_reliability(_own_rows(given["calibration"]))))
    if "arms" in given and "summary" in given:
        figures.append(("arms_overview", draw_arms_overview(given["arms"], given["summary"])))
        own = own_entry_ids(given["summary"])
        cost = draw_accuracy_against_cost(given["arms"], given["summary"], own)
        figures += [("accuracy_against_cost", cost)] if cost else []
    if len(planned := over_seeds(given.get("comparisons"))):
        figures.append(("comparisons", draw_comparisons(planned)))
    return figures


def _confusion_figures(confusion: pd.DataFrame, comparisons: pd.DataFrame | None) -> list[tuple[str, Figure]]:
    figures = [
        (safe_name(f"confusion_{run_id}"), draw_confusion(rows, str(run_id)))
        for run_id, rows in confusion.groupby("run_id", sort=False)
    ]
    of_entry = dict(list(confusion.groupby("entry_id", sort=False)))
    for pair in pairs_with_figures(comparisons).to_dict("records"):
        one, other = pair["entry_a"], pair["entry_b"]
        if one in of_entry and other in of_entry:
            figure = draw_confusion_difference(of_entry[one], of_entry[other], f"{one}\nminus {other}")
            figures.append((difference_name(pair["comparison_id"]), figure))
    return figures


def _encode(figure: Figure) -> bytes:
    """PNG with a palette, a third of the size, without a date or a version."""
    drawn, encoded = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=FIGURE_DPI)
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    palette.save(encoded, format="PNG", optimize=True, dpi=(FIGURE_DPI, FIGURE_DPI))
    return encoded.getvalue()


def _own_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["entry_id"].isin(own_entry_ids(rows))]


def _class_names(rows: pd.DataFrame) -> list[str]:
    return rows.drop_duplicates("label").sort_values("label")["class_name"].astype(str).tolist()


def _square_figure(num_classes: int) -> tuple[Figure, Axes]:
    size = 7.0 if num_classes > _MOST_LABELS else min(16.0, max(4.0, 0.42 * num_classes + 2.4))
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    return figure, figure.subplots()


def _label_matrix(axes: Axes, names: list[str], texts: list[list[str]], dark: np.ndarray) -> None:
    """Names on both sides and a text in each cell, white where the cell is dark; of many classes neither."""
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(names) > _MOST_LABELS:
        axes.set(xlabel=f"predicted class (label of {len(names)})", ylabel="true class (label)")
        return
    axes.set_xticks(range(len(names)), _plain(names), rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), _plain(names), fontsize=8)
    for (row, column), is_dark in np.ndenumerate(dark):
        color = "white" if is_dark else "black"
        inside = {"in_layout": False, "ha": "center", "va": "center"}  # the layout need not measure what is inside
        axes.text(column, row, texts[row][column], fontsize=8, color=color, **inside)


def _draw_class_panel(axes: Axes, rows: pd.DataFrame, metric: str) -> None:
    columns = [metric, "recall_low", "recall_high"]
    means = 100 * rows.groupby("label")[columns].mean().sort_index().astype(float)
    positions = np.arange(len(means))
    axes.barh(positions, means[metric], height=0.75, color=BAR)
    if metric == "recall":
        axes.hlines(positions, means["recall_low"], means["recall_high"], color=INTERVAL, linewidth=1)
    axes.set(xlim=(0, 100))
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_classes(axes: Axes, names: list[str]) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)  # label 0 on top
    if len(names) <= _MOST_LABELS:
        axes.set_yticks(range(len(names)), _plain(names), fontsize=7)
    else:
        axes.set_ylabel("label", fontsize=8)


def _plain(names: list[str]) -> list[str]:
    """Names as they are: a `$` would begin a formula."""
    return [name.replace("$", r"\$") for name in names]
