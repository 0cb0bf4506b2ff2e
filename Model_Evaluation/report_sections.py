"""Sections of the report behind the verdict: cost, calibration, classes, pictures."""

from __future__ import annotations

from html import escape

import pandas as pd

from Model_Evaluation.discordant_sheets import SHEET_FAMILIES, sheet_name
from Model_Evaluation.entries import over_seeds, own_entry_ids
from Model_Evaluation.figures import difference_name, mean_shares, pairs_with_figures, safe_name
from Model_Evaluation.figures_classes import describe_distribution
from Model_Evaluation.report_costs import cost_parts, end_to_end_parts, entry_means
from Model_Evaluation.report_method import glossary_parts, method_parts
from Model_Evaluation.report_page import (
    Field,
    Pictures,
    details_html,
    format_interval,
    format_value,
    section_html,
    table_html,
)

_OPEN_DIFFERENCES = 2
_MOST_CONFUSIONS = 12  # in the report; every run's is in the folder of figures
_MOST_CLASSES = 30  # in the table of classes of the report; `per_class_metrics.csv` has all

_HEAT_MAPS = {
    "grad_cam_*": "Grad-CAM: brighter is more evidence",
    "attention_*": "Attention roll-out: the answer was gathered from brighter places",
}

_CALIBRATION = [
    Field("Entry", "entry_id"),
    Field("Calibration error, %", "calibration_error", "percent"),
    Field("Negative log-likelihood", "nll", "three"),
    Field("Macro AUC", "macro_auc", "three"),
    Field("Top-1, %", "top1_fraction", "percent"),
    Field("Top-3, %", "top3_fraction", "percent"),
]
_CLASSES = [
    Field("Class", "class_name"),
    Field("Entry", "entry_id"),
    Field("Items", "num_items", "count"),
    Field("Recall, %", "recall", "percent"),
    Field(
        "Mean of the seeds' intervals",
        lambda row: format_interval(row, "recall_low", "recall_high", "percent"),
        "interval",
    ),
    Field("Precision, %", "precision", "percent"),
    Field("F1", "f1", "three"),
]


def all_sections(given: dict[str, pd.DataFrame], pictures: Pictures) -> list[tuple[str, str]]:
    """Heading and HTML of each section, empty where the tables or pictures have nothing for it."""
    parts = {
        "Cost": cost_parts(given, pictures),
        "From image to answer": end_to_end_parts(given),
        "Calibration": _calibration(given, pictures),
        "Classes": _classes(given, pictures),
        "Confusion": _confusion(given, pictures),
        "Where they disagree": [],
        "Sample predictions": _sheets(pictures, {"samples_*": "Sample predictions"}),
        "Where the networks look": _sheets(pictures, _HEAT_MAPS),
        "Training": list(_described(pictures, "curves_*", "Training curves").values()),
        "How this was measured": method_parts(given),
        "Glossary": glossary_parts(),
    }
    parts["Where they disagree"] = _discordant(given, pictures)  # last: its many photographs take the room that is left
    if pictures.left_out:
        names = ", ".join(f"<code>{escape(name)}</code>" for name in pictures.left_out)
        parts["How this was measured"].append(
            f'<p class="muted">To keep this page small, figures that stand in the folder of figures only: {names}.</p>'
        )
    return [(heading, section_html(heading, html)) for heading, html in parts.items()]


def describe_confusion(rows: pd.DataFrame) -> str:
    """How many items are right, and the most frequent mistake."""
    is_right = rows["label"] == rows["predicted_label"]
    right, total = rows["num_items"][is_right].sum(), rows["num_items"].sum()
    text = f"{format_value(right, 'count')} of {format_value(total, 'count')} items are right"
    wrong = rows[~is_right]
    if wrong.empty or not (worst := wrong.loc[wrong["num_items"].astype(int).idxmax()])["num_items"]:
        return f"{text}."
    count = format_value(worst["num_items"], "count")
    names = f"{worst['class_name']} taken for {worst['predicted_class_name']}"
    return f"{text}; the most frequent mistake is {names}, {count} times."


