"""Everything that follows from the measured tables, without a model: the same tables give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.classification_report import REPORT_FILE, format_classification_reports
from Model_Evaluation.comparisons import compare_entries, summarise_entries
from Model_Evaluation.consistency import require_consistency
from Model_Evaluation.cost_rows import (
    MEASURED_HERE,
    count_frames,
    end_to_end_rows,
    latency_rows,
    summarise_costs,
    summarise_latency,
)
from Model_Evaluation.entries import over_seeds
from Model_Evaluation.pairs import SUBJECT
from Model_Evaluation.scored_runs import ScoredRun, build_entries, read_runs
from Model_Evaluation.statistics import (
    compute_calibration_error,
    compute_macro_auc,
    compute_nll,
    compute_reliability,
    compute_wilson,
)
from Model_Evaluation.verdict import NOT_MEASURED, build_verdict, describe_comparison
from utils.artifacts import (
    ARMS,
    CALIBRATION,
    COMPARISONS,
    CONFUSION_FLAT,
    END_TO_END,
    END_TO_END_TIMES,
    INFERENCE_TIMES,
    LATENCY,
    MODEL_COSTS,
    PER_CLASS_METRICS,
    PREDICTIONS,
    PROBABILITIES,
    PROTOCOL_VALUES,
    SUMMARY,
    VERDICT,
    Table,
    read_table,
    write_table,
)
from utils.files import write_text

MEASURED: dict[str, Table] = {
    "predictions": PREDICTIONS,
    "probabilities": PROBABILITIES,
    "inference_times": INFERENCE_TIMES,
    "model_costs": MODEL_COSTS,
    "protocol_values": PROTOCOL_VALUES,
}
OPTIONAL_MEASURED: dict[str, Table] = {"end_to_end_times": END_TO_END_TIMES}
DERIVED: dict[str, Table] = {
    "confusion_flat": CONFUSION_FLAT,
    "per_class_metrics": PER_CLASS_METRICS,
    "calibration": CALIBRATION,
    "latency": LATENCY,
    "arms": ARMS,
    "comparisons": COMPARISONS,
    "verdict": VERDICT,
    "summary": SUMMARY,
}
OPTIONAL_DERIVED: dict[str, Table] = {"end_to_end": END_TO_END}
DONE_FILE = "summary.csv"  # written last
TABLE_FILES = tuple(f"{name}.csv" for name in (*MEASURED, *DERIVED))
OPTIONAL_FILES = tuple(f"{name}.csv" for name in (*OPTIONAL_MEASURED, *OPTIONAL_DERIVED))
_OUTCOMES = {"a": "better", "b": "worse", "undecided": "undecided"}  # of a comparison's first side
OWNED_FILES = (*TABLE_FILES, *OPTIONAL_FILES, REPORT_FILE, "figures", "report.html")
DrawFigures = Callable[[dict[str, pd.DataFrame], Path], None]
_EMPTY_IS_FINE = ("protocol_values",)  # checkpoints from elsewhere do not say how they were trained


def write_derived(results_dir: Path, output_dir: Path, draw_more: DrawFigures | None = None) -> None:
    """Read the measured tables and write the derived ones, the figures and the report; the summary last.

    Args:
        draw_more: draws figures that need more than tables, from all tables by name, into a folder; the report shows
            what it finds there.

    Raises:
        InputError: a measured table is missing or does not fit the others.
    """
    from Model_Evaluation.figures import copy_pixel_pictures, write_figures  # matplotlib, only when figures are drawn
    from Model_Evaluation.report import write_report

    measured = read_measured(results_dir)
    derived = compute_derived(measured)
    *first, last = (OPTIONAL_DERIVED | DERIVED).items()
    for name, table in first:
        if name in derived:
            write_table(derived[name], output_dir / f"{name}.csv", table)
    write_text(
        output_dir / REPORT_FILE, format_classification_reports(measured["predictions"], measured["probabilities"])
    )
    write_figures(measured | derived, output_dir / "figures")
    copy_pixel_pictures(results_dir / "figures", output_dir / "figures")
    if draw_more is not None:
        draw_more(measured | derived, output_dir / "figures")
    write_report(measured | derived, output_dir)
    write_table(derived[last[0]], output_dir / DONE_FILE, last[1])


def read_measured(results_dir: Path) -> dict[str, pd.DataFrame]:
    """The measured tables by name, checked against one another; the optional ones where they are.

    Raises:
        InputError: one is missing or does not fit the others; names file, line and column.
    """
    present = {name: table for name, table in OPTIONAL_MEASURED.items() if (results_dir / f"{name}.csv").exists()}
    measured = {}
    for name, table in (MEASURED | present).items():
        measured[name] = read_table(results_dir / f"{name}.csv", table, allow_empty=name in _EMPTY_IS_FINE)
    require_consistency(measured, results_dir)
    return measured


def compute_derived(measured: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Derived tables from measured ones, by name; runs in the order of `predictions`."""
    runs = read_runs(measured)
    entries = build_entries(runs)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in DERIVED}
    names = _class_names(measured["predictions"])
    ranks = dict(list(measured["predictions"].groupby("run_id", sort=False)["true_label_rank"]))
    for run in runs:
        reliability = compute_reliability(run.is_right, run.probabilities.max(axis=1))
        per_class = compute_per_class(run)
        classes = [names.get((run.run_id, label), (str(label), "")) for label in range(run.num_classes)]
        rows["confusion_flat"] += _confusion_rows(run, classes)
        rows["per_class_metrics"] += [
            run.columns | {"source": MEASURED_HERE} | _class_columns(classes, label) | row
            for label, row in enumerate(per_class)
        ]
        rows["calibration"] += [run.columns | row for row in reliability]
        latency = latency_rows(run, measured["inference_times"], count_frames(measured, run.run_id))
        rows["latency"] += latency
        summary = _summarise(run, ranks[run.run_id].to_numpy(), per_class, compute_calibration_error(reliability))
        costs = summarise_costs(measured, run.run_id)
        rows["summary"].append(run.columns | {"source": MEASURED_HERE} | summary | costs | summarise_latency(latency))
    rows["arms"] = summarise_entries(entries)
    rows["comparisons"] = compare_entries(entries)
    if not any(row["family"] == SUBJECT for row in rows["comparisons"]):  # else its questions were not asked
        rows["verdict"] = build_verdict(rows["comparisons"])
    known = DERIVED
    if "end_to_end_times" in measured:
        known = DERIVED | OPTIONAL_DERIVED
        rows["end_to_end"] = end_to_end_rows(runs, measured["end_to_end_times"])
    entry_ids = {run.run_id: entry.entry_id for entry in entries for run in entry.runs.values()}
    for row in (row for name in known for row in rows[name] if "run_id" in row):
        row["entry_id"] = entry_ids[row["run_id"]]
    return {name: _as_frame(rows[name], table) for name, table in known.items()}


