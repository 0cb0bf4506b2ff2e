"""The paper's result files: their names, what each holds, and readers that name file, line or key of what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import Field

from Model_Evaluation.published_run import RUN_IDS
from utils.artifacts import Table, read_table
from utils.config import Fraction, NonNegativeFloat, NonNegativeInt, Settings, build_settings
from utils.errors import InputError

AnyFile = TypeVar("AnyFile", bound=Settings)
_Row = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class MetricsFile(Settings):
    """`modelXd_metrics.json`: true classes down the matrix; seconds a batch divided by its size, for each item."""

    top1: Fraction
    top3: Fraction
    precision: tuple[Fraction, ...]
    recall: tuple[Fraction, ...]
    f1: tuple[Fraction, ...]
    confusion_matrix: Annotated[tuple[_Row, ...], Field(min_length=2)]
    inference_times: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]


class SummaryEntry(Settings):
    """One network in `summary.json`."""

    top1: Fraction
    top3: Fraction
    avg_inference_time: NonNegativeFloat


class SummaryFile(Settings):
    """`summary.json`."""

    model2d: SummaryEntry
    model3d: SummaryEntry


def published_files(source: Path) -> dict[str, Path]:
    """All files by name."""
    names = [
        name
        for run_id in RUN_IDS
        for name in (
            *(f"{run_id}_{kind}" for kind in ("metrics.json", "confusion.csv", "inference_times.csv")),
            f"{run_id}_precision_recall_f1_report.csv",
            *(f"{kind}.csv" for kind in (f"confusion{run_id[-2:]}_flat", f"inference_times{run_id[-2:]}")),
        )
    ]
    return {name: source / name for name in (*names, "per_class_metrics.csv", "summary.csv", "summary.json")}


def read_json(path: Path, kind: type[AnyFile]) -> AnyFile:
    """A JSON file, checked against what it must hold."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; restore the published file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: is not JSON ({error.msg}); restore the published file") from None
    except (ValueError, RecursionError) as error:  # doubled keys, thousands of digits or brackets
        raise InputError(f"{path}: is not JSON we read ({error}); restore the published file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no object of keys and values; restore the published file")
    return build_settings(kind, content, str(path))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice")
    return content


def read_csv(path: Path, table: Table, num_rows: int) -> pd.DataFrame:
    """A table that has exactly its columns, in their order, and so many rows."""
    rows = read_table(path, table)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file))
    if header != table.column_names:
        raise InputError(
            f"{path} line 1: has the columns {', '.join(header)}; expected {', '.join(table.column_names)}"
        )
    require_count(path, len(rows), num_rows)
    return rows


def require_count(path: Path, count: int, expected: int) -> None:
    """Refuse a file with another number of rows."""
    if count != expected:
        raise InputError(f"{path}: has {count} rows, expected {expected}; restore the published file")
