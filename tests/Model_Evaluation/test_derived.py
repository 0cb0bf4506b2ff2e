"""Tables that follow from the measured ones: the paper's figures, hand-computed metrics, and bytes that repeat."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from Model_Evaluation.derived import DERIVED, MEASURED, compute_derived, write_derived
from Model_Evaluation.evaluation import prediction_rows, probability_rows
from utils.artifacts import read_table, write_table
from utils.errors import InputError
from utils.indices import ClassInfo

RUN = {
    "protocol": "paper",
    "arm": "2d_original",
    "model": "vgg11_bn",
    "start_weights": "imagenet",
    "train_input": "original",
    "test_input": "first_frame:svd",
    "split": "val",
    "selection_split": "val",
    "seed": 0,
}


def probabilities_for(pairs: list[tuple[int, int, int]], num_classes: int) -> np.ndarray:
    """One row a (label, predicted, rank): the predicted class highest, the true label at the given rank."""
    rows = np.zeros((len(pairs), num_classes))
    for row, (label, predicted, rank) in zip(rows, pairs, strict=True):
        others = [c for c in range(num_classes) if c not in (label, predicted)]
        order = [label] if rank == 1 else [predicted, *others[: rank - 2], label, *others[rank - 2 :]]
        order += [c for c in range(num_classes) if c not in order]
        row[order] = 2.0 ** -np.arange(1, num_classes + 1)
    return rows / rows.sum(axis=1, keepdims=True)


def measured_tables(runs: dict[str, list[tuple[int, int, int]]], num_classes: int) -> dict[str, pd.DataFrame]:
    classes = tuple(ClassInfo(label, f"class {label}", f"n{label}") for label in range(num_classes))
    tables: dict[str, list] = {name: [] for name in MEASURED}
    for run_id, pairs in runs.items():
        ids = [f"{number:03d}" for number in range(len(pairs))]
        probabilities = probabilities_for(pairs, num_classes)
        labels = np.array([label for label, _, _ in pairs])
        tables["predictions"] += prediction_rows(RUN | {"run_id": run_id}, ids, labels, probabilities, classes)
        tables["probabilities"] += probability_rows(run_id, ids, probabilities)
        cost = {"run_id": run_id, "model": "vgg11_bn", "input_shape": "3x224x224"}
        tables["model_costs"].append(cost | {"num_parameters": 128812810, "nominal_macs": 7_654_000_000})
        for repetition, latency in enumerate((2.0, 4.0, 9.0), start=1):
            time = {"run_id": run_id, "device": "cpu", "precision": "fp32", "batch_size": 1}
            tables["inference_times"].append(time | {"repetition": repetition, "batch_latency_ms": latency})
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def write_measured(folder: Path, tables: dict[str, pd.DataFrame]) -> Path:
    for name, table in MEASURED.items():
        write_table(tables[name], folder / f"{name}.csv", table)
    return folder


def pairs_of(matrix: list[list[int]], top3: int) -> list[tuple[int, int, int]]:
    """Predictions that realise a confusion matrix; errors have the true label third until `top3` items are reached."""
    pairs = [
        (i, j, 1 if i == j else 0) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)
    ]
    missing = top3 - sum(rank for _, _, rank in pairs)
    ranked = []
    for label, predicted, rank in pairs:
        if rank == 0:
            rank, missing = (3, missing - 1) if missing > 0 else (5, missing)
        ranked.append((label, predicted, rank))
    return ranked


@pytest.fixture(scope="module")
def paper_matrices(real_data) -> dict[str, list[list[int]]]:
    files = {name: real_data / "published_results" / f"{name}_metrics.json" for name in ("model2d", "model3d")}
    return {name: json.loads(path.read_text())["confusion_matrix"] for name, path in files.items()}


def test_the_papers_confusion_matrices_give_the_papers_figures(paper_matrices, tmp_path):
    assert all(sum(row) == 50 for matrix in paper_matrices.values() for row in matrix)
    top3 = {"model2d": 389, "model3d": 452}
    runs = {name: pairs_of(matrix, top3[name]) for name, matrix in paper_matrices.items()}
    write_derived(write_measured(tmp_path, measured_tables(runs, 10)), tmp_path)
    summary = read_table(tmp_path / "summary.csv", DERIVED["summary"]).set_index("run_id")
    assert summary["top1_fraction"].to_dict() == {"model2d": 0.542, "model3d": 0.758}
    assert summary["top3_fraction"].to_dict() == {"model2d": 0.778, "model3d": 0.904}
    assert summary["num_errors"].to_dict() == {"model2d": 229, "model3d": 121}
    macro = summary[["macro_precision", "macro_recall", "macro_f1"]].round(3)
    assert macro.loc["model2d"].tolist() == [0.627, 0.542, 0.529]
    assert macro.loc["model3d"].tolist() == [0.759, 0.758, 0.756]


def test_per_class_metrics_equal_the_published_ones(paper_matrices, real_data, tmp_path):
    runs = {name: pairs_of(matrix, 450) for name, matrix in paper_matrices.items()}
    ours = compute_derived(measured_tables(runs, 10))["per_class_metrics"]
    published = pd.read_csv(real_data / "published_results" / "per_class_metrics.csv")
    for name in runs:
        found = ours[ours["run_id"] == name][["precision", "recall", "f1"]].to_numpy()
        expected = published[published["model"] == name][["precision", "recall", "f1"]].to_numpy()
        assert np.abs(found - expected).max() < 1e-12


def test_metrics_equal_hand_computed_ones():
    # True 0: two right, one taken for 1. True 1: one right, one taken for 2. True 2: absent. True 3: taken for 0.
    pairs = [(0, 0, 1), (0, 0, 1), (0, 1, 2), (1, 1, 1), (1, 2, 3), (3, 0, 4)]
    derived = compute_derived(measured_tables({"run": pairs}, 4))
    rows = derived["per_class_metrics"].set_index("label")
    assert rows["precision"].tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert rows["recall"].tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert rows["f1"].tolist() == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert rows["num_items"].tolist() == [3, 2, 0, 1]
    assert rows["num_predicted"].tolist() == [3, 2, 1, 0]
    summary = derived["summary"].iloc[0]
    assert summary["top1_fraction"] == pytest.approx(3 / 6)
    assert summary["top3_fraction"] == pytest.approx(5 / 6)
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 4), "the absent class counts as 0"


def test_latency_is_the_median_and_p95_of_batch_one():
    summary = compute_derived(measured_tables({"run": [(0, 0, 1)]}, 3))["summary"].iloc[0]
    assert summary["latency_ms_median"] == 4.0
    assert summary["latency_ms_p95"] == pytest.approx(8.5)


def test_top3_of_two_classes_is_empty_with_a_note(tmp_path):
    write_derived(write_measured(tmp_path, measured_tables({"run": [(0, 0, 1), (1, 0, 2)]}, 2)), tmp_path)
    row = read_table(tmp_path / "summary.csv", DERIVED["summary"]).iloc[0]
    assert pd.isna(row["top3_fraction"])
    assert row["note"] == "top-3 left empty: only 2 classes"
    assert ",,0." in (tmp_path / "summary.csv").read_text(), "an empty cell, not the text 'nan'"


def test_equal_probabilities_go_to_the_lower_label():
    classes = tuple(ClassInfo(label, str(label)) for label in range(3))
    rows = prediction_rows(RUN | {"run_id": "r"}, ["a", "b"], np.array([0, 2]), np.full((2, 3), 1 / 3), classes)
    assert [(row["predicted_label"], row["true_label_rank"]) for row in rows] == [(0, 1), (0, 3)]


def test_derived_tables_and_figures_are_the_same_bytes_again(tmp_path):
    pairs = [(label, (label + shift) % 4, 1 if shift == 0 else 2) for label in range(4) for shift in (0, 0, 1)]
    measured = write_measured(tmp_path / "measured", measured_tables({"b": pairs, "a": pairs[::-1]}, 4))
    for name in ("one", "two"):
        write_derived(measured, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".csv", ".png"}
    assert len(files) == 3 + 2 + 3
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert read_table(tmp_path / "one" / "summary.csv", DERIVED["summary"])["run_id"].tolist() == ["b", "a"]


def test_a_contradicting_prediction_is_named(tmp_path):
    tables = measured_tables({"run": [(0, 0, 1), (1, 1, 1), (2, 2, 1)]}, 3)
    tables["predictions"].loc[1, "predicted_label"] = 2
    with pytest.raises(InputError, match=r"predictions.csv line 3: true_label_rank 1 contradicts predicted_label"):
        write_derived(write_measured(tmp_path, tables), tmp_path)


def test_a_table_of_another_run_is_named(tmp_path):
    tables = measured_tables({"one": [(0, 0, 1)], "two": [(1, 1, 1)]}, 3)
    tables["model_costs"] = tables["model_costs"].iloc[:1]
    with pytest.raises(InputError, match=r"model_costs.csv: run 'two' of predictions.csv is missing"):
        write_derived(write_measured(tmp_path, tables), tmp_path)


def test_names_with_commas_quotes_and_na_survive(tmp_path):
    classes = tuple(ClassInfo(label, name) for label, name in enumerate(("NA", 'a "b", c', "007")))
    rows = prediction_rows(RUN | {"run_id": "r"}, ["x", "y", "z"], np.arange(3), np.eye(3) * 0.4 + 0.2, classes)
    write_table(rows, tmp_path / "predictions.csv", MEASURED["predictions"])
    assert read_table(tmp_path / "predictions.csv", MEASURED["predictions"])["class_name"].tolist() == [
        "NA",
        'a "b", c',
        "007",
    ]