def compute_confusion(run: ScoredRun) -> np.ndarray:
    """Counts int (num_classes, num_classes): true label down, predicted label across."""
    from sklearn.metrics import confusion_matrix

    # Without labels= an absent class would vanish from the matrix and from every macro average.
    return confusion_matrix(run.labels, run.predicted, labels=range(run.num_classes))


def compute_per_class(run: ScoredRun) -> list[dict[str, Any]]:
    """Precision, recall with Wilson's interval, F1 and counts a class; 0 where a class is never predicted or absent."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        run.labels, run.predicted, labels=range(run.num_classes), zero_division=0
    )
    rows = []
    for label in range(run.num_classes):
        num_correct = int((run.is_right & (run.labels == label)).sum())
        low, high = compute_wilson(num_correct, int(support[label]))
        rows.append(
            {
                "precision": precision[label],
                "recall": recall[label],
                "f1": f1[label],
                "recall_low": low,
                "recall_high": high,
                "num_items": int(support[label]),
                "num_predicted": int((run.predicted == label).sum()),
                "num_correct": num_correct,
            }
        )
    return rows


def format_summary(results_dir: Path) -> str:
    """The summary as a small text table for the terminal, what the comparisons answer, and where the files are."""
    summary = read_table(results_dir / DONE_FILE, SUMMARY)
    lines = [("model", "input", "top-1", "top-3", "parameters", "MACs", "latency, batch 1")]
    for row in summary.to_dict("records"):
        lines.append(
            (
                row["run_id"],
                row["test_input"],
                f"{row['top1_fraction']:.3f}",
                _number(row["top3_fraction"], "{:.3f}"),
                _number(row["num_parameters"], "{:.1f} M", 1e6),
                _number(row["nominal_gmacs"], "{:.3f} G"),
                _number(row["latency_ms_median"], "{:.2f} ms"),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "-" * len(body[0]))
    files = [f"tables:  {results_dir}/*.csv", f"figures: {results_dir}/figures/*.png"]
    return "\n".join(["", *body, "", *_verdict_lines(results_dir), *files, f"report:  {results_dir}/report.html"])


def _verdict_lines(results_dir: Path) -> list[str]:
    verdict = read_table(results_dir / "verdict.csv", VERDICT, allow_empty=True)
    answered = verdict[verdict["answer"] != NOT_MEASURED]
    lines = [f"{row['question']} {row['sentence']}" for row in answered.to_dict("records")]
    comparisons = read_table(results_dir / "comparisons.csv", COMPARISONS, allow_empty=True)
    lines += [f"{_OUTCOMES[row['outcome']]}: {describe_comparison(row)}" for row in _of_subject(comparisons)]
    return [*lines, ""] if lines else []


def _of_subject(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Comparisons of arms that say what they differ in, over all seeds."""
    return over_seeds(comparisons, (SUBJECT,)).to_dict("records")


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if pd.isna(value) else form.format(value / unit)


