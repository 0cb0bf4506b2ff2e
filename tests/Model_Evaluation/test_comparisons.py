"""Which entries are compared, what a comparison finds, and what makes it no comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_tables

import Model_Evaluation.statistics
from Model_Evaluation.comparisons import compare_entries, summarise_entries
from Model_Evaluation.consistency import require_consistency
from Model_Evaluation.paired_answers import pair_answers
from Model_Evaluation.pairs import select_pairs
from Model_Evaluation.scored_runs import build_entries, read_runs, source_of
from Model_Evaluation.statistics import compute_detectable_difference

ORIGINAL = ("2d_original", "original", "original")
STRETCHED = ("2d_original", "original", "original_paper_geometry")
FIRST = ("2d_original", "original", "first_frame:svd")
MIX = ("2d_mix", "mix:svd", "original")
TTA = ("2d_tta", "original", "tta_3:original")
STATIC = ("3d_static", "clip:static", "clip:static")
SVD = ("3d_svd", "clip:svd", "clip:svd")
SHUFFLED = ("3d_svd", "clip:svd", "shuffled:svd")
REVERSED = ("3d_svd", "clip:svd", "reversed:svd")
PAPER_2D = ("paper_2d", "original", "first_frame:svd")
PAPER_3D = ("paper_3d", "clip:svd", "clip:svd")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(Model_Evaluation.statistics, "NUM_RESAMPLES", 499)


def entries_of(folder: Path, *args, **options):
    return build_entries(read_runs(make_tables(folder, *args, **options)))


def whole(rows: list[dict]) -> dict[str, dict]:
    return {row["comparison_id"]: row for row in rows if row["seed"] is None}


def compare(folder: Path, *args, **options) -> list[dict]:
    return compare_entries(entries_of(folder, *args, **options))


def test_pairs_of_all_families(tmp_path):
    cases = [ORIGINAL, STRETCHED, FIRST, MIX, TTA, STATIC, SVD, SHUFFLED, REVERSED, PAPER_2D, PAPER_3D]
    pairs = select_pairs(entries_of(tmp_path, dict.fromkeys(cases, 0.5), seeds=1, num_items=20))
    found = {family: [] for family in ("claim", "inputs", "paper", "arms")}
    for pair in pairs:
        found[pair.family].append(pair.comparison_id)
    assert found["claim"] == [
        "3d_svd/clip:svd/t3 vs 2d_original/original",
        "3d_svd/clip:svd/t3 vs 2d_mix/original/t3",
        "3d_svd/clip:svd/t3 vs 2d_tta/tta_3:original",
        "3d_svd/clip:svd/t3 vs 3d_static/clip:static/t3",
        "3d_svd/clip:svd/t3 vs 3d_svd/shuffled:svd/t3",
    ]
    assert found["inputs"] == [
        "2d_original/original vs 2d_original/original_paper_geometry",
        "2d_original/original vs 2d_original/first_frame:svd/t3",
        "2d_original/original_paper_geometry vs 2d_original/first_frame:svd/t3",
        "3d_svd/clip:svd/t3 vs 3d_svd/reversed:svd/t3",
    ]
    assert found["paper"] == ["paper_3d/clip:svd/t3 vs paper_2d/first_frame:svd/t3"]
    assert found["arms"] == [
        "2d_mix/original/t3 vs 2d_original/original",
        "2d_tta/tta_3:original vs 2d_original/original",
        "3d_static/clip:static/t3 vs 2d_original/original",
        "2d_tta/tta_3:original vs 2d_mix/original/t3",
        "3d_static/clip:static/t3 vs 2d_mix/original/t3",
        "3d_static/clip:static/t3 vs 2d_tta/tta_3:original",
    ]


def test_clips_of_other_lengths_are_compared_within_an_arm_only(tmp_path):
    longer = make_tables(tmp_path / "t5", dict.fromkeys([STATIC, SVD], 0.5), seeds=1, num_items=20, num_frames=5)
    shorter = make_tables(tmp_path / "t3", dict.fromkeys([ORIGINAL, STATIC, SVD], 0.5), seeds=1, num_items=20)
    entries = build_entries(read_runs(shorter) + read_runs(longer))
    assert [entry.entry_id for entry in entries] == [
        "2d_original/original",
        "3d_static/clip:static/t3",
        "3d_svd/clip:svd/t3",
        "3d_static/clip:static/t5",
        "3d_svd/clip:svd/t5",
    ]
    ids = [pair.comparison_id for pair in select_pairs(entries)]
    assert "3d_svd/clip:svd/t5 vs 3d_static/clip:static/t5" in ids
    assert "3d_svd/clip:svd/t5 vs 3d_svd/clip:svd/t3" in ids
    assert not [name for name in ids if "3d_svd/clip:svd/t5" in name and "3d_static/clip:static/t3" in name]


def test_numbers_of_a_comparison_are_those_of_the_answers(tmp_path):
    accuracies = {SVD: 0.7, ORIGINAL: 0.5}
    entries = entries_of(tmp_path, accuracies, seeds=3, num_items=100)
    rows = compare_entries(entries)
    assert [row["seed"] for row in rows] == [None, 0, 1, 2]
    b, a = sorted(entries, key=lambda entry: entry.entry_id)
    for row in rows[1:]:
        right_a, right_b = (entry.runs[row["seed"]].is_right for entry in (a, b))
        assert row["both_right"] == (right_a & right_b).sum()
        assert row["only_a_right"] == (right_a & ~right_b).sum()
        assert row["only_b_right"] == (right_b & ~right_a).sum()
        assert row["odds_ratio"] == (row["only_a_right"] / row["only_b_right"] if row["only_b_right"] else None)
        assert row["mcnemar_p_holm"] is None
        assert row["num_seeds"] == 1
    overall = rows[0]
    assert (overall["top1_a"], overall["top1_b"]) == pytest.approx((0.7, 0.5))
    assert overall["difference"] == pytest.approx(0.2)
    assert overall["difference_low"] < 0.2 < overall["difference_high"]
    votes = [sum(entry.runs[seed].predicted == entry.runs[seed].labels for seed in range(3)) >= 2 for entry in (a, b)]
    # A true label with two of three votes has the majority; one vote can win a tie, so this is a lower bound.
    assert overall["both_right"] + overall["only_a_right"] >= votes[0].sum()
    assert overall["both_right"] + overall["only_b_right"] >= votes[1].sum()
    assert (overall["num_items"], overall["num_sources"], overall["num_seeds"]) == (100, 100, 3)
    assert overall["outcome"] == "a"


def test_the_order_of_items_and_extra_items_do_not_matter(tmp_path):
    measured = make_tables(tmp_path, {SVD: 0.7, ORIGINAL: 0.5}, seeds=2, num_items=60)
    expected = compare_entries(build_entries(read_runs(measured)))
    rows = measured["predictions"]
    is_svd = rows["arm"] == "3d_svd"
    drop = is_svd & rows["item_id"].isin(rows["item_id"].unique()[:10])
    turned = measured | {"predictions": rows[~drop].iloc[::-1]}
    found = compare_entries(build_entries(read_runs(turned)))[0]
    assert (expected[0]["num_items"], found["num_items"]) == (60, 50)
    kept = rows[rows["item_id"].isin(rows["item_id"].unique()[10:])]
    also = compare_entries(build_entries(read_runs(measured | {"predictions": kept})))[0]
    assert {k: found[k] for k in ("top1_a", "top1_b", "both_right", "only_a_right", "mcnemar_p")} == {
        k: also[k] for k in ("top1_a", "top1_b", "both_right", "only_a_right", "mcnemar_p")
    }


def test_a_second_clip_of_a_source_is_resampled_with_it(tmp_path):
    assert [source_of(item) for item in ("ab", "ab#2", "a#b.mp4", "x#12")] == ["ab", "ab", "a#b.mp4", "x"]
    row = compare(tmp_path, {SVD: 0.7, ORIGINAL: 0.5}, seeds=1, num_items=90, clips_per_source=3)[0]
    assert (row["num_items"], row["num_sources"]) == (90, 30)


def test_an_order_blind_network_loses_exactly_nothing(tmp_path):
    rows = compare(tmp_path, {SVD: 0.6, SHUFFLED: 0.6}, num_items=50, same_answers={SHUFFLED: SVD})
    for row in rows:
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
        assert (row["mcnemar_p"], row["only_a_right"], row["only_b_right"]) == (1, 0, 0)
    assert [row["outcome"] for row in rows] == ["undecided", "", "", ""]


def test_holm_runs_over_the_family_of_whole_rows(tmp_path):
    rows = compare(tmp_path, {SVD: 0.7, ORIGINAL: 0.6, STATIC: 0.62, MIX: 0.64}, num_items=100)
    claims = [row for row in rows if row["family"] == "claim" and row["seed"] is None]
    by_p = sorted(claims, key=lambda row: row["mcnemar_p"])
    expected = np.maximum.accumulate([min(1, row["mcnemar_p"] * (3 - rank)) for rank, row in enumerate(by_p)])
    assert [row["mcnemar_p_holm"] for row in by_p] == pytest.approx(expected.tolist())
    assert {row["mcnemar_p_holm"] is None for row in rows if row["seed"] is not None} == {True}


def test_both_the_interval_and_the_test_must_agree(tmp_path):
    rows = compare(tmp_path, {SVD: 0.525, ORIGINAL: 0.5}, num_items=200, noise=0.0)
    overall = rows[0]
    assert overall["difference_low"] > 0
    assert overall["mcnemar_p_holm"] == 2 / 2**5, "five items to none"
    assert overall["outcome"] == "undecided"


def test_the_test_is_the_familys(tmp_path):
    # Seven items to none: p = 2 / 2**7, and four times that in a family of four.
    alone = compare(tmp_path / "one", {SVD: 0.535, ORIGINAL: 0.5}, noise=0.0, seeds=1)
    family = compare(tmp_path / "four", {SVD: 0.535, **dict.fromkeys((ORIGINAL, MIX, TTA, STATIC), 0.5)}, noise=0.0)
    claims = [row for row in family if row["family"] == "claim"]
    assert [(row["seed"], row["outcome"]) for row in alone] == [(None, "a"), (0, "")]
    assert {row["mcnemar_p_holm"] for row in claims if row["seed"] is None} == {8 / 2**7}
    assert {row["outcome"] for row in claims if row["seed"] is None} == {"undecided"}
    assert {row["outcome"] for row in claims if row["seed"] is not None} == {""}, "one seed decides nothing"


def test_what_could_have_been_found_is_the_familys(tmp_path):
    rows = compare(tmp_path, {SVD: 0.6, **dict.fromkeys((ORIGINAL, MIX, TTA, STATIC), 0.5)}, noise=0.3, seeds=2)
    sizes = {"claim": 4, "arms": 6}
    for row in rows:
        size = sizes[row["family"]] if row["seed"] is None else 1
        share = (row["only_a_right"] + row["only_b_right"]) / 200
        expected = compute_detectable_difference(200, share, 0.05 / size)
        assert expected > 0
        assert row["minimal_detectable_difference"] == pytest.approx(expected)


def test_the_papers_networks_are_compared_on_clips_of_one_length(tmp_path):
    runs = []
    for num_frames in (3, 5):
        measured = make_tables(tmp_path / str(num_frames), {PAPER_2D: 0.5, PAPER_3D: 0.5}, 1, 20, num_frames=num_frames)
        runs += read_runs(measured)
    pairs = [pair.comparison_id for pair in select_pairs(build_entries(runs)) if pair.family == "paper"]
    assert pairs == [f"paper_3d/clip:svd/t{length} vs paper_2d/first_frame:svd/t{length}" for length in (3, 5)]


def test_a_better_control_is_outcome_b(tmp_path):
    assert compare(tmp_path, {SVD: 0.5, ORIGINAL: 0.8})[0]["outcome"] == "b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"protocol_values": {"3d_svd": {"lr": "0.01"}}}, "lr: 0.01 / 0.001"),
        ({"protocol_values": {"2d_original": {"augmentation.horizontal_flip": "false"}}}, "flip: true / false"),
        ({"protocol_values": {"3d_svd": {"": ""}}}, "protocol unknown"),
        ({"columns": {"2d_original": {"selection_split": "val"}}}, "selection_split: hold_out / val"),
        ({"columns": {"2d_original": {"start_weights": "random"}}}, "start_weights: imagenet / random"),
        ({"columns": {"3d_svd": {"protocol": "custom"}}}, "protocol: custom / matched"),
        ({"columns": {"2d_original": {"train_input": "clip:x"}}}, "2d_original trained on clip:x, scored on original"),
    ],
)
def test_what_a_pair_differs_in_is_named_and_decides_nothing(tmp_path, changes, expected):
    rows = compare(tmp_path, {SVD: 0.9, ORIGINAL: 0.3}, num_items=60, **changes)
    assert all(row["differs_in"].endswith(expected) for row in rows)
    assert {row["outcome"] for row in rows if row["seed"] is None} == {"undecided"}
    assert rows[0]["mcnemar_p_holm"] < 1e-6, "it would have been decided"


def test_one_seeds_edited_value_is_named(tmp_path):
    measured = make_tables(tmp_path, {SVD: 0.9, STATIC: 0.3}, num_items=40)
    values = measured["protocol_values"]
    at = values.index[(values["run_id"] == "3d_svd_t3_s1__clip_svd") & (values["key"] == "lr")]
    values.loc[at, "value"] = "0.002"
    rows = compare_entries(build_entries(read_runs(measured)))
    assert {row["differs_in"] for row in rows} == {"lr: 0.002 / 0.001"}


def test_what_an_arm_is_about_is_no_difference(tmp_path):
    changed = {"2d_mix": {"mix_probability": "0.5", "train_input": "mix", "data.num_frames": "3"}}
    rows = compare(tmp_path, {SVD: 0.9, MIX: 0.3, ORIGINAL: 0.2}, num_items=60, protocol_values=changed)
    assert {row["differs_in"] for row in rows} == {""}, "and keys that only the 3-D network has are none"
    assert {row["outcome"] for row in rows if row["family"] == "claim" and row["seed"] is None} == {"a"}


def test_a_key_that_one_of_two_equal_networks_lacks_is_a_difference(tmp_path):
    rows = compare(tmp_path, {SVD: 0.9, STATIC: 0.3}, num_items=40, protocol_values={"3d_static": {"init": ""}})
    assert rows[0]["differs_in"] == "init: center / -"


def test_the_published_pair_is_listed_with_its_differences_and_decided(tmp_path):
    changed = {"paper_2d": {"batch_size": "32"}, "paper_3d": {"batch_size": "8"}}
    row = compare(tmp_path, {PAPER_2D: 0.5, PAPER_3D: 0.8}, protocol_values=changed)[0]
    assert (row["family"], row["differs_in"], row["outcome"]) == ("paper", "batch_size: 8 / 32", "a")


def test_inputs_of_one_unknown_checkpoint_are_compared(tmp_path):
    cases = [("2d_foreign", "unknown", name) for name in ("original", "first_frame:svd", "original_paper_geometry")]
    quiet = {"2d_foreign": {"": ""}}
    rows = compare(tmp_path, dict(zip(cases, (0.8, 0.3, 0.5), strict=True)), seeds=(None,), protocol_values=quiet)
    assert [(row["family"], row["seed"], row["differs_in"], row["outcome"]) for row in rows] == [
        ("inputs", None, "", "a"),
        ("inputs", None, "", "a"),
        ("inputs", None, "", "a"),
    ]
    assert {(row["test_input_a"], row["test_input_b"]) for row in rows} == {
        ("original", "first_frame:svd"),
        ("original", "original_paper_geometry"),
        ("original_paper_geometry", "first_frame:svd"),
    }


def test_networks_of_one_arm_are_compared_on_one_kind_of_input(tmp_path):
    cases = dict.fromkeys([("2d_foreign", "unknown", name) for name in ("original", "first_frame:svd")], 0.5)
    runs = []
    for name in ("one", "two"):
        columns = {"2d_foreign": {"start_weights": name}}
        runs += read_runs(make_tables(tmp_path / name, cases, seeds=(None,), num_items=20, columns=columns))
    assert [(pair.family, pair.comparison_id) for pair in select_pairs(build_entries(runs))] == [
        ("inputs", "2d_foreign/original/one vs 2d_foreign/first_frame:svd/t3/one"),
        ("inputs", "2d_foreign/original/two vs 2d_foreign/first_frame:svd/t3/two"),
        ("arms", "2d_foreign/original/two vs 2d_foreign/original/one"),
        ("arms", "2d_foreign/first_frame:svd/t3/two vs 2d_foreign/first_frame:svd/t3/one"),
    ]


@pytest.mark.parametrize("weights", ["", "other"])
def test_other_or_unknown_weights_are_no_pair_of_inputs(tmp_path, weights):
    measured = make_tables(tmp_path, {SVD: 0.5, SHUFFLED: 0.5}, seeds=2, num_items=20)
    costs = measured["model_costs"]
    entries = build_entries(read_runs(measured))
    assert [pair.family for pair in select_pairs(entries)] == ["claim"]
    costs.loc[costs["run_id"] == "3d_svd_t3_s1__shuffled_svd", "weights_sha256"] = weights
    if not weights:
        costs["weights_sha256"] = ""
    assert select_pairs(build_entries(read_runs(measured))) == []


def test_two_lengths_of_the_arms_of_frames_are_entries_of_their_own(tmp_path):
    frames = [("2d_first_frame", "first_frame:svd", "first_frame:svd"), ("2d_all_frames", "all_frames:svd", "clip:svd")]
    cases = dict.fromkeys([ORIGINAL, SVD, MIX, *frames], 0.5)
    lengths = {
        name: make_tables(tmp_path / str(name), cases, seeds=2, num_items=20, num_frames=name) for name in (3, 5)
    }
    for name, tables in lengths.items():
        values = pd.DataFrame(
            {"run_id": tables["predictions"]["run_id"].unique(), "key": "num_frames", "value": str(name)}
        )
        tables["protocol_values"] = pd.concat([tables["protocol_values"], values])
    both = {name: pd.concat([lengths[3][name], lengths[5][name]], ignore_index=True) for name in lengths[3]}
    both = {name: frame[~frame["run_id"].str.startswith("2d_original_t5")] for name, frame in both.items()}
    require_consistency(both, tmp_path)
    entries = build_entries(read_runs(both))
    assert [entry.entry_id for entry in entries] == [
        "2d_original/original",
        *(f"{name}/t3" for name in ("3d_svd/clip:svd", "2d_mix/original", "2d_first_frame/first_frame:svd")),
        "2d_all_frames/clip:svd/t3",
        *(f"{name}/t5" for name in ("3d_svd/clip:svd", "2d_mix/original", "2d_first_frame/first_frame:svd")),
        "2d_all_frames/clip:svd/t5",
    ]
    assert {len(entry.runs) for entry in entries} == {2}
    of_claim = [pair.comparison_id for pair in select_pairs(entries) if pair.family == "claim"]
    assert [name for name in of_claim if name.startswith("3d_svd/clip:svd/t5")] == [
        "3d_svd/clip:svd/t5 vs 2d_original/original",
        "3d_svd/clip:svd/t5 vs 2d_first_frame/first_frame:svd/t5",
        "3d_svd/clip:svd/t5 vs 2d_all_frames/clip:svd/t5",
        "3d_svd/clip:svd/t5 vs 2d_mix/original/t5",
    ]


def tripled(measured: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Each item as three clips of its source, with the same answers."""
    found = dict(measured)
    for name in ("predictions", "probabilities"):
        frame = measured[name]
        copies = [frame.assign(item_id=frame["item_id"] + suffix) for suffix in ("", "#2", "#3")]
        found[name] = pd.concat(copies, ignore_index=True)
    return found


