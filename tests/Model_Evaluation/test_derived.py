"""Tables that follow from the measured ones: the paper's figures, hand-computed metrics, bytes that repeat, edits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_results, make_tables

import Model_Evaluation.figures
import Model_Evaluation.report
import Model_Evaluation.statistics
from Model_Evaluation.consistency import require_consistency
from Model_Evaluation.derived import (
    DERIVED,
    MEASURED,
    OPTIONAL_DERIVED,
    compute_derived,
    format_summary,
    read_measured,
    write_derived,
)
from Model_Evaluation.evaluation import prediction_rows, probability_rows
from utils.artifacts import RUN_COLUMNS, format_table, read_table, write_table
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
    "num_frames": 1,
    "seed": 0,
}
COST = {"num_passes": 1, "num_parameters": 128812810, "nominal_macs": 7_654_000_000, "executed_macs": 7_600_000_000}
COST |= {"train_s": 12.5, "generation_s_per_item": None}
SVD = ("3d_svd", "clip:svd", "clip:svd")
SHUFFLED = ("3d_svd", "clip:svd", "shuffled:svd")
ORIGINAL = ("2d_original", "original", "original")
FIRST = ("2d_original", "original", "first_frame:svd")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(Model_Evaluation.statistics, "NUM_RESAMPLES", 499)


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures and report are others' tests; here they would be most of the time."""
    monkeypatch.setattr(Model_Evaluation.figures, "write_figures", lambda tables, folder: None)
    monkeypatch.setattr(Model_Evaluation.report, "write_report", lambda tables, folder: None)


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
        tables["model_costs"].append(cost | COST)
        for repetition, latency in enumerate((2.0, 4.0, 9.0), start=1):
            time = {"run_id": run_id, "device": "cpu", "precision": "fp32", "batch_size": 1}
            tables["inference_times"].append(time | {"repetition": repetition, "batch_latency_ms": latency})
    return {name: pd.DataFrame(rows, columns=MEASURED[name].column_names) for name, rows in tables.items()}


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


def test_the_papers_confusion_matrices_give_the_papers_figures(paper_matrices, tmp_path, no_pictures):
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


def test_per_class_metrics_equal_the_published_ones(paper_matrices, real_data):
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


def test_top3_of_two_classes_is_empty_with_a_note(tmp_path, no_pictures):
    write_derived(write_measured(tmp_path, measured_tables({"run": [(0, 0, 1), (1, 0, 2)]}, 2)), tmp_path)
    row = read_table(tmp_path / "summary.csv", DERIVED["summary"]).iloc[0]
    assert pd.isna(row["top3_fraction"])
    assert row["note"] == "top-3 left empty: only 2 classes"
    assert pd.isna(row["top3_low"])
    assert pd.isna(row["top3_high"])
    assert ",,,,0." in (tmp_path / "summary.csv").read_text(), "an empty cell, not the text 'nan'"


def test_equal_probabilities_go_to_the_lower_label():
    classes = tuple(ClassInfo(label, str(label)) for label in range(3))
    rows = prediction_rows(RUN | {"run_id": "r"}, ["a", "b"], np.array([0, 2]), np.full((2, 3), 1 / 3), classes)
    assert [(row["predicted_label"], row["true_label_rank"]) for row in rows] == [(0, 1), (0, 3)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_derived_tables_figures_and_report_are_the_same_bytes_again(tmp_path):
    measured = make_results(tmp_path / "measured", {SVD: 0.7, ORIGINAL: 0.5}, seeds=2, num_items=24)
    for name in ("one", "two"):
        write_derived(measured, tmp_path / name)
    one, two = files_below(tmp_path / "one"), files_below(tmp_path / "two")
    assert one == two
    assert {f"{name}.csv" for name in DERIVED} | {"report.html"} <= one.keys()
    assert [name for name in one if name.endswith(".png")]
    order = ["3d_svd_t3_s0__clip_svd", "3d_svd_t3_s1__clip_svd", "2d_original_t3_s0__original"]
    assert read_table(tmp_path / "one" / "summary.csv", DERIVED["summary"])["run_id"].tolist()[:3] == order


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    results = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=12)
    monkeypatch.setattr(Model_Evaluation.figures, "write_figures", lambda tables, folder: None)

    def check(tables: dict[str, pd.DataFrame], folder: Path) -> None:
        assert tables.keys() == MEASURED.keys() | DERIVED.keys()
        assert {path.stem for path in folder.glob("*.csv")} == tables.keys() - {"summary"}
        (folder / "seen").touch()

    monkeypatch.setattr(Model_Evaluation.report, "write_report", check)
    write_derived(results, results)
    assert {"seen", "summary.csv"} <= {path.name for path in results.iterdir()}


