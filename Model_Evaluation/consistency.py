"""Whether the measured tables fit one another: one edited number is refused with its file, line and column.

Predictions follow from probabilities, so every answer, rank and probability of `predictions.csv` is recomputed from
`probabilities.csv`. The tables hold six significant digits; rounding may make a tie, but turns no order: where classes
tie, either order is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from Model_Evaluation.scored_runs import align_probabilities
from utils.artifacts import RUN_COLUMNS
from utils.errors import InputError
from utils.utils import true_label_ranks

_SUM_TOLERANCE = 1e-4
_COMPLETE = ("predictions", "probabilities", "model_costs")  # have every run; the others may lack some
_REMEDY = "restore the file or evaluate again"
TOTAL_STAGE = "total"
_NAMED_PROTOCOLS = ("paper", "matched")
_SAME_PROTOCOL = ["protocol", "arm", "model", "start_weights", "train_input", "num_frames"]


def require_consistency(measured: dict[str, pd.DataFrame], results_dir: Path) -> None:
    """Refuse tables of different runs, and tables that contradict themselves or each other.

    Args:
        measured: tables by name, indexed by line number in the file.

    Raises:
        InputError: file, line and column of the first thing that is wrong.
    """
    paths = {name: results_dir / f"{name}.csv" for name in measured}
    _require_same_runs(measured, paths)
    predictions = measured["predictions"]
    _require_constant_run_columns(predictions, paths["predictions"])
    _require_one_name_a_class(predictions, paths["predictions"])
    _require_same_model(measured, paths["model_costs"])
    _require_one_protocol_an_arm(measured, paths["protocol_values"])
    probabilities = dict(list(measured["probabilities"].groupby("run_id", sort=False)))
    for run_id, rows in predictions.groupby("run_id", sort=False):
        matrix = _complete_matrix(rows, probabilities[run_id], str(run_id), paths)
        _require_recomputed(rows, matrix, paths["predictions"])
    _require_one_label_an_item(predictions, paths["predictions"])
    if "end_to_end_times" in measured:
        _require_totals(measured["end_to_end_times"], paths["end_to_end_times"])


def _require_same_runs(measured: dict[str, pd.DataFrame], paths: dict[str, Path]) -> None:
    expected = measured["predictions"]["run_id"]
    for name, frame in measured.items():
        missing = expected.index[~expected.isin(frame["run_id"])]
        if name in _COMPLETE and len(missing):
            raise InputError(
                f"{paths[name]}: run {expected[missing[0]]!r} (predictions.csv line {missing[0]}) is missing; {_REMEDY}"
            )
        _refuse_unknown(frame, "run_id", expected, paths[name], "predictions.csv has no such run")


def _require_constant_run_columns(predictions: pd.DataFrame, path: Path) -> None:
    for name in RUN_COLUMNS[1:]:
        if (found := _find_odd_value(predictions, "run_id", name)) is not None:
            line, run_id, value, usual = found
            raise InputError(
                f"{path} line {line}: column {name!r} is {value!r}, but {usual!r} in the other rows of run {run_id!r}; "
                f"{_REMEDY}"
            )


def _require_one_label_an_item(predictions: pd.DataFrame, path: Path) -> None:
    if (found := _find_odd_value(predictions, "item_id", "label")) is not None:
        line, item_id, value, usual = found
        raise InputError(
            f"{path} line {line}: column 'label' is {value}, but {usual} in other rows of item {item_id!r}; {_REMEDY}"
        )


def _require_one_name_a_class(predictions: pd.DataFrame, path: Path) -> None:
    """Strictly within a run; across runs only real names, because a foreign checkpoint's classes may have none."""
    for name in ("class_name", "wnid"):
        parts = []
        for prefix in ("", "predicted_"):
            columns = ["run_id", f"{prefix}label", f"{prefix}{name}"]
            parts.append(predictions[columns].set_axis(["run_id", "label", "name"], axis=1).assign(column=columns[-1]))
        rows = pd.concat(parts).rename_axis("line").reset_index()
        rows["run_label"] = rows["run_id"] + "\0" + rows["label"].astype(str)
        is_real = ~rows["name"].isin(["", *map(str, rows["label"].unique())])
        for key, group in (("run_label", rows), ("label", rows[is_real])):
            if (found := _find_odd_value(group, key, "name")) is not None:
                position, _, value, usual = found
                row = rows.loc[position]
                raise InputError(
                    f"{path} line {row['line']}: column {row['column']!r} is {value!r}, but {usual!r} in other rows of "
                    f"class {row['label']}; {_REMEDY}"
                )


