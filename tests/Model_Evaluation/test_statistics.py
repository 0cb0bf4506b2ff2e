"""Statistics against hand-computed values, exact fractions, and simulated sets whose truth is known."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest

from Model_Evaluation.statistics import (
    PairedCounts,
    adjust_holm,
    compute_bootstrap_interval,
    compute_calibration_error,
    compute_cohens_h,
    compute_detectable_difference,
    compute_macro_auc,
    compute_mcnemar_p,
    compute_nll,
    compute_reliability,
    compute_wilson,
    count_pairs,
    vote,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def exact_mcnemar(only_a: int, only_b: int) -> Fraction:
    """Two-sided: twice the smaller tail of Binomial(n, 1/2), at most 1."""
    total, smaller = only_a + only_b, min(only_a, only_b)
    tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(smaller + 1))
    return min(Fraction(1), 2 * tail)


def test_mcnemar_equals_exact_binomial_sums():
    rng = np.random.default_rng(1)
    tables = [(0, 0), (0, 1), (7, 7), (0, 40), *(tuple(map(int, rng.integers(0, 120, 2))) for _ in range(196))]
    for only_a, only_b in tables:
        p_value = compute_mcnemar_p(PairedCounts(30, only_a, only_b, 20))
        assert p_value == pytest.approx(float(exact_mcnemar(only_a, only_b)), rel=1e-9), (only_a, only_b)
    assert compute_mcnemar_p(PairedCounts(5, 0, 0, 5)) == 1.0
    assert compute_mcnemar_p(PairedCounts(0, 0, 5, 0)) == pytest.approx(2 / 32)


def test_holm_of_a_worked_example():
    # Sorted: .005 x 4 = .02; .01 x 3 = .03; .03 x 2 = .06; .04 x 1 = .04, but not below the one before: .06.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert adjust_holm([]) == []


def test_wilson_of_known_rates():
    assert compute_wilson(7, 10) == pytest.approx((0.3968, 0.8922), abs=5e-5)
    z2 = 1.959963984540054**2
    assert compute_wilson(0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert compute_wilson(10, 10) == pytest.approx((10 / (10 + z2), 1))
    assert compute_wilson(0, 0) == (None, None)


def test_pairs_are_counted_by_who_is_right():
    a = np.array([True, True, True, False, False, False])
    b = np.array([True, False, False, True, False, False])
    counts = count_pairs(a, b)
    assert counts == PairedCounts(both_right=1, only_a_right=2, only_b_right=1, both_wrong=2)
    assert (counts.num_items, counts.discordant_share, counts.odds_ratio) == (6, 0.5, 2.0)
    assert count_pairs(a, a) == PairedCounts(3, 0, 0, 3)
    assert count_pairs(a, a & False).odds_ratio is None, "no bound, not infinity"


def test_cohens_h_of_known_angles():
    assert compute_cohens_h(0.5, 0.25) == pytest.approx(math.pi / 6)
    assert compute_cohens_h(0.3, 0.3) == 0
    assert compute_cohens_h(0.0, 1.0) == pytest.approx(-math.pi)


def test_equal_differences_give_a_point():
    assert compute_bootstrap_interval(np.zeros(50), np.full(50, 3)) == (0.0, 0.0)
    assert compute_bootstrap_interval(np.array([2, 4, 2]), np.array([2, 4, 2])) == (1.0, 1.0), "also of uneven sources"
    assert compute_bootstrap_interval(np.array([1]), np.array([2])) == (0.5, 0.5)


def test_more_seeds_or_clips_of_the_same_answers_are_no_more_evidence():
    totals = np.random.default_rng(0).integers(-1, 2, 80)
    single = compute_bootstrap_interval(totals, np.ones(80))
    assert compute_bootstrap_interval(3 * totals, np.full(80, 3)) == pytest.approx(single, abs=1e-12)
    assert single[0] < totals.mean() < single[1]
    assert compute_bootstrap_interval(totals, np.ones(80)) == single, "the same numbers again"


def test_sources_of_uneven_clips_weigh_by_their_clips():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 4, 300)
    totals = rng.binomial(counts, 0.4)
    low, high = compute_bootstrap_interval(totals, counts)
    rate = totals.sum() / counts.sum()
    half = 1.96 * math.sqrt(0.4 * 0.6 / counts.sum())
    assert low < rate < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def simulate_totals(rng: np.random.Generator, num_sources: int, num_seeds: int) -> tuple[np.ndarray, float]:
    """Differences of two models that share how hard an item is, and their true mean: totals (num_sources,)."""
    hardness = rng.random(num_sources)
    chance_a, chance_b = (np.where(hardness > limit, 0.8, 0.4) for limit in (0.3, 0.45))
    right_a, right_b = (rng.random((num_seeds, num_sources)) < chance for chance in (chance_a, chance_b))
    return (right_a.astype(int) - right_b).sum(axis=0), 0.4 * 0.15


def coverage(num_sets: int, num_sources: int, num_seeds: int) -> float:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(num_sets):
        totals, truth = simulate_totals(rng, num_sources, num_seeds)
        low, high = compute_bootstrap_interval(totals, np.full(num_sources, num_seeds))
        covered += low <= truth <= high
    return covered / num_sets


@pytest.mark.exhaustive
@pytest.mark.parametrize(("num_sources", "num_seeds"), [(100, 3), (200, 1), (500, 3)])
def test_the_interval_covers_the_truth_in_93_to_97_of_100(num_sources, num_seeds):
    assert 0.93 <= coverage(1000, num_sources, num_seeds) <= 0.97


def test_the_interval_covers_the_truth_in_a_sample():
    assert 0.90 <= coverage(150, 100, 3) <= 0.99  # 150 sets: three standard errors are 5 points


@pytest.mark.parametrize(("num_items", "share"), [(500, 0.2), (500, 0.4), (2000, 0.1)])
def test_a_detectable_difference_is_detected_in_four_of_five(num_items, share):
    difference = compute_detectable_difference(num_items, share)
    rng = np.random.default_rng(5)
    only_a, only_b = (share + difference) / 2, (share - difference) / 2
    draws = rng.multinomial(num_items, [only_a, only_b, 1 - share], size=20_000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.02)


def test_a_detectable_difference_solves_connors_equation():
    difference = compute_detectable_difference(500, 0.25)
    needed = (1.959964 * math.sqrt(0.25) + 0.841621 * math.sqrt(0.25 - difference**2)) ** 2 / difference**2
    assert needed == pytest.approx(500, rel=1e-5)
    assert compute_detectable_difference(2000, 0.25) < difference / 1.9


def test_a_family_of_tests_detects_less():
    alone, of_twelve = (compute_detectable_difference(500, 0.25, 0.05 / size) for size in (1, 12))
    assert alone == compute_detectable_difference(500, 0.25)
    needed = (2.865 * math.sqrt(0.25) + 0.841621 * math.sqrt(0.25 - of_twelve**2)) ** 2 / of_twelve**2
    assert needed == pytest.approx(500, rel=1e-3)


def test_no_difference_is_detectable_with_too_few_discordant_items():
    assert compute_detectable_difference(500, 0.0) is None
    assert compute_detectable_difference(10, 0.1) is None


def test_macro_auc_of_a_hand_computed_case():
    labels = np.array([0, 0, 1, 1, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    # Class 0: pairs (.8, .3) against (.4, .2, .1): 5 of 6. Class 1: (.5, .6) against (.1, .4, .1): 6 of 6.
    # Class 2: (.8) against (.1, .3, .1, .2): 4 of 4.
    assert compute_macro_auc(labels, probabilities) == pytest.approx((5 / 6 + 1 + 1) / 3)
    tied = np.full((4, 2), 0.5)
    assert compute_macro_auc(np.array([0, 1, 0, 1]), tied) == 0.5, "a tie counts half"


def test_macro_auc_of_an_absent_class_is_undefined():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    assert compute_macro_auc(np.array([0, 1]), probabilities) is None
    assert compute_macro_auc(np.array([0, 0]), np.ones((2, 1))) is None


def test_nll_of_hand_computed_cases():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    assert compute_nll(np.array([0, 2]), probabilities) == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert compute_nll(np.array([0]), np.array([[0.333333, 0.333333, 0.333333]])) == pytest.approx(math.log(3))
    assert compute_nll(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(-math.log(2**-52))
    assert compute_nll(np.array([0]), np.ones((1, 1))) is None


def test_calibration_of_a_hand_computed_case():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 1.0, 0.2])
    is_right = np.array([True, True, True, False, True, False, True, False])
    rows = compute_reliability(is_right, confidence)
    assert len(rows) == 15
    assert [row["num_items"] for row in rows] == [0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4, 1], "upper ends included"
    assert rows[13]["mean_confidence"] == pytest.approx(0.9)
    assert rows[13]["top1_fraction"] == 0.75
    assert (rows[0]["mean_confidence"], rows[0]["top1_fraction"]) == (None, None)
    assert compute_calibration_error(rows) == pytest.approx((4 * 0.15 + 2 * 0 + 0 + 0.2) / 8)


def test_a_perfectly_confident_and_right_model_has_no_calibration_error():
    rows = compute_reliability(np.ones(5, dtype=bool), np.ones(5))
    assert compute_calibration_error(rows) == 0
    assert rows[-1]["num_items"] == 5


def test_the_majority_wins_and_ties_go_to_probability_then_label():
    predicted = np.array([[1, 0, 2], [1, 1, 1], [0, 2, 0]])  # three seeds, three items
    probabilities = np.zeros((3, 3, 3))
    probabilities[:, 0] = [0.9, 0.1, 0.0]  # item 0: two votes for 1, although 0 is more probable
    probabilities[:, 1] = [0.2, 0.3, 0.5]  # item 1: one vote each, 2 is the most probable
    probabilities[:, 2] = [0.4, 0.4, 0.2]  # item 2: one vote each, 0 and 1 are equally probable
    assert vote(predicted, probabilities)[0].tolist() == [1, 2, 0]


def test_a_class_without_votes_does_not_win_a_tie():
    predicted = np.array([[0], [1]])
    probabilities = np.array([[[0.3, 0.1, 0.6]], [[0.1, 0.3, 0.6]]])
    assert vote(predicted, probabilities)[0].tolist() == [0]


def test_items_of_a_group_vote_together():
    predicted = np.array([[0, 1, 1, 2], [0, 1, 2, 2]])  # two seeds; items 0, 2 and 3 are one group
    probabilities = np.zeros((2, 4, 3))
    probabilities[:, :, 0] = 0.6
    probabilities[1, 3] = [0.0, 0.0, 1.0]
    answers, mean = vote(predicted, probabilities, np.array([0, 1, 0, 0]))
    assert answers.tolist() == [2, 1], "three of six votes, though 0 is more probable"
    assert mean.tolist() == [pytest.approx([0.5, 0, 1 / 6]), pytest.approx([0.6, 0, 0])]


def test_importing_the_module_waits_for_no_library():
    code = (
        "import sys, Model_Evaluation.derived; "
        "print([m for m in ('scipy.stats', 'statsmodels', 'sklearn', 'matplotlib', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