def describe_difference(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> str:
    """The class that gains and the class that loses most."""
    shares = mean_shares(rows_a) - mean_shares(rows_b)
    names = rows_a.drop_duplicates("label").set_index("label")["class_name"]
    own = pd.Series({label: shares.loc[label, label] for label in shares.index}).fillna(0.0)
    ends = [f"{names[label]} {format_value(own[label], 'points')} points" for label in (own.idxmax(), own.idxmin())]
    return f"recall of the classes goes from {ends[1]} to {ends[0]}."


def _calibration(given: dict[str, pd.DataFrame], pictures: Pictures) -> list[str]:
    if "summary" not in given or given["summary"][["calibration_error", "nll", "macro_auc"]].isna().all(axis=None):
        return []
    rows = entry_means(given["summary"]).to_dict("records")
    errors = "; ".join(f"{row['entry_id']} {format_value(row['calibration_error'], 'percent')} %" for row in rows)
    caption = "Share of right items against mean confidence. On the dashed line confidence is accuracy."
    return [
        pictures.html("reliability", f"Reliability diagrams. Calibration errors: {errors}.", caption),
        table_html("Probabilities, averaged over runs", _CALIBRATION, rows),
    ]


def _classes(given: dict[str, pd.DataFrame], pictures: Pictures) -> list[str]:
    if "per_class_metrics" not in given:
        return []
    rows = given["per_class_metrics"]
    own = rows[rows["entry_id"].isin(own_entry_ids(rows))]
    names = ["label", "class_name", "entry_id"]
    numbers = ["num_items", "recall", "recall_low", "recall_high", "precision", "f1"]
    means = own.astype(dict.fromkeys(numbers, "float64")).groupby(names, sort=False)[numbers].mean().reset_index()
    ends = [f"{entry_id}: {_range_of(part)}" for entry_id, part in means.groupby("entry_id", sort=False)]
    caption = "Recall of each class, averaged over seeds, with the mean of the seeds' 95 % intervals (Wilson)."
    parts = [
        pictures.html("per_class_recall", f"Recall by class. {'; '.join(ends)}.", caption),
        pictures.html("class_distribution", describe_distribution(rows), "Scored items of each class."),
    ]
    if means["label"].nunique() <= _MOST_CLASSES:
        ordered = means.sort_values("label", kind="stable").to_dict("records")
        table = table_html("Classes, entries on their own kind of input, averaged over seeds", _CLASSES, ordered)
        parts.append(details_html("Numbers of every class", table))
    return parts


def _range_of(classes: pd.DataFrame) -> str:
    ordered = classes.sort_values("recall", kind="stable")
    low, high = ordered.iloc[0], ordered.iloc[-1]
    return " to ".join(f"{row['class_name']} {format_value(row['recall'], 'percent')} %" for row in (low, high))


def _confusion(given: dict[str, pd.DataFrame], pictures: Pictures) -> list[str]:
    """The differences of the planned pairs; of single runs the first of each entry on its own input."""
    if "confusion_flat" not in given:
        return []
    rows = given["confusion_flat"]
    of_entry = dict(list(rows.groupby("entry_id", sort=False)))
    differences = []
    for pair in pairs_with_figures(given.get("comparisons")).to_dict("records"):
        one, other = pair["entry_a"], pair["entry_b"]
        if one in of_entry and other in of_entry:
            alt = f"Confusion of {one} minus {other}: {describe_difference(of_entry[one], of_entry[other])}"
            caption = f"{one} minus {other}: blue is more often, red more seldom; seeds pooled."
            differences.append(pictures.html(difference_name(pair["comparison_id"]), alt, caption))
    own = rows[rows["entry_id"].isin(own_entry_ids(rows))].drop_duplicates("entry_id")["run_id"].tolist()
    singles = []
    for run_id in own[:_MOST_CONFUSIONS]:
        text = describe_confusion(rows[rows["run_id"] == run_id])
        name = safe_name(f"confusion_{run_id}")
        singles.append(pictures.html(name, f"Confusion matrix of {run_id}: {text}", f"{run_id}: {text}"))
    return [
        *differences[:_OPEN_DIFFERENCES],
        _folded("Differences of the other pairs", differences[_OPEN_DIFFERENCES:]),
        _folded("Single runs, one an entry", singles) if differences else "\n".join(singles),
    ]


def _folded(summary: str, figures: list[str]) -> str:
    figures = [figure for figure in figures if figure]
    return details_html(summary, "\n".join(figures)) if figures else ""


def _discordant(given: dict[str, pd.DataFrame], pictures: Pictures) -> list[str]:
    parts = []
    for pair in over_seeds(given.get("comparisons"), SHEET_FAMILIES).to_dict("records"):
        sides = {"a": (pair["entry_a"], pair["entry_b"]), "b": (pair["entry_b"], pair["entry_a"])}
        for side, (right, wrong) in sides.items():
            count = format_value(pair[f"only_{side}_right"], "count")
            text = f"{right} is right and {wrong} is wrong on {count} source images (majority of seeds and clips)."
            alt = f"Contact sheet with frames, true classes and both answers. {text}"
            if figure := pictures.html(sheet_name(pair["comparison_id"], side), alt, text):
                parts.append(details_html(text, figure, is_open=not parts))
    return parts


def _sheets(pictures: Pictures, kinds: dict[str, str]) -> list[str]:
    """Pictures by pattern, of several the first one open: each is as long as a page."""
    sheets = [
        sheet for pattern, what in kinds.items() for sheet in _described(pictures, pattern, what).items() if sheet[1]
    ]
    if len(sheets) == 1:
        return [sheets[0][1]]
    return [details_html(caption, html, is_open=not number) for number, (caption, html) in enumerate(sheets)]


def _described(pictures: Pictures, pattern: str, what: str) -> dict[str, str]:
    """HTML by caption of pictures whose text alternative they bring along, or that are called by their name."""
    parts = {}
    for name in pictures.names(pattern):
        label = name.split("_", pattern.count("_"))[-1]
        alt = pictures.description(name) or f"{what}: {label}"
        parts[f"{what}: {label}."] = pictures.html(name, alt, f"{what}: {label}.")
    return parts
