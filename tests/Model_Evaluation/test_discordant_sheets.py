"""Contact sheets of discordant items: the items of the table's counts, in a stated order, with what each side saw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_results import make_tables

from Model_Evaluation.derived import compute_derived
from Model_Evaluation.discordant_sheets import choose_discordant, sheet_name, write_discordant_sheets
from Model_Evaluation.entries import over_seeds
from Model_Evaluation.paired_answers import SourceAnswers, pair_answers
from Model_Evaluation.picture_sheet import PictureBlock, draw_picture_sheet
from Model_Evaluation.scored_runs import build_entries, read_runs

ACCURACIES = {
    ("2d_original", "original", "original"): 0.6,
    ("2d_first_frame", "first_frame:svd", "first_frame:svd"): 0.65,
    ("3d_svd", "clip:svd", "clip:svd"): 0.7,
    ("3d_svd", "clip:svd", "reversed:svd"): 0.7,
    ("paper_2d", "original", "first_frame:svd"): 0.5,
    ("paper_3d", "clip:svd", "clip:svd"): 1.0,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("study")
    measured = make_tables(folder, ACCURACIES, seeds=3, num_items=60, num_classes=3, noise=0.4)
    return measured | compute_derived(measured)


def picture(run_id: str, item_id: str) -> np.ndarray:
    num_frames = 3 if run_id.endswith("__clip_svd") else 1
    return np.full((num_frames, 8, 8, 3), int(item_id.split("#")[0], 16) % 200, dtype=np.uint8)


def test_sheets_hold_the_items_that_the_comparison_counts(tables, tmp_path):
    planned = over_seeds(tables["comparisons"], ("claim", "paper"))
    entries = {entry.entry_id: entry for entry in build_entries(read_runs(tables))}
    assert len(planned) == 3
    for pair in planned.to_dict("records"):
        answers = pair_answers(entries[pair["entry_a"]], entries[pair["entry_b"]])
        items, sides = answers.first_items, answers.vote()
        chosen = {side: choose_discordant(items, sides, side) for side in ("a", "b")}
        assert len(chosen["a"]) == pair["only_a_right"] and len(chosen["b"]) == pair["only_b_right"]
        assert not set(chosen["a"]) & set(chosen["b"])
    written = write_discordant_sheets(tables, picture, tmp_path)
    expected = {
        f"{sheet_name(pair['comparison_id'], side)}.png"
        for pair in planned.to_dict("records")
        for side in ("a", "b")
        if pair[f"only_{side}_right"]
    }
    assert {path.name for path in tmp_path.iterdir()} == expected == {path.name for path in written}
    assert len(expected) == 5  # paper_3d is right everywhere: there is no item that only paper_2d has right


def test_pictures_are_asked_for_what_each_side_saw_of_the_items_that_differ_most(tables, tmp_path):
    asked: list[tuple[str, str]] = []

    def read(run_id: str, item_id: str) -> np.ndarray:
        asked.append((run_id, item_id))
        return picture(run_id, item_id)

    pair = over_seeds(tables["comparisons"], ("paper",)).iloc[0]
    only_paper = tables | {"comparisons": pair.to_frame().T}
    (sheet,) = write_discordant_sheets(only_paper, read, tmp_path, max_items=2)
    assert pair["entry_a"] == "paper_3d/clip:svd/t3"
    means = tables["predictions"].groupby(["arm", "item_id"])["prob_true"].mean()
    gaps = (means["paper_3d"] - means["paper_2d"]).sort_values(ascending=False)
    entries = {entry.entry_id: entry for entry in build_entries(read_runs(tables))}
    answers = pair_answers(entries[pair["entry_a"]], entries[pair["entry_b"]])
    wrong = set(answers.first_items[~answers.vote()["b"].is_right])
    best = [item for item in gaps.index if item in wrong][:2]
    assert asked == [(entries[pair[name]].runs[0].run_id, item) for item in best for name in ("entry_a", "entry_b")]
    with Image.open(sheet) as image:
        count = pair["only_a_right"]
        expected = f"2 of {count} source images: {pair['entry_a']} right, {pair['entry_b']} wrong."
        assert image.text["Description"] == expected
        pixels = np.asarray(image)
    for item in best:
        grey = int(item, 16) % 200
        assert (pixels == grey).all(axis=-1).sum() >= 4 * 112 * 112  # three frames of the clip and one image


def test_equal_tables_give_equal_bytes_and_other_answers_remove_a_sheet(tables, tmp_path):
    first = {path.name: path.read_bytes() for path in write_discordant_sheets(tables, picture, tmp_path)}
    again = {path.name: path.read_bytes() for path in write_discordant_sheets(tables, picture, tmp_path)}
    assert first == again
    pair = over_seeds(tables["comparisons"], ("paper",)).iloc[0]
    for name in (sheet_name(pair["comparison_id"], "b"), sheet_name("of an arm that is gone", "a"), "curves_a"):
        (tmp_path / f"{name}.png").write_bytes(b"of an earlier run")
    write_discordant_sheets(tables, picture, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*first, "curves_a.png"}


def test_clips_of_one_source_are_one_picture(tmp_path):
    """Two lengths of clips, two clips a source: as many as the table counts, each of the lowest seed's own run."""
    clips, options = {("3d_svd", "clip:svd", "clip:svd"): 0.7}, {"seeds": (2, 1), "num_items": 40, "num_classes": 2}
    still = {("2d_original", "original", "original"): 0.5}
    three = make_tables(tmp_path / "three", clips | still, **options, noise=0.6)
    five = make_tables(tmp_path / "five", clips, **options, noise=0.6, num_frames=5)
    measured = {name: pd.concat([three[name], five[name]], ignore_index=True) for name in three}
    for name in ("predictions", "probabilities"):
        numbers = measured[name]["item_id"].map(lambda item_id: int(item_id, 16))
        measured[name]["item_id"] = [f"{number % 20:064x}" + "#2" * (number >= 20) for number in numbers]
    tables = measured | compute_derived(measured)
    pairs = over_seeds(tables["comparisons"], ("claim",)).to_dict("records")
    asked: list[tuple[str, str]] = []

    def read(run_id: str, item_id: str) -> np.ndarray:
        asked.append((run_id, item_id))
        return picture(run_id, item_id)

    write_discordant_sheets(tables, read, tmp_path / "figures", max_items=100)
    assert len(pairs) == 2
    for pair in pairs:
        run_id = f"3d_svd_t{pair['num_frames_a']}_s1__clip_svd"
        assert [name for name, _ in asked].count(run_id) == pair["only_a_right"] + pair["only_b_right"] > 0
    runs = {"3d_svd_t3_s1__clip_svd", "3d_svd_t5_s1__clip_svd", "2d_original_t3_s1__original"}
    assert {run_id for run_id, _ in asked} == runs
    assert not [item_id for _, item_id in asked if "#" in item_id]