def test_written_tables_are_read_again_as_they_were_computed(tmp_path, no_pictures):
    results = make_results(tmp_path, {SVD: 0.7, SHUFFLED: 0.5, ORIGINAL: 0.5}, num_items=40, with_end_to_end=True)
    write_derived(results, results)
    computed = compute_derived(read_measured(results))
    for name, table in (DERIVED | OPTIONAL_DERIVED).items():
        written = read_table(results / f"{name}.csv", table)
        assert written.dtypes.tolist() == computed[name].dtypes.tolist(), name
        assert (
            (results / f"{name}.csv").read_text() == format_table(written, table) == format_table(computed[name], table)
        )


def test_new_columns_of_the_summary(tmp_path):
    row = compute_derived(make_tables(tmp_path, {SVD: 0.7}, seeds=1, num_items=50))["summary"].iloc[0]
    assert (row["source"], row["num_passes"], row["num_frames"]) == ("measured", 1, 3)
    assert (row["top1_low"], row["top1_high"]) == pytest.approx((0.5625, 0.8090), abs=5e-5), "Wilson of 35 of 50"
    assert row["top3_low"] < row["top3_fraction"] < row["top3_high"]
    assert (row["nominal_gmacs"], row["executed_gmacs"]) == (67.637, 30.1)
    assert (row["train_s"], row["generation_s_per_item"]) == (600.0, 2.5)
    assert row["items_per_s"] == pytest.approx(8 / 0.0105), "the better batch size, at its median"
    assert 0.5 < row["macro_auc"] < 1
    assert 0 < row["calibration_error"] < 1


def test_calibration_counts_every_item_once(tmp_path):
    derived = compute_derived(make_tables(tmp_path, {ORIGINAL: 0.7}, seeds=2, num_items=50))
    assert (
        derived["calibration"].groupby("run_id")["num_items"].agg(["sum", "size"]).to_numpy().tolist() == [[50, 15]] * 2
    )
    for _, rows in derived["calibration"].groupby("run_id"):
        right = (rows["num_items"] * rows["top1_fraction"]).sum()
        assert right == pytest.approx(35)


def test_latency_by_batch_size(tmp_path):
    rows = compute_derived(make_tables(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=8))["latency"].to_dict("records")
    assert [(row["batch_size"], row["num_repetitions"]) for row in rows] == [(1, 3), (8, 3)]
    assert rows[0]["latency_ms_p50"] == 2.5
    assert rows[0]["latency_ms_p95"] == pytest.approx(2.5 + 0.9 * 1.5)
    assert rows[0]["items_per_s"] == pytest.approx(400)
    assert rows[0]["first_batch_share"] == pytest.approx(2.0 / 8.5)


@pytest.mark.parametrize(
    ("case", "num_passes", "frames_per_item"), [(ORIGINAL, 1, 1), (ORIGINAL, 3, 3), (SVD, 1, 3), (SVD, 4, 12)]
)
def test_frames_a_second_are_those_that_the_network_was_given(tmp_path, case, num_passes, frames_per_item):
    """An image is one; views and windows are passes, each of all frames of the input's shape."""
    measured = make_tables(tmp_path, {case: 0.5}, seeds=1, num_items=8)
    measured["model_costs"]["num_passes"] = num_passes
    latency = compute_derived(measured)["latency"]
    assert latency["frames_per_s"].tolist() == pytest.approx(
        [frames_per_item * 1 / 0.0025, frames_per_item * 8 / 0.0105]
    )


