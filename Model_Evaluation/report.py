"""The report of an evaluation: one self-contained HTML page of the tables' numbers, and of their sums and means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from Model_Evaluation import report_sections
from Model_Evaluation.arms import SUBJECT_ROW
from Model_Evaluation.entries import is_3d, over_seeds
from Model_Evaluation.pairs import ARM_ORDER
from Model_Evaluation.report_page import (
    DotRow,
    Field,
    Pictures,
    breakable,
    details_html,
    dots_html,
    format_interval,
    format_value,
    page_html,
    section_html,
    table_html,
)
from Model_Evaluation.verdict import NOT_MEASURED
from utils.files import write_text

_MOST_PICTURE_BYTES = 3_400_000  # base64 makes a third more of them; the page stays below 5 MB
_FEW_SEEDS = 3
_TITLE = "Evaluation report"

_ARM_FIELDS = [
    Field("Entry", "entry_id"),
    Field("Trained on", "train_input"),
    Field("Tested on", "test_input"),
    Field("Frames", "num_frames", "count"),
    Field("Seeds", "num_seeds", "count"),
    Field("Items", "num_items", "count"),
    Field("Top-1, %", "top1_mean", "percent"),
    Field("95 % interval", lambda row: format_interval(row, "top1_low", "top1_high", "percent"), "interval"),
    Field("sd, points", "top1_sd", "size"),
    Field("Macro F1", "macro_f1_mean", "three"),
    Field("Majority vote, %", "majority_top1", "percent"),
]
_PAIR_FIELDS = [
    Field("A", "entry_a"),
    Field("B", "entry_b"),
    Field("A, %", "top1_a", "percent"),
    Field("B, %", "top1_b", "percent"),
    Field("A \u2212 B, points", "difference", "points"),
    Field("95 % interval", lambda row: format_interval(row, "difference_low", "difference_high", "points"), "interval"),
    Field("Better", lambda row: format_value({"a": "A", "b": "B"}.get(row["outcome"], row["outcome"]), "text")),
    Field("p, Holm", "mcnemar_p_holm", "p"),
    Field("McNemar p", "mcnemar_p", "p"),
    Field("Only A right", "only_a_right", "count"),
    Field("Only B right", "only_b_right", "count"),
    Field("Cohen's h", "cohens_h", "signed"),
    Field("Detectable, points", "minimal_detectable_difference", "size"),
    Field("Differ in", lambda row: format_value(_differing_keys(row), "text"), is_prose=True),
]
_DIFFERENCES = Field("Differ in", "differs_in", is_prose=True)
_WHAT_IS_COUNTED = (
    "In the tables top-1, difference, interval and Cohen's h are means over seeds and items. Both p, the counts of "
    "what only one has right, and the detectable difference are of the majority vote: one answer a source image, of "
    "all its seeds and clips."
)
_SEED = Field("Seed", lambda row: "all" if pd.isna(row["seed"]) else format_value(row["seed"], "count"))
_Row = Mapping[str, Any]


def write_report(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write `report.html` into `folder`, with the figures that stand in `folder/figures`; equal input, equal bytes.

    Args:
        tables: measured and derived tables by name; what is missing or empty is left out of the report.
    """
    given = {name: frame for name, frame in tables.items() if frame is not None and not frame.empty}
    pictures = Pictures(folder / "figures", _MOST_PICTURE_BYTES)
    answered, unanswered = _split_verdict(given)
    accuracy = [("Accuracy", _accuracy(given)), ("Comparisons", _comparisons(given))]
    findings = [("Findings", _findings(answered[1:] if _has_headline(answered) else answered, unanswered))]
    sections = [
        *((findings + accuracy) if answered else (accuracy + findings)),  # what was measured comes first
        ("What to keep in mind", _caveats(given)),
        *report_sections.all_sections(given, pictures),
    ]
    title, header = _header(answered, unanswered, _subjects(given), "arms" in given)
    write_text(folder / "report.html", page_html(title, header, sections))


def _split_verdict(given: Mapping[str, pd.DataFrame]) -> tuple[list[_Row], list[_Row]]:
    """The verdict's rows in order: those with an answer, and those whose question was not measured.

    Results without any arm of the study's ask none of its questions.
    """
    if "verdict" not in given:
        return [], []
    rows = given["verdict"].sort_values("position").to_dict("records")
    answered = [row for row in rows if row["answer"] != NOT_MEASURED]
    asks = not set(given["arms"]["arm"]).isdisjoint(ARM_ORDER) if "arms" in given else True
    return answered, [row for row in rows if row["answer"] == NOT_MEASURED] if asks else []


