"""Costs and times in rows of the derived tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.consistency import TOTAL_STAGE
from Model_Evaluation.scored_runs import ScoredRun

MEASURED_HERE = "measured"  # the column `source`, beside `published`


def summarise_costs(measured: dict[str, pd.DataFrame], run_id: str) -> dict[str, Any]:
    """A run's costs in the summary's columns."""
    cost = measured["model_costs"].set_index("run_id").loc[run_id]
    return {
        "num_passes": int(cost["num_passes"]),
        "num_parameters": int(cost["num_parameters"]),
        "nominal_gmacs": cost["nominal_macs"] / 1e9,
        "executed_gmacs": cost["executed_macs"] / 1e9,
        "train_s": cost["train_s"],
        "generation_s_per_item": cost["generation_s_per_item"],
    }


def summarise_latency(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's latency in the summary's columns: of batch size 1, and the best throughput."""
    single = [row for row in rows if row["batch_size"] == 1]
    return {
        "latency_ms_median": single[0]["latency_ms_p50"] if single else None,
        "latency_ms_p95": single[0]["latency_ms_p95"] if single else None,
        "items_per_s": max((row["items_per_s"] for row in rows), default=None),
    }


def count_frames(measured: dict[str, pd.DataFrame], run_id: str) -> int:
    """Frames that a run's network is given for the answer to one item, in all passes; an image is one."""
    cost = measured["model_costs"].set_index("run_id").loc[run_id]
    _, *size = cost["input_shape"].split("x")  # 3 x H x W or 3 x T x H x W
    return int(cost["num_passes"]) * (int(size[0]) if len(size) == 3 else 1)


def latency_rows(run: ScoredRun, times: pd.DataFrame, frames_per_item: int) -> list[dict[str, Any]]:
    """One row a batch size: median and p95 over repetitions, and what share of all time the first one took.

    Args:
        frames_per_item: see `count_frames`.
    """
    rows = []
    for batch_size, group in times[times["run_id"] == run.run_id].groupby("batch_size", sort=False):
        latencies_ms = group["batch_latency_ms"].to_numpy(dtype=float)
        first_ms = latencies_ms[int(group["repetition"].to_numpy().argmin())]
        p50, p95 = np.percentile(latencies_ms, [50, 95])
        rows.append(
            run.columns
            | {
                "source": MEASURED_HERE,
                **group.iloc[0][["device", "precision"]].to_dict(),
                "batch_size": int(batch_size),
            }
            | {"num_repetitions": len(group), "latency_ms_p50": float(p50), "latency_ms_p95": float(p95)}
            | {"items_per_s": (items_per_s := 1000 * batch_size / max(p50, 1e-9))}
            | {"frames_per_s": frames_per_item * items_per_s}
            | {"first_batch_share": float(first_ms / latencies_ms.sum()) if latencies_ms.sum() > 0 else None}
        )
    return rows


def end_to_end_rows(runs: list[ScoredRun], times: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a stage, `total` among them: median, p95, and the stage's share of the total over all repetitions."""
    columns = {run.run_id: run.columns for run in runs}
    rows = []
    for (run_id, generator, batch_size), group in times.groupby(["run_id", "generator", "batch_size"], sort=False):
        total_ms = group.loc[group["stage"] == TOTAL_STAGE, "stage_ms"].sum()
        names = {"generator": generator, "batch_size": batch_size, **group.iloc[0][["device", "precision"]].to_dict()}
        for stage, parts in group.groupby("stage", sort=False):
            p50, p95 = np.percentile(parts["stage_ms"], [50, 95])
            share = parts["stage_ms"].sum() / total_ms if total_ms > 0 else 0.0
            measures = {"stage_ms_p50": p50, "stage_ms_p95": p95, "share_of_total": share}
            rows.append(columns[run_id] | names | {"stage": stage, "num_repetitions": len(parts)} | measures)
    return rows