def test_classification_reports_are_scikit_learns_with_every_class(tmp_path, no_pictures):
    """Three classes, of which one has no items and the last is never predicted either."""
    runs = {"one": [(0, 0, 1), (0, 1, 2), (1, 1, 1), (1, 1, 1)], "two": [(0, 0, 1), (0, 1, 3)]}
    write_derived(write_measured(tmp_path / "in", measured_tables(runs, 3)), tmp_path)
    text = (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    first, second = text.split("two: 2d_original on first_frame:svd, 2 items of split val\n")
    lines = [line.split() for line in first.splitlines() if line.strip()]
    assert lines[0] == ["one:", "2d_original", "on", "first_frame:svd,", "4", "items", "of", "split", "val"]
    assert lines[2:] == [
        ["precision", "recall", "f1-score", "support"],
        ["class", "0", "1.0000", "0.5000", "0.6667", "2"],
        ["class", "1", "0.6667", "1.0000", "0.8000", "2"],
        ["2", "0.0000", "0.0000", "0.0000", "0"],
        ["accuracy", "0.7500", "4"],
        ["macro", "avg", "0.5556", "0.5000", "0.4889", "4"],
        ["weighted", "avg", "0.8333", "0.7500", "0.7333", "4"],
    ]
    assert second.split()[-15:-12] == ["accuracy", "0.5000", "2"]


def test_end_to_end_stages_and_their_shares(tmp_path):
    options = {"seeds": 1, "num_items": 8}
    rows = compute_derived(make_tables(tmp_path, {SVD: 0.5}, with_end_to_end=True, **options))["end_to_end"]
    assert rows["stage"].tolist() == ["read", "generate", "classify", "total"]
    assert rows["stage_ms_p50"].tolist() == [2.0, 160.0, 18.0, 180.0]
    assert rows["share_of_total"].tolist() == pytest.approx([1 / 90, 80 / 90, 0.1, 1])
    assert "end_to_end" not in compute_derived(make_tables(tmp_path / "none", {SVD: 0.5}, **options))


def test_end_to_end_without_a_total_is_refused(tmp_path):
    path = make_results(tmp_path, {SVD: 0.5}, seeds=1, num_items=8, with_end_to_end=True) / "end_to_end_times.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",2,total," not in line))
    with pytest.raises(InputError, match=r"end_to_end_times.csv line 6: .*repetition 2 has no stage 'total'"):
        read_measured(tmp_path)


def test_checkpoints_that_say_nothing_of_their_protocol(tmp_path, no_pictures):
    quiet = {arm: {"": ""} for arm in ("3d_svd", "2d_original")}
    results = make_results(tmp_path, {SVD: 0.9, ORIGINAL: 0.4}, protocol_values=quiet)
    assert (results / "protocol_values.csv").read_text() == "run_id,key,value\n"
    write_derived(results, results)
    row = read_table(results / "comparisons.csv", DERIVED["comparisons"]).iloc[0]
    assert (row["differs_in"], row["outcome"]) == ("protocol unknown", "undecided")


@pytest.mark.parametrize("content", [b"run_id,key,value\n\xff,lr,1\n", b"\xff\xfe"], ids=["row", "header"])
def test_protocol_values_that_are_no_utf8_are_refused(tmp_path, content):
    results = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=8)
    (results / "protocol_values.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"protocol_values.csv: is not UTF-8 text; save the protocol values as UTF-8"):
        read_measured(results)


@pytest.mark.parametrize("name", ["predictions", "inference_times"])
def test_a_table_without_rows_is_refused(tmp_path, name):
    path = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=8) / f"{name}.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=rf"{name}.csv: the {name.replace('_', ' ')} has no rows"):
        read_measured(tmp_path)


def test_one_entry_has_no_comparison_and_can_still_be_shown(tmp_path, no_pictures):
    results = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=8)
    write_derived(results, results)
    assert (results / "comparisons.csv").read_text().count("\n") == 1
    assert read_table(results / "comparisons.csv", DERIVED["comparisons"], allow_empty=True).empty
    verdict = results / "verdict.csv"
    verdict.write_text(verdict.read_text().splitlines(keepends=True)[0])
    assert "?" not in format_summary(results)


