"""What the comparisons answer, by a rule stated beforehand; every sentence and number comes from the tables.

Motion helps only if `3d_svd` beats every control (`arms.CONTROL_ARMS`, all of them measured, all matched) and its plain
clips beat its shuffled ones; `comparisons` says when A beats B. It does not help where a control beats it, or where
shuffling makes no answer of any seed right or wrong. Everything else is undecided: that a difference was not found
does not show that there is none. The sentence then says how much of the lead over `2d_original` each control has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from Model_Evaluation.arms import CLAIM_ARM, CONTROL_ARMS
from Model_Evaluation.pairs import CLAIM, PAPER

HEADLINE = "Does motion help?"
YES, NO, UNDECIDED, NOT_MEASURED = "yes", "no", "undecided", "not measured"
BASE_ARM = "2d_original"
EXPLANATIONS = {
    "Does the domain explain all of it?": ("2d_first_frame", "2d_all_frames"),
    "Do more looks explain all of it?": ("2d_tta", "2d_all_frames"),
    "Does the bigger network explain all of it?": ("3d_static",),
    "Does any motion explain all of it?": ("3d_camera",),
}
Row = dict[str, Any]
_MOST_LISTED = 3


@dataclass(frozen=True)
class _Evidence:
    """What bears on one entry of `3d_svd`.

    Attributes:
        inputs: its comparisons with the same weights on other inputs, by how the input starts.
        controls: its comparisons with its controls, by arm.
        leads: those controls' comparisons with the control `2d_original`, by arm.
        blind: comparisons in which no seed has an item that only one side gets right.
    """

    inputs: dict[str, Row]
    controls: dict[str, Row]
    leads: dict[str, Row]
    blind: frozenset[str]

    def share(self, arm: str) -> str:
        """How much of the lead over `2d_original` a control has that `3d_svd` does not beat; empty where none has."""
        row, base, lead = self.controls.get(arm), self.controls.get(BASE_ARM), self.leads.get(arm)
        if None in (row, base, lead) or (row["outcome"], base["outcome"], lead["outcome"]) != (UNDECIDED, "a", "a"):
            return ""
        return f"{arm} has {_points(lead['difference'])} of the {_points(base['difference'])} points over {BASE_ARM}"


def build_verdict(comparisons: Iterable[Row]) -> list[Row]:
    """Rows of `verdict.csv`: the headline first, then a row a question; those of the claim for each of its entries."""
    every = list(comparisons)
    whole = [row for row in every if pd.isna(row["seed"])]
    claims = {row["entry_a"]: row for row in whole if row["family"] == CLAIM}
    blind = _find_blind(every)
    rows: list[Row] = []
    for entry_id, suffix in _suffixes(claims).items():
        answers = _answer_claim(_collect(whole, entry_id, blind))
        rows += [row | {"question": row["question"] + suffix} for row in answers]
    rows += [_answer_frames(row) for row in whole if row["arm_a"] == row["arm_b"] == CLAIM_ARM and _is_longer(row)]
    rows += _answer_others(whole)
    asked = [row["question"] for row in rows]
    for row in rows:
        if asked.count(row["question"]) > 1:
            row["question"] += f" ({row['comparison_id']})"
    return [{"position": position} | row for position, row in enumerate(rows, start=1)]


def describe_comparison(row: Row) -> str:
    """One comparison's numbers as a clause."""
    text = (
        f"{name_side(row, 'a')} {100 * row['top1_a']:.1f} % against {name_side(row, 'b')} {100 * row['top1_b']:.1f} %: "
        f"{_points(row['difference'])} points (95 % interval {_points(row['difference_low'])} to "
        f"{_points(row['difference_high'])}; Holm p = {row['mcnemar_p_holm']:.3g}; "
        f"{_count(row['num_sources'], 'source')}, {_count(row['num_seeds'], 'seed')})"
    )
    if row["differs_in"]:
        text += f", not a matched pair: {row['differs_in']}"
    if row["outcome"] == UNDECIDED and _is_matched(row):
        text += f", {_detectable(row)}"
    return text


def name_side(row: Row, side: str) -> str:
    """The arm, with its test input where both sides are one arm, with its entry where that is one, too."""
    if row["arm_a"] != row["arm_b"]:
        return row[f"arm_{side}"]
    text = f"{row[f'arm_{side}']} on {row[f'test_input_{side}']}"
    if row["test_input_a"] != row["test_input_b"]:
        return text
    return f"{text} of {row[f'num_frames_{side}']} frames" if _is_longer(row) else row[f"entry_{side}"]