def test_ties_of_the_difference_are_ordered_by_id():
    items = np.array(["d", "b", "c", "a"], dtype=object)
    labels = np.zeros(4, dtype=int)
    ones, half = np.ones(4, dtype=int), np.full(4, 0.5)
    right = SourceAnswers(labels, labels, ones, ones, half, np.array([0.9, 0.6, 0.6, 0.8]))
    wrong = SourceAnswers(labels, np.array([1, 1, 1, 0]), ones, ones, half, np.array([0.1, 0.2, 0.2, 0.1]))
    assert items[choose_discordant(items, {"a": right, "b": wrong}, "a")].tolist() == ["d", "b", "c"]
    assert choose_discordant(items, {"a": right, "b": wrong}, "b").tolist() == []


def test_without_comparisons_there_is_no_sheet(tables, tmp_path):
    measured = {name: frame for name, frame in tables.items() if name != "comparisons"}
    assert write_discordant_sheets(measured, picture, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_a_sheet_is_as_wide_as_its_longest_row_and_cuts_long_lines():
    frames = np.zeros((5, 4, 8, 3), dtype=np.uint8)
    sheet = draw_picture_sheet([PictureBlock(["x" * 500], [(["y" * 500], frames)])])
    assert sheet.width == 5 * 116 - 4 + 24
    right_margin = np.asarray(sheet)[:, -12:]
    assert (right_margin == 255).all()
