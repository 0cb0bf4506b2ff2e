"""The paper's result files: their numbers exactly, every place compared with every other, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from Model_Evaluation import import_published
from Model_Evaluation.published_checks import read_published
from Model_Evaluation.published_claims import PUBLISHED_CLAIMS
from Model_Evaluation.published_files import published_files
from Model_Evaluation.published_results import TABLE_FILES, TABLES
from utils.artifacts import CONFUSION_FLAT, LATENCY, PER_CLASS_METRICS, SUMMARY, read_table
from utils.errors import InputError, run_script

CLASSES = "[{wnid: n0, name: lion}, {wnid: n1, name: brown bear}, {wnid: n2, name: red panda}]"
MATRICES = {
    "model2d": [[5, 3, 2], [1, 6, 3], [0, 4, 6]],
    "model3d": [[9, 1, 0], [1, 8, 1], [0, 2, 8]],
}
# Seconds an item: batches of 8, 8, 8 and 6; in 2-D the second and the third took exactly equally long.
TIMES = {
    "model2d": [0.5] * 8 + [0.01] * 16 + [0.02] * 6,
    "model3d": [1.0] * 8 + [0.02] * 8 + [0.03] * 8 + [0.04] * 6,
}


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    monkeypatch.setattr(sys, "argv", ["import_published.py", *arguments])
    capsys.readouterr()
    code = 0
    try:
        run_script(import_published.main)
    except SystemExit as stop:
        code = stop.code
    return Outcome(code, *capsys.readouterr())


def write_small(folder: Path) -> Path:
    """All 15 files for three classes of ten items, as the paper's own are laid out."""
    folder.mkdir()
    summary, per_class = {}, []
    for run_id, matrix in MATRICES.items():
        metrics = small_metrics(matrix) | {"inference_times": TIMES[run_id]}
        short = run_id[-2:]
        (folder / f"{run_id}_metrics.json").write_text(json.dumps(metrics, indent=2))
        write_rows(folder / f"{run_id}_confusion.csv", "0,1,2", matrix)
        columns = [metrics[name] for name in ("precision", "recall", "f1")]
        write_rows(
            folder / f"{run_id}_precision_recall_f1_report.csv", "precision,recall,f1", zip(*columns, strict=True)
        )
        flat = [(actual, guess, matrix[actual][guess], run_id) for guess in range(3) for actual in range(3)]
        write_rows(folder / f"confusion{short}_flat.csv", "actual,predicted,count,model", flat)
        write_rows(folder / f"inference_times{short}.csv", "inference_time,model", [(t, run_id) for t in TIMES[run_id]])
        (folder / f"{run_id}_inference_times.csv").write_text("".join(f"{t:.18e}\n" for t in TIMES[run_id]))
        per_class += [(label, *values, run_id) for label, values in enumerate(zip(*columns, strict=True))]
        mean_s = sum(TIMES[run_id]) / 30
        summary[run_id] = {"top1": metrics["top1"], "top3": 1.0, "avg_inference_time": mean_s}
    write_rows(folder / "per_class_metrics.csv", "class,precision,recall,f1,model", per_class)
    rows = [(run_id, *entry.values()) for run_id, entry in summary.items()]
    write_rows(folder / "summary.csv", "model,top1,top3,avg_inference_time", rows)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return folder


def small_metrics(matrix: list[list[int]]) -> dict:
    hits = [matrix[label][label] for label in range(3)]
    precision = [hits[label] / sum(row[label] for row in matrix) for label in range(3)]
    recall = [hits[label] / sum(matrix[label]) for label in range(3)]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    shares = {"top1": sum(hits) / 30, "top3": 1.0}
    return shares | {"precision": precision, "recall": recall, "f1": f1, "confusion_matrix": matrix}


def write_rows(path: Path, header: str, rows) -> None:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in [header.split(","), *rows]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_small(tmp_path / "source")


@pytest.fixture
def import_small(capsys, monkeypatch, source, tmp_path) -> Callable[..., Outcome]:
    def call(*arguments: str) -> Outcome:
        given = (f"source={source}", f"output_dir={tmp_path / 'out'}", f"classes={CLASSES}")
        return run(capsys, monkeypatch, *given, *arguments)

    return call


