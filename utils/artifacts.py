"""Every table that crosses a stage border: its columns in order, a reader that checks, a writer that is atomic.

The readers name file, line and column. Ids and names are text (a class called "NA" stays one, "007" keeps its zeros).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import InputError
from utils.files import write_text


@dataclass(frozen=True)
class Column:
    """One column: `kind` is `text`, `int` or `float`; `nullable` allows an empty cell; `optional` a missing column."""

    name: str
    kind: str = "text"
    nullable: bool = False
    optional: bool = False
    minimum: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, text: str, where: str) -> Any:
        """One cell's value; None for an empty nullable cell.

        Raises:
            InputError: the text is not of the column's kind, range or choices.
        """
        if text == "":
            if self.nullable or (self.kind == "text" and not self.choices and self.minimum is None):
                return "" if self.kind == "text" else None
            raise InputError(f"{where}: column {self.name!r} is empty; give a value")
        if self.kind == "text":
            if self.choices and text not in self.choices:
                raise InputError(f"{where}: column {self.name!r} is {text!r}; known: {', '.join(self.choices)}")
            return text
        try:
            if "_" in text or not text.isascii():  # Python takes 1_0 and the digits of every script
                raise ValueError(text)
            value = int(text) if self.kind == "int" else float(text)
        except ValueError:
            kind = "a whole number" if self.kind == "int" else "a number"
            raise InputError(f"{where}: column {self.name!r} is {text!r}, expected {kind}") from None
        fits = -(2**63) <= value < 2**63 if self.kind == "int" else math.isfinite(value)
        if not fits:
            raise InputError(f"{where}: column {self.name!r} is {text[:40]}, expected a finite number of 64 bits")
        if self.minimum is not None and value < self.minimum:
            raise InputError(f"{where}: column {self.name!r} is {text}, expected at least {self.minimum:g}")
        return value


@dataclass(frozen=True)
class Table:
    """A table's name, columns in order, and the columns whose values together are unique."""

    name: str
    columns: tuple[Column, ...]
    unique: tuple[str, ...] = ()

    @property
    def column_names(self) -> list[str]:
        """The columns in the order they are written."""
        return [column.name for column in self.columns]


def _text(*names: str, **options: Any) -> tuple[Column, ...]:
    return tuple(Column(name, **options) for name in names)


STATUS_OK, STATUS_FAILED, STATUS_QUARANTINED = "ok", "failed", "quarantined"

