"""The paper's results, every number compared with all places where it stands.

The confusion matrix of `modelXd_metrics.json` is what the others are compared with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from Model_Evaluation.published_files import (
    MetricsFile,
    SummaryEntry,
    SummaryFile,
    published_files,
    read_csv,
    read_json,
    require_count,
)
from Model_Evaluation.published_run import METRICS, RUN_IDS, Batch, PublishedRun
from utils.artifacts import Column, Table
from utils.errors import InputError

_RELATIVE_ERROR = 1e-9  # the files differ in the last digit of a double


def read_published(source: Path, num_classes: int) -> dict[str, PublishedRun]:
    """Both networks' results, each number compared with all places where it stands.

    Raises:
        InputError: a file is missing or malformed, or two places contradict each other: file, line or key, both values.
    """
    if missing := [path for path in published_files(source).values() if not path.is_file()]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{missing[0]}: there is no such file{more}; give source=DIR the folder of the paper's results"
        )
    summary = read_json(source / "summary.json", SummaryFile)
    runs = {run_id: _read_run(source, run_id, num_classes, getattr(summary, run_id)) for run_id in RUN_IDS}
    first, second = runs.values()
    for label in range(num_classes):
        _require_equal(
            f"{source / f'{second.run_id}_metrics.json'}: the sum of confusion_matrix.{label}",
            second.num_of_class(label),
            first.num_of_class(label),
            f"{first.run_id}_metrics.json",
        )
    return runs


def _read_run(source: Path, run_id: str, num_classes: int, summary: SummaryEntry) -> PublishedRun:
    path = source / f"{run_id}_metrics.json"
    metrics = read_json(path, MetricsFile)
    _require_shape(path, metrics, num_classes)
    top3_hits = metrics.top3 * sum(map(sum, metrics.confusion_matrix))
    run = PublishedRun(
        run_id, metrics.confusion_matrix, round(top3_hits), _split_batches(path, metrics.inference_times)
    )
    _require_totals(path, metrics, run, top3_hits)
    _compare_confusion(source, run)
    _compare_metrics(source, path, metrics, run)
    _compare_times(source, path, metrics.inference_times, run_id)
    _compare_summary(source, metrics, summary, run_id)
    return run


def _require_shape(path: Path, metrics: MetricsFile, num_classes: int) -> None:
    matrix = metrics.confusion_matrix
    for row, cells in enumerate(matrix):
        if len(cells) != len(matrix):
            raise InputError(
                f"{path}: confusion_matrix.{row} has {len(cells)} counts, expected {len(matrix)}, as many as rows"
            )
    if len(matrix) != num_classes:
        raise InputError(f"{path}: confusion_matrix has {len(matrix)} classes, but 'classes' lists {num_classes}")
    for name in METRICS:
        if len(getattr(metrics, name)) != num_classes:
            raise InputError(f"{path}: {name} has {len(getattr(metrics, name))} values, expected {num_classes}")


def _require_totals(path: Path, metrics: MetricsFile, run: PublishedRun, top3_hits: float) -> None:
    if run.num_items == 0:
        raise InputError(f"{path}: confusion_matrix counts no items; restore the published file")
    if len(metrics.inference_times) != run.num_items:
        raise InputError(
            f"{path}: has {len(metrics.inference_times)} inference_times, but confusion_matrix counts {run.num_items} "
            "items; restore the published file"
        )
    if not math.isclose(top3_hits, run.top3_hits, rel_tol=1e-6, abs_tol=1e-6) or run.top3_hits < run.hits:
        raise InputError(
            f"{path}: top3 is {metrics.top3:g}, not a share of {run.num_items} items of which {run.hits} are right; "
            "restore the published file"
        )
    if run.total_s == 0:
        raise InputError(f"{path}: inference_times are all 0; restore the published file")


def _split_batches(path: Path, times: Sequence[float]) -> tuple[Batch, ...]:
    """Batches from times that are repeated for each item of a batch; all but the last are as large as the first.

    Two batches that took exactly equally long stand as one longer row of equal times, and are split.
    """
    groups = [(seconds, len(list(items))) for seconds, items in itertools.groupby(times)]
    size = groups[0][1]
    batches: list[Batch] = []
    position = 0
    for seconds, count in groups:
        is_last = position + count == len(times)
        if count % size and not is_last:
            raise InputError(
                f"{path}: inference_times.{position} stands {count} times in a row, expected multiples of {size} as in "
                "the first batch (one time a batch, repeated for its items); restore the published file"
            )
        sizes = [size] * (count // size) + ([count % size] if count % size else [])
        batches += [Batch(items, Fraction(seconds) * items) for items in sizes]
        position += count
    return tuple(batches)


def _compare_confusion(source: Path, run: PublishedRun) -> None:
    labels = range(len(run.matrix))
    says = f"{run.run_id}_metrics.json"
    path = source / f"{run.run_id}_confusion.csv"
    columns = tuple(Column(str(label), "int", minimum=0) for label in labels)
    square = read_csv(path, Table("published confusion", columns), len(labels))
    for label, (line, row) in zip(labels, square.iterrows(), strict=True):
        for guess in labels:
            where = f"{path} line {line}: column {str(guess)!r}"
            _require_equal(where, row[str(guess)], run.matrix[label][guess], says)

    path = source / f"confusion{run.run_id[-2:]}_flat.csv"
    columns = tuple(Column(name, "int", minimum=0) for name in ("actual", "predicted", "count"))
    table = Table("flat confusion", (*columns, _model_column(run.run_id)), unique=("actual", "predicted"))
    for line, row in read_csv(path, table, len(labels) ** 2).iterrows():
        for name in ("actual", "predicted"):
            if row[name] >= len(labels):
                raise InputError(f"{path} line {line}: column {name!r} is {row[name]}, expected below {len(labels)}")
        where = f"{path} line {line}: 'count' of actual {row['actual']} predicted as {row['predicted']}"
        _require_equal(where, row["count"], run.matrix[row["actual"]][row["predicted"]], says)


def _compare_metrics(source: Path, path: Path, metrics: MetricsFile, run: PublishedRun) -> None:
    says = "the confusion matrix"
    _require_equal(f"{path}: top1", metrics.top1, Fraction(run.hits, run.num_items), says)
    labels = range(len(run.matrix))
    for name in METRICS:
        for label in labels:
            _require_equal(f"{path}: {name}.{label}", getattr(metrics, name)[label], run.metric(name, label), says)
    columns = tuple(Column(name, "float", minimum=0) for name in METRICS)
    report = source / f"{run.run_id}_precision_recall_f1_report.csv"
    rows = read_csv(report, Table("published report", columns), len(labels)).iterrows()
    _compare_rows(report, zip(labels, rows, strict=True), run, says)
    path = source / "per_class_metrics.csv"
    table = Table(
        "published per-class metrics",
        (Column("class", "int", minimum=0), *columns, Column("model", choices=RUN_IDS)),
        unique=("model", "class"),
    )
    rows = read_csv(path, table, len(RUN_IDS) * len(labels))
    for line, label in rows["class"].items():
        if label >= len(labels):
            raise InputError(f"{path} line {line}: column 'class' is {label}, expected below {len(labels)}")
    own = rows[rows["model"] == run.run_id]
    _compare_rows(path, ((row["class"], (line, row)) for line, row in own.iterrows()), run, says)


def _compare_rows(path: Path, rows: Iterable[tuple[int, tuple[Any, Any]]], run: PublishedRun, says: str) -> None:
    for label, (line, row) in rows:
        for name in METRICS:
            where = f"{path} line {line}: column {name!r} of class {label}"
            _require_equal(where, row[name], run.metric(name, label), says)


def _compare_times(source: Path, metrics_path: Path, times: Sequence[float], run_id: str) -> None:
    path = source / f"inference_times{run_id[-2:]}.csv"
    column = Column("inference_time", "float", minimum=0)
    rows = read_csv(path, Table("published inference times", (column, _model_column(run_id))), len(times))
    _compare_time_lines(path, rows["inference_time"].items(), times, metrics_path)
    path = source / f"{run_id}_inference_times.csv"  # it has no header
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; restore the published file") from None
    values = [(n, column.parse(text.strip(), f"{path} line {n}")) for n, text in enumerate(lines, 1) if text.strip()]
    require_count(path, len(values), len(times))
    _compare_time_lines(path, values, times, metrics_path)


def _compare_time_lines(
    path: Path, lines: Iterable[tuple[Any, float]], times: Sequence[float], metrics_path: Path
) -> None:
    for position, (line, seconds) in enumerate(lines):
        says = f"{metrics_path.name} (inference_times.{position})"
        _require_equal(f"{path} line {line}: the inference time", seconds, times[position], says)


def _compare_summary(source: Path, metrics: MetricsFile, entry: SummaryEntry, run_id: str) -> None:
    mean_s = math.fsum(metrics.inference_times) / len(metrics.inference_times)
    expected = {"top1": metrics.top1, "top3": metrics.top3, "avg_inference_time": mean_s}
    says = f"{run_id}_metrics.json"
    for key, value in expected.items():
        _require_equal(f"{source / 'summary.json'}: {run_id}.{key}", getattr(entry, key), value, says)
    path = source / "summary.csv"
    columns = tuple(Column(key, "float", minimum=0) for key in expected)
    table = Table("published summary", (Column("model", choices=RUN_IDS), *columns), unique=("model",))
    rows = read_csv(path, table, len(RUN_IDS))
    line, row = next(rows[rows["model"] == run_id].iterrows())
    for key, value in expected.items():
        _require_equal(f"{path} line {line}: column {key!r}", row[key], value, says)


def _model_column(run_id: str) -> Column:
    return Column("model", choices=(run_id,))


def _require_equal(where: str, value: float, expected: float | Fraction, says: str) -> None:
    if not math.isclose(value, expected, rel_tol=_RELATIVE_ERROR, abs_tol=1e-15):
        raise InputError(f"{where} is {value:.10g}, but {says} says {float(expected):.10g}; restore the published file")