@pytest.fixture(scope="module")
def real_tables(real_data, tmp_path_factory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", f"source={real_data / 'published_results'}", f"output_dir={folder}"])
        import_published.main()
    assert not (folder / "predictions.csv").exists()
    return {name: read_table(folder / f"{name}.csv", table) for name, table in TABLES.items()}


def claims_of(tables: dict[str, pd.DataFrame]) -> dict[str, dict]:
    return {row["claim"]: row for row in tables["published_claims"].to_dict("records")}


# ---------------------------------------------------------------------------------------------------------------------
# The paper's own files


def test_summary_of_the_paper(real_tables):
    rows = real_tables["summary"].set_index("run_id").to_dict("index")
    top = {run_id: (row["top1_fraction"], row["top3_fraction"], row["num_errors"]) for run_id, row in rows.items()}
    assert top == {"model2d": (0.542, 0.778, 229), "model3d": (0.758, 0.904, 121)}
    macro = [tuple(row[f"macro_{name}"] for name in ("precision", "recall", "f1")) for row in rows.values()]
    assert macro == [(0.626661, 0.542, 0.529031), (0.758635, 0.758, 0.755634)]
    assert [(row["arm"], row["test_input"], row["num_items"]) for row in rows.values()] == [
        ("paper_2d", "first_frame:svd", 500),
        ("paper_3d", "clip:svd", 500),
    ]
    shared = ("protocol", "source", "start_weights", "selection_split", "split", "num_classes")
    for row in rows.values():
        assert [row[name] for name in shared] == ["paper", "published", "imagenet", "val", "val", 10]
        assert row["top1_low"] < row["top1_fraction"] < row["top1_high"]
        empty = ("seed", "macro_auc", "nll", "calibration_error", "num_parameters", "latency_ms_median", "train_s")
        assert all(pd.isna(row[name]) for name in empty)


def test_what_the_paper_says_and_what_its_files_give(real_tables):
    claims = claims_of(real_tables)
    expected = {
        "error_reduction": (42, 47.1616, "no"),
        "f1_gain_red_panda": (0.31, 0.179611, "no"),
        "f1_gain_brown_bear": (0.27, 0.230037, "no"),
        "f1_gain_number_1": (0.31, 0.359271, "no"),
        "f1_gain_number_2": (0.27, 0.319073, "no"),
        "f1_gain_rank_red_panda": (1, 7, "no"),
        "f1_gain_rank_brown_bear": (2, 5, "no"),
        "brown_bear_as_red_panda_2d": (8, 8, "yes"),
        "brown_bear_as_red_panda_3d": (0, 0, "yes"),
        "macro_precision_2d": (0.62, 0.626661, "truncated"),
        "macro_f1_2d": (0.53, 0.529031, "yes"),
        "macro_f1_3d": (0.75, 0.755634, "truncated"),
        "top1_gain": (21.6, 21.6, "yes"),
        "mean_latency_2d": (0.375, 0.375141, "yes"),
        "mean_latency_3d": (0.513, 0.512847, "yes"),
        "latency_increase": (36.8, 36.708, "no"),
    }
    found = {
        name: (claims[name]["published_value"], claims[name]["recomputed_value"], claims[name]["agrees"])
        for name in expected
    }
    assert found == expected
    assert "gain in F1 (lion)" in claims["f1_gain_number_1"]["sentence"]
    assert "gain in F1 (African elephant)" in claims["f1_gain_number_2"]["sentence"]
    assert sum(row["agrees"] == "no" for row in claims.values()) == 8


def test_latency_of_the_paper_is_mostly_its_first_batch(real_tables):
    rows = real_tables["latency"].to_dict("records")
    batches = [(row["run_id"], row["batch_size"], row["num_repetitions"]) for row in rows]
    assert batches == [("model2d", 16, 31), ("model2d", 4, 1), ("model3d", 16, 31), ("model3d", 4, 1)]
    assert [row["first_batch_share"] for row in rows if row["batch_size"] == 16] == [0.856367, 0.914095]
    claims = claims_of(real_tables)
    assert claims["needed_speed_mean_latency_3d"]["recomputed_value"] == 263.782
    assert "peak is about 13" in claims["needed_speed_mean_latency_3d"]["sentence"]
    # Without its first batch the larger network would be the faster one.
    assert claims["later_latency_ratio"]["recomputed_value"] == 0.817628


def test_class_tables_of_the_paper(real_tables):
    confusion, per_class = real_tables["confusion_flat"], real_tables["per_class_metrics"]
    assert len(confusion) == 200 and confusion.groupby("run_id")["num_items"].sum().tolist() == [500, 500]
    bears = confusion[(confusion["class_name"] == "brown bear") & (confusion["predicted_class_name"] == "red panda")]
    assert bears["num_items"].tolist() == [8, 0] and set(bears["predicted_wnid"]) == {"n02509815"}
    cats = per_class[per_class["class_name"] == "Persian cat"]
    assert cats[["num_items", "num_predicted", "num_correct"]].to_numpy().tolist() == [[50, 142, 50], [50, 56, 41]]


# ---------------------------------------------------------------------------------------------------------------------
# A small folder, by hand


def test_small_folder_by_hand(import_small, tmp_path):
    outcome = import_small()
    assert outcome.code == 0, outcome.stderr
    out = tmp_path / "out"
    summary = read_table(out / "summary.csv", SUMMARY)
    assert summary["num_errors"].tolist() == [13, 5] and summary["top1_fraction"].tolist() == [0.566667, 0.833333]
    assert summary["macro_recall"].tolist() == [0.566667, 0.833333]
    assert summary[["entry_id", "num_frames"]].to_numpy().tolist() == [["", 3], ["", 3]], "both saw clips of three"
    claims = claims_of({"published_claims": read_table(out / "published_claims.csv", PUBLISHED_CLAIMS)})
    assert claims["error_reduction"]["recomputed_value"] == 61.5385  # 8 of 13
    assert claims["f1_gain_lion"]["recomputed_value"] == 0.275  # 18 / 20 - 10 / 16
    assert claims["brown_bear_as_red_panda_2d"]["recomputed_value"] == 3
    assert claims["red_panda_as_brown_bear_2d"]["recomputed_value"] == 4
    per_class = read_table(out / "per_class_metrics.csv", PER_CLASS_METRICS)
    assert per_class["precision"].tolist()[:3] == [0.833333, 0.461538, 0.545455]
    confusion = read_table(out / "confusion_flat.csv", CONFUSION_FLAT)
    assert confusion["num_items"].tolist() == [count for matrix in MATRICES.values() for row in matrix for count in row]
    latency = read_table(out / "latency.csv", LATENCY)
    columns = ["batch_size", "num_repetitions", "latency_ms_p50", "items_per_s"]
    assert latency[columns].to_numpy().tolist() == [
        [8, 3, 80, 100],
        [6, 1, 120, 50],
        [8, 3, 240, 33.3333],
        [6, 1, 240, 25],
    ]
    assert latency["first_batch_share"].tolist()[::2] == [0.934579, 0.925926]  # 4 of 4.28 s, 8 of 8.64 s
    assert "predictions.csv" not in {path.name for path in out.iterdir()}


def test_second_run_does_nothing_and_a_changed_source_is_refused(import_small, source, tmp_path):
    assert import_small().code == 0
    out = tmp_path / "out"
    before = {name: (out / name).stat().st_mtime_ns for name in TABLE_FILES}
    shutil.move(source, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", source)
    assert import_small().code == 0
    assert {name: (out / name).stat().st_mtime_ns for name in TABLE_FILES} == before

    for name in ("model2d_metrics.json", "summary.json", "summary.csv"):  # consistently another result
        path = source / name
        text = path.read_text()
        path.write_text(re.sub(r'(?<="top3": )1\.0|(?<=667,)1\.0', "0.9", text, count=1))
        assert path.read_text() != text
    outcome = import_small()
    assert outcome.code == 2 and "model2d_metrics.json: its content has changed" in outcome.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in TABLE_FILES} == before
    assert import_small("overwrite=true").code == 0
    assert read_table(out / "summary.csv", SUMMARY)["top3_fraction"].tolist() == [0.9, 1]


def test_interrupted_import_is_done_again(import_small, tmp_path):
    assert import_small().code == 0
    expected = {name: (tmp_path / "out" / name).read_bytes() for name in TABLE_FILES}
    for name in ("latency.csv", "summary.csv"):
        (tmp_path / "out" / name).unlink()
    assert import_small().code == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLE_FILES} == expected