def test_tripled_clips_prove_nothing_more(tmp_path):
    measured = make_tables(tmp_path, {SVD: 0.65, ORIGINAL: 0.5}, num_items=60, noise=0.3)
    once = compare_entries(build_entries(read_runs(measured)))
    thrice = compare_entries(build_entries(read_runs(tripled(measured))))
    assert 0 < once[0]["mcnemar_p"] < 1
    assert [row["num_items"] for row in thrice] == [180] * 4
    for row, again in zip(once, thrice, strict=True):
        assert {key: again[key] for key in row if key != "num_items"} == {
            key: pytest.approx(value) if isinstance(value, float) else value
            for key, value in row.items()
            if key != "num_items"
        }


def test_the_clips_of_a_source_vote_with_all_seeds(tmp_path):
    measured = make_tables(tmp_path, {SVD: 1.0, ORIGINAL: 0.0}, seeds=2, num_items=12, clips_per_source=3)
    a, b = build_entries(read_runs(measured))
    wrong = a.runs[0].predicted.copy()
    wrong[:2] = (wrong[:2] + 1) % 4  # two of the six answers to the first source
    runs = {0: replace(a.runs[0], predicted=wrong), 1: a.runs[1]}
    answers = pair_answers(replace(a, runs=runs), b)
    votes = answers.vote()["a"]
    assert (votes.num_votes.tolist(), votes.num_answers.tolist()) == ([4, 6, 6, 6], [6, 6, 6, 6])
    assert votes.is_right.tolist() == [True] * 4
    assert answers.first_items.tolist() == a.common_items[::3].tolist()
    row = compare_entries([replace(a, runs=runs), b])[1]
    assert (row["seed"], row["only_a_right"], row["both_wrong"]) == (0, 3, 1), "in seed 0 the two are the majority"


