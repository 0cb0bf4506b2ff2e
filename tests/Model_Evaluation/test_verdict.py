"""The verdict on synthetic predictions: yes, each kind of no, undecided, not measured; and the numbers it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_results import Case, make_tables

import Model_Evaluation.statistics
from Model_Evaluation.comparisons import compare_entries
from Model_Evaluation.scored_runs import build_entries, read_runs
from Model_Evaluation.verdict import build_verdict

SVD = ("3d_svd", "clip:svd", "clip:svd")
SHUFFLED = ("3d_svd", "clip:svd", "shuffled:svd")
ORIGINAL = ("2d_original", "original", "original")
FIRST_FRAME = ("2d_first_frame", "first_frame:svd", "first_frame:svd")
ALL_FRAMES = ("2d_all_frames", "all_frames:svd", "all_frames:svd")
MIX = ("2d_mix", "mix:svd", "original")
TTA = ("2d_tta", "original", "tta_3:original")
STATIC = ("3d_static", "clip:static", "clip:static")
CAMERA = ("3d_camera", "clip:camera_motion", "clip:camera_motion")
FLAT = ("3d_svd_flat", "clip:svd_flat", "clip:svd_flat")
ALL = (ORIGINAL, FIRST_FRAME, ALL_FRAMES, MIX, TTA, STATIC, CAMERA, FLAT)
HEADLINE = "Does motion help?"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(Model_Evaluation.statistics, "NUM_RESAMPLES", 499)


def verdict(folder: Path, accuracies: dict[Case, float], **options) -> dict[str, dict]:
    """Rows by question."""
    options = {"num_items": 120, "seeds": 2} | options
    rows = build_verdict(compare_entries(build_entries(read_runs(make_tables(folder, accuracies, **options)))))
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["question"].startswith(HEADLINE)
    return {row["question"]: row for row in rows}


def controls(accuracy: float = 0.5, **others: float) -> dict[Case, float]:
    return {case: others.get(case[0].removeprefix("2d_").removeprefix("3d_"), accuracy) for case in ALL}


def test_yes_needs_every_control_beaten_and_the_order_used(tmp_path):
    rows = verdict(tmp_path, {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5, svd_flat=0.6)})
    assert rows[HEADLINE]["answer"] == "yes"
    assert rows[HEADLINE]["sentence"].startswith(
        "Yes: 3d_svd beats all 8 controls and its shuffled clips; the smallest lead: 3d_svd 80.0 % against 3d_svd_flat "
        "60.0 %: +20.0 points (95 % interval +"
    )
    assert rows[HEADLINE]["comparison_id"] == "3d_svd/clip:svd vs 3d_svd_flat/clip:svd_flat"
    no = ("Is it the domain?", "Is it just more looks?", "Is it the bigger network?", "Is any motion enough?")
    assert {question: rows[question]["answer"] for question in no} == dict.fromkeys(no, "no")
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "yes"
    assert rows["Does the guidance ramp help?"]["answer"] == "yes"


@pytest.mark.parametrize(
    ("case", "name", "question"),
    [
        (FIRST_FRAME, "the domain", "Is it the domain?"),
        (ALL_FRAMES, "the domain", "Is it the domain?"),
        (ALL_FRAMES, "extra looks", "Is it just more looks?"),
        (TTA, "extra looks", "Is it just more looks?"),
        (STATIC, "capacity", "Is it the bigger network?"),
        (CAMERA, "any motion", "Is any motion enough?"),
    ],
)
def test_no_names_what_reaches_the_lead_without_motion(tmp_path, case, name, question):
    rows = verdict(tmp_path, {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5), case: 0.8})
    headline = rows[HEADLINE]
    assert headline["answer"] == "no"
    assert f"{name} explains the difference: {case[0]} does as well or better (3d_svd 80.0 % " in headline["sentence"]
    assert "items would show" in headline["sentence"], "what a test of this size could have found"
    assert rows[question]["answer"] == "yes"
    assert f"{case[0]} 80.0 % against 2d_original 50.0 %: +30.0 points" in rows[question]["sentence"]


def test_no_where_a_control_beats_it(tmp_path):
    row = verdict(tmp_path, {SVD: 0.5, SHUFFLED: 0.3, **controls(0.45, first_frame=0.8)})[HEADLINE]
    assert row["answer"] == "no"
    assert row["sentence"].startswith(
        "No: 2d_first_frame beats 3d_svd (3d_svd 50.0 % against 2d_first_frame 80.0 %: -30"
    )
    assert "the domain explains the difference: 2d_first_frame does as well or better" in row["sentence"]
    assert row["comparison_id"] == "3d_svd/clip:svd vs 2d_first_frame/first_frame:svd"


def test_no_where_the_order_is_not_used(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.8, **controls(0.5)}
    rows = verdict(tmp_path, accuracies, same_answers={SHUFFLED: SVD})
    assert rows[HEADLINE]["answer"] == "no"
    assert rows[HEADLINE]["sentence"] == "No: shuffling the frames makes none of 120 items right or wrong."
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "no"


def test_undecided_says_what_could_have_been_found(tmp_path):
    row = verdict(tmp_path, {SVD: 0.55, SHUFFLED: 0.53, **controls(0.53)}, noise=0.2)[HEADLINE]
    assert row["answer"] == "undecided"
    assert "120 items would show" in row["sentence"]
    assert "(power 80 %)" in row["sentence"]


def test_undecided_where_most_but_not_all_of_the_lead_is_explained(tmp_path):
    row = verdict(tmp_path, {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5, first_frame=0.79)})[HEADLINE]
    assert row["answer"] == "undecided"
    assert "2d_first_frame has +29.2 of the +30.0 points over 2d_original" in row["sentence"]


def test_without_a_lead_over_the_baseline_there_is_nothing_to_explain(tmp_path):
    rows = verdict(tmp_path, {SVD: 0.6, SHUFFLED: 0.4, **controls(0.6)})
    assert rows[HEADLINE]["answer"] == "undecided"
    assert "explains" not in rows[HEADLINE]["sentence"]
    assert rows["Is it the domain?"]["answer"] == "undecided"


def test_a_missing_control_cannot_be_yes(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5)}
    del accuracies[CAMERA], accuracies[MIX]
    rows = verdict(tmp_path, accuracies)
    assert (rows[HEADLINE]["answer"], rows[HEADLINE]["sentence"]) == (
        "undecided",
        "Undecided: not measured: 2d_mix, 3d_camera.",
    )
    assert rows["Is any motion enough?"]["answer"] == "not measured"
    assert rows["Is any motion enough?"]["sentence"] == "Not measured: needs 3d_svd and 3d_camera."
    assert rows["Does SVD help as augmentation?"]["answer"] == "not measured"


def test_an_unmatched_control_cannot_be_yes(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5)}
    row = verdict(tmp_path, accuracies, protocol_values={"3d_static": {"lr": "0.1"}})[HEADLINE]
    assert row["answer"] == "undecided"
    assert "not a matched pair: lr: 0.001 / 0.1" in row["sentence"]


@pytest.mark.parametrize("missing", [SVD, SHUFFLED])
def test_without_the_claim_or_its_shuffled_clips_nothing_is_said(tmp_path, missing):
    accuracies = {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5)}
    del accuracies[missing]
    if missing == SVD:
        del accuracies[SHUFFLED]
    rows = verdict(tmp_path, accuracies)
    assert rows[HEADLINE]["answer"] == "not measured"
    assert rows[HEADLINE]["comparison_id"] == ""
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "not measured"
    assert rows["Does SVD help as augmentation?"]["answer"] == "undecided", "the other arms are compared all the same"


def test_a_single_model_has_no_answers(tmp_path):
    assert {row["answer"] for row in verdict(tmp_path, {ORIGINAL: 0.5}).values()} == {"not measured"}


def test_the_published_comparison_and_the_domain_shift(tmp_path):
    stretched, first = (("2d_original", "original", name) for name in ("original_paper_geometry", "first_frame:svd"))
    paper = {("paper_2d", "original", "first_frame:svd"): 0.54, ("paper_3d", "clip:svd", "clip:svd"): 0.76}
    rows = verdict(tmp_path, {ORIGINAL: 0.8, stretched: 0.6, first: 0.59, **paper})
    published = rows["Does the published comparison hold?"]
    assert published["answer"] == "yes"
    assert "paper_3d 75.8 % against paper_2d 54.2 %: +21.7 points" in published["sentence"]
    assert rows["Does the paper's geometry cost the 2-D network accuracy?"]["answer"] == "yes"
    assert rows["Do generated first frames cost the 2-D network accuracy?"]["answer"] == "yes"
    generation = rows["Does generation cost more than its geometry?"]
    assert generation["answer"] == "undecided"
    assert (
        "2d_original on original_paper_geometry 60.0 % against 2d_original on first_frame:svd" in generation["sentence"]
    )


def test_each_length_of_clips_is_answered_by_itself(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.5, **controls(0.5)}
    three = make_tables(tmp_path / "t3", accuracies, seeds=2, num_items=100)
    five = {SVD: 0.81, SHUFFLED: 0.81, STATIC: 0.5}
    longer = make_tables(tmp_path / "t5", five, seeds=2, num_items=100, num_frames=5, same_answers={SHUFFLED: SVD})
    entries = build_entries(read_runs(three) + read_runs(longer))
    rows = {row["question"]: row for row in build_verdict(compare_entries(entries))}
    assert rows["Does motion help? (3 frames)"]["answer"] == "yes"
    assert rows["Does motion help? (5 frames)"]["answer"] == "no"
    assert rows["Do 5 frames beat 3?"]["answer"] == "undecided"
    assert len([question for question in rows if question.startswith("Does the published")]) == 1
