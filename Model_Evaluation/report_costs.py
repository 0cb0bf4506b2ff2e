"""Sections of the report on what an answer costs: size, latency, the way from the image; noisy timings are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from Model_Evaluation.consistency import TOTAL_STAGE
from Model_Evaluation.entries import own_entry_ids
from Model_Evaluation.latency_noise import NOISY_RATIO, compute_noise_ratio, describe_noise, is_noisy
from Model_Evaluation.report_page import Field, Pictures, breakable, details_html, format_value, table_html

_COSTS = [
    Field("Entry", "entry_id"),
    Field("Top-1, %", "top1_fraction", "percent"),
    Field("Parameters, million", "num_parameters", "millions"),
    Field("Passes an item", "num_passes", "count"),
    Field("Nominal GMACs", "nominal_gmacs", "measure"),
    Field("Executed GMACs", "executed_gmacs", "measure"),
    Field("Latency p50, batch 1, ms", "latency_ms_median", "measure"),
    Field("p95, ms", "latency_ms_p95", "measure"),
    Field("Items a second", "items_per_s", "measure"),
    Field("Training, s", "train_s", "measure"),
    Field("Generation of an item, s", "generation_s_per_item", "measure"),
]
_LATENCIES = [
    Field("Run", "run_id"),
    Field("Device", "device"),
    Field("Precision", "precision"),
    Field("Batch", "batch_size", "count"),
    Field("Repetitions", "num_repetitions", "count"),
    Field("p50, ms", "latency_ms_p50", "measure"),
    Field("p95, ms", "latency_ms_p95", "measure"),
    Field("Items a second", "items_per_s", "measure"),
    Field("Frames a second", "frames_per_s", "measure"),
    Field("First batch's share, %", "first_batch_share", "percent"),
]
_WAYS = [
    Field("Entry", "entry_id"),
    Field("Generator", "generator"),
    Field("Device", "device"),
    Field("Batch", "batch_size", "count"),
    Field("p50, ms", "stage_ms_p50", "measure"),
    Field("p95, ms", "stage_ms_p95", "measure"),
    Field("Items a second", "items_per_s", "measure"),
    Field("Most of it", lambda row: f"{row['largest']} {format_value(row['largest_share'], 'percent')} %"),
]
_STAGES = [
    *_WAYS[:4],
    Field("Stage", "stage"),
    *_WAYS[4:6],
    Field("Share of the total, %", "share_of_total", "percent"),
]
_SUMMARY_TIMES = ("latency_ms_median", "latency_ms_p95")
_PASS_TIMES = ("latency_ms_p50", "latency_ms_p95")
_STAGE_TIMES = ("stage_ms_p50", "stage_ms_p95")
_WAY = ["entry_id", "generator", "device", "batch_size"]


def entry_means(summary: pd.DataFrame) -> pd.DataFrame:
    """One row an entry: the means over its runs of all columns with numbers."""
    numbers = [name for name in summary.columns if pd.api.types.is_numeric_dtype(summary[name])]
    means = summary.astype(dict.fromkeys(numbers, "float64")).groupby("entry_id", sort=False)[numbers].mean()
    return means.reset_index()


def cost_parts(given: Mapping[str, pd.DataFrame], pictures: Pictures) -> list[str]:
    """Top-1 against cost as a figure and a table, and the latency of every run and batch size, as HTML."""
    if "summary" not in given:
        return []
    means = entry_means(given["summary"])
    own = means[means["entry_id"].isin(own_entry_ids(given["summary"]))].to_dict("records")
    points = "; ".join(
        f"{row['entry_id']} {format_value(row['top1_fraction'], 'percent')} % at "
        f"{format_value(row['nominal_gmacs'], 'measure')} nominal GMACs"
        for row in own
    )
    caption = "Top-1 with its 95 % interval against what it costs. Points of equal cost stand side by side."
    if any(_is_noisy(row, _SUMMARY_TIMES) for row in own):
        caption += " Hollow: noisy latency."
    parts = [pictures.html("accuracy_against_cost", f"Top-1 against cost. {points}.", caption)]
    if "latency" in given:
        parts.append(noise_note(given["latency"], _PASS_TIMES))
    title = "Cost of each entry beside its accuracy, averaged over its runs"
    parts.append(_timed_table(title, _COSTS, means.to_dict("records"), _SUMMARY_TIMES))
    if "latency" in given:
        times = given["latency"].to_dict("records")
        title = "Latency of single passes, warm-up excluded, device synchronised"
        table = _timed_table(title, _LATENCIES, times, _PASS_TIMES)
        parts.append(details_html(f"Latency of every run and batch size ({len(times):,} rows)", table))
    return parts


def end_to_end_parts(given: Mapping[str, pd.DataFrame]) -> list[str]:
    """From image to answer: a row an entry and batch size, and the stages of each in a part that can be opened."""
    if "end_to_end" not in given:
        return []
    groups = given["end_to_end"].groupby([*_WAY, "stage"], sort=False)[[*_STAGE_TIMES, "share_of_total"]]
    stages = groups.mean().reset_index()
    rows = [_way_row(part) for _, part in stages.groupby(_WAY, sort=False)]
    caption = "Time from the image file to the answers of a batch, averaged over runs"
    title = "Latency from the image through generation to the answer, stage by stage, averaged over runs"
    table = table_html(title, _STAGES, stages.to_dict("records"), lambda row: row["stage"] == TOTAL_STAGE)
    return [
        noise_note(stages[stages["stage"] == TOTAL_STAGE], _STAGE_TIMES),
        _timed_table(caption, _WAYS, rows, _STAGE_TIMES),
        details_html(f"Stage by stage ({len(stages):,} rows)", table),
    ]


def noise_note(times: pd.DataFrame, names: tuple[str, str]) -> str:
    """A note that says how many entries were timed noisily at each batch size, as HTML; nothing where none was.

    Args:
        times: with `entry_id` and `batch_size`; averaged over an entry's runs.
        names: the columns with p50 and p95.
    """
    means = times.groupby(["batch_size", "entry_id"], sort=False)[list(names)].mean().reset_index()
    clauses = []
    for batch_size, part in means.groupby("batch_size"):
        noisy = [row for row in part.to_dict("records") if _is_noisy(row, names)]
        if noisy:
            worst = max(noisy, key=lambda row: compute_noise_ratio(row[names[0]], row[names[1]]))
            count = f"{len(noisy)} of {len(part)} {'entry' if len(part) == 1 else 'entries'}"
            clauses.append(f"{count} at batch {batch_size} ({worst['entry_id']} is {_noise_of(worst, names)})")
    if not clauses:
        return ""
    text = (
        f"Noisy timings: p95 is more than {NOISY_RATIO:g} x p50 for {'; '.join(clauses)}. The machine had other work, "
        "or the repetitions are too few: small differences between these times mean nothing."
    )
    return f'<p class="note">{breakable(text)}</p>'


def _timed_table(caption: str, fields: list[Field], rows: list[dict[str, Any]], names: tuple[str, str]) -> str:
    """A table whose noisy rows are marked and, where there are any, say so right behind their p95."""
    if not any(_is_noisy(row, names) for row in rows):
        return table_html(caption, fields, rows)
    behind = [field.value for field in fields].index(names[1]) + 1
    noise = Field("Spread", lambda row: format_value(_noise_of(row, names), "text"))
    return table_html(caption, [*fields[:behind], noise, *fields[behind:]], rows, lambda row: _is_noisy(row, names))


def _way_row(stages: pd.DataFrame) -> dict[str, Any]:
    """The total of one entry and batch size, and the stage that takes most of it."""
    is_total = stages["stage"] == TOTAL_STAGE
    row = stages[is_total].iloc[0].to_dict()
    parts = stages if is_total.all() else stages[~is_total]
    largest = parts.sort_values("share_of_total", kind="stable").iloc[-1]
    rate = 1000 * row["batch_size"] / max(row["stage_ms_p50"], 1e-9)
    return row | {"items_per_s": rate, "largest": largest["stage"], "largest_share": largest["share_of_total"]}


def _is_noisy(row: Mapping[str, Any], names: tuple[str, str]) -> bool:
    return is_noisy(*_times(row, names))


def _noise_of(row: Mapping[str, Any], names: tuple[str, str]) -> str:
    return describe_noise(*_times(row, names))


def _times(row: Mapping[str, Any], names: tuple[str, str]) -> list[float | None]:
    return [None if pd.isna(row[name]) else float(row[name]) for name in names]
