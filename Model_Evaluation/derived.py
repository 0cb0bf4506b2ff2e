"""Everything that follows from the four measured tables, without a model: the same tables give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.artifacts import (
    CONFUSION_FLAT,
    INFERENCE_TIMES,
    MODEL_COSTS,
    PER_CLASS_METRICS,
    PREDICTIONS,
    PROBABILITIES,
    RUN_COLUMNS,
    SUMMARY,
    Table,
    read_table,
    write_table,
)
from utils.errors import InputError

MEASURED: dict[str, Table] = {
    "predictions": PREDICTIONS,
    "probabilities": PROBABILITIES,
    "inference_times": INFERENCE_TIMES,
    "model_costs": MODEL_COSTS,
}
DERIVED: dict[str, Table] = {
    "confusion_flat": CONFUSION_FLAT,
    "per_class_metrics": PER_CLASS_METRICS,
    "summary": SUMMARY,
}
DONE_FILE = "summary.csv"  # written last
TABLE_FILES = tuple(f"{name}.csv" for name in (*MEASURED, *DERIVED))
OWNED_FILES = (*TABLE_FILES, "figures")


def write_derived(results_dir: Path, output_dir: Path) -> None:
    """Read the four measured tables and write `DERIVED` tables and the figures, the summary last.

    Raises:
        InputError: a measured table is missing or does not fit the others.
    """
    from Model_Evaluation.figures import write_figures  # matplotlib, only when figures are drawn

    measured = {name: read_table(results_dir / f"{name}.csv", table) for name, table in MEASURED.items()}
    _require_consistency(measured, results_dir)
    derived = compute_derived(measured)
    write_figures(derived["confusion_flat"], derived["per_class_metrics"], output_dir / "figures")
    for name, table in DERIVED.items():
        write_table(derived[name], output_dir / f"{name}.csv", table)


def compute_derived(measured: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Derived tables from measured ones, by name; runs in the order of `predictions`."""
    predictions = measured["predictions"]
    counts = measured["probabilities"].groupby("run_id")["label"].max() + 1
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in DERIVED}
    for run_id, rows in predictions.groupby("run_id", sort=False):
        num_classes = int(counts[run_id])
        matrix = compute_confusion(rows, num_classes)
        columns = rows.iloc[0][list(RUN_COLUMNS)].to_dict()
        names = _class_names(rows, num_classes)
        per_class = compute_per_class(rows, num_classes)
        parts["confusion_flat"] += _confusion_rows(columns, matrix, names)
        parts["per_class_metrics"] += [
            columns | {"label": label, "class_name": names[label]} | row for label, row in enumerate(per_class)
        ]
        parts["summary"].append(columns | _summarise(rows, per_class) | _summarise_costs(measured, run_id))
    return {name: pd.DataFrame(rows) for name, rows in parts.items()}


def compute_confusion(predictions: pd.DataFrame, num_classes: int) -> np.ndarray:
    """Counts int (num_classes, num_classes): true label down, predicted label across."""
    from sklearn.metrics import confusion_matrix

    # Without labels= an absent class would vanish from the matrix and from every macro average.
    return confusion_matrix(
        predictions["label"].to_numpy(), predictions["predicted_label"].to_numpy(), labels=range(num_classes)
    )


def compute_per_class(predictions: pd.DataFrame, num_classes: int) -> list[dict[str, float]]:
    """Precision, recall, F1 and counts a class; 0 where a class is never predicted or absent."""
    from sklearn.metrics import precision_recall_fscore_support

    labels, predicted = predictions["label"].to_numpy(), predictions["predicted_label"].to_numpy()
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(num_classes), zero_division=0
    )
    return [
        {
            "precision": precision[label],
            "recall": recall[label],
            "f1": f1[label],
            "num_items": int(support[label]),
            "num_predicted": int((predicted == label).sum()),
            "num_correct": int(((predicted == label) & (labels == label)).sum()),
        }
        for label in range(num_classes)
    ]