def test_rows_of_runs_carry_their_entry(tmp_path):
    options = {"seeds": 2, "num_items": 12, "with_end_to_end": True}
    tables = compute_derived(make_tables(tmp_path, {SVD: 0.5, SHUFFLED: 0.5, FIRST: 0.5, ORIGINAL: 0.5}, **options))
    expected = {
        f"{run_id}_s{seed}__{name}": entry_id
        for seed in (0, 1)
        for run_id, name, entry_id in (
            ("3d_svd_t3", "clip_svd", "3d_svd/clip:svd/t3"),
            ("3d_svd_t3", "shuffled_svd", "3d_svd/shuffled:svd/t3"),
            ("2d_original_t3", "first_frame_svd", "2d_original/first_frame:svd/t3"),
            ("2d_original_t3", "original", "2d_original/original"),
        )
    }
    of_runs = [name for name, frame in tables.items() if "run_id" in frame]
    assert sorted(of_runs) == [
        "calibration", "confusion_flat", "end_to_end", "latency", "per_class_metrics", "summary"
    ]  # fmt: skip
    for name in of_runs:
        assert tables[name].columns.tolist()[: len(RUN_COLUMNS) + 1] == [*RUN_COLUMNS, "entry_id"]
        pairs = tables[name][["run_id", "entry_id"]].drop_duplicates()
        assert dict(pairs.itertuples(index=False, name=None)) == expected
    assert set(tables["arms"]["entry_id"]) == set(expected.values())


def test_the_terminal_shows_the_table_and_what_is_answered(tmp_path, no_pictures):
    results = make_results(tmp_path, {ORIGINAL: 0.8, FIRST: 0.3})
    write_derived(results, results)
    lines = format_summary(results).splitlines()
    assert lines[3].split() == ["2d_original_t3_s0__original", "original", "0.800", *lines[3].split()[3:]]
    assert lines[3].endswith("128.8 M     7.654 G  2.50 ms")
    answers = [line for line in lines if "?" in line]
    assert len(answers) == 1, "what was not measured is not listed"
    assert answers[0].startswith(
        "Do generated first frames cost the 2-D network accuracy? Yes: 2d_original on original 80"
    )
    assert lines[-1] == f"report:  {results}/report.html"


EDITS = {
    **{name: ("x", name) for name in ("protocol", "arm", "model", "start_weights", "train_input", "test_input")},
    **{name: ("x", name) for name in ("split", "selection_split", "item_id", "class_name", "wnid")},
    **{name: ("x", name) for name in ("predicted_class_name", "predicted_wnid")},
    **{name: ("7", name) for name in ("num_frames", "seed", "true_label_rank")},
    "run_id": ("x", "run"),
    "label": ("+1", "class_name"),  # the row then says two things: its name is that of another class
    "predicted_label": ("+1", "predicted_class_name"),
    "prob_true": ("0.123456", "prob_true"),
}


@pytest.mark.parametrize("column", MEASURED["predictions"].column_names)
def test_one_edited_prediction_is_refused_by_name(tmp_path, column):
    results = make_results(tmp_path, {SVD: 0.7, ORIGINAL: 0.5}, seeds=2, num_items=20)
    value, named = EDITS[column]
    for line in (2, 9, 47, 81):
        path = results / "predictions.csv"
        rows = read_table(path, MEASURED["predictions"]).astype(object)
        rows.loc[line, column] = (rows.loc[line, column] + 1) % 4 if value == "+1" else value
        content = path.read_bytes()
        write_table(rows, path, MEASURED["predictions"])
        with pytest.raises(InputError, match=rf"predictions.csv line {line}\b") as error:
            read_measured(results)
        assert named in str(error.value)
        path.write_bytes(content)
    assert len(read_measured(results)["predictions"]) == 80


@pytest.mark.parametrize("column", ["label", "predicted_label"])
def test_an_answer_edited_with_its_names_is_refused(tmp_path, column):
    results = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=20)
    rows = read_table(results / "predictions.csv", MEASURED["predictions"]).astype(object)
    prefix = "predicted_" if column.startswith("predicted") else ""
    other = rows.index[rows[column] != rows.loc[5, column]][0]
    for name in (column, f"{prefix}class_name", f"{prefix}wnid"):
        rows.loc[5, name] = rows.loc[other, name]
    write_table(rows, results / "predictions.csv", MEASURED["predictions"])
    with pytest.raises(InputError, match=r"predictions.csv line 5: column '(predicted_label|true_label_rank)' is"):
        read_measured(results)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("run_id", "x", r"probabilities.csv line 9: column 'run_id' is 'x', but predictions.csv has no such run"),
        ("item_id", "x", r"probabilities.csv line 9: column 'item_id' is 'x', but run .* has no such prediction"),
        (
            "label",
            9,
            r"probabilities.csv line 9: column 'label' is 9, expected below 4: run .* has 80 rows of 20 items",
        ),
        ("label", 10**12, r"probabilities.csv line 9: column 'label' is 1e\+12, expected below 4"),
        ("probability", 0.9, r"probabilities.csv lines 6 to 9: column 'probability' of item .* sums to"),
    ],
)
def test_one_edited_probability_is_refused_by_name(tmp_path, column, value, message):
    results = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=20)
    rows = read_table(results / "probabilities.csv", MEASURED["probabilities"]).astype(object)
    rows.loc[9, column] = value
    write_table(rows, results / "probabilities.csv", MEASURED["probabilities"])
    with pytest.raises(InputError, match=message):
        read_measured(results)