def _require_same_model(measured: dict[str, pd.DataFrame], path: Path) -> None:
    models = measured["predictions"].drop_duplicates("run_id").set_index("run_id")["model"]
    for line, row in measured["model_costs"].iterrows():
        if row["model"] != models[row["run_id"]]:
            raise InputError(
                f"{path} line {line}: column 'model' is {row['model']!r}, but {models[row['run_id']]!r} in "
                f"predictions.csv; {_REMEDY}"
            )


def _require_one_protocol_an_arm(measured: dict[str, pd.DataFrame], path: Path) -> None:
    """Seeds and test inputs of an arm have one protocol, where it is a named one; a free one may vary."""
    runs = measured["predictions"].drop_duplicates("run_id").set_index("run_id")
    runs = runs[runs["protocol"].isin(_NAMED_PROTOCOLS)]
    arms = {run_id: " ".join(map(str, row)) for run_id, *row in runs[_SAME_PROTOCOL].itertuples(name=None)}
    values = measured["protocol_values"]
    values = values[values["run_id"].isin(arms)]
    pairs = zip(values["run_id"], values["key"], strict=True)
    values = values.assign(arm_key=[f"{arms[run_id]}\0{key}" for run_id, key in pairs])
    if (found := _find_odd_value(values, "arm_key", "value")) is not None:
        line, _, value, usual = found
        run_id, key = values.loc[line, ["run_id", "key"]]
        arm = runs.loc[run_id, "arm"]
        raise InputError(
            f"{path} line {line}: {key!r} is {value!r}, but {usual!r} in other runs of arm {arm!r}; {_REMEDY}"
        )


def _find_odd_value(frame: pd.DataFrame, key: str, column: str) -> tuple[int, object, object, object] | None:
    """The first row whose value is not its group's most common one: line, group, value, usual value.

    Of values that are equally common the first counts as usual.
    """
    pairs = frame[[key, column]].drop_duplicates()
    doubled = pairs[key][pairs[key].duplicated()]
    if doubled.empty:
        return None
    rows = frame[frame[key] == doubled.iloc[0]]
    counts = rows[column].value_counts(dropna=False, sort=False)
    usual = counts.index[int(np.argmax(counts.to_numpy()))]
    is_odd = rows[column].isna() if not pd.isna(usual) else rows[column].notna()
    is_odd |= (rows[column] != usual).fillna(False).astype(bool)
    line = rows.index[is_odd][0]
    return line, doubled.iloc[0], _plain(rows.loc[line, column]), _plain(usual)


def _plain(value: object) -> object:
    """As a message shows it: no numpy type, an empty cell as such."""
    if value is None or value is pd.NA:
        return ""
    return value if isinstance(value, str) else int(value)


