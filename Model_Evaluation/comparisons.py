"""What each comparison finds, and what each entry is: rows of `comparisons.csv` and `arms.csv`.

A beats B (`outcome` is `a`) when the 95 % interval of the paired difference excludes 0 *and* the Holm-adjusted exact
McNemar test of the seeds' majority vote has p < 0.05. The row of one seed is judged by its own interval and its own,
unadjusted p. A comparison of runs that differ in more than their arms' subject (`differs_in`) decides nothing, but for
the published one, which is shown as it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev  # exact: equal seeds have sd 0
from typing import Any

import numpy as np

from Model_Evaluation.pairs import ARMS, CLAIM, INPUTS, PAPER, Pair, describe_differences, select_pairs
from Model_Evaluation.scored_runs import Entry, source_of
from Model_Evaluation.statistics import (
    ALPHA,
    PairedCounts,
    adjust_holm,
    compute_bootstrap_interval,
    compute_cohens_h,
    compute_detectable_difference,
    compute_mcnemar_p,
    compute_wilson,
    count_pairs,
    vote,
)


@dataclass(frozen=True)
class _PairedAnswers:
    """Answers on the common items of the common seeds: `right_*` bool (num_seeds, N), `voted_*` bool (N,)."""

    seeds: list[int | None]
    sources: np.ndarray
    right_a: np.ndarray
    right_b: np.ndarray
    voted_a: np.ndarray
    voted_b: np.ndarray


def compare_entries(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of `comparisons.csv`: each pair's row of all seeds (empty seed), followed by one a seed."""
    rows: list[dict[str, Any]] = []
    for pair in select_pairs(entries):
        rows += _compare(pair)
    for family in (CLAIM, INPUTS, PAPER, ARMS):
        tested = [row for row in rows if row["family"] == family and row["seed"] is None]
        for row, p_value in zip(tested, adjust_holm([row["mcnemar_p"] for row in tested]), strict=True):
            row["mcnemar_p_holm"] = p_value
    for row in rows:
        row["outcome"] = _decide(row)
    return rows


def summarise_entries(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of `arms.csv`: top-1 and macro-F1 over seeds.

    The interval is Wilson's for the mean rate on as many trials as there are sources: the seeds and clips of one source
    are no independent trials.
    """
    return [_summarise_entry(entry) for entry in entries]


def _compare(pair: Pair) -> list[dict[str, Any]]:
    answers = _pair_answers(pair)
    if answers is None:
        return []
    columns = _pair_columns(pair, answers)
    rows = [columns | _measure(answers, answers.right_a, answers.right_b, answers.voted_a, answers.voted_b)]
    for seed, a, b in zip(answers.seeds, answers.right_a, answers.right_b, strict=True):
        if seed is not None:
            rows.append(columns | {"seed": seed, "num_seeds": 1} | _measure(answers, a[None], b[None], a, b))
    return rows


def _pair_columns(pair: Pair, answers: _PairedAnswers) -> dict[str, Any]:
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
        "num_items": len(answers.sources),
        "num_sources": len(set(answers.sources)),
    }


def _pair_answers(pair: Pair) -> _PairedAnswers | None:
    """None where the entries share no seed or no item."""
    seeds = [seed for seed in pair.a.runs if seed in pair.b.runs]
    shared = set(pair.b.common_items)
    items = np.array([item for item in pair.a.common_items if item in shared], dtype=object)
    if not seeds or not len(items):
        return None
    right_a, voted_a = _answers_on(pair.a, seeds, items)
    right_b, voted_b = _answers_on(pair.b, seeds, items)
    sources = np.array([source_of(item) for item in items], dtype=object)
    return _PairedAnswers(seeds, sources, right_a, right_b, voted_a, voted_b)


def _answers_on(entry: Entry, seeds: list[int | None], items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are right, bool (num_seeds, N), and which majority votes are, bool (N,)."""
    predicted, probabilities = [], []
    for seed in seeds:
        run = entry.runs[seed]
        positions = {item: position for position, item in enumerate(run.item_ids)}
        order = np.array([positions[item] for item in items])
        predicted.append(run.predicted[order])
        probabilities.append(run.probabilities[order])
        labels = run.labels[order]
    answers = np.stack(predicted)
    return answers == labels, vote(answers, np.stack(probabilities)) == labels


def _measure(
    answers: _PairedAnswers, right_a: np.ndarray, right_b: np.ndarray, voted_a: np.ndarray, voted_b: np.ndarray
) -> dict[str, Any]:
    """One row's numbers: `right_*` bool (num_seeds, N) give the difference, `voted_*` bool (N,) the test."""
    low, high = _interval(right_a.astype(int) - right_b, answers.sources)
    counts = count_pairs(voted_a, voted_b)
    top1_a, top1_b = float(right_a.mean()), float(right_b.mean())
    return {
        "top1_a": top1_a,
        "top1_b": top1_b,
        "difference": float((right_a.sum() - int(right_b.sum())) / right_a.size),
        "difference_low": low,
        "difference_high": high,
        **{name: getattr(counts, name) for name in ("both_right", "only_a_right", "only_b_right", "both_wrong")},
        **_test(counts, top1_a, top1_b),
    }


def _test(counts: PairedCounts, top1_a: float, top1_b: float) -> dict[str, float | None]:
    return {
        "mcnemar_p": compute_mcnemar_p(counts),
        "mcnemar_p_holm": None,
        "cohens_h": compute_cohens_h(top1_a, top1_b),
        "odds_ratio": counts.odds_ratio,
        "minimal_detectable_difference": compute_detectable_difference(counts.num_items, counts.discordant_share),
    }


def _interval(differences: np.ndarray, sources: np.ndarray) -> tuple[float, float]:
    """Differences int (num_seeds, N), one source text an item; a source's seeds and clips are resampled together."""
    _, numbers = np.unique(sources.astype(str), return_inverse=True)
    totals = np.bincount(numbers, weights=differences.sum(axis=0))
    return compute_bootstrap_interval(totals, np.bincount(numbers) * len(differences))


def _decide(row: dict[str, Any]) -> str:
    """The rule of the module docstring."""
    p_value = row["mcnemar_p_holm"] if row["seed"] is None else row["mcnemar_p"]
    is_matched = not row["differs_in"] or row["family"] == PAPER
    if is_matched and p_value < ALPHA and row["difference_low"] > 0:
        return "a"
    if is_matched and p_value < ALPHA and row["difference_high"] < 0:
        return "b"
    return "undecided"


def _summarise_entry(entry: Entry) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    runs = list(entry.runs.values())
    items = entry.common_items
    num_sources = len({source_of(item) for item in items})
    top1 = [float(run.is_right.mean()) for run in runs]
    num_classes = runs[0].num_classes
    # labels= keeps an absent class in the mean, as 0.
    options = {"labels": range(num_classes), "average": "macro", "zero_division": 0}
    f1 = [float(f1_score(run.labels, run.predicted, **options)) for run in runs]
    low, high = compute_wilson(fmean(top1) * num_sources, num_sources)
    return entry.columns | {
        "entry_id": entry.entry_id,
        "num_seeds": len(runs),
        "num_items": len(items),
        "num_sources": num_sources,
        "top1_mean": fmean(top1),
        "top1_low": low,
        "top1_high": high,
        "top1_sd": stdev(top1) if len(runs) > 1 else None,
        "macro_f1_mean": fmean(f1),
        "macro_f1_sd": stdev(f1) if len(runs) > 1 else None,
        "majority_top1": float(_answers_on(entry, list(entry.runs), items)[1].mean()),
    }