def _suffixes(claims: dict[str, Row]) -> dict[str, str]:
    """What tells the questions of several entries of `3d_svd` apart, by entry: the length of clips where that does."""
    if len(claims) < 2:
        return dict.fromkeys(claims or [""], "")
    lengths = [row["num_frames_a"] for row in claims.values()]
    is_told = len(set(lengths)) == len(lengths)
    ordered = sorted(claims, key=lambda entry_id: claims[entry_id]["num_frames_a"])
    return {name: f" ({claims[name]['num_frames_a']} frames)" if is_told else f" ({name})" for name in ordered}


def _collect(rows: list[Row], entry_id: str, blind: frozenset[str]) -> _Evidence:
    """Of several entries of one control arm, a matched one, and of these the one that the claim beats least."""
    of_claim = [row for row in rows if row["entry_a"] == entry_id]
    inputs: dict[str, Row] = {}
    controls: dict[str, Row] = {}
    for row in sorted(of_claim, key=lambda row: (not _is_matched(row), row["difference"])):
        if row["arm_b"] == CLAIM_ARM:
            inputs.setdefault(_kind(row["test_input_b"]), row)
        elif row["arm_b"] in CONTROL_ARMS:
            controls.setdefault(row["arm_b"], row)
    by_entries = {(row["entry_a"], row["entry_b"]): row for row in rows}
    base = controls[BASE_ARM]["entry_b"] if BASE_ARM in controls else ""
    leads = {arm: by_entries.get((row["entry_b"], base)) for arm, row in controls.items()}
    return _Evidence(inputs, controls, {arm: row for arm, row in leads.items() if row is not None}, blind)


def _find_blind(rows: list[Row]) -> frozenset[str]:
    """Comparisons whose two sides are right on the very same items, over all seeds and in each one."""
    differing = {
        row["comparison_id"]
        for row in rows
        if row["only_a_right"] or row["only_b_right"] or row["difference_low"] or row["difference_high"]
    }
    return frozenset(row["comparison_id"] for row in rows) - differing


def _answer_claim(evidence: _Evidence) -> list[Row]:
    flat, shuffled = evidence.controls.get("3d_svd_flat"), evidence.inputs.get("shuffled")
    rows = [
        _answer_headline(evidence, shuffled),
        *(_answer_explanation(evidence, question, arms) for question, arms in EXPLANATIONS.items()),
        _answer_pair("Does the guidance ramp help?", flat, "3d_svd and 3d_svd_flat"),
        _answer_shuffled(evidence, shuffled),
    ]
    optional = (("Do reversed frames cost accuracy?", "reversed"), ("Does a static clip cost accuracy?", "static"))
    return rows + [
        _answer_pair(question, evidence.inputs[kind]) for question, kind in optional if kind in evidence.inputs
    ]


def _answer_others(rows: list[Row]) -> list[Row]:
    published = _find(rows, "paper_3d", "paper_2d", "", "first_frame") or _find(rows, "paper_3d", "paper_2d")
    return [
        *_answer_each("Does SVD help as augmentation?", _find(rows, "2d_mix", BASE_ARM), "2d_mix and 2d_original"),
        *_answer_each("Does the published comparison hold?", published, "paper_3d and paper_2d"),
        *_answer_domain_shift(rows),
    ]


def _answer_headline(evidence: _Evidence, shuffled: Row | None) -> Row:
    rows = [*evidence.controls.values(), *([] if shuffled is None else [shuffled])]
    if not rows:
        return _row(HEADLINE, NOT_MEASURED, "Not measured: there is no 3d_svd beside a control or its shuffled clips.")
    weakest = min(rows, key=lambda row: row["difference"])
    against = _smallest_first([row for row in rows if row["outcome"] == "b"])
    parts = [f"{_winner(row)} beats {_loser(row)} ({describe_comparison(row)})" for row in against]
    if shuffled is not None and shuffled["comparison_id"] in evidence.blind:
        parts.append(f"shuffling the frames makes none of {shuffled['num_items']} items right or wrong")
    if parts:
        return _row(HEADLINE, NO, _sentence(NO, parts), against[0] if against else shuffled)
    if shuffled is None:
        return _row(HEADLINE, NOT_MEASURED, "Not measured: 3d_svd was not tested on shuffled clips.")
    missing = [arm for arm in CONTROL_ARMS if arm not in evidence.controls]
    open_rows = [row for row in rows if row["outcome"] != "a"]
    if not open_rows and not missing:
        text = f"Yes: 3d_svd beats all {len(CONTROL_ARMS)} controls and its shuffled clips; the smallest lead: "
        return _row(HEADLINE, YES, text + describe_comparison(weakest) + ".", weakest)
    parts = [f"not measured: {', '.join(missing)}"] if missing else []
    parts += map(describe_comparison, _smallest_first(open_rows))
    parts += filter(None, map(evidence.share, CONTROL_ARMS))
    return _row(HEADLINE, UNDECIDED, _sentence(UNDECIDED, parts), weakest)