def _complete_matrix(
    rows: pd.DataFrame, probabilities: pd.DataFrame, run_id: str, paths: dict[str, Path]
) -> np.ndarray:
    """One run's probabilities float (N, num_classes), each item's sum 1."""
    path = paths["probabilities"]
    there, here = f"probabilities.csv has no such item of run {run_id!r}", f"run {run_id!r} has no such prediction"
    _refuse_unknown(rows, "item_id", probabilities["item_id"], paths["predictions"], there)
    _refuse_unknown(probabilities, "item_id", rows["item_id"], path, here)
    num_classes = math.ceil(len(probabilities) / len(rows))
    expected = f"expected below {num_classes}: run {run_id!r} has {len(probabilities)} rows of {len(rows)} items"
    _refuse(probabilities, "label", probabilities["label"] >= num_classes, [expected] * len(probabilities), path)
    matrix = align_probabilities(rows["item_id"], probabilities)
    lacking = np.isnan(matrix)
    if lacking.any():
        position, label = np.argwhere(lacking)[0]
        raise InputError(
            f"{path}: item {rows['item_id'].iloc[position]!r} of run {run_id!r} has no row for label {label}, expected "
            f"{len(rows)} items x {matrix.shape[1]} classes; {_REMEDY}"
        )
    off = np.abs(matrix.sum(axis=1) - 1) > _SUM_TOLERANCE
    if off.any():
        item_id = rows["item_id"].iloc[int(off.argmax())]
        lines = probabilities.index[probabilities["item_id"] == item_id]
        raise InputError(
            f"{path} lines {lines.min()} to {lines.max()}: column 'probability' of item {item_id!r} of run {run_id!r} "
            f"sums to {matrix[off][0].sum():.6g}, expected 1; {_REMEDY}"
        )
    return matrix


def _refuse_unknown(frame: pd.DataFrame, column: str, known: pd.Series, path: Path, problem: str) -> None:
    unknown = frame.index[~frame[column].isin(known)]
    if len(unknown):
        value = frame.loc[unknown[0], column]
        raise InputError(f"{path} line {unknown[0]}: column {column!r} is {value!r}, but {problem}; {_REMEDY}")


def _require_recomputed(rows: pd.DataFrame, probabilities: np.ndarray, path: Path) -> None:
    """Predicted label, rank and probability of the true label, each as `probabilities.csv` gives it."""
    num_classes = probabilities.shape[1]
    for name in ("label", "predicted_label"):
        _refuse(rows, name, rows[name] >= num_classes, [f"expected below {num_classes}"] * len(rows), path)
    every = np.arange(len(rows))
    labels, predicted = rows["label"].to_numpy(dtype=np.int64), rows["predicted_label"].to_numpy(dtype=np.int64)
    wrong = probabilities[every, predicted] < probabilities.max(axis=1)
    _refuse(rows, "predicted_label", wrong, probabilities.argmax(axis=1), path)
    ranks, true = rows["true_label_rank"].to_numpy(dtype=np.int64), probabilities[every, labels]
    is_other = np.arange(num_classes) != labels[:, None]
    least = 1 + ((probabilities > true[:, None]) & is_other).sum(axis=1)
    most = 1 + ((probabilities >= true[:, None]) & is_other).sum(axis=1)
    wrong = (ranks < least) | (ranks > most) | ((ranks == 1) != (labels == predicted))
    _refuse(rows, "true_label_rank", wrong, true_label_ranks(probabilities, labels), path)
    _refuse(rows, "prob_true", rows["prob_true"].to_numpy(dtype=float) != true, true, path)


def _refuse(rows: pd.DataFrame, column: str, wrong: Sequence[bool], expected: Sequence[Any], path: Path) -> None:
    """Name the first wrong row; `expected` is what the probabilities give, or a text, by row."""
    if not np.any(wrong):
        return
    position = int(np.argmax(wrong))
    line, value, right = rows.index[position], rows[column].iloc[position], expected[position]
    text = right if isinstance(right, str) else f"but probabilities.csv gives {right:.6g}"
    raise InputError(f"{path} line {line}: column {column!r} is {value:.6g}, {text}; {_REMEDY}")


def _require_totals(times: pd.DataFrame, path: Path) -> None:
    keys = ["run_id", "generator", "batch_size", "repetition"]
    for values, rows in times.groupby(keys, sort=False):
        if TOTAL_STAGE not in set(rows["stage"]):
            named = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
            raise InputError(f"{path} line {rows.index[0]}: {named} has no stage {TOTAL_STAGE!r}; {_REMEDY}")
