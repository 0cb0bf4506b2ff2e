"""What the comparisons answer, by a rule stated beforehand; every sentence and number comes from the tables.

Motion helps only if `3d_svd` beats every control (`pairs.CONTROL_ARMS`, all of them measured, all matched) and
its plain clips beat its shuffled ones; `comparisons` says when A beats B. It does not help where a control beats it,
where shuffling makes no item right or wrong, or where a control explains its lead over `2d_original`: one that has no
such motion, beats `2d_original`, too, and is at least as often right. Everything else is undecided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from Model_Evaluation.pairs import CLAIM, CLAIM_ARM, CONTROL_ARMS, PAPER

HEADLINE = "Does motion help?"
YES, NO, UNDECIDED, NOT_MEASURED = "yes", "no", "undecided", "not measured"
BASE_ARM = "2d_original"
EXPLANATIONS = {
    "the domain": ("2d_first_frame", "2d_all_frames"),
    "extra looks": ("2d_tta", "2d_all_frames"),
    "capacity": ("3d_static",),
    "any motion": ("3d_camera",),
}
_EXPLAINING_ARMS = tuple(dict.fromkeys(arm for arms in EXPLANATIONS.values() for arm in arms))
Row = dict[str, Any]
_MOST_LISTED = 3


@dataclass(frozen=True)
class _Evidence:
    """Comparisons over all seeds: rows of `comparisons.csv`, and among them those of `3d_svd` by control arm."""

    rows: list[Row]
    controls: dict[str, Row]

    def find(self, arm_a: str, arm_b: str, kind_a: str = "", kind_b: str = "") -> Row | None:
        """The first comparison of two arms, `kind` being how the test input starts; None where there is none."""
        for row in self.rows:
            arms = (row["arm_a"], row["arm_b"]) == (arm_a, arm_b)
            if arms and _is_kind(row["test_input_a"], kind_a) and _is_kind(row["test_input_b"], kind_b):
                return row
        return None


def build_verdict(comparisons: Iterable[Row]) -> list[Row]:
    """Rows of `verdict.csv`: the headline first, then a row a question; those of the claim for each length of clips."""
    whole = [row for row in comparisons if pd.isna(row["seed"])]
    lengths = sorted({row["num_frames_a"] for row in whole if row["arm_a"] == CLAIM_ARM}) or [None]
    rows: list[Row] = []
    for num_frames in lengths:
        suffix = f" ({num_frames} frames)" if len(lengths) > 1 else ""
        answers = _answer_claim(_collect(whole, num_frames))
        rows += [row | {"question": row["question"] + suffix} for row in answers]
    rows += [_answer_frames(row) for row in whole if row["arm_a"] == row["arm_b"] == CLAIM_ARM and _is_longer(row)]
    rows += _answer_others(_Evidence(whole, {}))
    return [{"position": position} | row for position, row in enumerate(rows, start=1)]


def describe_comparison(row: Row) -> str:
    """One comparison's numbers as a clause."""
    text = (
        f"{name_side(row, 'a')} {100 * row['top1_a']:.1f} % against {name_side(row, 'b')} {100 * row['top1_b']:.1f} %: "
        f"{_points(row['difference'])} points (95 % interval {_points(row['difference_low'])} to "
        f"{_points(row['difference_high'])}; Holm p = {row['mcnemar_p_holm']:.3g}; {row['num_items']} items, "
        f"{_count(row['num_seeds'], 'seed')})"
    )
    if row["differs_in"]:
        text += f", not a matched pair: {row['differs_in']}"
    if row["outcome"] == UNDECIDED and _is_matched(row):
        text += f", {_detectable(row)}"
    return text


def name_side(row: Row, side: str) -> str:
    """The arm, with its test input where both sides are one arm."""
    if row["arm_a"] == row["arm_b"]:
        text = f"{row[f'arm_{side}']} on {row[f'test_input_{side}']}"
        return text if row["num_frames_a"] == row["num_frames_b"] else f"{text} of {row[f'num_frames_{side}']} frames"
    return row[f"arm_{side}"]


def _collect(rows: list[Row], num_frames: int | None) -> _Evidence:
    """What bears on clips of one length; None where there is no `3d_svd`."""
    fitting = [row for row in rows if {row["num_frames_a"], row["num_frames_b"]} <= {1, num_frames}]
    controls: dict[str, Row] = {}
    for row in fitting:
        if row["family"] == CLAIM and row["arm_b"] in CONTROL_ARMS:
            controls.setdefault(row["arm_b"], row)
    return _Evidence(fitting, controls)