IMAGE_INDEX = Table(
    "image index",
    (Column("image_path"), Column("label", "int", minimum=0), *_text("class_name", "wnid", "sha256")),
    unique=("image_path",),
)
SOURCING_ISSUES = Table(
    "sourcing issues",
    (
        Column("source_path"),
        Column("label", "int", minimum=0),
        *_text("class_name", "wnid"),
        Column("status", choices=("converted", "rejected", "duplicate")),
        Column("reason"),
    ),
)
CLIP_INDEX = Table(
    "clip index",
    (
        Column("video_path"),
        Column("label", "int", minimum=0),
        *_text("class_name", "wnid", "source_path", "source_sha256", "sha256", "generator", optional=True),
        Column("seed", "int", optional=True, nullable=True),
        *(Column(name, "int", optional=True, nullable=True, minimum=1) for name in ("num_frames", "height", "width")),
        Column("kept_frames", optional=True),
        Column("visible_fraction", "float", optional=True, nullable=True, minimum=0),
        *(Column(name, "int", optional=True, nullable=True, minimum=0) for name in ("clip_number", "attempt")),
        Column("status", optional=True, choices=(STATUS_OK, STATUS_FAILED, STATUS_QUARANTINED)),
        Column("reason", optional=True),
    ),
    unique=("video_path",),
)
# The clip index of real videos: with the source video, person or scene of each, which is on one side of every split.
# Every reader takes both.
VIDEO_INDEX = Table(
    "clip index",
    tuple(
        column
        for known in CLIP_INDEX.columns
        for column in ((known, Column("group", optional=True)) if known.name == "generator" else (known,))
    ),
    unique=("video_path",),
)
TASK_LABELS = Table(
    "task labels",
    (Column("video_path"), Column("task"), Column("label", "int", minimum=0), Column("class_name")),
    unique=("video_path", "task"),
)
VIDEO_GROUPS = Table("video groups", (Column("video_path"), Column("group")), unique=("video_path",))
PROBED_VIDEOS = Table(
    "probed videos",
    (
        Column("video_path"),
        *(Column(name, "int", minimum=0) for name in ("num_bytes", "modified_ns")),
        Column("sha256"),
        *(Column(name, "int", nullable=True, minimum=1) for name in ("num_frames", "height", "width")),
        Column("reason"),
    ),
)
CLASS_DISTRIBUTION = Table(
    "class distribution",
    (
        *_text("split", "task"),
        Column("label", "int", minimum=0),
        Column("class_name"),
        *(Column(name, "int", minimum=0) for name in ("num_videos", "num_groups", "num_failed")),
    ),
    unique=("split", "task", "label"),
)
HOLD_OUT = Table(
    "hold-out",
    (
        Column("source_sha256"),
        Column("label", "int", minimum=0),
        Column("part", choices=("train", "hold_out")),
        Column("pairing", choices=("paired", "unpaired")),
        Column("fraction", "float", minimum=0),
        Column("seed", "int"),
    ),
    unique=("source_sha256",),
)
FILE_HASHES = Table("file hashes", (Column("path"), Column("sha256")), unique=("path",))
HISTORY = Table(
    "history",
    (
        *(Column(name, "int", minimum=1) for name in ("epoch", "update")),
        *(Column(name, "float") for name in ("learning_rate", "train_loss", "train_top1_fraction")),
        *(Column(name, "float") for name in ("selection_loss", "selection_top1_fraction")),
        Column("selection_top3_fraction", "float", nullable=True),
    ),
    unique=("epoch",),
)
TASK_HISTORY = Table(
    "history by task",
    (Column("epoch", "int", minimum=1), Column("task"), Column("selection_top1_fraction", "float", minimum=0)),
    unique=("epoch", "task"),
)
UPDATES = Table(
    "updates",
    (
        *(Column(name, "int", minimum=1) for name in ("update", "epoch")),
        *(Column(name, "float") for name in ("learning_rate", "train_loss")),
    ),
    unique=("update",),
)
TRAINING_TIME = Table(
    "training time",
    (
        *(Column(name, "int", minimum=1) for name in ("first_update", "last_update")),
        Column("train_s", "float", minimum=0),
        Column("device"),
    ),
    unique=("first_update",),
)
_RUN = (
    *_text("run_id", "protocol", "arm", "model", "start_weights", "train_input", "test_input"),
    *_text("split", "selection_split"),
    Column("num_frames", "int", minimum=1),
    Column("seed", "int", nullable=True),
)
RUN_COLUMNS = tuple(column.name for column in _RUN)
_DERIVED_RUN = (*_RUN, Column("entry_id"))  # derived tables say which row of `arms` a run belongs to
_CLASS = (Column("label", "int", minimum=0), *_text("class_name", "wnid"))
_PREDICTED_CLASS = (Column("predicted_label", "int", minimum=0), *_text("predicted_class_name", "predicted_wnid"))
PREDICTIONS = Table(
    "predictions",
    (
        *_RUN,
        Column("item_id"),
        *_CLASS,
        *_PREDICTED_CLASS,
        Column("true_label_rank", "int", minimum=1),
        Column("prob_true", "float", minimum=0),
    ),
    unique=("run_id", "item_id"),
)
PROBABILITIES = Table(
    "probabilities",
    (*_text("run_id", "item_id"), Column("label", "int", minimum=0), Column("probability", "float", minimum=0)),
    unique=("run_id", "item_id", "label"),
)
INFERENCE_TIMES = Table(
    "inference times",
    (
        *_text("run_id", "device", "precision"),
        *(Column(name, "int", minimum=1) for name in ("batch_size", "repetition")),
        Column("batch_latency_ms", "float", minimum=0),
    ),
    unique=("run_id", "batch_size", "repetition"),
)
END_TO_END_TIMES = Table(
    "end-to-end times",
    (
        *_text("run_id", "generator", "device", "precision"),
        *(Column(name, "int", minimum=1) for name in ("batch_size", "repetition")),
        Column("stage"),
        Column("stage_ms", "float", minimum=0),
    ),
    unique=("run_id", "generator", "batch_size", "repetition", "stage"),
)
MODEL_COSTS = Table(
    "model costs",
    (
        *_text("run_id", "model"),
        Column("weights_sha256", nullable=True),
        Column("input_shape"),
        Column("num_passes", "int", minimum=1),
        *(Column(name, "int", minimum=0) for name in ("num_parameters", "nominal_macs", "executed_macs")),
        *(Column(name, "float", nullable=True, minimum=0) for name in ("train_s", "generation_s_per_item")),
    ),
    unique=("run_id",),
)
PROTOCOL_VALUES = Table("protocol values", _text("run_id", "key", "value"), unique=("run_id", "key"))
SUMMARY = Table(
    "summary",
    (
        *_DERIVED_RUN,
        Column("source"),
        *(Column(name, "int", minimum=1) for name in ("num_items", "num_classes")),
        *(Column(name, "float") for name in ("top1_fraction", "top1_low", "top1_high")),
        *(Column(name, "float", nullable=True) for name in ("top3_fraction", "top3_low", "top3_high")),
        *(Column(name, "float") for name in ("macro_precision", "macro_recall", "macro_f1")),
        *(Column(name, "float", nullable=True) for name in ("macro_auc", "nll", "calibration_error")),
        Column("num_errors", "int", minimum=0),
        *(Column(name, "int", nullable=True, minimum=0) for name in ("num_passes", "num_parameters")),
        *(Column(name, "float", nullable=True) for name in ("nominal_gmacs", "executed_gmacs")),
        *(Column(name, "float", nullable=True) for name in ("latency_ms_median", "latency_ms_p95", "items_per_s")),
        *(Column(name, "float", nullable=True) for name in ("train_s", "generation_s_per_item")),
        Column("note"),
    ),
    unique=("run_id",),
)
PER_CLASS_METRICS = Table(
    "per-class metrics",
    (
        *_DERIVED_RUN,
        Column("source"),
        *_CLASS,
        *(Column(name, "float") for name in ("precision", "recall", "f1")),
        *(Column(name, "float", nullable=True) for name in ("recall_low", "recall_high")),
        *(Column(name, "int", minimum=0) for name in ("num_items", "num_predicted", "num_correct")),
    ),
    unique=("run_id", "label"),
)
CONFUSION_FLAT = Table(
    "confusion",
    (*_DERIVED_RUN, Column("source"), *_CLASS, *_PREDICTED_CLASS, Column("num_items", "int", minimum=0)),
    unique=("run_id", "label", "predicted_label"),
)
CALIBRATION = Table(
    "calibration",
    (
        *_DERIVED_RUN,
        Column("bin", "int", minimum=1),
        *(Column(name, "float", minimum=0) for name in ("confidence_low", "confidence_high")),
        Column("num_items", "int", minimum=0),
        *(Column(name, "float", nullable=True) for name in ("mean_confidence", "top1_fraction")),
    ),
    unique=("run_id", "bin"),
)
LATENCY = Table(
    "latency",
    (
        *_DERIVED_RUN,
        Column("source"),
        *_text("device", "precision"),
        Column("batch_size", "int", minimum=1),
        Column("num_repetitions", "int", minimum=1),
        *(Column(name, "float", minimum=0) for name in ("latency_ms_p50", "latency_ms_p95", "items_per_s")),
        Column("frames_per_s", "float", nullable=True, minimum=0),
        Column("first_batch_share", "float", nullable=True, minimum=0),
    ),
    unique=("run_id", "batch_size"),
)
END_TO_END = Table(
    "end-to-end latency",
    (
        *_DERIVED_RUN,
        *_text("generator", "device", "precision"),
        Column("batch_size", "int", minimum=1),
        Column("num_repetitions", "int", minimum=1),
        Column("stage"),
        *(Column(name, "float", minimum=0) for name in ("stage_ms_p50", "stage_ms_p95")),
        Column("share_of_total", "float", minimum=0),
    ),
    unique=("run_id", "generator", "batch_size", "stage"),
)
_ENTRY = (
    *_text("arm", "protocol", "model", "start_weights", "train_input", "test_input", "split", "selection_split"),
    Column("num_frames", "int", minimum=1),
)
ENTRY_COLUMNS = tuple(column.name for column in _ENTRY)
ARMS = Table(
    "arms",
    (
        Column("entry_id"),
        *_ENTRY,
        *(Column(name, "int", minimum=1) for name in ("num_seeds", "num_items", "num_sources")),
        *(Column(name, "float") for name in ("top1_mean", "top1_low", "top1_high")),
        Column("top1_sd", "float", nullable=True),
        Column("macro_f1_mean", "float"),
        Column("macro_f1_sd", "float", nullable=True),
        Column("majority_top1", "float"),
    ),
    unique=("entry_id",),
)
COMPARISONS = Table(
    "comparisons",
    (
        *_text("comparison_id", "family", "entry_a", "entry_b", "arm_a", "test_input_a", "arm_b", "test_input_b"),
        *_text("protocol", "split", "differs_in"),
        Column("num_frames_a", "int", minimum=1),
        Column("num_frames_b", "int", minimum=1),
        Column("seed", "int", nullable=True),
        Column("num_seeds", "int", minimum=1),
        *(Column(name, "int", minimum=0) for name in ("num_items", "num_sources")),
        *(Column(name, "float") for name in ("top1_a", "top1_b", "difference", "difference_low", "difference_high")),
        *(Column(name, "int", minimum=0) for name in ("both_right", "only_a_right", "only_b_right", "both_wrong")),
        Column("mcnemar_p", "float", minimum=0),
        Column("mcnemar_p_holm", "float", nullable=True, minimum=0),
        Column("cohens_h", "float"),
        Column("odds_ratio", "float", nullable=True),
        Column("minimal_detectable_difference", "float", nullable=True),
        Column("outcome", nullable=True, choices=("a", "b", "undecided")),
    ),
    unique=("comparison_id", "seed"),
)
VERDICT = Table(
    "verdict",
    (
        Column("position", "int", minimum=1),
        *_text("question", "comparison_id"),
        Column("answer", choices=("yes", "no", "undecided", "not measured")),
        Column("sentence"),
    ),
    unique=("position",),
)
STUDY = Table(
    "study",
    (
        *_text("training_id", "arm"),
        Column("num_frames", "int", minimum=1),
        Column("seed", "int"),
        *_text("weights_of", "train_input", "clips", "test_inputs"),
        Column("status", choices=("planned", "done", "failed")),
        Column("reason"),
        *(Column(name, "float", nullable=True, minimum=0) for name in ("train_s", "disk_mb")),
    ),
    unique=("training_id",),
)