def _has_headline(answered: list[_Row]) -> bool:
    return bool(answered) and answered[0]["position"] == 1


def _subjects(given: Mapping[str, pd.DataFrame]) -> str:
    """The keys that runs were compared in, where they say so."""
    values = given.get("protocol_values")
    return "" if values is None else ", ".join(dict.fromkeys(values["value"][values["key"] == SUBJECT_ROW]))


def _header(answered: list[_Row], unanswered: list[_Row], subjects: str, has_arms: bool) -> tuple[str, str]:
    """The page's title, and the verdict's first row if it has an answer."""
    if not _has_headline(answered):
        text = "These results hold no comparison that the rule of the verdict could be applied to."
        if subjects:
            text = f"Arms that differ in {subjects} and, where nothing else is said below, in nothing else."
        elif has_arms and not unanswered:
            text = "What was measured of each entry: an arm on one input, over its seeds."
        elif unanswered:
            first = unanswered[0]
            text = f"What was measured of each entry. Not measured: {first['question']} ({_reason(first).rstrip('.')})."
        return _TITLE, f'<h1>{_TITLE}</h1>\n<p class="lead">{breakable(text)}</p>'
    first = answered[0]
    answer = str(first["answer"]).capitalize()
    header = (
        f'<h1>{escape(str(first["question"]))}</h1>\n<p class="headline">{escape(answer)}.</p>\n'
        f'<div class="lead">{_sentence_html(first)}</div>'
    )
    return f"{first['question']} {answer}. {_TITLE}", header


def _findings(answered: list[_Row], unanswered: list[_Row]) -> str:
    """The verdict's other rows; questions that were not measured are folded into one line behind them."""
    parts = [_findings_html(answered)] if answered else []
    if unanswered:
        count = "1 question" if len(unanswered) == 1 else f"{len(unanswered)} questions"
        parts.append(details_html(f"Not measured: {count}", _findings_html(unanswered)))
    return section_html("Findings", parts)


def _findings_html(rows: list[_Row]) -> str:
    items = [
        f"<li><b>{escape(row['question'])} {escape(str(row['answer']).capitalize())}.</b>{_sentence_html(row)}</li>"
        for row in rows
    ]
    return '<ul class="findings">\n' + "\n".join(items) + "\n</ul>"


def _sentence_html(row: _Row) -> str:
    """The row's sentence without the answer in front; several clauses as a list."""
    first, *others = split_clauses(_reason(row))
    if not others:
        return f"<p>{breakable(first)}</p>"
    return "<ul>" + "".join(f"<li>{breakable(clause)}</li>" for clause in (first, *others)) + "</ul>"


def _reason(row: _Row) -> str:
    """The row's sentence without the answer in front."""
    answer, sentence = str(row["answer"]), str(row["sentence"])
    is_repeated = sentence.lower().startswith(f"{answer.lower()}: ")
    return sentence[len(answer) + 2 :] if is_repeated else sentence


def split_clauses(sentence: str) -> list[str]:
    """The parts between semicolons that stand in no bracket."""
    clauses, depth = [""], 0
    for part in re.split(r"(; |\(|\))", sentence):
        depth += (part == "(") - (part == ")")
        if part == "; " and depth == 0:
            clauses.append("")
        else:
            clauses[-1] += part
    return clauses


def _accuracy(given: dict[str, pd.DataFrame]) -> str:
    if "arms" not in given:
        return ""
    arms = given["arms"].to_dict("records")
    key = (
        '<p class="key"><span class="first">\u25cf</span> 2-D network, <span class="other">\u25a0</span> 3-D network: '
        "mean over seeds with its 95 % interval. Small dots are single seeds.</p>"
    )
    rows = [_arm_row(arm, given.get("summary")) for arm in arms]
    table = table_html(
        "Top-1 of each entry (an arm on one kind of input): mean and standard deviation over seeds", _ARM_FIELDS, arms
    )
    return section_html("Accuracy", [key, dots_html(rows, "top-1, %"), table])


def _arm_row(arm: Mapping[str, Any], summary: pd.DataFrame | None) -> DotRow:
    points: tuple[float, ...] = ()
    if summary is not None and arm["num_seeds"] > 1:
        points = tuple(100 * summary["top1_fraction"][summary["entry_id"] == arm["entry_id"]].astype(float))
    text = f"{format_value(arm['top1_mean'], 'percent')} ({format_interval(arm, 'top1_low', 'top1_high', 'percent')})"
    low, middle, high = (100 * float(arm[f"top1_{name}"]) for name in ("low", "mean", "high"))
    return DotRow(str(arm["entry_id"]), low, middle, high, text, points, "second" if is_3d(arm["model"]) else "first")


