"""Figures over the arms of a study: accuracy with intervals, paired differences, cost, reliability."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from Model_Evaluation.entries import is_3d
from Model_Evaluation.latency_noise import NOISY_RATIO, is_noisy

# After Okabe and Ito, told apart by colour-blind readers, but darker: a contrast of 3 on white. Markers differ, too.
COLOURS = ("#0072B2", "#C24E00", "#007A59", "#B0508A", "#9A6B00", "#5B3A9E", "#000000")
_MARKERS = "osD^v<>PX*hp"
_2D, _3D = {"color": COLOURS[0], "marker": "o"}, {"color": COLOURS[1], "marker": "s"}
_GREY, _LIGHT = "#555555", "#DDDDDD"
_SIDE_INCHES = 0.08
_WIDTH = 4.6  # inches: one column of a page
_COSTS = (
    ("nominal_gmacs", "nominal GMACs of an item"),
    ("executed_gmacs", "executed GMACs of an item"),
    ("latency_ms_median", "latency at batch 1, ms"),
    ("train_s", "training time, s"),
)
_LATENCY = "latency_ms_median"
_PANEL_COLUMNS = 3


def draw_arms_overview(arms: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Top-1 of each entry: mean over seeds with its interval, and a small dot a seed.

    Args:
        summary: with `entry_id`, one row a run.
    """
    figure, axes = _row_figure(len(arms), "top-1, %: mean over seeds, 95 % interval, small dots are seeds")
    for row, entry in enumerate(arms.to_dict("records")):
        style = _3D if is_3d(entry["model"]) else _2D
        low, mean, high = (100 * entry[f"top1_{name}"] for name in ("low", "mean", "high"))
        axes.hlines(row, low, high, color=style["color"], linewidth=2)
        axes.plot(mean, row, linestyle="", markersize=6, **style)
        seeds = 100 * summary["top1_fraction"][summary["entry_id"] == entry["entry_id"]].astype(float)
        axes.plot(seeds, np.full(len(seeds), row + 0.22), "o", markersize=2.5, color=_GREY)
        _label_row(axes, row, f"{entry['entry_id']}  ({mean:.1f})")
    handles = [axes.plot([], [], linestyle="", **style)[0] for style in (_2D, _3D)]
    figure.legend(
        handles, ["2-D network", "3-D network"], loc="outside upper right", ncols=2, fontsize=7, frameon=False
    )
    return figure


def draw_comparisons(planned: pd.DataFrame) -> Figure:
    """The paired difference of each comparison with its interval, and a line at no difference."""
    figure, axes = _row_figure(len(planned), "difference in top-1, points (first minus second), 95 % interval")
    axes.axvline(0, color=_GREY, linewidth=1)
    for row, pair in enumerate(planned.to_dict("records")):
        decided = pair["outcome"] != "undecided"
        color = COLOURS[0] if decided else _GREY
        low, middle, high = (100 * pair[name] for name in ("difference_low", "difference", "difference_high"))
        axes.hlines(row, low, high, color=color, linewidth=2)
        axes.plot(middle, row, "o", markersize=6, color=color, markerfacecolor=color if decided else "white")
        _label_row(axes, row, f"{pair['entry_a']}  against  {pair['entry_b']}  ({middle:+.1f})")
    return figure