def _answer_explanation(evidence: _Evidence, question: str, arms: tuple[str, ...]) -> Row:
    """Yes: one of the arms beats `3d_svd`. No: `3d_svd` beats all of them."""
    rows = _smallest_first([evidence.controls[arm] for arm in arms if arm in evidence.controls])
    if not rows:
        return _row(question, NOT_MEASURED, f"Not measured: needs 3d_svd and {' or '.join(arms)}.")
    is_beaten = all(row["outcome"] == "a" for row in rows) and len(rows) == len(arms)
    answer = YES if any(row["outcome"] == "b" for row in rows) else NO if is_beaten else UNDECIDED
    measured = [row["arm_b"] for row in rows]
    parts = [describe_comparison(row) for row in rows]
    parts += [describe_comparison(evidence.leads[arm]) for arm in measured if arm in evidence.leads]
    parts += filter(None, map(evidence.share, measured))
    parts += [f"not measured: {arm}" for arm in arms if arm not in measured]
    return _row(question, answer, _sentence(answer, parts), rows[0])


def _answer_pair(question: str, row: Row | None, needed: str = "") -> Row:
    """Yes: A beats B. No: B beats A."""
    if row is None:
        return _row(question, NOT_MEASURED, f"Not measured: needs {needed}.")
    answer = {"a": YES, "b": NO}.get(row["outcome"], UNDECIDED)
    return _row(question, answer, _sentence(answer, [describe_comparison(row)]), row)


def _answer_each(question: str, rows: list[Row], needed: str) -> list[Row]:
    return [_answer_pair(question, row, needed) for row in rows or [None]]


def _answer_shuffled(evidence: _Evidence, row: Row | None) -> Row:
    question = "Do shuffled frames cost accuracy?"
    if row is not None and row["comparison_id"] in evidence.blind:
        return _row(question, NO, _sentence(NO, [f"no item becomes right or wrong ({describe_comparison(row)})"]), row)
    return _answer_pair(question, row, "3d_svd on clips and on shuffled clips")


def _answer_domain_shift(rows: list[Row]) -> list[Row]:
    """The same 2-D weights on originals, on originals in the paper's geometry, on generated first frames."""
    questions = [
        ("Does the paper's geometry cost the 2-D network accuracy?", "original", "original_paper_geometry"),
        ("Do generated first frames cost the 2-D network accuracy?", "original", "first_frame"),
        ("Do generated first frames cost more than the paper's geometry?", "original_paper_geometry", "first_frame"),
    ]
    return [
        _answer_pair(question, row) for question, a, b in questions for row in _find(rows, BASE_ARM, BASE_ARM, a, b)
    ]


def _answer_frames(row: Row) -> Row:
    longer, shorter = sorted((row["num_frames_a"], row["num_frames_b"]), reverse=True)
    question = f"Do {longer} frames beat {shorter}?"
    wins = "a" if row["num_frames_a"] == longer else "b"
    answer = {wins: YES, UNDECIDED: UNDECIDED}.get(row["outcome"], NO)
    return _row(question, answer, _sentence(answer, [describe_comparison(row)]), row)


def _is_matched(row: Row) -> bool:
    return not row["differs_in"] or row["family"] == PAPER


def _is_longer(row: Row) -> bool:
    return row["num_frames_a"] != row["num_frames_b"]


def _find(rows: list[Row], arm_a: str, arm_b: str, kind_a: str = "", kind_b: str = "") -> list[Row]:
    """The comparisons of two arms; `kind` is how the test input starts, empty for any."""
    found = [row for row in rows if (row["arm_a"], row["arm_b"]) == (arm_a, arm_b)]
    found = [row for row in found if kind_a in ("", _kind(row["test_input_a"]))]
    return [row for row in found if kind_b in ("", _kind(row["test_input_b"]))]


def _kind(test_input: str) -> str:
    return test_input.split(":", 1)[0]


def _smallest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["difference"])[:_MOST_LISTED]


def _winner(row: Row) -> str:
    return name_side(row, row["outcome"])


def _loser(row: Row) -> str:
    return name_side(row, "b" if row["outcome"] == "a" else "a")


def _detectable(row: Row) -> str:
    smallest = row["minimal_detectable_difference"]
    sources = _count(row["num_sources"], "source")
    if pd.isna(smallest):
        return f"{sources} with so few discordant answers can show nothing (power 80 %)"
    return f"{sources} would show {100 * smallest:.1f} points or more (power 80 %)"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _sentence(answer: str, parts: list[str]) -> str:
    return f"{answer.capitalize()}: {'; '.join(parts)}."


def _row(question: str, answer: str, sentence: str, comparison: Row | None = None) -> Row:
    comparison_id = "" if comparison is None else comparison["comparison_id"]
    return {"question": question, "comparison_id": comparison_id, "answer": answer, "sentence": sentence}