def _comparisons(given: dict[str, pd.DataFrame]) -> str:
    """The planned pairs as dots and as a table; all pairs and seeds in a table that can be opened."""
    if "comparisons" not in given:
        return ""
    comparisons = given["comparisons"]
    planned = over_seeds(comparisons).to_dict("records")
    parts = []
    if planned:
        parts = [
            '<p class="key">Top-1 of A minus top-1 of B on the same items, with its 95 % interval. A full dot is a '
            "decided comparison, an open one an undecided one.</p>",
            dots_html([_pair_row(pair) for pair in planned], "points", with_zero=True),
            f'<p class="key">{_WHAT_IS_COUNTED}</p>',
            table_html("Planned comparisons, all seeds together", _PAIR_FIELDS, planned, _is_unmatched),
        ]
    if len(comparisons) > len(planned):
        caption = "All comparisons, and each seed by itself, which decides nothing"
        fields = [*_PAIR_FIELDS[:2], _SEED, *_PAIR_FIELDS[2:-1], _DIFFERENCES]
        table = table_html(caption, fields, comparisons.to_dict("records"), _is_unmatched)
        count = format_value(len(comparisons), "count")
        parts.append(details_html(f"All comparisons, seed by seed ({count} rows)", table))
    return section_html("Comparisons", parts)


def _pair_row(pair: Mapping[str, Any]) -> DotRow:
    low, middle, high = (100 * float(pair[name]) for name in ("difference_low", "difference", "difference_high"))
    interval = format_interval(pair, "difference_low", "difference_high", "points")
    text = f"{format_value(pair['difference'], 'points')} ({interval})"
    style = "first open" if pair["outcome"] == "undecided" else "first"
    return DotRow(f"{pair['entry_a']} against {pair['entry_b']}", low, middle, high, text, (), style)


def _is_unmatched(pair: Mapping[str, Any]) -> bool:
    return bool(pair["differs_in"])


def _differing_keys(pair: Mapping[str, Any]) -> str:
    """The keys alone: their values, which may be long, stand in the notes."""
    return ", ".join(part.partition(": ")[0] for part in str(pair["differs_in"]).split("; ") if part)


def _caveats(given: dict[str, pd.DataFrame]) -> str:
    """What the tables themselves say against reading too much into them."""
    sentences = [*_pair_caveats(given.get("comparisons")), *_arm_caveats(given.get("arms"))]
    return section_html("What to keep in mind", [f'<p class="note">{breakable(text)}</p>' for text in sentences])


def _pair_caveats(comparisons: pd.DataFrame | None) -> list[str]:
    sentences, undecided, too_few = [], [], []
    for pair in over_seeds(comparisons).to_dict("records"):
        names = f"{pair['entry_a']} against {pair['entry_b']}"
        if _is_unmatched(pair):
            sentences.append(f"Not matched: {names} differ in more than what is compared ({pair['differs_in']}).")
        if pair["outcome"] != "undecided":
            continue
        if pd.isna(pair["minimal_detectable_difference"]):
            too_few.append(names)
        else:
            undecided.append(f"{format_value(pair['minimal_detectable_difference'], 'size')} points for {names}")
    if undecided:
        sentences.append(
            "Undecided is not equal: with as many source images, a difference smaller than this would often go "
            f"unnoticed: {_listed(undecided)}."
        )
    if too_few:
        sentences.append(
            "Too few to decide: only one of the two is right on so few source images that even the most uneven split "
            f"of them would often go unnoticed: {_listed(too_few)}."
        )
    return sentences


def _arm_caveats(arms: pd.DataFrame | None) -> list[str]:
    if arms is None:
        return []
    sentences = []
    if few := arms["entry_id"][arms["num_seeds"] < _FEW_SEEDS].tolist():
        sentences.append(
            f"Few seeds: fewer than {_FEW_SEEDS} trainings stand behind {_listed(few)}; "
            "how much another seed would change is not known well."
        )
    if chosen := arms["entry_id"][arms["selection_split"] == arms["split"]].tolist():
        sentences.append(
            f"Selected on the reported items: {_listed(chosen)}. The best epoch was chosen on the split that is "
            "reported, so the accuracy is optimistic."
        )
    if arms["num_items"].nunique() > 1:
        low, high = (format_value(arms["num_items"].agg(name), "count") for name in ("min", "max"))
        sentences.append(f"Not all entries were scored on the same items: their numbers go from {low} to {high}.")
    return sentences


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