def test_a_missing_probability_is_named(tmp_path):
    path = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=1, num_items=20) / "probabilities.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8] + lines[9:]))
    with pytest.raises(
        InputError, match=r"probabilities.csv: item '0*1' of run .* has no row for label 3, expected 20"
    ):
        read_measured(tmp_path)


def test_two_swapped_probabilities_are_refused_by_name(tmp_path):
    results = make_results(tmp_path, {ORIGINAL: 1.0}, seeds=1, num_items=20)
    rows = read_table(results / "probabilities.csv", MEASURED["probabilities"])
    rows.loc[[6, 7], "probability"] = rows.loc[[7, 6], "probability"].to_numpy()  # item 1, whose label is 1
    write_table(rows, results / "probabilities.csv", MEASURED["probabilities"])
    with pytest.raises(InputError, match=r"predictions.csv line 3: column 'predicted_label' is 1, but .* gives 0"):
        read_measured(results)


def test_ties_at_six_digits_are_taken_either_way(tmp_path):
    classes = tuple(ClassInfo(label, f"class {label}", f"n{label}") for label in range(3))
    close = np.array([[0.4, 0.4 + 1e-9, 0.2 - 1e-9], [0.4, 0.4, 0.2], [0.3, 0.3, 0.4]])
    rows = prediction_rows(RUN | {"run_id": "run"}, ["a", "b", "c"], np.array([0, 1, 1]), close, classes)
    assert [row["predicted_label"] for row in rows] == [1, 0, 2], "the tables cannot show why the first is 1"
    tables = measured_tables({"run": [(0, 0, 1)] * 3}, 3)
    tables["predictions"] = pd.DataFrame(rows)
    tables["probabilities"] = pd.DataFrame(probability_rows("run", ["a", "b", "c"], close))
    write_measured(tmp_path, tables)
    assert read_measured(tmp_path)["predictions"]["true_label_rank"].tolist() == [2, 2, 3]


def test_one_item_with_two_labels_is_named(tmp_path):
    one = make_tables(tmp_path / "one", {ORIGINAL: 0.5}, seeds=3, num_items=20)
    two = make_tables(tmp_path / "two", {SVD: 0.5}, seeds=1, num_items=20)
    for name in ("predictions", "probabilities"):  # other items, under the names of the first ones
        two[name]["item_id"] = two[name]["item_id"].map(lambda item: f"{(int(item, 16) + 1) % 20:064x}")
    both = {name: pd.concat([one[name], two[name]], ignore_index=True) for name in MEASURED}
    write_measured(tmp_path, both)
    with pytest.raises(InputError, match=r"predictions.csv line 62: column 'label' is 0, but 1 in other rows of item"):
        read_measured(tmp_path)


def test_classes_without_names_beside_named_ones_are_no_contradiction(tmp_path):
    one = make_tables(tmp_path / "one", {ORIGINAL: 0.5}, seeds=1, num_items=8)
    two = make_tables(tmp_path / "two", {SVD: 0.5}, seeds=1, num_items=8)
    for prefix in ("", "predicted_"):
        two["predictions"][f"{prefix}class_name"] = two["predictions"][f"{prefix}label"].astype(str)
        two["predictions"][f"{prefix}wnid"] = ""
    write_measured(tmp_path, {name: pd.concat([one[name], two[name]]) for name in MEASURED})
    assert len(read_measured(tmp_path)["predictions"]) == 16
    names = compute_derived(read_measured(tmp_path))["confusion_flat"].drop_duplicates(["run_id", "label"])
    assert names["class_name"].tolist() == ["class 0", "class 1", "class 2", "class 3", "0", "1", "2", "3"]