# ---------------------------------------------------------------------------------------------------------------------
# Contradictions and malformed files: file (old text, new text), what the sentence says

METRICS_2D = "model2d_metrics.json"
BROKEN = {
    "no JSON": (METRICS_2D, '"top1"', "top1", ["model2d_metrics.json line 2: is not JSON"]),
    "cut off": (METRICS_2D, "0.02\n  ]\n}", "", ["is not JSON"]),
    "a list": ("summary.json", None, "[1, 2]", ["summary.json: holds no object"]),
    "missing key": (METRICS_2D, '"top3"', '"top4"', ["unknown key 'top4'", "'top3' is missing"]),
    "doubled key": (METRICS_2D, '"top3"', '"top1": 0.5,\n"top3"', ["a key stands twice"]),
    "NaN": (METRICS_2D, '"top3": 1.0', '"top3": NaN', ["top3", "finite"]),
    "negative count": (
        METRICS_2D,
        "      5,",
        "      -5,",
        ["confusion_matrix.0.0", "greater than or equal to 0", "-5"],
    ),
    "fraction of an item": (METRICS_2D, "      5,", "      5.5,", ["confusion_matrix.0.0", "5.5"]),
    "not square": (METRICS_2D, "      5,\n", "", ["confusion_matrix.0 has 2 counts, expected 3"]),
    "top3 of no items": (METRICS_2D, '"top3": 1.0', '"top3": 0.91', ["top3 is 0.91, not a share of 30 items"]),
    "top3 below top1": (METRICS_2D, '"top3": 1.0', '"top3": 0.5', ["top3 is 0.5", "17 are right"]),
    "wrong total": (METRICS_2D, "    0.02\n", "    0.02,\n    0.02\n", ["31 inference_times", "30 items"]),
    "times of no batches": (METRICS_2D, "    0.01,\n", "", ["inference_times.8 stands 15 times", "multiples of 8"]),
    "short list": (METRICS_2D, '"recall": [\n    0.5,', '"recall": [', ["recall has 2 values, expected 3"]),
    "empty CSV": ("summary.csv", None, "", ["summary.csv line 1: the file is empty"]),
    "not UTF-8": ("summary.csv", None, b"\xff\xfe", ["summary.csv: is not UTF-8"]),
    "negative count in CSV": ("confusion2d_flat.csv", "0,0,5,", "0,0,-5,", ["line 2", "'count' is -5", "at least 0"]),
    "row twice": ("confusion2d_flat.csv", "1,0,1,", "0,0,1,", ["line 3", "stands already on line 2"]),
    "row missing": ("confusion2d_flat.csv", "1,0,1,model2d\n", "", ["has 8 rows, expected 9"]),
    "unknown class": ("confusion2d_flat.csv", "2,2,6,", "2,3,6,", ["line 10", "'predicted' is 3, expected below 3"]),
    "another model": ("confusion2d_flat.csv", "2,2,6,model2d", "2,2,6,model3d", ["line 10", "'model3d'"]),
    "another column": ("model2d_confusion.csv", "0,1,2", "0,1,2,3", ["line 2: has 3 cells"]),
    "columns in another order": ("model2d_confusion.csv", "0,1,2", "1,0,2", ["line 1: has the columns 1, 0, 2"]),
    "word for a time": ("model2d_inference_times.csv", "5.000000000000000000e-01", "fast", ["line 1", "'fast'"]),
    "time missing": ("inference_times3d.csv", "1.0,model3d\n", "", ["has 29 rows, expected 30"]),
    "matrix against matrix": (
        "model2d_confusion.csv",
        "1,6,3",
        "1,7,3",
        ["model2d_confusion.csv line 3: column '1' is 7, but model2d_metrics.json says 6"],
    ),
    "flat matrix": (
        "confusion3d_flat.csv",
        "0,0,9,",
        "0,0,8,",
        ["confusion3d_flat.csv line 2: 'count' of actual 0 predicted as 0 is 8, but model3d_metrics.json says 9"],
    ),
    "top-1": ("summary.csv", "model2d,0.5", "model2d,0.6", ["summary.csv line 2: column 'top1' is 0.6", "says 0.5666"]),
    "report": (
        "model3d_precision_recall_f1_report.csv",
        ",0.9,",
        ",0.8,",
        ["report.csv line 2: column 'recall' of class 0 is 0.8, but the confusion matrix says 0.9"],
    ),
    "per class": (
        "per_class_metrics.csv",
        "0.6,0.5714285714285713,model2d",
        "0.6,0.5,model2d",
        ["per_class_metrics.csv line 4: column 'f1' of class 2 is 0.5, but the confusion matrix says 0.5714285714"],
    ),
    "mean time": (
        "summary.json",
        '"avg_inference_time": 0.14',
        '"avg_inference_time": 0.15',
        ["model2d.avg_inference"],
    ),
    "one time": (
        "inference_times2d.csv",
        "0.02,model2d",
        "0.03,model2d",
        [
            "inference_times2d.csv line 26: the inference time is 0.03",
            "model2d_metrics.json (inference_times.24) says 0.02",
        ],
    ),
}