def test_no_common_seed_or_item_gives_no_row(tmp_path):
    one = make_tables(tmp_path / "a", {SVD: 0.5}, seeds=(0, 1), num_items=20)
    two = make_tables(tmp_path / "b", {ORIGINAL: 0.5}, seeds=(2,), num_items=20)
    assert compare_entries(build_entries(read_runs(one) + read_runs(two))) == []
    three = make_tables(tmp_path / "c", {ORIGINAL: 0.5}, seeds=(0,), num_items=20)
    three["predictions"]["item_id"] = "z" + three["predictions"]["item_id"]
    three["probabilities"]["item_id"] = "z" + three["probabilities"]["item_id"]
    assert compare_entries(build_entries(read_runs(one) + read_runs(three))) == []


def test_only_common_seeds_count(tmp_path):
    one = make_tables(tmp_path / "a", {SVD: 0.5}, seeds=(0, 1, 2), num_items=20)
    two = make_tables(tmp_path / "b", {ORIGINAL: 0.5}, seeds=(1, 2, 7), num_items=20)
    rows = compare_entries(build_entries(read_runs(one) + read_runs(two)))
    assert [(row["seed"], row["num_seeds"]) for row in rows] == [(None, 2), (1, 1), (2, 1)]


def test_two_runs_of_one_seed_stay_entries_of_their_own(tmp_path):
    one = make_tables(tmp_path / "a", {ORIGINAL: 0.5}, seeds=1, num_items=20)
    two = make_tables(tmp_path / "b", {ORIGINAL: 0.9}, seeds=1, num_items=20)
    for frame in two.values():
        frame["run_id"] = "other"
    entries = build_entries(read_runs(one) + read_runs(two))
    assert [entry.entry_id for entry in entries] == [
        "2d_original/original/2d_original_t3_s0__original",
        "2d_original/original/other",
    ]
    assert [row["difference"] for row in compare_entries(entries)] == pytest.approx([0.4, 0.4])


