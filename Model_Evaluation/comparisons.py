"""What each comparison finds, and what each entry is: rows of `comparisons.csv` and `arms.csv`.

A beats B (`outcome` is `a`) when the 95 % interval of the paired difference excludes 0 *and* the Holm-adjusted exact
McNemar test has p < 0.05. The difference is the mean over items and seeds; the test takes one answer a source image,
which all its clips and all seeds vote for. The row of one seed is there to look at: its `outcome` is empty. A
comparison of runs that differ in more than their arms' subject (`differs_in`) decides nothing, but for the published
one, which is shown as it was made.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean, stdev  # exact: equal seeds have sd 0
from typing import Any

import numpy as np

from Model_Evaluation.paired_answers import (
    ItemAnswers,
    PairedAnswers,
    answers_on,
    number_sources,
    pair_answers,
    vote_by_source,
)
from Model_Evaluation.pairs import PAPER, Pair, describe_differences, select_pairs
from Model_Evaluation.scored_runs import Entry
from Model_Evaluation.statistics import (
    ALPHA,
    adjust_holm,
    compute_bootstrap_interval,
    compute_cohens_h,
    compute_detectable_difference,
    compute_mcnemar_p,
    compute_wilson,
    count_pairs,
    vote,
)


def compare_entries(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of `comparisons.csv`: each pair's row of all seeds (empty seed), followed by one a seed."""
    paired = [(pair, pair_answers(pair.a, pair.b)) for pair in select_pairs(entries)]
    answered = [(pair, answers) for pair, answers in paired if answers is not None]
    family_sizes = Counter(pair.family for pair, _ in answered)
    rows: list[dict[str, Any]] = []
    for pair, answers in answered:
        rows += _compare(pair, answers, family_sizes[pair.family])
    for family in family_sizes:
        tested = [row for row in rows if row["family"] == family and row["seed"] is None]
        for row, p_value in zip(tested, adjust_holm([row["mcnemar_p"] for row in tested]), strict=True):
            row["mcnemar_p_holm"] = p_value
            row["outcome"] = _decide(row)
    return rows


def summarise_entries(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of `arms.csv`: top-1 and macro-F1 over seeds.

    All over the items that all seeds of the entry have. The interval is Wilson's for the mean rate on as many trials as
    there are sources: the seeds and clips of one source are no independent trials.
    """
    return [_summarise_entry(entry) for entry in entries]


def _compare(pair: Pair, answers: PairedAnswers, family_size: int) -> list[dict[str, Any]]:
    a, b, sources = answers.a, answers.b, answers.sources
    columns = _pair_columns(pair, answers)
    rows = [columns | _measure(a, b, sources, ALPHA / family_size)]
    for number, seed in enumerate(answers.seeds):
        if seed is not None:
            measures = _measure(a.of_seed(number), b.of_seed(number), sources, ALPHA)
            rows.append(columns | {"seed": seed, "num_seeds": 1} | measures)
    return rows


def _pair_columns(pair: Pair, answers: PairedAnswers) -> dict[str, Any]:
    a, b = pair.a.columns, pair.b.columns
    return {
        "comparison_id": pair.comparison_id,
        "family": pair.family,
        "entry_a": pair.a.entry_id,
        "entry_b": pair.b.entry_id,
        **{f"{name}_a": a[name] for name in ("arm", "test_input", "num_frames")},
        **{f"{name}_b": b[name] for name in ("arm", "test_input", "num_frames")},
        **{name: a[name] if a[name] == b[name] else f"{a[name]} / {b[name]}" for name in ("protocol", "split")},
        "differs_in": describe_differences(pair, answers.seeds),
        "seed": None,
        "num_seeds": len(answers.seeds),
        "num_items": len(answers.items),
        "num_sources": answers.num_sources,
        "outcome": "",
    }


def _measure(a: ItemAnswers, b: ItemAnswers, sources: np.ndarray, alpha: float) -> dict[str, Any]:
    """One row's numbers: all answers give the difference, one vote a source the test."""
    right_a, right_b = a.is_right, b.is_right
    low, high = _interval(right_a.astype(int) - right_b, sources)
    counts = count_pairs(vote_by_source(a, sources).is_right, vote_by_source(b, sources).is_right)
    top1_a, top1_b = float(right_a.mean()), float(right_b.mean())
    return {
        "top1_a": top1_a,
        "top1_b": top1_b,
        "difference": float((right_a.sum() - int(right_b.sum())) / right_a.size),
        "difference_low": low,
        "difference_high": high,
        **{name: getattr(counts, name) for name in ("both_right", "only_a_right", "only_b_right", "both_wrong")},
        "mcnemar_p": compute_mcnemar_p(counts),
        "mcnemar_p_holm": None,
        "cohens_h": compute_cohens_h(top1_a, top1_b),
        "odds_ratio": counts.odds_ratio,
        "minimal_detectable_difference": compute_detectable_difference(
            counts.num_items, counts.discordant_share, alpha
        ),
    }


def _interval(differences: np.ndarray, sources: np.ndarray) -> tuple[float, float]:
    """Differences int (num_seeds, N), a source's number an item; its seeds and clips are resampled together."""
    totals = np.bincount(sources, weights=differences.sum(axis=0))
    return compute_bootstrap_interval(totals, np.bincount(sources) * len(differences))


def _decide(row: dict[str, Any]) -> str:
    """The rule of the module docstring."""
    is_matched = not row["differs_in"] or row["family"] == PAPER
    if is_matched and row["mcnemar_p_holm"] < ALPHA and row["difference_low"] > 0:
        return "a"
    if is_matched and row["mcnemar_p_holm"] < ALPHA and row["difference_high"] < 0:
        return "b"
    return "undecided"


def _summarise_entry(entry: Entry) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    answers = answers_on(entry, list(entry.runs), entry.common_items)
    num_sources = int(number_sources(entry.common_items, answers.labels).max()) + 1
    top1 = [float(right.mean()) for right in answers.is_right]
    # labels= keeps an absent class in the mean, as 0.
    options = {"labels": range(answers.probabilities.shape[2]), "average": "macro", "zero_division": 0}
    f1 = [float(f1_score(answers.labels, predicted, **options)) for predicted in answers.predicted]
    low, high = compute_wilson(fmean(top1) * num_sources, num_sources)
    majority, _ = vote(answers.predicted, answers.probabilities)
    return entry.columns | {
        "entry_id": entry.entry_id,
        "num_seeds": len(entry.runs),
        "num_items": len(entry.common_items),
        "num_sources": num_sources,
        "top1_mean": fmean(top1),
        "top1_low": low,
        "top1_high": high,
        "top1_sd": stdev(top1) if len(top1) > 1 else None,
        "macro_f1_mean": fmean(f1),
        "macro_f1_sd": stdev(f1) if len(f1) > 1 else None,
        "majority_top1": float((majority == answers.labels).mean()),
    }