@pytest.mark.parametrize(("name", "old", "new", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_file_is_named_before_anything_is_written(import_small, source, tmp_path, name, old, new, says):
    path = source / name
    if old is None:
        path.write_bytes(new if isinstance(new, bytes) else new.encode())
    else:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    outcome = import_small()
    assert outcome.code == 2 and outcome.stderr.count("error: ") == 1 and "Traceback" not in outcome.stderr
    for part in [name, *says]:
        assert part in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", published_files(Path()))
def test_missing_file_is_named(import_small, source, tmp_path, name):
    (source / name).unlink()
    outcome = import_small()
    assert outcome.code == 2 and f"{name}: there is no such file" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_other_classes_than_the_files_have(capsys, monkeypatch, source, tmp_path):
    outcome = run(capsys, monkeypatch, f"source={source}", f"output_dir={tmp_path / 'out'}")  # the paper's ten
    assert outcome.code == 2
    assert "model2d_metrics.json: confusion_matrix has 3 classes, but 'classes' lists 10" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_one_name_for_two_classes(capsys, monkeypatch, source):
    twice = CLASSES.replace("red panda", "lion")
    outcome = run(capsys, monkeypatch, f"source={source}", f"classes={twice}")
    assert outcome.code == 2 and "classes: name 'lion' is listed twice" in outcome.stderr


def test_models_scored_on_other_items(source):
    shutil.rmtree(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MATRICES, "model3d", [[8, 1, 0], [2, 8, 1], [0, 2, 8]])  # consistent, one item moved to class 1
        write_small(source)
    with pytest.raises(InputError, match=r"model3d_metrics.json: the sum of confusion_matrix.0 is 9, but .* says 10"):
        read_published(source, 3)


def test_any_number_changed_in_any_file_is_refused(source, is_exhaustive):
    """Each number by itself (a fixed sample by default): the sentence names the file."""
    step = 1 if is_exhaustive else 11
    places = [
        (path, match)
        for path in published_files(source).values()
        for match in re.finditer(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]\d+)?", path.read_text())
    ]
    assert len(places) == 352
    for path, match in places[::step]:
        text = path.read_text()
        changed = repr(float(match.group()) + 0.001) if "." in match.group() else str(int(match.group()) + 1)
        path.write_text(text[: match.start()] + changed + text[match.end() :])
        with pytest.raises(InputError) as error:
            read_published(source, 3)
        assert path.name in str(error.value), (path, match)
        path.write_text(text)
    assert read_published(source, 3)["model3d"].hits == 25