def test_entries_of_one_name_say_what_differs(tmp_path):
    one = make_tables(tmp_path / "a", {SVD: 0.5, ORIGINAL: 0.5}, seeds=1, num_items=20)
    other = {"columns": {"3d_svd": {"start_weights": "random"}}}
    two = make_tables(tmp_path / "b", {SVD: 0.9}, seeds=1, num_items=20, **other)
    entries = build_entries(read_runs(one) + read_runs(two))
    assert [entry.entry_id for entry in entries] == [
        "3d_svd/clip:svd/t3/imagenet",
        "2d_original/original",
        "3d_svd/clip:svd/t3/random",
    ]


def test_an_arm_is_summarised_over_the_items_of_all_its_seeds(tmp_path):
    measured = make_tables(tmp_path, {ORIGINAL: 0.5}, seeds=2, num_items=40)
    few = measured["predictions"].index[measured["predictions"]["seed"] == 1][::2]
    whole, part = read_runs(measured), read_runs(measured | {"predictions": measured["predictions"].drop(few)})
    row = summarise_entries(build_entries(part))[0]
    at = np.arange(40) % 2 == 1
    assert (row["num_items"], row["num_sources"]) == (20, 20)
    assert row["top1_mean"] == pytest.approx(np.mean([run.is_right[at].mean() for run in whole]))
    assert row["top1_mean"] != pytest.approx(np.mean([part[0].is_right.mean(), part[1].is_right.mean()]))
    assert row["top1_sd"] == pytest.approx(np.std([run.is_right[at].mean() for run in whole], ddof=1))


def test_arms_are_mean_and_spread_over_seeds(tmp_path):
    measured = make_tables(tmp_path, {ORIGINAL: 0.5}, seeds=2, num_items=40, clips_per_source=2)
    runs = read_runs(measured)
    runs[1] = replace(runs[1], predicted=runs[1].labels)  # 100 %
    row = summarise_entries(build_entries(runs))[0]
    assert (row["num_seeds"], row["num_items"], row["num_sources"]) == (2, 40, 20)
    assert row["top1_mean"] == pytest.approx(0.75)
    assert row["top1_sd"] == pytest.approx(0.5 / 2**0.5)
    assert (row["top1_low"], row["top1_high"]) == pytest.approx((0.5313, 0.8881), abs=5e-5), "Wilson of 15 of 20"
    single = summarise_entries(build_entries(runs[:1]))[0]
    assert (single["top1_sd"], single["macro_f1_sd"], single["majority_top1"]) == (None, None, 0.5)
    assert row["macro_f1_mean"] == pytest.approx((1 + single["macro_f1_mean"]) / 2)