def _answer_claim(evidence: _Evidence) -> list[Row]:
    shuffled = evidence.find(CLAIM_ARM, CLAIM_ARM, "clip", "shuffled")
    rows = [
        _answer_headline(evidence, shuffled),
        _answer_explanation(evidence, "Is it the domain?", EXPLANATIONS["the domain"]),
        _answer_explanation(evidence, "Is it just more looks?", EXPLANATIONS["extra looks"]),
        _answer_explanation(evidence, "Is it the bigger network?", EXPLANATIONS["capacity"]),
        _answer_explanation(evidence, "Is any motion enough?", EXPLANATIONS["any motion"]),
        _answer_pair("Does the guidance ramp help?", evidence.controls.get("3d_svd_flat"), "3d_svd and 3d_svd_flat"),
        _answer_shuffled(shuffled),
    ]
    optional = (("Do reversed frames cost accuracy?", "reversed"), ("Does a static clip cost accuracy?", "static"))
    found = [(question, evidence.find(CLAIM_ARM, CLAIM_ARM, "clip", kind)) for question, kind in optional]
    return rows + [_answer_pair(question, row, "") for question, row in found if row is not None]


def _answer_others(evidence: _Evidence) -> list[Row]:
    published = evidence.find("paper_3d", "paper_2d", "", "first_frame") or evidence.find("paper_3d", "paper_2d")
    return [
        _answer_pair("Does SVD help as augmentation?", evidence.find("2d_mix", BASE_ARM), "2d_mix and 2d_original"),
        _answer_pair("Does the published comparison hold?", published, "paper_3d and paper_2d"),
        *_answer_domain_shift(evidence),
    ]


def _answer_headline(evidence: _Evidence, shuffled: Row | None) -> Row:
    if not evidence.controls and shuffled is None:
        return _row(HEADLINE, NOT_MEASURED, "Not measured: there is no 3d_svd beside a control or its shuffled clips.")
    if shuffled is None:
        return _row(HEADLINE, NOT_MEASURED, "Not measured: 3d_svd was not tested on shuffled clips.")
    rows = [*evidence.controls.values(), shuffled]
    weakest = min(rows, key=lambda row: row["difference"])
    missing = [arm for arm in CONTROL_ARMS if arm not in evidence.controls]
    against = [row for row in rows if row["outcome"] == "b"]
    explaining = [arm for arm in _EXPLAINING_ARMS if _explains(evidence, arm)]
    if against or explaining or _is_blind(shuffled):
        text = _no_sentence(evidence, against, explaining, shuffled)
        return _row(HEADLINE, NO, text, against[0] if against else weakest)
    open_rows = [row for row in rows if row["outcome"] != "a"]
    if not open_rows and not missing:
        text = f"Yes: 3d_svd beats all {len(CONTROL_ARMS)} controls and its shuffled clips; the smallest lead: "
        return _row(HEADLINE, YES, text + describe_comparison(weakest) + ".", weakest)
    parts = [f"not measured: {', '.join(missing)}"] if missing else []
    parts += [describe_comparison(row) for row in _smallest_first(open_rows)]
    parts += [text for arm in _EXPLAINING_ARMS if (text := _describe_share(evidence, arm))]
    return _row(HEADLINE, UNDECIDED, _sentence(UNDECIDED, parts), weakest)


def _no_sentence(evidence: _Evidence, against: list[Row], explaining: list[str], shuffled: Row) -> str:
    """Who beats `3d_svd`, what explains its lead, and whether it reads the order; with the numbers."""
    parts = [f"{_winner(row)} beats {_loser(row)} ({describe_comparison(row)})" for row in _smallest_first(against)]
    for name, members in EXPLANATIONS.items():
        for arm in (arm for arm in explaining if arm in members):
            row = evidence.controls[arm]
            numbers = "" if row in against else f" ({describe_comparison(row)})"
            parts.append(f"{name} explains the difference: {arm} does as well or better{numbers}")
    if _is_blind(shuffled):
        parts.append(f"shuffling the frames makes none of {shuffled['num_items']} items right or wrong")
    return _sentence(NO, parts)


def _explains(evidence: _Evidence, arm: str) -> bool:
    """Whether a control does as well as `3d_svd`: it beats it, or reaches its lead over `2d_original` by itself."""
    row, base, lead = evidence.controls.get(arm), evidence.controls.get(BASE_ARM), evidence.find(arm, BASE_ARM)
    if row is None or not _is_matched(row):
        return False
    both_lead = base is not None and lead is not None and base["outcome"] == lead["outcome"] == "a"
    return row["outcome"] == "b" or (row["outcome"] == UNDECIDED and both_lead and row["difference"] <= 0)


