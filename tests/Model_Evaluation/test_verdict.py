"""The verdict on synthetic predictions: yes, each kind of no, undecided, not measured; and the numbers it names."""

from __future__ import annotations

from dataclasses import replace
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
DOMAIN = "Does the domain explain all of it?"
LOOKS = "Do more looks explain all of it?"
NETWORK = "Does the bigger network explain all of it?"
MOTION = "Does any motion explain all of it?"
EXPLAINING = (DOMAIN, LOOKS, NETWORK, MOTION)


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
    assert rows[HEADLINE]["comparison_id"] == "3d_svd/clip:svd/t3 vs 3d_svd_flat/clip:svd_flat/t3"
    assert {question: rows[question]["answer"] for question in EXPLAINING} == dict.fromkeys(EXPLAINING, "no")
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "yes"
    assert rows["Does the guidance ramp help?"]["answer"] == "yes"


@pytest.mark.parametrize(
    ("case", "question"),
    [
        (FIRST_FRAME, DOMAIN),
        (ALL_FRAMES, DOMAIN),
        (ALL_FRAMES, LOOKS),
        (TTA, LOOKS),
        (STATIC, NETWORK),
        (CAMERA, MOTION),
    ],
)
def test_a_control_with_the_whole_lead_leaves_it_undecided(tmp_path, case, question):
    rows = verdict(tmp_path, {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5), case: 0.8})
    share = f"{case[0]} has +30.0 of the +30.0 points over 2d_original"
    assert "120 sources w" in rows[HEADLINE]["sentence"], "would show so much, or with so few discordant ones nothing"
    for row in (rows[HEADLINE], rows[question]):
        assert row["answer"] == "undecided", "that no difference was found does not show that there is none"
        assert share in row["sentence"]
    assert f"{case[0]} 80.0 % against 2d_original 50.0 %: +30.0 points" in rows[question]["sentence"]


@pytest.mark.parametrize("has_shuffled", [True, False])
def test_no_where_a_control_beats_it(tmp_path, has_shuffled):
    accuracies = {SVD: 0.5, **({SHUFFLED: 0.3} if has_shuffled else {}), **controls(0.45, first_frame=0.8)}
    rows = verdict(tmp_path, accuracies)
    row = rows[HEADLINE]
    assert row["answer"] == "no"
    assert row["sentence"].startswith(
        "No: 2d_first_frame beats 3d_svd (3d_svd 50.0 % against 2d_first_frame 80.0 %: -30"
    )
    assert row["comparison_id"] == "3d_svd/clip:svd/t3 vs 2d_first_frame/first_frame:svd/t3"
    assert rows[DOMAIN]["answer"] == "yes"


def test_no_where_the_order_is_not_used(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.8, **controls(0.5)}
    rows = verdict(tmp_path, accuracies, same_answers={SHUFFLED: SVD})
    assert rows[HEADLINE]["answer"] == "no"
    assert rows[HEADLINE]["sentence"] == "No: shuffling the frames makes none of 120 items right or wrong."
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "no"


def test_seeds_that_cancel_out_are_not_blind_to_order(tmp_path):
    """One seed loses an item when shuffled and another gains it; the others carry both votes."""
    measured = make_tables(
        tmp_path, {SVD: 1.0, SHUFFLED: 1.0, **controls(0.5)}, seeds=4, num_items=60, same_answers={SHUFFLED: SVD}
    )
    entries = build_entries(read_runs(measured))
    position = next(number for number, entry in enumerate(entries) if "shuffled" in entry.entry_id)
    plain = next(number for number, entry in enumerate(entries) if entry.entry_id.startswith("3d_svd/clip"))
    for at, seed in ((position, 0), (plain, 1)):
        run = entries[at].runs[seed]
        wrong = run.predicted.copy()
        wrong[0] = (wrong[0] + 1) % 4
        entries[at] = replace(entries[at], runs=entries[at].runs | {seed: replace(run, predicted=wrong)})
    comparisons = compare_entries(entries)
    whole = next(row for row in comparisons if row["entry_b"] == entries[position].entry_id)
    assert (whole["difference_low"], whole["difference_high"], whole["only_a_right"], whole["only_b_right"]) == (0,) * 4
    rows = {row["question"]: row for row in build_verdict(comparisons)}
    assert rows[HEADLINE]["answer"] == "undecided"
    assert rows["Do shuffled frames cost accuracy?"]["answer"] == "undecided"


