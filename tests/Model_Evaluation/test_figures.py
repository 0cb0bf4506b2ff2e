"""Figures: what is drawn equals the tables, equal tables are equal bytes, and odd tables are drawn, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_results import make_tables

from Model_Evaluation.derived import compute_derived
from Model_Evaluation.entries import over_seeds, own_entry_ids
from Model_Evaluation.figures import (
    copy_pixel_pictures,
    draw_confusion,
    draw_confusion_difference,
    draw_per_class_bars,
    mean_shares,
    safe_name,
    write_figures,
)
from Model_Evaluation.figures_classes import describe_distribution, draw_class_distribution
from Model_Evaluation.figures_study import (
    draw_accuracy_against_cost,
    draw_arms_overview,
    draw_comparisons,
    draw_reliability,
    pool_bins,
)
from utils.artifacts import COMPARISONS, ENTRY_COLUMNS

ACCURACIES = {
    ("2d_original", "original", "original"): 0.6,
    ("3d_static", "clip:static", "clip:static"): 0.5,
    ("3d_svd", "clip:svd", "clip:svd"): 0.8,
    ("3d_svd", "clip:svd", "shuffled:svd"): 0.7,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, pd.DataFrame]:
    measured = make_tables(tmp_path_factory.mktemp("study"), ACCURACIES, seeds=2, num_items=40, num_classes=4)
    return measured | compute_derived(measured)


def confusion_rows(matrix: list[list[int]], run_id: str = "a") -> pd.DataFrame:
    names = [f"class {label}" for label in range(len(matrix))]
    return pd.DataFrame(
        [
            {"run_id": run_id, "label": row, "class_name": names[row], "predicted_label": column, "num_items": count}
            for row, line in enumerate(matrix)
            for column, count in enumerate(line)
        ]
    )


def test_every_figure_is_drawn_and_equal_tables_are_equal_bytes(tables, tmp_path):
    runs = tables["confusion_flat"]
    given = tables | {"confusion_flat": runs[runs["seed"] == 0]}
    write_figures(given, tmp_path / "one")
    write_figures({name: frame.copy() for name, frame in given.items()}, tmp_path / "two")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    pairs = over_seeds(tables["comparisons"])["comparison_id"]
    expected = {f"confusion_{run_id}.png" for run_id in given["confusion_flat"]["run_id"]}
    expected |= {f"{safe_name(f'confusion_difference_{pair}')}.png" for pair in pairs}
    single = (
        "per_class_recall",
        "per_class_f1",
        "class_distribution",
        "reliability",
        "arms_overview",
        "accuracy_against_cost",
        "comparisons",
    )
    assert drawn.keys() == expected | {f"{name}.png" for name in single}
    assert len(pairs) == 3
    for content in drawn.values():
        assert b"matplotlib" not in content.lower()


def test_a_changed_number_changes_the_figures_that_show_it(tables, tmp_path):
    few = {name: tables[name] for name in ("arms", "summary", "calibration", "comparisons")}
    changed = dict(few, arms=tables["arms"].assign(top1_mean=tables["arms"]["top1_mean"] - 0.1))
    write_figures(few, tmp_path / "one")
    write_figures(changed, tmp_path / "two")
    differ = {path.name for path in (tmp_path / "one").iterdir() if path.read_bytes() != _bytes(tmp_path / "two", path)}
    assert differ == {"arms_overview.png", "accuracy_against_cost.png"}


def _bytes(folder: Path, path: Path) -> bytes:
    return (folder / path.name).read_bytes()


def test_one_run_without_arms_and_comparisons(tables, tmp_path):
    run_id = tables["summary"]["run_id"].iloc[0]
    names = ("confusion_flat", "per_class_metrics", "summary")
    one = {name: tables[name][tables[name]["run_id"] == run_id] for name in names}
    one["comparisons"] = pd.DataFrame(columns=COMPARISONS.column_names)
    write_figures(one, tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    names = ("class_distribution", f"confusion_{run_id}", "per_class_f1", "per_class_recall")
    assert drawn == [f"{name}.png" for name in names]


def test_figures_of_other_tables_are_removed_but_not_the_pictures_of_pixels(tables, tmp_path):
    few = {name: tables[name] for name in ("arms", "summary", "comparisons")}
    write_figures(few, tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    others = {"curves_a.png", "discordant_x_only_a.png", "grad_cam_3d_svd.png", "mine.png"}
    stale = {"confusion_gone.png", "confusion_difference_gone.png", "per_class_f1.png", "reliability.png"}
    for name in others | stale:
        (tmp_path / name).write_bytes(b"of an earlier run")
    write_figures(few, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | others
    write_figures({"arms": few["arms"]}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others


def test_pictures_of_pixels_follow_the_tables_to_another_folder(tmp_path):
    source, target = tmp_path / "results" / "figures", tmp_path / "again" / "figures"
    copy_pixel_pictures(source, target)  # an evaluation without such pictures
    assert not target.exists()
    source.mkdir(parents=True)
    for name in ("curves_a.png", "discordant_x_only_a.png", "grad_cam_b.png", "comparisons.png"):
        (source / name).write_bytes(name.encode())
    target.mkdir(parents=True)
    for name in ("curves_gone.png", "curves_a.png", "reliability.png"):
        (target / name).write_bytes(b"old")
    copy_pixel_pictures(source, target)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    copied = ("curves_a.png", "discordant_x_only_a.png", "grad_cam_b.png")
    assert found == {name: name.encode() for name in copied} | {"reliability.png": b"old"}
    before = sorted(source.iterdir())
    copy_pixel_pictures(source, tmp_path / "again" / ".." / "results" / "figures")
    assert sorted(source.iterdir()) == before


def test_no_tables_no_figures(tmp_path):
    write_figures({}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_confusion_shows_counts_and_the_share_of_the_true_class():
    axes = draw_confusion(confusion_rows([[3, 1], [0, 0]]), "run").axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "", ""]
    assert axes.get_ylabel() == "true class"


def test_difference_is_in_points_of_the_true_class_with_seeds_pooled():
    two_seeds = pd.concat([confusion_rows([[4, 0], [1, 3]], "a"), confusion_rows([[2, 2], [1, 3]], "b")])
    assert mean_shares(two_seeds).to_numpy().tolist() == [[0.75, 0.25], [0.25, 0.75]]
    axes = draw_confusion_difference(two_seeds, confusion_rows([[4, 4], [2, 6]], "c"), "a - c").axes[0]
    assert axes.images[0].get_array().tolist() == [[25.0, -25.0], [0.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["+25", "\u221225", "", ""]
    assert axes.images[0].get_clim() == (-25.0, 25.0)


def test_of_two_hundred_classes_no_label_is_drawn():
    figure = draw_confusion(confusion_rows(np.eye(200, dtype=int).tolist()), "run")
    axes = figure.axes[0]
    assert not axes.texts and "of 200" in axes.get_xlabel()
    assert max(figure.get_size_inches()) <= 8
    rows = pd.DataFrame({"entry_id": "a", "label": range(200), "class_name": "x", "recall": 0.5})
    bars = draw_per_class_bars(rows.assign(recall_low=0.4, recall_high=0.6), "recall")
    assert bars.get_size_inches()[1] <= 9
    assert len(bars.axes[0].get_yticklabels()) < 20


def test_class_bars_are_means_over_seeds_with_their_intervals():
    rows = pd.DataFrame(
        {
            "entry_id": ["a", "a", "b"],
            "label": 0,
            "class_name": "lion",
            "recall": [0.2, 0.6, 0.9],
            "recall_low": [0.1, 0.3, 0.8],
            "recall_high": [0.5, 0.9, 1.0],
        }
    )
    figure = draw_per_class_bars(rows, "recall")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    assert [axes.patches[0].get_width() for axes in panels] == pytest.approx([40, 90])
    interval = panels[0].collections[0].get_segments()[0]
    assert interval[:, 0].tolist() == pytest.approx([20, 70])


def test_reliability_pools_seeds_by_items():
    bins = pd.DataFrame(
        {
            "entry_id": "a",
            "bin": [1, 1, 2, 2],
            "num_items": [30, 10, 0, 5],
            "mean_confidence": [0.1, 0.5, None, 0.8],
            "top1_fraction": [0.0, 1.0, None, 0.6],
        }
    )
    pooled = pool_bins(bins)
    assert pooled["num_items"].tolist() == [40, 5]
    assert pooled["mean_confidence"].tolist() == pytest.approx([0.2, 0.8])
    assert pooled["top1_fraction"].tolist() == pytest.approx([0.25, 0.6])
    line = draw_reliability(bins).axes[0].lines[1]
    assert np.asarray(line.get_xydata()).ravel().tolist() == pytest.approx([20, 25, 80, 60])


def test_overview_has_a_mark_an_entry_and_a_dot_a_seed(tables):
    arms = tables["arms"]
    axes = draw_arms_overview(arms, tables["summary"]).axes[0]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6 and len(line.get_xdata())]
    assert means == pytest.approx((100 * arms["top1_mean"]).tolist())
    dots = [x for line in axes.lines if line.get_markersize() == 2.5 for x in line.get_xdata()]
    assert sorted(dots) == pytest.approx(sorted(100 * tables["summary"]["top1_fraction"]))
    markers = {line.get_marker() for line in axes.lines if line.get_markersize() == 6}
    assert markers == {"o", "s"}  # 2-D and 3-D networks differ in more than colour


def test_comparisons_show_the_difference_and_an_open_dot_where_undecided(tables):
    planned = over_seeds(tables["comparisons"])
    axes = draw_comparisons(planned).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx((100 * planned["difference"]).tolist())
    is_open = [dot.get_markerfacecolor() == "white" for dot in dots]
    assert is_open == (planned["outcome"] == "undecided").tolist()


def test_cost_panels_are_those_whose_cost_is_known(tables):
    arms, summary = tables["arms"], tables["summary"]
    own = own_entry_ids(summary)
    figure = draw_accuracy_against_cost(arms, summary, own)
    assert [axes.get_xlabel()[:7] for axes in figure.axes] == ["nominal", "execute", "latency", "trainin"]
    places = sorted({line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() not in ("None", "")})
    assert places == pytest.approx([7.654, 67.637])
    costs = ["nominal_gmacs", "executed_gmacs", "latency_ms_median", "train_s"]
    assert draw_accuracy_against_cost(arms, summary.assign(**dict.fromkeys(costs, np.nan)), own) is None
    unknown = summary.assign(train_s=np.nan, latency_ms_median=np.nan, executed_gmacs=np.nan)
    drawn = [axes for axes in draw_accuracy_against_cost(arms, unknown, own).axes if axes.get_visible()]
    assert len(drawn) == 1


def test_names_of_files_are_safe_and_differ():
    assert safe_name("confusion_3d_svd_s0") == "confusion_3d_svd_s0"
    names = {safe_name(text) for text in ("a/b", "a:b", "a b", "a-b", "../b", "\u00e4/b", "x" * 300, "x" * 301)}
    assert len(names) == 8
    assert all(len(name) <= 120 and name.isascii() and "/" not in name and ":" not in name for name in names)


def test_own_entries_are_those_of_the_training_input():
    rows = pd.DataFrame(
        [
            ("a/original", "a", "original", "original"),
            ("a/frame", "a", "original", "first_frame:svd"),
            ("2d_mix/original", "2d_mix", "mix:svd", "original"),
            ("2d_tta/tta", "2d_tta", "original", "tta_3:original"),
            ("2d_tta/tta_clip", "2d_tta", "original", "tta_3:clip:svd"),
            ("paper_2d/frame", "paper_2d", "original", "first_frame:svd"),
        ],
        columns=["entry_id", "arm", "train_input", "test_input"],
    ).reindex(columns=["entry_id", *ENTRY_COLUMNS], fill_value="")
    assert own_entry_ids(rows) == ["a/original", "2d_mix/original", "2d_tta/tta", "paper_2d/frame"]


def test_pictures_have_a_resolution(tables, tmp_path):
    write_figures({"confusion_flat": tables["confusion_flat"].head(16)}, tmp_path)
    with Image.open(next(tmp_path.iterdir())) as image:
        assert image.info["dpi"] == pytest.approx((160, 160), abs=0.1)


def per_class(counts: dict[str, list[int]]) -> pd.DataFrame:
    rows = [
        {
            "run_id": run_id,
            "entry_id": f"entry of {run_id}",
            "label": label,
            "class_name": f"class {label}",
            "num_items": n,
        }
        for run_id, of_run in counts.items()
        for label, n in enumerate(of_run)
    ]
    return pd.DataFrame(rows)


def test_class_distribution_has_a_panel_for_each_set_of_items():
    rows = per_class({"a": [30, 2, 9], "b": [30, 2, 9], "c": [1, 1, 0]})
    figure = draw_class_distribution(rows.sample(frac=1, random_state=0).sort_values("run_id", kind="stable"))
    assert [axes.get_title() for axes in figure.axes] == ["entry of a", "entry of c"]
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[30, 2, 9], [1, 1, 0]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["class 0", "class 1", "class 2"]
    assert describe_distribution(rows) == (
        "Class distribution. 41 items of entry of a of 3 classes, from class 1 2 to class 0 30. 2 items of entry of c "
        "of 3 classes, from class 2 0 to class 1 1."
    )