def test_a_table_of_another_run_is_named(tmp_path):
    tables = measured_tables({"one": [(0, 0, 1)], "two": [(1, 1, 1)]}, 3)
    short = tables | {"model_costs": tables["model_costs"].iloc[:1]}
    with pytest.raises(InputError, match=r"model_costs.csv: run 'two' \(predictions.csv line 3\) is missing"):
        read_measured(write_measured(tmp_path, short))
    strange = tables["inference_times"].replace({"run_id": {"two": "three"}})
    with pytest.raises(InputError, match=r"inference_times.csv line 5: column 'run_id' is 'three', but"):
        read_measured(write_measured(tmp_path, tables | {"inference_times": strange}))
    model = tables["model_costs"].assign(model=["vgg11_bn", "vgg11_bn_3d"])
    with pytest.raises(InputError, match=r"model_costs.csv line 3: column 'model' is 'vgg11_bn_3d', but 'vgg11_bn'"):
        read_measured(write_measured(tmp_path, tables | {"model_costs": model}))


def test_one_edited_learning_rate_is_refused_by_name(tmp_path):
    results = make_results(tmp_path, {SVD: 0.7, SHUFFLED: 0.5, ORIGINAL: 0.5}, num_items=12)
    path = results / "protocol_values.csv"
    text = path.read_text()
    for run_id in ("3d_svd_t3_s1__shuffled_svd", "2d_original_t3_s2__original"):
        path.write_text(text.replace(f"{run_id},lr,0.001", f"{run_id},lr,0.01"))
        line = text[: text.index(f"{run_id},lr,")].count("\n") + 1
        arm = run_id.split("_t3")[0]
        expected = f"protocol_values.csv line {line}: 'lr' is '0.01', but '0.001' in other runs of arm '{arm}'"
        with pytest.raises(InputError, match=expected):
            read_measured(results)


def test_seeds_of_a_free_protocol_may_differ(tmp_path):
    custom = {"2d_original": {"protocol": "custom"}}
    path = make_results(tmp_path, {ORIGINAL: 0.5}, seeds=2, num_items=12, columns=custom) / "protocol_values.csv"
    path.write_text(path.read_text().replace("s0__original,lr,0.001", "s0__original,lr,0.01"))
    assert read_measured(tmp_path)["protocol_values"]["value"].tolist()[0] == "0.01"


@pytest.mark.exhaustive
def test_ten_thousand_items_of_two_hundred_classes_are_checked_in_seconds():
    num_items, num_classes = 10_000, 200
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(num_classes, 0.05), num_items)
    probabilities = np.array([float(f"{value:.6g}") for value in probabilities.ravel()]).reshape(probabilities.shape)
    labels = rng.integers(0, num_classes, num_items)
    classes = tuple(ClassInfo(label, f"class {label}", f"n{label}") for label in range(num_classes))
    ids = [f"{number:064x}" for number in range(num_items)]
    tables = measured_tables({"run": [(0, 0, 1)]}, num_classes)
    tables["predictions"] = pd.DataFrame(prediction_rows(RUN | {"run_id": "run"}, ids, labels, probabilities, classes))
    tables["probabilities"] = pd.DataFrame(
        {
            "run_id": "run",
            "item_id": np.repeat(ids, num_classes),
            "label": np.tile(np.arange(num_classes), num_items),
            "probability": probabilities.ravel(),
        }
    )
    start_s = time.perf_counter()
    require_consistency(tables, Path("results"))
    assert time.perf_counter() - start_s < 30


def test_names_with_commas_quotes_and_na_survive(tmp_path):
    classes = tuple(ClassInfo(label, name) for label, name in enumerate(("NA", 'a "b", c', "007")))
    rows = prediction_rows(RUN | {"run_id": "r"}, ["x", "y", "z"], np.arange(3), np.eye(3) * 0.4 + 0.2, classes)
    write_table(rows, tmp_path / "predictions.csv", MEASURED["predictions"])
    assert read_table(tmp_path / "predictions.csv", MEASURED["predictions"])["class_name"].tolist() == [
        "NA",
        'a "b", c',
        "007",
    ]