def read_table(path: Path, table: Table, *, allow_empty: bool = False) -> pd.DataFrame:
    """Read and check a table; columns the table does not know are left out.

    Args:
        allow_empty: a header without rows is a table.

    Returns:
        the table's columns in order (missing optional ones are left out), indexed by line number in the file.

    Raises:
        InputError: file, line and column of the first thing that is wrong.
    """
    rows = _read_rows(path, table)
    header = next(rows, (1, []))[1]
    present = _check_header(header, table, path)
    positions = [(column, header.index(column.name)) for column in present]
    values: list[list[Any]] = []
    first_line: dict[tuple[Any, ...], int] = {}
    for line, cells in rows:
        where = f"{path} line {line}"
        if len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} cells, expected {len(header)}; correct the row")
        row = [column.parse(cells[position], where) for column, position in positions]
        _check_unique(row, present, table, first_line, where, line)
        values.append(row)
    if not values and not allow_empty:
        raise InputError(f"{path}: the {table.name} has no rows; run the stage that makes it again")
    lines = pd.Index(first_line.values() if table.unique else range(2, len(values) + 2), name="line")
    frame = pd.DataFrame(values, index=lines, columns=[column.name for column in present], dtype=object)
    return frame.astype({c.name: _pandas_kind(c) for c in present if c.kind != "text"})