def format_summary(results_dir: Path) -> str:
    """The summary as a small text table for the terminal, and where the files are."""
    summary = read_table(results_dir / DONE_FILE, SUMMARY)
    lines = [("model", "input", "top-1", "top-3", "parameters", "MACs", "latency, batch 1")]
    for row in summary.to_dict("records"):
        lines.append(
            (
                row["run_id"],
                row["test_input"],
                f"{row['top1_fraction']:.3f}",
                "-" if pd.isna(row["top3_fraction"]) else f"{row['top3_fraction']:.3f}",
                f"{row['num_parameters'] / 1e6:.1f} M",
                f"{row['nominal_gmacs']:.3f} G",
                "-" if pd.isna(row["latency_ms_median"]) else f"{row['latency_ms_median']:.2f} ms",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "-" * len(body[0]))
    return "\n".join(["", *body, "", f"tables:  {results_dir}/*.csv", f"figures: {results_dir}/figures/*.png"])


def _class_names(rows: pd.DataFrame, num_classes: int) -> list[str]:
    """Names by label; a class that is neither present nor predicted is called by its number."""
    names = dict(zip(rows["predicted_label"], rows["predicted_class_name"], strict=True))
    names |= dict(zip(rows["label"], rows["class_name"], strict=True))
    return [names.get(label, str(label)) for label in range(num_classes)]


def _confusion_rows(columns: dict[str, Any], matrix: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    return [
        columns
        | {
            "label": label,
            "class_name": names[label],
            "predicted_label": guess,
            "predicted_class_name": names[guess],
            "num_items": int(matrix[label, guess]),
        }
        for label in range(len(names))
        for guess in range(len(names))
    ]


def _summarise(rows: pd.DataFrame, per_class: list[dict[str, float]]) -> dict[str, Any]:
    ranks = rows["true_label_rank"].to_numpy()
    enough = len(per_class) >= 3
    return {
        "num_items": len(rows),
        "num_classes": len(per_class),
        "top1_fraction": float((ranks <= 1).mean()),
        "top3_fraction": float((ranks <= 3).mean()) if enough else None,
        "macro_precision": float(np.mean([row["precision"] for row in per_class])),
        "macro_recall": float(np.mean([row["recall"] for row in per_class])),
        "macro_f1": float(np.mean([row["f1"] for row in per_class])),
        "num_errors": int((ranks > 1).sum()),
        "note": "" if enough else f"top-3 left empty: only {len(per_class)} classes",
    }


def _summarise_costs(measured: dict[str, pd.DataFrame], run_id: str) -> dict[str, Any]:
    cost = measured["model_costs"].set_index("run_id").loc[run_id]
    times = measured["inference_times"]
    single = times[(times["run_id"] == run_id) & (times["batch_size"] == 1)]["batch_latency_ms"]
    return {
        "num_parameters": int(cost["num_parameters"]),
        "nominal_gmacs": cost["nominal_macs"] / 1e9,
        "latency_ms_median": float(single.median()) if len(single) else None,
        "latency_ms_p95": float(np.percentile(single, 95)) if len(single) else None,
    }


def _require_consistency(measured: dict[str, pd.DataFrame], results_dir: Path) -> None:
    """Refuse tables of different runs, and predictions that contradict themselves."""
    expected = set(measured["predictions"]["run_id"])
    for name, frame in measured.items():
        if missing := sorted(expected - set(frame["run_id"])):
            raise InputError(f"{results_dir / name}.csv: run {missing[0]!r} of predictions.csv is missing; rerun")
    by_run = measured["probabilities"].groupby("run_id")["label"]
    counts, sizes = by_run.max() + 1, by_run.size()
    for run_id, num_items in measured["predictions"].groupby("run_id").size().items():
        if sizes[run_id] != num_items * counts[run_id]:
            raise InputError(
                f"{results_dir / 'probabilities.csv'}: run {run_id!r} has {sizes[run_id]} rows, expected {num_items} "
                f"items x {counts[run_id]} classes; rerun"
            )
    for line, row in measured["predictions"].iterrows():
        where = f"{results_dir / 'predictions.csv'} line {line}"
        if max(row["label"], row["predicted_label"]) >= counts[row["run_id"]]:
            raise InputError(f"{where}: a label is outside the classes of probabilities.csv")
        if (row["label"] == row["predicted_label"]) != (row["true_label_rank"] == 1):
            raise InputError(f"{where}: true_label_rank {row['true_label_rank']} contradicts predicted_label; rerun")