def _as_frame(rows: list[dict[str, Any]], table: Table) -> pd.DataFrame:
    """The table's columns in order with the dtypes `read_table` gives; also without rows."""
    frame = pd.DataFrame(rows, columns=table.column_names, dtype=object)
    kinds = {"int": "int64", "float": "float64"}
    return frame.astype(
        {
            column.name: "Int64" if column.kind == "int" and column.nullable else kinds[column.kind]
            for column in table.columns
            if column.kind != "text"
        }
    )


def _class_names(predictions: pd.DataFrame) -> dict[tuple[str, int], tuple[str, str]]:
    """Name and wnid by run and label; a class that is neither present nor predicted has none."""
    names: dict[tuple[str, int], tuple[str, str]] = {}
    for prefix in ("predicted_", ""):
        columns = ["run_id", f"{prefix}label", f"{prefix}class_name", f"{prefix}wnid"]
        for run_id, label, class_name, wnid in predictions[columns].drop_duplicates().itertuples(index=False):
            names[run_id, label] = (class_name, wnid)
    return names


def _class_columns(classes: list[tuple[str, str]], label: int, prefix: str = "") -> dict[str, Any]:
    class_name, wnid = classes[label]
    return {f"{prefix}label": label, f"{prefix}class_name": class_name, f"{prefix}wnid": wnid}


def _confusion_rows(run: ScoredRun, classes: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        run.columns
        | {"source": MEASURED_HERE, "num_items": int(count)}
        | _class_columns(classes, label)
        | _class_columns(classes, guess, "predicted_")
        for (label, guess), count in np.ndenumerate(compute_confusion(run))
    ]


def _summarise(
    run: ScoredRun, ranks: np.ndarray, per_class: list[dict[str, Any]], calibration_error: float
) -> dict[str, Any]:
    num_items, enough = len(ranks), run.num_classes >= 3
    first, third = int((ranks <= 1).sum()), int((ranks <= 3).sum())
    top1, top3 = compute_wilson(first, num_items), compute_wilson(third, num_items)
    return {
        "num_items": num_items,
        "num_classes": run.num_classes,
        "top1_fraction": first / num_items,
        "top1_low": top1[0],
        "top1_high": top1[1],
        "top3_fraction": third / num_items if enough else None,
        "top3_low": top3[0] if enough else None,
        "top3_high": top3[1] if enough else None,
        **{f"macro_{name}": float(np.mean([row[name] for row in per_class])) for name in ("precision", "recall", "f1")},
        "macro_auc": compute_macro_auc(run.labels, run.probabilities),
        "nll": compute_nll(run.labels, run.probabilities),
        "calibration_error": calibration_error,
        "num_errors": num_items - first,
        "note": "" if enough else f"top-3 left empty: only {run.num_classes} classes",
    }