def _describe_share(evidence: _Evidence, arm: str) -> str:
    """How much of the lead over `2d_original` a control has that `3d_svd` does not beat; empty where there is none."""
    row, base, lead = evidence.controls.get(arm), evidence.controls.get(BASE_ARM), evidence.find(arm, BASE_ARM)
    if None in (row, base, lead) or (row["outcome"], base["outcome"], lead["outcome"]) != (UNDECIDED, "a", "a"):
        return ""
    return f"{arm} has {_points(lead['difference'])} of the {_points(base['difference'])} points over {BASE_ARM}"


def _answer_explanation(evidence: _Evidence, question: str, arms: tuple[str, ...]) -> Row:
    """Yes: one of the arms does as well as `3d_svd`, as the headline's rule has it. No: `3d_svd` beats all of them."""
    rows = [evidence.controls[arm] for arm in arms if arm in evidence.controls]
    if not rows:
        return _row(question, NOT_MEASURED, f"Not measured: needs 3d_svd and {' or '.join(arms)}.")
    explaining = [row for row in rows if _explains(evidence, row["arm_b"])]
    beaten = all(row["outcome"] == "a" for row in rows)
    answer = YES if explaining else NO if beaten and len(rows) == len(arms) else UNDECIDED
    shown = _smallest_first(explaining or rows)
    leads = [lead for row in shown if (lead := evidence.find(row["arm_b"], BASE_ARM)) is not None]
    missing = [f"not measured: {arm}" for arm in arms if arm not in evidence.controls]
    return _row(question, answer, _sentence(answer, [*map(describe_comparison, [*shown, *leads]), *missing]), shown[0])


def _answer_pair(question: str, row: Row | None, needed: str) -> Row:
    """Yes: A beats B. No: B beats A."""
    if row is None:
        return _row(question, NOT_MEASURED, f"Not measured: needs {needed}.")
    answer = {"a": YES, "b": NO}.get(row["outcome"], UNDECIDED)
    return _row(question, answer, _sentence(answer, [describe_comparison(row)]), row)


def _answer_shuffled(row: Row | None) -> Row:
    question = "Do shuffled frames cost accuracy?"
    if row is not None and _is_blind(row):
        return _row(question, NO, _sentence(NO, [f"no item becomes right or wrong ({describe_comparison(row)})"]), row)
    return _answer_pair(question, row, "3d_svd on clips and on shuffled clips")


def _answer_domain_shift(evidence: _Evidence) -> list[Row]:
    """The same 2-D weights on originals, on originals in the paper's geometry, on generated first frames."""
    questions = [
        ("Does the paper's geometry cost the 2-D network accuracy?", "original", "original_paper_geometry"),
        ("Do generated first frames cost the 2-D network accuracy?", "original", "first_frame"),
        ("Does generation cost more than its geometry?", "original_paper_geometry", "first_frame"),
    ]
    found = [(question, evidence.find(BASE_ARM, BASE_ARM, a, b)) for question, a, b in questions]
    return [_answer_pair(question, row, "") for question, row in found if row is not None]


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


def _is_blind(row: Row) -> bool:
    """Whether the two sides are right on the very same items, in every seed."""
    same = row["difference_low"] == row["difference_high"] == 0
    return same and row["only_a_right"] == row["only_b_right"] == 0


def _is_kind(test_input: str, kind: str) -> bool:
    return not kind or test_input.split(":", 1)[0] == kind


def _smallest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["difference"])[:_MOST_LISTED]


def _winner(row: Row) -> str:
    return name_side(row, row["outcome"])


def _loser(row: Row) -> str:
    return name_side(row, "b" if row["outcome"] == "a" else "a")


def _detectable(row: Row) -> str:
    smallest = row["minimal_detectable_difference"]
    if pd.isna(smallest):
        return f"{row['num_items']} items with so few discordant answers can show nothing (power 80 %)"
    return f"{row['num_items']} items would show {100 * smallest:.1f} points or more (power 80 %)"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _sentence(answer: str, parts: list[str]) -> str:
    return f"{answer.capitalize()}: {'; '.join(parts)}."


def _row(question: str, answer: str, sentence: str, comparison: Row | None = None) -> Row:
    comparison_id = "" if comparison is None else comparison["comparison_id"]
    return {"question": question, "comparison_id": comparison_id, "answer": answer, "sentence": sentence}