def write_table(rows: pd.DataFrame | Iterable[Mapping[str, Any]], path: Path, table: Table) -> None:
    """Write a table atomically: UTF-8, `\\n`, the table's columns in order, floats to 6 significant digits."""
    write_text(path, format_table(rows, table))


def format_table(rows: pd.DataFrame | Iterable[Mapping[str, Any]], table: Table, *, header: bool = True) -> str:
    """The CSV text of a table; deterministic, so that equal tables are equal bytes."""
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(table.column_names)
    for record in records:
        writer.writerow([_format_cell(record[column.name], column) for column in table.columns])
    return buffer.getvalue()


def _format_cell(value: Any, column: Column) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column.kind == "float":
        return format(float(value), ".6g")
    return str(int(value)) if column.kind == "int" else str(value)


def _read_rows(path: Path, table: Table) -> Iterable[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if cells:  # a blank line at the end is not a row
                    yield reader.line_num, cells
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no {table.name} table here; run the stage that makes it first") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save the {table.name} as UTF-8 CSV") from None
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: is not CSV ({error}); correct the line") from None


def _check_header(header: list[str], table: Table, path: Path) -> list[Column]:
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path} line 1: column {doubled[0]!r} stands twice; remove one")
    if not header:
        raise InputError(f"{path} line 1: the file is empty; run the stage that makes the {table.name} table again")
    missing = [c.name for c in table.columns if not c.optional and c.name not in header]
    if missing:
        raise InputError(
            f"{path} line 1: the {table.name} lacks column {', '.join(map(repr, missing))}; it has: {', '.join(header)}"
        )
    return [column for column in table.columns if column.name in header]


def _check_unique(
    row: list[Any], present: list[Column], table: Table, first_line: dict[tuple[Any, ...], int], where: str, line: int
) -> None:
    if not table.unique:
        return
    key = tuple(value for value, column in zip(row, present, strict=True) if column.name in table.unique)
    if key in first_line:
        what = ", ".join(str(part) for part in key)
        raise InputError(f"{where}: {what!r} stands already on line {first_line[key]}; remove one of the rows")
    first_line[key] = line


def _pandas_kind(column: Column) -> str:
    if column.kind == "int":
        return "Int64" if column.nullable else "int64"
    return "float64"