def test_undecided_says_what_could_have_been_found(tmp_path):
    row = verdict(tmp_path, {SVD: 0.55, SHUFFLED: 0.53, **controls(0.53)}, noise=0.2)[HEADLINE]
    assert row["answer"] == "undecided"
    assert "120 sources would show" in row["sentence"]
    assert "(power 80 %)" in row["sentence"]


def test_undecided_where_most_but_not_all_of_the_lead_is_explained(tmp_path):
    row = verdict(tmp_path, {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5, first_frame=0.79)})[HEADLINE]
    assert row["answer"] == "undecided"
    assert "2d_first_frame has +29.2 of the +30.0 points over 2d_original" in row["sentence"]


def test_without_a_lead_over_the_baseline_there_is_nothing_to_explain(tmp_path):
    rows = verdict(tmp_path, {SVD: 0.6, SHUFFLED: 0.4, **controls(0.6)})
    assert rows[HEADLINE]["answer"] == "undecided"
    assert "explains" not in rows[HEADLINE]["sentence"]
    assert rows[DOMAIN]["answer"] == "undecided"


def test_a_missing_control_cannot_be_yes(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.6, **controls(0.5)}
    del accuracies[CAMERA], accuracies[MIX]
    rows = verdict(tmp_path, accuracies)
    assert (rows[HEADLINE]["answer"], rows[HEADLINE]["sentence"]) == (
        "undecided",
        "Undecided: not measured: 2d_mix, 3d_camera.",
    )
    assert rows[MOTION]["answer"] == "not measured"
    assert rows[MOTION]["sentence"] == "Not measured: needs 3d_svd and 3d_camera."
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
    generation = rows["Do generated first frames cost more than the paper's geometry?"]
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


def test_each_length_has_its_own_controls(tmp_path):
    """The 2-D controls of three frames do as well as all of it, those of five frames do not."""
    runs = []
    for num_frames, accuracy in ((3, 0.9), (5, 0.5)):
        others = {FIRST_FRAME: accuracy, ALL_FRAMES: accuracy, MIX: accuracy}
        cases = {SVD: 0.8, SHUFFLED: 0.5, **controls(0.5), **others}
        if num_frames == 5:
            cases.pop(ORIGINAL), cases.pop(TTA)  # of still images: there are those of the three
        folder = tmp_path / str(num_frames)
        runs += read_runs(make_tables(folder, cases, seeds=2, num_items=100, num_frames=num_frames))
    runs = [run for run in runs if run.columns["arm"] != "2d_tta" or run.columns["num_frames"] == 1]
    rows = {row["question"]: row for row in build_verdict(compare_entries(build_entries(runs)))}
    assert rows["Does motion help? (3 frames)"]["answer"] == "no"
    assert rows["Does motion help? (5 frames)"]["answer"] == "yes"
    assert "2d_first_frame" in rows["Does motion help? (3 frames)"]["sentence"]
    assert rows[f"{DOMAIN} (3 frames)"]["comparison_id"].endswith("/t3")
    assert rows[f"{DOMAIN} (5 frames)"]["comparison_id"].endswith("/t5")
    augmented = [question for question in rows if question.startswith("Does SVD help as augmentation?")]
    assert augmented == [
        f"Does SVD help as augmentation? (2d_mix/original/t{length} vs 2d_original/original)" for length in (3, 5)
    ]


def test_two_networks_of_the_claim_are_answered_by_themselves(tmp_path):
    accuracies = {SVD: 0.8, SHUFFLED: 0.5, **controls(0.5)}
    known = read_runs(make_tables(tmp_path / "a", accuracies, seeds=2, num_items=100))
    random = {"columns": {"3d_svd": {"start_weights": "random"}}}
    worse = {SVD: 0.3, SHUFFLED: 0.3}
    other = make_tables(tmp_path / "b", worse, seeds=2, num_items=100, same_answers={SHUFFLED: SVD}, **random)
    rows = {row["question"]: row for row in build_verdict(compare_entries(build_entries(known + read_runs(other))))}
    assert rows["Does motion help? (3d_svd/clip:svd/t3/imagenet)"]["answer"] == "yes"
    row = rows["Does motion help? (3d_svd/clip:svd/t3/random)"]
    assert row["answer"] == "no"
    assert row["sentence"] == "No: shuffling the frames makes none of 100 items right or wrong."
    for (question, row), network in zip(rows.items(), ["imagenet"] * 7 + ["random"] * 7, strict=False):
        assert f"3d_svd/clip:svd/t3/{network}" in question
        assert f"/t3/{network} vs " in row["comparison_id"]