def draw_accuracy_against_cost(arms: pd.DataFrame, summary: pd.DataFrame, entry_ids: list[str]) -> Figure | None:
    """A panel for each cost that is known of some entry: top-1 with its interval against the mean over the runs.

    Args:
        summary: with `entry_id`, one row a run.
        entry_ids: whose points are drawn.

    Returns:
        None where no cost is known.
    """
    entries = arms[arms["entry_id"].isin(entry_ids)]
    costs = summary.groupby("entry_id")[[name for name, _ in _COSTS]].mean().reindex(entries["entry_id"]).astype(float)
    tails = summary.groupby("entry_id")["latency_ms_p95"].mean().reindex(entries["entry_id"]).astype(float)
    noisy = np.array([is_noisy(*times) for times in zip(costs[_LATENCY], tails, strict=True)])
    known = [(name, label) for name, label in _COSTS if (costs[name] > 0).any()]
    if not known:
        return None
    num_columns = min(2, len(known))
    num_rows = -(-len(known) // num_columns)
    size = (3.3 * num_columns, 2.5 * num_rows + 0.4 + 0.16 * -(-len(entries) // 2))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for axes, (name, label) in zip(panels.flat, known, strict=False):
        hollow = noisy & (name == _LATENCY)
        label += f"\nhollow: noisy, p95 above {NOISY_RATIO:g} x p50" if hollow.any() else ""
        _draw_cost_panel(axes, entries, costs[name].to_numpy(), label, hollow)
    hide_unused(panels, len(known))
    for axes in panels[:, 0]:
        axes.set_ylabel("top-1, %", fontsize=8)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    title = "entries of equal cost stand side by side"
    place = {"loc": "outside lower center", "ncols": 2, "frameon": False}
    figure.legend(handles, labels, title=title, fontsize=7, title_fontsize=7, **place)
    return figure


def draw_reliability(calibration: pd.DataFrame) -> Figure:
    """One panel an entry: share of right items against mean confidence, seeds pooled; a dot's area is its items."""
    entry_ids = list(dict.fromkeys(calibration["entry_id"]))
    num_columns = min(_PANEL_COLUMNS, len(entry_ids))
    num_rows = -(-len(entry_ids) // num_columns)
    figure = Figure(figsize=(2.3 * num_columns + 0.4, 2.4 * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes, entry_id in zip(panels.flat, entry_ids, strict=False):
        _draw_reliability_panel(axes, calibration[calibration["entry_id"] == entry_id])
        axes.set_title(entry_id, fontsize=7)
    hide_unused(panels, len(entry_ids))
    figure.supxlabel("mean confidence, %", fontsize=8)
    figure.supylabel("right, %", fontsize=8)
    return figure


def pool_bins(calibration: pd.DataFrame) -> pd.DataFrame:
    """Bins over several runs: `num_items`, and the two means weighted by items; bins without items are left out."""
    rows = calibration[calibration["num_items"] > 0]
    weights = rows["num_items"].astype(float)
    sums = pd.DataFrame({"bin": rows["bin"], "num_items": weights})
    for name in ("mean_confidence", "top1_fraction"):
        sums[name] = rows[name].astype(float) * weights
    pooled = sums.groupby("bin").sum()
    for name in ("mean_confidence", "top1_fraction"):
        pooled[name] /= pooled["num_items"]
    return pooled


def hide_unused(panels: np.ndarray, num_used: int) -> None:
    """Leave out the panels of a grid behind the last used one; the ones above them show their axis' numbers."""
    for axes in panels.flat[num_used:]:
        axes.set_visible(False)
    for axes in panels.flat[max(0, num_used - panels.shape[1]) : num_used]:
        axes.xaxis.set_tick_params(labelbottom=True)


def _draw_reliability_panel(axes: Axes, rows: pd.DataFrame) -> None:
    bins = pool_bins(rows)
    axes.plot([0, 100], [0, 100], color=_GREY, linewidth=0.8, linestyle="--")
    confidence, right = 100 * bins["mean_confidence"], 100 * bins["top1_fraction"]
    area = 6 + 90 * bins["num_items"] / max(bins["num_items"].sum(), 1)
    axes.plot(confidence, right, color=COLOURS[0], linewidth=1)
    axes.scatter(confidence, right, s=area, color=COLOURS[0])
    axes.set(xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes.tick_params(labelsize=7)
    axes.grid(color=_LIGHT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_cost_panel(axes: Axes, entries: pd.DataFrame, costs: np.ndarray, label: str, hollow: np.ndarray) -> None:
    for position, (entry, cost) in enumerate(zip(entries.to_dict("records"), costs, strict=True)):
        # Entries of one network cost the same: side by side they can be told apart.
        equal = np.isclose(costs, cost, rtol=0.02)
        offset = int(equal[:position].sum()) - (int(equal.sum()) - 1) / 2
        side = ScaledTranslation(offset * _SIDE_INCHES, 0, axes.figure.dpi_scale_trans)
        style = {"marker": _MARKERS[position % len(_MARKERS)], "color": COLOURS[position % len(COLOURS)]}
        style |= {"markerfacecolor": "white"} if hollow[position] else {}
        low, mean, high = (100 * entry[f"top1_{name}"] for name in ("low", "mean", "high"))
        bars = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
        # Where the cost is not known there is no point, but the legend is whole.
        style |= {"linestyle": "", "elinewidth": 1, "markersize": 5, "label": entry["entry_id"]}
        axes.errorbar(cost if cost > 0 else np.nan, mean, bars, transform=axes.transData + side, **style)
        if cost > 0:
            axes.update_datalim([(cost, low), (cost, high)])  # which a mark that is set aside does not do
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2, y=0.05)
    axes.autoscale_view()
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _row_figure(num_rows: int, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, 0.36 * num_rows + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.set(ylim=(num_rows - 0.4, -0.75), yticks=[])
    axes.set_xlabel(label, fontsize=7.5)
    axes.tick_params(labelsize=7.5)
    axes.grid(axis="x", color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(x=0.04)
    return figure, axes


def _label_row(axes: Axes, row: int, text: str) -> None:
    """The row's name above its marks: a long one needs no margin."""
    place = axes.get_yaxis_transform()
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    text = text.replace("$", r"\$")  # which would begin a formula
    axes.text(0.0, row - 0.42, text, transform=place, fontsize=7, va="center", color="#1A1A1A", bbox=box)
